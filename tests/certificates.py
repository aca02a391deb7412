"""An authority for client certificates, and certificates from it, as files."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID


@dataclass(frozen=True)
class Issued:
    """A certificate and the files that hold it and its key."""

    certificate: x509.Certificate
    chain: Path
    key: Path

    @property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)


class Authority:
    """Makes certificates. ``pem``: its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder, self._key, self._count = folder, ec.generate_private_key(ec.SECP256R1()), 0
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clients")])
        built = self._builder(self.name, self._key.public_key(), datetime.now(UTC) + timedelta(days=30))
        built = built.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        self.pem = built.sign(self._key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def issue(self, *, uri: str = "", dns: str = "", ends: datetime | None = None, server: bool = False) -> Issued:
        """A certificate for a client, or for a ``server``, with these subject alternative names."""
        self._count += 1
        key, name = ec.generate_private_key(ec.SECP256R1()), f"client-{self._count}"
        built = self._builder(
            x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]),
            key.public_key(),
            ends or datetime.now(UTC) + timedelta(days=1),
        )
        names = [x509.UniformResourceIdentifier(uri)] * bool(uri) + [x509.DNSName(dns)] * bool(dns)
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        built = built.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        built = built.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        found = built.sign(self._key, hashes.SHA256())
        chain, secret = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        chain.write_bytes(found.public_bytes(Encoding.PEM))
        secret.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return Issued(found, chain, secret)

    def _builder(self, subject: x509.Name, public, ends: datetime) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(datetime.now(UTC) - timedelta(days=1))
            .not_valid_after(ends)
        )
