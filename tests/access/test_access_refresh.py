"""Refresh tokens: rotation, reuse, lifetimes, and what ends a family."""

import pytest
from access_house import NOW, ORIGIN, House
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.access.accounts import ACCOUNT, parse_account, set_disabled, set_roles
from modelkeep.access.refresh import (
    MOST_ROTATIONS,
    REFRESH,
    Lifetimes,
    Scope,
    begin_family,
    check_current,
    end_family,
    family_of,
    forget_families,
    parse_family,
    rotate_family,
    was_used,
    with_session,
    write_family,
)
from modelkeep.access.sessions import REVOCATION, Proof, SessionVerifier
from modelkeep.core.ports import Record
from modelkeep.core.values import Role
from modelkeep.errors import NotTrusted, Unauthenticated

LIVES = Lifetimes(whole=1_000, idle=100)
SCOPE = Scope(10, ("iris",), ("predict",))


@pytest.fixture
def first(house):
    return begin_family(house.anna, SCOPE, Proof(NOW), LIVES, NOW, house.entropy)


def test_a_token_is_good_until_the_next_one_is_there(house, first):
    assert check_current(first.text, first.family, house.anna, NOW) == house.anna
    second = rotate_family(first.id, first.family, house.entropy, NOW + 5)
    assert check_current(second.text, second.family, house.anna, NOW + 5)
    assert was_used(first.text, second.family) and not was_used(second.text, second.family)
    with pytest.raises(Unauthenticated):
        check_current(first.text, second.family, house.anna, NOW + 5)


def test_a_made_up_token_of_a_known_family_is_no_reuse(house, first):
    made_up = f"mkr_{first.id}_{'0' * 64}"
    second = rotate_family(first.id, first.family, house.entropy, NOW)
    assert not was_used(made_up, second.family), "else whoever saw an id could end a session"
    with pytest.raises(Unauthenticated):
        check_current(made_up, second.family, house.anna, NOW)


@pytest.mark.parametrize("text", ["", "mkr_", "mk_12345678_x", "mkr_" + "0" * 24 + "_" + "g" * 64, "x" * 10_000])
def test_what_is_no_refresh_token_is_refused_unread(text):
    with pytest.raises(Unauthenticated):
        family_of(text)


def test_lifetimes_idle_and_whole(house, first):
    assert check_current(first.text, first.family, house.anna, NOW + 99)
    with pytest.raises(Unauthenticated):
        check_current(first.text, first.family, house.anna, NOW + 100)
    current, now = first, NOW
    while now + 90 < NOW + 1_000:
        now += 90
        current = rotate_family(first.id, current.family, house.entropy, now)
        assert check_current(current.text, current.family, house.anna, now)
    with pytest.raises(Unauthenticated):
        check_current(current.text, current.family, house.anna, NOW + 1_000)


def test_a_family_is_turned_so_often_and_no_more(house, first):
    family = first.family
    for number in range(MOST_ROTATIONS):
        assert was_used(first.text, family) == (number > 0)
        new = rotate_family(first.id, family, house.entropy, NOW)
        family = new.family
    assert was_used(first.text, family), "what was used first is known to the end"
    with pytest.raises(Unauthenticated):
        check_current(new.text, family, house.anna, NOW)


def test_a_change_of_the_account_ends_it(house, first):
    house.add("other", Role.ADMIN)
    disabled = house.do(set_disabled(house.accounts(), "anna", True))
    with pytest.raises(Unauthenticated):
        check_current(first.text, first.family, disabled, NOW)
    house.do(set_disabled(house.accounts(), "anna", False))
    house.do(set_roles(house.accounts(), "anna", [Role.ADMIN]))
    for account in (parse_account(house.records.get(ACCOUNT, "anna")), None):
        with pytest.raises(Unauthenticated):
            check_current(first.text, first.family, account, NOW)


def test_a_namesake_gets_nothing(house, first):
    """Somebody who was given a forgotten account's name, at the same generation."""
    later = house.anna.__class__(
        **{name: getattr(house.anna, name) for name in house.anna.__struct_fields__} | {"created": NOW + 1}
    )
    with pytest.raises(Unauthenticated):
        check_current(first.text, first.family, later, NOW + 2)


def test_ending_a_family_ends_its_living_sessions(house, first):
    verifier = SessionVerifier([house.public], ORIGIN)
    old = verifier.verify(house.issuer.issue(house.anna)[0])
    house.clock.advance(4_000)
    now = NOW + 4_000
    new = verifier.verify(house.issuer.issue(house.anna)[0])
    family = with_session(with_session(first.family, old, NOW), new, now)
    assert family.sessions == ((new.jti, new.exp),), "one that has expired is not carried along"
    changes = end_family(first.id, family, 0, now)
    house.records.commit(changes)
    assert [record.key for record in house.records.scan(REVOCATION)] == [new.jti]
    ended = parse_family(house.records.get(REFRESH, first.id))
    with pytest.raises(Unauthenticated):
        check_current(first.text, ended, house.anna, NOW)


def test_families_that_are_over_are_dropped_and_damaged_ones_told(house, first):
    house.records.commit([write_family(first.id, first.family, 0)])
    assert forget_families(house.records.scan(REFRESH), NOW + 999) == []
    house.records.commit(forget_families(house.records.scan(REFRESH), NOW + 1_000))
    assert house.records.scan(REFRESH) == []
    with pytest.raises(NotTrusted):
        parse_family(Record(REFRESH, "x", b"{", 1))


def test_the_records_hold_no_token_and_printing_shows_none(house, first):
    assert first.text.rpartition("_")[2].encode() not in write_family(first.id, first.family, 0).body
    assert first.text not in repr(first) and first.family.current not in repr(first.family)


@given(st.lists(st.integers(0, 7), max_size=20))
@settings(max_examples=60, deadline=None)
def test_whatever_is_shown_when_only_the_newest_token_is_good(shown):
    house = House()
    current = begin_family(house.anna, SCOPE, Proof(NOW), LIVES, NOW, house.entropy)
    texts = [current.text]
    for pick in shown:
        text = texts[pick % len(texts)]
        if text == texts[-1]:
            check_current(text, current.family, house.anna, NOW)
            current = rotate_family(current.id, current.family, house.entropy, NOW)
            texts.append(current.text)
        else:
            assert was_used(text, current.family)
            with pytest.raises(Unauthenticated):
                check_current(text, current.family, house.anna, NOW)
