import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.errors import Invalid, TooLarge
from modelkeep.extraction.indicators import MAX_BYTES, MAX_INDICATORS, Indicator, Matcher, parse_indicators

ID = "indicator--8e2e2d2b-17d4-4cbf-938f-98ee46b3cd3f"
AGENT = "[network-traffic:extensions.'http-request-ext'.request_header.'User-Agent' = 'steal/1.0']"


def bundle(*patterns, **more):
    objects = [{"type": "indicator", "id": ID, "pattern_type": "stix", "pattern": each, **more} for each in patterns]
    return json.dumps({"type": "bundle", "id": "bundle--1", "objects": objects}).encode()


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("[ipv4-addr:value = '198.51.100.7']", [("address", "198.51.100.7/32")]),
        ("[ipv4-addr:value ISSUBSET '198.51.100.7/24']", [("address", "198.51.100.0/24")]),
        (
            " [ipv6-addr:value = '2001:db8::1' OR ipv4-addr:value='203.0.113.9']",
            [("address", "2001:db8::1/128"), ("address", "203.0.113.9/32")],
        ),
        (AGENT, [("agent", "steal/1.0")]),
        ("[x-modelkeep-query:name = '00ffeeddccbbaa99']", [("query", "00ffeeddccbbaa99")]),
        ("[ipv4-addr:value = '198.51.100.7' AND url:value = 'https://x']", []),
        ("[ipv4-addr:value = '198.51.100.7' OR url:value = 'https://x']", []),
        ("[ipv4-addr:value != '198.51.100.7']", []),
        ("[ipv4-addr:value = '198.51.100.7'] FOLLOWEDBY [url:value = 'x']", []),
        ("[file:hashes.'SHA-256' = 'aa']", []),
        ("", []),
    ],
)
def test_stix_patterns(pattern, found):
    parsed = parse_indicators(bundle(pattern), "misp")
    assert [(one.kind, one.value) for one in parsed.found] == found and parsed.passed_over == (not found)
    assert all((one.source, one.id) == ("misp", ID) for one in parsed.found)


def test_the_time_an_indicator_holds_and_what_is_revoked():
    times = {"valid_from": "2026-01-01T00:00:00.000Z", "valid_until": "2026-02-01T00:00:00Z"}
    (one,) = parse_indicators(bundle(AGENT, **times), "misp").found
    assert (one.since, one.until) == (1767225600 * 10**9, 1769904000 * 10**9)
    assert [one.holds(at) for at in (one.since - 1, one.since, one.until - 1, one.until)] == [False, True, True, False]
    assert parse_indicators(bundle(AGENT, revoked=True), "misp") == ((), 1)
    other = json.dumps({"type": "bundle", "objects": [{"type": "malware"}, {"type": "indicator", "pattern_type": "yara"}]})
    assert parse_indicators(other.encode(), "misp") == ((), 2)


def test_csv():
    rows = (
        "kind,value,id,valid_until,note",
        "address,198.51.100.0/24,a1,2026-02-01T00:00:00+01:00,",
        'agent,"steal, 1.0",,,x',
        "",
    )
    text = "\r\n".join(rows).encode("utf-8-sig")
    first, second = parse_indicators(text, "own").found
    assert first == Indicator("address", "198.51.100.0/24", "own", "a1", 0, 1769900400 * 10**9)
    assert second == Indicator("agent", "steal, 1.0", "own", "line 3")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"type": "bundle"}',
        b'{"type": "bundle", "objects": [1]}',
        b'{"type": "report", "objects": []}',
        bundle(7),
        bundle("[ipv4-addr:value = '0.0.0.0/0']"),
        bundle("[ipv6-addr:value ISSUBSET '::/3']"),
        bundle("[ipv4-addr:value = 'localhost']"),
        bundle("[x-modelkeep-query:name = 'abc']"),
        bundle(AGENT, valid_until="soon"),
        bundle(AGENT, valid_until="2026-02-01T00:00:00"),
        bundle(AGENT, valid_until="9999-01-01T00:00:00Z"),
        bundle(AGENT, id=7),
        bundle(AGENT, id="a\nb"),
        b"value,kind\n1.2.3.4",
        b"kind,value\naddress",
        b"kind,value\naddress,1.2.3.4,more",
        b"kind,value\nname,alice",
        b"kind,value\nagent,\n",
        b"kind,value\nagent,\xff",
        b'kind,value\nagent,"open',
        b"kind,value\nagent," + b"a" * 501,
    ],
)
def test_what_is_refused(data):
    with pytest.raises(Invalid):
        parse_indicators(data, "misp")


def test_what_is_too_much():
    for data in (
        b"x" * (MAX_BYTES + 1),
        b"kind,value\n" + b"agent,a\n" * (MAX_INDICATORS + 1),
        bundle(*MAX_INDICATORS * [""], ""),
    ):
        with pytest.raises(TooLarge):
            parse_indicators(data, "misp")
    for source in ("", "a/b", "a" * 65, "ä"):
        with pytest.raises(Invalid):
            parse_indicators(b"kind,value\n", source)


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode) | st.text(max_size=200).map(bundle))
def test_whatever_is_in_a_file_it_is_read_or_refused(data):
    with contextlib.suppress(Invalid, TooLarge):
        parse_indicators(data, "misp")


def test_matching():
    ones = parse_indicators(
        b"kind,value\naddress,198.51.100.0/24\naddress,2001:db8::/32\nagent,Steal/1.0\n"
        + b"".join(b"query,%016x\n" % n for n in range(5)),
        "own",
    ).found
    matcher = Matcher(ones)
    kinds = lambda address, agent="": [one.value for one in matcher.of_request(address, agent, 1)]  # noqa: E731
    assert kinds("198.51.100.99") == kinds("::ffff:198.51.100.99") == ["198.51.100.0/24"]
    assert kinds("2001:db8:1::1%eth0") == ["2001:db8::/32"] and kinds("198.51.101.1") == kinds("nonsense") == kinds("") == []
    assert kinds("203.0.113.1", "sTEAL/1.0") == ["Steal/1.0"] and kinds("203.0.113.1", "steal/1.0.1") == []
    assert list(matcher.of_queries([1, 2, 99, 1], 1)) == [], "two questions may be anybody's"
    assert len(list(matcher.of_queries([1, 2, 3], 1))) == 3
    assert matcher.looks_at_requests and not Matcher(ones[3:]).looks_at_requests and matcher.queries == frozenset(range(5))
