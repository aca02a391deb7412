"""Attacks with known answers: linear models solved exactly, weights read off explanations."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks import ATTACKS, Array, Knowledge, Lesson, Planned, copy_maker, make_strategy, parts
from modelkeep.extraction.attacks.equations import Solved, SolvedNumbers, SolvedOr, equations
from modelkeep.extraction.attacks.explanations import Attributed
from modelkeep.serving.shapley import shapley

RNG = np.random.default_rng(11)


def rows(columns: int, count: int = 80) -> Array:
    """Natural rows on scales of their own; the second column is whole, and the last but one has two values."""
    x = RNG.normal(size=(count, columns)) * np.geomspace(0.01, 100, columns) + np.linspace(-5, 50, columns)
    x[:, 1] = RNG.integers(0, 30, size=count)
    x[:, -2] = RNG.random(count) < 0.2
    return x


class Softmax:
    """A softmax model (two classes: a logistic one) whose log-odds are of ordinary size on ``natural`` rows."""

    def __init__(self, natural: Array, classes: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.weights = rng.normal(size=(natural.shape[1], classes)) / natural.std(axis=0)[:, None]
        self.bias = -natural.mean(axis=0) @ self.weights + rng.normal(size=classes)

    def predict(self, x: Array) -> Array:
        raised = np.exp(x @ self.weights + self.bias)
        return raised / raised.sum(axis=1, keepdims=True)


def answered(name: str, known: Knowledge, victim: Softmax, count: int) -> Lesson:
    plan = make_strategy(name, known, seed=2, surrogate=Never)
    taught = []
    while (left := count - sum(len(one.x) for one in taught)) > 0:
        x = plan.propose(left)
        taught.append(plan.feed(x, victim.predict(x)))
    return Lesson(np.concatenate([one.x for one in taught]), np.concatenate([one.probs for one in taught]), count)


class Never:
    """A copy that must not be needed."""

    def fit(self, x: Array, probs: Array) -> None:
        raise AssertionError("a solved model trains nothing")

    def predict(self, x: Array) -> Array:
        raise AssertionError("a solved model trains nothing")


@pytest.mark.parametrize(("classes", "columns"), [(2, 12), (2, 3), (5, 12), (3, 40)])
def test_a_linear_model_is_solved_exactly_from_one_answer_more_than_it_has_columns(classes: int, columns: int) -> None:
    natural = rows(columns)
    victim = Softmax(natural, classes, seed=classes)
    got = answered("equation-solving", Knowledge.of(natural), victim, columns + 1)
    copy = Solved()
    copy.fit(got.x, got.probs)
    scale = natural.std(axis=0)[:, None]
    for one in range(classes):
        wanted = victim.weights - victim.weights[:, [one]]
        np.testing.assert_allclose((copy.weights - copy.weights[:, [one]]) * scale, wanted * scale, atol=1e-6)
        np.testing.assert_allclose(
            copy.bias - copy.bias[one], victim.bias - victim.bias[one], atol=1e-6 * np.abs(victim.bias).max()
        )
    np.testing.assert_allclose(copy.predict(natural), victim.predict(natural), atol=1e-6)


def test_constant_columns_cost_no_question() -> None:
    natural = rows(6)
    victim = Softmax(natural, 2, seed=3)
    natural[:, [0, 3]] = natural[0, [0, 3]]
    got = answered("equation-solving", Knowledge.of(natural), victim, 5)
    copy = Solved()
    copy.fit(got.x, got.probs)
    np.testing.assert_allclose(copy.predict(natural), victim.predict(natural), atol=1e-6)


def test_further_answers_average_what_rounding_does() -> None:
    natural = rows(10)
    victim = Softmax(natural, 2, seed=4)
    errors = []
    for count in (11, 300):
        got = answered("equation-solving", Knowledge.of(natural), victim, count)
        copy = Solved()
        copy.fit(got.x, np.round(got.probs, 3))
        errors.append(np.abs(copy.predict(natural) - victim.predict(natural)).mean())
    assert errors[1] < 0.2 * errors[0]


def bent(x: Array) -> Array:
    """A victim whose log-odds bend: which side of a ring."""
    odds = 4.0 * np.sign((x**2).sum(axis=1) - 1.2 * x.shape[1])
    return np.column_stack([1 / (1 + np.exp(odds)), 1 / (1 + np.exp(-odds))])


def test_a_model_that_is_not_linear_is_asked_all_over_the_box() -> None:
    natural = RNG.normal(size=(80, 4))
    for victim, inside in ((bent, True), (Softmax(natural, 2, seed=1).predict, False)):
        plan = Planned(equations(Knowledge.of(natural), np.random.default_rng(0), spare=40))
        for _ in range(2):
            x = plan.propose(100)
            plan.feed(x, victim(x))
        assert (len({*plan.propose(64)[:, 0]}) > 2) == inside


def test_the_copy_of_a_model_that_is_not_linear_is_trained() -> None:
    class Trained:
        def fit(self, x: Array, probs: Array) -> None:
            self.rows = len(x)

        def predict(self, x: Array) -> Array:
            return bent(x)

    natural = RNG.normal(size=(80, 4))
    copy = SolvedOr(Trained)
    copy.fit(natural, bent(natural))
    np.testing.assert_array_equal(copy.predict(natural), bent(natural))
    linear = Softmax(natural, 2, seed=1)
    copy = copy_maker("equation-solving", Knowledge.of(natural), Never)()
    copy.fit(natural, linear.predict(natural))
    np.testing.assert_allclose(copy.predict(natural), linear.predict(natural), atol=1e-9)


def test_one_hot_answers_solve_to_something_that_agrees() -> None:
    natural = RNG.normal(size=(400, 6))
    victim = Softmax(natural, 3, seed=5)
    top = victim.predict(natural).argmax(axis=1)
    copy = Solved()
    copy.fit(natural[:200], np.eye(3)[top[:200]])
    assert (copy.predict(natural[200:]).argmax(axis=1) == top[200:]).mean() > 0.85


@pytest.mark.parametrize("count", [0, 3])
def test_a_system_needs_rows_with_answers(count: int) -> None:
    with pytest.raises(Invalid, match="no system"):
        Solved().fit(np.zeros((count, 2)), np.zeros((0, 2)))
    with pytest.raises(Invalid, match="solved before"):
        Solved().predict(np.zeros((1, 2)))


# -- explanations --


def explained(victim: Softmax, x: Array, background: Array) -> Array:
    """Wide answers, by the Shapley values that a gateway computes, told to three decimals."""
    wide = []
    for row in x:
        found = [
            shapley(lambda at, k=k: victim.predict(at)[:, k], row, background, pairs=64, max_rows=1 << 16, seed=1)
            for k in range(victim.weights.shape[1])
        ]
        wide.append(np.concatenate([[f.value for f in found], [f.base for f in found], *[f.phi for f in found]]))
    return np.round(np.array(wide), 3)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(2, 5), st.integers(1, 6))
def test_wide_answers_come_apart(count: int, classes: int, columns: int) -> None:
    probs, base = np.random.default_rng(count).random((2, count, classes))
    moved = np.random.default_rng(columns).random((count, classes, columns))
    found = parts(np.concatenate([probs, base, moved.reshape(count, -1)], axis=1), columns)
    for got, wanted in zip(found, (probs, base, moved), strict=True):
        np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize(("classes", "count"), [(2, 4), (3, 12)])
def test_a_few_explanations_of_made_up_rows_make_a_copy_of_a_linear_model(classes: int, count: int) -> None:
    natural = np.random.default_rng(classes).normal(size=(300, 10)) * np.geomspace(0.1, 10, 10)
    victim = Softmax(natural, classes, seed=6)
    known = Knowledge.of(natural[:40])
    plan, x = make_strategy("explanations", known, seed=1, surrogate=Never), natural[:0]
    while len(x) < count:
        asked = plan.propose(4)
        plan.feed(asked, np.zeros((4, 2)))
        x = np.concatenate([x, asked])
    copy = Attributed(known, Never)
    copy.fit(x, explained(victim, x, natural[40:72]))
    top = victim.predict(natural).argmax(axis=1)
    assert (copy.predict(natural).argmax(axis=1) == top).mean() > 0.85


def test_explanations_of_another_model_train_a_copy_on_rows_put_back_to_the_centre() -> None:
    learnt = []

    class Trained:
        def fit(self, x: Array, probs: Array) -> None:
            learnt.append((x, probs))

        def predict(self, x: Array) -> Array:
            return bent(x)

    natural = RNG.normal(size=(40, 3))
    known = Knowledge.of(natural)
    moved = np.zeros((40, 2, 3))
    moved[:, 1, 2] = 0.01
    copy = Attributed(known, Trained)
    copy.fit(natural, np.concatenate([bent(natural), np.full((40, 2), 0.5), moved.reshape(40, -1)], axis=1))
    ((x, probs),) = learnt
    assert x.shape == (160, 3)
    np.testing.assert_array_equal(x[:40], natural)
    centre = natural.mean(axis=0)
    assert ((x[40:] == centre).sum(axis=1) == 1).all(), "each with one column at the centre"
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)
    assert (probs[40 + 2 :: 3, 1] < probs[:40, 1]).all(), "without the column that raised it, the second class is less likely"
    np.testing.assert_array_equal(copy.predict(natural), bent(natural))
    assert ATTACKS["explanations"].explains


class Line:
    """A linear regression of several numbers, curved by ``bend``."""

    def __init__(self, natural: Array, outputs: int, bend: float = 0.0) -> None:
        self.weights = np.random.default_rng(outputs).normal(size=(natural.shape[1], outputs)) / natural.std(axis=0)[:, None]
        self.centre, self.bend = natural.mean(axis=0), bend

    def predict(self, x: Array) -> Array:
        straight = (x - self.centre) @ self.weights
        return 40.0 + straight + self.bend * np.abs(straight)


@pytest.mark.parametrize(("outputs", "columns"), [(1, 12), (1, 3), (3, 40)])
def test_a_linear_regression_is_solved_exactly_from_one_answer_more_than_it_has_columns(outputs: int, columns: int) -> None:
    natural = rows(columns)
    victim, known = Line(natural, outputs), Knowledge.of(natural, numbers=True)
    got = answered("equation-solving", known, victim, columns + 1)
    copy = copy_maker("equation-solving", known, Never)()
    copy.fit(got.x, got.probs)
    np.testing.assert_allclose(copy.predict(natural), victim.predict(natural), atol=1e-8)


def test_who_is_no_linear_regression_is_asked_uniform_rows_and_learnt_by_another_copy() -> None:
    natural = rows(6)
    victim, known = Line(natural, 1, bend=3.0), Knowledge.of(natural, numbers=True)
    got = answered("equation-solving", known, victim, 100)
    assert len(np.unique(got.x[20:, 0])) > 60, "rows from all of the range, not two values a column"

    class Knows(Line):
        def fit(self, x: Array, answers: Array) -> None:
            """It does already."""

    copy = copy_maker("equation-solving", known, lambda: Knows(natural, 1, bend=3.0))()
    copy.fit(got.x, got.probs)
    np.testing.assert_allclose(copy.predict(natural), victim.predict(natural))


def test_a_system_of_numbers_needs_rows_and_a_solution() -> None:
    with pytest.raises(Invalid, match="no system"):
        SolvedNumbers().fit(np.empty((0, 3)), np.empty((0, 1)))
    with pytest.raises(Invalid, match="solved before"):
        SolvedNumbers().predict(rows(4))
