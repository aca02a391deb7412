"""Accounts of other issuers in the records."""

import pytest
from access_house import CountingEntropy, FakeClock
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.externals import (
    EXTERNAL,
    NAME,
    NEWCOMER,
    Newcomer,
    admit,
    announce,
    external_of,
    find_external,
    forget_external,
    forget_spent_tokens,
    is_external,
    parse_external,
    parse_newcomer,
    quota_id,
    set_blocked,
)
from modelkeep.access.issuers import account_name, subject_digest
from modelkeep.access.quotas import QUOTA
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.ports import Change, Record
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unauthenticated


class Registry:
    def __init__(self):
        self.records, self.entropy, self.clock = MemoryRecords(), CountingEntropy(), FakeClock()

    def externals(self):
        return self.records.scan(EXTERNAL)

    def admit(self, name="a@corp", sub="1", most=9):
        newcomer = Newcomer(name, subject_digest("corp", sub))
        account, changes = admit(self.externals(), newcomer, most, entropy=self.entropy, clock=self.clock)
        self.records.commit(changes)
        return account


@pytest.fixture
def registry():
    return Registry()


def test_who_is_admitted_has_a_random_pseudonym_and_is_announced_no_more(registry):
    newcomer = Newcomer("a@corp", subject_digest("corp", "1"))
    registry.records.commit([announce(newcomer)])
    assert parse_newcomer(registry.records.scan(NEWCOMER)[0]) == newcomer
    account = registry.admit()
    assert account.name == "a@corp" and account.subject.startswith("sub_") and not account.disabled
    assert registry.records.scan(NEWCOMER) == [] and len(registry.records.scan(NAME)) == 1
    assert parse_external(registry.externals()[0]) == account == external_of(registry.externals(), account.subject)


def test_nobody_is_admitted_twice_nor_under_anothers_name_nor_beyond_the_bound(registry):
    registry.admit()
    with pytest.raises(Conflict):
        registry.admit()
    with pytest.raises(Denied, match="name of another"):
        registry.admit(sub="2")
    with pytest.raises(Denied, match="no more"):
        registry.admit("b@corp", "2", most=1)
    assert registry.admit("b@corp", "2")


def test_two_processes_that_admit_at_once_do_not_both_win(registry):
    one = admit([], Newcomer("a@corp", subject_digest("corp", "1")), 9, entropy=registry.entropy, clock=registry.clock)[1]
    for other in (Newcomer("a@corp", subject_digest("corp", "2")), Newcomer("b@corp", subject_digest("corp", "1"))):
        two = admit([], other, 9, entropy=registry.entropy, clock=registry.clock)[1]
        registry.records.commit(one) if registry.externals() == [] else None
        with pytest.raises(Conflict):
            registry.records.commit(two)


def test_what_a_token_used_is_forgotten_once_it_has_expired(registry):
    """Every token has a count of its own where ``token_requests`` is set, so the store would fill up."""
    for key in (quota_id("token:ab", 1_000), quota_id("token:cd", 9_000), "token:ef", "key:ab:7", "token:x:y"):
        registry.records.commit([Change(QUOTA, key, b"{}", 0)])
    registry.records.commit(forget_spent_tokens(registry.records.scan(QUOTA), 5_000))
    assert {record.key for record in registry.records.scan(QUOTA)} == {"token:cd:9000", "token:ef", "key:ab:7", "token:x:y"}


def test_blocking_and_forgetting(registry):
    account = registry.admit()
    blocked, changes = set_blocked(registry.externals(), "a@corp", True)
    registry.records.commit(changes)
    assert blocked.disabled and find_external(registry.externals(), "a@corp").disabled
    registry.records.commit(forget_external(registry.externals(), "a@corp")[1])
    assert registry.externals() == [] and registry.records.scan(NAME) == []
    assert external_of(registry.externals(), account.subject) is None
    with pytest.raises(Missing):
        set_blocked(registry.externals(), "a@corp", True)
    assert registry.admit(sub="2").subject != account.subject  # the name is free again


@pytest.mark.parametrize("body", [b"", b"{}", b'{"name":1}', b"\xff"])
def test_damaged_records(body):
    with pytest.raises(NotTrusted):
        parse_external(Record(EXTERNAL, "x", body, 1))
    with pytest.raises(Invalid):
        parse_newcomer(Record(NEWCOMER, "x", body, 1))


@pytest.mark.parametrize("name", ["a\x1b[2J@corp", "a b@corp", "@corp", "corp", "x" * 300 + "@corp"])
def test_whoever_writes_the_database_announces_nobody_with_a_name_that_a_terminal_obeys(name):
    change = announce(Newcomer(name, subject_digest("corp", "1")))
    with pytest.raises(Invalid):
        parse_newcomer(Record(NEWCOMER, change.key, change.body, 1))


def test_an_announcement_of_another_is_none(registry):
    change = announce(Newcomer("a@corp", subject_digest("corp", "1")))
    with pytest.raises(Invalid):
        parse_newcomer(Record(NEWCOMER, subject_digest("corp", "2"), change.body, 1))


@pytest.mark.parametrize(
    ("name", "external"), [("alice", False), ("a@corp", True), ("operator@local", False), ("a@b@corp", True)]
)
def test_names_of_others(name, external):
    assert is_external(name) is external


@given(st.text(max_size=300) | st.integers() | st.none())
def test_a_name_is_safe_or_refused(claim):
    try:
        name = account_name(claim, "corp")
    except Unauthenticated:
        return
    assert is_external(name) and name.isascii() and name.isprintable() and not set(name) & set(" \"'\\<>`$;&\n")


@given(st.text(max_size=20), st.text(max_size=20))
def test_subjects_of_two_issuers_are_two(one, two):
    assert subject_digest("corp", one) != subject_digest("club", one)
    assert (one == two) == (subject_digest("corp", one) == subject_digest("corp", two))
