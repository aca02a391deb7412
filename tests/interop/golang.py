"""Go's ``golang.org/x/mod/sumdb/note`` and ``tlog`` as a process beside the tests: ``tlog.go``, compiled once a session."""

import base64
import os
import subprocess
from pathlib import Path
from typing import Any

import msgspec

SOURCE = Path(__file__).with_name("tlog.go")
LIBRARIES = "/usr/share/gocode"
"""Where Debian's golang-golang-x-mod-dev puts them (tools/packages.sh)."""


class Answer(msgspec.Struct):
    """What ``tlog.go`` says. ``error``: empty if it agrees."""

    error: str
    size: int = 0
    root: bytes = b""
    vkey: str = ""
    skey: str = ""
    note: bytes | None = None
    files: dict[str, bytes] | None = None
    record: list[bytes] | None = None
    tree: list[bytes] | None = None


def build(folder: Path, cache: Path) -> Path:
    """The program, compiled from the distribution's sources alone: no module is fetched."""
    made = folder / "tlog"
    go = {"GO111MODULE": "off", "GOPATH": LIBRARIES, "GOCACHE": str(cache), "GOFLAGS": "", "CGO_ENABLED": "0"}
    subprocess.run(["go", "build", "-o", made, SOURCE], env=os.environ | go, check=True)
    return made


class Go:
    """One process of it."""

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __call__(self, op: str, **arguments: Any) -> Answer:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(msgspec.json.encode({"Op": op, **arguments}) + b"\n")
        self._process.stdin.flush()
        return msgspec.json.decode(self._process.stdout.readline(), type=Answer)

    def close(self) -> None:
        """End the process, which must still be there."""
        self._process.communicate(timeout=60)
        assert self._process.returncode == 0


def signer_key(vkey: str, seed: bytes) -> str:
    """The private key text of ``note.NewSigner``: ``PRIVATE+KEY+<name>+<key id>+<base64 of 0x01 ‖ seed>``."""
    name, key_id, _ = vkey.split("+", 2)
    secret = base64.b64encode(b"\x01" + seed).decode()
    return f"PRIVATE+KEY+{name}+{key_id}+{secret}"


def seed_of(skey: str) -> bytes:
    """Undo ``signer_key``."""
    return base64.b64decode(skey.split("+", 4)[4])[1:]
