"""The registry: what reading and changing releases needs, and the two of them that every verb shares: refresh and open.

``Registry`` reads (a gateway has one); ``Desk`` also writes: it signs statements and appends them to the releases log.
"""

import contextlib
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec

from modelkeep.container.open import SealedFile, open_sealed
from modelkeep.container.reader import BlobReader
from modelkeep.container.recipients import KmsStanza, Opener, Stanza, unlock
from modelkeep.core.ports import Blobs, Change, Clock, Entropy, Record, Records, Wrapper, WrappingKeys
from modelkeep.core.records import parse_record
from modelkeep.core.values import Digest, ReleaseRef, Statement, to_json
from modelkeep.crypto.notes import Checkpoint
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.oms import BundleSigner
from modelkeep.custody.opinions import Scanner
from modelkeep.custody.releases import RECIPIENTS, SealedBody
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Missing, NotTrusted, Unavailable
from modelkeep.ledger.cosigned import Cosigned, Witnessed
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.proofs import Proof
from modelkeep.ledger.statements import sign_statement

HEAD = "log-head"
"""Record kind: the furthest checkpoint of a log that a writer made; the key is the log's origin."""

MODEL, PROFILE, CARD = "model", "extraction-profile", "model-card"
"""Purposes of sealed bodies: a profile put in a model's place does not open."""


class Claims(Protocol):
    """Names held by live processes, so that work in progress can be told from work cut off."""

    def hold(self, name: str) -> AbstractContextManager[None]:
        """Hold ``name`` for the length of the block. Raises Conflict (a live process holds it), Unavailable."""
        ...


@dataclass(frozen=True)
class KeysOpener:
    """Opens what any of some providers wrapped, by the key that a stanza names. ``keys``: asked for at every use, because a
    rotation or a move may happen while a process runs.
    """

    keys: Callable[[], Sequence[WrappingKeys]]

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        """The data key; None when the stanza is for someone else. Raises NotTrusted, Denied, Unavailable."""
        if not isinstance(stanza, KmsStanza):
            return None
        for provider in self.keys():
            try:
                wrapper = provider.opens(stanza.key_id)
            except Missing as cause:
                raise NotTrusted(f"a key is wrapped under {stanza.key_id[:120]}, a version that never was") from cause
            if wrapper is not None:
                return wrapper.unwrap(stanza.wrapped, context)
        return None


@dataclass(frozen=True)
class Registry:
    """A reader of releases. ``openers``: who may open bodies, none for a verifier without keys; ``cosigned``: counts what
    witnesses saw, None where nobody asks for them. Thread-safe.
    """

    records: Records
    blobs: Blobs
    view: LogView
    book: EvidenceBook
    openers: Sequence[Opener] = ()
    cosigned: Cosigned | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def refresh(self) -> EvidenceBook:
        """The evidence as of now. Raises NotTrusted (the log was altered, forked or rolled back), Unavailable."""
        with self._lock:
            self.book.catch_up(self.view, self.view.refresh().size)
            return self.book

    def witnessed(self) -> Witnessed | None:
        """How many entries of the log, as ``view`` last saw it, a quorum of witnesses has cosigned; None = no policy asks.

        Raises NotTrusted (the log was rolled back behind what they saw, or rewritten), Missing, Invalid (the policy),
        Unavailable.
        """
        with self._lock:
            return None if self.cosigned is None else self.cosigned.look(self.view)

    def prove(self, index: int) -> Proof:
        """The proof that entry ``index`` is in the log: under a checkpoint with a quorum of cosignatures if one covers it, else
        under the newest. Raises Invalid (no such entry), NotTrusted, Unavailable.
        """
        found = self.witnessed()
        covered = self.cosigned is not None and found is not None and index < found.size
        return self.view.inclusion(index, self.cosigned.note if self.cosigned and covered else b"")

    def rebase(self, root: TrustRoot) -> None:
        """Read the log anew under another trust root, one that was made by hand. Raises NotTrusted, Unavailable."""
        with self._lock:
            self.book.begin(root)
            self.book.catch_up(self.view, self.view.refresh().size)

    def release(self, ref: ReleaseRef) -> ReleaseEvidence:
        """The evidence on one release as of now. Raises Missing and what ``refresh`` raises."""
        return self.refresh().release(ref)

    def open_body(self, body: SealedBody, source: Digest, purpose: str) -> SealedFile:
        """Open a sealed body that the log vouches for: the key, the signed root and the signed source digest must all agree.

        Raises NotTrusted (missing, altered, swapped, other keys), Denied (the key is disabled), Unavailable.
        """
        try:
            block = self.records.get(RECIPIENTS, body.sealed).body or b""
            reader = body_reader(self.blobs, body)
        except Missing as cause:
            raise NotTrusted(f"the {purpose} {source} cannot be opened: {cause}") from cause
        dek = unlock(block, bytes.fromhex(body.header), self.openers, purpose=purpose)
        opened = open_sealed(reader, dek, root=bytes.fromhex(body.root))
        if opened.model_digest != source or opened.header_hash.hex() != body.header:
            raise NotTrusted(f"the sealed body {body.sealed} is not that of the {purpose} {source}")
        return opened


def body_reader(blobs: Blobs, body: SealedBody) -> BlobReader:
    """A stored body, to read. A store that says more than was signed is not believed, so that it cannot make anybody read on.

    Raises Missing, NotTrusted (larger than what was signed), Unavailable.
    """
    reader = BlobReader(blobs, body.sealed)
    if reader.size > body.size:
        raise NotTrusted(f"the sealed body {body.sealed} has {reader.size} bytes, and {body.size} were signed: it was altered")
    return reader


@dataclass(frozen=True)
class Desk:
    """Whoever may change releases.

    ``keys``: where data keys are wrapped now; ``lease``: seconds for which a gateway may still act on what it last read;
    ``bundles``: opens the key of OpenSSF signatures, None to make none; ``logged``: told after every append; ``scanner``:
    judges model files.
    """

    registry: Registry
    log: ReleasesLog
    signer: StatementSigner
    keys: WrappingKeys
    claims: Claims
    clock: Clock
    entropy: Entropy
    lease: float = 1.0
    bundles: Callable[[], BundleSigner] | None = None
    logged: Callable[[], None] = lambda: None
    scanner: Scanner = field(default_factory=Scanner)

    @property
    def wrapper(self) -> Wrapper:
        """The primary of now. Ask for it once a claim is held: then a rotation waits for what is wrapped under it.

        Raises Denied (there is no primary), Unavailable.
        """
        return self.keys.wrapper()

    def log_statements(self, statements: Sequence[Statement], *also: StatementSigner) -> range:
        """Sign statements and append them in one step; their log indexes. ``also``: others who sign beside this desk's signer.

        An identity that a rotation has ended meanwhile logs nothing. Raises TooLarge, NotTrusted, Unavailable.
        """
        entries = [sign_statement(statement, self.signer, *also) for statement in statements]
        indexes = self.log.append(entries, check=self._check_signer)
        if self.log.last is not None:
            with contextlib.suppress(Conflict, Unavailable):  # what was logged is logged; the next statement keeps a head again
                keep_head(self.registry.records, self.log.last)
        self.logged()
        return indexes

    def _check_signer(self, index: int) -> None:
        signatories = self.registry.refresh().signatories
        try:
            signatories.check_signs(self.signer.public, index)
        except (NotTrusted, Conflict) as cause:
            raise Unavailable(f"nothing was logged: the keys at hand are no longer in force ({cause}), open anew") from cause


class _Head(msgspec.Struct, frozen=True):
    size: int
    root: str


def keep_head(records: Records, head: Checkpoint) -> None:
    """Keep ``head`` unless a later one is kept already. Raises Conflict (another writer keeps one now), Unavailable."""
    try:
        record = records.get(HEAD, head.origin)
        revision, size = record.revision, _parse_head(record).size
    except Missing:
        revision, size = 0, -1
    if size < head.size:
        records.commit([Change(HEAD, head.origin, to_json(_Head(head.size, head.root.hex())), revision)])


def kept_head(records: Records, origin: str) -> Checkpoint | None:
    """The furthest checkpoint known of the log ``origin``, which a log that was rolled back does not continue.

    Raises NotTrusted (the record is damaged), Unavailable.
    """
    try:
        found = _parse_head(records.get(HEAD, origin))
    except Missing:
        return None
    return Checkpoint(origin, found.size, bytes.fromhex(found.root))


def _parse_head(record: Record) -> _Head:
    head = parse_record(record, _Head, f"the head of {record.key}")
    try:
        bytes.fromhex(head.root)
    except ValueError as cause:
        raise NotTrusted(f"the record of the head of {record.key} is damaged: restore it from a backup") from cause
    return head
