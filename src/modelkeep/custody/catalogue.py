"""The catalogue: second names of versions, what owners say about releases, and holds, as the releases log has them.

``EvidenceBook`` hands every trusted statement of these kinds to ``Catalogue``; one that does not fit raises, and counts for
nothing. Aliases move by compare-and-set within the log itself: each statement names what it replaces, so that of two which were
made at once only the first counts.
"""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, ReleaseState, Statement, parse_name
from modelkeep.custody.releases import SealedBody
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.predicates import Alias, CardBody, Hold, Metadata
from modelkeep.ledger.statements import predicate_of

ADD, REMOVE = "add", "remove"
"""Verbs of a hold."""
_ALIAS = re.compile(r"[a-z](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")
_LIKE_A_VERSION = re.compile(r"v?[0-9.]+\Z")
_RESERVED = ("latest", "newest", "infer", "ready")
_ID = re.compile(r"[0-9a-f]{32}\Z")


def parse_alias(text: str) -> str:
    """Check a second name of a version, such as ``champion``: like a model name, beginning with a letter. Raises Invalid.

    What looks like a version (``v2``), means one already (``latest``) or is a word of the gateway's addresses is refused.
    """
    if not _ALIAS.match(text) or ".." in text:
        raise Invalid(f"{text[:80]!r} is not an alias: use 1-64 of a-z 0-9 . _ -, begin with a letter, such as champion")
    if _LIKE_A_VERSION.match(text) or text in _RESERVED:
        raise Invalid(f"{text!r} cannot be an alias: it reads like a version or an address; choose a word such as champion")
    return text


def reference_name(text: str) -> str:
    """The model name in ``name@version`` or ``name@alias``. Raises Invalid."""
    name, _, last = text.rpartition("@")
    return parse_name(name, "model name") if name and _ALIAS.match(last) else ReleaseRef.parse(text).name


class Told(Protocol):
    """A trusted statement at its place in the log, as the evidence book has it."""

    @property
    def index(self) -> int:
        """Log index."""
        ...

    @property
    def model(self) -> Digest:
        """Digest of the first subject."""
        ...

    @property
    def second(self) -> Digest | None:
        """Digest of the second subject, if there is one."""
        ...


class Standing(Protocol):
    """What the catalogue asks about a release."""

    @property
    def model(self) -> Digest:
        """Digest of the model file."""
        ...

    @property
    def state(self) -> ReleaseState:
        """Where it stands."""
        ...


class AliasMove(msgspec.Struct, frozen=True):
    """An alias moved: from version ``replaced`` to ``version`` (0 = nothing), by whom, and when (Unix ns, signer's clock)."""

    index: int
    version: int
    replaced: int
    actor: str
    at: int


class Described(msgspec.Struct, frozen=True):
    """One metadata statement. ``card`` and ``card_digest``: sealed body and plain digest of the model card, if there is one."""

    index: int
    said: Metadata
    card: SealedBody | None
    card_digest: Digest | None


class HoldRecord(msgspec.Struct, frozen=True):
    """A hold on a release. ``lifted``: log index of its removal, -1 while it stands; ``lifted_by``, ``_why``: likewise."""

    id: str
    ref: ReleaseRef
    index: int
    actor: str
    reason: str
    at: int
    lifted: int = -1
    lifted_by: str = ""
    lifted_why: str = ""


class Catalogue:
    """The fold. Readers get frozen values; not safe for two writers."""

    def __init__(self, release: Callable[[ReleaseRef], Standing]) -> None:
        """``release``: what the log says of one so far; raises Missing."""
        self._release = release
        self._moves: dict[tuple[str, str], tuple[AliasMove, ...]] = {}
        self._described: dict[ReleaseRef, tuple[Described, ...]] = {}
        self._holds: dict[str, HoldRecord] = {}

    # -- aliases --

    def aliases(self) -> dict[tuple[str, str], int]:
        """The version that each (model name, alias) means now; removed ones are left out."""
        return {key: moves[-1].version for key, moves in dict(self._moves).items() if moves[-1].version}

    def alias(self, name: str, alias: str) -> int:
        """The version that ``name@alias`` means now; 0 = none."""
        moves = self._moves.get((name, alias))
        return moves[-1].version if moves else 0

    def moves(self, name: str, alias: str) -> tuple[AliasMove, ...]:
        """Every move of an alias so far, oldest first."""
        return self._moves.get((name, alias), ())

    def alias_history(self, name: str, alias: str) -> tuple[AliasMove, ...]:
        """The same of an alias that there is or was. Raises Missing when there never was."""
        found = self.moves(name, alias)
        if not found:
            raise Missing(f"{name} never had an alias {alias[:64]!r}")
        return found

    def aliases_of(self, ref: ReleaseRef) -> tuple[str, ...]:
        """The aliases that mean this release now, by name."""
        return tuple(
            sorted(alias for (name, alias), version in self.aliases().items() if (name, version) == (ref.name, ref.version))
        )

    def resolve(self, text: str) -> ReleaseRef:
        """The release that ``name@version`` or ``name@alias`` means now. Raises Invalid, Missing (no such alias)."""
        name, _, last = text.rpartition("@")
        if not name or last[:1].isdigit() or not _ALIAS.match(last):
            return ReleaseRef.parse(text)
        version = self.alias(parse_name(name, "model name"), last)
        if not version:
            raise Missing(f"{name} has no alias {last!r}: 'modelkeep alias list {name}' shows those it has")
        return ReleaseRef(name, version)

    # -- metadata --

    def metadata(self, ref: ReleaseRef) -> tuple[Described, ...]:
        """Every metadata statement about ``ref``, oldest first; the last one is in force."""
        return self._described.get(ref, ())

    def described(self, ref: ReleaseRef) -> Described | None:
        """The metadata in force; None when nobody said anything."""
        found = self._described.get(ref)
        return found[-1] if found else None

    def cards(self) -> Iterator[SealedBody]:
        """The sealed model cards in force."""
        for found in tuple(self._described.values()):
            if found[-1].card is not None:
                yield found[-1].card

    # -- holds --

    def holds(self) -> tuple[HoldRecord, ...]:
        """Every hold, oldest first, lifted ones too."""
        return tuple(self._holds.values())

    def holds_on(self, ref: ReleaseRef) -> tuple[HoldRecord, ...]:
        """The holds on ``ref`` that stand."""
        return tuple(hold for hold in self.holds() if hold.ref == ref and hold.lifted < 0)

    def hold(self, hold_id: str) -> HoldRecord:
        """One hold, by its id or a beginning of it of at least 8 digits. Raises Missing, Invalid (several begin so)."""
        found = [hold for hold in self.holds() if hold.id == hold_id or (len(hold_id) >= 8 and hold.id.startswith(hold_id))]
        if len(found) > 1:
            raise Invalid(f"{len(found)} holds begin with {hold_id[:32]!r}: give more of it")
        if not found:
            raise Missing(f"there is no hold {hold_id[:64]!r}: 'modelkeep hold list' shows them")
        return found[0]

    def check_free(self, ref: ReleaseRef) -> None:
        """Raise Conflict when a hold stands on ``ref``: then it is not collected."""
        holds = self.holds_on(ref)
        if holds:
            raise Conflict(
                f"{ref} is held by {holds[0].id[:8]} ({holds[0].reason[:200]}): it is kept until the hold is removed"
            )

    # -- the fold; each raises Invalid, NotTrusted, Missing or Conflict for a statement that does not count --

    def fold_alias(self, found: Told, statement: Statement) -> None:
        """Take in an ``alias`` statement."""
        said = predicate_of(statement, Alias)
        key = parse_name(said.name, "model name"), parse_alias(said.alias)
        standing = self.alias(*key)
        if said.replaces != standing or said.version == standing:
            raise Conflict(
                f"alias {said.alias} of {said.name} means version {standing or 'none'}, not {said.replaces or 'none'}"
            )
        self._check_subject(found, ReleaseRef(said.name, said.version or standing), "alias")
        move = AliasMove(found.index, said.version, standing, said.actor, said.at)
        self._moves[key] = (*self._moves.get(key, ()), move)

    def fold_metadata(self, found: Told, statement: Statement) -> Described:
        """Take in a ``metadata`` statement."""
        said = predicate_of(statement, Metadata)
        ref = ReleaseRef.parse(said.release)
        self._check_subject(found, ref, "metadata")
        if (said.card is None) != (found.second is None):
            raise Invalid(f"metadata of {ref} name a model card as body or as subject only")
        card = _body(said.card) if said.card is not None else None
        described = Described(found.index, said, card, found.second)
        self._described[ref] = (*self._described.get(ref, ()), described)
        return described

    def fold_hold(self, found: Told, statement: Statement) -> None:
        """Take in a ``hold`` statement."""
        said = predicate_of(statement, Hold)
        ref = ReleaseRef.parse(said.release)
        self._check_subject(found, ref, "hold")
        known = self._holds.get(said.id)
        if said.verb == ADD and _ID.match(said.id):
            if known is not None:
                raise Conflict(f"hold {said.id} was added before, by log entry {known.index}")
            if self._release(ref).state is ReleaseState.COLLECTED:
                raise Conflict(f"{ref} was collected: there is nothing left to hold")
            self._holds[said.id] = HoldRecord(said.id, ref, found.index, said.actor, said.reason, said.at)
        elif said.verb == REMOVE and known is not None and known.ref == ref:
            if known.lifted >= 0:
                raise Conflict(f"hold {said.id} was removed before, by log entry {known.lifted}")
            self._holds[said.id] = msgspec.structs.replace(
                known, lifted=found.index, lifted_by=said.actor, lifted_why=said.reason
            )
        else:
            raise Invalid(f"{said.verb[:40]!r} of hold {said.id[:40]!r} on {ref} means nothing")

    def keep_hold(self, index: int, said: Hold) -> None:
        """Let a hold stand that a compromised key added, also on a release that must be signed again; a removal is void."""
        if said.verb == ADD and _ID.match(said.id) and said.id not in self._holds:
            ref, reason = ReleaseRef.parse(said.release), f"by a compromised key: {said.reason}"
            self._holds[said.id] = HoldRecord(said.id, ref, index, said.actor, reason, said.at)

    def _check_subject(self, found: Told, ref: ReleaseRef, what: str) -> None:
        if found.model != self._release(ref).model:
            raise NotTrusted(f"a statement on the {what} of {ref} is about another model")


def _body(said: CardBody) -> SealedBody:
    return SealedBody(said.sealed, said.root, said.header, said.size)
