"""A snapshot of an advisory database, read: the zip of OSV records that osv.dev hands out for one ecosystem, as an index.

An archive comes from outside, so nothing in it is believed: names of its members are never used as paths, and count, sizes and
ratio are bounded before anything is unpacked, one member at a time. A record that cannot be read refuses the whole archive,
because nobody knows which packages it is about. Source: OSV schema 1.7 (ossf.github.io/osv-schema).
"""

import datetime
import io
import re
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import msgspec

from modelkeep.core.values import digest_of, to_json
from modelkeep.custody.advisories import Advice, Event, Index, canonical_name, pack
from modelkeep.custody.cvss import CRITICAL, HIGH, LOW, MEDIUM, UNKNOWN, base_score, severity_of
from modelkeep.errors import Invalid, TooLarge

ECOSYSTEM = "PyPI"
MAX_ARCHIVE, MAX_RECORD, MAX_TOTAL = 256 << 20, 8 << 20, 2 << 30
"""Bytes of an archive, of one record, and of all of them unpacked."""
MAX_RECORDS, MAX_RATIO, RATIO_SLACK = 400_000, 100, 16 << 20
"""Members of an archive; how often larger it may be unpacked, beyond the slack in bytes."""
MAX_VERSIONS = 20_000
"""Versions that one record lists; the longest list of a real package has a tenth of that."""
_UNREADABLE = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, NotImplementedError, OSError, ValueError, OverflowError)
"""What zipfile says of archives that are none."""
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+-]{0,79}\Z")
_LABELS = {"CRITICAL": CRITICAL, "HIGH": HIGH, "MODERATE": MEDIUM, "MEDIUM": MEDIUM, "LOW": LOW}
_MALICIOUS = "MAL-"
"""Records of malicious packages carry no severity: there is none to weigh."""


class _Package(msgspec.Struct, frozen=True):
    ecosystem: str = ""
    name: str = ""


class _Event(msgspec.Struct, frozen=True):
    introduced: str | None = None
    fixed: str | None = None
    last_affected: str | None = None
    limit: str | None = None


class _Range(msgspec.Struct, frozen=True):
    type: str = ""
    events: tuple[_Event, ...] = ()


class _Severity(msgspec.Struct, frozen=True):
    type: str = ""
    score: str = ""


class _Affected(msgspec.Struct, frozen=True):
    package: _Package | None = None
    ranges: tuple[_Range, ...] | None = None
    versions: tuple[str, ...] | None = None
    severity: tuple[_Severity, ...] | None = None


class _Specific(msgspec.Struct, frozen=True):
    severity: Any = None


class _Record(msgspec.Struct, frozen=True):
    id: str
    modified: datetime.datetime
    withdrawn: datetime.datetime | None = None
    aliases: tuple[str, ...] | None = None
    affected: tuple[_Affected, ...] | None = None
    severity: tuple[_Severity, ...] | None = None
    database_specific: _Specific | None = None


_RECORD = msgspec.json.Decoder(_Record)


def read_snapshot(archive: bytes, *, source: str, now_ns: int) -> Index:
    """The index of all advisories about packages of PyPI in ``archive``; records of other ecosystems are passed over.

    ``newest`` is the latest ``modified`` that is not in the future, so that no record makes the snapshot younger than it is.
    Raises Invalid (no such archive, a record that cannot be read, nothing about PyPI), TooLarge.
    """
    if len(archive) > MAX_ARCHIVE:
        raise TooLarge(f"the archive has {len(archive):,} bytes, more than {MAX_ARCHIVE:,}: take the one of PyPI alone")
    packages: dict[str, list[bytes]] = defaultdict(list)  # encoded at once: records have long lists of versions
    newest = records = withdrawn = others = 0
    for where, text in _members(archive):
        record = _read(where, text)
        about = _about(record)
        if not about:
            others += 1
            continue
        records += 1
        modified = _nanoseconds(record.modified)
        newest = max(newest, modified if modified <= now_ns else 0)
        if record.withdrawn is not None:
            withdrawn += 1
            continue
        for affected in about:
            packages[_name_of(record, affected)].append(to_json(_advice(record, affected)))
    if not records:
        raise Invalid(f"the archive has no advisory about {ECOSYSTEM}: take the all.zip of the ecosystem {ECOSYSTEM}")
    return Index(
        source=source,
        snapshot=digest_of(archive),
        newest=newest,
        records=records,
        withdrawn=withdrawn,
        others=others,
        packages={name: pack(advice) for name, advice in packages.items()},
    )


def _members(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """A name to show, and the content, of every member."""
    # Each member has one such mark in the directory, which zipfile reads whole.
    if archive.count(b"PK\x01\x02") > MAX_RECORDS:
        raise TooLarge(f"the archive has more than {MAX_RECORDS:,} members")
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as opened:
            members = [member for member in opened.infolist() if not member.filename.endswith("/")]  # one may have no name
            _check_sizes(members, len(archive))
            for member in members:
                with opened.open(member) as stream:
                    yield ascii(member.filename[:80]), stream.read(MAX_RECORD + 1)
    except _UNREADABLE as cause:
        raise Invalid(f"this is no zip archive that can be read: {cause}") from cause
    except RuntimeError as cause:  # zipfile's word for an encrypted member
        raise Invalid("the archive holds encrypted members") from cause


def _check_sizes(members: list[zipfile.ZipInfo], packed: int) -> None:
    total = sum(member.file_size for member in members)
    if total > min(MAX_TOTAL, MAX_RATIO * packed + RATIO_SLACK):
        raise TooLarge(f"the archive of {packed:,} bytes would have {total:,} unpacked: that is no advisory database")
    for member in members:
        if member.file_size > MAX_RECORD:
            raise TooLarge(f"{member.filename[:80]!a} would have {member.file_size:,} bytes, more than {MAX_RECORD:,}")
        if member.flag_bits & 0x1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Invalid(f"{member.filename[:80]!a} is encrypted, or packed in a way that is not read here")


def _read(where: str, text: bytes) -> _Record:
    try:
        record = _RECORD.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Invalid(f"{where} in the archive is no OSV record, so the archive was not imported: {cause}") from cause
    if not _ID.match(record.id):
        raise Invalid(f"{where} in the archive has {record.id[:80]!a} for an id, so the archive was not imported")
    return record


def _about(record: _Record) -> list[_Affected]:
    return [
        affected
        for affected in record.affected or ()
        if affected.package is not None and affected.package.ecosystem.partition(":")[0] == ECOSYSTEM
    ]


def _name_of(record: _Record, affected: _Affected) -> str:
    try:
        return canonical_name(affected.package.name if affected.package else "")
    except Invalid as cause:
        raise Invalid(f"the advisory {record.id} cannot be read, so the archive was not imported: {cause}") from cause


def _advice(record: _Record, affected: _Affected) -> Advice:
    severity, score = _severity(record, affected)
    ranges = affected.ranges or ()
    judged = tuple(_events(one) for one in ranges if one.type == "ECOSYSTEM")
    versions = affected.versions or ()
    if len(versions) > MAX_VERSIONS:
        raise TooLarge(f"the advisory {record.id} lists {len(versions):,} versions, more than {MAX_VERSIONS:,}")
    unjudged = {one.type[:20] for one in ranges if one.type not in ("ECOSYSTEM", "GIT")}
    if not judged and not versions:  # a GIT range beside versions says the same of commits (schema, affected[].ranges[].type)
        unjudged |= {one.type for one in ranges if one.type == "GIT"} or {"no"}
    return Advice(
        id=record.id,
        aliases=tuple(alias for alias in record.aliases or () if _ID.match(alias)),
        severity=severity,
        score=score,
        versions=versions,
        ranges=judged,
        unjudged=tuple(sorted(unjudged)),
    )


def _events(one: _Range) -> tuple[Event, ...]:
    found: list[Event] = []
    for event in one.events:
        pairs = (("i", event.introduced), ("f", event.fixed), ("a", event.last_affected), ("l", event.limit))
        found += [(kind, version) for kind, version in pairs if version is not None]
    return tuple(found)


def _severity(record: _Record, affected: _Affected) -> tuple[str, float]:
    """The severity and the base score; the highest of several. Without a vector, what the database itself says."""
    scores = []
    for said in (*(affected.severity or ()), *(record.severity or ())):
        try:
            scores.append(base_score(said.score))
        except Invalid:  # CVSS 2, Ubuntu's words, or damaged: as good as not there
            continue
    if record.id.startswith(_MALICIOUS):
        return CRITICAL, max(scores, default=-1.0)
    if scores:
        return severity_of(max(scores)), max(scores)
    label = record.database_specific.severity if record.database_specific else None
    return (_LABELS.get(label.upper(), UNKNOWN) if isinstance(label, str) else UNKNOWN), -1.0


def _nanoseconds(moment: datetime.datetime) -> int:
    """Unix nanoseconds; a time without a zone is one in UTC, as the schema wants."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    return int((aware - datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)) / datetime.timedelta(microseconds=1)) * 1000
