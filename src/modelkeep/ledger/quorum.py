"""Which witnesses must have cosigned a checkpoint: policy files. Source: C2SP tlog-policy.

A file names logs and witnesses by their verifier keys, groups of witnesses with a threshold each, and the one witness or group
that is the quorum. A name is bytes; here it is text in which bytes that are not UTF-8 are escaped.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import NamedTuple

from modelkeep.crypto.cosignatures import CosignatureVerifier
from modelkeep.crypto.notes import NoteVerifier, parse_vkey
from modelkeep.errors import Invalid

MAX_FILE = 256 << 10
MAX_LINES = 1000
MAX_WITNESSES = 64
"""So many lines a checkpoint can carry beside the log's own and still be read by everybody."""
NONE = "none"
_COUNT = re.compile(r"[1-9][0-9]{0,3}\Z")
_CONTROL = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]")


class Witness(NamedTuple):
    """A witness as a policy names it. ``url``: the submission prefix, "" if the file has none."""

    name: str
    verifier: CosignatureVerifier
    url: str


class Group(NamedTuple):
    """``name`` has witnessed what at least ``least`` of ``members`` have."""

    name: str
    least: int
    members: tuple[str, ...]


@dataclass(frozen=True)
class LogPolicy:
    """A policy. ``logs``: name and key (type byte ‖ public key) of each log that it is for; none = for any."""

    logs: tuple[tuple[str, bytes], ...]
    witnesses: tuple[Witness, ...]
    groups: tuple[Group, ...]
    quorum: str

    def reached(self, cosigners: Collection[str]) -> bool:
        """Whether ``cosigners``, names of witnesses that cosigned one checkpoint, are a quorum."""
        if self.quorum == NONE:
            return True
        done = {witness.name for witness in self.witnesses} & set(cosigners)
        for group in self.groups:  # a group names only what stands before it
            if len(done.intersection(group.members)) >= group.least:
                done.add(group.name)
        return self.quorum in done

    def check_for(self, vkey: str) -> None:
        """Raises Invalid unless this policy is for the log whose verifier key is ``vkey``."""
        if self.logs and parse_vkey(vkey) not in self.logs:
            raise Invalid(f"the witness policy is for other logs: add the line 'log {vkey}', or name no log")


def parse_policy(data: bytes) -> LogPolicy:
    """Parse a policy file. Raises Invalid, naming the line."""
    if len(data) > MAX_FILE or data.count(b"\n") > MAX_LINES:
        raise Invalid(f"a witness policy has at most {MAX_FILE:,} bytes and {MAX_LINES:,} lines")
    if _CONTROL.search(data):
        raise Invalid("a witness policy has no control characters but tab and newline")
    if not data.endswith(b"\n"):
        raise Invalid("a witness policy ends in a newline: this one is empty or was cut off")
    draft = _Draft()
    for number, line in enumerate(data.decode("utf-8", "backslashreplace").split("\n")[:-1], 1):
        words = re.split(r"[ \t]+", line.strip(" \t"))
        if not words[0] or words[0].startswith("#"):
            continue
        try:
            draft.take(words)
        except Invalid as cause:
            raise Invalid(f"witness policy, line {number}: {cause}") from cause
    return draft.finish()


@dataclass
class _Draft:
    """A policy while its lines are read."""

    logs: list[tuple[str, bytes]] = field(default_factory=list)
    witnesses: dict[str, Witness] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    keys: set[bytes] = field(default_factory=set)
    members: set[str] = field(default_factory=set)
    quorum: str = ""

    def take(self, words: list[str]) -> None:
        """Take one line in. Raises Invalid."""
        match words:
            case ["log", vkey, *rest] if len(rest) < 2:
                self._log(vkey)
            case ["witness", name, vkey, *rest] if len(rest) < 2:
                self._witness(name, vkey, rest[0] if rest else "")
            case ["group", name, count, *members] if members:
                self._group(name, count, members)
            case ["quorum", name]:
                self._quorum(name)
            case _:
                raise Invalid("expected log VKEY [URL], witness NAME VKEY [URL], group NAME any|all|K NAME..., or quorum NAME")

    def _log(self, vkey: str) -> None:
        NoteVerifier.parse(vkey)
        name, key = parse_vkey(vkey)
        if any(key == known for _, known in self.logs):
            raise Invalid(f"the key of the log {name!r} stands here twice")
        self.logs.append((name, key))

    def _witness(self, name: str, vkey: str, url: str) -> None:
        self._fresh(name)
        if len(self.witnesses) == MAX_WITNESSES:
            raise Invalid(f"a witness policy has at most {MAX_WITNESSES} witnesses")
        verifier = CosignatureVerifier.parse(vkey)
        if verifier.public in self.keys:
            raise Invalid(f"the key of the witness {name!r} stands here twice: one witness counts once")
        self.keys.add(verifier.public)
        self.witnesses[name] = Witness(name, verifier, url)

    def _group(self, name: str, count: str, members: list[str]) -> None:
        self._fresh(name)
        for member in members:
            self._known(member)
            if member in self.members:
                raise Invalid(f"{member!r} is a member twice: it may count in one way only")
            self.members.add(member)
        words = {"any": 1, "all": len(members)}
        least = words[count] if count in words else int(count) if _COUNT.match(count) else 0
        if not 1 <= least <= len(members):
            raise Invalid(
                f"group {name!r} asks for {count[:40]!r} of its {len(members)} members: use any, all or a number from 1"
            )
        self.groups[name] = Group(name, least, tuple(members))

    def _quorum(self, name: str) -> None:
        if self.quorum:
            raise Invalid("there is a quorum line already")
        if name != NONE:
            self._known(name)
        self.quorum = name

    def _fresh(self, name: str) -> None:
        if name == NONE or name in self.witnesses or name in self.groups:
            raise Invalid(f"the name {name[:80]!r} is taken")

    def _known(self, name: str) -> None:
        if name not in self.witnesses and name not in self.groups:
            raise Invalid(f"{name[:80]!r} is neither a witness nor a group defined above")

    def finish(self) -> LogPolicy:
        """The policy. Raises Invalid (no quorum)."""
        if not self.quorum:
            raise Invalid("the witness policy has no quorum line: add 'quorum NAME', or 'quorum none'")
        return LogPolicy(tuple(self.logs), tuple(self.witnesses.values()), tuple(self.groups.values()), self.quorum)
