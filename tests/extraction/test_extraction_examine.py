"""Examined in one batch or one by one, the same queries leave the same behind, to the last bit."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.extraction import budget, eprocess
from modelkeep.extraction.accounts import REMEMBERED, WIDE, Accounts
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.examine import Batch, Examiner, Queries, Ready
from modelkeep.extraction.turns import turns


@given(st.lists(st.integers(0, 5), max_size=40))
def test_turns_keep_everybody_s_order_and_have_nobody_twice(owners):
    taken = [[owners[i] for i in turn] for turn in turns(owners)]
    assert sorted(i for turn in turns(owners) for i in turn) == list(range(len(owners)))
    for owner in set(owners):
        mine = [i for turn in turns(owners) for i in turn if owners[i] == owner]
        assert mine == sorted(mine)
    for before, after in pairwise(taken):
        assert len(set(before)) == len(before) and before[: len(after)] == after


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 2**32 - 1), st.sampled_from([1.0, 9e249]))
def test_bets_that_are_settled_together_are_those_settled_one_by_one(owners, seed, rich):
    rng = np.random.default_rng(seed)
    bets = eprocess.make_bets(np.array([0.1, 0.02]))
    factors = bets.factors(rng.random((len(owners), 2)) < 0.5)
    since = rng.integers(0, 50, size=5).tolist()
    apart = [rich * rng.exponential(size=(2, len(bets.up))) for _ in range(5)]
    together = [stakes.copy() for stakes in apart]
    values = eprocess.settle([together[owner] for owner in owners], factors, [since[owner] for owner in owners])
    for i, owner in enumerate(owners):
        kept, restarted = eprocess.step(apart[owner][0], apart[owner][1], factors[i], np.array(since[owner]))
        apart[owner], since[owner] = np.stack([kept, restarted]), since[owner] + 1
        assert values[i] == pytest.approx(float(eprocess.evidence(kept, restarted)), rel=1e-12)
    assert np.allclose(together, apart, rtol=1e-12)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 4), max_size=30), st.integers(0, 2**32 - 1))
def test_questions_that_are_charged_together_cost_what_they_cost_one_by_one(owners, seed):
    rng = np.random.default_rng(seed)
    phi = rng.normal(size=(len(owners), budget.DIMENSIONS)).astype(np.float32)
    w = rng.uniform(0.1, 1.0, len(owners))
    apart = [np.eye(budget.DIMENSIONS, dtype=np.float32) for _ in range(5)]
    together = [inverse.copy() for inverse in apart]
    nats = budget.spend_each([together[owner] for owner in owners], phi, w)
    alone = [budget.spend(apart[owner], phi[i], float(w[i])) for i, owner in enumerate(owners)]
    assert nats == pytest.approx(alone, rel=1e-5)
    assert np.allclose(together, apart, rtol=1e-4, atol=1e-6)


def _accounts(names):
    """Five accounts; the oldest that the last one remembers are the first four of ``names``."""
    accounts = Accounts(7, None, 100)
    for owner in range(5):
        accounts.make(str(owner))
    last = accounts.get("4")
    last.names[:], last.effective = np.arange(1, 1 + REMEMBERED), REMEMBERED
    last.names[: len(names[:4])] = names[:4]
    return accounts


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 11)), min_size=1, max_size=64), st.integers(0, 2**32 - 1))
def test_one_batch_of_many_accounts_is_all_its_queries_one_by_one(digits, asked, seed):
    rng = np.random.default_rng(seed)
    pool = digits.unseen[rng.permutation(len(digits.unseen))[:12]]
    pool[8:] = pool[:4] + 0.001  # near repeats of others
    x, subjects = pool[[row for _, row in asked]], [str(owner) for owner, _ in asked]
    batch = Batch(fingerprints(x), x, digits.predict(x), None)
    states = []
    for size in (len(asked), 1):
        accounts = _accounts(fingerprints(pool))
        examiner = Examiner(digits.profile, accounts, 64)
        queries = examiner.prepare(batch, list(range(len(asked)))).queries
        told = {}
        for at in range(0, len(asked), size):
            here = list(range(at, at + size))
            who = {subjects[i]: accounts.get(subjects[i]) for i in here}
            new = [i for i in here if not who[subjects[i]].remembers(batch.names[i])]
            part = Batch(batch.names[here], x[here], batch.probs[here], None)
            ready = Ready(_rows(queries, new), {i - at: row for row, i in enumerate(new)})
            found = examiner.take([subjects[i] for i in here], who, part, ready)
            told |= {at + i: row.tolist() for i, row in zip(found.told, found.events, strict=True)}
        states.append((told, [accounts.get(subject) for subject in accounts]))
    (told, together), (told_apart, apart) = states
    assert told == told_apart
    for one, other in zip(together, apart, strict=True):
        assert (one.effective, one.names.tolist(), one.own.tolist()) == (
            other.effective,
            other.names.tolist(),
            other.own.tolist(),
        )
        assert one.spent == pytest.approx(other.spent, rel=1e-5)


def _rows(queries, rows):
    return Queries(queries.own[rows], queries.events[rows], queries.phi[rows], queries.w[rows])


def test_a_repeat_that_others_of_its_batch_pushed_out_is_asked_anew(digits):
    x = digits.unseen[:2]
    batch = Batch(fingerprints(x), x, digits.predict(x), None)
    accounts = _accounts(batch.names[1:])
    account = accounts.get("4")
    examiner = Examiner(digits.profile, accounts, 64)
    assert account.remembers(batch.names[1]) and not account.remembers(batch.names[0])
    found = examiner.take(["4", "4"], {"4": account}, batch, examiner.prepare(batch, [0]))
    assert found.told == [0, 1] and account.effective == REMEMBERED + 2


def test_places_are_those_of_the_account_however_many_ask():
    rng, accounts = np.random.default_rng(0), Accounts(3, None, 2 * WIDE)
    for number in range(WIDE + 20):
        accounts.make(f"{number}")
        for _ in range(2):
            accounts.remember(f"{number}", np.uint64(1), rng.normal(size=32).astype(np.float32))
    assert len(accounts._wide) == WIDE
    accounts.forget(f"{WIDE}")
    accounts.make(f"{WIDE}")
    for subject in ("0", "25", f"{WIDE}", f"{WIDE + 1}"):
        assert (accounts.places(subject) == accounts.get(subject).own).all()
    assert accounts.places("0")[:2].any() and (accounts.places(f"{WIDE}") == 1000.0).all()


def test_of_an_account_that_went_elsewhere_no_place_is_left_in_memory():
    accounts = Accounts(3, Elsewhere(), 1)
    for subject in "ab":
        accounts.make(subject)
        accounts.remember(subject, np.uint64(1), np.ones(32, dtype=np.float32))
        accounts.settle()
    assert list(accounts._wide) == ["b"] == list(accounts._hot)
    accounts.get("a")
    assert (accounts.places("a")[0] == 1.0).all()


class Elsewhere(dict):
    """``Cold`` in a dictionary."""

    put = dict.__setitem__
    get = dict.__getitem__
