"""Accounts that ask alike are found on one half of space and shown on the other; others are not."""

import numpy as np
import pytest

from modelkeep.extraction.attacks.base import Knowledge, Planned
from modelkeep.extraction.attacks.line_search import line_search
from modelkeep.extraction.places import Places
from modelkeep.extraction.sketch import (
    LARGEST,
    find_alike,
    find_groups,
    halves,
    local_names,
    shared_names,
    similarities,
    sketch,
)


def _honest(rng, count=60, rows=80):
    return {f"honest-{i}": 3 * rng.normal(size=(rows, 32)) for i in range(count)}


def test_accounts_that_ask_the_same_are_found_and_nobody_else():
    rng = np.random.default_rng(0)
    asked, pool = _honest(rng), 3 * rng.normal(size=(100, 32))
    for i in range(5):
        mine = pool[rng.permutation(100)[:60]]
        asked[f"ring-{i}"] = mine + 0.01 * rng.normal(size=mine.shape)
    found = find_alike(asked, {"copies": 0.25}, seed=1)
    assert [one.accounts for one in found if one.corrected <= 0.01] == [tuple(f"ring-{i}" for i in range(5))]
    assert found[0].similarity > 10 * found[0].usual + 0.1


def test_a_line_search_dealt_over_accounts_is_found_by_its_steps(digits):
    rng, known = np.random.default_rng(3), Knowledge.of(digits.unseen)
    thief, places = Planned(line_search(known, rng)), Places(digits.profile.embedding)
    rows = []
    for _ in range(400):
        rows.append(thief.propose(1))
        thief.feed(rows[-1], digits.predict(rows[-1]))
    walked = places.of(np.concatenate(rows))
    asked = {f"thief-{i}": walked[i::5] for i in range(5)}
    natural = places.of(digits.unseen)
    asked |= {f"honest-{i}": natural[rng.choice(len(natural), 60)] for i in range(40)}
    found = find_alike(asked, {"copies": digits.profile.near, "steps": float(digits.profile.step_limits[0])}, seed=1)
    certain = [set(one.accounts) for one in found if one.corrected <= 0.01]
    assert {f"thief-{i}" for i in range(5)} in certain
    assert all(who <= {f"thief-{i}" for i in range(5)} for who in certain)


def test_p_values_of_groups_chosen_on_one_half_are_fair_on_the_other():
    """Accounts draw from one small pool, so that they share questions by chance, and groups are many."""
    small = []
    for world in range(30):
        rng = np.random.default_rng(world)
        pool = 3 * rng.normal(size=(300, 32))
        asked = {f"a{i}": pool[rng.choice(300, 30, replace=False)] for i in range(100)}
        small += [one.p for one in find_alike(asked, {"copies": 0.25}, seed=world)]
    assert len(small) > 30
    assert np.mean(np.array(small) <= 0.1) <= 0.2


def test_near_places_share_names_and_far_ones_do_not():
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(500, 32))
    beside = x + 0.2 * (step := rng.normal(size=x.shape)) / np.linalg.norm(step, axis=1, keepdims=True)
    a, b = (local_names(rows, 0.25, np.random.default_rng(9)) for rows in (x, beside))
    assert (a == b).any(axis=1).mean() > 0.75
    assert (a[:-1] == a[1:]).any(axis=1).mean() < 0.01


def test_halves_keep_near_places_together_and_are_about_equal():
    rng = np.random.default_rng(0)
    x = 3 * rng.normal(size=(4000, 32))
    even = halves(x, 0.25, np.random.default_rng(2))
    again = halves(x + 0.01 * rng.normal(size=x.shape), 0.25, np.random.default_rng(2))
    assert (even == again).mean() > 0.95
    assert 0.2 < even.mean() < 0.8


def test_what_sketches_share_is_counted_and_common_names_are_not():
    three = [sketch(np.array(names, dtype=np.uint64)) for names in ([5, 1, 1, 9], [5, 9, 7], [2])]
    shared = shared_names(three)
    assert shared.tolist() == [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    assert similarities(three, shared)[0, 1] == pytest.approx(2 / 4)
    everybody = [sketch(np.array([1, 100 + i], dtype=np.uint64)) for i in range(300)]
    assert not shared_names(everybody).any()


def test_a_group_is_cut_until_it_is_small_enough():
    count = LARGEST + 20
    similar = np.full((count, count), 0.03)
    similar[:10, :10] = 0.9
    np.fill_diagonal(similar, 0.0)
    assert find_groups(np.full((count, count), 50), similar) == [tuple(range(10))]


def test_nobody_and_radii_that_say_nothing_find_nothing():
    assert find_alike({}, {"copies": 0.2}, seed=0) == []
    assert find_alike(_honest(np.random.default_rng(0), 5), {"copies": float("inf"), "steps": 0.0}, seed=0) == []
