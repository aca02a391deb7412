"""The sealed container: load, seal, open and one tensor of a 1 GiB safetensors file, beside plain safetensors, Fernet, age,
cryptotensors and tensorizer.

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
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from cryptography.fernet import Fernet
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks import Row, report
from benchmarks._peers import PACKAGES, Age, NoPeer, measure
from modelkeep import open_sealed
from modelkeep.adapters.blobs.local import FileReader
from modelkeep.container import KmsRecipient, pack_file, unpack_file
from modelkeep.crypto.wrap import unwrap_key, wrap_key

ROUNDS = 5
THREADS = 2
TENSORS = 434
FERNET_MIB = 128  # Fernet needs eight times its input in memory; where that is short, less is measured and scaled up
ONE = 1536 * 1536 * 2  # bytes of the tensor that is opened alone: 4.7 MB
PURPOSE = "file"


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
    even, dominant, sealed = (folder / name for name in ("even", "dominant", "sealed.keep"))
    rest = ((mib << 20) - ONE) // (TENSORS - 1) // 2 * 2
    _make(even, [ONE if number == TENSORS // 2 else rest for number in range(TENSORS)])
    rows = [_row("memcpy in memory", even.stat().st_size, _median(_memcpy(even.stat().st_size)))]
    rows += _file_to_file(folder, even, sealed, mib)
    rows += [*_load("434 tensors", even, sealed), *_one_tensor(even, sealed), *_peers(folder, even, sealed)]
    rows += _memory(even, sealed)
    rows.append({"bench": "container", "case": "overhead on disk, %", "ratio": _overhead(even, sealed), "bar": "≤ 0.2"})
    even.unlink()
    _make(dominant, [900_000_000 * mib // 1024 // 2 * 2, (mib << 20) - 900_000_000 * mib // 1024 // 2 * 2])
    _seal(dominant, sealed)
    return [*rows, *_load("one dominant tensor", dominant, sealed)]


def _file_to_file(folder: Path, plain: Path, sealed: Path, mib: int) -> list[Row]:
    """Ours and age in turn, to files that did not exist; Fernet, which needs gigabytes, once and apart. Leaves ``sealed``."""
    opened, aged, unaged = folder / "opened", folder / "aged", folder / "unaged"
    try:
        age, missing = Age(folder), ""
    except NoPeer as why:
        age, missing = None, str(why)
    rows: list[Row] = [{"bench": "container", "case": "age", "note": missing}] if age is None else []
    fernet, size = _fernet(folder, mib), plain.stat().st_size
    theirs = (
        {} if age is None else {"seal": (lambda: age.seal(plain, aged), aged), "open": (lambda: age.open(aged, unaged), unaged)}
    )
    for what, ours, peer in (
        ("seal", (lambda: _seal(plain, sealed), sealed), fernet[0]),
        ("open", (lambda: _open(sealed, opened), opened), fernet[1]),
    ):
        mine, *others = _in_turn([ours, *([theirs[what]] if theirs else [])])
        rows.append(_row(f"Fernet, {what} file to file", size, peer))
        rows.append(_row(f"{what}, file to file", size, mine) | _against(peer, mine, "Fernet", "≥ 20"))
        for other in others:
            rows.append(_row(f"age, {what} file to file", size, other))
            rows.append(_row(f"{what}, file to file", size, mine) | _against(other, mine, "age", "≥ 1.2"))
    assert _digest(opened) == _digest(plain)
    for path in (opened, aged, unaged):
        path.unlink(missing_ok=True)
    return rows


def _load(what: str, plain: Path, sealed: Path) -> list[Row]:
    """Plain and sealed in turn, so that both meet the same neighbours on this machine."""
    peer, ours = _in_turn([(lambda: load_file(plain), None), (lambda: _load_sealed(sealed), None)])
    size = plain.stat().st_size
    row = _row(f"load sealed, verified, {what}", size, ours) | _against(peer, ours, "load_file", "≥ 1.0")
    return [_row(f"safetensors load_file, {what}", size, peer), row]


def _one_tensor(plain: Path, sealed: Path) -> list[Row]:
    name = f"t{TENSORS // 2:04d}"

    def peer() -> NDArray[Any]:
        with safe_open(plain, "np") as file:
            return file.get_tensor(name)

    def ours() -> NDArray[Any]:
        with open_sealed(sealed, KEYS) as file:
            return file[name]

    assert peer().tobytes() == ours().tobytes()
    plain_s, sealed_s = _in_turn([(peer, None), (ours, None)])
    row = _row("one tensor of 4.7 MB, sealed", ONE, sealed_s) | _against(plain_s, sealed_s, "plain", "≥ 0.33")
    return [_row("one tensor of 4.7 MB, plain safetensors", ONE, plain_s), row]


def _peers(folder: Path, plain: Path, sealed: Path) -> list[Row]:
    """Encrypting packages beside us, each in a process and an environment of its own."""
    name, size, rows = f"t{TENSORS // 2:04d}", plain.stat().st_size, []

    def one() -> object:
        with open_sealed(sealed, KEYS) as file:
            return file[name]

    for peer in PACKAGES:
        try:
            found = {
                case: _middle([_Time(*pair) for pair in pairs])
                for case, pairs in measure(peer, plain, folder, name, ROUNDS).items()
            }
        except NoPeer as why:
            rows.append({"bench": "container", "case": peer, "note": str(why)})
            continue
        mine, alone = _median(lambda: _load_sealed(sealed)), _median(one)
        bar = {"bar": "≥ 1.67"} if peer == "cryptotensors" else {}
        rows.append(_row(f"{peer}, load", size, found["load"]))
        rows.append(_row("load sealed, verified, 434 tensors", size, mine) | {"ratio": _ratio(found["load"], mine), "to": peer})
        rows.append(_row(f"{peer}, one tensor of 4.7 MB", ONE, found["one"]))
        rows.append(_row("one tensor of 4.7 MB, sealed", ONE, alone) | {"ratio": _ratio(found["one"], alone), "to": peer} | bar)
    return rows


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


class _Target:
    """A new file, written at positions."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    def write_at(self, offset: int, data: memoryview) -> None:
        while data:
            done = os.pwrite(self._fd, data, offset)
            data, offset = data[done:], offset + done

    def close(self) -> None:
        os.close(self._fd)


def _open(source: Path, target: Path) -> None:
    with FileReader(source) as reader, closing(_Target(target)) as out:
        unpack_file(reader, KEYS, purpose=PURPOSE).write_to(out, threads=THREADS)


def _load_sealed(path: Path) -> dict[str, Any]:
    with open_sealed(path, KEYS) as file:
        return file.load(threads=THREADS)


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
    """float16 tensors, one for each of ``sizes`` (bytes), named as ``t0217``."""
    rng = np.random.default_rng(0)
    block = rng.integers(0, 1 << 16, max(sizes) // 2, dtype=np.uint16).view(np.float16)
    save_file({f"t{i:04d}": block[: size // 2] for i, size in enumerate(sizes)}, path)


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
    return {"ratio": _ratio(peer, ours), "to": name, "bar": bar}


def _ratio(peer: _Time, ours: _Time) -> float:
    return round(peer.wall / ours.wall, 2)


def _timed(call: Callable[[], object]) -> _Time:
    wall, cpu = time.perf_counter(), time.process_time()
    kept = call()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    del kept
    return _Time(wall, cpu)


def _middle(times: Sequence[_Time]) -> _Time:
    return _Time(statistics.median(t.wall for t in times), statistics.median(t.cpu for t in times))


def _in_turn(calls: Sequence[tuple[Callable[[], object], Path | None]]) -> list[_Time]:
    """Medians of calls that take turns. The file that a call makes is removed before it, out of the time."""
    times: list[list[_Time]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for (call, target), found in zip(calls, times, strict=True):
            if target is not None:
                target.unlink(missing_ok=True)
            found.append(_timed(call))
    return [_middle(found) for found in times]


def _median(call: Callable[[], object]) -> _Time:
    return _middle([_timed(call) for _ in range(ROUNDS)])


def _free(path: Path) -> int:
    stat = os.statvfs(path)
    return stat.f_bavail * stat.f_frsize
