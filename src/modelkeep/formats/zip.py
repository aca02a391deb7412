"""Read a zip archive so strictly that every reader must see the same members: one directory, no gap, headers that agree.

Source: PKWARE APPNOTE 6.3.10, sections 4.3 and 4.4. What writers of models use is read: stored and deflated members, zip64,
data descriptors. Memory is bounded by what the caller asks to keep of a member.
"""

import struct
import zlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

from modelkeep.errors import Invalid, TooLarge

MAX_MEMBERS = 30_000
MAX_NAME = 1024
MAX_VERSION = 45
UNPACKED_BASE = 64 << 20
UNPACKED_RATIO = 16

_CHUNK = 1 << 18
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_CENTRAL = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")
_U32 = 0xFFFFFFFF
_DESCRIPTOR, _UTF8, _LEVELS, _ENCRYPTED = 0x0008, 0x0800, 0x0006, 0x2041
_EXTRA_ZIP64, _EXTRA_TORCH_PADDING = 0x0001, 0x4246

Kind = Literal["encrypted", "mismatch", "duplicate", "name", "gap", "bomb", "member"]


class Fault(NamedTuple):
    """Something in an archive that would let readers disagree, or that is not read: what kind, which member, why."""

    kind: Kind
    where: str
    why: str


class Member(NamedTuple):
    """One member, as its central header has it. ``start``: of its local header; ``begin``: of its ``packed`` bytes."""

    name: str
    flags: int
    method: int
    crc: int
    packed: int
    size: int
    start: int
    begin: int


class BadMember(Exception):
    """The bytes of a member are not what its headers say: a finding, not an error. ``kind`` says in which way."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Archive:
    """The members in the order of their bytes, and what is wrong with them; with faults, members may be missing."""

    data: memoryview
    members: tuple[Member, ...]
    faults: tuple[Fault, ...]
    left: int

    def unpack(self, member: Member, keep: int) -> bytes:
        """The first ``keep`` bytes of a member, after all of it was unpacked and checked.

        Raises BadMember: its size or checksum is wrong, or all that was unpacked is more than 64 MiB and 16 times the file.
        """
        packed = self.data[member.begin : member.begin + member.packed]
        self.left -= member.size
        if self.left < 0 or member.size > 1100 * len(packed) + 64:
            raise BadMember("bomb", f"the member unpacks to {member.size} bytes, out of proportion to the archive")
        kept, size, crc = _stored(packed, keep) if member.method == 0 else _inflated(packed, member.size, keep)
        if size != member.size or crc != member.crc:
            raise BadMember("mismatch", "the bytes of the member do not have the size and checksum that its header gives")
        return kept


def ends_as_zip(data: memoryview) -> bool:
    """Whether a reader that looks for a zip directory from the end would find one."""
    tail = bytes(data[-(_END.size + 0xFFFF) :])
    at = tail.rfind(b"PK\x05\x06")
    while at >= 0:
        if at + _END.size <= len(tail) and (
            at + _END.size + int.from_bytes(tail[at + 20 : at + 22], "little") == len(tail)
            or _has_directory(data, len(data) - len(tail) + at)
        ):
            return True
        at = tail.rfind(b"PK\x05\x06", 0, at)
    return False


def _has_directory(data: memoryview, at: int) -> bool:
    """Whether a directory stands before the end record at ``at``: Python's reader does not ask whether bytes follow it."""
    size = int.from_bytes(data[at + 12 : at + 16], "little")
    wide = at >= _LOCATOR.size and bytes(data[at - _LOCATOR.size : at - _LOCATOR.size + 4]) == b"PK\x06\x07"
    return wide or (0 < size <= at and bytes(data[at - size : at - size + 4]) == b"PK\x01\x02")


def read_zip(data: memoryview) -> Archive:
    """The members of a whole archive that begins at its first byte. Raises Invalid (not read at all), TooLarge."""
    return _Reader(data).read()


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._faults: list[Fault] = []

    def read(self) -> Archive:
        count, offset, end = self._directory()
        if count > MAX_MEMBERS:
            raise TooLarge(f"the archive has {count} members, and at most {MAX_MEMBERS} are read")
        members, at = [], offset
        for _ in range(count):
            member, at = self._central(at, end)
            members.append(member)
        if at != end:
            self._fault("gap", "directory", "the directory of the archive is longer than its members")
        members.sort(key=lambda member: member.start)
        placed = self._place(members, offset)
        self._check_names(placed)
        left = UNPACKED_BASE + UNPACKED_RATIO * len(self._data)
        return Archive(self._data, tuple(placed), tuple(self._faults), left)

    def _fault(self, kind: Kind, where: str, why: str) -> None:
        if len(self._faults) < 64:
            self._faults.append(Fault(kind, where, why))

    def _directory(self) -> tuple[int, int, int]:
        """Count of members, begin and end of the central directory."""
        data, at = self._data, len(self._data) - _END.size
        if at < 0 or bytes(data[at : at + 4]) != b"PK\x05\x06" or b"PK\x05\x06" in bytes(data[at + 1 :]):
            raise Invalid("the archive is cut off, or bytes or a comment follow its end")
        _, disk, disk0, here, count, size, offset, comment = _END.unpack_from(data, at)
        if disk or disk0 or here != count or comment:
            raise Invalid("the archive is split over files, or its end has a comment that is not there")
        end = at
        if at >= _LOCATOR.size and bytes(data[at - _LOCATOR.size : at - _LOCATOR.size + 4]) == b"PK\x06\x07":
            end, narrow = self._zip64(at - _LOCATOR.size), (count, size, offset)
            *_, here, count, size, offset = _END64.unpack_from(data, end)
            limits = (0xFFFF, _U32, _U32)
            if here != count or any(n not in (w, m) for n, w, m in zip(narrow, (count, size, offset), limits, strict=True)):
                raise Invalid("the two ends of the archive disagree about its directory")
        if offset + size != end:
            raise Invalid("the directory of the archive is not where its end says: bytes stand before or after it")
        return count, offset, end

    def _zip64(self, locator: int) -> int:
        """Where the zip64 end record begins; it must stand right before its locator."""
        _, disk, at, disks = _LOCATOR.unpack_from(self._data, locator)
        if disk or disks != 1 or at != locator - _END64.size or bytes(self._data[at : at + 4]) != b"PK\x06\x06":
            raise Invalid("the zip64 end of the archive is not where its locator says")
        if _END64.unpack_from(self._data, at)[1] != _END64.size - 12:
            raise Invalid("the zip64 end of the archive has data that is not understood")
        return int(at)

    def _central(self, at: int, end: int) -> tuple[Member, int]:
        if at + _CENTRAL.size > end:
            raise Invalid("the directory of the archive is cut off")
        head = _CENTRAL.unpack_from(self._data, at)
        signature, _, version, flags, method, _, _, crc, packed, size, n, e, c, disk, _, attributes, start = head
        stop = at + _CENTRAL.size + n + e + c
        if signature != b"PK\x01\x02" or stop > end or disk or n > MAX_NAME:
            raise Invalid("the directory of the archive is malformed")
        raw = bytes(self._data[at + _CENTRAL.size : at + _CENTRAL.size + n])
        name = self._name(raw, flags)
        extra = self._extra(at + _CENTRAL.size + n, e, name, frozenset({_EXTRA_ZIP64}))
        size, packed, start = _widen(extra, (size, packed, start))
        kind = attributes >> 28
        if kind not in (0, 8):
            self._fault("name", name, "the member is a link or a device, not a file")
        if version > MAX_VERSION:
            self._fault("member", name, f"the member needs version {version} of the format, which is not understood")
        if c:
            self._fault("gap", name, "the member has a comment")
        self._check_flags(name, flags, method)
        return Member(name, flags, method, crc, packed, size, start, 0), stop

    def _name(self, raw: bytes, flags: int) -> str:
        try:
            return raw.decode("utf-8" if flags & _UTF8 else "ascii")
        except UnicodeDecodeError as cause:
            raise Invalid("the name of a member of the archive is not text") from cause

    def _extra(self, at: int, length: int, name: str, allowed: frozenset[int]) -> bytes:
        """The zip64 extra field, empty when there is none."""
        found, end = b"", at + length
        while at + 4 <= end:
            tag, size = struct.unpack_from("<2H", self._data, at)
            if at + 4 + size > end or tag not in allowed or (tag == _EXTRA_ZIP64 and found):
                break
            if tag == _EXTRA_ZIP64:
                found = bytes(self._data[at + 4 : at + 4 + size])
            at += 4 + size
        if at != end:
            self._fault("member", name, "the member has an extra field that is not understood")
        return found

    def _check_flags(self, name: str, flags: int, method: int) -> None:
        if flags & _ENCRYPTED:
            self._fault("encrypted", name, "the member is marked as encrypted")
        elif flags & ~(_DESCRIPTOR | _UTF8 | (_LEVELS if method == 8 else 0)):
            self._fault("member", name, f"the member has flags {flags:#06x} that are not understood")
        if method not in (0, 8):
            self._fault("member", name, f"the member is packed with method {method}, which is not understood")

    def _place(self, members: list[Member], end: int) -> list[Member]:
        """The same members with where their bytes begin; each must follow the one before without a gap."""
        placed: list[Member] = []
        at = 0
        for member in members:
            if member.start != at:
                self._fault("gap", member.name, "bytes lie before the member that belong to none, or members overlap")
                at = member.start
            begin = self._local(member, end)
            if begin < 0:
                return placed
            at = self._after(member, begin, end)
            placed.append(member._replace(begin=begin))
        if at != end:
            self._fault("gap", "archive", "bytes lie before the directory that belong to no member")
        return placed

    def _local(self, member: Member, end: int) -> int:
        """Where the bytes of a member begin, or -1: its local header is not one, or they do not fit."""
        at = member.start
        if at + _LOCAL.size > end:
            self._fault("mismatch", member.name, "the local header of the member lies outside of the archive")
            return -1
        signature, _, flags, method, _, _, crc, packed, size, n, e = _LOCAL.unpack_from(self._data, at)
        begin = at + int(_LOCAL.size + n + e)
        if signature != b"PK\x03\x04" or begin + member.packed > end or n > MAX_NAME:
            self._fault("mismatch", member.name, "the member has no local header, or its bytes run into the directory")
            return -1
        raw = bytes(self._data[at + _LOCAL.size : at + _LOCAL.size + n])
        allowed = frozenset({_EXTRA_ZIP64, _EXTRA_TORCH_PADDING})
        extra = self._extra(at + _LOCAL.size + n, e, member.name, allowed)
        size, packed, _ = _widen(extra, (size, packed, 0))
        said = (crc, packed, size)
        wanted = (member.crc, member.packed, member.size)
        later = flags & _DESCRIPTOR and all(s in (0, w) for s, w in zip(said, wanted, strict=True))
        if (flags, method, raw) != (member.flags, member.method, member.name.encode()) or not (said == wanted or later):
            self._fault("mismatch", member.name, "the local header of the member and the directory disagree")
        return begin

    def _after(self, member: Member, begin: int, end: int) -> int:
        """Where the member ends, with its data descriptor when it says that it has one."""
        at = begin + member.packed
        if not member.flags & _DESCRIPTOR:
            return at
        for form in ("<4s3I", "<4sI2Q"):
            size = struct.calcsize(form)
            wanted = (b"PK\x07\x08", member.crc, member.packed, member.size)
            if at + size <= end and struct.unpack_from(form, self._data, at) == wanted:
                return at + size
        self._fault("mismatch", member.name, "the member has no data descriptor that agrees with the directory")
        return at

    def _check_names(self, members: list[Member]) -> None:
        seen: set[str] = set()
        for member in members:
            name = member.name
            parts = name.split("/")
            if not name.isprintable() or "\\" in name or ":" in name or any(p in ("", ".", "..") for p in parts):
                self._fault("name", name, "the name of the member is a folder, leads out of the archive, or is no plain name")
            if name in seen:
                self._fault("duplicate", name, "the archive has two members of this name")
            seen.add(name)


def _widen(extra: bytes, fields: tuple[int, int, int]) -> tuple[int, int, int]:
    """Size, packed size and offset, the full ones taken from a zip64 extra field in this order (APPNOTE 4.5.3)."""
    if not extra:
        return fields
    wide, at = [], 0
    for value in fields:
        full = value == _U32
        if full and at + 8 > len(extra):
            raise Invalid("a zip64 extra field is too short")
        wide.append(int.from_bytes(extra[at : at + 8], "little") if full else value)
        at += 8 if full else 0
    if at != len(extra):
        raise Invalid("a zip64 extra field has values that nobody asks for")
    return wide[0], wide[1], wide[2]


def _stored(packed: memoryview, keep: int) -> tuple[bytes, int, int]:
    return bytes(packed[:keep]), len(packed), zlib.crc32(packed)


def _inflated(packed: memoryview, size: int, keep: int) -> tuple[bytes, int, int]:
    """What is kept, the size and the checksum; unpacking stops one byte after ``size``."""
    inflate, kept, done, crc, at = zlib.decompressobj(-15), bytearray(), 0, 0, 0
    pending = b""
    try:
        while not inflate.eof and done <= size:
            if not pending and at >= len(packed):
                break
            if not pending:
                pending, at = bytes(packed[at : at + _CHUNK]), at + _CHUNK
            piece = inflate.decompress(pending, min(_CHUNK, size - done + 1))
            pending = inflate.unconsumed_tail
            done, crc = done + len(piece), zlib.crc32(piece, crc)
            kept += piece[: max(0, keep - len(kept))]
    except zlib.error as cause:
        raise BadMember("mismatch", "the deflated bytes of the member are malformed") from cause
    if not inflate.eof or inflate.unused_data or pending or at < len(packed):
        raise BadMember("mismatch", "the deflated bytes of the member end early, or others follow them")
    return bytes(kept), done, crc
