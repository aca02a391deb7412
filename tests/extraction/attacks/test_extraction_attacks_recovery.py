"""Recovery against the marks and the rounding that a gateway really applies."""

from functools import cache

import numpy as np
import pytest

from modelkeep.extraction.attacks import Array, Recovering
from modelkeep.extraction.attacks.recovery import grid, recover, simulate
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.ladder import DEFAULT, Rung, respond
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.profile import Profile

RNG = np.random.default_rng(41)
X = RNG.normal(size=(700, 4))


def softmax(logits: Array) -> Array:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


class Victim:
    """A softmax model; as a copy, one that learnt it fairly well."""

    def __init__(self, classes: int, blur: float = 0.0) -> None:
        rng = np.random.default_rng(classes)
        self.weights = 1.5 * rng.normal(size=(4, classes))
        self.weights = self.weights + blur * rng.normal(size=self.weights.shape)
        self.learnt = np.empty(0)

    def fit(self, x: Array, probs: Array) -> None:
        self.learnt = probs

    def predict(self, x: Array) -> Array:
        return softmax(x @ self.weights)


@cache
def profile_of(classes: int) -> Profile:
    return fit_profile(X[:400], Victim(classes).predict, seed=0)


def defended(classes: int, rung: Rung) -> tuple[Array, Array]:
    """Clean answers and what leaves the gateway instead."""
    victim = Victim(classes)
    clean = victim.predict(X)
    return clean, respond(DEFAULT.steps[rung], Marker(bytes(32), profile_of(classes), 0.05, 4).apply(X, clean))


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize(("rung", "most"), [(Rung.MARK, 0.95), (Rung.COARSE, 0.95), (Rung.QUANTISED, 0.7)])
def test_recovered_answers_are_nearer_to_the_clean_ones(classes: int, rung: Rung, most: float) -> None:
    clean, told = defended(classes, rung)
    copy = Recovering(lambda: Victim(classes, blur=0.2))
    found = copy.recover(X, told)
    assert np.abs(found - clean).sum(axis=1).mean() < most * np.abs(told - clean).sum(axis=1).mean()
    np.testing.assert_array_equal(found.argmax(axis=1), told.argmax(axis=1))


def test_labels_become_what_the_shadow_thinks_of_them() -> None:
    clean = Victim(3).predict(X)
    told = np.eye(3)[clean.argmax(axis=1)]
    found = Recovering(lambda: Victim(3, blur=0.2)).recover(X, told)
    assert np.abs(found - clean).sum(axis=1).mean() < 0.8 * np.abs(told - clean).sum(axis=1).mean()
    np.testing.assert_array_equal(found.argmax(axis=1), told.argmax(axis=1))


def test_the_copy_learns_recovered_answers() -> None:
    made: list[Victim] = []

    def make() -> Victim:
        made.append(Victim(3, blur=0.2))
        return made[-1]

    _, told = defended(3, Rung.QUANTISED)
    copy = Recovering(make)
    copy.fit(X, told)
    shadow, learner = made[-1], made[-2]
    np.testing.assert_array_equal(shadow.learnt, told)
    np.testing.assert_array_equal(learner.learnt, copy.recover(X, told))
    np.testing.assert_array_equal(copy.predict(X), learner.predict(X))


@pytest.mark.parametrize("unit", [1.0, 0.25, 0.1, 0.01, 0.001, 0.0001, 0.0])
def test_the_grid_is_seen_though_some_answers_fit_a_coarser_one(unit: float) -> None:
    clean = Victim(2).predict(X)
    told = np.rint(clean / unit) * unit if unit else clean
    told[::9] = [0.0, 1.0]
    np.testing.assert_array_equal(grid(told), np.full(len(told), unit))


def test_a_change_of_the_grid_is_followed() -> None:
    clean = Victim(2).predict(X)
    told = np.concatenate([np.round(clean[:350], 4), np.rint(clean[350:] * 4) / 4])
    found = grid(told)
    assert (found[:350] == 0.0001).all()
    assert (found[360:] == 0.25).all()


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_simulated_marks_move_answers_as_real_ones_do(classes: int) -> None:
    clean = Victim(classes).predict(X)
    real = Marker(bytes(32), profile_of(classes), 0.05, 4).apply(X, clean) - clean
    ours = simulate(clean, np.random.default_rng(1), unit=0.0, epsilon=0.05) - clean
    top = clean.argmax(axis=1)
    at = np.arange(len(X))
    np.testing.assert_allclose(ours.sum(axis=1), 0.0, atol=1e-12)
    assert np.abs(np.abs(ours).sum(axis=1).mean() - np.abs(real).sum(axis=1).mean()) < 0.1 * np.abs(real).sum(axis=1).mean()
    assert abs(ours[at, top].mean() - real[at, top].mean()) < 0.004


def test_answers_like_none_that_were_simulated_are_left_alone() -> None:
    probs = np.array([[0.9, 0.1, 0.0], [0.1, 0.2, 0.7]])
    clean = np.tile([0.84, 0.12, 0.04], (20, 1))
    found = recover(probs, probs, clean, epsilon=0.05, near=4, seed=0)
    np.testing.assert_allclose(found[1], probs[1], atol=1e-8)
    assert not np.allclose(found[0], probs[0])
