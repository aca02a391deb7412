"""The table of a wrapping key's states, and what destroying does next."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core import keystates as ks
from modelkeep.core.ports import KeyInfo
from modelkeep.errors import Conflict, Invalid

STATES = (ks.PENDING, ks.PRIMARY, ks.DECRYPT_ONLY, ks.DISABLED, ks.PENDING_DESTRUCTION, ks.DESTROYED, ks.COMPROMISED)
EVENTS = (ks.ENTER, ks.SUPERSEDE, ks.DISABLE, ks.ENABLE, ks.DESTROY, ks.COMPROMISE, ks.SCHEDULE, ks.CANCEL)


def info(state, due=0):
    return KeyInfo("file:k/1", 1, state, 0, due)


@pytest.mark.parametrize(("state", "event"), list(itertools.product(STATES, EVENTS)))
def test_every_pair_is_in_the_table_or_refused(state, event):
    if (state, event) in ks.WRAPPING_STATES:
        assert ks.next_wrapping_state("k/1", state, event) in STATES
    else:
        with pytest.raises(Conflict, match=f"k/1 is {state}: it cannot {event}"):
            ks.next_wrapping_state("k/1", state, event)


def test_nothing_leads_out_of_destroyed_or_back_to_primary():
    assert not any(state == ks.DESTROYED for state, _ in ks.WRAPPING_STATES)
    assert [key for key, after in ks.WRAPPING_STATES.items() if after == ks.PRIMARY] == [(ks.PENDING, ks.ENTER)]


def test_only_what_cannot_unwrap_any_more_or_is_compromised_is_destroyed():
    before = {state for state, event in ks.WRAPPING_STATES if event in (ks.DESTROY, ks.SCHEDULE)}
    assert before == {ks.DISABLED, ks.PENDING_DESTRUCTION, ks.COMPROMISED}


def test_what_destroying_does_next():
    assert ks.destruction(info(ks.DISABLED), 5, 0) == (ks.DESTROY, 0)
    assert ks.destruction(info(ks.DISABLED), 5, 2) == (ks.SCHEDULE, 5 + 2 * ks.DAY_NS)
    assert ks.destruction(info(ks.COMPROMISED), 5, 1) == (ks.SCHEDULE, 5 + ks.DAY_NS)
    assert ks.destruction(info(ks.PENDING_DESTRUCTION, 5), 5, 7) == (ks.DESTROY, 0)
    assert ks.destruction(info(ks.PENDING_DESTRUCTION, 6), 5, 0) == (ks.DESTROY, 0)
    with pytest.raises(Conflict, match="in 1 days"):
        ks.destruction(info(ks.PENDING_DESTRUCTION, 6), 5, 7)
    for days in (-1, ks.MAX_GRACE_DAYS + 1):
        with pytest.raises(Invalid):
            ks.destruction(info(ks.DISABLED), 5, days)
    for state in (ks.PENDING, ks.PRIMARY, ks.DECRYPT_ONLY, ks.DESTROYED):
        for days in (0, 7):
            with pytest.raises(Conflict):
                ks.destruction(info(state), 5, days)


@given(st.integers(1, 10**9 - 1), st.text(max_size=20))
def test_a_key_id_names_its_version(version, name):
    assert ks.version_named(f"{name}/{version}", name) == version
    assert ks.version_named(f"{name}/{version}", name + "x") is None


@pytest.mark.parametrize(
    "tail", ["", "/", "/0", "/01", "/-1", "/+1", "/1 ", "/1\n", "/1000000000", "/\u0661", "/1/1", "/" + "9" * 5000]
)
def test_what_is_no_version_is_none(tail):
    assert ks.version_named("k" + tail, "k") is None
