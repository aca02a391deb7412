"""Handing keys to a child, and what a server does to itself before it serves."""

import os
import subprocess
import sys

from modelkeep.adapters.process import pipe_with, read_pipe

HARDENED = """
import resource
from modelkeep.adapters.process import harden
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 512))
harden()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), *resource.getrlimit(resource.RLIMIT_CORE))
"""
READS = "import sys; from modelkeep.adapters.process import read_pipe; print(len(read_pipe(int(sys.argv[1]))))"


def test_a_secret_of_any_size_reaches_a_child():
    """A pipe holds 64 KiB: with a few rotated keys the opened compartments are larger, and nobody reads yet."""
    descriptor = pipe_with(b"k" * 300_000)
    try:
        ran = subprocess.run(
            [sys.executable, "-c", READS, str(descriptor)], pass_fds=[descriptor], check=True, capture_output=True, timeout=60
        )
    finally:
        os.close(descriptor)
    assert ran.stdout == b"300000\n"


def test_a_secret_is_read_once_and_closed():
    descriptor = pipe_with(b"secret")
    assert read_pipe(descriptor) == b"secret"
    assert not os.path.exists(f"/proc/self/fd/{descriptor}")  # noqa: PTH110


def test_a_server_takes_all_the_files_it_may_have_and_dumps_no_core():
    ran = subprocess.run([sys.executable, "-c", HARDENED], check=True, capture_output=True, timeout=60)
    assert ran.stdout.split() == [b"512", b"512", b"0", b"0"]
