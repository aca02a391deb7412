"""The query strategies: what each asks, that it asks valid rows, and that requests of any size ask the same."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks import ATTACKS, STRATEGIES, Array, Knowledge, Planned, make_strategy
from modelkeep.extraction.attacks.jacobian import gradient
from modelkeep.extraction.attacks.knockoff import knockoff
from modelkeep.extraction.attacks.line_search import line_search

RNG = np.random.default_rng(5)
SEEDS = np.column_stack([RNG.normal(size=60), RNG.integers(0, 9, size=60), np.full(60, 3.0), RNG.uniform(-1, 1, size=60)])
WEIGHTS = np.array([1.0, 0.3, 0.0, -2.0])


def victim(x: Array) -> Array:
    """A logistic model of four columns, two classes."""
    p = 1 / (1 + np.exp(-(x @ WEIGHTS - 1.0)))
    return np.column_stack([1 - p, p])


class Linear:
    """A surrogate that already knows the victim, to look at what an adaptive attack does with it."""

    def fit(self, x: Array, probs: Array) -> None:
        self.rows = len(x)

    def predict(self, x: Array) -> Array:
        return victim(x)


def ask(name: str, total: int, batches: list[int], seed: int = 3) -> Array:
    plan = make_strategy(name, Knowledge.of(SEEDS), seed=seed, surrogate=Linear)
    asked: list[Array] = []
    turn = 0
    while sum(map(len, asked)) < total:
        x = plan.propose(min(batches[turn % len(batches)], total - sum(map(len, asked))))
        if not len(x):
            break
        plan.feed(x, victim(x))
        asked.append(x)
        turn += 1
    return np.concatenate(asked)


@pytest.mark.parametrize("name", STRATEGIES)
def test_questions_are_valid_rows(name: str) -> None:
    x = ask(name, 150, [7])
    known = Knowledge.of(SEEDS)
    assert x.shape[1] == SEEDS.shape[1]
    assert np.isfinite(x).all()
    assert (x >= known.lower).all()
    assert (x <= known.upper).all()
    assert (x[:, 1] == np.rint(x[:, 1])).all(), "a whole-number column stays whole"
    assert (x[:, 2] == 3.0).all(), "a constant column stays constant"


@pytest.mark.parametrize("name", STRATEGIES)
@settings(max_examples=8, deadline=None)
@given(batches=st.lists(st.integers(1, 40), min_size=1, max_size=5))
def test_the_size_of_requests_does_not_change_what_is_asked(name: str, batches: list[int]) -> None:
    np.testing.assert_array_equal(ask(name, 120, batches), ask(name, 120, [120]))


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_seed_gives_the_same_questions_and_another_seed_others(name: str) -> None:
    np.testing.assert_array_equal(ask(name, 60, [10]), ask(name, 60, [10]))
    assert not np.array_equal(ask(name, 60, [10]), ask(name, 60, [10], seed=4))


def test_in_distribution_asks_each_row_once_and_ends() -> None:
    x = ask("in-distribution", 1_000, [16])
    assert sorted(map(tuple, x)) == sorted(map(tuple, SEEDS))


def test_line_search_closes_in_on_the_boundary() -> None:
    plan = Planned(line_search(Knowledge.of(SEEDS), np.random.default_rng(1), lines=4, steps=12))
    margins = []
    for _ in range(60):
        x = plan.propose(4)
        plan.feed(x, victim(x))
        margins.append(np.abs(np.diff(victim(x), axis=1)).mean())
    assert np.median(margins[10:]) < 0.5 * np.median(margins[:3])


def test_line_search_goes_on_when_it_has_seen_one_class_only() -> None:
    plan = Planned(line_search(Knowledge.of(SEEDS), np.random.default_rng(1)))
    for _ in range(20):
        x = plan.propose(8)
        plan.feed(x, np.tile([1.0, 0.0], (len(x), 1)))
    assert len(plan.propose(8)) == 8


def test_jacobian_begins_with_natural_rows_and_then_steps_along_the_gradient() -> None:
    x = ask("jacobian", 120, [60])
    natural = {tuple(row) for row in SEEDS}
    assert all(tuple(row) in natural for row in x[:60])
    assert not any(tuple(row) in natural for row in x[60:])


def test_the_gradient_has_the_sign_of_the_weights_of_the_top_class() -> None:
    rows = SEEDS[:20]
    top = victim(rows).argmax(axis=1)
    expected = np.sign(WEIGHTS) * np.where(top == 1, 1, -1)[:, None]
    found = gradient(Linear(), rows, np.array([0.05, 0.05, 0.0, 0.05]))
    np.testing.assert_array_equal(np.sign(found), expected)


def test_knockoff_keeps_columns_and_breaks_rows() -> None:
    x = ask("knockoff", 200, [50])
    for column in range(SEEDS.shape[1]):
        assert set(x[:, column]) <= set(SEEDS[:, column])
    natural = {tuple(row) for row in SEEDS}
    assert sum(tuple(row) in natural for row in x) < 5


def test_knockoff_asks_each_foreign_row_once() -> None:
    foreign = np.random.default_rng(2).normal(size=(90, 4))
    plan = Planned(knockoff(Knowledge.of(SEEDS, foreign), np.random.default_rng(1), step=40))
    count = 0
    while len(x := plan.propose(64)):
        plan.feed(x, victim(x))
        count += len(x)
    assert count == 90


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.zeros(4), np.array([[1.0, np.nan], [1.0, 2.0]]), np.zeros((5, 0))])
def test_rows_that_nothing_can_start_from_are_refused(rows: Array) -> None:
    with pytest.raises(Invalid, match="two rows of finite numbers"):
        Knowledge.of(rows)


def test_an_unknown_attack_is_refused_with_the_ones_there_are() -> None:
    with pytest.raises(Invalid, match="line-search"):
        make_strategy("magic", Knowledge.of(SEEDS), seed=0, surrogate=Linear)


def test_answers_that_do_not_fit_the_questions_are_refused() -> None:
    plan = make_strategy("uniform", Knowledge.of(SEEDS), seed=0, surrogate=Linear)
    x = plan.propose(4)
    with pytest.raises(Invalid, match="do not fit"):
        plan.feed(x, victim(x)[:2])


NUMBERS = [name for name, one in ATTACKS.items() if one.numbers]


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("name", NUMBERS)
def test_attacks_on_numbers_ask_valid_rows_whatever_the_unit(name: str, scale: float) -> None:
    def numbers(x: Array) -> Array:
        return scale * (x @ WEIGHTS + np.abs(x[:, 0]))[:, None]

    class Knows:
        def fit(self, x: Array, answers: Array) -> None:
            assert answers.shape == (len(x), 1)

        def predict(self, x: Array) -> Array:
            return numbers(x)

    known = Knowledge.of(SEEDS, numbers=True)
    plan, asked = make_strategy(name, known, seed=3, surrogate=Knows), list[Array]()
    while sum(map(len, asked)) < 150 and len(x := plan.propose(9)):
        asked.append(x)
        plan.feed(x, numbers(x))
    x = np.concatenate(asked)
    assert len(x) >= len(SEEDS)
    assert np.isfinite(x).all() and (x >= known.lower).all() and (x <= known.upper).all()
    assert (x[:, 1] == np.rint(x[:, 1])).all()


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in NUMBERS])
def test_attacks_that_need_classes_say_so(name: str) -> None:
    with pytest.raises(Invalid, match=f"{name} needs classes"):
        make_strategy(name, Knowledge.of(SEEDS, numbers=True), seed=1, surrogate=Linear)
