"""Marks in weights: the schedule to the byte, the theorem, the bound, and what they survive."""

import hashlib
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.training.tails import binomial_tail
from modelkeep.training.weightmark import (
    BITS,
    BOUND,
    MOST,
    Plan,
    Reading,
    against,
    commitment,
    embed,
    layout_of,
    plan_of,
    read,
)

KEY = bytes(range(32))
OWNER = "Acme Ltd"
SHAPES = [(64, 48), (32, 64), (10, 32)]


def network(seed, shapes=SHAPES):
    rng = np.random.default_rng(seed)
    return [rng.normal(0.0, 1.0 / math.sqrt(shape[1]), shape) for shape in shapes]


def pruned(matrices, share):
    return [np.where(np.abs(w) >= np.quantile(np.abs(w), share), w, 0.0) for w in matrices]


def noisy(matrices, sizes, seed=5):
    rng = np.random.default_rng(seed)
    return [w + rng.normal(0.0, sizes * np.sqrt((w**2).mean()), w.shape) for w in matrices]


@pytest.fixture(scope="module")
def marked():
    matrices = network(1)
    plan = plan_of(KEY, OWNER, layout_of(matrices))
    return plan, matrices, embed(matrices, plan)


# -- known answers --


def test_the_schedule_is_the_documented_one_to_the_byte():
    """docs/watermark.md has the same numbers: whoever builds a reader of his own checks it by them."""
    layout = layout_of(network(1))
    assert commitment(KEY, OWNER, layout).hex() == "87559d17a8ffcabf5cb8bcd5b280c71a46675e8c3a72c1fea89510b99b1e560a"
    page = (Path(__file__).parents[2] / "docs" / "watermark.md").read_text("utf-8")
    assert f"`{commitment(KEY, OWNER, layout).hex()}`" in page
    plan = plan_of(KEY, OWNER, layout)
    assert f"the weights {', '.join(map(str, plan.at[0, :6]))}" in page
    assert plan.at.shape == plan.signs.shape == (BITS, 85)
    assert plan.at[0, :6].tolist() == [2633, 3621, 781, 6, 2926, 4367]
    assert plan.signs[0, :6].tolist() == [-1.0, -1.0, 1.0, -1.0, -1.0, -1.0]
    both = plan.at.astype("<i8").tobytes() + plan.signs.astype("i1").tobytes()
    assert hashlib.sha256(both).hexdigest() == "2f0b69b648a2288dd10573e229148b5e1a7cc1b8e0e06c7754a582f97e59df38"


def test_key_statement_and_layout_decide_all_of_it():
    layout = layout_of(network(1))
    for other in (
        plan_of(bytes(32), OWNER, layout),
        plan_of(KEY, "Acme", layout),
        plan_of(KEY, OWNER, layout[:1] + layout[::-1]),
    ):
        assert not np.array_equal(other.signs, plan_of(KEY, OWNER, layout).signs[:, : other.signs.shape[1]])
    with pytest.raises(Invalid, match="32 bytes"):
        plan_of(b"short", OWNER, layout)


def test_every_weight_of_a_small_model_is_used_once_and_some_of_a_large_one():
    small = plan_of(KEY, OWNER, layout_of(network(1)))
    assert len(np.unique(small.at)) == small.at.size
    large = plan_of(KEY, OWNER, ((2048, 1024),))
    assert len(np.unique(large.at)) == large.at.size <= MOST
    assert large.at.size > 0.7 * MOST
    assert large.at.min() >= 0
    assert large.at.max() < 2048 * 1024


# -- the theorem --


@settings(max_examples=30, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 1000), st.floats(0.0, 0.99))
def test_turned_signs_turn_every_bit_so_each_is_a_coin_whatever_the_weights_are(key, seed, share):
    matrices = pruned(network(seed, [(48, 48)]), share)
    plan = plan_of(key, OWNER, layout_of(matrices))
    one, other = read(matrices, plan).matched, read(matrices, Plan(plan.at, -plan.signs, plan.layout)).matched
    sums = (plan.signs * matrices[0].ravel()[plan.at]).sum(axis=1)
    assert one + other == BITS - int((sums == 0.0).sum())


def test_over_random_keys_the_matches_are_binomial_and_p_is_uniform_or_larger():
    matrices = network(3, [(48, 48)])
    layout = layout_of(matrices)
    found = [read(matrices, plan_of(hashlib.sha256(i.to_bytes(2)).digest(), OWNER, layout)) for i in range(600)]
    matches = np.array([one.matched for one in found])
    assert abs(matches.mean() - BITS / 2) < 4 * math.sqrt(BITS / 4 / len(found))
    assert 0.8 < matches.var() / (BITS / 4) < 1.25
    p = np.array([one.p for one in found])
    for level in (0.5, 0.1, 0.02):
        assert (p <= level).mean() <= level + 4 * math.sqrt(level / len(p))


def test_a_model_that_was_marked_under_another_key_shows_nothing_of_this_one(marked):
    plan, _, done = marked
    assert read(done.matrices, plan_of(bytes(32), OWNER, plan.layout)).p > 1e-4


# -- embedding --


@settings(max_examples=15, deadline=None)
@given(st.binary(min_size=32, max_size=32), st.integers(0, 1000), st.floats(-200.0, 200.0), st.floats(0.01, 0.6))
def test_no_weight_changes_by_more_than_the_bound(key, seed, exponent, lean):
    matrices = [w * 2.0**exponent for w in network(seed, [(48, 48), (3, 1)])]
    plan = plan_of(key, OWNER, layout_of(matrices))
    done = embed(matrices, plan, lean=lean)
    scale = float(np.sqrt((matrices[0] / 2.0**exponent).var())) * 2.0**exponent
    assert np.abs(done.matrices[0] - matrices[0]).max() <= BOUND * scale * 1.01
    assert done.largest <= BOUND * (1 + 1e-9)
    assert np.array_equal(done.matrices[1], matrices[1]), "a vector carries nothing"
    assert read(done.matrices, plan) == Reading(BITS, BITS, 2.0**-BITS)


def test_it_stands_after_pruning_noise_and_both(marked):
    plan, matrices, done = marked
    assert read(matrices, plan).matched < 50
    assert done.change < 0.7
    for changed in (pruned(done.matrices, 0.9), noisy(done.matrices, 0.5), pruned(noisy(done.matrices, 0.3), 0.9)):
        assert read(changed, plan).matched >= 63


def test_it_stands_after_drift_as_large_as_the_weights(marked):
    """Fine-tuning at a high rate moves the weights of a wide layer by as much as they measure; then a tenth of them votes."""
    plan, _, done = marked
    drifted = [pruned(noisy(done.matrices, 1.0, seed), 0.9) for seed in (5, 6, 7)]
    assert sum(read(one, plan).matched for one in drifted) >= 3 * BITS - 5
    assert read(noisy(done.matrices, 2.0), plan).matched >= BITS - 2


def test_a_second_mark_does_not_remove_the_first(marked):
    plan, _, done = marked
    other = plan_of(bytes(32), "a thief", plan.layout)
    both = embed(done.matrices, other)
    assert read(both.matrices, other).matched == BITS
    assert read(both.matrices, plan).matched >= 62


def layers(matrices, inputs):
    """What each layer of a network of rectified units is given, and in the end its answers."""
    given = [inputs]
    for w in matrices:
        given.append(np.maximum(given[-1] @ w.T, 0.0))
    return given[:-1], given[-2] @ matrices[-1].T


def test_with_moments_the_answers_change_less(marked):
    plan, matrices, blind = marked
    rng = np.random.default_rng(2)
    inputs = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 48))  # six directions of 48 are looked at
    given, answers = layers(matrices, inputs)
    done = embed(matrices, plan, [x.T @ x / len(x) for x in given])
    assert read(done.matrices, plan).matched == BITS

    def moved(marks):
        return np.square(layers(marks.matrices, inputs)[1] - answers).mean()

    assert moved(done) < 0.01 * moved(blind)


def test_the_layer_with_directions_to_spare_carries_most_of_the_change(marked):
    plan, matrices, blind = marked
    rng = np.random.default_rng(2)
    wide = rng.normal(size=(400, 6)) @ rng.normal(size=(6, 48))
    done = embed(matrices, plan, [wide.T @ wide / 400, np.eye(64), np.eye(32)])

    def changes(marks):
        return [np.linalg.norm(one - w) / np.linalg.norm(w) for one, w in zip(marks.matrices, matrices, strict=True)]

    assert changes(done)[0] > 5 * max(changes(done)[1:])
    assert changes(blind)[2] < 0.3 * changes(blind)[0], "a small layer has few weights to say so much with"


def test_layers_that_somebody_added_are_passed_over_and_another_architecture_is_refused(marked):
    plan, _, done = marked
    first, *rest = done.matrices
    assert read([first, np.eye(5), *rest], plan).matched == BITS
    with pytest.raises(Invalid, match="another architecture"):
        read(list(done.matrices)[:-1], plan)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused(marked, bad):
    plan, matrices, _ = marked
    broken = [np.array(w) for w in matrices]
    broken[1][3, 4] = bad
    for use in (lambda: read(broken, plan), lambda: embed(broken, plan)):
        with pytest.raises(Invalid, match="NaN or infinite"):
            use()


@pytest.mark.parametrize("shapes", [[], [(0, 40)], [(5000, 1)], [(40, 40)]])
def test_too_few_weights_are_refused(shapes):
    with pytest.raises(Invalid, match="a mark needs 2,048"):
        layout_of([np.ones(shape) for shape in shapes])


def test_a_layer_of_zeros_is_left_alone():
    zeros = np.zeros((40, 48))
    done = embed([*network(1), zeros], plan_of(KEY, OWNER, (*SHAPES, zeros.shape)))
    assert np.array_equal(done.matrices[3], zeros)


def test_weights_of_zeros_read_as_no_match_and_carry_no_mark(marked):
    plan, matrices, _ = marked
    zeros = [np.zeros_like(w) for w in matrices]
    assert read(zeros, plan) == Reading(0, BITS, 1.0)
    with pytest.raises(Invalid, match="cannot carry"):
        embed(zeros, plan)


# -- independent models --


def test_a_key_picked_to_fit_what_models_have_in_common_is_shown_by_them():
    found = Reading(64, BITS, binomial_tail(64, BITS, 0.5))
    honest = [Reading(matched, BITS, 1.0) for matched in (30, 33, 29, 35, 32) * 4]
    assert 1e-19 < against(found, honest) < 1e-15
    assert against(found, [Reading(62, BITS, 1.0)] * 20) > 0.1
    assert against(found, [Reading(64, BITS, 1.0)] * 20) == 1.0
    with pytest.raises(Invalid, match="none"):
        against(found, [])
