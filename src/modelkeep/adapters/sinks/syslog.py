"""``Sink`` over syslog: RFC 5424 messages, framed by their length (RFC 5425, section 4.3), over TLS 1.3.

Syslog has no acknowledgement. What ``accept`` waits for is that the other *machine* has acknowledged every byte (TCP) and the
connection stands: a receiver that dies with messages in its buffer loses them, and nobody notices.
"""

import time
from collections.abc import Iterator

import msgspec

from modelkeep.adapters.sinks.ocsf import event, moment
from modelkeep.adapters.sinks.stream import Stream
from modelkeep.core.ports import SinkBatch, SinkPlace

_AUDIT, _NOTICE, _INFO = 13, 5, 6  # RFC 5424, section 6.2.1: facility "log audit", severities


class SyslogSink:
    """A syslog server that takes TLS."""

    def __init__(self, stream: Stream, *, hostname: str, product: str) -> None:
        """``hostname``: what messages say they come from; ``product``: version of this software."""
        self.name = f"syslog+tls://{stream.host}:{stream.port}"
        self._stream, self._product = stream, product
        self._hostname = _token(hostname, 255)

    def resume(self, origin: str) -> SinkPlace | None:
        """Connect."""
        del origin
        self._stream.begin()
        return None

    def accept(self, batch: SinkBatch) -> None:
        """Send one message a record and wait until TCP has seen all of it acknowledged."""
        frames = b"".join(self._frames(batch))
        self._stream.begin()
        self._stream.send(frames)
        self._stream.drain()

    def _frames(self, batch: SinkBatch) -> Iterator[bytes]:
        for index, entry in enumerate(batch.entries, batch.first):
            at, text = event(entry, batch.origin, index, self._product)
            severity = _NOTICE if b'"kind":"predict"' not in entry else _INFO
            yield self._frame(severity, at, "record", text)

    def checkpoint(self, origin: str, note: bytes) -> None:
        """Send the signed checkpoint as a message of its own: in JSON, because servers mend line breaks."""
        at, text = time.time_ns(), msgspec.json.encode({"log_name": origin, "checkpoint": note.decode()})
        self._stream.begin()
        self._stream.send(self._frame(_INFO, at, "checkpoint", text))
        self._stream.drain()

    def _frame(self, severity: int, at: int, kind: str, text: bytes) -> bytes:
        head = f"<{_AUDIT * 8 + severity}>1 {moment(at)} {self._hostname} modelkeep - {kind} - "
        message = head.encode("ascii") + text
        return b"%d " % len(message) + message

    def probe(self) -> None:
        """See that the connection stands. A server that hangs and still acknowledges is not seen."""
        self._stream.begin()
        self._stream.drain()

    def close(self) -> None:
        """Drop the connection."""
        self._stream.close()


def _token(text: str, longest: int) -> str:
    """PRINTUSASCII of RFC 5424, or its "nothing"."""
    return "".join(c for c in text if 33 <= ord(c) <= 126)[:longest] or "-"
