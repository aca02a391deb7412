"""What may be said about a model, and by which form of words: in-toto statements with modelkeep's predicates.

One statement is an in-toto Statement v1 (github.com/in-toto/attestation, spec/v1/statement.md) in a DSSE envelope, and one
entry of the releases log. ``docs/formats/statements.md`` describes every field. Predicates are structs: adding an optional
field keeps the type, changing a meaning makes a new ``:v2``. Times are Unix nanoseconds; digests are ``sha256:<hex>``.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from modelkeep.core.values import (
    Digest,
    Resource,
    Statement,
    digest_hex,
    digest_of,
    parse_digest,
    to_json,
)
from modelkeep.crypto.dsse import Envelope, check_envelope, parse_envelope, sign_envelope
from modelkeep.crypto.signatures import PublicIdentity, StatementSigner
from modelkeep.errors import Invalid, NotTrusted, TooLarge
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.predicates import Commitment, Predicate, TraceCommitments

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_ENTRY = 65_535
"""A tlog-tiles entry bundle holds entries of at most this many bytes (C2SP tlog-tiles)."""
COMMITMENTS_PER_STATEMENT = 250
"""So that a statement of commitments stays well below ``MAX_ENTRY``."""


P = TypeVar("P", bound=Predicate)


class _Subject(msgspec.Struct, frozen=True):
    digest: dict[str, str]
    name: str = ""


class _Statement(msgspec.Struct, frozen=True, rename={"type_": "_type", "predicate_type": "predicateType"}):
    type_: str
    subject: tuple[_Subject, ...]
    predicate_type: str
    predicate: dict[str, Any] = {}


class _Peek(msgspec.Struct, frozen=True, rename={"predicate_type": "predicateType"}):
    predicate_type: str


class _Verb(msgspec.Struct, frozen=True):
    verb: str


class _PeekAct(msgspec.Struct, frozen=True):
    predicate: _Verb


_STATEMENT, _PEEK = msgspec.json.Decoder(_Statement), msgspec.json.Decoder(_Peek)
_PEEK_ACT = msgspec.json.Decoder(_PeekAct)


def make_statement(predicate: Predicate, *subjects: Resource) -> Statement:
    """A statement that says ``predicate`` about ``subjects``. Raises Invalid (a value that no reader would take)."""
    said = Statement(tuple(subjects), predicate.TYPE, msgspec.json.decode(to_json(predicate)))  # lists, not tuples
    predicate_of(said, type(predicate))
    return said


def encode_statement(statement: Statement) -> bytes:
    """The canonical JSON of a statement: the payload that is signed. Raises Invalid when it has no subject."""
    if not statement.subject:
        raise Invalid("a statement needs a subject")
    subjects = tuple(_Subject({"sha256": digest_hex(s.digest)}, s.name) for s in statement.subject)
    return to_json(_Statement(STATEMENT_TYPE, subjects, statement.predicate_type, statement.predicate))


def parse_statement(payload: bytes) -> Statement:
    """The statement in a payload. Raises Invalid."""
    try:
        raw = _STATEMENT.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is not an in-toto statement: {cause}") from cause
    if raw.type_ != STATEMENT_TYPE or not raw.subject:
        raise Invalid(f"this is not an in-toto Statement v1 with a subject: {raw.type_[:80]!r}")
    subjects = tuple(Resource(s.name, parse_digest("sha256:" + s.digest.get("sha256", ""))) for s in raw.subject)
    return Statement(subjects, raw.predicate_type, raw.predicate)


def predicate_of(statement: Statement, kind: type[P]) -> P:
    """The statement's predicate as a ``kind``. Raises Invalid when it is another type or has another shape."""
    if statement.predicate_type != kind.TYPE:
        raise Invalid(f"expected a {kind.TYPE} statement, found {statement.predicate_type[:80]!r}")
    try:
        return msgspec.convert(statement.predicate, kind)
    except msgspec.ValidationError as cause:
        raise Invalid(f"the {kind.TYPE} statement is malformed: {cause}") from cause


def statement_id(statement: Statement) -> Digest:
    """What other statements call this one by: the SHA-256 of its canonical payload."""
    return digest_of(encode_statement(statement))


def sign_statement(statement: Statement, signer: StatementSigner, *also: StatementSigner) -> bytes:
    """A log entry: the statement in an envelope with both signatures of ``signer``. Raises TooLarge above 65,535 bytes.

    ``also``: others who sign beside it, after it (at most three).
    """
    entry = sign_envelope(PAYLOAD_TYPE, encode_statement(statement), signer, *also)
    if len(entry) > MAX_ENTRY:
        raise TooLarge(f"a {short_type(statement.predicate_type)} statement of {len(entry)} bytes does not fit a log entry")
    return entry


def peek_type(envelope: Envelope) -> str:
    """The predicate type that an unverified envelope claims. Raises Invalid."""
    try:
        return _PEEK.decode(envelope.unverified_payload()).predicate_type
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is not an in-toto statement: {cause}") from cause


def peek_verb(envelope: Envelope) -> str:
    """The verb that an unverified act claims. Raises Invalid."""
    try:
        return _PEEK_ACT.decode(envelope.unverified_payload()).predicate.verb
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is no act: {cause}") from cause


def check_statement(envelope: Envelope, identities: Mapping[str, PublicIdentity]) -> tuple[Statement, PublicIdentity]:
    """The statement in ``envelope`` and which identity signed it with both its keys.

    ``identities``: by the keyid of their Ed25519 key. Raises NotTrusted (unknown signer, signature missing or wrong), Invalid.
    """
    named = [identities[s.keyid] for s in envelope.signatures if s.keyid in identities]
    if not named:
        raise NotTrusted("no identity of the trust root signed this statement")
    identity = named[0]
    return parse_statement(check_envelope(envelope, identity, PAYLOAD_TYPE)), identity


def open_statement(entry: bytes, *identities: PublicIdentity) -> tuple[Statement, PublicIdentity]:
    """Parse and check one log entry against some identities. Raises NotTrusted, Invalid."""
    return check_statement(parse_envelope(entry), {identity.key_ids[0]: identity for identity in identities})


def keep_resource(origin: str) -> Resource:
    """The keep itself as the subject of an ``act``: its origin, and the SHA-256 of that name."""
    return Resource(origin, digest_of(origin.encode()))


def commitment_statements(
    model: Resource, release: str, entries: Iterable[Commitment], *, actor: str, at: int
) -> Iterator[Statement]:
    """Statements that commit to the watermark keys of many accounts, cut so that each fits one log entry."""
    batch: list[Commitment] = []
    for entry in entries:
        batch.append(entry)
        if len(batch) == COMMITMENTS_PER_STATEMENT:
            yield make_statement(TraceCommitments(actor=actor, at=at, release=release, entries=tuple(batch)), model)
            batch = []
    if batch:
        yield make_statement(TraceCommitments(actor=actor, at=at, release=release, entries=tuple(batch)), model)
