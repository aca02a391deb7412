"""The local authority and the server context."""

import os
import ssl

import pytest
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
