"""``Sink`` over HTTPS: batches of records to a receiver of webhooks, signed as standardwebhooks.com says.

``webhook-signature: v1,`` is base64 of HMAC-SHA-256 over ``<webhook-id>.<webhook-timestamp>.<body>``. The id is made of the
body, so that a batch which is sent again has the same one. A 2xx answer is the receiver's word that it has the batch for good.
"""

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass, field
from typing import Any

import httptools
import msgspec

from modelkeep.adapters.sinks.ocsf import moment
from modelkeep.adapters.sinks.stream import Stream
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import SinkBatch, SinkPlace
from modelkeep.errors import Invalid, Unavailable

RECORDS, CHECKPOINT = "modelkeep.audit.records", "modelkeep.audit.checkpoint"
_ENCODER = msgspec.json.Encoder()
_LONGEST_ANSWER = 64 << 10
_LONGEST_PART = 512
"""Entries in one request."""


class Records(msgspec.Struct, frozen=True):
    """``data`` of an event of records: ``entries`` exactly as logged, the first of index ``first``."""

    origin: str
    first: int
    entries: tuple[msgspec.Raw, ...]


class Noted(msgspec.Struct, frozen=True):
    """``data`` of an event with a checkpoint: the signed note."""

    origin: str
    note: str


class Event(msgspec.Struct, frozen=True):
    """The body. ``timestamp``: that of the first record (ISO 8601), so that the same records give the same body."""

    type: str
    timestamp: str
    data: Records | Noted


class _Stamped(msgspec.Struct):
    t: int = 0


@never_pickled
@dataclass(frozen=True)
class Secret:
    """What the receiver knows the sender by."""

    key: bytes = field(repr=False)

    @classmethod
    def parse(cls, text: bytes) -> "Secret":
        """``whsec_`` and base64, as receivers hand it out. Raises Invalid (another form, or not 24 to 64 bytes)."""
        raw = text.strip()
        try:
            key = base64.b64decode(raw.removeprefix(b"whsec_"), validate=True)
        except ValueError:
            key = b""
        if not raw.startswith(b"whsec_") or not 24 <= len(key) <= 64:
            raise Invalid("the secret of a webhook is 'whsec_' and 24 to 64 bytes in base64")
        return cls(key)

    def sign(self, name: str, timestamp: int, body: bytes) -> str:
        """The value of ``webhook-signature``."""
        signed = f"{name}.{timestamp}.".encode() + body
        return "v1," + base64.b64encode(hmac.digest(self.key, signed, "sha256")).decode()


class WebhookSink:
    """A receiver at ``target`` (path and query) of ``stream``."""

    def __init__(self, stream: Stream, target: str, secret: Secret, product: str) -> None:
        """``product``: version of this software."""
        self.name = f"{'https' if stream.tls else 'http'}://{stream.host}:{stream.port}{target.partition('?')[0]}"
        self._stream, self._target, self._secret = stream, target, secret
        self._product = product
        self._host = stream.host if stream.port in (80, 443) else f"{stream.host}:{stream.port}"

    def resume(self, origin: str) -> SinkPlace | None:
        """Nothing to do: every batch stands for itself."""
        del origin
        return None

    def accept(self, batch: SinkBatch) -> None:
        """Post the batch, in parts where it is long; 2xx is yes."""
        for at in range(0, len(batch.entries), _LONGEST_PART):
            part = batch.entries[at : at + _LONGEST_PART]
            records = Records(batch.origin, batch.first + at, tuple(map(msgspec.Raw, part)))
            begins = msgspec.json.decode(part[0], type=_Stamped).t
            self._post(_ENCODER.encode(Event(RECORDS, moment(begins), records)))

    def checkpoint(self, origin: str, note: bytes) -> None:
        """Post the signed checkpoint."""
        self._post(_ENCODER.encode(Event(CHECKPOINT, moment(time.time_ns()), Noted(origin, note.decode()))))

    def probe(self) -> None:
        """Ask with HEAD: any answer below 500 shows that somebody listens."""
        status = self._ask(f"HEAD {self._target} HTTP/1.1\r\nhost: {self._host}\r\n\r\n".encode(), head=True)
        if status >= 500:
            raise Unavailable(f"{self.name} answers {status}")

    def _post(self, body: bytes) -> None:
        name, now = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", int(time.time())
        head = (
            f"POST {self._target} HTTP/1.1\r\nhost: {self._host}\r\nuser-agent: modelkeep/{self._product}\r\n"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\nwebhook-id: {name}\r\n"
            f"webhook-timestamp: {now}\r\nwebhook-signature: {self._secret.sign(name, now, body)}\r\n\r\n"
        )
        status = self._ask(head.encode("ascii") + body)
        if not 200 <= status < 300:
            raise Unavailable(f"{self.name} answers {status} and not 2xx")

    def _ask(self, request: bytes, *, head: bool = False) -> int:
        """The status of the final answer, within one deadline. A kept connection may be stale: then once more, on a new one."""
        self._stream.begin()
        kept = not self._stream.fresh
        if kept and self._stream.spoiled():  # what was said unasked is no answer to what comes now
            self._stream.close()
            self._stream.begin(again=True)
            kept = False
        try:
            return self._once(request, head)
        except Unavailable:
            if not kept or self._stream.late:
                raise
        self._stream.close()
        self._stream.begin(again=True)
        return self._once(request, head)

    def _once(self, request: bytes, head: bool) -> int:
        answer = _Answer()
        answer.parser = parser = httptools.HttpResponseParser(answer)
        self._stream.send(request)
        size = 0
        while not (answer.complete or (head and answer.headers)):  # what follows HEAD has no body, whatever its headers say
            data = self._stream.receive()
            size += len(data)
            if not data or size > _LONGEST_ANSWER:
                self._stream.close()
                raise Unavailable(f"{self.name} closed the connection before it had answered, or says too much")
            try:
                parser.feed_data(data)
            except (httptools.HttpParserError, httptools.HttpParserUpgrade) as cause:
                self._stream.close()
                raise Unavailable(f"{self.name} does not speak HTTP: {cause}") from cause
        if not answer.keep or answer.more:
            self._stream.close()
        return answer.status

    def close(self) -> None:
        """Drop the connection."""
        self._stream.close()


@dataclass
class _Answer:
    """What the parser calls. Interim answers (1xx) come before the final one; the first final one counts, and no later word.

    ``keep``: the connection may be used again, which the parser knows only in its calls; ``more``: there was a later word.
    """

    parser: Any = None
    status: int = 0
    headers: bool = False
    complete: bool = False
    keep: bool = False
    more: bool = False

    def on_message_begin(self) -> None:
        self.more = self.complete

    def on_headers_complete(self) -> None:
        if not self.headers and self.parser.get_status_code() >= 200:
            self.status, self.headers, self.keep = self.parser.get_status_code(), True, self.parser.should_keep_alive()

    def on_message_complete(self) -> None:
        if self.headers and not self.complete:
            self.complete, self.keep = True, self.parser.should_keep_alive()
