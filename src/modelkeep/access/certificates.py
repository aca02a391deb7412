"""Client certificates as credentials of their own: which account a certificate speaks for.

A certificate is named by its SHA-256 (this one and no other) or by a subject alternative name (whichever the client authority
gave that name). The chain was checked in the TLS handshake; what it opens here is a record, which ends with its expiry, with
the certificate's or when it is removed, whichever comes first. Revocation lists are not read: removing the record is quicker.
"""

import hashlib
import re

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from modelkeep.access.credentials import LARGEST_QUOTA, LONGEST_LIFETIME, KeyTerms
from modelkeep.access.presented import Certificate
from modelkeep.core.ports import Change, Clock, Entropy, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import parse_name, to_json
from modelkeep.errors import Invalid, NotTrusted

CERTIFICATE = "certificate"
"""Record kind, signed; the key is the certificate's name, see ``certificate_name``."""
REMOVED = "certificate-removed"
"""Record kind; the key is the ``quota_id`` of a certificate that speaks for nobody any more, its body is empty. The name may be
that of a person, so an erasure leaves nothing else: a process that missed the removal drops the certificate all the same."""

LONGEST_NAME = 300
_NAMES = re.compile(r"(sha256:[0-9a-f]{64}|uri:[\x21-\x7e]+|dns:[a-z0-9.*-]+)\Z")


class CertificateKey(msgspec.Struct, frozen=True, kw_only=True):
    """What a certificate is good for. ``models``: names it is scoped to, empty = all. ``quota``: requests in all, None = no
    quota, counted under ``quota_id``, which is logged and says nothing of the name. ``created``, ``expires``: Unix seconds."""

    name: str
    account: str
    created: int
    expires: int
    quota: int | None
    quota_id: str
    models: tuple[str, ...] = ()


def client_certificate(der: bytes) -> Certificate:
    """The parts of a certificate (DER) that count. Raises Invalid (it cannot be read)."""
    try:
        found = x509.load_der_x509_certificate(der)
        expires = int(found.not_valid_after_utc.timestamp())
        names = _alternative_names(found)
    except (ValueError, x509.DuplicateExtension) as cause:
        raise Invalid("the client certificate cannot be read") from cause
    return Certificate(hashlib.sha256(der).digest(), names, expires)


def _alternative_names(certificate: x509.Certificate) -> tuple[str, ...]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    uris = [f"uri:{name}" for name in found.get_values_for_type(x509.UniformResourceIdentifier)]
    return (*uris, *(f"dns:{name.lower()}" for name in found.get_values_for_type(x509.DNSName)))


def certificate_name(text: str) -> str:
    """What a certificate is named by: its PEM, or ``sha256:<hex>``, ``uri:<URI>``, ``dns:<name>``. Raises Invalid."""
    if "-----BEGIN CERTIFICATE-----" in text:
        try:
            der = x509.load_pem_x509_certificate(text.encode()).public_bytes(Encoding.DER)
        except ValueError as cause:
            raise Invalid("this is not a certificate in PEM form") from cause
        return f"sha256:{hashlib.sha256(der).hexdigest()}"
    if not _NAMES.match(text) or len(text) > LONGEST_NAME:
        raise Invalid(f"{text[:80]!r} names no certificate: use sha256:<64 hex digits>, uri:<URI>, dns:<name>, or a PEM file")
    return text


def certificate_digest(text: str) -> str:
    """The SHA-256 of the one certificate that ``text`` means, hex: its PEM or ``sha256:<hex>``. Raises Invalid."""
    name = certificate_name(text)
    if not name.startswith("sha256:"):
        raise Invalid("this takes one certificate, and a name may stand in many: give its PEM, or sha256:<64 hex digits>")
    return name.removeprefix("sha256:")


def add_certificate(
    account: str, name: str, terms: KeyTerms, *, entropy: Entropy, clock: Clock
) -> tuple[CertificateKey, list[Change]]:
    """Let a certificate speak for ``account``. Raises Invalid. (The commit raises Conflict if it speaks for one already.)"""
    name = certificate_name(name)
    if not 1 <= terms.lifetime <= LONGEST_LIFETIME or (terms.quota is not None and not 1 <= terms.quota <= LARGEST_QUOTA):
        raise Invalid("a certificate is good for one second to ten years, and its quota is one request or more, below 2^53")
    for model in terms.models:
        parse_name(model, "model name")
    now = clock.now_ns() // 1_000_000_000
    made = CertificateKey(
        name=name,
        account=account,
        created=now,
        expires=now + terms.lifetime,
        quota=terms.quota,
        quota_id=f"certificate:{entropy.token(8).hex()}",
        models=tuple(sorted(set(terms.models))),
    )
    return made, [Change(CERTIFICATE, name, to_json(made), 0)]


def remove_certificate(record: Record) -> tuple[CertificateKey, list[Change]]:
    """Let a certificate speak for nobody any more. Raises NotTrusted (damaged)."""
    found = parse_certificate(record)
    return found, [Change(CERTIFICATE, record.key, None, record.revision), Change(REMOVED, found.quota_id, b"{}")]


def parse_certificate(record: Record) -> CertificateKey:
    """Decode a certificate's record. Raises NotTrusted (damaged)."""
    found = parse_record(record, CertificateKey, f"certificate {record.key!r}")
    if found.name != record.key:
        raise NotTrusted(f"the record of certificate {record.key!r} is of another: restore it from a backup")
    return found
