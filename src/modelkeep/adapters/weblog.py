"""``StaticFiles`` of a log on a web server, as C2SP tlog-tiles lays them out, and the same fetched ahead and kept for a while.

Nothing that comes from there is believed: readers check every byte against a signed checkpoint. So plain HTTP is good enough to
read what anyone may see (``log verify --kept`` notices a server that shows an old log), but never to send a token.
"""

import copy
import re
import ssl
import threading
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future

import httpx

from modelkeep.core.ports import StaticFiles
from modelkeep.errors import Denied, Invalid, Missing, Unauthenticated, Unavailable

LARGEST = 256 * (2 + 0xFFFF)
"""Bytes of the largest file of a log: a bundle of 256 entries, each as large as an entry may be."""
SECONDS = 60.0
"""How long one file may take, however slowly it drips, its headers too."""
_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
_GONE = (httpx.codes.NOT_FOUND, httpx.codes.GONE)
WORKERS = 8
"""Connections at a time: enough to hide a round trip, too few to be a burden."""
_WINDOW = 2 * WORKERS
_KEPT = 64 << 20
_ENCODINGS = ("identity", "gzip", "")


class WebLogFiles:
    """The files below one address. Any number of threads may read. No redirect is followed and nothing is asked for twice.

    A file that takes too long ends the reading of all of them: a server that does that once is not worth waiting for.
    """

    def __init__(self, base: str, *, token: str = "", trust: ssl.SSLContext | None = None, seconds: float = SECONDS) -> None:
        """``base``: an http:// or https:// address; ``token``: for logs that are for auditors only, sent over TLS alone.

        ``trust``: whom to believe to be the server, instead of the system's authorities. Does not connect yet. Raises Invalid.
        """
        try:
            url = httpx.URL(base)
        except httpx.InvalidURL as cause:
            raise Invalid(f"{base[:200]!r} is not an address: {cause}") from cause
        if (
            any(letter.isspace() for letter in base)
            or url.scheme not in ("http", "https")
            or not url.host
            or url.query
            or url.fragment
            or url.userinfo
        ):
            raise Invalid(f"{base[:200]!r} is not the address of a log: name http:// or https://, a host and a path")
        if token and url.scheme != "https":
            raise Invalid(f"a token is only ever sent over https://, not to {base[:200]}")
        if not token.isascii() or any(letter.isspace() or not letter.isprintable() for letter in token):
            raise Invalid("the token is not one line of plain letters: name the file that holds it and nothing else")
        self.base = str(url).rstrip("/")
        self._seconds = seconds
        self._slow: list[str] = []  # addresses that took too long; the copies for other paths share it
        self._http = httpx.Client(
            verify=trust or True,
            headers={"accept-encoding": "gzip, identity", **({"authorization": f"Bearer {token}"} if token else {})},
            timeout=httpx.Timeout(15.0, connect=10.0),
            limits=httpx.Limits(max_connections=WORKERS),
            trust_env=False,
            follow_redirects=False,
        )

    def __repr__(self) -> str:
        return f"WebLogFiles({self.base!r})"

    def below(self, path: str) -> "WebLogFiles":
        """The files below ``path``, which is below this address. One ``close`` closes both."""
        return self._at(self.base, path)

    def beside(self, path: str) -> "WebLogFiles":
        """The files below ``path``, which stands beside this address. One ``close`` closes both."""
        return self._at(self.base.rpartition("/")[0], path)

    def _at(self, parent: str, path: str) -> "WebLogFiles":
        _check_path(path)
        found = copy.copy(self)
        found.base = f"{parent}/{path}"
        return found

    def read(self, path: str) -> bytes:
        """A whole file. Raises Missing, Unauthenticated, Denied, Invalid (a path that leaves the log), Unavailable."""
        _check_path(path)
        address = f"{self.base}/{path}"
        late = threading.Timer(self._seconds, self._give_up, [address])  # no timeout of the client's covers a whole answer
        late.daemon = True
        late.start()
        try:
            with self._http.stream("GET", address) as answer:
                self._check(answer, address)
                return b"".join(_chunks(answer, address))
        except (httpx.HTTPError, RuntimeError) as cause:
            if self._slow:
                raise Unavailable(f"{self._slow[0]} takes longer than {self._seconds:g} seconds") from cause
            if isinstance(cause, RuntimeError):
                raise
            raise Unavailable(f"cannot fetch {address}: {str(cause) or type(cause).__name__}") from cause
        finally:
            late.cancel()

    def _give_up(self, address: str) -> None:
        self._slow.append(address)
        self._http.close()  # whoever waits for bytes is told that there are none any more

    @staticmethod
    def _check(answer: httpx.Response, address: str) -> None:
        if answer.status_code == httpx.codes.OK:
            return
        if answer.status_code in _GONE:
            raise Missing(f"there is no {address}")
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            raise Unauthenticated(f"{address} is not for everyone: name a file with a token of an auditor with --token-file")
        if answer.status_code == httpx.codes.FORBIDDEN:
            raise Denied(f"{address} is for auditors only")
        if answer.is_redirect:
            raise Unavailable(f"{address} has moved to {answer.headers.get('location', '')[:200]!r}: name that address")
        raise Unavailable(f"{address} answered {answer.status_code}")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()


def _chunks(answer: httpx.Response, address: str) -> Iterator[bytes]:
    """The body, unpacked here: a client that unpacks as often as the server says can be made to fill the memory."""
    said = answer.headers.get("content-encoding", "identity").strip().lower()
    if said not in _ENCODINGS:
        raise Unavailable(f"{address} comes packed as {said[:40]!r}, and gzip alone was asked for")
    unpack = zlib.decompressobj(wbits=31) if said == "gzip" else None
    left = LARGEST
    for raw in answer.iter_raw():
        try:
            chunk = unpack.decompress(raw, left + 1) if unpack else raw
        except zlib.error as cause:
            raise Unavailable(f"{address} is no gzip, as it says it is: {cause}") from cause
        left -= len(chunk)
        if left < 0:
            raise Unavailable(f"{address} is larger than any file of a log: {LARGEST:,} bytes")
        yield chunk
    if unpack and not unpack.eof:
        raise Unavailable(f"{address} was cut off")


def _check_path(path: str) -> None:
    if not all(_SEGMENT.match(part) for part in path.split("/")):
        raise Invalid(f"{path[:120]!r} is not a path inside a log")


class FetchedAhead:
    """``StaticFiles`` over slower ones: what will be read is fetched a little ahead, and what was read is kept for a while.

    Tiles are kept up to 64 MiB in all. Everything else, which is the checkpoint, is kept for good: one reader, one state of a
    log that grows meanwhile.
    """

    def __init__(self, files: StaticFiles, pool: Executor) -> None:
        """``pool``: whose threads fetch; several of these may share it."""
        self._files, self._pool = files, pool
        self._lock = threading.Lock()
        self._coming: OrderedDict[str, Future[bytes]] = OrderedDict()
        self._wanted: Iterator[str] = iter(())
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._pinned: dict[str, bytes] = {}
        self._size = 0

    def want(self, paths: Iterable[str]) -> None:
        """Say what will be read, in this order. Reading anything else, or in another order, works all the same."""
        with self._lock:
            self._wanted = iter(paths)
            self._fill()

    def read(self, path: str) -> bytes:
        """A whole file. Raises what the slower files raise."""
        with self._lock:
            if path in self._pinned:
                return self._pinned[path]
            if path in self._kept:
                self._kept.move_to_end(path)
                return self._kept[path]
            coming = self._coming.pop(path, None)
            self._fill()
        data = coming.result() if coming else self._files.read(path)
        with self._lock:
            self._keep(path, data)
        return data

    def _fill(self) -> None:
        while len(self._coming) < _WINDOW:
            path = next(self._wanted, None)
            if path is None:
                return
            if path not in self._coming and path not in self._kept:
                self._coming[path] = self._pool.submit(self._files.read, path)

    def _keep(self, path: str, data: bytes) -> None:
        if not path.startswith("tile/"):
            self._pinned.setdefault(path, data)
        elif path not in self._kept:
            self._kept[path] = data
            self._size += len(data)
        while self._size > _KEPT and len(self._kept) > 1:
            _, dropped = self._kept.popitem(last=False)
            self._size -= len(dropped)
