"""The local authority and the server context."""

import os
import ssl
from datetime import UTC, datetime, timedelta

import pytest
from certificates import Authority
from cryptography import x509

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.errors import Invalid, NotTrusted

NOW = 1_800_000_000_000_000_000


@pytest.fixture(scope="module")
def authority():
    key = make_authority_key()
    return key, authority_certificate(key, "keep.example/1", NOW)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> str:
    """Both halves in memory; the version that was agreed."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=name)
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return one.version()


def trusting(ca: bytes) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=ca.decode())


def test_clients_that_trust_the_authority_trust_its_servers():
    key = make_authority_key()
    now = int(__import__("time").time() * 1e9)
    ca = authority_certificate(key, "keep", now)
    server = server_context(issue(key, ca, ["localhost", "127.0.0.1", "::1"], now))
    for name in ("localhost", "127.0.0.1", "::1"):
        assert handshake(server, trusting(ca), name) == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, trusting(ca), "elsewhere.example")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(server, trusting(authority_certificate(make_authority_key(), "other", now)), "localhost")


def test_what_the_certificates_say(authority):
    key, ca = authority
    parent = x509.load_pem_x509_certificate(ca)
    chain = x509.load_pem_x509_certificates(issue(key, ca, ["a.example"], NOW).chain)
    assert chain[1] == parent and chain[0].not_valid_after_utc < parent.not_valid_after_utc
    constraints = parent.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert not chain[0].extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    chain[0].verify_directly_issued_by(parent)


def test_no_key_is_left_open_or_shown(authority):
    identity = issue(*authority, ["localhost"], NOW)
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    server_context(identity)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    assert "PRIVATE" not in repr(identity)


@pytest.mark.parametrize("names", [[], ["a b"], ["http://x"], ["ä.example"], [""]])
def test_names_that_are_none(authority, names):
    with pytest.raises(Invalid):
        issue(*authority, names, NOW)


def test_what_does_not_belong_together(authority):
    with pytest.raises(NotTrusted):
        issue(make_authority_key(), authority[1], ["localhost"], NOW)
    with pytest.raises(NotTrusted):
        issue(b"junk", authority[1], ["localhost"], NOW)
    one, two = (issue(*authority, ["localhost"], NOW) for _ in range(2))
    with pytest.raises(NotTrusted):
        server_context(one._replace(key=two.key))


def context_of(issued, server_ca: bytes) -> ssl.SSLContext:
    context = trusting(server_ca)
    if issued is not None:
        context.load_cert_chain(issued.chain, issued.key)
    return context


def exchange(server: ssl.SSLContext, client: ssl.SSLContext) -> bytes | None:
    """Shake hands and read one byte, since a TLS 1.3 client learns late that it was refused; the certificate that was shown."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    two = server.wrap_bio(to_server, to_client, server_side=True)
    for _ in range(4):
        for side in (one, two):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
    return two.getpeercert(True)


def test_client_certificates_are_asked_for_of_their_authorities_and_of_no_others(tmp_path):
    key, now = make_authority_key(), int(datetime.now(UTC).timestamp() * 1e9)
    ca = authority_certificate(key, "keep", now)
    identity = issue(key, ca, ["localhost"], now)
    clients, strangers = Authority(tmp_path / "clients"), Authority(tmp_path / "strangers")
    mine = clients.issue(dns="me")
    optional, required = server_context(identity, clients.pem), server_context(identity, clients.pem, required=True)
    for server in (optional, required):
        assert exchange(server, context_of(mine, ca)) == mine.der
        for bad in (strangers.issue(dns="me"), clients.issue(dns="me", ends=datetime.now(UTC) - timedelta(hours=1))):
            with pytest.raises(ssl.SSLCertVerificationError):
                exchange(server, context_of(bad, ca))
    assert exchange(optional, context_of(None, ca)) is None
    assert exchange(server_context(identity), context_of(mine, ca)) is None  # nobody asked for it
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        exchange(required, context_of(None, ca))


@pytest.mark.parametrize("pem", [b"no PEM", b"\xff", b"-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"])
def test_authorities_of_clients_that_are_none(authority, pem):
    with pytest.raises(Invalid):
        server_context(issue(*authority, ["localhost"], NOW), pem)
