"""SoftHSM2 for tests: one configuration and token folder a test process, and as many tokens as tests ask for.

The module reads its configuration once, so every test of a process must use the same; a token is what a test has for itself.
"""

import atexit
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = "/usr/lib/softhsm/libsofthsm2.so"

_numbers = itertools.count(1)
_folder: list[Path] = []

_LOCK = """
import fcntl, sys
held = [open(path, "r+") for path in sys.argv[1:]]
for file in held:
    fcntl.lockf(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def folder() -> Path:
    """The folder of all tokens; the first call makes it and points SOFTHSM2_CONF to its configuration."""
    if not _folder:
        assert Path(MODULE).exists() and shutil.which("softhsm2-util"), "SoftHSM2 is not installed: run tools/packages.sh"
        root = Path(tempfile.mkdtemp(prefix="mkhsm-"))
        atexit.register(shutil.rmtree, root, ignore_errors=True)
        (root / "tokens").mkdir()
        (root / "softhsm2.conf").write_text(
            f"directories.tokendir = {root}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        os.environ["SOFTHSM2_CONF"] = str(root / "softhsm2.conf")
        _folder.append(root)
    return _folder[0]


class Token:
    """A fresh token with a PIN of its own. ``uri(name)`` is the URI of an object of it."""

    pin = "7391-secret-pin"

    def __init__(self) -> None:
        root = folder()
        self.label = f"mk-{os.getpid()}-{next(_numbers)}"
        self.pin_file = root / f"{self.label}.pin"
        self.pin_file.write_text(self.pin + "\n")
        self.pin_file.chmod(0o600)
        before = set((root / "tokens").iterdir())
        subprocess.run(
            ["softhsm2-util", "--init-token", "--free", "--label", self.label, "--pin", self.pin, "--so-pin", "so-pin-1"],
            check=True,
            capture_output=True,
        )
        (self.folder,) = set((root / "tokens").iterdir()) - before

    def uri(self, name: str) -> str:
        return f"pkcs11:token={self.label};object={name}?module-path={MODULE}&pin-source=file:{self.pin_file}"

    @contextmanager
    def pulled(self) -> Iterator[None]:
        """The token is not there meanwhile."""
        away = folder() / f"{self.folder.name}-away"
        self.folder.rename(away)
        try:
            yield
        finally:
            away.rename(self.folder)

    @contextmanager
    def stuck(self) -> Iterator[None]:
        """Another process holds the token's files meanwhile, and the module waits for them without end."""
        files = [str(path) for path in self.folder.iterdir()]
        holder = subprocess.Popen([sys.executable, "-c", _LOCK, *files], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
            yield
        finally:
            holder.communicate()
