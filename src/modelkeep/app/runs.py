"""A training run, from the state of its code before to the digests of its outputs after: done where it runs, told to a keep.

What cannot be known for sure is refused, never guessed: an input that changed meanwhile, a file that came and went, an event
that was lost, an output that the command did not write.
"""

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters import child, datafiles, machine, python_env
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.datafiles import Stamp
from modelkeep.adapters.git import GitCheckout, NoCheckout
from modelkeep.adapters.watching import NOTHING_SEEN, Seen, Watch, walk
from modelkeep.app.isolation import Isolate, Places, Room, SealedFile, absolute, code_of
from modelkeep.core.ports import CodeState
from modelkeep.core.values import Digest
from modelkeep.custody.provenance import (
    CodeReport,
    DataReport,
    OutputReport,
    RunReport,
    changes_digest,
    check_words,
    parse_file_name,
)
from modelkeep.errors import Conflict, Invalid, Missing
from modelkeep.ledger.attestations import Environment, Machine

MODEL_ENDINGS = re.compile(r"\.(bin|ckpt|gguf|h5|joblib|keras|np[yz]|onnx|pickle|pkl|pt|pth|safetensors|tflite)", re.IGNORECASE)
"""A file in an output folder with one of these endings is a model; a file that was named is one in any case."""

_SHOWN = 5
_NOTHING = "nothing was recorded"


class Named(NamedTuple):
    """Data by what people call it, and where it is."""

    name: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> "Named":
        """``PATH``, which is called by its last part, or ``NAME=PATH``. Raises Missing, Invalid."""
        name, equals, place = text.partition("=")
        if os.path.lexists(text) or not equals:
            name, place = Path(text).resolve().name, text
        if not place or not os.path.lexists(place):  # of a name that is too long, pathlib raises
            raise Missing(f"there is no file or folder {(place or text)[:200]}")
        if "/" in name:
            raise Invalid(f"{name[:80]!r} is no name of data: it has no slash")
        return cls(parse_file_name(name), Path(place))


@dataclass(frozen=True)
class Plan:
    """What to run and what to look at. ``python``: the interpreter to ask, "" = the command's own; ``quiet``: see ``child``.

    ``apart``: files and folders in the working tree that are no code, besides data and outputs, and that an isolated run does
    not see; ``isolate``: None = with all that its user may reach; ``sealed``: data that only an isolated run may have.
    """

    command: tuple[str, ...]
    inputs: tuple[Named, ...] = ()
    data: tuple[Named, ...] = ()
    outputs: tuple[Path, ...] = ()
    output_folders: tuple[Path, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    allow_dirty: bool = False
    no_code: bool = False
    python: str = ""
    quiet: bool = False
    apart: tuple[Path, ...] = ()
    isolate: Isolate | None = None
    sealed: tuple[SealedFile, ...] = ()

    def check(self) -> None:
        """Raises Invalid, Missing, Unavailable: all that can be known before anything runs."""
        check_words(self.command, self.parameters)
        if not self.outputs and not self.output_folders:
            raise Invalid("a run is recorded for what comes out of it: name the model with --output")
        if self.sealed and self.isolate is None:
            raise Invalid("sealed data sets are opened for isolated runs alone: say --isolate")
        names = [one.name for one in (*self.inputs, *self.data)] + list({one.report.dataset for one in self.sealed})
        for name in names:
            if names.count(name) > 1:
                raise Invalid(f"two inputs are called {name}: call one of them otherwise, as in --input OTHER=PATH")
        for one in self.data:
            if not one.path.is_dir():
                raise Invalid(f"{one.path} is no folder: declare a file with --input")
        produced = [_output_name(path) for path in self.outputs]
        for name in produced:
            if produced.count(name) > 1:
                raise Invalid(f"two outputs are called {name}: write them below the folder that you run in")
        for place in (*self.outputs, *self.output_folders):
            datafiles.stamp(place)
            for one in (*self.inputs, *self.data):
                if _overlap(place, one.path):
                    raise Invalid(f"{place} is an output and {one.path} an input: keep them in folders of their own")


@dataclass(frozen=True)
class Before:
    """What was before the run."""

    code: CodeState
    environment: Environment
    machine: Machine
    declared: dict[str, tuple[Path, Digest, Stamp]]
    outputs: dict[Path, Stamp | None]
    produced: dict[Path, Stamp]


class During(NamedTuple):
    """The run itself, in Unix nanoseconds. ``data``: what was in the data folders before; ``seen``: what happened there."""

    ended: child.Ended
    started: int
    finished: int
    data: dict[Path, Stamp]
    seen: Seen


def record(
    plan: Plan, check: Callable[[CodeReport], object], ended_well: Callable[[], object] = lambda: None
) -> RunReport | child.Ended:
    """Run the command of ``plan`` and report on it; only how it ended when it failed: then there is nothing to report.

    ``check`` is told of the code before the run, and refuses it by raising; ``ended_well`` is told that the command has, for to
    read what went in may take a while. Raises Invalid, Missing, Conflict (something
    changed, or may have gone unseen), Unavailable.
    """
    plan.check()
    checkout = NoCheckout() if plan.no_code else GitCheckout(Path.cwd())
    state = checkout.state(_apart(plan))
    code = _code_report(plan, state)
    check(code)
    with _room(plan, checkout, state) as room:
        before = _look(plan, state, room)
        during = _run(plan, room)
        if during.ended.code:
            return during.ended
        ended_well()
        room.take_out()
        isolation = room.said()
    outputs = tuple(_outputs(plan, before))
    _check_code(checkout.state(_apart(plan)), before.code)
    return RunReport(
        command=plan.command,
        code=code,
        environment=before.environment,
        machine=before.machine,
        started=during.started,
        ended=during.finished,
        parameters=plan.parameters,
        inputs=(*_declared(plan, before), *_opened(plan, during), *(one.report for one in plan.sealed)),
        outputs=outputs,
        isolation=isolation,
    )


class _OpenAir:
    """Where a command runs with all that its user may reach. As ``Room``."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    def __enter__(self) -> "_OpenAir":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was made."""

    def installed(self, python: Path) -> python_env.Installed:
        """As ``Room.installed``."""
        return python_env.installed(python)

    def run(self, *, quiet: bool) -> child.Ended:
        """As ``Room.run``."""
        return child.run(self._command, quiet=quiet)

    def take_out(self) -> None:
        """The outputs are where they belong."""

    def said(self) -> None:
        """Nothing was enforced."""


def _room(plan: Plan, checkout: GitCheckout | NoCheckout, state: CodeState) -> Room | _OpenAir:
    if plan.isolate is None:
        return _OpenAir(plan.command)
    new = [path for path, one in state.changes.items() if not one.tracked]
    git = checkout if isinstance(checkout, GitCheckout) else None
    top, code = code_of(git, new, (*plan.outputs, *plan.output_folders))
    python = shutil.which(plan.python) if plan.python else None
    places = Places(
        top=top,
        code=code,
        read=tuple(absolute(one.path) for one in (*plan.inputs, *plan.data)),
        files=tuple(map(absolute, plan.outputs)),
        folders=tuple(map(absolute, plan.output_folders)),
        hidden=tuple(path.resolve() for path in plan.apart),
        python=Path(python) if python else None,
        sealed=plan.sealed,
    )
    return Room(plan.isolate, places, plan.command)


def _run(plan: Plan, room: Room | _OpenAir) -> "During":
    folders, clock = [one.path for one in plan.data], SystemClock()
    with Watch(folders) as watch:  # first, so that whatever happens after the survey is seen
        data = datafiles.survey(folders)
        for path in data:
            parse_file_name(_name(plan.data, path))
        watch.start()
        started = clock.now_ns()
        ended = room.run(quiet=plan.quiet)
        finished = max(started, clock.now_ns())
        return During(ended, started, finished, data, NOTHING_SEEN if ended.code else watch.finish())


# -- before --


def _look(plan: Plan, code: CodeState, room: Room | _OpenAir) -> Before:
    python = Path(plan.python) if plan.python else python_env.interpreter(plan.command, child.program(plan.command))
    environment = Environment.of("", platform.platform(), {})
    if python is not None:
        found = room.installed(python)
        environment = Environment.of(found.python, found.platform, found.packages)
    return Before(
        code=code,
        environment=environment,
        machine=Machine(machine.system(), machine.processor(), machine.cores(), machine.memory(), machine.accelerators()),
        declared={name: (path, *datafiles.digest_file(path)) for name, path in _files(plan.inputs)},
        outputs={path: datafiles.stamp(path) for path in plan.outputs},
        produced=datafiles.survey([path for path in plan.output_folders if path.is_dir()]),
    )


def _apart(plan: Plan) -> list[str]:
    """What lies in the working tree and is no code unless the commit has it."""
    data = [one.path for one in (*plan.inputs, *plan.data)]
    return [str(path) for path in (*plan.outputs, *plan.output_folders, *data, *plan.apart)]


def _code_report(plan: Plan, state: CodeState) -> CodeReport:
    if state.changes and not plan.allow_dirty:
        raise Conflict(
            f"the working tree has changes that no commit has: {_some(state.changes)}; commit them, "
            "let .gitignore name what is no code, or say --allow-dirty to record their digest"
        )
    return CodeReport(state.repository, state.commit, state.raw, changes_digest(state.changes))


def _files(named: Iterable[Named]) -> list[tuple[str, Path]]:
    """Every file of what was named, by the name that it is recorded under."""
    found = []
    for one in named:
        if one.path.is_dir():
            found += [(_name([one], path), path) for path, _, _ in walk([one.path])]
        else:
            found.append((one.name, one.path))
    return [(parse_file_name(name), path) for name, path in found]


def _name(folders: Sequence[Named], path: Path) -> str:
    """How a file in one of some folders is called: the folder's name, and its path in it."""
    inside = next(one for one in folders if one.path in path.parents)
    return f"{inside.name}/{path.relative_to(inside.path).as_posix()}"


# -- after --


def _declared(plan: Plan, before: Before) -> list[DataReport]:
    found = []
    now = dict(_files(plan.inputs))
    if now.keys() != before.declared.keys():
        raise Conflict(f"{_some(now.keys() ^ before.declared.keys())} came or went while the command ran: {_NOTHING}")
    for name, (path, digest, stamp) in before.declared.items():
        if datafiles.digest_file(path) != (digest, stamp):
            raise Conflict(f"the input {path} changed while the command ran: {_NOTHING}")
        found.append(DataReport(name, digest))
    return found


def _opened(plan: Plan, during: During) -> list[DataReport]:
    """What was opened of the data folders, and all that is new there; every file that was there has to be as it was.

    Also one that nobody was seen to open: a second name that it got, or a place that it was moved to and back from, would let
    it be opened unseen, and either leaves its mark on the stamp.
    """
    now, seen = datafiles.survey([one.path for one in plan.data]), during.seen
    for path, stamp in during.data.items():
        if now.get(path) != stamp or path in seen.written:
            raise Conflict(f"{path} changed while the command ran: {_NOTHING}; let nobody write to data that is trained on")
    new = {path for path in now if not seen.new.isdisjoint((path, *path.parents))}
    found = []
    for path in sorted(seen.opened | {path for path in seen.new if not path.is_dir()} | new):
        if not os.path.lexists(path):
            raise Conflict(f"{path} came and went: what was in it cannot be known, so {_NOTHING}; keep scratch files elsewhere")
        if path in now:
            digest, stamp = datafiles.digest_file(path)
            if stamp != now[path]:
                raise Conflict(f"{path} still changes: {_NOTHING}; let nothing that the command started outlive it")
            found.append(DataReport(parse_file_name(_name(plan.data, path)), digest))
    return found


def _outputs(plan: Plan, before: Before) -> Iterator[OutputReport]:
    named, count = {path.resolve() for path in plan.outputs}, len(plan.outputs)
    for path in plan.outputs:
        now = datafiles.stamp(path)
        if now is None:
            raise Conflict(f"the command ended well and did not write {path}: {_NOTHING}")
        if now == before.outputs[path]:
            raise Conflict(f"{path} was there before and the command did not write it anew: {_NOTHING}")
        yield OutputReport(_output_name(path), datafiles.digest_file(path)[0])
    for folder in plan.output_folders:
        for path, now in datafiles.survey([folder] if folder.is_dir() else []).items():
            written = now != before.produced.get(path) and path.resolve() not in named
            if written and MODEL_ENDINGS.fullmatch(path.suffix):
                count += 1
                yield OutputReport(_output_name(path, folder), datafiles.digest_file(path)[0])
    if not count:
        raise Conflict(f"the command ended well and wrote no model into the output folders: {_NOTHING}")


def _output_name(path: Path, folder: Path | None = None) -> str:
    """The path from here when it is below; else the file's own name, with the output folder's before it."""
    whole, here = Path.cwd() / path, Path.cwd()
    if ".." not in whole.parts and here in whole.parents:
        return parse_file_name(whole.relative_to(here).as_posix())
    return parse_file_name(path.name if folder is None else f"{folder.resolve().name}/{path.relative_to(folder).as_posix()}")


def _check_code(now: CodeState, before: CodeState) -> None:
    """Raise Conflict when code changed meanwhile. Files that the command itself left behind are none."""
    changed = {
        path
        for path in {*now.changes, *before.changes}
        if now.changes.get(path) != before.changes.get(path) and (path in before.changes or now.changes[path].tracked)
    }
    if now.commit != before.commit or changed:
        what = _some(changed) if changed else f"HEAD is {now.commit[:12]} and was {before.commit[:12]}"
        raise Conflict(
            f"the code changed while the command ran ({what}): {_NOTHING}; run it in a working tree that nobody edits, "
            "such as one of 'git worktree add'"
        )


def _some(names: Iterable[str]) -> str:
    found = sorted(name.encode("utf-8", "backslashreplace").decode() for name in names)
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + more


def _overlap(one: Path, other: Path) -> bool:
    first, second = one.resolve(), other.resolve()
    return first == second or first in second.parents or second in first.parents
