"""What a run may use, and who sees to it: a control group where one may be made, and resource limits and a watch in any case.

Sources: cgroups(7), Documentation/admin-guide/cgroup-v2.rst, getrlimit(2), proc_pid_stat(5).
"""

import contextlib
import os
import resource
import secrets
import stat
import time
from pathlib import Path
from typing import NamedTuple

from modelkeep.errors import Unavailable

CGROUP = "cgroup"
WATCHED = "watched"
_FILESYSTEM = Path("/sys/fs/cgroup")
_PERIOD = 100_000  # microseconds, of cpu.max
_LAST_RESORT = 500  # oom_score_adj: where the machine's own memory ends, a run ends before what else is on it
_DISK_EVERY = 1.0
UNKNOWN = 1 << 62
_MOST_FILES = 1_000_000  # that are counted: a look must not take long
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Limits(NamedTuple):
    """What all processes of a run may use together; 0: without limit. ``memory``, ``disk``: bytes, ``disk`` of what they
    write to files that are kept; ``processes``: with their threads; ``cpus``: processors; ``seconds``: of time on the wall.
    """

    memory: int = 0
    disk: int = 0
    processes: int = 4096
    cpus: float = 0.0
    seconds: float = 0.0


UNLIMITED = Limits(processes=0)


class Group:
    """A control group (version 2) of its own for one run, as far as this process may make one. Close it afterwards."""

    def __init__(self, limits: Limits) -> None:
        self._folder: Path | None = None
        wanted = {
            "memory.max": str(limits.memory) if limits.memory else "",
            "memory.swap.max": "0" if limits.memory else "",
            "memory.oom.group": "1" if limits.memory else "",
            "pids.max": str(limits.processes) if limits.processes else "",
            "cpu.max": f"{int(limits.cpus * _PERIOD)} {_PERIOD}" if limits.cpus else "",
        }
        self._wanted = {name: value for name, value in wanted.items() if value}
        for above in _own_groups() if self._wanted else ():
            if self._make(above / f"modelkeep-{secrets.token_hex(8)}"):
                break

    def _make(self, folder: Path) -> bool:
        """Whether the group could be made with all of its limits; else nothing is left of it."""
        try:
            folder.mkdir()
        except OSError:  # not ours to make
            return False
        try:
            for name, value in self._wanted.items():
                (folder / name).write_text(value, "ascii")
            if any((folder / name).read_text("ascii").split() != value.split() for name, value in self._said_exactly()):
                raise OSError
        except OSError:  # the group above does not pass these controllers on
            with contextlib.suppress(OSError):
                folder.rmdir()
            return False
        self._folder = folder
        return True

    def _said_exactly(self) -> list[tuple[str, str]]:
        """Limits that the kernel gives back as they were written: it rounds bytes of memory to pages."""
        return [(name, value) for name, value in self._wanted.items() if name != "memory.max"]

    def take(self, pid: int) -> bool:
        """Put a process into the group; whether there is one that holds it, and what it starts."""
        if self._folder is None:
            return False
        try:
            (self._folder / "cgroup.procs").write_text(str(pid), "ascii")
        except OSError:
            return False
        return True

    def ran_out(self) -> bool:
        """Whether the kernel ended something in the group for want of memory."""
        if self._folder is None:
            return False
        try:
            lines = (self._folder / "memory.events").read_text("ascii").splitlines()
        except OSError:
            return False
        return any(line.startswith("oom_kill ") and line != "oom_kill 0" for line in lines)

    def close(self) -> None:
        """Remove the group, once nothing runs in it."""
        if self._folder is not None:
            with contextlib.suppress(OSError):
                self._folder.rmdir()
            self._folder = None


def _own_groups() -> list[Path]:
    """The control group of this process and those above it, nearest first; none without cgroup v2.

    Not past one that limits something: a run is not to have more than whoever started this process gave it.
    """
    try:
        lines = Path("/proc/self/cgroup").read_text("utf-8").splitlines()
    except OSError:
        return []
    named = [line[3:].strip("/") for line in lines if line.startswith("0::")]
    if not named or not (_FILESYSTEM / "cgroup.controllers").is_file():
        return []
    here, found = _FILESYSTEM / named[0], list[Path]()
    for place in (here, *here.parents):
        if _FILESYSTEM not in (place, *place.parents):
            break
        found.append(place)
        if _limits_something(place):
            break
    return found


def _limits_something(group: Path) -> bool:
    for name in ("memory.max", "memory.high", "pids.max", "cpu.max", "cpuset.cpus"):
        try:
            said = (group / name).read_text("ascii").split()
        except OSError:  # this controller is not on here, so it does not limit
            continue
        if said and said[0] != "max":
            return True
    return False


def restrain(pid: int, limits: Limits) -> None:
    """Set the resource limits of a process, for it and whatever it starts. Raises Unavailable."""
    each = {resource.RLIMIT_CORE: 0}
    if limits.memory:
        each[resource.RLIMIT_DATA] = limits.memory
        each[resource.RLIMIT_MEMLOCK] = limits.memory
    if limits.disk:
        each[resource.RLIMIT_FSIZE] = limits.disk
    if limits.processes:
        each[resource.RLIMIT_NPROC] = limits.processes
    try:
        for which, most in each.items():
            hard = resource.prlimit(pid, which)[1]
            least = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.prlimit(pid, which, (least, least))
        if limits.cpus:
            usable = sorted(os.sched_getaffinity(0))
            os.sched_setaffinity(pid, usable[: max(1, -int(-limits.cpus // 1))])
    except OSError as cause:
        raise Unavailable(f"cannot limit what the command uses: {cause.strerror}") from cause
    with contextlib.suppress(OSError):  # a wish and no limit
        Path(f"/proc/{pid}/oom_score_adj").write_text(str(_LAST_RESORT), "ascii")


class Watch:
    """Looks at all processes of a run, and says when they use more than they may, together.

    ``inside``: the run's root as this process sees it (``/proc/PID/root``), whose own /proc lists exactly its processes;
    ``memory_files``: folders in it whose files are in memory; ``written``: folder of this machine that it writes to.
    """

    def __init__(self, limits: Limits, inside: Path, memory_files: tuple[str, ...], written: Path) -> None:
        self._limits, self._inside, self._memory_files, self._written = limits, inside, memory_files, written
        self._began = self._looked = time.monotonic()

    def exceeded(self) -> str:
        """What was exceeded, in words; "" = nothing."""
        limits, now = self._limits, time.monotonic()
        if limits.seconds and now - self._began > limits.seconds:
            return f"it ran longer than {limits.seconds:g} s"
        count, memory = self._usage()
        if limits.processes and count > limits.processes:
            return f"it had more than {limits.processes:,} processes"
        if limits.memory and memory + self._in_files() > limits.memory and self._exactly() + self._in_files() > limits.memory:
            return f"it used more than {limits.memory:,} bytes of memory"
        if limits.disk and now - self._looked > _DISK_EVERY:
            self._looked = now
            if space(self._written) + self._removed() > limits.disk:
                return f"it wrote more than {limits.disk:,} bytes"
        return ""

    def check(self) -> None:
        """Raises Unavailable when nothing can be seen: then no limit would hold."""
        try:
            next((self._inside / "proc" / "1").iterdir())
        except OSError as cause:
            raise Unavailable(f"cannot see what the command would use: {cause.strerror}") from cause

    def _processes(self) -> list[Path]:
        try:
            return [path for path in (self._inside / "proc").iterdir() if path.name.isdigit()]
        except OSError:  # it has ended
            return []

    def _usage(self) -> tuple[int, int]:
        """How many threads there are, and bytes of memory that they have, what they share counted for each."""
        count = pages = 0
        for process in self._processes():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = (process / "stat").read_bytes().rpartition(b")")[2].split()
                count, pages = count + int(fields[17]), pages + int(fields[21])
        return count, pages * _PAGE

    def _exactly(self) -> int:
        """Bytes of memory that they have, what they share counted once (PSS)."""
        total = 0
        for process in self._processes():
            with contextlib.suppress(OSError, ValueError, IndexError):
                for line in (process / "smaps_rollup").read_bytes().splitlines():
                    if line.startswith(b"Pss:"):
                        total += int(line.split()[1]) << 10
        return total

    def _removed(self) -> int:
        """Bytes of files that were removed while somebody has them open, where it writes to."""
        found = dict[int, int]()
        with contextlib.suppress(OSError):
            device = self._written.stat().st_dev
            for process in self._processes():
                for path in process.glob("task/*/fd/*"):
                    with contextlib.suppress(OSError):
                        one = path.stat()
                        if one.st_dev == device and not one.st_nlink and stat.S_ISREG(one.st_mode):
                            found[one.st_ino] = one.st_blocks * 512
        return sum(found.values())

    def _in_files(self) -> int:
        total = 0
        for folder in self._memory_files:
            with contextlib.suppress(OSError):
                found = os.statvfs(f"{self._inside}{folder}")
                total += (found.f_blocks - found.f_bfree) * found.f_frsize
        return total


def space(folder: Path) -> int:
    """Bytes that the files under ``folder`` take, links not followed; ``UNKNOWN`` when a folder cannot be looked into, or holds
    more than a million.

    A file that was removed while it is open is not seen.
    """
    total, count, left = 0, 0, [folder]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    count += 1
                    if count > _MOST_FILES:
                        return UNKNOWN
                    if entry.is_dir(follow_symlinks=False):
                        left.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except FileNotFoundError:  # it went meanwhile
            continue
        except OSError:  # made so in order not to be counted
            return UNKNOWN
    return total
