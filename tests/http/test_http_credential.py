"""What came with a request to say who asks."""

import ssl

import pytest
from certificates import Authority
from http_support import Running, drain

from modelkeep.access.presented import Certificate, Presented, Proof
from modelkeep.adapters.tls import Identity, server_context
from modelkeep.errors import Unauthenticated
from modelkeep.http.credential import presented
from modelkeep.http.protocol import Request, Response

SHOWN = Certificate(b"\1" * 32, (), 2_000_000_000)


def asked(certificate=None, **headers):
    found = {name.encode(): value for name, value in headers.items()}
    return presented(Request(b"POST", b"/v2/x?y", found, b"", "192.0.2.1", certificate))


def test_forms_of_a_credential():
    assert asked(authorization=b"Bearer abc ") == Presented("abc", "192.0.2.1")
    assert asked(authorization=b"bEARER abc", dpop=b"ignored") == Presented("abc", "192.0.2.1")
    assert asked(SHOWN, authorization=b"Bearer abc") == Presented("abc", "192.0.2.1", SHOWN)
    assert asked(SHOWN) == Presented("", "192.0.2.1", SHOWN)
    proof = Proof("a.b.c", b"POST", b"keep.example", b"/v2/x?y")
    assert asked(authorization=b"dpop abc", dpop=b"a.b.c", host=b"keep.example") == Presented("abc", "192.0.2.1", None, proof)
    assert asked(authorization=b"DPoP abc").proof == Proof("", b"POST", b"", b"/v2/x?y")


@pytest.mark.parametrize("value", [b"", b"Basic YTpi", b"Bearer", b"DPoP", "Bearer é".encode(), "DPoP é".encode(), b"abc"])
def test_what_is_no_credential(value):
    with pytest.raises(Unauthenticated):
        asked(authorization=value)
    if value:
        with pytest.raises(Unauthenticated):  # nor does a certificate stand in for a header that is wrong
            asked(SHOWN, authorization=value)


def test_what_is_presented_prints_without_its_token():
    assert "abc" not in repr(Presented("abc", "192.0.2.1"))


async def whose(request: Request) -> Response:
    shown = request.certificate
    return Response(200, shown.digest.hex().encode() + b" " + ",".join(shown.names).encode() if shown else b"nobody")


def test_the_certificate_of_the_handshake_comes_with_every_request_of_the_connection(tmp_path):
    servers, clients = Authority(tmp_path / "servers"), Authority(tmp_path / "clients")
    mine, theirs = clients.issue(uri="spiffe://a/b"), servers.issue(dns="localhost", server=True)
    identity = Identity(theirs.chain.read_bytes(), theirs.key.read_bytes())
    seen = []
    door = lambda _method, _headers, certificate, _address: seen.append(certificate)  # noqa: E731
    running = Running(whose, door, tls=server_context(identity, clients.pem))
    trust = ssl.create_default_context(cadata=servers.pem.decode())
    try:
        for certificate, said in ((mine, b"uri:spiffe://a/b"), (None, b"nobody")):
            if certificate:
                trust.load_cert_chain(certificate.chain, certificate.key)
            else:
                trust = ssl.create_default_context(cadata=servers.pem.decode())
            with running.connect() as plain, trust.wrap_socket(plain, server_hostname="localhost") as connection:
                connection.sendall(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
                assert drain(connection).count(said) == 2
    finally:
        running.stop()
    assert [one is not None for one in seen] == [True, True, False, False] and running.errors == []


def test_a_dpop_header_stands_once():
    running = Running(linger_seconds=0.2)
    try:
        answer = running.ask(b"GET / HTTP/1.1\r\nhost: x\r\ndpop: a\r\ndpop: b\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400") and b"dpop stands twice" in answer
    finally:
        running.stop()
