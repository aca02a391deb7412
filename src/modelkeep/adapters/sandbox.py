"""What an isolated command can reach: mounts that make up its root, variables, and what it may ask the kernel for.

Nothing of this machine is in that root unless a ``Mount`` puts it there. What every command has is at the end of this file:
/usr, the part of /etc without which programs do not start, a /proc that neither steers the machine nor speaks of it, and
folders in memory.
"""

import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters import seccomp
from modelkeep.adapters.limits import UNLIMITED, Limits
from modelkeep.core.values import Digest, digest_of

USER = 1000
"""Who the command is, inside."""
HOME, SCRATCH, SHARED = "/home", "/tmp", "/dev/shm"  # noqa: S108  # of the command's own root
READ, WRITE, MEMORY, LINK, BYTES, HIDE, DEVICE = "read", "write", "memory", "link", "bytes", "hide", "device"
MAX_STREAMS = 256
_SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")
_ETC = (
    "alternatives", "fonts", "ld.so.cache", "ld.so.conf", "ld.so.conf.d", "localtime", "mime.types", "OpenCL", "os-release",
    "timezone",
)  # fmt: skip
_ETC_NETWORK = (
    "ca-certificates",
    "gai.conf",
    "hosts",
    "nsswitch.conf",
    "pki",
    "protocols",
    "resolv.conf",
    "services",
    "ssl/certs",
)
_PROC_FIXED = ("bus", "fs", "irq", "mtrr", "sys", "sysrq-trigger")
_PROC_HIDDEN = (
    "acpi", "asound", "config.gz", "driver", "interrupts", "iomem", "ioports", "kallsyms", "kcore", "key-users", "keys", "kmsg",
    "latency_stats", "modules", "sched_debug", "scsi", "timer_list", "tty", "vmallocinfo",
)  # fmt: skip
"""What in /proc speaks of the machine or steers it. Root's own process, another user inside, still *is* root to these files."""
_PROC_GPU = "/proc/driver"
_SYS = ("devices/system/cpu", "devices/system/node")
_SYS_GPU = ("bus/pci", "devices/pci*", "module/nvidia*")
_ALLOWED = re.compile(
    r"COLUMNS|CUBLAS_WORKSPACE_CONFIG|CUDA_VISIBLE_DEVICES|LANG|LC_[A-Z]+|LINES|(MKL|NUMEXPR|OMP|OPENBLAS)_NUM_THREADS|NO_COLOR"
    r"|PYTHON(HASHSEED|OPTIMIZE|UNBUFFERED|UTF8|WARNINGS)|SOURCE_DATE_EPOCH|TERM|TZ|VIRTUAL_ENV|CONDA_PREFIX"
)
"""Variables that every command is given, where they are set."""


class Mount(NamedTuple):
    """One thing in the command's root. ``kind``: ``READ`` and ``WRITE`` put ``source`` of this machine at ``target``,
    ``DEVICE`` a device; ``MEMORY`` is a new folder in memory, ``HIDE`` one that stays empty, or over a file one that cannot be
    opened; ``LINK`` is a symbolic link to ``source``; ``BYTES`` is a file in memory that a ``Stream`` fills.
    """

    kind: str
    source: str
    target: str


class Stream(NamedTuple):
    """A file that the command reads at ``target``, and that is on no disk. ``chunks``: gives its bytes, once."""

    target: str
    chunks: Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Sandbox:
    """What a command can reach. ``folder``: where it begins; ``written``: the folder of this machine where all that it writes
    is, but for memory; ``environment``: all of it; ``hidden``: what of this machine no mount may bring along.
    """

    mounts: tuple[Mount, ...]
    folder: str
    written: Path
    environment: dict[str, str]
    limits: Limits = UNLIMITED
    network: bool = False
    gpu: bool = False
    streams: tuple[Stream, ...] = ()
    hidden: tuple[Path, ...] = ()

    def all_streams(self) -> dict[str, Stream]:
        """Those of the system and ``streams``, by their target."""
        return {one.target: one for one in (*_accounts(network=self.network), *self.streams)}

    def all_mounts(self) -> tuple[Mount, ...]:
        """Those of the system and ``mounts``, outer ones first."""
        streams = [Mount(BYTES, "", target) for target in self.all_streams()]
        every = [*_system(network=self.network, gpu=self.gpu), *self.mounts, *streams]
        every += _over(every, self.hidden)
        return tuple(sorted(every, key=lambda one: (len(Path(one.target).parts), one.kind == HIDE)))

    def digest(self) -> Digest:
        """Of what is where in the command's root: SHA-256 of the lines ``kind target``, sorted."""
        return digest_of("".join(sorted(f"{one.kind} {one.target}\n" for one in self.all_mounts())).encode("utf-8", "replace"))

    def filter(self) -> bytes:
        """Its seccomp filter. Raises Unavailable."""
        limits = self.limits
        return seccomp.program(platform.machine(), network=self.network, pinned=bool(limits.cpus), counted=bool(limits.memory))


def environment(given: Sequence[str] = (), more: Iterable[tuple[str, str]] = ()) -> dict[str, str]:
    """What a command is given of our environment: what every one is, the names ``given``, and ``more``."""
    kept = {name: value for name, value in os.environ.items() if _ALLOWED.fullmatch(name) or name in given}
    own = {"HOME": HOME, "TMPDIR": SCRATCH, "USER": "run", "LOGNAME": "run", "PYTHONDONTWRITEBYTECODE": "1"}
    path = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
    return {**kept, **path, **own, **dict(more)}


# -- what every command has --


def _system(*, network: bool, gpu: bool) -> Iterator[Mount]:
    yield _as_it_is(Path("/usr"))
    for name in _SYSTEM:
        place = Path("/", name)
        if place.is_symlink():
            yield Mount(LINK, str(place.readlink()), str(place))
        elif place.is_dir():
            yield _as_it_is(place)
    yield from _there("/etc", [*_ETC, *(_ETC_NETWORK if network else ())])
    yield Mount("proc", "", "/proc")
    yield from _there("/proc", _PROC_FIXED)
    for one in _there("/proc", _PROC_HIDDEN):
        if not (gpu and one.target == _PROC_GPU):
            yield one._replace(kind=HIDE)
    yield Mount("dev", "", "/dev")
    yield from _there("/sys", _SYS)
    for folder in (HOME, SCRATCH, SHARED):
        yield Mount(MEMORY, "", folder)
    if gpu:
        yield from (_as_it_is(path)._replace(kind=DEVICE) for path in sorted(Path("/dev").glob("nvidia*")))
        for pattern in _SYS_GPU:
            yield from map(_as_it_is, sorted(Path("/sys").glob(pattern)))


def _there(folder: str, names: Iterable[str]) -> Iterator[Mount]:
    yield from (_as_it_is(path) for path in (Path(folder, name) for name in names) if path.exists())


def _as_it_is(path: Path) -> Mount:
    return Mount(READ, str(path.resolve()), str(path))


def _over(mounts: Sequence[Mount], hidden: Sequence[Path]) -> list[Mount]:
    """What hides those of ``hidden`` that a mount brings along."""
    found = []
    for path in hidden:
        for one in mounts:
            source = Path(one.source) if one.kind in (READ, WRITE) else None
            if source is not None and source in (path, *path.parents) and path.exists():
                found.append(Mount(HIDE, str(path), str(Path(one.target) / path.relative_to(source))))
    return found


def _accounts(*, network: bool) -> list[Stream]:
    """The files of /etc that say who is who, of nobody but the command."""
    said = {
        "passwd": f"run:x:{USER}:{USER}::{HOME}:/bin/sh\n",
        "group": f"run:x:{USER}:\n",
        **({} if network else {"hosts": "127.0.0.1 localhost\n::1 localhost\n", "nsswitch.conf": "hosts: files\n"}),
    }
    return [Stream(f"/etc/{name}", lambda text=text: [text.encode()]) for name, text in said.items()]  # type: ignore[misc]
