"""The audit journal: what is on stable storage before an answer leaves. docs/formats/audit.md specifies every byte.

A journal is a run of segments, ``journal/000000`` onwards, each a run of frames. A frame is one group commit: a header with its
own checksum, the records, and a tag, HMAC-SHA-256 under a key that only the log's signer can derive, chained to the tag before.
So a frame that ends early is one that was never acknowledged, and every other defect is damage. Without the key the frames can
still be read; auditors check the records against the log's tiles instead.
"""

import hashlib
import hmac
import struct
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import msgspec

from modelkeep.core.ports import Journal, LogFiles, SinkBatch
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import NotTrusted

FOLDER = "journal/"
SEGMENT_SIZE = 32 << 20
FIRST_TAG = bytes(32)
_HEADER = struct.Struct(">IIQ")  # bytes of records, number of records, index of the first
_CHECKSUM = struct.Struct(">I")
_ENTRY = struct.Struct(">H")
_BODY = struct.Struct(">I")
_HEAD = _HEADER.size + _CHECKSUM.size
_TAG = 32

Record = tuple[bytes, bytes]
"""(entry as logged, encrypted body or nothing)."""


class AuditEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One logged act. The caller fills in ``kind`` to ``outcome``; the log fills in the rest when it writes the entry.

    ``kind``: ``predict``, ``deny``, ``open``, ``close`` ...; ``subject``: a pseudonym; ``release``: ``name@version``;
    ``request``: the request's id; ``outcome``: a word or two. ``body``: SHA-256, as hex, of the *encrypted* body, or empty.
    ``t``: Unix time in nanoseconds, never less than the entry before; ``behind``: how far, in nanoseconds, the clock stood
    behind the entry before when it had gone backwards. ``seq``: the entry's index. ``v``: 1.
    """

    kind: str
    subject: str = ""
    release: str = ""
    request: str = ""
    outcome: str = ""
    body: str = ""
    behind: int = 0
    seq: int = -1
    t: int = 0
    v: int = 1


_ENCODER = msgspec.json.Encoder(order="sorted")
_DECODER = msgspec.json.Decoder(AuditEntry)


@dataclass
class Stamps:
    """Gives entries their time and number, in order; ``t`` is the time of the last one."""

    t: int = 0

    def encode(self, entry: AuditEntry, body: bytes, index: int, now: int) -> bytes:
        """Complete ``entry`` as number ``index`` at wall time ``now`` and encode it as canonical JSON."""
        entry.v, entry.seq = 1, index
        entry.behind = max(0, self.t - now)
        entry.t = self.t = max(self.t, now)
        entry.body = hashlib.sha256(body).hexdigest() if body else ""
        return _ENCODER.encode(entry)


def decode_entry(data: bytes, index: int) -> AuditEntry:
    """The entry at ``index``. Raises NotTrusted: not an audit entry, or numbered otherwise."""
    try:
        entry = _DECODER.decode(data)
    except msgspec.MsgspecError as cause:
        raise NotTrusted(f"entry {index} is not an audit entry: {cause}") from cause
    if entry.v != 1 or entry.seq != index:
        raise NotTrusted(f"entry {index} says that it is entry {entry.seq} of version {entry.v}")
    return entry


class Frame(NamedTuple):
    """One group commit: ``signed`` is the header and records that ``tag`` covers; ``end`` is where it ends in the segment."""

    first: int
    records: tuple[Record, ...]
    signed: bytes
    tag: bytes
    end: int


def journal_key(signer: NoteSigner) -> bytes:
    """The key of the tags, from the audit log's signing key."""
    return signer.subkey(b"audit-journal")


def segment_path(number: int) -> str:
    """The relative path of a segment."""
    return f"{FOLDER}{number:06d}"


def encode_frame(key: bytes, previous: bytes, first: int, records: Sequence[Record]) -> tuple[bytes, bytes]:
    """One frame and its tag; ``previous`` is the tag before it."""
    parts: list[bytes] = []
    for entry, body in records:
        parts += (_ENTRY.pack(len(entry)), entry, _BODY.pack(len(body)), body)
    return _seal(key, previous, first, len(records), b"".join(parts))


def _opening(key: bytes, previous: bytes, first: int, origin: str, number: int) -> tuple[bytes, bytes]:
    """The frame without records that begins a segment and says whose it is."""
    return _seal(key, previous, first, 0, f"modelkeep-audit-journal/1\n{origin}\n{number}\n".encode())


def _seal(key: bytes, previous: bytes, first: int, count: int, payload: bytes) -> tuple[bytes, bytes]:
    header = _HEADER.pack(len(payload), count, first)
    signed = header + _CHECKSUM.pack(zlib.crc32(header)) + payload
    tag = hmac.digest(key, previous + signed, "sha256")
    return signed + tag, tag


def split_frames(data: bytes, origin: str, number: int) -> tuple[list[Frame], int]:
    """The whole frames of a segment and where they end; bytes behind that are a frame that was cut off while it was written.

    Raises NotTrusted: a damaged header, records that do not fill their frame, or the segment of another log or place.
    """
    frames: list[Frame] = []
    at = 0
    while len(data) - at >= _HEAD:
        length, count, first = _HEADER.unpack_from(data, at)
        if _CHECKSUM.unpack_from(data, at + _HEADER.size)[0] != zlib.crc32(data[at : at + _HEADER.size]):
            if not any(data[at:]):
                break  # a file system may leave zeros where unsynced bytes should be
            raise NotTrusted(f"{segment_path(number)} of {origin} is damaged at byte {at}")
        end = at + _HEAD + length + _TAG
        if end > len(data):
            break
        payload = data[at + _HEAD : end - _TAG]
        if not frames:
            _check_opening(payload, count, origin, number)
        records = tuple(_records(payload, count)) if count or frames else ()
        frames.append(Frame(first, records, data[at : end - _TAG], data[end - _TAG : end], end))
        at = end
    return frames, at


def _check_opening(payload: bytes, count: int, origin: str, number: int) -> None:
    if count or payload != f"modelkeep-audit-journal/1\n{origin}\n{number}\n".encode():
        raise NotTrusted(f"{segment_path(number)} is not segment {number} of the audit journal of {origin}")


def _records(payload: bytes, count: int) -> Iterator[Record]:
    at = 0
    try:
        for _ in range(count):
            (size,) = _ENTRY.unpack_from(payload, at)
            entry = payload[at + 2 : at + 2 + size]
            at += 2 + size
            (size,) = _BODY.unpack_from(payload, at)
            body = payload[at + 4 : at + 4 + size]
            at += 4 + size
            if at > len(payload):
                raise NotTrusted("a record of the audit journal is longer than its frame")
            yield entry, body
    except struct.error as cause:
        raise NotTrusted("a frame of the audit journal holds fewer records than it says") from cause
    if at != len(payload):
        raise NotTrusted("a frame of the audit journal holds more than its records")


def segments(files: LogFiles) -> list[int]:
    """Numbers of the segments that are there, ascending. Raises NotTrusted (a foreign file among them), Unavailable."""
    numbers = []
    for path in files.paths(FOLDER):
        name = path.removeprefix(FOLDER)
        if not name.isdecimal() or segment_path(int(name)) != path:
            raise NotTrusted(f"{path} is not a segment of an audit journal")
        numbers.append(int(name))
    return sorted(numbers)


def batches(files: LogFiles, origin: str, first: int) -> Iterator[SinkBatch]:
    """What the journal has from record ``first`` on, a frame at a time; a frame that is not whole yet ends it.

    The tags are not checked. Raises NotTrusted (damage), Missing, Unavailable.
    """
    numbers = segments(files)
    begin = segment_of(files, numbers, first)
    for number in range(numbers[begin], segments(files)[-1] + 1) if numbers else ():
        data, start = files.read(segment_path(number)), 0
        for frame in split_frames(data, origin, number)[0]:
            if not frame.records:
                continue  # what opens the segment goes with the first records in it
            if frame.first + len(frame.records) > first:
                entries = tuple(entry for entry, _ in frame.records)
                yield SinkBatch(origin, frame.first, entries, number, start, data[start : frame.end])
            start = frame.end


def segment_of(files: LogFiles, numbers: Sequence[int], first: int) -> int:
    """Where in ``numbers`` the segment stands that holds record ``first``; 0 when there are none."""
    return bisect_right(numbers, first, lo=1, key=lambda number: begins(files, number)) - 1 if numbers else 0


def begins(files: LogFiles, number: int) -> int:
    """Index of the first record of a segment, as its header says; beyond any record where it has none yet."""
    data = files.read(segment_path(number))
    return int(_HEADER.unpack_from(data)[2]) if len(data) >= _HEAD else 1 << 64


@dataclass
class JournalReader:
    """Reads a whole journal with its key, frame by frame, and ends knowing where the next frame belongs."""

    files: LogFiles
    key: bytes
    origin: str
    tag: bytes = FIRST_TAG
    index: int = 0
    segment: int = 0
    end: int = 0
    torn: bytes = b""

    def frames(self) -> Iterator[Frame]:
        """Every frame with records, checked. ``torn`` holds what lies behind the last one.

        Raises NotTrusted: any tag, order, segment or header that is wrong, or a torn frame that is not at the very end.
        """
        numbers = segments(self.files)
        if numbers != list(range(len(numbers))):
            raise NotTrusted(f"the audit journal of {self.origin} is missing a segment: found {numbers[:20]}")
        for number in numbers:
            if self.torn:
                raise NotTrusted(
                    f"{segment_path(self.segment)} of {self.origin} ends inside a frame, and more follow: truncated"
                )
            data = self.files.read(segment_path(number))
            found, self.end = split_frames(data, self.origin, number)
            self.segment, self.torn = number, data[self.end :]
            for frame in found:
                self._check(frame)
                if frame.records:
                    yield frame

    def _check(self, frame: Frame) -> None:
        if frame.first != self.index:
            raise NotTrusted(
                f"the audit journal of {self.origin} goes from record {self.index} to {frame.first}: reordered or cut"
            )
        if not hmac.compare_digest(hmac.digest(self.key, self.tag + frame.signed, "sha256"), frame.tag):
            raise NotTrusted(f"the audit journal of {self.origin} was altered at record {frame.first}")
        self.tag = frame.tag
        self.index += len(frame.records)


class JournalWriter:
    """Appends frames durably. Not for more than one thread at a time."""

    def __init__(self, files: LogFiles, key: bytes, origin: str) -> None:
        """Nothing is written before ``begin`` or ``resume``."""
        self._files = files
        self._key = key
        self._origin = origin
        self._tag = FIRST_TAG
        self._segment = 0
        self._size = 0
        self._opening = b""  # the frame that began this segment, until records follow it
        self._journal: Journal | None = None
        self.index = 0

    def begin(self) -> None:
        """Start an empty journal. Raises Unavailable."""
        self._roll(0)

    def resume(self, reader: JournalReader) -> None:
        """Go on where ``reader``, read to its end, found the last whole frame; the torn rest was cut off before.

        Raises Unavailable.
        """
        self._tag, self.index, self._size = reader.tag, reader.index, reader.end
        if reader.end == 0:
            self._roll(reader.segment)
        else:
            self._segment = reader.segment
            self._journal = self._files.journal(segment_path(reader.segment))

    def _roll(self, number: int) -> None:
        self.close()
        self._segment, self._size = number, 0
        self._journal = self._files.journal(segment_path(number))
        frame, self._tag = _opening(self._key, self._tag, self.index, self._origin, number)
        self._journal.append(frame)
        self._size, self._opening = len(frame), frame

    def check(self) -> None:
        """See that the journal's file is still there. Raises Unavailable."""
        if self._journal is not None:
            self._journal.check()

    def commit(self, records: Sequence[Record], ahead: Callable[[SinkBatch], None] | None = None) -> int:
        """Make ``records`` durable in one frame; returns the index of the first. Raises Unavailable.

        ``ahead``: given what is about to be written, before the first byte of it is.
        """
        if self._size >= SEGMENT_SIZE:
            self._roll(self._segment + 1)
        assert self._journal is not None
        first = self.index
        frame, tag = encode_frame(self._key, self._tag, first, records)
        if ahead is not None:
            start, entries = self._size - len(self._opening), tuple(entry for entry, _ in records)
            ahead(SinkBatch(self._origin, first, entries, self._segment, start, self._opening + frame))
        self._journal.append(frame)
        self._journal.sync()
        self._tag, self._opening = tag, b""
        self._size += len(frame)
        self.index += len(records)
        return first

    def close(self) -> None:
        """Release the segment; idempotent."""
        if self._journal is not None:
            self._journal.close()
            self._journal = None
