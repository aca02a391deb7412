"""TLS for servers: a local certificate authority, a certificate from it, and a context that speaks TLS 1.3 and nothing else.

The authority's key comes from the key ring and leaves it only to issue; a server's own key is made at start, lives in memory
and is handed to OpenSSL through an anonymous memory file, so that no private key is written to disk.
"""

import contextlib
import ipaddress
import os
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_der_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from modelkeep.core.hidden import never_pickled
from modelkeep.errors import Invalid, NotTrusted, Unavailable

CA_YEARS = 10
LEAF_DAYS = 90
Version = Literal["1.3", "1.2"]
_VERSIONS = {"1.3": ssl.TLSVersion.TLSv1_3, "1.2": ssl.TLSVersion.TLSv1_2}
_CIPHERS_12 = "ECDHE+AESGCM:ECDHE+CHACHA20"
_BACKDATE = timedelta(hours=1)  # clients whose clock is a little behind


@never_pickled
class Identity(NamedTuple):
    """A server's certificate chain and its private key, both PEM."""

    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Identity(…)"


def make_authority_key() -> bytes:
    """A new P-256 key for a local authority, PKCS #8 DER: what the ``tls-ca`` compartment keeps."""
    key = ec.generate_private_key(ec.SECP256R1())
    return key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def authority_certificate(key: bytes, origin: str, now_ns: int) -> bytes:
    """The authority's own certificate, PEM: what clients are given to trust. ``key``: PKCS #8 DER. Raises NotTrusted."""
    private = _load(key)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"modelkeep authority of {origin}"[:64])])
    now = _time(now_ns)
    usage = x509.KeyUsage(
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=True,
        crl_sign=True,
        encipher_only=False,
        decipher_only=False,
    )
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(now + timedelta(days=365 * CA_YEARS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
        .sign(private, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.PEM)


def issue(key: bytes, authority: bytes, names: Sequence[str], now_ns: int, *, days: int = LEAF_DAYS) -> Identity:
    """A fresh key and a certificate for ``names`` (host names and addresses) from the authority.

    ``key``: the authority's, PKCS #8 DER; ``authority``: its certificate, PEM. Raises Invalid (no names, or one that is none),
    NotTrusted (key and certificate do not belong together).
    """
    signer, parent = _load(key), _certificate(authority)
    if parent.public_key() != signer.public_key():
        raise NotTrusted("the certificate of the local authority does not belong to its key: restore ca.pem")
    if not names:
        raise Invalid("a certificate needs at least one host name or address")
    alternatives = [_name(name) for name in names]
    private, now = ec.generate_private_key(ec.SECP256R1()), _time(now_ns)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])]))
        .issuer_name(parent.subject)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _BACKDATE)
        .not_valid_after(min(now + timedelta(days=days), parent.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
        .sign(signer, hashes.SHA256())
    )
    secret = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return Identity(certificate.public_bytes(Encoding.PEM) + first_certificate(authority), secret)


def throwaway(names: Sequence[str], now_ns: int) -> Identity:
    """A certificate for ``names`` that nobody trusts, from an authority that nobody keeps: for a server without keys."""
    key = make_authority_key()
    return issue(key, authority_certificate(key, "a sealed keep", now_ns), names, now_ns)


def first_certificate(pem: bytes) -> bytes:
    """The first certificate of a PEM file, alone. Raises Invalid."""
    return _certificate(pem).public_bytes(Encoding.PEM)


def belongs(key: bytes, authority: bytes) -> bool:
    """Whether the first certificate in ``authority`` (PEM) is that of ``key`` (PKCS #8 DER). Raises Invalid, NotTrusted."""
    return _certificate(authority).public_key() == _load(key).public_key()


def server_context(
    identity: Identity, clients: bytes = b"", required: bool = False, *, speaks: str = "http/1.1", minimum: Version = "1.3"
) -> ssl.SSLContext:
    """A server context for ``identity``: TLS 1.3 only, unless ``minimum`` lets TLS 1.2 in.

    TLS 1.2 then has forward secrecy and authenticated encryption or is not spoken, and no tickets, whose one key would undo the
    former (RFC 9325, sections 3.4 and 4.2). ``clients``: the authorities whose client certificates count, PEM; empty = none is
    asked for; ``required``: nobody comes in without one; ``speaks``: the protocol that is offered (ALPN). Raises NotTrusted
    (key and certificate do not belong together), Invalid (``clients`` is no PEM).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = _VERSIONS[minimum]
    if minimum == "1.2":
        context.set_ciphers(_CIPHERS_12)
        context.options |= ssl.OP_NO_TICKET
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols([speaks])
    with _in_memory(identity.chain) as chain, _in_memory(identity.key) as key:
        try:
            context.load_cert_chain(chain, key)
        except OSError as cause:  # ssl.SSLError, or what reading from a pipe left in errno before OpenSSL refused
            why = cause.reason if isinstance(cause, ssl.SSLError) else "they are malformed, or of two pairs"
            raise NotTrusted(f"the TLS certificate and its key cannot be used together: {why}") from None
    if clients:
        try:
            context.load_verify_locations(cadata=clients.decode("ascii"))
        except (ssl.SSLError, UnicodeDecodeError) as cause:
            raise Invalid("the authorities of client certificates are not certificates in PEM form") from cause
        context.verify_mode = ssl.CERT_REQUIRED if required else ssl.CERT_OPTIONAL
    return context


@contextmanager
def _in_memory(data: bytes) -> Iterator[str]:
    """A path that reads ``data`` and is backed by no disk."""
    try:
        fd = os.memfd_create("modelkeep", os.MFD_CLOEXEC)
    except OSError as cause:
        raise Unavailable(f"cannot hold a TLS key in memory: {cause.strerror}") from cause
    try:
        os.write(fd, data)
        path = f"/proc/self/fd/{fd}"
        if os.access(path, os.R_OK):
            yield path
            return
    finally:
        os.close(fd)
    with _in_passing(data) as path:
        yield path


@contextmanager
def _in_passing(data: bytes) -> Iterator[str]:
    """The same for a hardened process, which may not look into its own /proc: a named pipe that only this user can open."""
    with TemporaryDirectory(prefix="mk-") as folder:
        path = f"{folder}/pem"
        os.mkfifo(path, 0o600)
        writer = threading.Thread(target=_write_once, args=(path, data), daemon=True)
        writer.start()
        try:
            yield path
        finally:  # frees a writer whom nobody read
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            writer.join()


def _write_once(path: str, data: bytes) -> None:
    with contextlib.suppress(BrokenPipeError), open(path, "wb") as pipe:  # noqa: PTH123
        pipe.write(data)


def _load(key: bytes) -> ec.EllipticCurvePrivateKey:
    try:
        loaded = load_der_private_key(key, None)
    except ValueError as cause:
        raise NotTrusted("the key of the local authority is damaged") from cause
    if not isinstance(loaded, ec.EllipticCurvePrivateKey):
        raise NotTrusted("the key of the local authority is not an elliptic-curve key")
    return loaded


def _certificate(pem: bytes) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as cause:
        raise Invalid("this is not a certificate in PEM form") from cause


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    if not text or not text.isascii() or any(c in text for c in " /\\@:"):
        raise Invalid(f"{text[:80]!r} is neither a host name nor an address") from None
    return x509.DNSName(text)


def _time(now_ns: int) -> datetime:
    return datetime.fromtimestamp(now_ns // 1_000_000_000, UTC)
