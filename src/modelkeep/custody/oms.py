"""OpenSSF model signatures: write them with a P-256 key, and check the ones that ``model_signing`` writes.

A signature is a Sigstore bundle (v0.3, JSON) of the method "key": a DSSE envelope with one ECDSA signature over an in-toto
statement whose predicate names every file of the model with its digest. It is not post-quantum. ``docs/formats/oms.md``
describes every field, and what is refused that the reference tool takes.
Source: OpenSSF Model Signing specification 1.0 (github.com/ossf/model-signing-spec) and model_signing 1.1.1.
"""

import hashlib
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import blake3
import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    ECDSA,
    SECP256R1,
    SECP384R1,
    SECP521R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.hashes import SHA256, SHA384, SHA512, HashAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
    load_der_public_key,
    load_pem_public_key,
)

from modelkeep.core.hidden import never_pickled
from modelkeep.core.values import Digest, digest_hex, to_json
from modelkeep.crypto.dsse import pae
from modelkeep.custody.bundles import (
    MEDIA_TYPE,
    PREDICATE_TYPE,
    ModelStatement,
    Predicate,
    Serialization,
    SignedResource,
    Subject,
    from_base64,
    parse_bundle,
    shaped,
    strict_json,
)
from modelkeep.custody.keys import COMPROMISED, OMS_SIGNING, KeyVersion
from modelkeep.custody.trust import TrustedOmsKey
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.statements import PAYLOAD_TYPE, STATEMENT_TYPE

WHOLE = "."
"""The name of the only resource when the model is one file."""
HASHES: dict[str, tuple[Callable[[], Any], int]] = {
    "sha256": (hashlib.sha256, 32),
    "blake2b": (hashlib.blake2b, 64),
    "blake3": (blake3.blake3, 32),
}
"""Digests of files by the name that a signature gives them: how to begin one, and its size in bytes."""
_CURVES: dict[str, HashAlgorithm] = {SECP256R1.name: SHA256(), SECP384R1.name: SHA384(), SECP521R1.name: SHA512()}


class BundleKey(msgspec.Struct, frozen=True):
    """A public key that checks signatures: ``spki``, its SubjectPublicKeyInfo as DER, on P-256, P-384 or P-521."""

    spki: bytes

    def __post_init__(self) -> None:
        self._loaded()

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Read a PEM public key. Raises Invalid: not one, or not on a curve that model signatures use."""
        try:
            found = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as cause:
            raise Invalid("this is not a public key in PEM") from cause
        return cls(found.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    @property
    def pem(self) -> bytes:
        """The key as PEM, which ``model_signing verify key --public_key`` reads."""
        return self._loaded().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @property
    def hint(self) -> str:
        """What a bundle calls the key by: the SHA-256 of its PEM, in hex."""
        return hashlib.sha256(self.pem).hexdigest()

    def check(self, message: bytes, signature: bytes) -> None:
        """Check an ECDSA signature, ASN.1 DER. Raises NotTrusted."""
        key = self._loaded()
        try:
            key.verify(signature, message, ECDSA(_CURVES[key.curve.name]))
        except InvalidSignature as cause:
            raise NotTrusted("the signature of the OpenSSF bundle does not hold") from cause

    def _loaded(self) -> EllipticCurvePublicKey:
        try:
            key = load_der_public_key(self.spki)
        except (ValueError, UnsupportedAlgorithm) as cause:
            raise Invalid("a key that checks OpenSSF signatures is damaged") from cause
        if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
            raise Invalid("OpenSSF signatures are checked with a key on the curve P-256, P-384 or P-521, which this is not")
        return key


@never_pickled
class BundleSigner:
    """The P-256 key that signs models. Its representation shows no secret."""

    __slots__ = ("_key", "public")

    def __init__(self, pkcs8: bytes) -> None:
        """``pkcs8``: a P-256 private key as PKCS #8 DER. Raises Invalid."""
        try:
            key = load_der_private_key(pkcs8, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # `from None`: the cause could quote the key
            raise Invalid("the key of oms-signing is damaged") from None
        if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name != SECP256R1.name:
            raise Invalid("the key of oms-signing is not on the curve P-256")
        self._key = key
        self.public = BundleKey(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))

    def __repr__(self) -> str:
        return f"BundleSigner({self.public.hint[:16]}…)"

    def sign(self, name: str, files: Mapping[str, Digest]) -> bytes:
        """A bundle over the model ``name``; the same model gives the same bytes (RFC 6979).

        ``files``: SHA-256 by relative path with ``/``, or ``{WHOLE: digest}`` for a model of one file. Raises Invalid.
        """
        payload = _statement(name, files)
        signature = self._key.sign(pae(PAYLOAD_TYPE, payload), ECDSA(SHA256(), deterministic_signing=True))
        envelope = {
            "payload": b64encode(payload).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": b64encode(signature).decode(), "keyid": ""}],
        }
        material = {"publicKey": {"hint": self.public.hint}, "tlogEntries": []}
        return to_json({"mediaType": MEDIA_TYPE, "verificationMaterial": material, "dsseEnvelope": envelope})


class SignedModel(msgspec.Struct, frozen=True):
    """What a bundle says of a model, once its signature was seen to hold.

    ``name`` is what the signer called it and binds nothing; ``files``: digests in hex by relative path, or under ``WHOLE``;
    ``ignored``: relative paths that were not signed, folders with all that is in them; ``key``: the one that signed.
    """

    name: str
    algorithm: str
    files: dict[str, str]
    ignored: tuple[str, ...]
    symlinks: bool
    key: BundleKey

    @property
    def whole(self) -> bool:
        """Whether the model is one file rather than a folder."""
        return WHOLE in self.files

    def ignores(self, path: str) -> bool:
        """Whether the signer left ``path`` out, or a folder that it lies in."""
        return any(path == left or path.startswith(f"{left}/") for left in self.ignored)

    def check(self, found: Mapping[str, str]) -> None:
        """Check that ``found``, digests in hex by path, is the model that was signed, no file more or less.

        Raises NotTrusted, naming the first difference.
        """
        for path, digest in sorted(self.files.items()):
            shown = self.name if path == WHOLE else path
            if path not in found:
                raise NotTrusted(f"{shown[:200]!r} was signed and is not there")
            if found[path] != digest:
                raise NotTrusted(f"{shown[:200]!r} is not the file that was signed: its {self.algorithm} digest is another")
        extra = sorted(set(found) - set(self.files))
        if extra:
            raise NotTrusted(f"{extra[0][:200]!r} was not signed")


def open_bundle(data: bytes, *keys: BundleKey) -> SignedModel:
    """Check the signature of a bundle with one of ``keys``, and read what it says.

    Raises Invalid (not a bundle, too large), NotTrusted (another key, a signature that does not hold, a certificate instead of
    a key, or a statement that modelkeep does not take).
    """
    bundle = parse_bundle(data)
    material = bundle.verification_material
    if material.x509_certificate_chain is not None or material.certificate is not None:
        raise NotTrusted(
            "this bundle is signed with a certificate, which is not supported: 'model_signing verify certificate' or "
            "'model_signing verify sigstore' checks it"
        )
    if material.public_key is None:
        raise NotTrusted("this bundle names no key that signed it")
    if material.tlog_entries or material.timestamp_verification_data:
        raise NotTrusted(
            "this bundle carries transparency-log entries or timestamps, which are not supported beside a bare key"
        )
    hint = material.public_key.hint or ""
    chosen = [key for key in keys if not hint or hint == key.hint]
    if not chosen:
        raise NotTrusted(f"this bundle was made with another key ({hint[:16]}…) than the {len(keys)} given to check it with")
    envelope = bundle.dsse_envelope
    if envelope.payload_type != PAYLOAD_TYPE:
        raise NotTrusted(f"the bundle signs {envelope.payload_type[:80]!r}, not {PAYLOAD_TYPE!r}")
    (signature,) = envelope.signatures
    payload = from_base64(envelope.payload)
    signer = _first_that_holds(chosen, pae(PAYLOAD_TYPE, payload), from_base64(signature.sig))
    return _read_statement(payload, signer)


def bundle_keys(
    known: Iterable[TrustedOmsKey], origin: str, versions: Iterable[KeyVersion], log_size: int
) -> tuple[TrustedOmsKey, ...]:
    """What the trust root says of the keys of ``oms-signing``: a new version joins, a compromised one ends at ``log_size``."""
    found = {key.name: key for key in known}
    for version in versions:
        name = f"{origin}/{OMS_SIGNING}/{version.version}"
        if name not in found and version.material:
            found[name] = TrustedOmsKey(name, BundleSigner(version.material["key"]).public.spki)
        if name in found and version.state == COMPROMISED and found[name].until is None:
            found[name] = msgspec.structs.replace(found[name], until=log_size)
    return tuple(found.values())


def signed_by(data: bytes) -> str:
    """The hint of the key that a bundle names, which nobody has vouched for; "" when it names none. Raises Invalid."""
    named = parse_bundle(data).verification_material.public_key
    return (named.hint if named else None) or ""


def _statement(name: str, files: Mapping[str, Digest]) -> bytes:
    if not files or (WHOLE in files and len(files) > 1) or not name:
        raise Invalid("a model signature needs a name, and one file or the files of a folder")
    for path in files:
        if path != WHOLE and not _plain(path):
            raise Invalid(f"{path[:200]!r} is not a relative path and cannot be signed")
    ordered = sorted(files.items(), key=lambda item: item[0].split("/"))  # as the reference tool sorts paths
    root = hashlib.sha256(b"".join(bytes.fromhex(digest_hex(digest)) for _, digest in ordered)).hexdigest()
    resources = [{"name": path, "algorithm": "sha256", "digest": digest_hex(digest)} for path, digest in ordered]
    serialization = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
    return to_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": root}}],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"serialization": serialization, "resources": resources},
        }
    )


def _first_that_holds(keys: list[BundleKey], message: bytes, signature: bytes) -> BundleKey:
    for key in keys[:-1]:
        try:
            key.check(message, signature)
        except NotTrusted:
            continue
        return key
    keys[-1].check(message, signature)
    return keys[-1]


def _read_statement(payload: bytes, key: BundleKey) -> SignedModel:
    try:
        statement = shaped(strict_json(payload), ModelStatement)
        if statement.kind != STATEMENT_TYPE or statement.predicate_type != PREDICATE_TYPE:
            found = statement.predicate_type if statement.kind == STATEMENT_TYPE else statement.kind
            raise NotTrusted(f"the bundle signs a {found[:80]!r}, not a {PREDICATE_TYPE!r}: sign the model again")
        predicate = shaped(statement.predicate, Predicate)
    except Invalid as cause:
        raise NotTrusted(f"what the bundle signs is not a statement that modelkeep reads: {cause}") from cause
    algorithm = _algorithm(predicate.serialization)
    files = _files(predicate.resources, algorithm)
    ignored = predicate.serialization.ignore_paths
    unsafe = [path for path in ignored if not _plain(path)]
    if unsafe:
        raise NotTrusted(f"the signature leaves out {unsafe[0][:200]!r}, which is not a path within the model")
    name = _subject(statement.subject, predicate.resources)
    signed = SignedModel(name, algorithm, files, ignored, predicate.serialization.allow_symlinks, key)
    both = next((path for path in files if signed.ignores(path)), None)
    if both is not None:
        raise NotTrusted(f"the signature both signs {both[:200]!r} and leaves it out")
    return signed


def _algorithm(said: Serialization) -> str:
    if said.method != "files":
        raise NotTrusted(f"the files were signed by the method {said.method[:40]!r}; sign them again with file serialization")
    if said.shard_size is not None or said.hash_type not in HASHES:
        raise NotTrusted(f"the files were hashed with {said.hash_type[:40]!r}; modelkeep knows {', '.join(HASHES)}")
    return said.hash_type


def _files(resources: tuple[SignedResource, ...], algorithm: str) -> dict[str, str]:
    files: dict[str, str] = {}
    for resource in resources:
        if resource.algorithm != algorithm or not _is_hex(resource.digest, HASHES[algorithm][1]):
            raise NotTrusted(f"the signature gives {resource.name[:200]!r} something else than a {algorithm} digest")
        if resource.name in files:
            raise NotTrusted(f"the signature names {resource.name[:200]!r} twice")
        if resource.name != WHOLE and not _plain(resource.name):
            raise NotTrusted(f"the signature names {resource.name[:200]!r}, which is not a path within the model")
        files[resource.name] = resource.digest
    if not files:
        raise NotTrusted("the signature names no file at all")
    if WHOLE in files and len(files) > 1:
        raise NotTrusted("the signature names a whole model and files of it besides")
    return files


def _subject(subjects: tuple[Subject, ...], resources: tuple[SignedResource, ...]) -> str:
    root = hashlib.sha256(b"".join(bytes.fromhex(resource.digest) for resource in resources)).hexdigest()
    if len(subjects) != 1 or subjects[0].digest != {"sha256": root}:
        raise NotTrusted("the signature contradicts itself: its subject is not the digest of the files that it names")
    return subjects[0].name


def _plain(path: str) -> bool:
    """Whether ``path`` is relative, in its shortest form, and stays within the model's folder."""
    return "\0" not in path and all(part not in {"", ".", ".."} for part in path.split("/"))


def _is_hex(text: str, size: int) -> bool:
    return len(text) == 2 * size and all(digit in "0123456789abcdef" for digit in text)
