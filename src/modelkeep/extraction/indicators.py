"""Threat intelligence about who copies models: addresses, user agents and questions of known surrogates, from STIX 2.1 or CSV.

The files are hostile until read: everything is bounded, and a pattern that says what is not understood here is passed over and
counted, never guessed. A match is a reason to look sooner and to lend less; it is no evidence.
"""

import csv
import datetime
import io
import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from modelkeep.errors import Invalid, TooLarge

MAX_BYTES, MAX_INDICATORS, MAX_VALUE = 4 << 20, 20_000, 500
WIDEST = {4: 8, 6: 19}
"""Shortest prefix of a network by IP version: a wider one would be half the world."""
LEAST_QUERIES = 3
"""Distinct questions of a known surrogate that make a match: one alone may be anybody's."""

Kind = Literal["address", "agent", "query"]


class Indicator(msgspec.Struct, frozen=True):
    """``kind``: ``address`` (an IP network), ``agent`` (a whole User-Agent) or ``query`` (the name of a row, 16 hex digits);
    ``source`` and ``id``: where it is from; it holds from Unix nanosecond ``since`` until ``until`` (0 = without end)."""

    kind: Kind
    value: str
    source: str
    id: str
    since: int = 0
    until: int = 0

    def holds(self, now: int) -> bool:
        """Whether it holds at Unix nanosecond ``now``."""
        return self.since <= now and (not self.until or now < self.until)

    @property
    def text(self) -> str:
        """In words."""
        return f"{self.kind} {self.value} ({self.source}, {self.id})"


class Parsed(NamedTuple):
    """``found``: what is understood; ``passed_over``: objects or rows that say something else, or are revoked."""

    found: tuple[Indicator, ...]
    passed_over: int


def parse_indicators(data: bytes, source: str) -> Parsed:
    """Read a STIX 2.1 bundle or a CSV file with the columns kind, value and, if need be, id, valid_from, valid_until.

    Raises Invalid (malformed, or a network that is too wide), TooLarge.
    """
    if len(data) > MAX_BYTES:
        raise TooLarge(f"a file of indicators has at most {MAX_BYTES:,} bytes, not {len(data):,}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", source):
        raise Invalid("a source has up to 64 letters, digits, '.', '_' and '-'")
    found = _stix(data, source) if data.lstrip()[:1] == b"{" else _csv(data, source)
    if len(found.found) > MAX_INDICATORS:
        raise TooLarge(f"a source has at most {MAX_INDICATORS:,} indicators")
    return found


# -- STIX 2.1 --

_COMPARISON = re.compile(
    r"(?:(?P<ip>ipv[46]-addr:value)\s*(?:=|ISSUBSET)"
    r"|network-traffic:extensions\.'http-request-ext'\.request_header\.'User-Agent'\s*(?P<agent>=)"
    r"|x-modelkeep-query:name\s*(?P<query>=))"
    r"\s*'(?P<value>[^'\\\x00-\x1f]{1,500})'\Z"
)


def _stix(data: bytes, source: str) -> Parsed:
    try:
        bundle = msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Invalid(f"this is no STIX bundle: {cause}") from cause
    objects = bundle.get("objects") if bundle.get("type") == "bundle" else None
    if not isinstance(objects, list) or not all(isinstance(one, dict) for one in objects):
        raise Invalid("this is no STIX bundle: it has no list of objects")
    if len(objects) > MAX_INDICATORS:
        raise TooLarge(f"a bundle has at most {MAX_INDICATORS:,} objects, not {len(objects):,}")
    found: list[Indicator] = []
    passed_over = 0
    for one in objects:
        if one.get("type") != "indicator" or one.get("pattern_type") != "stix" or one.get("revoked") is True:
            passed_over += 1
            continue
        terms = _terms(_text(one, "pattern"))
        passed_over += not terms
        since, until = (_moment(_text(one, name, "")) for name in ("valid_from", "valid_until"))
        found += [_indicator(kind, value, source, _text(one, "id"), since, until) for kind, value in terms]
    return Parsed(tuple(found), passed_over)


def _terms(pattern: str) -> list[tuple[str, str]]:
    """What a pattern ``[a = 'x' OR b = 'y']`` asks for; empty when it is another one."""
    inner = re.fullmatch(r"\s*\[([^\[\]]{1,4000})\]\s*", pattern)
    terms = []
    for part in inner[1].split(" OR ") if inner else ():
        match = _COMPARISON.match(part.strip())
        if match is None:
            return []  # AND, NOT, times and the like: half a pattern would match more than the whole
        terms.append(("address" if match["ip"] else "agent" if match["agent"] else "query", match["value"]))
    return terms


def _text(one: dict[str, Any], name: str, default: str | None = None) -> str:
    value = one.get(name, default)
    if not isinstance(value, str) or len(value) > 8 * MAX_VALUE:
        raise Invalid(f"an indicator of this STIX bundle has no text {name!r}, or too much")
    return value


# -- CSV --


def _csv(data: bytes, source: str) -> Parsed:
    try:
        rows = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True)
        heads = rows.fieldnames or ()
        if not {"kind", "value"} <= set(heads) or len(heads) > 16:
            raise Invalid("this is neither a STIX bundle nor a CSV file with the columns 'kind' and 'value'")
        found = tuple(_row(row, number, source) for number, row in enumerate(rows, 2))
    except (csv.Error, UnicodeDecodeError) as cause:
        raise Invalid(f"this CSV file cannot be read: {cause}") from cause
    return Parsed(found, 0)


def _row(row: dict[str, Any], number: int, source: str) -> Indicator:
    if number > MAX_INDICATORS + 1:
        raise TooLarge(f"a source has at most {MAX_INDICATORS:,} indicators")
    if None in row or not all(isinstance(value, str) for value in row.values()):
        raise Invalid(f"line {number} of this CSV file has more or fewer cells than the first")
    since, until = (_moment(row.get(name, "")) for name in ("valid_from", "valid_until"))
    return _indicator(row["kind"], row["value"], source, row.get("id", "") or f"line {number}", since, until)


# -- both --


def _indicator(kind: str, value: str, source: str, name: str, since: int, until: int) -> Indicator:
    value, name = value.strip(), name[:100]
    if not name.isprintable() or not 0 < len(value) <= MAX_VALUE or not value.isprintable():
        raise Invalid(f"an indicator has an id and a value that can be printed, of at most {MAX_VALUE} characters")
    if kind == "address":
        return Indicator("address", _network(value), source, name, since, until)
    if kind == "agent":
        return Indicator("agent", value, source, name, since, until)
    if kind == "query" and re.fullmatch(r"[0-9a-f]{16}", value):
        return Indicator("query", value, source, name, since, until)
    raise Invalid(f"{kind[:20]!r} {value[:40]!r} is no indicator: kinds are address, agent and query (16 hex digits)")


def _network(value: str) -> str:
    try:
        network = ipaddress.ip_network(value, strict=False)
    except ValueError:
        raise Invalid(f"{value[:60]!r} is no address and no network") from None
    if network.prefixlen < WIDEST[network.version]:
        raise Invalid(f"{network} is too wide: at least {WIDEST[network.version]} bits of a network must be given")
    return str(network)


def _moment(text: str) -> int:
    """Unix nanoseconds of an RFC 3339 time; 0 for none."""
    if not text:
        return 0
    try:
        at = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{text[:40]!r} is no time as RFC 3339 has it") from None
    if at.tzinfo is None or not 1971 <= at.year <= 2200:
        raise Invalid(f"{text[:40]!r} is no time with an offset, such as Z")
    return int(at.timestamp()) * 1_000_000_000


# -- matching --


class Matcher:
    """What holds of a list of indicators, ready to be looked up."""

    def __init__(self, indicators: Sequence[Indicator]) -> None:
        self._agents: dict[str, list[Indicator]] = {}
        self._networks: dict[tuple[int, int], dict[int, list[Indicator]]] = {}
        self._queries: dict[int, list[Indicator]] = {}
        for one in indicators:
            if one.kind == "agent":
                self._agents.setdefault(one.value.casefold(), []).append(one)
            elif one.kind == "query":
                self._queries.setdefault(int(one.value, 16), []).append(one)
            else:
                net = ipaddress.ip_network(one.value)
                place = self._networks.setdefault((net.version, net.prefixlen), {})
                place.setdefault(int(net.network_address), []).append(one)
        self.queries = frozenset(self._queries)
        """Names of questions, for the evidence to look out for."""

    @property
    def looks_at_requests(self) -> bool:
        """Whether addresses or agents are looked out for."""
        return bool(self._agents or self._networks)

    def of_request(self, address: str, agent: str, now: int) -> Iterator[Indicator]:
        """What one request matches at Unix nanosecond ``now``."""
        yield from self._holding(self._agents.get(agent.casefold(), ()), now)
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        for (version, bits), networks in self._networks.items():
            if version == parsed.version:
                spare = parsed.max_prefixlen - bits
                yield from self._holding(networks.get(int(parsed) >> spare << spare, ()), now)

    def of_queries(self, names: Iterable[int], now: int) -> Iterator[Indicator]:
        """What distinct questions match: nothing, while they are fewer than ``LEAST_QUERIES``."""
        found = [one for name in dict.fromkeys(names) for one in self._holding(self._queries.get(name, ()), now)]
        if len({one.value for one in found}) >= LEAST_QUERIES:
            yield from found

    def _holding(self, found: Sequence[Indicator], now: int) -> Iterator[Indicator]:
        return (one for one in found if one.holds(now))
