"""Releases: their records, and the state machine as a table.

The record is a cache and the place of what may change (the recipients that open a body). What a release *is* and where it
stands is what the releases log says (custody/book): a record that claims more changes nothing.
"""

from typing import TypeVar

import msgspec

from modelkeep.core.values import Digest, ModelSignature, ReleaseRef, ReleaseState, to_json
from modelkeep.errors import Conflict, Invalid, NotTrusted

RELEASE, RECIPIENTS, COUNTER = "release", "recipients", "release-counter"
"""Record kinds: one per release (key ``name@version``), per sealed body (key: sealed digest) and per model name."""

PUBLISH, PROMOTE, QUARANTINE, REINSTATE, RETIRE = "publish", "promote", "quarantine", "reinstate", "retire"
EXPORT, COLLECT = "export", "collect"
"""``export`` is logged like a change of state, and changes none; ``collect`` lets go of the bodies of a retired release."""

TRANSITIONS: dict[tuple[ReleaseState, str], ReleaseState] = {
    (ReleaseState.PENDING, PUBLISH): ReleaseState.PUBLISHED,
    (ReleaseState.PUBLISHED, PROMOTE): ReleaseState.PROMOTED,
    (ReleaseState.PUBLISHED, QUARANTINE): ReleaseState.QUARANTINED,
    (ReleaseState.PROMOTED, QUARANTINE): ReleaseState.QUARANTINED,
    (ReleaseState.QUARANTINED, REINSTATE): ReleaseState.PUBLISHED,
    (ReleaseState.PUBLISHED, RETIRE): ReleaseState.RETIRED,
    (ReleaseState.PROMOTED, RETIRE): ReleaseState.RETIRED,
    (ReleaseState.QUARANTINED, RETIRE): ReleaseState.RETIRED,
    (ReleaseState.PUBLISHED, EXPORT): ReleaseState.PUBLISHED,
    (ReleaseState.PROMOTED, EXPORT): ReleaseState.PROMOTED,
    (ReleaseState.RETIRED, EXPORT): ReleaseState.RETIRED,
    (ReleaseState.RETIRED, COLLECT): ReleaseState.COLLECTED,
}
VERBS = (PROMOTE, QUARANTINE, REINSTATE, RETIRE)


def next_state(state: ReleaseState, verb: str) -> ReleaseState:
    """Where ``verb`` takes a release that stands in ``state``. Raises Conflict when the table has no such arrow."""
    try:
        return TRANSITIONS[state, verb]
    except KeyError:
        possible = [known for (origin, known) in TRANSITIONS if origin == state]
        what = f"possible now: {', '.join(possible)}" if possible else "nothing is possible any more"
        raise Conflict(f"a {state} release cannot be the object of {verb[:40]!r}; {what}") from None


class SealedBody(msgspec.Struct, frozen=True):
    """A sealed body in the blob store: ``sealed`` its digest, ``root`` and ``header`` 64 hex digits, ``size`` in bytes."""

    sealed: Digest
    root: str
    header: str
    size: int


class Release(msgspec.Struct, frozen=True):
    """The record of a release.

    ``claim``: names the publisher's claim while ``state`` is pending, so that a dead publisher can be told from a slow one.
    ``model``: digest of the source file, whose format, size and name are kept too. ``body`` and ``profile`` are set once
    sealed; ``profile_digest`` is that of the profile's plain bytes. ``entries``: log index by statement type, once logged.
    ``next_body`` and ``next_profile``: what takes their place as soon as the log says so, while the release is sealed anew.
    """

    ref: ReleaseRef
    state: ReleaseState
    claim: str
    model: Digest
    filename: str
    format: str
    size: int
    actor: str
    created: int
    interface: ModelSignature
    body: SealedBody | None = None
    profile: SealedBody | None = None
    profile_digest: Digest | None = None
    entries: dict[str, int] = {}
    next_body: SealedBody | None = None
    next_profile: SealedBody | None = None

    @property
    def bodies(self) -> list[SealedBody]:
        """Every sealed body that this record names: none of them may be collected."""
        named = (self.body, self.profile, self.next_body, self.next_profile)
        return [body for body in named if body is not None]

    def encode(self) -> bytes:
        """The record's bytes."""
        return to_json(self)

    @classmethod
    def parse(cls, data: bytes) -> "Release":
        """Raises NotTrusted: a record that does not parse was not written by modelkeep."""
        return _parse(_RELEASE, data, "release record")


class Counter(msgspec.Struct, frozen=True):
    """``last``: the highest version ever given to a model name; it never goes down."""

    last: int

    def encode(self) -> bytes:
        """The record's bytes."""
        return to_json(self)

    @classmethod
    def parse(cls, data: bytes) -> "Counter":
        """Raises NotTrusted."""
        return _parse(_COUNTER, data, "version counter")


T = TypeVar("T")
_RELEASE, _COUNTER = msgspec.json.Decoder(Release), msgspec.json.Decoder(Counter)


def _parse(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, Invalid) as cause:
        raise NotTrusted(f"a {what} is malformed: {cause}") from cause


def file_name(name: str) -> str:
    """The last part of a path that a model came under, for display only. Raises Invalid when it hides something else."""
    if not name or len(name) > 255 or name in {".", ".."} or any(c in name for c in "/\\") or not name.isprintable():
        raise Invalid(f"{name[:80]!r} is not a plain file name: give it without folders and control characters")
    return name
