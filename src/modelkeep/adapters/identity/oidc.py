"""``KeySource`` over HTTPS: an issuer's discovery document, and the JWK set that it names.

Sources: OpenID Connect Discovery 1.0, sections 3 and 4; RFC 7517, section 5. Nothing is followed (no redirects, no proxies from
the environment), nothing is decompressed, everything has a bound. Only a discovery document that names the configured issuer,
letter for letter, is believed (section 4.3), so that one host cannot speak for another.
"""

import ssl
import time
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import msgspec

from modelkeep.errors import Invalid, NotTrusted, Unavailable

MAX_BYTES = 256 << 10
"""Largest document that is read."""
STEP_SECONDS = 5.0
"""For connecting and for each wait."""
WHOLE_SECONDS = 15.0
"""For one document as a whole."""
DISCOVERY = "/.well-known/openid-configuration"
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


class _Discovery(msgspec.Struct, frozen=True):
    issuer: str
    jwks_uri: str


@dataclass(frozen=True)
class HttpKeySource:
    """The keys of ``issuer``. ``jwks_uri``: where they are, "" = where its discovery document says; ``ca``: PEM file of the
    authorities that its certificate may be from, "" = those of this machine; ``plain``: allow http to this machine itself."""

    issuer: str
    jwks_uri: str = ""
    ca: str = ""
    plain: bool = False
    _context: list[ssl.SSLContext] = field(default_factory=list, repr=False, compare=False)

    def fetch(self) -> bytes:
        """The JWK set, JSON. Raises Unavailable, NotTrusted (the discovery document is another issuer's), Invalid."""
        return self._get(self.jwks_uri or self._discovered())

    def _discovered(self) -> str:
        raw = self._get(self.issuer.rstrip("/") + DISCOVERY)
        try:
            found = msgspec.json.decode(raw, type=_Discovery)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
            raise Unavailable(f"the discovery document of {self.issuer} is none") from cause
        if found.issuer != self.issuer:
            raise NotTrusted(f"the discovery document of {self.issuer} is of {found.issuer[:200]!r}")
        return found.jwks_uri

    def _get(self, url: str) -> bytes:
        check_address(url, plain=self.plain)
        try:
            with (
                httpx.Client(verify=self._tls(), timeout=STEP_SECONDS, trust_env=False, follow_redirects=False) as client,
                client.stream("GET", url, headers={"accept": "application/json", "accept-encoding": "identity"}) as answer,
            ):
                if answer.status_code != httpx.codes.OK:
                    raise Unavailable(f"{url} answers {answer.status_code}")
                return _read(answer, url)
        except (httpx.HTTPError, httpx.InvalidURL) as cause:
            raise Unavailable(f"{url} cannot be read: {str(cause) or type(cause).__name__}") from cause

    def _tls(self) -> ssl.SSLContext:
        if not self._context:
            try:
                self._context.append(ssl.create_default_context(cafile=self.ca or None))
            except (OSError, ssl.SSLError) as cause:
                raise Unavailable(f"cannot read the certificates in {self.ca}") from cause
        return self._context[0]


def _read(answer: httpx.Response, url: str) -> bytes:
    end, body = time.monotonic() + WHOLE_SECONDS, bytearray()
    for chunk in answer.iter_raw():
        body += chunk
        if len(body) > MAX_BYTES:
            raise Unavailable(f"{url} answers with more than {MAX_BYTES >> 10} KiB")
        if time.monotonic() > end:
            raise Unavailable(f"{url} answers too slowly")
    return bytes(body)


def check_address(url: str, *, plain: bool) -> None:
    """Check that keys may be read from ``url``: https, or http to this machine where ``plain`` allows it. Raises Invalid."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.username is not None:
        raise Invalid(f"{url[:200]!r} is no address to read keys from")
    if parts.scheme != "https" and not (plain and parts.scheme == "http" and host in _LOCAL):
        raise Invalid(f"{url[:200]!r} is not https: the keys of an issuer are read over nothing else (but see allow_http)")
