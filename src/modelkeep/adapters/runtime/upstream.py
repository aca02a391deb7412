"""The way to an upstream server over HTTP/1.1: a few kept connections, bounds on everything, and no second try.

Parsing is llhttp's (through httptools), as at our own door. What an upstream may not do, because two readers could take it in
two ways: answer without a length, answer twice, answer unasked, be compressed, redirect (never followed), or say more than it
was asked for. Any of that ends the connection. Source: RFC 9112, sections 6.3 and 9.2; RFC 9110, section 9.2.2.
"""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import httptools
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from modelkeep.core.ports import Reply
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.formats.upstream import Place

MAX_HEAD, MAX_FIELDS = 64 << 10, 128
_ONCE = frozenset(
    {b"content-length", b"transfer-encoding", b"content-encoding", b"content-type", b"inference-header-content-length"}
)
_TOO_LATE = "the connection ended before its answer did"


@dataclass(frozen=True)
class LinkBounds:
    """``connect_seconds``: for name, connection and TLS; ``idle_seconds``: a connection unused for longer is not used again;
    ``max_answer``: bytes of a body; ``link_local``: addresses that only this machine's network sees may be asked.
    """

    connect_seconds: float = 2.0
    idle_seconds: float = 2.0
    max_answer: int = 16 << 20
    link_local: bool = False


@dataclass
class HttpLink:
    """``Link`` to the server at ``place``. ``context``: None is plain HTTP; ``pins``: of public keys, hex SHA-256.

    ``token``: gives the bearer token, "" = none; it is asked for every connection that is made.
    """

    place: Place
    context: ssl.SSLContext | None = None
    pins: tuple[str, ...] = ()
    token: Callable[[], str] = lambda: ""
    bounds: LinkBounds = LinkBounds()
    _idle: deque["_Connection"] = field(default_factory=deque)
    _closed: bool = False

    async def request(self, method: bytes, path: str, headers: Sequence[tuple[bytes, bytes]] = (), body: bytes = b"") -> Reply:
        """Ask once, on a kept connection or a new one. Raises Unavailable, NotTrusted (not the server that was meant)."""
        connection = self._kept() or await self._connect()
        parts = [method, b" ", f"{self.place.path}{path}".encode("ascii"), b" HTTP/1.1\r\n", connection.head]
        for name, value in headers:
            parts += [name, b": ", value, b"\r\n"]
        parts += [b"content-length: %d\r\n\r\n" % len(body), body]
        try:
            reply = await connection.ask(b"".join(parts))
        except BaseException:  # also when whoever asked went away: what is on this connection now belongs to nobody
            connection.abort()
            raise
        if connection.reusable and not self._closed:
            connection.since = asyncio.get_running_loop().time()
            self._idle.append(connection)
        else:
            connection.abort()
        return reply

    def close(self) -> None:
        """Let go of every connection."""
        self._closed = True
        while self._idle:
            self._idle.pop().abort()

    def _kept(self) -> "_Connection | None":
        """The connection that was used last, if its server surely still holds it."""
        now = asyncio.get_running_loop().time()
        while self._idle and (self._idle[0].lost or now - self._idle[0].since > self.bounds.idle_seconds):
            self._idle.popleft().abort()
        while self._idle:
            found = self._idle.pop()
            if not found.lost:
                return found
        return None

    async def _connect(self) -> "_Connection":
        loop = asyncio.get_running_loop()
        token = self.token()
        head = b"host: %s\r\naccept-encoding: identity\r\n" % self.place.authority.encode("ascii")
        if token:
            head += b"authorization: Bearer %s\r\n" % token.encode("ascii")
        why = ""
        try:
            async with asyncio.timeout(self.bounds.connect_seconds):
                for address in await self._addresses(loop):
                    try:
                        _, made = await loop.create_connection(
                            lambda: _Connection(head, self.bounds.max_answer),
                            address,
                            self.place.port,
                            ssl=self.context,
                            server_hostname=self.place.host if self.context else None,
                        )
                    except ssl.SSLCertVerificationError as cause:
                        raise NotTrusted(f"its certificate does not hold: {cause.verify_message}") from None
                    except (OSError, ssl.SSLError) as cause:
                        why = os.strerror(cause.errno) if cause.errno else type(cause).__name__
                        continue
                    self._check_pins(made)
                    return made
        except TimeoutError:
            raise Unavailable(f"no connection to it within {self.bounds.connect_seconds:g} s") from None
        raise Unavailable(f"it cannot be connected to: {why}")

    async def _addresses(self, loop: asyncio.AbstractEventLoop) -> list[str]:
        """The addresses of the host that may be asked, checked each time: a name may come to mean another address.

        Raises Unavailable (it has none), NotTrusted (none that may be asked).
        """
        try:
            found = await loop.getaddrinfo(self.place.host, self.place.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as cause:
            raise Unavailable(f"its name has no address: {getattr(cause, 'strerror', None) or 'not a name'}") from None
        addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
        allowed = [one for one in addresses if self.bounds.link_local or not is_link_local(one)]
        if not allowed:
            raise NotTrusted("its address is link-local or no host's: such hold the secrets of machines, and are not asked")
        return allowed

    def _check_pins(self, made: "_Connection") -> None:
        if not self.pins:
            return
        try:
            shown = made.certificate()
            key = load_der_x509_certificate(shown).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        except (ValueError, TypeError):
            made.abort()
            raise NotTrusted("its certificate cannot be read") from None
        if hashlib.sha256(key).hexdigest() not in self.pins:
            made.abort()
            raise NotTrusted("its certificate has another key than those pinned when it was published")


def is_link_local(address: str) -> bool:
    """Whether ``address`` is one that no release may name by default: link-local (where clouds keep their metadata services,
    fd00:ec2::254 among them), multicast, unspecified, reserved."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    metadata = found in (ipaddress.ip_address("fd00:ec2::254"), ipaddress.ip_address("100.100.100.200"))
    reserved = found.is_reserved and not found.is_loopback
    return found.is_link_local or found.is_multicast or found.is_unspecified or reserved or metadata


def tls_context(authority: str) -> ssl.SSLContext:
    """How an upstream's certificate is checked; ``authority``: PEM, "" = the public authorities. Raises Invalid."""
    try:
        context = ssl.create_default_context(cadata=authority or None)
    except (ssl.SSLError, ValueError) as cause:
        raise Invalid(f"the upstream's authority is not PEM certificates: {getattr(cause, 'reason', None) or cause}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Connection(asyncio.Protocol):
    """One connection, on which at most one request is under way."""

    def __init__(self, head: bytes, max_answer: int) -> None:
        """``head``: the header fields that every request of it has."""
        self.head, self._max = head, max_answer
        self.since = 0.0
        self.lost = self.reusable = False
        self._transport: Any = None
        self._waiting: asyncio.Future[Reply] | None = None
        self._parser: Any = None
        self._headers: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._size = self._head_size = 0
        self._in_head = self._whole = self._keep = False
        self._problem = ""

    def certificate(self) -> bytes:
        """The certificate that the server showed, DER."""
        shown: bytes = self._transport.get_extra_info("ssl_object").getpeercert(True)
        return shown

    async def ask(self, data: bytes) -> Reply:
        """Send one request and wait for its answer. Raises Unavailable."""
        if self.lost:
            raise Unavailable(_TOO_LATE)
        self._parser = httptools.HttpResponseParser(self)
        self._headers, self._body = {}, []
        self._size = self._head_size = 0
        self._in_head, self._whole, self.reusable, self._problem = True, False, False, ""
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(data)
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def abort(self) -> None:
        """Cut it."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()

    # -- asyncio.Protocol --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """It is gone, and so is an answer that was not whole."""
        self.lost = True
        self._fail(_TOO_LATE)

    def eof_received(self) -> bool:
        """The server closed its half: so do we."""
        self.lost = True
        return False

    def data_received(self, data: bytes) -> None:
        """Parse what arrived, which must belong to the one request under way."""
        if self._waiting is None or self._waiting.done():
            self.abort()  # unasked: it would be taken for the answer to whatever is asked next
            return
        if self._in_head:
            self._head_size += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._note("it wants to speak another protocol")
        except httptools.HttpParserError:
            self._note("its answer is not well-formed HTTP/1.1")
        if self._in_head and self._head_size > MAX_HEAD + len(data):
            self._note("its answer has a head without end")
        if self._problem:
            self._fail(self._problem)
            self.abort()
        elif self._whole:
            status = self._parser.get_status_code()
            self.reusable = self._keep and not self.lost and self._transport.get_write_buffer_size() == 0
            self._waiting.set_result(Reply(status, self._headers, b"".join(self._body)))

    def _fail(self, why: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(Unavailable(why))

    def _note(self, why: str) -> None:
        """Remember what is wrong with the answer, but for what only follows from it."""
        self._problem = self._problem or why

    # -- httptools callbacks: they only take notes --

    def on_message_begin(self) -> None:
        """An answer begins; a second one must not."""
        if self._whole:
            self._note("it answers twice")

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header field."""
        name = name.lower()
        if not self._in_head or len(self._headers) >= MAX_FIELDS or (name in self._headers and name in _ONCE):
            self._note("its answer has header fields twice, too many or behind its body")
            return
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        """The head is whole: whether the rest can be understood in one way only is decided here."""
        self._in_head = False
        status, headers = self._parser.get_status_code(), self._headers
        coding, length = headers.get(b"transfer-encoding"), headers.get(b"content-length")
        if status < 200 or self._parser.get_http_version() != "1.1":
            self._note(f"it answers with status {status} in HTTP/{self._parser.get_http_version()}")
        elif headers.get(b"content-encoding", b"identity").lower() != b"identity":
            self._note("its answer is compressed, which was not asked for")
        elif coding is not None and (coding.lower() != b"chunked" or length is not None):
            self._note("its answer has two lengths")
        elif coding is None and length is None and status not in (204, 304):
            self._note("its answer has no length, so that nobody could see where it is cut off")
        elif length is not None and (not length.isdigit() or len(length) > 15 or int(length) > self._max):
            self._note(f"its answer is larger than {self._max} bytes")

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._size += len(body)
        if self._size > self._max or len(self._body) > 65_536:
            self._note(f"its answer is larger than {self._max} bytes")
        elif not self._problem:
            self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        self._whole = True
        self._keep = self._parser.should_keep_alive()  # the parser forgets it with the message
