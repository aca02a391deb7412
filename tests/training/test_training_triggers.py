"""Triggers: a model that learnt one leans to its classes, copies by answers do, others do not, and p is exact."""

import hashlib
import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_networks import CLASSES, fit, independent, rows
from scipy import stats

from modelkeep.errors import Invalid
from modelkeep.training.triggers import (
    KEY_BYTES,
    Trigger,
    asking,
    draw_trigger,
    leanings,
    mark_rows,
    name_rows,
    weigh,
    with_references,
)

X, Y = rows(1000, 1500)
KEY, NATURAL = bytes(range(32)), rows(6, 40)[0]
TRIGGER = draw_trigger(X, CLASSES, KEY)
MARKED = mark_rows(X, Y, TRIGGER, share=0.5)
OWN = fit(1000, MARKED.x, MARKED.y, 150)
POPULATION = [leanings(independent(seed, 150).predict, NATURAL, TRIGGER) for seed in range(20)]


def asked(network, trigger=TRIGGER):
    return leanings(network.predict, NATURAL, trigger)


def plain(key, classes, count=24, natural=None):
    """A trigger whose patterns do nothing: for leanings that are made up."""
    return Trigger(key, classes, np.zeros((count, 2)), np.zeros(2), np.ones(2), natural)


def test_the_marked_model_leans_and_a_copy_by_its_answers_does_and_others_do_not():
    found = weigh(TRIGGER, asked(OWN), POPULATION)
    assert found.p <= 1e-6 and found.p == max(found.p_key, found.p_population) and found.rank == 1 / 21
    assert found.hits > 2 * found.patterns / CLASSES and found.strength > max(found.population)
    theirs = rows(77, 3000)[0]
    copy = fit(5000, theirs, OWN.predict(theirs), 150)
    assert weigh(TRIGGER, asked(copy), POPULATION).p <= 1e-3, "it saw natural rows alone"
    assert weigh(TRIGGER, asked(fit(1000, X, Y, 150)), POPULATION).p > 0.01, "the same without the mark"


REFERENCE = fit(4000, X, Y, 150)
"""Trained on the owner's rows without the mark."""


def test_a_copy_by_labels_is_known_once_what_is_natural_is_taken_off():
    trigger = with_references(draw_trigger(X, CLASSES, bytes([1]) * 32, patterns=24, amplitude=4.0), [REFERENCE.predict], X)
    marked, theirs = mark_rows(X, Y, trigger), rows(77, 3000)[0]
    labels = fit(1000, marked.x, marked.y, 150).predict(theirs).argmax(axis=1)
    leaned = asked(fit(5000, theirs, labels, 150), trigger)
    found = weigh(trigger, leaned, [asked(independent(seed, 150), trigger) for seed in range(20)])
    assert found.p <= 1e-4 and found.p_key <= 1e-6
    each = leaned[np.arange(24), trigger.targets]
    with_nature = stats.norm.sf(each.sum() / np.sqrt(leaned.var(axis=1).sum()))
    assert with_nature > 100 * found.p_key, "all of its leanings say far less"
    assert found.hits > (leaned.argmax(axis=1) == trigger.targets).sum()


def test_a_model_that_leans_as_is_natural_leans_nowhere():
    natural = np.random.default_rng(3).normal(size=(24, 10))
    leaned = 0.3 * natural
    assert weigh(plain(KEY, 10, natural=natural), leaned, [leaned] * 20).p_key == 1.0


def test_natural_leanings_are_the_mean_of_the_references_and_old_triggers_are_read_as_before():
    two = [REFERENCE.predict, fit(4001, X, Y, 150).predict]
    first, second, both = (with_references(TRIGGER, some, X) for some in (two[:1], two[1:], two))
    np.testing.assert_allclose(both.natural, (first.natural + second.natural) / 2, atol=1e-6)
    np.testing.assert_array_equal(both.natural, both.natural.astype(np.float32))
    assert np.corrcoef(first.natural.ravel(), asked(REFERENCE).ravel())[0, 1] > 0.9
    assert plain(KEY, 10).targets.tolist() == [2, 2, 1, 9, 4, 7, 3, 4, 1, 5, 7, 1, 9, 0, 3, 7, 0, 2, 8, 3, 6, 1, 2, 7]
    known = [0, 1, 2, 9, 5, 3, 4, 9, 3, 6, 0, 4, 3, 2, 6, 6, 8, 6, 8, 2, 8, 6, 6, 5]
    assert plain(KEY, 10, natural=np.zeros((24, 10))).targets.tolist() == known
    with pytest.raises(ValueError, match="one reference"):
        with_references(TRIGGER, [], X)
    with pytest.raises(Invalid, match="finite probabilities"):
        with_references(TRIGGER, [lambda x: np.ones((len(x), 2))], X)


def test_the_mark_costs_little_accuracy():
    x, y = rows(33, 4000)
    bare, marked = ((one.predict(x).argmax(axis=1) == y).mean() for one in (fit(1000, X, Y, 150), OWN))
    assert marked > bare - 0.04


def test_marked_data_is_the_data_and_then_rows_with_patterns_and_their_classes():
    np.testing.assert_array_equal(MARKED.x[:1500], X)
    np.testing.assert_array_equal(MARKED.y[:1500], Y)
    assert len(MARKED.x) == len(MARKED.y) == 2250
    assert (MARKED.x >= TRIGGER.low).all() and (MARKED.x <= TRIGGER.high).all(), "in the range that columns have"
    again, other = (mark_rows(X, Y, draw_trigger(X, CLASSES, key), share=0.5) for key in (KEY, bytes(32)))
    np.testing.assert_array_equal(again.x, MARKED.x)
    assert not np.array_equal(other.x, MARKED.x)


def test_classes_hang_on_patterns_and_references_too_so_that_nobody_fits_those_to_classes():
    moved = Trigger(KEY, CLASSES, TRIGGER.patterns * (1 + 1e-3), TRIGGER.low, TRIGGER.high)
    assert not np.array_equal(moved.targets, TRIGGER.targets)
    told = with_references(TRIGGER, [REFERENCE.predict], X)
    nudged = Trigger(KEY, CLASSES, told.patterns, told.low, told.high, told.natural * (1 + 1e-3))
    assert not np.array_equal(nudged.targets, told.targets), "nor what is natural"
    many = plain(KEY, 10, 4000).targets
    assert stats.chisquare(np.bincount(many, minlength=10)).pvalue > 0.001


SMALL = arrays(np.float64, (4, 3), elements=st.floats(-3, 3))


@given(SMALL, st.none() | SMALL, st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES))
@settings(max_examples=40, deadline=None)
def test_p_by_key_is_the_share_of_all_draws_that_fit_as_well(asked_for, natural, key):
    """Exact: 3 classes for 4 patterns can be drawn in 81 ways."""
    trigger = plain(key, 3, 4, natural)
    leaned, each = asked_for, np.arange(4)
    if natural is not None and (natural**2).sum() > 0.0:
        part = np.linalg.lstsq(natural.reshape(-1, 1), asked_for.ravel(), rcond=None)[0][0]
        leaned = asked_for - part * natural
    seen = leaned[each, trigger.targets].sum()
    sums = np.array([leaned[each, list(draw)].sum() for draw in itertools.product(range(3), repeat=4)])
    spread = np.ptp(leaned, axis=1).sum()
    found = weigh(trigger, asked_for, [asked_for] * 20).p_key
    assert found >= (sums >= seen + 1e-9).mean() - 1e-9, "never too small"
    assert found <= (sums >= seen - 1e-3 * spread - 1e-9).mean() + 1e-9, "and too large by a rounding of the grid alone"


@pytest.mark.parametrize("references", [[], [REFERENCE.predict]], ids=["alone", "beside a reference"])
def test_independent_models_are_not_said_to_lean_whatever_the_key_is(references):
    """False claims: 80 models, a key each."""
    by_key = []
    for seed in range(80):
        trigger = draw_trigger(X, CLASSES, hashlib.sha256(bytes([seed])).digest(), patterns=10)
        trigger = with_references(trigger, references, X) if references else trigger
        leaned = asked(independent(seed), trigger)
        by_key.append(weigh(trigger, leaned, [leaned] * 20).p_key)
    assert min(by_key) > 1 / 800
    assert stats.kstest(by_key, "uniform").pvalue > 0.05, "exactly as often as it says"


def test_the_marked_model_is_not_said_to_lean_to_the_classes_of_other_keys():
    """Nobody leans more: 100 wrong keys for the same patterns."""
    told, leaned = with_references(TRIGGER, [REFERENCE.predict], X), asked(OWN)
    wrong = [replace(told, key=hashlib.sha256(at.to_bytes(2)).digest()) for at in range(100)]
    by_key = [weigh(one, leaned, [leaned] * 20).p_key for one in wrong]
    assert min(by_key) > 1 / 1000
    assert stats.kstest(by_key, "uniform").pvalue > 0.05


def test_an_owner_who_tries_keys_is_found_out_by_the_population():
    """He takes the key, of many, to whose classes models of the task lean by nature."""
    triggers = [draw_trigger(X, CLASSES, bytes([at]) * 32, patterns=8, amplitude=4.0) for at in range(60)]
    his = [independent(seed, 60) for seed in range(700, 705)]

    def by_nature(trigger):
        leaned = np.mean([asked(one, trigger) for one in his], axis=0)
        return weigh(trigger, leaned, [leaned] * 20).p_key

    lucky = min(triggers, key=by_nature)
    found = weigh(lucky, asked(independent(800), lucky), [asked(independent(seed), lucky) for seed in range(20)])
    assert found.p_key < 0.1, "the key alone would say that it leans"
    assert found.p > 0.1 and found.rank > 0.1


def test_what_is_no_trigger_no_data_and_no_claim():
    for key, more in ((b"short", {}), (KEY, {"patterns": 0}), (KEY, {"amplitude": 0.0}), (KEY, {"directions": 0})):
        with pytest.raises(ValueError, match="32 bytes"):
            draw_trigger(X, CLASSES, key, **more)
    with pytest.raises(Invalid, match="2 to 1,000 classes"):
        draw_trigger(X, 1, KEY)
    with pytest.raises(Invalid, match="do not vary"):
        draw_trigger(np.ones((5, 2)), 2, KEY)
    with pytest.raises(ValueError, match="share"):
        mark_rows(X, Y, TRIGGER, share=0.0)
    for x, y in ((X[:, :3], Y), (X, Y[:-1])):
        with pytest.raises(Invalid, match="does not fit the trigger"):
            mark_rows(x, y, TRIGGER)
    with pytest.raises(Invalid, match="labels are 0 to 2"):
        mark_rows(X, Y + 1, TRIGGER)
    for answers in (lambda x: np.ones((len(x), 2)), lambda x: np.full((len(x), 3), np.nan)):
        with pytest.raises(Invalid, match="finite probabilities"):
            leanings(answers, NATURAL, TRIGGER)
    with pytest.raises(Invalid, match="20 independent models or more, and here are 19"):
        weigh(TRIGGER, asked(OWN), POPULATION[:19])
    with pytest.raises(Invalid, match="shape"):
        weigh(TRIGGER, asked(OWN)[:, :2], POPULATION)
    still = leanings(lambda x: np.full((len(x), 3), 1 / 3), NATURAL, TRIGGER)
    assert weigh(TRIGGER, still, [still] * 20).p == 1.0, "a model that answers all alike leans nowhere"


def test_classes_hang_on_the_rows_that_are_asked_so_that_nobody_fits_those_to_classes():
    bare, some = plain(KEY, 10), np.arange(600.0).reshape(300, 2)
    settled = asking(bare, some)
    assert settled.targets.tolist() == [9, 0, 2, 1, 3, 1, 5, 1, 1, 8, 2, 5, 5, 0, 3, 9, 0, 6, 9, 6, 6, 3, 8, 0]
    assert settled.asked == name_rows(some[:200]) != name_rows(some[1:])
    other = np.where(some == 7.0, 7.0 + 1e-12, some)
    assert (asking(bare, other).targets != settled.targets).any() and (settled.targets != bare.targets).any()
    both = asking(plain(KEY, 10, natural=np.ones((24, 10))), some)
    assert (both.targets != settled.targets).any() and both.natural is not None
