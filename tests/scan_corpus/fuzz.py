"""Damage files at random and scan them: nothing may crash, take a second, or take memory beyond 64 MiB and the file.

``fuzz`` is what the tests run for a moment and the benchmark for minutes. Time is the processor's, so that a busy machine
does not fail a test; memory is the peak of the whole process, which must have made its seeds before.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

LIMIT_SECONDS = 1.0
LIMIT_BYTES = 64 << 20

_NUMBERS = [0, 1, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, (1 << 64) - 1]


@dataclass
class Fuzzed:
    """``cases``: files scanned; ``slowest``: seconds of the slowest; ``grown``: bytes that the process grew by at most."""

    cases: int = 0
    clean: int = 0
    slowest: float = 0.0
    grown: int = 0
    slow: list[bytes] = field(default_factory=list)


def damaged(rng: random.Random, seed: bytes, other: bytes) -> bytes:
    """A copy of ``seed`` with one to four wounds."""
    data = bytearray(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(data) + 1)
        end = min(len(data), at + rng.choice((1, 1, 2, 4, 8, 64)))
        wound = rng.randrange(8)
        if wound == 0 and at < len(data):
            data[at] ^= 1 << rng.randrange(8)
        elif wound == 1 and at < len(data):
            data[at] = rng.randrange(256)
        elif wound == 2:
            width = rng.choice((1, 2, 4, 8))
            data[at : at + width] = (rng.choice(_NUMBERS) & ((1 << 8 * width) - 1)).to_bytes(
                width, rng.choice(("little", "big"))
            )
        elif wound == 3:
            del data[at:end]
        elif wound == 4:
            data[at:at] = rng.randbytes(rng.randrange(1, 9))
        elif wound == 5:
            data[at:at] = data[at:end] * rng.choice((1, 2, 100))
        elif wound == 6 and other:
            start = rng.randrange(len(other))
            data[at:end] = other[start : start + rng.randrange(1, 65)]
        elif wound == 7:
            del data[at:]
    return bytes(data)


def peak() -> int:
    """Bytes of memory that this program ever had at once: VmHWM, since what rusage tells is inherited from who started it."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def _quick(scan: Callable[[bytes], bool], data: bytes) -> bool:
    """Whether a scan takes under 20 ms: bombs that are refused at the limit would leave no time for others."""
    start = time.process_time()
    scan(data)
    return time.process_time() - start < 0.02


def fuzz(scan: Callable[[bytes], bool], seeds: Mapping[str, bytes], *, seconds: float, cases: int, seed: int = 0) -> Fuzzed:
    """Scan damaged copies of ``seeds`` until ``seconds`` of the processor or ``cases`` are spent. Raises what it raises."""
    rng, found = random.Random(seed), Fuzzed()
    pool = [data for data in seeds.values() if data and len(data) < 1 << 20 and _quick(scan, data)]
    before, began = peak(), time.process_time()
    while found.cases < cases and time.process_time() - began < seconds:
        data = damaged(rng, rng.choice(pool), rng.choice(pool))
        start = time.process_time()
        found.clean += scan(data)
        taken = time.process_time() - start
        found.cases += 1
        found.slowest = max(found.slowest, taken)
        if taken > LIMIT_SECONDS:
            found.slow.append(data)
    found.grown = peak() - before
    return found
