"""Connections to servers that releases name: addresses that may be asked, and certificates that must be theirs."""

import asyncio
import contextlib
import hashlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate

from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.formats.upstream import Place


@dataclass(frozen=True)
class LinkBounds:
    """``connect_seconds``: for name, connection and TLS; ``idle_seconds``: a connection unused for longer is not used again;
    ``max_answer``: bytes of a body; ``link_local``: addresses that only this machine's network sees may be asked.
    """

    connect_seconds: float = 2.0
    idle_seconds: float = 2.0
    max_answer: int = 16 << 20
    link_local: bool = False


@dataclass(frozen=True)
class Callee:
    """Whom to connect to. ``context``: None is without TLS; ``pins``: of public keys, hex SHA-256."""

    place: Place
    context: ssl.SSLContext | None = None
    pins: tuple[str, ...] = ()


class Dialled(asyncio.Protocol):
    """A connection that can be made."""

    lost = False
    """It can be used no more."""

    def __init__(self) -> None:
        self._transport: Any = None

    def certificate(self) -> bytes:
        """The certificate that the server showed, DER."""
        shown: bytes = self._transport.get_extra_info("ssl_object").getpeercert(True)
        return shown

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the connection."""
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def eof_received(self) -> bool:
        """The server closed its half: so do we."""
        self.lost = True
        return False

    def abort(self) -> None:
        """Cut it."""
        self.lost = True
        if self._transport is not None:
            self._transport.abort()


C = TypeVar("C", bound=Dialled)


async def dial(callee: Callee, bounds: LinkBounds, make: Callable[[], C]) -> C:
    """A new connection, whose protocol ``make`` makes. Raises Unavailable, NotTrusted (not the server that was meant)."""
    loop, why = asyncio.get_running_loop(), ""
    try:
        async with asyncio.timeout(bounds.connect_seconds):
            for address in await _addresses(callee.place, bounds, loop):
                try:
                    _, made = await loop.create_connection(
                        make,
                        address,
                        callee.place.port,
                        ssl=callee.context,
                        server_hostname=callee.place.host if callee.context else None,
                    )
                except ssl.SSLCertVerificationError as cause:
                    raise NotTrusted(f"its certificate does not hold: {cause.verify_message}") from None
                except (OSError, ssl.SSLError) as cause:
                    why = os.strerror(cause.errno) if cause.errno else type(cause).__name__
                    continue
                _check_pins(callee.pins, made)
                return made
    except TimeoutError:
        raise Unavailable(f"no connection to it within {bounds.connect_seconds:g} s") from None
    raise Unavailable(f"it cannot be connected to: {why}")


async def _addresses(place: Place, bounds: LinkBounds, loop: asyncio.AbstractEventLoop) -> list[str]:
    """The addresses of the host that may be asked, checked each time: a name may come to mean another address.

    Raises Unavailable (it has none), NotTrusted (none that may be asked).
    """
    try:
        found = await loop.getaddrinfo(place.host, place.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as cause:
        raise Unavailable(f"its name has no address: {getattr(cause, 'strerror', None) or 'not a name'}") from None
    addresses = list(dict.fromkeys(str(row[4][0]) for row in found))
    allowed = [one for one in addresses if bounds.link_local or not is_link_local(one)]
    if not allowed:
        raise NotTrusted("its address is link-local or no host's: such hold the secrets of machines, and are not asked")
    return allowed


def _check_pins(pins: tuple[str, ...], made: Dialled) -> None:
    if not pins:
        return
    try:
        shown = made.certificate()
        key = load_der_x509_certificate(shown).public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError):
        made.abort()
        raise NotTrusted("its certificate cannot be read") from None
    if hashlib.sha256(key).hexdigest() not in pins:
        made.abort()
        raise NotTrusted("its certificate has another key than those pinned when it was published")


_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
    )
)
"""Metadata services that are not link-local: of Amazon and Google over IPv6, of Alibaba, Azure and Oracle."""


def is_link_local(address: str) -> bool:
    """Whether ``address`` is one that no release may name by default: link-local (where clouds keep their metadata services,
    and the others of those), multicast, unspecified, reserved; also behind an IPv6 address that leads to an IPv4 one."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or found
    reserved = found.is_reserved and not found.is_loopback
    nowhere = found.is_unspecified or (found.version == 4 and found.packed[0] == 0)
    return found.is_link_local or found.is_multicast or nowhere or reserved or found in _METADATA


def tls_context(authority: str, protocol: str = "http/1.1") -> ssl.SSLContext:
    """How an upstream's certificate is checked; ``authority``: PEM, "" = the public authorities. Raises Invalid."""
    try:
        context = ssl.create_default_context(cadata=authority or None)
    except (ssl.SSLError, ValueError) as cause:
        raise Invalid(f"the upstream's authority is not PEM certificates: {getattr(cause, 'reason', None) or cause}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    return context
