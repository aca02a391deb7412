"""The frozen values that every room speaks in.

Bytes become these at the door; inside there are no dicts of strings and no re-checking.
"""

import hashlib
import re
from enum import StrEnum
from typing import Any, NewType, Self

import msgspec

from modelkeep.errors import Invalid

Digest = NewType("Digest", str)
"""``sha256:`` followed by 64 lower-case hex digits."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_ROLE = re.compile(r"[a-z][a-z0-9_]{0,39}\Z")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?\Z")


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """The SHA-256 digest of ``data``."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def parse_digest(text: str) -> Digest:
    """Check that ``text`` is a digest. Raises Invalid."""
    if not _DIGEST.match(text):
        raise Invalid(f"{text[:80]!r} is not a digest: expected sha256: and 64 hex digits")
    return Digest(text)


def digest_hex(digest: Digest) -> str:
    """The 64 hex digits of ``digest``."""
    return digest.removeprefix("sha256:")


def digest_bytes(digest: Digest) -> bytes:
    """The 32 bytes of ``digest``."""
    return bytes.fromhex(digest_hex(digest))


def parse_name(text: str, what: str = "name") -> str:
    """Check a name of a model or an account: 1-64 characters of a-z 0-9 . _ -, no dots in a row. Raises Invalid."""
    if not _NAME.match(text) or ".." in text:
        raise Invalid(f"{text[:80]!r} is not a {what}: use 1-64 of a-z 0-9 . _ - and begin and end with a letter or digit")
    return text


def to_json(value: Any) -> bytes:
    """Canonical JSON: sorted keys, no spaces, UTF-8. What is hashed or signed is always these bytes."""
    return msgspec.json.encode(value, order="sorted")


class ReleaseRef(msgspec.Struct, frozen=True, order=True):
    """A released version of a model, written ``name@version``."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``name@version``. Raises Invalid."""
        name, at, version = text.rpartition("@")
        if not at or not re.fullmatch(r"[1-9][0-9]{0,8}", version):
            raise Invalid(f"{text[:80]!r} is not a release: expected name@version, such as credit-risk@1")
        return cls(parse_name(name, "model name"), int(version))


class ReleaseState(StrEnum):
    """Where a release stands; custody/releases holds the transition table."""

    PENDING = "pending"
    PUBLISHED = "published"
    PROMOTED = "promoted"
    QUARANTINED = "quarantined"
    RETIRED = "retired"
    COLLECTED = "collected"


class TensorSpec(msgspec.Struct, frozen=True):
    """Name, Open Inference Protocol datatype (FP32, INT64, BOOL, BYTES ...) and shape (-1 = any) of one tensor."""

    name: str
    datatype: str
    shape: tuple[int, ...]


class ModelSignature(msgspec.Struct, frozen=True):
    """What a model takes and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def parse_role(text: str) -> str:
    """Check the name of a role: 1-40 characters of a-z 0-9 _, beginning with a letter. Raises Invalid."""
    if not _ROLE.match(text):
        raise Invalid(
            f"{text[:80]!r} is not the name of a role: use 1-40 of a-z 0-9 _ and begin with a letter, such as auditor"
        )
    return str(text)


class Role(StrEnum):
    """The roles that the shipped policy knows. What each may do is policy (policy/default.cedar), and so are further roles."""

    DATA_SCIENTIST = "data_scientist"
    ML_ENGINEER = "ml_engineer"
    ANALYST = "analyst"
    ADMIN = "admin"


class Principal(msgspec.Struct, frozen=True):
    """Someone who acts, after authentication.

    ``account``: name; ``subject``: the pseudonym that public records carry; ``credential``: id of the key or session used;
    ``models``: model names that the credential is scoped to, ``actions``: likewise; empty = all. ``strong``: a second factor
    was shown for this credential.
    """

    account: str
    subject: str
    roles: tuple[str, ...]
    credential: str
    models: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()
    strong: bool = False


class Party(msgspec.Struct, frozen=True):
    """Who asks for passkeys: ``id``, a host name; ``origin``, the whole address of the page."""

    id: str
    origin: str


class Resource(msgspec.Struct, frozen=True):
    """A (name, SHA-256 digest) pair that a statement is about."""

    name: str
    digest: Digest


class Statement(msgspec.Struct, frozen=True):
    """One in-toto Statement v1, parsed. ``predicate_type`` is a URI; ``predicate`` is plain JSON data."""

    subject: tuple[Resource, ...]
    predicate_type: str
    predicate: dict[str, Any]


class OpinionVerdict(StrEnum):
    """What another scanner says of a model file. ``FAILED``: nothing that can be relied on, and so not that it is clean."""

    CLEAN = "clean"
    UNCLEAN = "not-clean"
    FAILED = "failed"


class Opinion(msgspec.Struct, frozen=True):
    """What another scanner, ``tool`` in ``version``, says of a model file. ``detail``: why, in a line; "" when it is clean."""

    tool: str
    version: str
    verdict: OpinionVerdict
    detail: str = ""


class Event(msgspec.Struct, frozen=True):
    """Something that happened, for sinks and incidents. ``at``: Unix time in nanoseconds."""

    at: int
    kind: str
    about: str
    detail: str
