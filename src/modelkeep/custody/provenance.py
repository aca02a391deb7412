"""Where a model came from: what a recorded run reports, what may be said of it in a log that others read, and the statements.

A report is what the machine that ran the training says. The keep checks its shape, verifies the commit's signature itself,
salts the digests of data, and signs. It was not there: a statement says what was reported to the keep, and by whom.
"""

import hashlib
import itertools
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

import msgspec
from msgspec import Meta

from modelkeep.core.ports import ChangedFile
from modelkeep.core.values import Digest, Resource, Statement, digest_hex, digest_of, parse_digest
from modelkeep.errors import Invalid, TooLarge
from modelkeep.ledger.attestations import Code, Environment, Isolation, Machine, Salted, TrainingRun
from modelkeep.ledger.statements import encode_statement, make_statement

MASK = "***"
MAX_COMMAND = 8 << 10
MAX_PARAMETERS = 200
MAX_OUTPUTS = 200
MAX_LINES = 1000
"""More inputs than this are never said one by one."""
MAX_PAYLOAD = 44_000
"""Bytes of a statement that, in base64 and with two signatures, still fit a log entry."""
MAX_NAME = 200

Words = Annotated[str, Meta(max_length=2000)]


class CodeReport(msgspec.Struct, frozen=True):
    """The code that ran. ``raw``: the commit object; ``changes``: hex SHA-256 of what is not committed, "" when nothing is."""

    repository: Words = ""
    commit: Annotated[str, Meta(pattern="^([0-9a-f]{40}|[0-9a-f]{64})?$")] = ""
    raw: bytes = b""
    changes: Annotated[str, Meta(pattern="^([0-9a-f]{64})?$")] = ""


class DataReport(msgspec.Struct, frozen=True):
    """Data that went in: ``name`` begins with the data set's name, then a slash and the path in it, if it is a folder.

    ``digest``: SHA-256 of the file, not salted; ``files`` as in ``Salted``.
    """

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    digest: Digest
    files: int = 0

    @property
    def dataset(self) -> str:
        """Whose salt hides the digest."""
        return self.name.partition("/")[0]


class OutputReport(msgspec.Struct, frozen=True):
    """A model file that came out; there is a statement about each."""

    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    digest: Digest


class RunReport(msgspec.Struct, frozen=True):
    """A run, as the machine that ran it reports it. ``started`` and ``ended``: Unix nanoseconds by that machine's clock."""

    command: tuple[str, ...]
    code: CodeReport
    environment: Environment
    machine: Machine
    started: int
    ended: int
    parameters: dict[str, str] = {}
    inputs: tuple[DataReport, ...] = ()
    outputs: tuple[OutputReport, ...] = ()
    isolation: Isolation | None = None

    def check(self) -> None:
        """Raises Invalid, saying what cannot be."""
        check_words(self.command, self.parameters)
        for name, digest in [(one.name, one.digest) for one in self.inputs] + [(one.name, one.digest) for one in self.outputs]:
            parse_digest(digest)
            parse_file_name(name)
        if not 0 < self.started <= self.ended:
            raise Invalid("a run ends after it started")
        if not self.outputs:
            raise Invalid("a run without outputs has nothing to be said about")
        if len(self.outputs) > MAX_OUTPUTS:
            raise Invalid(f"a run has at most {MAX_OUTPUTS} outputs: name the models with --output")
        if self.isolation is not None:
            self._check_isolation(self.isolation)
        if len({one.name for one in self.outputs}) < len(self.outputs):
            raise Invalid("two outputs of a run have one name")

    @staticmethod
    def _check_isolation(said: Isolation) -> None:
        for digest in (said.seccomp, said.mounts):
            parse_digest(digest)
        words = (said.engine, *said.environment)
        if len(words) > MAX_PARAMETERS or max(map(len, words)) > MAX_NAME:
            raise Invalid("what is said of the isolation of this run is longer than a log entry has room for")


# -- what may be said in the log --

_SECRET = {"token", "secret", "password", "passwd", "passphrase", "pwd", "credential", "credentials", "apikey", "bearer"}
_KEYS = {"api", "access", "private", "secret", "account", "auth", "encryption", "signing", "master"}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+")
_SHAPES = re.compile(
    r"\b(?:hf_|gh[pousr]_|github_pat_|glpat-|sk-|xox[abprs]-|AKIA|ASIA|ya29\.|eyJ)[A-Za-z0-9_\-.]{8,}"  # issuers' own prefixes
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----(?s:.*)"
)
_AUTHORIZATION = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9_\-.~+/=]{6,}", re.IGNORECASE)
_INSIDE = re.compile(r"""([A-Za-z_][\w.-]*)(["']?\s*[:=]\s*["']?)([^\s"',;&{}]+)""")
_INSIDE_OPTION = re.compile(r"(--?[A-Za-z][\w.-]*)(\s+)([^\s\-\"'][^\s\"']*)")
_USERINFO = re.compile(r"([a-z][a-z0-9+.-]*://)[^/\s@]+@", re.IGNORECASE)
_OPTION = re.compile(r"(?s)(-{0,2})([A-Za-z_][\w.-]*)(?:=(.*))?")


def names_secret(name: str) -> bool:
    """Whether an option or parameter of this name holds a secret: a word of it says so (``--hf-token``, ``apiKey``)."""
    words = [word.lower() for word in _WORD.findall(name)]
    pairs = itertools.pairwise(words)
    return not _SECRET.isdisjoint(words) or any(first in _KEYS and second in ("key", "keys") for first, second in pairs)


def masked(command: Sequence[str]) -> tuple[str, ...]:
    """``command`` with what looks like a secret as ``***``: values of options named so, known tokens, passwords in URLs."""
    shown: list[str] = []
    hide = False
    for word in command:
        option = _OPTION.fullmatch(word)
        if hide and not word.startswith("-"):
            shown.append(MASK)
            hide = False
            continue
        secret = option is not None and names_secret(option[2])
        hide = secret and option is not None and option[3] is None and option[1] != ""
        if secret and option is not None and option[3] is not None:
            shown.append(f"{option[1]}{option[2]}={MASK}")
        else:
            shown.append(_plain(word))
    return tuple(shown)


def masked_parameters(parameters: Mapping[str, str]) -> dict[str, str]:
    """The same for parameters."""
    return {name: MASK if names_secret(name) else _plain(value) for name, value in parameters.items()}


def _plain(text: str) -> str:
    """A word without the secrets that stand in it, as in a script given to ``sh -c``."""
    text = _AUTHORIZATION.sub(rf"\1 {MASK}", _SHAPES.sub(MASK, _USERINFO.sub(rf"\1{MASK}@", text)))
    return _INSIDE_OPTION.sub(_hidden, _INSIDE.sub(_hidden, text))


def _hidden(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2]}{MASK}" if names_secret(found[1]) else found[0]


def public_url(url: str) -> str:
    """A repository's URL without credentials, query and fragment; what is no URL, such as ``git@host:path``, stays as it is."""
    if "://" not in url:
        return url if re.fullmatch(r"[\w.-]+@[\w.-]+:[^\s@]+", url) else ""  # a path on somebody's machine says nothing
    try:
        parts = urlsplit(url)
    except ValueError:
        return ""
    if parts.scheme not in ("http", "https", "ssh", "git", "git+ssh"):
        return ""
    host = parts.netloc.rpartition("@")[2]
    user = "git@" if parts.scheme in ("ssh", "git+ssh") and parts.netloc.startswith("git@") else ""
    return urlunsplit((parts.scheme, user + host, parts.path, "", ""))


def check_words(command: Sequence[str], parameters: Mapping[str, str]) -> None:
    """Check that a command and its parameters can be said. Raises Invalid."""
    if not command or not command[0]:
        raise Invalid("there is no command to run: write it after --, as in 'modelkeep run -- python train.py'")
    words = [*command, *parameters, *parameters.values()]
    try:
        size = sum(len(word.encode()) for word in words)
    except UnicodeEncodeError as cause:
        raise Invalid("the command is not UTF-8 text and cannot be recorded") from cause
    if size > MAX_COMMAND:
        raise Invalid(f"a command with its parameters has at most {MAX_COMMAND:,} bytes: put the rest in a file")
    if len(parameters) > MAX_PARAMETERS:
        raise Invalid(f"a run has at most {MAX_PARAMETERS} parameters: put the rest in a file")


def parse_file_name(name: str) -> str:
    """Check the name of an input or output: 1 to 200 printable characters. Raises Invalid."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise Invalid(f"{name[:80]!a} cannot be recorded: a name has 1 to {MAX_NAME} printable characters; rename the file")
    return name


# -- digests --


def changes_digest(changes: Mapping[str, ChangedFile]) -> str:
    """Hex SHA-256 of what is not committed; "" when nothing is.

    Over one line a file, sorted by path, bytewise: mode, space, digest, space, path, NUL.
    """
    lines = sorted((path.encode("utf-8", "surrogateescape"), one) for path, one in changes.items())
    said = b"".join(f"{one.mode} {one.digest} ".encode() + path + b"\0" for path, one in lines)
    return hashlib.sha256(said).hexdigest() if changes else ""


def manifest_digest(files: Iterable[tuple[str, Digest]]) -> Digest:
    """SHA-256 of the lines that ``sha256sum`` prints for ``files`` (path, digest), sorted bytewise."""
    lines = sorted(f"{digest_hex(digest)}  {path}\n".encode() for path, digest in files)
    return digest_of(b"".join(lines))


def gathered(inputs: Sequence[DataReport]) -> tuple[DataReport, ...]:
    """``inputs`` with one line for each data set of which more than one file went in."""
    sets: dict[str, list[DataReport]] = {}
    for one in inputs:
        sets.setdefault(one.dataset, []).append(one)
    return tuple(
        DataReport(f"{name}/", manifest_digest((one.name.partition("/")[2], one.digest) for one in found), len(found))
        if len(found) > 1
        else found[0]
        for name, found in sorted(sets.items())
    )


# -- statements --


class Verified(msgspec.Struct, frozen=True):
    """How the commit is signed, and by whom: what the keep itself found."""

    signature: str
    signer: str


def run_statements(
    report: RunReport, found: Verified, hide: Callable[[DataReport], Digest], *, run: bytes, actor: str, at: int
) -> tuple[Statement, ...]:
    """What is said about each model that came out of a run. ``hide``: salts a digest; ``run``: 16 random bytes.

    What would not fit a log entry is said in fewer words: first the inputs, one line a data set, then the packages, of which
    only the lock digest stays. Raises Invalid, TooLarge (it does not fit then either).
    """
    report.check()
    code, ran = report.code, report.environment
    environment = Environment.of(ran.python, ran.platform, ran.packages)  # so that the lock is that of the packages
    lock_only = msgspec.structs.replace(environment, packages={})
    one_by_one, by_set = sorted(report.inputs, key=lambda one: one.name), gathered(report.inputs)
    for inputs, installed in ((one_by_one, environment), (by_set, environment), (by_set, lock_only)):
        if len(inputs) > MAX_LINES:
            continue
        said = TrainingRun(
            actor=actor,
            at=at,
            run=run.hex(),
            command=masked(report.command),
            code=Code(
                public_url(code.repository), code.commit, bool(code.changes), found.signature, found.signer, code.changes
            ),
            environment=installed,
            machine=report.machine,
            started=report.started,
            ended=report.ended,
            parameters=masked_parameters(report.parameters),
            inputs=tuple(Salted(one.name, hide(one), one.files) for one in inputs),
            outputs={one.name: one.digest for one in report.outputs},
            isolation=report.isolation,
        )
        made = tuple(make_statement(said, Resource(one.name, one.digest)) for one in report.outputs)
        if max(len(encode_statement(one)) for one in made) <= MAX_PAYLOAD:
            return made
    raise TooLarge("this run has too many inputs and outputs for a log entry: name fewer, or folders that hold them")
