"""The sealed container: load, seal, open and one tensor of a 1 GiB safetensors file, beside plain safetensors and Fernet.

``python -m benchmarks container [-- MIB [FOLDER]]``: size of the file (1,024), where to work (/dev/shm, else temporary).
"""

import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from cryptography.fernet import Fernet
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks import Row, report
from modelkeep.adapters.blobs.local import FileReader
from modelkeep.container import KmsRecipient, pack_file, unpack_file
from modelkeep.crypto.wrap import unwrap_key, wrap_key

ROUNDS = 5
THREADS = 2
TENSORS = 434
FERNET_MIB = 128  # Fernet needs eight times its input in memory; where that is short, less is measured and scaled up
PURPOSE = "bench"


class _Ring:
    """A wrapping key in memory."""

    key_id = "bench/1"
    kek = bytes(32)

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return wrap_key(self.kek, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return unwrap_key(self.kek, wrapped, context)


KEYS = [KmsRecipient(_Ring())]


class _Time(NamedTuple):
    """Seconds by the clock on the wall, and of all cores together: on a busy machine only the second can be compared."""

    wall: float
    cpu: float


def run(args: list[str]) -> None:
    """``args``: mebibytes and folder, both optional."""
    if args and args[0] == "--child":
        _child(args[1], Path(args[2]), Path(args[3]))
        return
    mib = int(args[0]) if args else 1024
    shm = Path("/dev/shm")
    folder = args[1] if len(args) > 1 else str(shm) if shm.is_dir() and _free(shm) > 6 * mib << 20 else None
    with tempfile.TemporaryDirectory(dir=folder, prefix="modelkeep-bench-") as name:
        rows = _measure(Path(name), mib)
    report(f"Sealed container, {mib} MiB safetensors, {THREADS} threads, median of {ROUNDS}", rows)


def _measure(folder: Path, mib: int) -> list[Row]:
    even, dominant, sealed, opened = (folder / name for name in ("even", "dominant", "sealed.keep", "opened"))
    _make(even, [mib << 20])
    size = even.stat().st_size
    rows = [_row("memcpy in memory", size, _median(_memcpy(size)))]
    token_s, plain_s = _fernet(folder, mib)
    rows += [_row("Fernet encrypt, file to file", size, token_s), _row("Fernet decrypt, file to file", size, plain_s)]
    seal, back = _median(lambda: _seal(even, sealed)), _median(lambda: _open(sealed, opened))
    assert _digest(opened) == _digest(even)
    opened.unlink()
    rows.append(_row("seal, file to file", size, seal) | _against(token_s, seal, "Fernet", "≥ 20"))
    rows.append(_row("open, file to file", size, back) | _against(plain_s, back, "Fernet", "≥ 20"))
    rows += [*_load("434 tensors", even, sealed), *_one_tensor(even, sealed), *_memory(even, sealed)]
    rows.append({"bench": "container", "case": "overhead on disk, %", "ratio": _overhead(even, sealed), "bar": "≤ 0.2"})
    even.unlink()
    _make(dominant, [mib * 9 // 10 << 20, mib // 10 << 20])
    _seal(dominant, sealed)
    return [*rows, *_load("one dominant tensor", dominant, sealed)]


def _load(what: str, plain: Path, sealed: Path) -> list[Row]:
    """Plain and sealed in turn, so that both meet the same neighbours on this machine."""
    plain_s, sealed_s = [], []
    for _ in range(ROUNDS):
        plain_s.append(_timed(lambda: load_file(plain)))
        sealed_s.append(_timed(lambda: _load_sealed(sealed)))
    size, peer, ours = plain.stat().st_size, _middle(plain_s), _middle(sealed_s)
    row = _row(f"load sealed, verified, {what}", size, ours) | _against(peer, ours, "load_file", "≥ 1.0")
    return [_row(f"safetensors load_file, {what}", size, peer), row]


def _one_tensor(plain: Path, sealed: Path) -> list[Row]:
    name = f"t{TENSORS // 2:04d}"
    with safe_open(plain, "np") as file:
        size = file.get_tensor(name).nbytes

    def peer() -> None:
        with safe_open(plain, "np") as file:
            file.get_tensor(name)

    def ours() -> None:
        with FileReader(sealed) as reader:
            unpack_file(reader, KEYS, purpose=PURPOSE).read_tensor(name, threads=THREADS)

    plain_s, sealed_s = _median(peer), _median(ours)
    row = _row("one tensor, sealed", size, sealed_s) | _against(plain_s, sealed_s, "plain", "≥ 0.33")
    return [_row("one tensor, plain safetensors", size, plain_s), row]


def _memory(plain: Path, sealed: Path) -> list[Row]:
    """Peak resident memory of fresh processes."""
    rows: list[Row] = []
    for case, bar in (("seal", "≤ 100"), ("load", f"≤ {(plain.stat().st_size >> 20) + 100}")):
        command = [sys.executable, "-m", "benchmarks", "container", "--", "--child", case, str(plain), str(sealed)]
        peak = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["peak_mib"]
        rows.append({"bench": "container", "case": f"peak RSS to {case}, MiB", "ratio": peak, "bar": bar})
    return rows


def _child(case: str, plain: Path, sealed: Path) -> None:
    if case == "fernet":
        _fernet_child(plain, int(sealed.name))
        return
    if case == "seal":
        _seal(plain, sealed.with_suffix(".child"))
        sealed.with_suffix(".child").unlink()
    else:
        _load_sealed(sealed)
    # VmHWM and not getrusage: ru_maxrss survives exec, and would tell of the parent.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({"peak_mib": int(status["VmHWM"].split()[0]) >> 10}))


def _seal(source: Path, target: Path) -> None:
    with FileReader(source) as reader, target.open("wb", buffering=0) as out:
        for chunk in pack_file(reader, KEYS, purpose=PURPOSE):
            out.write(chunk)


def _open(source: Path, target: Path) -> None:
    with FileReader(source) as reader, target.open("wb", buffering=0) as out:
        for chunk in unpack_file(reader, KEYS, purpose=PURPOSE).chunks(threads=THREADS):
            out.write(chunk)


def _load_sealed(path: Path) -> memoryview:
    with FileReader(path) as reader:
        return unpack_file(reader, KEYS, purpose=PURPOSE).read_source(threads=THREADS)


def _fernet(folder: Path, mib: int) -> tuple[_Time, _Time]:
    """Once each way; in a process of its own, so that its gigabytes go back."""
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    part = mib if available > 12 * mib else min(mib, FERNET_MIB)
    command = [sys.executable, "-m", "benchmarks", "container", "--", "--child", "fernet", str(folder), str(part)]
    times = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    sealing, opening = (_Time(wall * mib / part, cpu * mib / part) for wall, cpu in times)
    return sealing, opening


def _fernet_child(folder: Path, mib: int) -> None:
    plain, token, back = folder / "plain", folder / "token", folder / "back"
    plain.write_bytes(os.urandom(mib << 20))
    fernet = Fernet(Fernet.generate_key())
    sealing = _timed(lambda: token.write_bytes(fernet.encrypt(plain.read_bytes())))
    opening = _timed(lambda: back.write_bytes(fernet.decrypt(token.read_bytes())))
    for path in (plain, token, back):
        path.unlink()
    print(json.dumps([sealing, opening]))


def _memcpy(size: int) -> Callable[[], None]:
    source, target = np.ones(size, np.uint8), np.ones(size, np.uint8)
    return lambda: np.copyto(target, source)


def _make(path: Path, sizes: list[int]) -> None:
    """float16 tensors: one for each of ``sizes``, or 434 equal ones when there is one size; names as ``t0217``."""
    rng = np.random.default_rng(0)
    parts = [sizes[0] // TENSORS] * TENSORS if len(sizes) == 1 else sizes
    block = rng.integers(0, 1 << 16, max(parts) // 2, dtype=np.uint16).view(np.float16)
    save_file({f"t{i:04d}": block[: part // 2] for i, part in enumerate(parts)}, path)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _overhead(plain: Path, sealed: Path) -> float:
    return round(100 * (sealed.stat().st_size / plain.stat().st_size - 1), 3)


def _row(case: str, size: int, time_: _Time) -> Row:
    wall, cpu = time_
    return {
        "bench": "container",
        "case": case,
        "seconds": round(wall, 4),
        "cpu_s": round(cpu, 4),
        "GB_s": round(size / wall / 1e9, 3),
    }


def _against(peer: _Time, ours: _Time, name: str, bar: str) -> Row:
    """How many times faster than ``name`` (of equal work), by the wall clock."""
    return {"ratio": round(peer.wall / ours.wall, 2), "to": name, "bar": bar}


def _timed(call: Callable[[], object]) -> _Time:
    wall, cpu = time.perf_counter(), time.process_time()
    kept = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del kept
    return _Time(wall, cpu)


def _middle(times: Sequence[_Time]) -> _Time:
    return _Time(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def _median(call: Callable[[], object]) -> _Time:
    return _middle([_timed(call) for _ in range(ROUNDS)])


def _free(path: Path) -> int:
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
