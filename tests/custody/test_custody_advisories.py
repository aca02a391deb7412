"""Advisory snapshots: what they say of which version, and what a hostile one can do (nothing)."""

import datetime
import io
import json
import struct
import zipfile

import pytest
from advisories import WORST, affected, archive, events, record, snapshot
from hypothesis import given, settings
from hypothesis import strategies as st
from packaging.version import Version

from modelkeep.custody import osv
from modelkeep.custody.advisories import canonical_name, decode_index, encode_index, judge, parse_version
from modelkeep.custody.osv import read_snapshot
from modelkeep.errors import Invalid, NotTrusted, TooLarge

NOW = int(datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC).timestamp() * 1e9)


def index(*records):
    return read_snapshot(archive(*records), source="test", now_ns=NOW)


def verdict(version, *ranges, versions=()):
    """Whether a version of one package is affected; None when that could not be said."""
    found = judge(index(record("X-1", affected("p", *ranges, versions=versions))), "p", version)
    assert not (found.advisories and found.unjudged)
    return True if found.advisories else None if found.unjudged else False


# The examples of the OSV schema, "Examples", with PEP 440 versions; then what PEP 440 brings.
@pytest.mark.parametrize(
    ("pairs", "inside", "outside"),
    [
        ([("introduced", "0")], ["0.0.1", "1", "99", "0a1", "0.dev0"], []),
        ([("introduced", "0"), ("fixed", "1.0.2")], ["0", "1.0.1", "1.0.2rc1", "1.0.2.dev3"], ["1.0.2", "1.0.2.post1", "1!0"]),
        (
            [("introduced", "1.0.0"), ("fixed", "1.0.2"), ("introduced", "3.0.0"), ("fixed", "3.2.5")],
            ["1.0.0", "1.0.1", "3.0.0", "3.2.4"],
            ["0.9", "1.0.2", "2.0", "3.2.5", "1.0.0rc1"],
        ),
        (
            [("fixed", "3.2.5"), ("introduced", "3.0.0"), ("fixed", "1.0.2"), ("introduced", "1.0.0")],
            ["1.0.1", "3.1"],
            ["2.0", "4"],
        ),
        ([("introduced", "0"), ("last_affected", "2.1.214")], ["2.1.214", "2.1.214+cu118", "1"], ["2.1.215", "2.1.214.post1"]),
        ([("introduced", "1"), ("last_affected", "1")], ["1", "1.0"], ["0.9", "1.1"]),
        ([("introduced", "0"), ("limit", "2")], ["1.9"], ["2", "3"]),
        ([("introduced", "0"), ("limit", "2"), ("limit", "4")], ["3"], ["4"]),
        ([("introduced", "0"), ("limit", "*")], ["9"], []),
        ([("introduced", "0"), ("fixed", "2.2.0")], ["2.1.0+cu118", "2.1.0+CPU.abc"], ["2.2.0+cu118"]),
        ([("introduced", "1"), ("fixed", "2"), ("introduced", "2"), ("fixed", "3")], ["1", "2", "2.5"], ["3"]),
    ],
)
def test_ranges(pairs, inside, outside):
    for version in inside:
        assert verdict(version, events(*pairs)) is True, version
    for version in outside:
        assert verdict(version, events(*pairs)) is False, version


def test_listed_versions_count_as_pep_440_reads_them():
    assert (
        verdict("1.0.0", versions=["1.0"]) and verdict("1.0-rc.1", versions=["1.0rc1"]) and verdict("1.0+x", versions=["1.0"])
    )
    assert verdict("1.1", versions=["1.0", "not a version"]) is False
    assert verdict("5", events(("introduced", "0"), ("fixed", "1")), versions=["5"]) is True


GIT = {**events(("introduced", "0"), ("fixed", "ab" * 20), type="GIT"), "repo": "https://example.org/p"}


@pytest.mark.parametrize(
    ("about", "said"),
    [
        ({"ranges": [GIT]}, None),
        ({"ranges": [GIT], "versions": ["1.0"]}, False),  # the versions are those of the commits
        ({"ranges": [GIT, events(("introduced", "3"))]}, False),
        ({"ranges": [GIT, events(("introduced", "1"))]}, True),
        ({"ranges": [events(("introduced", "3"), type="SEMVER")], "versions": ["1.0"]}, None),
        ({"ranges": [events(("introduced", "0"), type="WEIRD")]}, None),
        ({"ranges": [events(("introduced", "0"), ("fixed", "1.0-beta-foo"))]}, None),
        ({"ranges": [events(("fixed", "3"))]}, None),  # nothing is introduced
        ({"ranges": [events(("introduced", "0"), ("fixed", "1-x-y")), events(("introduced", "0"))]}, True),
        ({"ranges": [], "versions": []}, None),
        ({"ranges": None, "versions": None}, None),
    ],
)
def test_what_cannot_be_compared_is_never_not_affected(about, said):
    one = record("X-1", {"package": {"ecosystem": "PyPI", "name": "p"}, **about})
    found = judge(index(one), "p", "2.0")
    assert bool(found.advisories) is (said is True) and bool(found.unjudged) is (said is None)
    assert not found.unjudged or "X-1" in found.unjudged


def test_a_version_that_is_none_cannot_be_judged():
    for version in ("", "latest", "1.0-beta-foo", "1" * 5000, "1.0\x1b[31m", "9" * 200):
        assert judge(index(record("X-1", affected("p", events(("introduced", "0"))))), "p", version).unjudged


def slow(pairs, version):
    """The schema's definition of ranges without limits, by looking at where each stretch begins and ends."""
    stretches, begun = [], None
    for kind, at in sorted(pairs, key=lambda pair: (pair[1], pair[0] == "introduced")):
        if kind == "introduced":
            begun = begun if begun is not None else at
        elif begun is not None:
            stretches.append((begun, at))
            begun = None
    return any(low <= version < high for low, high in stretches) or (begun is not None and begun <= version)


@settings(max_examples=80, deadline=None)
@given(st.sets(st.integers(1, 30), min_size=1, max_size=8), st.integers(0, 31), st.randoms())
def test_ranges_agree_with_their_definition(numbers, number, random):
    pairs = [(random.choice(["introduced", "fixed"]), Version(f"{one}.0")) for one in numbers]
    if not any(kind == "introduced" for kind, _ in pairs):
        pairs.append(("introduced", Version("31")))
    said = [(kind, str(at)) for kind, at in pairs]
    random.shuffle(said)
    assert verdict(f"{number}", events(*said)) is slow(pairs, Version(str(number)))


def test_one_flaw_told_by_several_databases_is_one_with_the_worst_severity():
    found = judge(read_snapshot(snapshot(), source="test", now_ns=NOW), "torch", "2.1.0+cu118").advisories
    assert [(one.id, one.aliases, one.severity, one.score, one.fixed, one.version) for one in found] == [
        ("GHSA-aaaa-bbbb-cccc", ("CVE-2026-1111", "PYSEC-2026-7"), "critical", 9.8, ("2.2.0",), "2.1.0+cu118")
    ]
    range_ = events(("introduced", "0"))
    chained = index(
        record("A-1", affected("p", range_), aliases=["B-1"]),
        record("C-1", affected("p", range_), aliases=["B-1"]),
        record("D-1", affected("p", range_), aliases=["C-1"], database_specific={"severity": "HIGH"}),
        record("E-1", affected("p", range_)),
    )
    assert [(one.id, one.severity) for one in judge(chained, "p", "1").advisories] == [("A-1", "high"), ("E-1", "unknown")]


def test_a_mild_entry_borrows_the_severity_of_its_alias_that_names_other_versions():
    said = index(
        record("PYSEC-1", affected("p", events(("introduced", "0"))), aliases=["CVE-1"]),
        record("GHSA-1", affected("p", events(("introduced", "5"))), aliases=["CVE-1"], database_specific={"severity": "HIGH"}),
    )
    assert [(one.id, one.severity) for one in judge(said, "p", "1").advisories] == [("PYSEC-1", "high")]


@pytest.mark.parametrize(
    ("more", "severity", "score"),
    [
        ({}, "unknown", -1.0),
        ({"severity": [{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N"}]}, "medium", 6.1),
        (
            {
                "severity": [
                    {"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N"},
                    {"type": "CVSS_V4", "score": "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N"},
                ]
            },
            "critical",
            9.3,
        ),
        ({"severity": [{"type": "CVSS_V2", "score": "AV:L/AC:M/Au:N/C:N/I:P/A:C"}]}, "unknown", -1.0),
        ({"severity": [{"type": "CVSS_V3", "score": "nonsense"}], "database_specific": {"severity": "low"}}, "low", -1.0),
        ({"database_specific": {"severity": "MODERATE"}}, "medium", -1.0),
        ({"database_specific": {"severity": ["HIGH"]}}, "unknown", -1.0),
        ({"database_specific": {"severity": "APOCALYPTIC"}}, "unknown", -1.0),
        ({"severity": None, "aliases": None}, "unknown", -1.0),
    ],
)
def test_severities(more, severity, score):
    said = index(record("X-1", affected("p", events(("introduced", "0"))), **more))
    assert [(one.severity, one.score) for one in judge(said, "p", "1").advisories] == [(severity, score)]


def test_a_malicious_package_is_critical_and_a_severity_may_be_of_the_package():
    said = index(record("MAL-2026-1", affected("p", events(("introduced", "0")))))
    assert judge(said, "p", "1").advisories[0].severity == "critical"
    own = affected("p", events(("introduced", "0")), severity=[{"type": "CVSS_V3", "score": WORST}])
    assert judge(index(record("X-1", own)), "p", "1").advisories[0].score == 9.8


def test_what_an_index_counts_and_that_it_comes_back_from_its_bytes():
    made = read_snapshot(snapshot(), source="OSV PyPI", now_ns=NOW)
    assert (made.records, made.withdrawn, made.others) == (5, 1, 1)
    assert made.newest == int(datetime.datetime(2026, 11, 20, 10, 0, 0, 123456, datetime.UTC).timestamp() * 1e6) * 1000
    again = decode_index(encode_index(made))
    assert encode_index(again) == encode_index(made) == encode_index(read_snapshot(snapshot(), source="OSV PyPI", now_ns=NOW))
    assert judge(again, "jinja2", "3.1.4").advisories[0].severity == "medium"
    assert judge(again, "numpy", "1.0") == judge(again, "unheard-of", "1.0") == judge(again, "left-pad", "1")


def test_a_record_from_the_future_makes_no_snapshot_younger():
    made = index(record("X-1", affected("p"), modified="2099-01-01T00:00:00Z"), record("X-2", affected("p")))
    assert made.newest < NOW
    assert index(record("X-1", affected("p"), modified="2099-01-01T00:00:00Z")).newest == 0  # very old, then


def test_names_are_normalised():
    said = index(record("X-1", affected("Foo._-Bar", events(("introduced", "0")))))
    assert canonical_name("FOO.bar") == "foo-bar" and judge(said, "foo-bar", "1").advisories
    for name in ("", "-a", "a b", "a\x1b[2J", "a" * 200, "é", "a/../b"):
        with pytest.raises(Invalid):
            canonical_name(name)


@pytest.mark.parametrize(
    "text",
    ["1" * 129, "1." * 5000, "1.0" + "a" * 60_000, "1" + ".post" * 20_000, "v" * 100_000, "1!" * 9000, "1.0+" + "a-" * 9000],
)
def test_no_version_takes_long_to_refuse(text):
    with pytest.raises(Invalid):
        parse_version(text)


# -- hostile archives --

GOOD = record("X-1", affected("p", events(("introduced", "0"))))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"id": 5, "modified": "2026-01-01T00:00:00Z"}',
        b'{"id": "X-1"}',
        b'{"id": "X-1", "modified": "yesterday"}',
        b"[" * 100_000,
        b'{"id":"X-1","modified":"2026-01-01T00:00:00Z","x":' + b"[" * 90_000,
        b'{"id":"X-1","modified":' + b"9" * 100_000 + b"}",
        json.dumps(record("X\x1b[2J-1", affected("p"))).encode(),
        json.dumps(record("", affected("p"))).encode(),
        json.dumps(record("A" * 81, affected("p"))).encode(),
        json.dumps(record("X-1", affected("p\x1b]0;hi\x07"))).encode(),
        json.dumps(record("X-1", affected("../../etc"))).encode(),
    ],
)
def test_a_record_that_cannot_be_read_refuses_the_whole_archive(content):
    with pytest.raises(Invalid) as refused:
        read_snapshot(archive(GOOD, content), source="test", now_ns=NOW)
    assert str(refused.value).isprintable()


def test_unknown_fields_huge_numbers_and_odd_aliases_are_passed_over():
    text = json.dumps({**GOOD, "aliases": ["CVE-1", "\x1b[31mCVE-2", "x" * 500], "new_field": {"deep": [1]}})
    text = text.replace('"new_field"', f'"number": {"9" * 4000}, "tiny": 1e-99999, "new_field"')
    said = read_snapshot(archive(text.encode()), source="test", now_ns=NOW)
    assert judge(said, "p", "1").advisories[0].aliases == ("CVE-1",)


def test_what_is_no_archive_or_has_nothing_about_pypi():
    whole = archive(GOOD)
    for data in (b"", b"PK", b"x" * 1000, whole[:-30], whole[:40], archive()):
        with pytest.raises(Invalid):
            read_snapshot(data, source="test", now_ns=NOW)
    foreign = record("X-1", affected("p", ecosystem="npm"))
    with pytest.raises(Invalid, match="PyPI"):
        read_snapshot(archive(foreign), source="test", now_ns=NOW)


def packed(names_and_bytes, method=zipfile.ZIP_DEFLATED):
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, content in names_and_bytes:
            file.writestr(name, content)
    return made.getvalue()


def test_bombs_are_refused_before_they_go_off():
    for data in (
        packed([("bomb.json", b"\0" * (osv.MAX_RECORD + 1))]),
        packed([(f"{number}.json", b" " * osv.MAX_RECORD) for number in range(3)]),
    ):
        assert len(data) < 100_000
        with pytest.raises(TooLarge):
            read_snapshot(data, source="test", now_ns=NOW)


def test_a_list_of_versions_has_an_end():
    with pytest.raises(TooLarge, match="lists 20,001 versions"):
        index(record("X-1", affected("p", versions=["1"] * 20_001)))


def test_a_directory_that_lies_about_sizes_is_refused():
    data = bytearray(packed([("bomb.json", b"\0" * (4 << 20))]))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 24 : directory + 28] = struct.pack("<I", 100)  # "100 bytes"
    with pytest.raises(Invalid):
        read_snapshot(bytes(data), source="test", now_ns=NOW)


def test_too_many_members_are_refused_unread(monkeypatch):
    monkeypatch.setattr(osv, "MAX_RECORDS", 3)
    with pytest.raises(TooLarge, match="more than 3"):
        read_snapshot(archive(*[GOOD] * 4), source="test", now_ns=NOW)
    monkeypatch.setattr(osv, "MAX_ARCHIVE", 10)
    with pytest.raises(TooLarge):
        read_snapshot(archive(GOOD), source="test", now_ns=NOW)


def test_encrypted_and_oddly_packed_members_are_refused():
    data = bytearray(archive(GOOD))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 8] |= 1
    data[6] |= 1
    with pytest.raises(Invalid):
        read_snapshot(bytes(data), source="test", now_ns=NOW)
    with pytest.raises(Invalid, match="packed in a way"):
        read_snapshot(packed([("x.json", json.dumps(GOOD))], zipfile.ZIP_LZMA), source="test", now_ns=NOW)


def test_names_of_members_are_no_paths_and_only_shown_escaped():
    hostile = "../../\x1b[2J/etc/passwd"
    said = read_snapshot(packed([(hostile, json.dumps(GOOD)), ("a folder/", b"")]), source="test", now_ns=NOW)
    assert said.records == 1
    with pytest.raises(Invalid) as refused:
        read_snapshot(packed([(hostile, b"{")]), source="test", now_ns=NOW)
    assert str(refused.value).isprintable()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_mutated_archive_is_read_or_refused(data):
    whole = bytearray(snapshot())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        judge(read_snapshot(bytes(whole), source="test", now_ns=NOW), "torch", "2.1.0")
    except Invalid as refused:
        assert str(refused)


def test_a_damaged_index_is_not_trusted():
    for data in (b"", b"{}", b"[" * 50_000, encode_index(index(GOOD)).replace(b'"format":1', b'"format":2')):
        with pytest.raises(NotTrusted):
            decode_index(data)
    bad = decode_index(encode_index(index(GOOD)).replace(b'"X-1"', b"5"))
    with pytest.raises(NotTrusted):
        judge(bad, "p", "1")


def test_a_member_without_a_name_is_one_clear_error():

    data = bytearray(packed([("x.json", json.dumps(GOOD))]))
    directory = data.rindex(b"PK\x01\x02")
    data[directory + 46] = 0  # zipfile ends a name at the first zero byte
    with pytest.raises(Invalid):
        read_snapshot(bytes(data), source="test", now_ns=NOW)
