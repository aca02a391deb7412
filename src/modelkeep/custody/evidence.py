"""What the releases log says about one release, as frozen values. ``custody/book`` folds them from the log."""

from typing import NamedTuple

import msgspec

from modelkeep.core.values import Digest, ModelSignature, ReleaseRef, ReleaseState
from modelkeep.custody.releases import QUARANTINE, SealedBody
from modelkeep.errors import NotAdmitted, Quarantined
from modelkeep.ledger.predicates import Profile, Scan, Sealing

EXTERNAL, UPSTREAM_FORMAT = "external", "upstream"


class Problem(msgspec.Struct, frozen=True):
    """A log entry that did not count: its index and why.

    ``honest``: it is signed by those who may and only came too late (two promoted at once, say), or by a key that the trust
    root knows to be compromised: what is wrong with it is accounted for, and nothing was tampered with.
    """

    index: int
    why: str
    honest: bool = False


class Event(msgspec.Struct, frozen=True):
    """One thing that happened to a release: log index, verb, who, why, and when (Unix nanoseconds by the signer's clock)."""

    index: int
    verb: str
    actor: str
    reason: str
    at: int


class Committed(NamedTuple):
    """What the log says of one watermark key of an account: 64 hex digits that commit to it, in which entry, and when that was
    made (Unix nanoseconds by the signer's clock)."""

    commitment: str
    entry: int
    at: int


class ReleaseEvidence(msgspec.Struct, frozen=True):
    """All that the log says about one release.

    ``body``: the sealed body that serves it now. ``size``: bytes of the model file. ``profile``: the profile statement, if
    there is one.
    ``scan``: the scan statement named at release, None when there is none. ``signer``: identity that signed the release.
    ``entries``: log index by short statement type. ``history``: what happened to it, oldest first.
    ``bundle``: the OpenSSF signature of the model file; "" when there is none.
    """

    ref: ReleaseRef
    state: ReleaseState
    model: Digest
    filename: str
    format: str
    interface: ModelSignature
    size: int
    body: SealedBody
    scan: Scan | None
    profile: Profile | None
    profile_digest: Digest | None
    signer: str
    entries: dict[str, int]
    history: tuple[Event, ...]
    bundle: str = ""

    @property
    def profile_body(self) -> SealedBody | None:
        """The sealed body of the extraction profile; None when there is none."""
        return sealed_body(self.profile) if self.profile else None

    @property
    def custody(self) -> str:
        """``sealed``, or ``external`` when what is sealed only says where the model runs, and nobody here holds its weights."""
        return custody_of(self.format)

    @property
    def index(self) -> int:
        """Log index of the release statement."""
        return self.entries["release"]

    def check_served(self) -> None:
        """Raise Quarantined or NotAdmitted unless the log says that this release is promoted."""
        if self.state is ReleaseState.QUARANTINED:
            last = next(event for event in reversed(self.history) if event.verb == QUARANTINE)
            raise Quarantined(f"{self.ref} is in quarantine since log entry {last.index}: 'modelkeep show' says why")
        if self.state in (ReleaseState.RETIRED, ReleaseState.COLLECTED):
            raise NotAdmitted(f"{self.ref} is {self.state}: that is for good, publish the model again to serve it")
        if self.state is not ReleaseState.PROMOTED:
            raise NotAdmitted(f"{self.ref} is {self.state}, not promoted: promote it before serving it")


class Found(msgspec.Struct, frozen=True):
    """A trusted statement at its place: ``model`` is its first subject's digest, ``second`` that of another subject."""

    index: int
    id: Digest
    model: Digest
    second: Digest | None
    signer: str


def custody_of(format_id: str) -> str:
    """Who has the weights of a release in this format: ``sealed``, we do; ``external``, another server does."""
    return EXTERNAL if format_id == UPSTREAM_FORMAT else "sealed"


def sealed_body(said: Sealing | Profile) -> SealedBody:
    """The sealed body that a statement speaks of."""
    return SealedBody(said.sealed, said.root, said.header, said.size)
