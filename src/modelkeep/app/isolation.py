"""Where an isolated run takes place: its root made from what was declared, and what came out of it brought back.

The command sees a private copy of its code (what git knows of it, so neither what it ignores nor its history), the interpreter,
and the data that were named, each where it is on this machine. Whatever it writes vanishes, but for the declared outputs.
"""

import contextlib
import math
import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters import isolate, python_env, sandbox
from modelkeep.adapters.child import Ended, has_descriptor, program
from modelkeep.adapters.git import GitCheckout
from modelkeep.adapters.isolate import Engine
from modelkeep.adapters.limits import CGROUP, UNLIMITED, WATCHED, Limits
from modelkeep.adapters.sandbox import MAX_STREAMS, READ, Mount, Sandbox, Stream
from modelkeep.adapters.staging import Staging
from modelkeep.core.values import digest_of
from modelkeep.custody.provenance import DataReport
from modelkeep.errors import Invalid
from modelkeep.ledger.attestations import Isolation

SEALED = "/data"
"""Where sealed data sets are, inside: ``/data/NAME@VERSION/FILE``."""
_SYSTEM = ("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run", "/sbin", "/sys", "/usr")


@dataclass(frozen=True)
class Isolate:
    """How to isolate a run. ``environment``: names of variables that it gets besides; ``readable``: files and folders that it
    may read besides.
    """

    limits: Limits = UNLIMITED
    network: bool = False
    gpu: bool = False
    environment: tuple[str, ...] = ()
    readable: tuple[Path, ...] = ()


class SealedFile(NamedTuple):
    """A file of a sealed data set, for a command to read at ``/data/NAME@VERSION/FILE`` and on no disk. ``report``: its name
    (``NAME@VERSION/FILE``) and digest, for the statement; ``chunks``: gives its bytes, and raises when it cannot.
    """

    report: DataReport
    chunks: Callable[[], Iterable[bytes]]


@dataclass(frozen=True)
class Places:
    """What a run is about, as absolute paths of this machine. ``code``: paths below ``top``; ``python``: another
    interpreter that is asked what is installed; ``hidden``: never to be seen.
    """

    top: Path
    code: tuple[str, ...]
    read: tuple[Path, ...]
    files: tuple[Path, ...]
    folders: tuple[Path, ...]
    hidden: tuple[Path, ...]
    python: Path | None = None
    sealed: tuple[SealedFile, ...] = ()

    def check(self) -> None:
        """Raises Invalid for outputs that would be a way out, and for more sealed files than can be handed over."""
        if len(self.sealed) > MAX_STREAMS:
            raise Invalid(f"at most {MAX_STREAMS} files of sealed data sets go into a run: seal one archive of them")
        home = Path.home()
        for folder in (*self.folders, *(path.parent for path in self.files)):
            if _of_the_system(folder):
                raise Invalid(f"{folder} is the system's: let an isolated run write its outputs elsewhere")
        for folder in self.folders:
            if folder in (self.top, *self.top.parents, home, *home.parents, Path.cwd(), *Path.cwd().parents):
                raise Invalid(f"{folder} holds more than outputs: give an isolated run an output folder of its own")


class Room:
    """The sandbox of one run; use it as a context. Raises Unavailable when this machine does not let a command be isolated."""

    def __init__(self, how: Isolate, places: Places, command: Sequence[str]) -> None:
        places.check()
        self._how, self._places, self._limited_by = how, places, WATCHED
        self._engine = Engine.find()
        self._engine.probe()
        found = absolute(program(command))
        pythons = [one for one in (python_env.interpreter(command, found), places.python) if one is not None]
        self._command = (str(found), *command[1:])
        self._staging = Staging(how.limits.disk)
        try:
            self._sandbox = self._furnish(found, [absolute(one) for one in pythons])
        except BaseException:
            self._staging.__exit__()
            raise

    def __enter__(self) -> "Room":
        return self

    def __exit__(self, *_: object) -> None:
        self._staging.__exit__()

    def installed(self, python: Path) -> python_env.Installed:
        """What the interpreter says that is installed: asked in here, for what is installed may run when it starts."""
        return python_env.parse(isolate.ask(self._engine, python_env.question(str(absolute(python))), self._sandbox), python)

    def run(self, *, quiet: bool) -> Ended:
        """Run the command to its end. ``quiet``: what it prints goes to standard error. Raises Unavailable."""
        sys.stdout.flush()
        with contextlib.ExitStack() as opened:
            err = sys.stderr.fileno() if has_descriptor() else opened.enter_context(Path(os.devnull).open("wb")).fileno()
            finished = isolate.run(self._engine, self._command, self._sandbox, out=err if quiet else 1, err=err)
        self._limited_by = finished.limited_by
        return finished.ended

    def take_out(self) -> None:
        """Bring the outputs to where they belong. Raises Conflict (they are no plain files), Unavailable."""
        code = {self._places.top / name for name in self._places.code}
        self._staging.take_out(self._places.files, self._places.folders, code)

    def said(self) -> Isolation:
        """What was enforced, as a statement says it."""
        how, limits = self._how, self._how.limits
        return Isolation(
            engine=self._engine.name,
            network="host" if how.network else "none",
            gpu=how.gpu,
            seccomp=digest_of(self._sandbox.filter()),
            mounts=self._sandbox.digest(),
            environment=tuple(sorted(how.environment)),
            memory=limits.memory,
            disk=limits.disk,
            processes=limits.processes,
            cpus=limits.cpus if self._limited_by == CGROUP else float(math.ceil(limits.cpus)),  # whole ones, by affinity
            seconds=limits.seconds,
            limited_by=self._limited_by,
        )

    def _furnish(self, found: Path, pythons: Sequence[Path]) -> Sandbox:
        how, places, staging = self._how, self._places, self._staging
        staging.stand_for(places.top)
        for folder in sorted({*places.folders, *(path.parent for path in places.files)}, key=lambda path: len(path.parts)):
            staging.stand_for(folder)
        apart = {*places.read, *places.files, *places.folders, *places.hidden, *(absolute(path) for path in how.readable)}
        mounts = staging.copy_code(places.top, places.code, apart)
        for folder in (Path.cwd(), *places.folders, *(path.parent for path in places.files)):
            with contextlib.suppress(Invalid):
                staging.make_folder(folder)
        prefixes = {prefix for one in pythons for prefix in _prefixes(one)}
        if any(one.resolve() == places.top.resolve() for one in prefixes):
            raise Invalid(f"{places.top} is the working tree and a Python environment: give the latter a folder of its own")
        prefixes |= {path for one in prefixes for path in _linked(one) if not _within(path, places.top)}
        shown = {*places.read, *map(absolute, how.readable), *prefixes}
        code = {places.top / name for name in places.code}
        if not _of_the_system(found) and found not in code and prefixes.isdisjoint(found.parents):
            shown.add(found)
        mounts += [Mount(READ, str(path.resolve()), str(path)) for path in sorted(shown)]
        path = ":".join(dict.fromkeys([*(str(one.parent) for one in (found, *pythons)), "/usr/local/bin", "/usr/bin", "/bin"]))
        return Sandbox(
            mounts=(*staging.mounts(), *mounts),
            folder=str(Path.cwd()),
            written=staging.root,
            environment=sandbox.environment(how.environment, [("PATH", path), *_output_is_seen()]),
            limits=how.limits,
            network=how.network,
            gpu=how.gpu,
            streams=tuple(Stream(f"{SEALED}/{one.report.name}", one.chunks) for one in places.sealed),
            hidden=places.hidden,
        )


def code_of(checkout: GitCheckout | None, new: Iterable[str], outputs: Collection[Path]) -> tuple[Path, tuple[str, ...]]:
    """The folder that code is in, and its paths below it. ``checkout``: None = outside version control: then all that is in
    this folder and neither begins with a dot nor is one of ``outputs``. ``new``: files that no commit has and that are code.
    Raises Invalid, and as ``Checkout.state`` does.
    """
    if checkout is not None:
        return checkout.top, tuple(dict.fromkeys((*checkout.committed(), *new)))
    top = Path.cwd()
    if top in (Path("/"), Path.home(), *Path.home().parents):
        raise Invalid(f"{top} holds more than code: run it in a folder of its own")
    return top, tuple(_listed(top, top, set(map(absolute, outputs))))


def _listed(top: Path, folder: Path, apart: Collection[Path]) -> Iterable[str]:
    """What is in a folder and does not begin with a dot; a folder that holds something of ``apart`` by what is in it."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path in apart:
            continue
        if path.is_dir() and any(path in one.parents for one in apart):
            yield from _listed(top, path, apart)
        else:
            yield path.relative_to(top).as_posix()


def _prefixes(python: Path) -> Iterable[Path]:
    """The folders that an interpreter needs, by what its links lead through; it is not run for that.

    Source: PEP 405 (pyvenv.cfg); Modules/getpath.py of CPython.
    """
    at, seen = python, list[Path]()
    while at not in seen:
        seen.append(at)
        at = absolute(at.parent / at.readlink()) if at.is_symlink() else at
    home = Path.home()
    for one in (*seen, python.resolve()):
        prefix = one.parent.parent if one.parent.name == "bin" else one
        prefix = one if prefix in (home, *home.parents, home / ".local") else prefix
        if not _of_the_system(prefix):
            yield prefix


def _linked(prefix: Path) -> Iterable[Path]:
    """Folders that an installation names in its .pth files, as one does that is installed with ``pip install -e``.

    A line that is code is left to the interpreter, in isolation; one that names a home or more is not followed. Source: the
    documentation of Python's module ``site``.
    """
    home = Path.home()
    for file in sorted(prefix.glob("lib*/python*/site-packages/*.pth")):
        for line in file.read_text("utf-8", "replace").splitlines():
            path = Path(line.strip())
            if path.is_absolute() and path.is_dir() and path not in (home, *home.parents) and not _of_the_system(path):
                yield absolute(path)


def _within(path: Path, top: Path) -> bool:
    """Whether it is in the working tree: of that the command has a private copy, without what git ignores."""
    real, whole = path.resolve(), top.resolve()
    return real == whole or whole in real.parents


def _of_the_system(path: Path) -> bool:
    return path == Path("/") or f"/{path.parts[1]}" in _SYSTEM


def _output_is_seen() -> list[tuple[str, str]]:
    """Through a pipe, Python would hold back what it prints."""
    return [("PYTHONUNBUFFERED", "1")]


def absolute(path: Path) -> Path:
    """Without ``.`` and ``..``, and with its links as they are."""
    return Path(os.path.abspath(path))  # noqa: PTH100  # resolve() would follow links
