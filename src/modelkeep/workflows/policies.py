"""Policies in force: said in the releases log, compiled once, followed by every process that decides.

Before the first statement of a kind the keep's own default holds: for admission the profile that the settings name, for access
the policy that ships, for the ladder the one that ships, with what the settings say an alarm does. A text that cannot be read
here any more (it was written for a later version) admits and permits nothing, and ends serving.
"""

import threading
from typing import NamedTuple

from modelkeep.core.values import to_json
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.policies import (
    ACCESS,
    ADMISSION,
    CUSTOM,
    DEFAULT,
    EXTENDED,
    KINDS,
    LADDER,
    MAX_TEXT,
    WITH_TEXT,
    PolicyInForce,
)
from modelkeep.errors import Conflict, Invalid, Unavailable
from modelkeep.extraction.ladder import DEFAULT as SHIPPED_LADDER
from modelkeep.extraction.ladder import LABEL_ONLY, SHIPPED, Ladder, parse_ladder
from modelkeep.ledger.predicates import Policy
from modelkeep.ledger.statements import keep_resource, make_statement
from modelkeep.policy.admission import AdmissionPolicy, profile_text
from modelkeep.policy.engine import Engine, default_policy
from modelkeep.workflows.registry import Desk
from modelkeep.workflows.watch import Ruled

TRIES = 16


class Chosen(NamedTuple):
    """A policy that somebody chose: ``name`` of one that ships, or ``custom`` or ``extended`` with its ``text``."""

    name: str
    text: str = ""


class AdmissionInForce:
    """The admission policy of a keep, as its log says now."""

    def __init__(self, default: str) -> None:
        """``default``: the profile that holds until the log names another. Raises Invalid."""
        self._default = AdmissionPolicy.profile(default)
        self._made: tuple[str, AdmissionPolicy] = ("", self._default)

    def of(self, book: EvidenceBook) -> AdmissionPolicy:
        """The policy in force. Raises Unavailable: its text is for another version of modelkeep."""
        found = book.policies.in_force(ADMISSION)
        if found is None:
            return self._default
        made = self._made  # once: another thread may be at an older or a newer policy
        if made[0] != found.said.id:
            try:
                made = self._made = found.said.id, admission_policy(Chosen(found.said.name, found.said.text))
            except Invalid as cause:
                raise _unreadable(found, cause) from cause
        return made[1]


class AccessInForce:
    """Keeps an ``Engine`` at the access policy that the log says. Thread-safe."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._loaded = ""
        self._turn = threading.Lock()

    def follow(self, book: EvidenceBook) -> Engine:
        """The engine, with the policy in force. Raises Unavailable: its text is for another version of modelkeep."""
        with self._turn:  # else a thread that is slow to load an older policy could put it after the newer one of another
            found = book.policies.in_force(ACCESS)
            wanted = found.said.id if found else ""
            if wanted != self._loaded:
                try:
                    self.engine.load(access_text(Chosen(found.said.name, found.said.text)) if found else default_policy())
                except Invalid as cause:
                    assert found is not None
                    raise _unreadable(found, cause) from cause
                self._loaded = wanted
            return self.engine


class LadderInForce:
    """The ladder of a keep, as its log says now. Thread-safe."""

    def __init__(self, on_alarm: str = "refuse") -> None:
        """``on_alarm``: what the setting of that name says; it holds while the ladder is the one that ships."""
        self.default = LABEL_ONLY if on_alarm == "label-only" else SHIPPED_LADDER
        self._made: tuple[str, Ladder] = ("", self.default)

    def of(self, book: EvidenceBook) -> Ladder:
        """The ladder in force: the same object until another is. Raises Unavailable: its text is for another version."""
        found = book.policies.in_force(LADDER)
        if found is None:
            return self.default
        made = self._made  # once: another thread may be at an older or a newer one
        if made[0] != found.said.id:
            try:
                ladder = parse_ladder(found.said.text) if found.said.text else self.default
            except Invalid as cause:
                raise _unreadable(found, cause) from cause
            made = self._made = found.said.id, ladder
        return made[1]

    def history(self, book: EvidenceBook) -> tuple[Ruled, ...]:
        """Every ladder so far, oldest first, each later than the one before: the log's order stands when a clock went
        backwards. One that this version cannot read any more is passed over."""
        found = [Ruled(0, self.default)]
        for each in book.policies.history(LADDER):
            try:
                ladder = parse_ladder(each.said.text) if each.said.text else self.default
            except Invalid:
                continue
            found.append(Ruled(max(each.said.at, found[-1].at + 1), ladder))
        return tuple(found)


def ladder_text(chosen: Chosen) -> str:
    """The text of a ladder. Raises Invalid."""
    if chosen.name not in (CUSTOM, DEFAULT):
        raise Invalid(f"there is no ladder {chosen.name[:40]!r}: give a file, or use {DEFAULT!r}")
    return chosen.text or SHIPPED


def admission_policy(chosen: Chosen) -> AdmissionPolicy:
    """Compile an admission policy. Raises Invalid (also: longer than one that can be set)."""
    if len(chosen.text) > MAX_TEXT:
        raise Invalid(f"an admission policy has at most {MAX_TEXT:,} bytes: this one has {len(chosen.text):,}")
    return AdmissionPolicy(chosen.text, chosen.name) if chosen.text else AdmissionPolicy.profile(chosen.name)


def access_text(chosen: Chosen) -> str:
    """The whole Cedar text of an access policy: an extension stands behind the policy that ships. Raises Invalid."""
    if chosen.name == CUSTOM:
        return chosen.text
    if chosen.name == EXTENDED:
        return f"{default_policy()}\n{chosen.text}"
    if chosen.name != DEFAULT:
        raise Invalid(f"there is no access policy {chosen.name[:40]!r}: give a file, or use {DEFAULT!r}")
    return default_policy()


def policy_text(kind: str, chosen: Chosen) -> str:
    """The text that decides: Cedar, or the table of the ladder. Raises Invalid."""
    if kind == LADDER:
        return ladder_text(chosen)
    return access_text(chosen) if kind == ACCESS else chosen.text or profile_text(chosen.name)


def set_policy(desk: Desk, origin: str, kind: str, chosen: Chosen, *, actor: str, reason: str = "") -> PolicyInForce:
    """Put a policy in force; it returns once every gateway follows it: after their lease.

    Raises Invalid (it does not parse, or fit the schema), Conflict (others change it at once), NotTrusted, Unavailable.
    """
    _check(kind, chosen)
    for _ in range(TRIES):
        book = desk.registry.refresh()
        said = Policy(
            actor=actor,
            at=desk.clock.now_ns(),
            kind=kind,
            name=chosen.name,
            text=chosen.text,
            replaces=book.policies.index(kind),
            id=desk.entropy.token(16).hex(),
            reason=reason,
        )
        (index,) = desk.log_statements([make_statement(said, keep_resource(origin))])
        now = desk.registry.refresh().policies
        if any(each.index == index for each in now.history(kind)):
            desk.clock.sleep(desk.lease)
            return next(each for each in now.history(kind) if each.index == index)
    raise Conflict(f"the {kind} policy is changed by too many at once: try again")


def _check(kind: str, chosen: Chosen) -> None:
    if len(to_json(chosen.text)) > MAX_TEXT:
        raise Invalid(
            f"a policy has at most {MAX_TEXT:,} bytes, for it must fit a log entry: this one has {len(chosen.text):,}"
        )
    if (chosen.name in WITH_TEXT) != bool(chosen.text):
        raise Invalid("a policy is either one that ships, by its name, or a text")
    if kind == ADMISSION:
        admission_policy(chosen)
    elif kind == ACCESS:
        Engine(access_text(chosen))
    elif kind == LADDER:
        parse_ladder(ladder_text(chosen))
    else:
        raise Invalid(f"{kind[:40]!r} is no kind of policy: use {', '.join(KINDS)}")


def _unreadable(found: PolicyInForce, cause: Invalid) -> Unavailable:
    return Unavailable(
        f"the {found.said.kind} policy of log entry {found.index} cannot be read by this version of modelkeep, so nothing is "
        f"allowed by it: set another at the machine with 'modelkeep policy set' ({cause})"
    )
