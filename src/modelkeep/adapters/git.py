"""A git working tree, read without trusting it: nothing that its configuration, attributes or hooks name is ever run.

A repository's own configuration can name programs (core.fsmonitor, filters, diff drivers, hooks, gpg.program, remote helpers).
So git is asked only where its HEAD and its objects are. Objects are read through a bare repository of our own, which borrows
them and has no configuration but ours; every commit and tree is hashed again here; files are compared with their blobs in this
process, so that no filter runs; and git's list of untracked files is made with that repository's empty configuration.
"""

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from modelkeep.core.ports import ChangedFile, CodeState
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable

PATIENCE = 120.0
"""Seconds for one git command."""

MAX_OBJECT = 64 << 20
MAX_DEPTH = 64
GONE = ChangedFile("000000", "0" * 64, tracked=True)
_DEAF = ("-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", "-c", "safe.directory=*", "-c", "protocol.allow=never")
_LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/v1\n(?:.*\n)*?oid sha256:([0-9a-f]{64})\n")
_CHUNK = 1 << 20
_POINTER = 1024
"""A git-lfs pointer is smaller than this (git-lfs, docs/spec.md)."""


def clean_environment(**more: str) -> dict[str, str]:
    """What git gets of the environment: where programs are, and that no configuration of user or machine is read."""
    return {
        "PATH": os.pathsep.join(os.get_exec_path()),
        "HOME": os.devnull,
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": os.devnull,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "none",
        **more,
    }


def git(arguments: Sequence[str], environment: Mapping[str, str], *, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one git command. Raises Unavailable (git is not there, or does not come to an end)."""
    try:
        return subprocess.run(  # noqa: S603 — the arguments are ours
            [_program(), *_DEAF, *arguments], env=environment, input=given, capture_output=True, timeout=PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        raise Unavailable(f"git does not answer: {cause}") from cause


def _program() -> str:
    found = shutil.which("git")
    if found is None:
        raise Unavailable("git is not installed: install it, or say --no-code to record none")
    return found


class Entry(NamedTuple):
    """One file of a commit: its mode (six octal digits) and the hex name of its blob, or of a submodule's commit."""

    mode: str
    name: str


class GitCheckout:
    """``Checkout`` of the git working tree that ``folder`` lies in. Raises Missing when it lies in none."""

    def __init__(self, folder: Path) -> None:
        start = folder.resolve()
        found = next((place for place in (start, *start.parents) if os.path.lexists(place / ".git")), None)
        if found is None:
            raise Missing(f"{folder} is in no git working tree: commit the training code, or say --no-code to record none")
        self.top = found

    def state(self, apart: Sequence[str] = ()) -> CodeState:
        """As ``Checkout.state``."""
        return _Repository(self.top).state([Path(path).resolve() for path in apart], depth=0)

    def committed(self) -> list[str]:
        """Paths from the top of every file that HEAD has, those of submodules included. Raises as ``state`` does."""
        return list(_Repository(self.top).committed(0))


class _Repository:
    """One working tree with its repository. ``top``: the folder that holds ``.git``."""

    def __init__(self, top: Path) -> None:
        self.top = top
        asked = git(
            [f"--git-dir={top / '.git'}", "rev-parse", "--path-format=absolute", "--git-common-dir", "--show-object-format"],
            clean_environment(),
        )
        lines = os.fsdecode(asked.stdout).splitlines()
        if asked.returncode or len(lines) != 2 or lines[1] not in ("sha1", "sha256"):
            raise Invalid(f"{top} is a broken git working tree: {_last(asked.stderr)}")
        self.common, self.hash = Path(lines[0]), lines[1]

    def head(self) -> str:
        """The commit that is checked out, hex. Raises Invalid (there is none yet)."""
        asked = git([f"--git-dir={self.top / '.git'}", "rev-parse", "--verify", "--quiet", "HEAD"], clean_environment())
        name = asked.stdout.decode("ascii", "replace").strip()
        if asked.returncode or not re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", name):
            raise Invalid(f"{self.top} has no commit yet: commit the training code first")
        return name

    def remote(self) -> str:
        """The URL of ``origin`` as the repository has it; "" when there is none."""
        asked = git(
            ["config", "--no-includes", f"--file={self.common / 'config'}", "--get", "remote.origin.url"], clean_environment()
        )
        return asked.stdout.decode("utf-8", "replace").strip() if asked.returncode == 0 else ""

    def state(self, apart: Sequence[Path], *, depth: int) -> CodeState:
        """HEAD, and every file that is not as HEAD has it. Raises Invalid, NotTrusted (a forged object), Unavailable."""
        commit = self.head()
        with tempfile.TemporaryDirectory(prefix="modelkeep-git-") as folder:
            shadow = self._shadow(folder)
            changes: dict[str, ChangedFile] = {}
            with _Objects(shadow, self.hash) as objects:
                raw = objects.read("commit", commit)
                files = dict(objects.files(_tree_of(raw, commit)))
                for name, entry in files.items():
                    changes |= self._compare(name, entry, objects, depth)
            for name in self._untracked(shadow, files):
                if not any(one in (self.top / name, *(self.top / name).parents) for one in apart):
                    changes |= self._new(name, depth)
        return CodeState(self.remote(), commit, raw, changes)

    def committed(self, depth: int) -> Iterator[str]:
        """The paths of HEAD's files; of a submodule that is checked out, of its own HEAD's."""
        if depth >= MAX_DEPTH:
            raise Invalid(f"{self.top} is the {MAX_DEPTH}th repository inside another: that is too deep")
        commit = self.head()
        with (
            tempfile.TemporaryDirectory(prefix="modelkeep-git-") as folder,
            _Objects(self._shadow(folder), self.hash) as objects,
        ):
            files = list(objects.files(_tree_of(objects.read("commit", commit), commit)))
        for name, entry in files:
            if entry.mode != "160000":
                yield name
            elif os.path.lexists(self.top / name / ".git"):
                yield from (f"{name}/{inner}" for inner in _Repository(self.top / name).committed(depth + 1))

    def _shadow(self, folder: str) -> dict[str, str]:
        """The environment of a bare repository of ours that borrows this one's objects."""
        plain = clean_environment()
        made = git(["init", "--quiet", "--bare", "--template=", f"--object-format={self.hash}", folder], plain)
        if made.returncode:
            raise Unavailable(f"git cannot make a repository in {folder}: {_last(made.stderr)}")
        return clean_environment(GIT_DIR=folder, GIT_OBJECT_DIRECTORY=str(self.common / "objects"))

    def _untracked(self, shadow: Mapping[str, str], files: Mapping[str, Entry]) -> list[str]:
        """Files that HEAD does not have and no .gitignore names; a folder that is a repository itself ends in a slash."""
        lines = b"".join(b"%b %b\t%b\0" % (e.mode.encode(), e.name.encode(), os.fsencode(name)) for name, e in files.items())
        here = {**shadow, "GIT_WORK_TREE": str(self.top)}
        filled = git(["update-index", "-z", "--index-info"], here, given=lines)
        exclude = self.common / "info" / "exclude"
        also = [f"--exclude-from={exclude}"] if exclude.is_file() else []
        asked = git(["-C", str(self.top), "ls-files", "-z", "--others", "--exclude-standard", *also], here)
        if filled.returncode or asked.returncode:
            raise Unavailable(f"git cannot list the files of {self.top}: {_last(filled.stderr or asked.stderr)}")
        return [os.fsdecode(name) for name in asked.stdout.split(b"\0") if name]

    def _compare(self, name: str, entry: Entry, objects: "_Objects", depth: int) -> dict[str, ChangedFile]:
        """What a file of HEAD is now, when it is not as HEAD has it; of a submodule, all of its files that are not."""
        if entry.mode == "160000":
            return self._submodule(name, entry.name, depth)
        path = self.top / name
        try:
            mode = _mode(path)
            if mode == entry.mode and _blob_name(path, mode, self.hash) == entry.name:
                return {}
            digest = _digest(path, mode)
        except (FileNotFoundError, NotADirectoryError):
            return {name: GONE}
        except OSError as cause:
            raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
        pointer = _LFS.match(objects.small_blob(entry.name)) if mode == entry.mode else None
        same = pointer is not None and pointer[1].decode() == digest
        return {} if same else {name: ChangedFile(mode, digest, tracked=True)}

    def _submodule(self, name: str, commit: str, depth: int) -> dict[str, ChangedFile]:
        if not os.path.lexists(self.top / name / ".git"):  # it is not checked out: nothing of it can be run
            return {}
        found = _inner(self.top / name, depth)
        moved = {name: ChangedFile("160000", found.commit, tracked=True)} if found.commit != commit else {}
        return moved | {f"{name}/{path}": one for path, one in found.changes.items()}

    def _new(self, name: str, depth: int) -> dict[str, ChangedFile]:
        if name.endswith("/"):
            found = _inner(self.top / name, depth)
            inner = {f"{name}{path}": one._replace(tracked=False) for path, one in found.changes.items()}
            return {name: ChangedFile("160000", found.commit, tracked=False), **inner}
        try:
            mode = _mode(self.top / name)
            return {name: ChangedFile(mode, _digest(self.top / name, mode), tracked=False)}
        except FileNotFoundError:  # it went while we looked
            return {}
        except OSError as cause:
            raise Unavailable(f"cannot read {self.top / name}: {cause.strerror}") from cause


def _inner(top: Path, depth: int) -> CodeState:
    if depth >= MAX_DEPTH:
        raise Invalid(f"{top} is the {MAX_DEPTH}th repository inside another: that is too deep")
    return _Repository(top).state([], depth=depth + 1)


class _Objects:
    """Objects of a repository, each hashed again: a pack may be forged. Use it as a context."""

    def __init__(self, environment: Mapping[str, str], algorithm: str) -> None:
        self._hash = algorithm
        self._process = subprocess.Popen(  # noqa: S603 — the arguments are ours
            [_program(), *_DEAF, "cat-file", "--batch"],
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin, self._stdout = self._process.stdin, self._process.stdout

    def __enter__(self) -> "_Objects":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def read(self, kind: str, name: str) -> bytes:
        """One object. Raises NotTrusted (another kind or other bytes than its name says), Unavailable (it is not here)."""
        found, size = self._ask(name)
        if found != kind or size > MAX_OBJECT:
            raise NotTrusted(f"the git object {name} is a {found} of {size} bytes, not a {kind}: the repository was altered")
        data = self._take(size)
        if object_name(kind, data, self._hash) != name:
            raise NotTrusted(f"the git object {name} is not what its name says: the repository was altered")
        return data

    def small_blob(self, name: str) -> bytes:
        """A blob that may be a pointer to a large file (git-lfs); nothing of a larger one, or of one that is not here."""
        try:
            _, size = self._ask(name)
        except Unavailable:
            return b""
        data = self._take(size)
        return data if size < _POINTER and object_name("blob", data, self._hash) == name else b""

    def _ask(self, name: str) -> tuple[str, int]:
        try:
            self._stdin.write(name.encode() + b"\n")
            self._stdin.flush()
        except OSError as cause:
            raise Unavailable("git ended before it gave all objects: the repository is damaged") from cause
        head = self._stdout.readline().split()
        if len(head) != 3:
            raise Unavailable(f"the git object {name} is not here: fetch it (a partial clone lacks some)")
        return head[1].decode("ascii", "replace"), int(head[2])

    def _take(self, size: int) -> bytes:
        """The ``size`` bytes of the object asked for, as far as they are few; they are read in any case."""
        taken = self._stdout.read(min(size, MAX_OBJECT))
        left = size - len(taken) + 1  # git ends each object with a newline
        while left > 0 and (more := self._stdout.read(min(left, _CHUNK))):
            left -= len(more)
        return taken

    def files(self, tree: str, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Entry]]:
        """Every file below a tree, by its path."""
        if depth > 4 * MAX_DEPTH:
            raise Invalid(f"the git tree {tree} is too deep")
        data, at, width = self.read("tree", tree), 0, 20 if self._hash == "sha1" else 32
        while at < len(data):
            head = data.index(b"\0", at)
            mode, _, name = data[at:head].partition(b" ")
            at = head + 1 + width
            path, named = prefix + os.fsdecode(name), data[head + 1 : at].hex()
            if name in (b"", b".", b"..", b".git") or b"/" in name:
                raise NotTrusted(f"the git tree {tree} has an entry {name[:80]!r}, which no honest git writes")
            if mode == b"40000":
                yield from self.files(named, path + "/", depth + 1)
            else:
                yield path, Entry(mode.decode("ascii", "replace"), named)


def object_name(kind: str, data: bytes, algorithm: str) -> str:
    """The name of a git object. Source: git documentation, gitformat-pack and hash-function-transition."""
    made = hashlib.new(algorithm, b"%b %d\0" % (kind.encode(), len(data)), usedforsecurity=False)
    made.update(data)
    return made.hexdigest()


def _tree_of(commit: bytes, name: str) -> str:
    first = commit.partition(b"\n")[0]
    if not re.fullmatch(rb"tree [0-9a-f]{40}([0-9a-f]{24})?", first):
        raise NotTrusted(f"the git commit {name} names no tree")
    return first[5:].decode()


def _mode(path: Path) -> str:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "120000"
    if stat.S_ISREG(mode):
        return "100755" if mode & 0o100 else "100644"
    return "other"


def _blob_name(path: Path, mode: str, algorithm: str) -> str:
    size, chunks = _content(path, mode)
    found = hashlib.new(algorithm, b"blob %d\0" % size, usedforsecurity=False)
    for chunk in chunks:
        found.update(chunk)
    return found.hexdigest()


def _content(path: Path, mode: str) -> tuple[int, Iterator[bytes]]:
    """Length and bytes of a file, or of where a link leads; a folder, pipe or device has none."""
    if mode == "120000":
        target = os.fsencode(path.readlink())
        return len(target), iter([target])
    if mode == "other":
        return 0, iter(())
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    return os.fstat(descriptor).st_size, _chunks(descriptor)


def _chunks(descriptor: int) -> Iterator[bytes]:
    with os.fdopen(descriptor, "rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _digest(path: Path, mode: str) -> str:
    found = hashlib.sha256()
    for chunk in _content(path, mode)[1]:
        found.update(chunk)
    return found.hexdigest()


def _last(stderr: bytes) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][:200] if lines else "git says no more"


class NoCheckout:
    """``Checkout`` of code that is under no version control: it has no state."""

    def state(self, apart: Sequence[str] = ()) -> CodeState:
        """As ``Checkout.state``; nothing is looked at."""
        del apart
        return CodeState("", "", b"", {})
