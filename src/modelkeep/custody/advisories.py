"""Known vulnerabilities of Python packages: the index of a snapshot, and which versions of a package it speaks about.

Three outcomes, never two: a version is affected, or not, or it *could not be judged*, and that is not "not affected". Versions
are compared as PEP 440 orders them, names as PEP 503 normalises them; ranges as the OSV schema evaluates them
(ossf.github.io/osv-schema, "Evaluation").
"""

import re
from collections.abc import Iterable, Iterator

import msgspec
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from modelkeep.core.values import Digest, to_json
from modelkeep.custody.cvss import rank
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.attestations import Advisory

FORMAT = 1
LONGEST_VERSION = 128
"""Characters of a version that is looked at; PyPI has none as long."""
MAX_FIXED, MAX_ALIASES = 6, 8
"""Mended versions, and other ids, that are told of one advisory."""
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")
_ORDER = {"f": 0, "i": 1, "a": 2}
"""Of events at one version: fixed first and last_affected last, so that a doubt reads as affected."""

Event = tuple[str, str]
"""``i`` introduced, ``f`` fixed, ``a`` last affected, ``l`` limit; and the version."""


class Advice(msgspec.Struct, frozen=True, array_like=True):
    """What one advisory says of one package. ``unjudged``: types of its ranges that cannot be compared with versions."""

    id: str
    aliases: tuple[str, ...]
    severity: str
    score: float
    versions: tuple[str, ...]
    ranges: tuple[tuple[Event, ...], ...]
    unjudged: tuple[str, ...]


class Index(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot, by package. ``newest``: when its newest record was changed, Unix nanoseconds; ``snapshot``: of the archive.

    ``records``: advisories about PyPI, the ``withdrawn`` ones among them, which are ignored; ``others``: records passed over.
    ``packages``: normalised name to the encoded ``Advice`` about it, decoded when it is asked for.
    """

    format: int = FORMAT
    source: str
    snapshot: Digest
    newest: int
    records: int
    withdrawn: int
    others: int
    packages: dict[str, msgspec.Raw]

    def advice(self, name: str) -> tuple[Advice, ...]:
        """Everything about the package of that normalised name. Raises NotTrusted (the index is damaged)."""
        raw = self.packages.get(name)
        if raw is None:
            return ()
        try:
            return msgspec.json.decode(raw, type=tuple[Advice, ...])
        except msgspec.MsgspecError as cause:
            raise NotTrusted(f"the advisories about {name} are damaged: import the snapshot again") from cause


def pack(advice: Iterable[bytes]) -> msgspec.Raw:
    """Advice, encoded as ``to_json`` does, as an index holds it; the id comes first in each, so they stand by id."""
    return msgspec.Raw(b"[" + b",".join(sorted(advice)) + b"]")


def encode_index(index: Index) -> bytes:
    """The index as it is stored."""
    return to_json(index)


def decode_index(data: bytes) -> Index:
    """The index that was stored. Raises NotTrusted (it is damaged, or of another format)."""
    try:
        index = msgspec.json.decode(data, type=Index)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise NotTrusted(f"the advisory index is damaged: import the snapshot again ({cause})") from cause
    if index.format != FORMAT:
        raise NotTrusted("the advisory index is of another version of modelkeep: import the snapshot again")
    return index


def canonical_name(name: str) -> str:
    """A package name as PEP 503 normalises it. Raises Invalid (it is none)."""
    if not _NAME.match(name):
        raise Invalid(f"{name[:80]!a} is not the name of a Python package")
    return canonicalize_name(name)


def parse_version(text: str) -> Version:
    """A version as PEP 440 reads it. Raises Invalid (it does not, or it is longer than any real one)."""
    if len(text) > LONGEST_VERSION:
        raise Invalid(f"a version has at most {LONGEST_VERSION} characters")
    try:
        return Version(text)
    except InvalidVersion as cause:
        raise Invalid(f"{text[:80]!a} is not a version that PEP 440 knows") from cause


class Judgement(msgspec.Struct, frozen=True):
    """What a snapshot says of one version: ``advisories`` that affect it, and why it is ``unjudged`` ("" = it is not)."""

    advisories: tuple[Advisory, ...]
    unjudged: str = ""


def judge(index: Index, name: str, version: str) -> Judgement:
    """What the snapshot says about version ``version`` of the package of the normalised name ``name``."""
    known = index.advice(name)
    try:
        wanted = _public(parse_version(version))
    except Invalid:
        return Judgement((), "its version is none that PEP 440 knows, so no range can be compared with it")
    affecting, doubts = [], []
    for one in known:
        verdict = _affects(one, wanted)
        if verdict is None:
            doubts.append(one.id)
        elif verdict:
            affecting.append(one)
    kin = _by_id(known)
    told = tuple(_tell(group, kin, name, version, wanted) for group in _groups(affecting))
    said = {told_id for one in told for told_id in (one.id, *one.aliases)}
    open_doubts = [doubt for doubt in doubts if doubt not in said]
    why = f"{', '.join(open_doubts[:3])} cannot be compared with a version" if open_doubts else ""
    return Judgement(told, why)


def _public(version: Version) -> Version:
    """Without the local part: ``2.1.0+cu118`` is 2.1.0, built by somebody else, with the same flaws."""
    return Version(version.public)


def _affects(one: Advice, wanted: Version) -> bool | None:
    """Whether the advice is about the version; None when that cannot be said."""
    if any(wanted == listed for listed in _versions(one.versions)):
        return True
    doubt = bool(one.unjudged)
    for events in one.ranges:
        inside = _inside(events, wanted)
        if inside:
            return True
        doubt = doubt or inside is None
    return None if doubt else False


def _versions(listed: Iterable[str]) -> Iterator[Version]:
    for text in listed:
        try:
            yield _public(parse_version(text))
        except Invalid:  # a name from before PEP 440: no version that can be installed today equals it
            continue


def _inside(events: tuple[Event, ...], wanted: Version) -> bool | None:
    """Whether a range holds the version, by the schema's own algorithm; None when an event is no version."""
    steps: list[tuple[bool, Version, int, str]] = []
    limits: list[Version | None] = []
    try:
        for kind, text in events:
            if kind == "l":
                limits.append(None if "*" in text else _public(parse_version(text)))
            else:
                first = kind == "i" and text == "0"  # sorts before any other version
                steps.append((not first, _public(parse_version(text)), _ORDER[kind], kind))
    except (Invalid, KeyError):
        return None
    if not any(kind == "i" for *_, kind in steps):
        return None
    if limits and not any(limit is None or wanted < limit for limit in limits):
        return False
    inside = False
    for later, version, _, kind in sorted(steps):
        if kind == "i" and (not later or wanted >= version):
            inside = True
        elif (kind == "f" and wanted >= version) or (kind == "a" and wanted > version):
            inside = False
    return inside


def _by_id(advice: Iterable[Advice]) -> dict[str, list[Advice]]:
    """Who goes by each id: as its own, or as an alias."""
    found: dict[str, list[Advice]] = {}
    for one in advice:
        for name in {one.id, *one.aliases}:
            found.setdefault(name, []).append(one)
    return found


def _groups(found: list[Advice]) -> Iterator[list[Advice]]:
    """The advice in groups of one vulnerability each: aliases are symmetric and transitive (OSV schema, ``aliases``)."""
    kin, seen = _by_id(found), set[str]()
    for first in found:
        if first.id in seen:
            continue
        group, names = list[Advice](), [first.id]
        while names:
            name = names.pop()
            if name not in seen:
                seen.add(name)
                group += [one for one in kin.get(name, ()) if one.id == name]
                names += [each for one in kin.get(name, ()) for each in (one.id, *one.aliases)]
        yield sorted(group, key=lambda one: one.id)


def _tell(group: list[Advice], known: dict[str, list[Advice]], name: str, version: str, wanted: Version) -> Advisory:
    """One advisory for all ids of one vulnerability, with the worst severity that any database gives it."""
    ids = {each for one in group for each in (one.id, *one.aliases)}
    kin = [*group, *(one for each in ids for one in known.get(each, ()))]
    others = sorted(ids - {group[0].id})
    return Advisory(
        id=group[0].id,
        package=name,
        version=version,
        severity=max((one.severity for one in kin), key=rank),
        score=max(one.score for one in kin),
        fixed=_mended(group, wanted)[:MAX_FIXED],
        aliases=tuple(others[:MAX_ALIASES]),
    )


def _mended(group: list[Advice], wanted: Version) -> tuple[str, ...]:
    texts = {text for one in group for events in one.ranges for kind, text in events if kind == "f"}
    return tuple(str(version) for version in sorted(set(_versions(texts))) if version > wanted)
