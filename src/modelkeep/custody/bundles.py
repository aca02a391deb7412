"""The JSON of an OpenSSF model signature, parsed strictly: shapes only, nothing here is verified.

Source: Sigstore bundle v0.3 (github.com/sigstore/protobuf-specs, ``sigstore_bundle.proto``), in-toto Statement v1, and the
predicate ``https://model_signing/signature/v1.0``. A field that these shapes do not know is refused, except in the predicate,
whose version 1.0 asks that it be ignored.
"""

import json
from base64 import b64decode
from binascii import Error as Base64Error
from typing import Any, TypeVar

import msgspec

from modelkeep.errors import Invalid, TooLarge

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PREDICATE_TYPE = "https://model_signing/signature/v1.0"
MAX_BUNDLE = 64 << 20
"""Bytes; some 200,000 files."""


class PublicKeyHint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which bare key signed. Older versions carry the key itself (``raw_bytes``), which proves nothing and is not used."""

    hint: str | None = None
    raw_bytes: str = ""
    key_details: str | int = ""


class Material(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What to verify with. One of the first three is set; only ``public_key`` is supported."""

    public_key: PublicKeyHint | None = None
    x509_certificate_chain: Any = None
    certificate: Any = None
    tlog_entries: tuple[Any, ...] = ()
    timestamp_verification_data: Any = None


class BundleSignature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The signature, base64; ``keyid`` is not used."""

    sig: str
    keyid: str | None = None


class BundleEnvelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A DSSE envelope with the one signature that a Sigstore bundle may have."""

    payload: str
    payload_type: str
    signatures: tuple[BundleSignature]


class Bundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """A Sigstore bundle."""

    media_type: str
    verification_material: Material
    dsse_envelope: BundleEnvelope


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The model: its name, and the SHA-256 of its files' digests one after another."""

    name: str
    digest: dict[str, str]


class SignedResource(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: relative path and hex digest."""

    name: str
    algorithm: str
    digest: str


class Serialization(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the model was turned into a list of files."""

    method: str
    hash_type: str
    allow_symlinks: bool = False
    ignore_paths: tuple[str, ...] = ()
    shard_size: Any = None


class Predicate(msgspec.Struct, frozen=True):
    """The files of a model."""

    serialization: Serialization
    resources: tuple[SignedResource, ...]


class ModelStatement(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename={"kind": "_type", "predicate_type": "predicateType"}
):
    """An in-toto statement, its predicate still as plain data."""

    kind: str
    subject: tuple[Subject, ...]
    predicate_type: str
    predicate: dict[str, Any]


T = TypeVar("T")


def parse_bundle(data: bytes) -> Bundle:
    """Raises Invalid: not a bundle v0.3; TooLarge."""
    if len(data) > MAX_BUNDLE:
        raise TooLarge(f"an OpenSSF bundle has at most {MAX_BUNDLE >> 20} MiB, and this has {len(data):,} bytes")
    bundle = shaped(strict_json(data), Bundle)
    if bundle.media_type != MEDIA_TYPE:
        raise Invalid(f"this is not a Sigstore bundle v0.3: its media type is {bundle.media_type[:80]!r}")
    return bundle


def shaped(data: Any, kind: type[T]) -> T:
    """Plain data as a ``kind``. Raises Invalid."""
    try:
        return msgspec.convert(data, kind)
    except msgspec.ValidationError as cause:
        raise Invalid(f"this is not an OpenSSF bundle that modelkeep reads: {_line(cause)[:200]}") from cause


def strict_json(data: bytes) -> Any:
    """The JSON in ``data``, if no object in it has a key twice and no string half a character. Raises Invalid."""
    try:
        msgspec.json.decode(data)  # knows half characters, and no key that stands twice
        return json.loads(data.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as cause:
        raise Invalid(f"this is not the JSON of an OpenSSF bundle: {_line(cause)[:100]}") from cause


def _line(cause: Exception) -> str:
    """What ``cause`` says, in one line: it may quote a name out of the file."""
    return str(cause).encode("unicode_escape").decode()


def from_base64(text: str) -> bytes:
    """Standard base64, nothing else. Raises Invalid."""
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, ValueError) as cause:
        raise Invalid("the OpenSSF bundle carries something that is not standard base64") from cause


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
