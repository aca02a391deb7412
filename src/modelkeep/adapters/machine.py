"""This machine: operating system, processor, memory, accelerators. No name of it, no address, no user."""

import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

PATIENCE = 20.0
_CPUINFO = Path("/proc/cpuinfo")


def system() -> str:
    """Operating system and release, such as ``Linux 6.1.0``."""
    return f"{platform.system()} {platform.release()}"


def processor() -> str:
    """What the processor calls itself, or its architecture."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", _CPUINFO.read_text("utf-8", "replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine()


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 0


def memory() -> int:
    """Bytes of memory; 0 when the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return 0


def accelerators() -> tuple[str, ...]:
    """Names of the GPUs that ``nvidia-smi`` lists; none where it is not installed or does not answer."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    try:
        asked = subprocess.run(  # noqa: S603  # a fixed question
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
        return ()
    return tuple(line.strip() for line in asked.stdout.splitlines() if line.strip()) if asked.returncode == 0 else ()
