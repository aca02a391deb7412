"""A TLS 1.3 connection with one deadline for everything that a call does: connecting, agreeing, sending, waiting."""

import array
import fcntl
import socket
import ssl
import termios
import time
from dataclasses import dataclass, field

from modelkeep.errors import Invalid, Unavailable

_READ = 16 << 10
_SHORTEST, _LONGEST = 0.00005, 0.005
"""Pauses between two looks at what is not acknowledged yet, seconds."""


def client_context(authority: str, certificate: str, protocol: str = "") -> ssl.SSLContext:
    """TLS 1.3 that trusts ``authority`` (PEM file; "" = the system's authorities) and checks the name.

    ``certificate``: PEM file with a certificate and its key, to show to the server, or ""; ``protocol``: for ALPN.
    Raises Invalid (a file is missing, or is not what it must be).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        if authority:
            context.load_verify_locations(cafile=authority)
        else:
            context.load_default_certs()
        if certificate:
            context.load_cert_chain(certificate)
    except OSError as cause:  # ssl.SSLError is one
        named = f"{authority!r} or {certificate!r}" if authority and certificate else repr(authority or certificate)
        raise Invalid(f"cannot use the certificates of an audit sink in {named}: {cause.strerror or cause}") from None
    if protocol:
        context.set_alpn_protocols([protocol])
    return context


@dataclass
class Stream:
    """A connection to ``host``:``port`` that is made when it is needed. ``tls`` None is for this machine alone.

    Every call ends within ``seconds``. Raises Unavailable, and then the connection is gone.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    seconds: float
    fresh: bool = False
    _socket: socket.socket | None = field(default=None, repr=False)
    _deadline: float = 0.0

    @property
    def late(self) -> bool:
        """Whether the time of this call is up."""
        return time.monotonic() >= self._deadline

    def begin(self, *, again: bool = False) -> None:
        """Start the clock of one call and have a connection; ``fresh`` says whether it was made now. Raises Unavailable.

        ``again``: a second try, within the time of the first.
        """
        if not again:
            self._deadline = time.monotonic() + self.seconds
        self.fresh = self._socket is None
        if self._socket is None:
            with self._naming("cannot be reached"):
                self._socket = self._connect()

    def _connect(self) -> socket.socket:
        plain = socket.create_connection((self.host, self.port), self._rest())
        try:
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(self.seconds * 1000))
            plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT):
                plain.setsockopt(socket.IPPROTO_TCP, option, 1)
            plain.settimeout(self._rest())
            return self.tls.wrap_socket(plain, server_hostname=self.host) if self.tls else plain
        except BaseException:
            plain.close()
            raise

    def send(self, data: bytes) -> None:
        """Hand everything to the operating system. Raises Unavailable."""
        with self._naming("took no data"):
            link, rest = self._link(), memoryview(data)
            while rest:
                link.settimeout(self._rest())
                rest = rest[link.send(rest) :]

    def receive(self) -> bytes:
        """What has come; b"" when the other side has closed. Raises Unavailable (nothing came in time)."""
        with self._naming("does not answer"):
            link = self._link()
            link.settimeout(self._rest())
            return link.recv(_READ)

    def drain(self) -> None:
        """Wait until the other machine has acknowledged every byte, and see that it has not closed. Raises Unavailable."""
        with self._naming("does not acknowledge"):
            link, unsent, pause = self._link(), array.array("i", [0]), _SHORTEST
            while True:
                self._see_open(link)
                fcntl.ioctl(link.fileno(), termios.TIOCOUTQ, unsent)  # SIOCOUTQ: bytes that TCP has not seen acknowledged
                if not unsent[0]:
                    return
                time.sleep(min(pause, self._rest()))
                pause = min(2 * pause, _LONGEST)

    def _see_open(self, link: socket.socket) -> None:
        link.settimeout(0.0)
        try:
            if not link.recv(_READ):
                raise ConnectionResetError("it closed the connection")
        except (BlockingIOError, ssl.SSLWantReadError):
            return

    def spoiled(self) -> bool:
        """Whether a kept connection was closed by the other side, or something came on it that nobody asked for."""
        try:
            link = self._link()
            link.settimeout(0.0)
            link.recv(_READ)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        except OSError:
            return True
        return True

    def _link(self) -> socket.socket:
        if self._socket is None:
            raise ConnectionResetError("there is no connection")
        return self._socket

    def _rest(self) -> float:
        rest = self._deadline - time.monotonic()
        if rest <= 0:
            raise TimeoutError("no answer in time")
        return rest

    def _naming(self, what: str) -> "_Naming":
        return _Naming(self, what)

    def close(self) -> None:
        """Drop the connection; idempotent."""
        link, self._socket = self._socket, None
        if link is not None:
            link.close()


@dataclass
class _Naming:
    """Turns what a socket raises into one sentence."""

    stream: Stream
    what: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, OSError | UnicodeError):  # the latter from a host name that none can be
            return
        self.stream.close()
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"its certificate does not hold: {error.verify_message}"
        else:
            why = getattr(error, "strerror", "") or str(error) or type(error).__name__
        raise Unavailable(f"{self.stream.host}:{self.stream.port} {self.what}: {why}") from error
