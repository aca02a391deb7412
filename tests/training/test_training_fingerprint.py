"""Copies share what is peculiar to a model, independent models do not, and no p-value claims more than it may."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from random_networks import fit, independent, nudged, rows
from scipy import stats

from modelkeep.errors import Invalid
from modelkeep.training.fingerprint import LEAST_POPULATION, Probes, answers, draw_probes, labels, likeness, resemblance

MODEL, REFERENCE, KEY = independent(1000), rows(5, 300)[0], bytes(range(32))
POPULATION = [independent(seed) for seed in range(24)]


@pytest.fixture(scope="module")
def probes():
    return draw_probes(MODEL.predict, REFERENCE, KEY, 3000)


def told(probes, models):
    return np.stack([labels(one.predict, probes.points) for one in models])


def compared(probes, suspect, population=POPULATION):
    return resemblance(probes, labels(suspect.predict, probes.points), told(probes, population))


def test_probes_lie_close_to_the_models_boundary(probes):
    near, far = probes.classes.T
    assert (near != far).all() and np.isin(probes.told, (0, 1, 2)).all()
    assert ((probes.told == near) | (probes.told == far)).mean() > 0.95
    assert 0.45 < (probes.told == near).mean() < 0.55, "on either side"
    top = np.sort(MODEL.predict(probes.points), axis=1)
    natural = np.sort(MODEL.predict(REFERENCE), axis=1)
    assert np.median(top[:, 2] - top[:, 1]) < 0.5 * np.median(natural[:, 2] - natural[:, 1])


def test_the_key_alone_draws_them_and_a_model_reads_them_as_they_are(probes):
    again, other = (draw_probes(MODEL.predict, REFERENCE, key, 3000) for key in (KEY, bytes(32)))
    np.testing.assert_array_equal(again.points, probes.points)
    np.testing.assert_array_equal(again.told, probes.told)
    assert not np.isclose(other.points, probes.points).all(axis=1).any()
    np.testing.assert_array_equal(probes.points, probes.points.astype(np.float32))


def test_the_draw_is_the_same_on_every_machine():
    """A judge draws them again: what the key says must not hang on the version of a library."""
    drawn = draw_probes(lambda x: np.stack([x[:, 0], -x[:, 0]], axis=1), np.linspace(-1, 1, 40)[:, None], KEY, 50)
    assert hashlib.sha256(drawn.points.astype("<f4").tobytes()).hexdigest() == KNOWN


KNOWN = "9a09cd7036ff0696b5d382772ca73e2a7f1e1148dc70e5bd846d2bc6d5e8cda6"


@pytest.mark.parametrize(
    ("suspect", "most"),
    [
        (nudged(MODEL, 1, 0.05), 1e-9),
        (nudged(MODEL, 2, 0.2), 1e-5),
        (fit(5000, rows(77, 2000)[0], MODEL.predict(rows(77, 2000)[0])), 1e-3),
        (fit(5001, rows(77, 2000)[0], MODEL.predict(rows(77, 2000)[0]).argmax(axis=1)), 1e-3),
    ],
    ids=["changed a little", "changed more", "distilled from probabilities", "distilled from labels"],
)
def test_copies_are_found(probes, suspect, most):
    found = compared(probes, suspect)
    assert found.p_population <= most
    assert found.rank == 1 / (len(POPULATION) + 1) and found.shared > max(found.population)
    assert found.p == max(found.p_population, found.p_key)


def test_the_model_itself_shares_everything(probes):
    found = compared(probes, MODEL)
    assert (found.agreement, round(found.shared, 9)) == (1.0, 1.0) and found.p < 1e-20


def test_independent_models_are_no_copies_under_any_key():
    """False claims: 60 independent suspects, each with a key of its own."""
    suspects = [independent(seed) for seed in range(100, 160)]
    found = []
    for at, one in enumerate(suspects):
        drawn = draw_probes(MODEL.predict, REFERENCE, hashlib.sha256(bytes([at])).digest(), 400)
        found.append(compared(drawn, one))
    assert min(one.p for one in found) > 1 / len(suspects)
    for name in ("p_population", "rank"):
        told_p = np.array([getattr(one, name) for one in found])
        assert stats.kstest(told_p, "uniform", alternative="greater").pvalue > 0.05, f"{name} is uniform or larger"


def test_a_lucky_key_gains_nothing(probes):
    """Over keys, a suspect that is as near as the nearest of the population is hardly ever said to be nearer."""
    twin = POPULATION[3]
    others = [*POPULATION[:3], nudged(twin, 1, 1e-9), *POPULATION[4:]]
    assert compared(probes, twin, others).p_key == 1.0
    found = []
    for at in range(40):
        drawn = draw_probes(MODEL.predict, REFERENCE, hashlib.sha256(bytes([at])).digest(), 100)
        found.append(compared(drawn, POPULATION[at % 24], POPULATION).p_key)
    assert min(found) > 1 / len(found)


SIDES = arrays(np.int64, (LEAST_POPULATION + 1, 60), elements=st.integers(0, 2))


@given(SIDES)
@settings(max_examples=40, deadline=None)
def test_the_suspect_is_treated_as_any_other_so_that_ranks_are_exact(answers):
    """Whatever 21 models answer: with each of them as the suspect in turn, at most k ranks are k / 21 or less."""
    mine = np.arange(60) % 2
    probes = Probes(np.zeros((60, 1)), np.stack([mine * 0, mine * 0 + 1], axis=1), mine)
    found = [resemblance(probes, answers[at], np.delete(answers, at, axis=0)) for at in range(len(answers))]
    np.testing.assert_allclose(found[0].population, [one.shared for one in found[1:]], atol=1e-9)
    ranks = np.sort([one.rank for one in found])
    assert (ranks >= (np.arange(len(ranks)) + 1) / len(ranks) - 1e-9).all()
    assert all(0.0 < one.p <= 1.0 and one.p >= max(one.p_key, one.p_population) for one in found)


def test_models_that_all_answer_alike_are_no_population(probes):
    alike = np.repeat(told(probes, POPULATION[:1]), 20, axis=0)
    assert resemblance(probes, probes.told, alike).p_population == 1.0


# -- version 2: a second look, beyond what the others explain --

FEW = draw_probes(MODEL.predict, REFERENCE, KEY, 1000)
THEIRS = np.stack([answers(one.predict, FEW.points) for one in POPULATION])


def looked(suspect, population=THEIRS):
    return likeness(FEW, answers(suspect, FEW.points), population)


def unbalanced(network):
    """Says the first class far more often, as a pruned model may."""

    def predict(x):
        tilted = network.predict(x) * np.exp([2.0, 0.0, 0.0])
        return tilted / tilted.sum(axis=1, keepdims=True)

    return predict


def test_a_copy_that_lost_its_balance_between_classes_is_found_by_the_second_look():
    copy = unbalanced(nudged(MODEL, 1, 0.1))
    found, before = looked(copy), resemblance(FEW, labels(copy, FEW.points), THEIRS.argmax(axis=2))
    assert before.p > 0.5 and found.p <= 1e-6
    assert found.p == max(found.p_population, found.p_key) and found.agreement == before.agreement
    rival = looked(unbalanced(independent(700)))
    assert rival.p > 0.01


def test_the_better_look_counts_and_costs_twice_its_p():
    found, before = looked(MODEL.predict), resemblance(FEW, FEW.told, THEIRS.argmax(axis=2))
    assert found.p <= 2 * before.p and found.rank == 2 / (len(POPULATION) + 1)
    same = likeness(FEW, THEIRS[0], THEIRS[1:])
    assert same.p == 1.0 and same.rank <= 1.0


def test_who_tells_labels_alone_is_compared_with_the_others_labels():
    hard = np.eye(3)[nudged(MODEL, 1, 0.1).predict(FEW.points).argmax(axis=1)]
    found = likeness(FEW, hard, THEIRS)
    assert found == likeness(FEW, hard, np.eye(3)[THEIRS.argmax(axis=2)])
    assert found.p < 1e-6
    narrow = np.eye(2)[FEW.told.clip(0, 1)]
    assert likeness(FEW, narrow, THEIRS) == likeness(FEW, np.eye(3)[FEW.told.clip(0, 1)], THEIRS), (
        "who knows fewer classes, too"
    )


def test_independent_models_are_no_copies_at_the_second_look_under_any_key():
    """False claims: 40 independent suspects, each with a key of its own."""
    found = []
    for at in range(40):
        drawn = draw_probes(MODEL.predict, REFERENCE, hashlib.sha256(bytes([at])).digest(), 300)
        told = [answers(one.predict, drawn.points) for one in (independent(100 + at), *POPULATION)]
        found.append(likeness(drawn, told[0], told[1:]))
    assert min(one.p for one in found) > 1 / len(found)
    for name in ("p_population", "p_key", "rank"):
        told_p = np.array([getattr(one, name) for one in found])
        assert stats.kstest(told_p, "uniform", alternative="greater").pvalue > 0.05, f"{name} is uniform or larger"


def test_a_twin_of_a_model_of_the_population_has_nothing_beyond_it():
    twin = answers(nudged(POPULATION[3], 1, 1e-9).predict, FEW.points)
    assert likeness(FEW, THEIRS[3], [*THEIRS[:3], twin, *THEIRS[4:]]).p_key == 1.0


@given(arrays(np.float64, (LEAST_POPULATION + 1, 60, 2), elements=st.floats(0.01, 1.0)))
@settings(max_examples=3, deadline=None)
def test_the_suspect_is_treated_as_any_other_at_the_second_look(told):
    """Whatever 21 models answer: with each as the suspect in turn, at most k ranks of either look are k / 21 or less."""
    mine = np.arange(60) % 2
    probes = Probes(np.zeros((60, 1)), np.stack([mine * 0, mine * 0 + 1], axis=1), mine)
    found = [likeness(probes, told[at], np.delete(told, at, axis=0)) for at in range(len(told))]
    ranks = np.sort([one.rank for one in found])
    assert (ranks >= np.minimum(1.0, (np.arange(len(ranks)) + 1) / len(ranks)) - 1e-9).all()
    assert all(0.0 < one.p <= 1.0 and one.p >= max(one.p_key, one.p_population) for one in found)


def test_answers_that_fit_no_probes_are_no_claim():
    for told, others, word in (
        (THEIRS[0], THEIRS[:19], "20 independent models or more, and here are 19"),
        (THEIRS[0][:-1], THEIRS, "1000 probes"),
    ):
        with pytest.raises(Invalid, match=word):
            likeness(FEW, told, others)


def test_what_makes_no_claim(probes):
    with pytest.raises(Invalid, match="20 independent models or more, and here are 19"):
        compared(probes, MODEL, POPULATION[:19])
    with pytest.raises(Invalid, match="3000 probes"):
        resemblance(probes, probes.told[:-1], told(probes, POPULATION))
    with pytest.raises(Invalid, match="one class"):
        draw_probes(lambda x: np.tile([1.0, 0.0], (len(x), 1)), REFERENCE, KEY)
    with pytest.raises(Invalid, match="rows of several"):
        draw_probes(lambda x: np.eye(2)[(np.arange(len(x)) == 0).astype(int)], REFERENCE[:3000].repeat(10, axis=0), KEY)
    for answered in (lambda x: x[:, 0], lambda x: np.full((len(x), 2), np.nan), lambda x: np.ones((len(x), 1))):
        with pytest.raises(Invalid, match="rows, classes"):
            draw_probes(answered, REFERENCE, KEY)
    for key, count in ((b"short", 100), (KEY, 10)):
        with pytest.raises(ValueError, match="32 bytes"):
            draw_probes(MODEL.predict, REFERENCE, key, count)
