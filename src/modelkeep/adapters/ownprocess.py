"""This process in numbers, for metrics. What the system does not say is None: a hardened process may not list its own files."""

import os
import resource
import time
from pathlib import Path

_STATM, _FDS = Path("/proc/self/statm"), Path("/proc/self/fd")
_BEGAN = time.time()


def resident_bytes() -> float | None:
    """Memory that is in RAM, bytes."""
    try:
        return int(_STATM.read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def open_files() -> float | None:
    """Open file descriptors."""
    try:
        return len(list(_FDS.iterdir())) - 1  # one is open to look
    except OSError:
        return None


def most_files() -> float | None:
    """Open file descriptors that it may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def started() -> float | None:
    """When it began, Unix seconds, as near as the import of this file."""
    return _BEGAN


def cpu_seconds() -> float | None:
    """Processor time that it has used, seconds."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
