"""Who matches threat intelligence is noted once, whatever he does meanwhile, and nobody else pays for it."""

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.epochs import never_erased
from modelkeep.core.ports import Change
from modelkeep.core.values import digest_of, to_json
from modelkeep.extraction.indicators import Indicator, Matcher
from modelkeep.workflows.cautions import CAUTION, INDICATORS, LONGEST_AGENT, MOST_WAITING, Cautions, Sightings, parse_caution


def address(value, until=0, since=0):
    return Indicator("address", value, "cert", value, since, until)


class Said:
    """What the releases log says: the list in force, and that nobody was erased."""

    erasures = ()
    indicators = ""

    def epochs(self):
        return never_erased


class House:
    """A process that looks at a list of indicators."""

    def __init__(self, *indicators, records=None):
        self.records, self.said, self.sightings = records or MemoryRecords(), Said(), Sightings()
        body = to_json(indicators)
        self.said.indicators = str(digest_of(body))
        if records is None:
            self.records.commit([Change(INDICATORS, self.said.indicators, body, 0)])
        self.clock = Tick()
        self.cautions = Cautions(self.records, self.said, self.clock, dict, lambda: 0.5, self.sightings)
        self.cautions.look()

    def see(self, who, where, agent=b"curl"):
        self.sightings.see(who, where, agent)
        self.cautions.look()

    def stored(self):
        return {record.key: (parse_caution(record).indicator.value, record.revision) for record in self.records.scan(CAUTION)}


class Tick(SystemClock):
    """A clock that is set by hand."""

    wall, ahead = 1000, 0.0

    def now_ns(self):
        return self.wall

    def monotonic(self):
        return self.ahead


def test_nobody_pushes_out_where_others_were_seen_and_who_found_no_place_is_seen_the_next_time():
    house = House(address("192.0.2.0/24"))
    house.sightings.see("thief", "192.0.2.1", b"curl")
    for i in range(MOST_WAITING + 3):
        house.sightings.see("other", "198.51.100.1", b"%d" % i)
    house.sightings.see("late", "192.0.2.9", b"curl")
    assert len(house.sightings._new) == MOST_WAITING
    house.cautions.look()
    assert house.cautions.factors() == {"thief": 0.5}
    house.see("late", "192.0.2.9")
    assert house.cautions.factors() == {"thief": 0.5, "late": 0.5}


def test_a_user_agent_of_any_length_costs_no_more_than_the_longest_that_can_match():
    sightings = Sightings()
    sightings.see("a", "192.0.2.1", b"x" * 60_000)
    [(_, _, seen)] = sightings.drained()
    assert len(seen) == LONGEST_AGENT
    longest = Indicator("agent", "\u0390" * 500, "cert", "one")  # of which each is three, for whom case is nothing
    assert len(longest.value.casefold()) < LONGEST_AGENT
    assert list(Matcher([longest]).of_request("", longest.value, 0)) == [longest]


def test_who_matches_many_indicators_of_a_source_is_written_down_once_by_the_one_that_holds_longest():
    """Else each request of his would be as many writes as indicators, and public lists say which questions to ask."""
    narrow, wide, soon = address("192.0.2.0/25", 9000), address("192.0.2.0/24"), address("192.0.2.0/26", 5000)
    house = House(soon, narrow, wide)
    for agent in (b"one", b"two", b"three"):
        house.see("thief", "192.0.2.1", agent)
    assert house.stored() == {"thief/cert/address": (wide.value, 2)}


def test_a_longer_match_replaces_one_that_ends_before():
    short, longer = address("192.0.2.0/24", 5000), address("198.51.100.0/24", 9000)
    house = House(short, longer)
    house.see("thief", "192.0.2.1")
    house.see("thief", "198.51.100.1")
    house.see("thief", "192.0.2.1")
    assert house.stored() == {"thief/cert/address": (longer.value, 3)}
    house.clock.wall = 6000
    assert house.cautions.factors() == {"thief": 0.5}
    house.clock.wall, house.clock.ahead = 9000, 10.0
    assert house.cautions.factors() == {}


def test_who_changes_the_database_gives_nobody_his_budget_back():
    house = House(address("192.0.2.0/24"))
    house.see("thief", "192.0.2.1")
    house.records.commit([Change(CAUTION, "thief/cert/address", None)])
    house.clock.ahead = 10.0
    assert house.cautions.factors() == {"thief": 0.5}
    house.see("thief", "192.0.2.2")
    assert house.stored()["thief/cert/address"][0] == "192.0.2.0/24", "and it is written again"


def test_an_account_is_looked_at_anew_when_an_indicator_begins_to_hold():
    house = House(address("192.0.2.0/24", since=5000))
    house.see("thief", "192.0.2.1")
    assert house.cautions.factors() == {}
    house.clock.wall = 5000
    house.cautions.look()
    house.see("thief", "192.0.2.1")
    assert house.cautions.factors() == {"thief": 0.5}
