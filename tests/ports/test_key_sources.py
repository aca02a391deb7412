"""Reading an issuer's keys: a real provider, and servers that do everything wrong."""

import json
import ssl
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from identity import RESOURCE, Provider, ec_key, private_jwk, public_jwk

from modelkeep.access.issuerkeys import IssuerKeys
from modelkeep.access.issuers import Issuer, Issuers, IssuerTerms, check_claims
from modelkeep.adapters.identity import oidc
from modelkeep.adapters.identity.oidc import DISCOVERY, MAX_BYTES, HttpKeySource, check_address
from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.core.ports import KeySource
from modelkeep.errors import Invalid, NotTrusted, Unauthenticated, Unavailable

KEYS = json.dumps({"keys": [public_jwk(ec_key(), "one")]}).encode()


@contextmanager
def serving(answer, tls=None):
    """A server that answers as ``answer(handler)`` does; yields its address, and the paths it was asked for."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            answer(self)

        def log_message(self, *_):
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"{'https' if tls else 'http'}://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def say(body, status=200, **headers):
    def answer(handler):
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def discovered(issuer=None, jwks=None):
    """A discovery document for whoever is asked, and the keys."""

    def answer(handler):
        here = f"http://{handler.headers['host']}"
        if handler.path.endswith(DISCOVERY):
            document = {"issuer": here if issuer is None else issuer, "jwks_uri": jwks or here + "/keys", "more": [1]}
            say(json.dumps(document).encode())(handler)
        else:
            say(KEYS)(handler)

    return answer


def test_it_is_the_port():
    source: KeySource = HttpKeySource("https://login.example")
    assert "login.example" in repr(source)


def test_keys_are_where_the_discovery_document_says():
    with serving(discovered()) as (url, asked):
        assert HttpKeySource(url, plain=True).fetch() == KEYS
    assert asked == [DISCOVERY, "/keys"]


def test_keys_are_where_the_setting_says_and_nothing_is_discovered():
    with serving(say(KEYS)) as (url, asked):
        assert HttpKeySource("https://login.example", url + "/jwks", plain=True).fetch() == KEYS
    assert asked == ["/jwks"]


@pytest.mark.parametrize("other", ["https://evil.example", "", "http://127.0.0.1"])
def test_a_discovery_document_of_another_issuer_is_not_believed(other):
    with serving(discovered(issuer=other)) as (url, asked):
        with pytest.raises(NotTrusted):
            HttpKeySource(url, plain=True).fetch()
        with pytest.raises(NotTrusted):
            HttpKeySource(url + "/", plain=True).fetch()
    assert set(asked) == {DISCOVERY}


@pytest.mark.parametrize(
    "jwks",
    ["http://192.0.2.1/keys", "file:///etc/passwd", "https://", "ftp://a/b", "keys", "https://a:b@c/d", "http://[", "//x"],
)
def test_a_discovery_document_leads_nowhere_but_to_https(jwks):
    with serving(discovered(jwks=jwks)) as (url, _), pytest.raises(Invalid):
        HttpKeySource(url, plain=True).fetch()


BAD = {
    "404": say(b"{}", 404),
    "a redirect": say(b"", 302, location="http://127.0.0.1:1/keys"),
    "nothing modified": say(b"", 304),
    "too much": say(b" " * (MAX_BYTES + 1)),
    "no HTTP": lambda handler: handler.wfile.write(b"\0\1\2\3\r\n\r\n"),
    "cut": lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nshort"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_answer_is_unavailable(what):
    with serving(BAD[what]) as (url, asked):
        with pytest.raises(Unavailable):
            HttpKeySource("https://login.example", url, plain=True).fetch()
        assert len(asked) == 1


@pytest.mark.parametrize("document", [b"", b"[]", b"{", b'{"issuer":7}', b"\xff", b"[" * 5_000])
def test_a_bad_discovery_document_is_unavailable(document):
    with serving(say(document)) as (url, _), pytest.raises(Unavailable):
        HttpKeySource(url, plain=True).fetch()


def test_one_that_answers_drop_by_drop_is_left(monkeypatch):
    monkeypatch.setattr(oidc, "WHOLE_SECONDS", 1.0)
    over = threading.Event()

    def drip(handler):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
        try:
            while not over.wait(0.05):
                handler.wfile.write(b" ")
        except OSError:
            return

    with serving(drip) as (url, _):
        with pytest.raises(Unavailable, match="too slowly"):
            HttpKeySource("https://login.example", url, plain=True).fetch()
        over.set()


def test_nobody_listens():
    with serving(say(KEYS)) as (url, _):
        pass
    with pytest.raises(Unavailable):
        HttpKeySource("https://login.example", url, plain=True).fetch()


def test_https_with_the_authority_of_the_setting_and_with_no_other(tmp_path):
    now = time.time_ns()
    key = make_authority_key()
    pem = authority_certificate(key, "login.example", now)
    (tmp_path / "ca.pem").write_bytes(pem)
    (tmp_path / "other.pem").write_bytes(authority_certificate(make_authority_key(), "else", now))
    tls = server_context(issue(key, pem, ["127.0.0.1"], now))
    tls.minimum_version = ssl.TLSVersion.TLSv1_2
    with serving(say(KEYS), tls) as (url, _):
        assert HttpKeySource("https://login.example", url, str(tmp_path / "ca.pem")).fetch() == KEYS
        for ca in (str(tmp_path / "other.pem"), "", str(tmp_path / "missing.pem")):
            with pytest.raises(Unavailable):
                HttpKeySource("https://login.example", url, ca).fetch()
        with pytest.raises(Unavailable):
            HttpKeySource("https://login.example", url.replace("127.0.0.1", "localhost"), str(tmp_path / "ca.pem")).fetch()


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://localhost:1/x", "http://[::1]/"])
def test_http_is_for_this_machine_and_only_if_it_is_allowed(url):
    check_address(url, plain=True)
    with pytest.raises(Invalid):
        check_address(url, plain=False)
    with pytest.raises(Invalid):
        check_address("http://login.example/", plain=True)


# -- a real provider --


@pytest.fixture(scope="module")
def provider():
    running = Provider()
    yield running
    running.stop()


class Taker:
    """What judges the provider's tokens, at a clock that the test moves. Tokens say the machine's time."""

    def __init__(self, provider, **terms):
        self.wall, self.up = time.time(), 1_000.0
        self.terms = IssuerTerms(
            alias="corp", issuer=provider.issuer, audiences=(RESOURCE,), algorithms=("ES256",), roles={}, **terms
        )
        source = HttpKeySource(provider.issuer, plain=True)
        self.keys = IssuerKeys(source, ("ES256",), lambda: self.up, refresh_seconds=300.0, stale_seconds=3600.0)
        self.issuer = Issuer(self.terms, self.keys)

    def take(self, token):
        found = Issuers([self.issuer]).of(token)
        if found is None:
            raise Unauthenticated("of nobody's")
        return check_claims(Issuers.check_signed(found, token), self.terms, int(self.wall))


def test_tokens_of_the_provider(provider):
    taker = Taker(provider)
    taker.keys.refresh()
    found = taker.take(provider.token())
    assert found.name == "scoring@corp" and found.binding is None
    with pytest.raises(Unauthenticated, match="another audience"):
        taker.take(provider.token(resource="https://else.example"))


def test_clocks_that_differ(provider):
    taker = Taker(provider)
    taker.keys.refresh()
    token = provider.token()
    taker.wall -= 25
    assert taker.take(token)
    taker.wall -= 15
    with pytest.raises(Unauthenticated, match="not valid yet"):
        taker.take(token)
    taker.wall += 40 + 601
    with pytest.raises(Unauthenticated, match="expired"):
        taker.take(token)


def test_the_provider_rotates_and_goes_away():
    provider = Provider()
    try:
        taker = Taker(provider)
        taker.keys.refresh()
        old_key, old = provider.key, provider.token()
        provider.rotate("second", private_jwk(old_key, "first", "ES256"))
        fresh = provider.token()
        assert taker.take(old)
        with pytest.raises(Unauthenticated):
            taker.take(fresh)
        taker.up += 10
        assert taker.keys.due()
        taker.keys.refresh()
        assert taker.take(fresh) and taker.take(old)
    finally:
        provider.stop()
    taker.up += 3599  # time passes, and the token is young all the same
    with pytest.raises(Unavailable):
        taker.keys.refresh()
    assert taker.take(fresh)
    taker.up += 1
    with pytest.raises(Unavailable):
        taker.take(fresh)


def test_another_provider_cannot_speak_for_the_first(provider):
    impostor = Provider()
    try:
        taker = Taker(provider)
        taker.keys.refresh()
        with pytest.raises(Unauthenticated, match="of nobody's"):
            taker.take(impostor.token())
        with pytest.raises(NotTrusted, match="is of"):
            HttpKeySource(impostor.issuer.replace("127.0.0.1", "localhost"), plain=True).fetch()
    finally:
        impostor.stop()
