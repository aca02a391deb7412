"""``Blobs`` in an S3 bucket (or what speaks S3), through obstore.

The store is named ``s3://BUCKET/PREFIX``; ``?endpoint=URL``, ``?region=NAME`` and ``?ca=FILE`` may follow. Credentials come
from the environment (``AWS_ACCESS_KEY_ID`` …) or from the machine's role, never from the URL.

A blob is ``PREFIX/ab/abcd…``. What fits into one part is written there in one request, which S3 carries out whole or not at
all. What is larger goes to a temporary key while it is hashed, and is then copied inside the store to its name: nothing stands
under a digest before all of it does. ``PREFIX/origin`` says whose blobs these are, so that no keep collects another's.
Source: Amazon S3 User Guide, "Amazon S3 data consistency model", "Copying objects" (one request copies up to 5 GiB).
"""

import contextlib
import hashlib
import os
import queue
import re
import secrets
import threading
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from modelkeep.core.values import Digest, digest_hex, parse_digest
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, TooLarge, Unavailable

if TYPE_CHECKING:  # obstore has these for type checkers alone
    from obstore import PutResult
    from obstore.store import ClientConfig, RetryConfig, S3Config

PART = 16 << 20
"""Bytes of one part of an upload."""
REQUEST = 4 << 20
"""The most that one request reads. Four of them, or four parts of an upload, are under way at once."""
ONE_REQUEST = PART
"""A blob shorter than this is stored in one request."""
MAX_PARTS = 10_000
MAX_COPY = 5 << 30
"""The most that S3 copies in one request; what is larger is copied through this process."""
ORIGIN = "origin"

_AT_ONCE = 4
_STREAMED = 1 << 20
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]\Z")
_PREFIX = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*)(?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)*\Z")
_BLOB = re.compile(r"([0-9a-f]{2})/(\1[0-9a-f]{62})\Z")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")
_RETRY: "RetryConfig" = {"max_retries": 3, "retry_timeout": timedelta(seconds=20)}
_TIMES: "ClientConfig" = {"connect_timeout": "5s", "read_timeout": "10s", "timeout": "120s"}
"""A store that is silent for ten seconds has failed; one that never ends an answer fails after two minutes."""

Chunk = bytes | bytearray | memoryview


class Place(NamedTuple):
    """A parsed store URL; ``str()`` of it says where, and holds no secret."""

    bucket: str
    prefix: str
    endpoint: str
    region: str
    authority: str

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/") + (f" at {self.endpoint}" if self.endpoint else "")


def parse_place(url: str, environment: Mapping[str, str] = os.environ) -> Place:
    """Parse ``s3://BUCKET[/PREFIX][?endpoint=URL][&region=NAME][&ca=FILE]``. Raises Invalid, which quotes no secret."""
    try:
        parts = urlsplit(url)
        more = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        secret = "@" in parts.netloc
    except ValueError:
        raise Invalid("[blobs] url is not a URL: expected s3://BUCKET/PREFIX") from None
    if secret:
        raise Invalid("[blobs] url holds credentials: give them in the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
    bucket, prefix = parts.netloc, parts.path.strip("/")
    if parts.scheme != "s3" or not _BUCKET.match(bucket) or (prefix and not _PREFIX.match(prefix)) or parts.fragment:
        raise Invalid("[blobs] url names no place in a bucket: expected s3://BUCKET/PREFIX, with letters, digits and . _ - /")
    if unknown := sorted(set(more) - {"endpoint", "region", "ca"}):
        raise Invalid(f"[blobs] url has the unknown parameter {unknown[0][:40]!r}: endpoint, region and ca are known")
    endpoint = more.get("endpoint") or next((environment[name] for name in _ENDPOINTS if environment.get(name)), "")
    if endpoint and ("@" in endpoint or not re.match(r"https?://[^/?#]+/?\Z", endpoint)):
        raise Invalid("the S3 endpoint is not of the form https://HOST or https://HOST:PORT")
    return Place(bucket, prefix, endpoint.rstrip("/"), more.get("region", ""), more.get("ca", ""))


class S3Blobs:
    """Blobs in a bucket. Threads and processes may share it; nothing is asked of the store before the first use.

    A read is one request for each ``REQUEST`` bytes, and copies what arrives once. A whole store that is gone, or another
    keep's, says nothing about a blob: that is Unavailable or Invalid, never Missing.
    """

    read_ahead = 2 * REQUEST

    def __init__(self, url: str, origin: str) -> None:
        """``origin``: the keep whose blobs these must be. Raises Invalid, Unavailable (the ca file cannot be read)."""
        self.place = parse_place(url)
        self._origin = origin
        self._store = _open(self.place)
        self._marked = False
        self._marking = threading.Lock()

    def __repr__(self) -> str:
        return f"S3Blobs({str(self.place)!r})"

    @classmethod
    def create(cls, url: str, origin: str) -> "S3Blobs":
        """Take an empty place for the keep ``origin``. Raises Conflict (it is not empty), Invalid, Unavailable."""
        made = cls(url, origin)
        with made._failures("take the place"):
            taken = next((entry["path"] for page in obstore.list(made._store, chunk_size=1) for entry in page), None)
        if taken is not None:
            raise Conflict(f"{made.place} is not empty (it holds {taken[:80]}): name another prefix")
        try:
            with made._failures("take the place"):
                obstore.put(made._store, ORIGIN, origin.encode(), mode="create", use_multipart=False)
        except Conflict:
            raise Conflict(f"another keep takes {made.place} at this moment: name another prefix") from None
        made._look_at_origin()  # there are stores that know no conditions, and then the last one has it
        return made

    def abandon(self) -> None:
        """Give up a place that ``create`` took and where nothing was put. Raises Unavailable."""
        with self._failures("give up the place"):
            obstore.delete(self._store, ORIGIN)

    def put(self, chunks: Iterable[Chunk]) -> Digest:
        self._check_origin()
        parts = _Parts(chunks)
        first = next(parts, b"")
        if len(first) < ONE_REQUEST:
            with self._failures("store a blob"):
                obstore.put(self._store, _name(parts.hexdigest()), first, use_multipart=False)
            return Digest("sha256:" + parts.hexdigest())
        return self._put_large(first, parts)

    def size(self, digest: Digest) -> int:
        self._check_origin()
        with self._failures(f"read blob {digest}", digest):
            return int(obstore.head(self._store, _name(digest_hex(parse_digest(digest))))["size"])

    def read(self, digest: Digest, offset: int, length: int) -> bytes:
        if offset < 0 or length < 0:
            raise NotTrusted(f"blob {digest} has no {length} bytes at {offset}")
        if not length:
            if offset > self.size(digest):
                raise _short(digest, offset, length)
            return b""
        found = bytearray()  # grown by what arrives: a store that lies about sizes costs no memory
        for piece in self._pieces(digest, offset, length):
            found += piece
        return bytes(found)

    def read_into(self, digest: Digest, offset: int, into: memoryview) -> None:
        view = into.cast("B")
        if offset < 0 or not view.nbytes:
            self.read(digest, offset, view.nbytes)
            return
        starts = range(0, view.nbytes, REQUEST)
        if len(starts) == 1:
            self._fill(digest, offset, view)
            return
        with ThreadPoolExecutor(_AT_ONCE, "modelkeep-download") as lanes:
            parts = [lanes.submit(self._fill, digest, offset + at, view[at : at + REQUEST]) for at in starts]
            try:
                for part in parts:
                    part.result()
            finally:
                lanes.shutdown(cancel_futures=True)

    def _fill(self, digest: Digest, offset: int, into: memoryview) -> None:
        at = 0
        for piece in self._pieces(digest, offset, into.nbytes):
            into[at : at + len(piece)] = piece
            at += len(piece)

    def delete(self, digest: Digest) -> None:
        self._check_origin()
        with self._failures(f"delete blob {digest}"), contextlib.suppress(FileNotFoundError):
            obstore.delete(self._store, _name(digest_hex(parse_digest(digest))))

    def all(self) -> Iterator[Digest]:
        self._check_origin()
        with self._failures("list the blobs"):
            for page in obstore.list(self._store):
                names = (_BLOB.match(entry["path"]) for entry in page)
                yield from [Digest("sha256:" + found[2]) for found in names if found]

    def _put_large(self, first: bytes, parts: "_Parts") -> Digest:
        """Upload to a temporary key, which is not known by any digest, then copy. What a kill leaves there has no name."""
        temporary = f"new/{secrets.token_hex(16)}"
        try:
            self._upload(temporary, parts.after(first))
            name = _name(parts.hexdigest())
            self._copy(temporary, name, parts)
            with self._failures("store a blob"):
                stored = int(obstore.head(self._store, name)["size"])
        finally:
            with contextlib.suppress(BaseError, OSError):  # a lifecycle rule removes what this cannot: docs/stores.md
                obstore.delete(self._store, temporary)
        if stored != parts.size:
            raise Unavailable(f"{self.place} kept {stored} of {parts.size} bytes of a blob: try again")
        return Digest("sha256:" + parts.hexdigest())

    def _upload(self, name: str, parts: Iterator[bytes]) -> None:
        """Upload in parts. What ``parts`` raise is raised as it is."""
        done = _upload(self._store, name, parts)
        with self._failures("store a blob"):
            done.result()

    def _copy(self, temporary: str, name: str, parts: "_Parts") -> None:
        with self._failures("store a blob"):
            if parts.size <= MAX_COPY:
                obstore.copy(self._store, temporary, name)
                return
            stored = obstore.get(self._store, temporary).stream(_STREAMED)
            self._upload(name, _Parts(memoryview(piece) for piece in stored).checked(parts.hexdigest(), str(self.place)))

    def _pieces(self, digest: Digest, offset: int, length: int) -> Iterator[memoryview]:
        """The bytes asked for, as they arrive. Raises NotTrusted when there are fewer, or the store answers with others."""
        self._check_origin()
        name = _name(digest_hex(parse_digest(digest)))
        for start in range(offset, offset + length, REQUEST):
            end, at = min(start + REQUEST, offset + length), start
            with self._failures(f"read blob {digest}", digest):
                found = obstore.get(self._store, name, options={"range": (start, end)})
                if found.range[0] != start:
                    raise NotTrusted(f"{self.place} answers with other bytes of blob {digest} than it was asked for")
                for piece in found.stream(_STREAMED):
                    at += len(piece)
                    if at > end:
                        raise NotTrusted(f"{self.place} answers with more bytes of blob {digest} than it was asked for")
                    yield memoryview(piece)
            if at < end:
                raise _short(digest, offset, length)

    def _check_origin(self) -> None:
        """See once that the place is this keep's. Raises Invalid (another's), Unavailable (nobody's, or out of reach)."""
        with self._marking:
            if not self._marked:
                self._look_at_origin()
                self._marked = True

    def _look_at_origin(self) -> None:
        with self._failures("see whose blobs these are"):
            found = bytes(obstore.get(self._store, ORIGIN, options={"range": (0, 256)}).bytes())
        if found != self._origin.encode():
            whose = found.decode("ascii", "replace")[:80]
            raise Invalid(f"{self.place} holds the blobs of the keep {whose!r}, not of {self._origin!r}: mend [blobs] url")

    @contextlib.contextmanager
    def _failures(self, doing: str, digest: Digest | None = None) -> Iterator[None]:
        """The store's errors in our words; ``digest``: the blob whose absence may be told as Missing."""
        try:
            yield
        except FileNotFoundError as cause:
            if digest is None or "NoSuchBucket" in str(cause):
                raise Unavailable(f"cannot {doing}: there is no keep's store at {self.place}, or not any more") from None
            self._look_at_origin()
            raise Missing(f"there is no blob {digest} in {self.place}") from None
        except AlreadyExistsError:
            raise Conflict(f"cannot {doing}: it exists in {self.place}") from None
        except (PermissionDeniedError, UnauthenticatedError) as cause:
            why = _why(cause)
            raise Unavailable(f"cannot {doing}: {self.place} refuses these credentials ({why}); see docs/stores.md") from None
        except (BaseError, OSError, ValueError) as cause:
            if digest is not None and " 416 " in str(cause):
                raise NotTrusted(f"blob {digest} ends before what was asked for: it is truncated") from None
            raise Unavailable(f"cannot {doing}: {self.place} failed ({_why(cause)})") from None


class _Parts:
    """Chunks hashed and regrouped into parts of ``PART`` bytes (the last is shorter): copies, a chunk dies with the next."""

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._hash = hashlib.sha256()
        self._rest = memoryview(b"")
        self.size = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        part = bytearray()
        while len(part) < PART:
            if not self._rest:
                chunk = next(self._chunks, None)
                if chunk is None:
                    break
                self._rest = memoryview(chunk).cast("B")
                self._hash.update(self._rest)
            taken = self._rest[: PART - len(part)]
            part += taken
            self._rest = self._rest[len(taken) :]
        if not part:
            raise StopIteration
        self.size += len(part)
        if self.size > MAX_PARTS * PART:
            raise TooLarge(f"a blob in S3 has at most {MAX_PARTS * PART >> 30} GiB")
        return bytes(part)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()

    def after(self, first: bytes) -> Iterator[bytes]:
        yield first
        yield from self

    def checked(self, hexdigest: str, where: str) -> Iterator[bytes]:
        """The parts; an upload that takes them is given up at the end when they are not what ``hexdigest`` names."""
        yield from self
        if self.hexdigest() != hexdigest:
            raise NotTrusted(f"{where} gave back other bytes than were stored a moment ago")


class _GivenUp(Exception):
    """Ends an upload from within, so that it is aborted."""


def _upload(store: S3Store, name: str, parts: Iterator[bytes]) -> "Future[PutResult]":
    """A multipart upload that has ended, well or not: completed when ``parts`` end, aborted when they raise (and so does this).

    obstore asks its iterator on the thread that drives its network, where nothing may use obstore, as ``parts`` that read
    another blob do. So they are asked here, and handed over through a queue.
    """
    waiting: queue.Queue[bytes | None] = queue.Queue(1)
    given_up = threading.Event()

    def feed() -> Iterator[bytes]:
        while (part := waiting.get()) is not None:
            yield part
        if given_up.is_set():
            raise _GivenUp

    def hand_over(part: bytes | None) -> None:
        while not done.done():
            try:
                waiting.put(part, timeout=0.1)
            except queue.Full:
                continue
            break

    with ThreadPoolExecutor(1, "modelkeep-upload") as lane:
        done = lane.submit(
            obstore.put, store, name, feed(), use_multipart=True, chunk_size=PART, max_concurrency=_AT_ONCE
        )  # fmt: skip
        try:
            for part in parts:
                hand_over(part)
                if done.done():
                    break  # it failed: the result says why
        except BaseException:
            given_up.set()
            raise
        finally:
            hand_over(None)
    return done


def _name(hexdigest: str) -> str:
    return f"{hexdigest[:2]}/{hexdigest}"


def _short(digest: Digest, offset: int, length: int) -> NotTrusted:
    return NotTrusted(f"blob {digest} ends before {offset} + {length}: it is truncated")


def _open(place: Place) -> S3Store:
    client: ClientConfig = {**_TIMES}
    config: S3Config = {"disable_bulk_delete": True}
    if place.endpoint:
        config["endpoint"] = place.endpoint
        client["allow_http"] = place.endpoint.startswith("http:")
    if place.region:
        config["region"] = place.region
    try:
        if place.authority:
            client["root_certificate"] = Path(place.authority).read_bytes()
        return S3Store(place.bucket, prefix=place.prefix or None, config=config, client_options=client, retry_config=_RETRY)
    except OSError as cause:
        raise Unavailable(f"cannot read the certificate {place.authority}: {cause.strerror}") from cause
    except (BaseError, ValueError) as cause:
        raise Invalid(f"S3 cannot be used as the environment says ({_why(cause)}): see docs/stores.md") from None


def _why(cause: Exception) -> str:
    """A few words of an error of obstore, whose text is pages: S3's code, the HTTP status, or what the network said."""
    text = str(cause)
    status = re.search(r"status code: (\d{3} [A-Za-z ]+)", text)
    code = re.search(r"<Code>([A-Za-z0-9]{1,60})</Code>", text)
    network = re.search(r"HTTP error: ([^\n]{1,80})", text)
    words = [found[1].strip() for found in (code, status or network) if found]
    return ", ".join(words) or (text.splitlines() or [type(cause).__name__])[0][:120]
