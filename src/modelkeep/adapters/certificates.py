"""The certificate that a server shows, exchanged while it serves: no connection is dropped, and a broken pair changes nothing.

A connection takes its certificate at its handshake, from the context of that moment. The context that listens stays the same,
so what is asked of clients and the keys of session tickets do too.
"""

import ssl
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from modelkeep.adapters.tls import Identity, Version, server_context
from modelkeep.core.hidden import never_pickled
from modelkeep.errors import Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

POLL_SECONDS = 1.0
WARN_SECONDS = 14 * 86_400.0
"""A certificate that ends sooner than this is spoken of."""
MAX_PEM = 1 << 20
_DAY = 86_400.0


class _Face:
    """One listener's context, and the context whose certificate it shows."""

    def __init__(self, make: Callable[[Identity], ssl.SSLContext], identity: Identity) -> None:
        self.make = make
        self.context = self.current = make(identity)
        self.context.sni_callback = self._choose  # called at every handshake, also when no name is asked for

    def _choose(self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext) -> None:
        if self.current is not self.context:
            connection.context = self.current


@never_pickled
class Certificates:
    """What a server shows. ``context``: to listen for HTTP with, for the server's whole life."""

    def __init__(self, identity: Identity, clients: bytes = b"", required: bool = False, *, minimum: Version = "1.3") -> None:
        """``clients``, ``required`` and ``minimum``: as of ``server_context``. Raises NotTrusted, Invalid."""
        self._make = partial(server_context, clients=clients, required=required, minimum=minimum)
        self._identity, self.not_after = identity, not_after(identity.chain)
        self._faces: list[_Face] = []
        self.context = self.listen("http/1.1")

    def listen(self, speaks: str) -> ssl.SSLContext:
        """A context for another listener, which offers ``speaks`` (ALPN) and shows the same. Raises NotTrusted, Invalid."""
        self._faces.append(_Face(partial(self._make, speaks=speaks), self._identity))
        return self._faces[-1].context

    def show(self, identity: Identity) -> None:
        """Show ``identity`` from the next handshake on. Raises NotTrusted, Invalid: then nothing changes."""
        fresh, end = [face.make(identity) for face in self._faces], not_after(identity.chain)
        for face, context in zip(self._faces, fresh, strict=True):
            face.current = context
        self._identity, self.not_after = identity, end

    def renewal_due(self, now: float) -> bool:
        """Whether less than a third of its life is left to the certificate that is shown."""
        return renewal_due(self._identity.chain, now)


class CertificateFiles:
    """A pair of PEM files that may change, and the passphrase of the key. Paths are absolute or as the process sees them."""

    def __init__(self, certificate: Path, key: Path, passphrase_file: Path | None = None) -> None:
        self._paths = (certificate, key, *((passphrase_file,) if passphrase_file else ()))
        self._passphrase_file = passphrase_file

    def stamp(self) -> tuple[tuple[int, ...], ...]:
        """Changes whenever one of the files does; a missing one counts as zeros. Follows links, as ACME clients use them."""
        found = []
        for path in self._paths:
            try:
                state = path.stat()
            except OSError:
                found.append((0, 0, 0))
            else:
                found.append((state.st_ino, state.st_size, state.st_mtime_ns))
        return tuple(found)

    def read(self) -> Identity:
        """The pair. Raises Missing, Unavailable, Invalid (no PEM, wrong passphrase), NotTrusted (the key is open to all)."""
        chain, key = _pem(self._paths[0], "certificate"), _pem(self._paths[1], "key")
        if self._paths[1].stat().st_mode & 0o007:
            raise NotTrusted(f"the TLS key {self._paths[1]} is open to everybody: 'chmod o= {self._paths[1]}'")
        word = _pem(self._passphrase_file, "passphrase").rstrip(b"\r\n") if self._passphrase_file else None
        if not_after(chain) <= 0:
            raise Invalid(f"{self._paths[0]} holds no certificate in PEM form")
        try:
            private = load_pem_private_key(key, word)
        except TypeError:  # `from None` here and below: a cause may quote what it was given
            state = "needs a passphrase: set gateway.key_passphrase_file" if word is None else "has no passphrase"
            raise Invalid(f"the TLS key {self._paths[1]} {state}") from None
        except ValueError:
            raise Invalid(f"the TLS key {self._paths[1]} is no private key in PEM form, or its passphrase is wrong") from None
        return Identity(chain, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


class CertificateWatch:
    """Shows the pair in the files whenever it changes or ``poke`` is called. What is wrong is reported, once a change."""

    def __init__(
        self,
        files: CertificateFiles,
        shown: Certificates,
        report: Callable[[str], None],
        *,
        poll: float = POLL_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._files, self._shown, self._report, self._poll, self._now = files, shown, report, poll, now
        self._seen = self._settling = files.stamp()
        self._asked, self._ended = threading.Event(), threading.Event()
        self._poked = False

    def start(self) -> "CertificateWatch":
        """Begin to look, in a thread that ends with the process."""
        threading.Thread(target=self._run, name="certificates", daemon=True).start()
        return self

    def stop(self) -> None:
        """Look no more."""
        self._ended.set()
        self._asked.set()

    def poke(self) -> None:
        """Look now, also when no file seems to have changed; may be called in a signal handler."""
        self._poked = True
        self._asked.set()

    def on_signal(self, _number: int, _frame: object) -> None:
        """``poke``, as ``signal.signal`` calls it."""
        self.poke()

    def look(self) -> None:
        """Take the pair over if it changed and is not being written right now, or if somebody asked."""
        stamp, poked = self._files.stamp(), self._poked
        self._poked = False
        settled, self._settling = stamp == self._settling, stamp
        if not poked and (stamp == self._seen or not settled):
            return
        self._seen = stamp
        try:
            fresh = self._files.read()
            if not_after(fresh.chain) <= self._now() < self._shown.not_after:
                raise NotTrusted(f"it ended on {day(not_after(fresh.chain))}")
            self._shown.show(fresh)
        except (ModelkeepError, OSError) as cause:
            self._report(f"the changed TLS certificate is not taken, the former one is shown on: {cause}")
        else:
            self._report(f"the TLS certificate was taken over: it ends on {day(self._shown.not_after)}")

    def _run(self) -> None:
        told = 0.0
        while not self._ended.is_set():
            self._asked.wait(self._poll)
            self._asked.clear()
            self.look()
            if self._now() >= told + _DAY and (words := ending(self._shown.not_after, self._now())):
                told = self._now()
                self._report(words)


def ending(end: float, now: float) -> str:
    """What to say of a certificate that ends at ``end``, Unix seconds, when it is ``now``; "" while nothing has to be."""
    if end > now + WARN_SECONDS:
        return ""
    if end <= now:
        return f"the TLS certificate ended on {day(end)}: clients refuse it"
    return f"the TLS certificate ends on {day(end)}, in {(end - now) / _DAY:.1f} days"


def not_after(chain: bytes) -> float:
    """When the first certificate of a PEM chain ends, Unix seconds; 0 when there is none. Raises Invalid."""
    if b"-----BEGIN CERTIFICATE-----" not in chain:
        return 0.0
    try:
        return x509.load_pem_x509_certificates(chain)[0].not_valid_after_utc.timestamp()
    except ValueError as cause:
        raise Invalid("the certificate chain is not in PEM form") from cause


def renewal_due(chain: bytes, now: float) -> bool:
    """Whether less than a third of its life is left to the first certificate of ``chain``. Raises Invalid."""
    try:
        leaf = x509.load_pem_x509_certificate(chain)
    except ValueError as cause:
        raise Invalid("the certificate is not in PEM form") from cause
    begin, end = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return end - now < (end - begin) / 3


def day(seconds: float) -> str:
    """A Unix time as a day and minute, UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%MZ")


def _pem(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_PEM + 1)
    except FileNotFoundError:
        raise Missing(f"there is no TLS {what} at {path}") from None
    except OSError as cause:
        raise Unavailable(f"cannot read the TLS {what} {path}: {cause.strerror}") from cause
    except ValueError:  # a NUL in the name
        raise Invalid(f"the TLS {what} is named {str(path)!r}, and no file can be") from None
    if len(data) > MAX_PEM:
        raise Invalid(f"{path} is too large to be a TLS {what}")
    return data
