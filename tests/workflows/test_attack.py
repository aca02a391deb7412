"""Stealing, told by what comes out of it: reports, curves, and why an attack ended."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.adapters.surrogates import MlpNumbers, MlpSurrogate, TreesNumbers, TreesSurrogate, harden
from modelkeep.errors import Invalid, ModelkeepError, OverBudget, Quarantined, ReviewRequired, Unauthenticated, Unavailable
from modelkeep.extraction.attacks import ATTACKS, STRATEGIES, Array, Knowledge, copy_maker, make_strategy
from modelkeep.workflows.attack import LEAST_ROWS, POINTS, AttackReport, Exam, Loot, log_spaced, run_attack, steal

RNG = np.random.default_rng(8)
ROWS = RNG.normal(size=(400, 5))
WEIGHTS = RNG.normal(size=(5, 3)) * 2


class Bare:
    """A softmax model of five columns, three classes, that refuses with ``error`` after ``limit`` rows."""

    def __init__(self, limit: int = 10**9, error: ModelkeepError | None = None) -> None:
        self.left, self.error = limit, error

    def predict(self, x: Array) -> Array:
        if self.left < len(x) and self.error is not None:
            raise self.error
        self.left -= len(x)
        logits = np.exp(x @ WEIGHTS)
        return logits / logits.sum(axis=1, keepdims=True)


def surrogate() -> MlpSurrogate:
    return MlpSurrogate((16,), updates=150)


def attack(
    target: Bare, *, name: str = "in-distribution", budget: int = 200, exam: Exam | None = None
) -> tuple[AttackReport, Loot]:
    plan = make_strategy(name, Knowledge.of(ROWS[:250]), seed=1, surrogate=surrogate)
    return run_attack(target, plan, name=name, surrogate=surrogate, budget=budget, batch=8, exam=exam)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "path-finding"])  # it is for trees
def test_every_attack_steals_a_bare_model(name: str) -> None:
    exam = Exam.by(Bare(), ROWS[250:])
    report, loot = attack(Bare(), name=name, exam=exam)
    assert report.strategy == name
    assert (report.stopped, report.queries, len(loot.x), len(loot.probs)) == ("budget", 200, 200, 200)
    assert report.measured_on == "held-out rows"
    assert report.fidelity > report.majority + 0.15
    assert [point.queries for point in report.curve] == list(log_spaced(200, POINTS))
    assert report.fidelity == report.curve[-1].fidelity


@pytest.mark.parametrize("error", [ReviewRequired("held"), OverBudget("slow down", 1.0), Quarantined("locked")])
def test_a_refusal_ends_the_attack_and_is_named(error: ModelkeepError) -> None:
    report, loot = attack(Bare(64, error), exam=Exam.by(Bare(), ROWS[250:]))
    assert (report.stopped, report.reason, report.queries) == (error.code, str(error), 64)
    assert len(loot.probs) == 64


def test_a_refusal_of_the_first_request_is_an_error_not_a_defence() -> None:
    with pytest.raises(Unauthenticated):
        attack(Bare(0, Unauthenticated("unknown key")))


def test_a_broken_gateway_is_an_error_not_a_defence() -> None:
    with pytest.raises(Unavailable):
        attack(Bare(64, Unavailable("no answer")))


def test_an_attack_with_nothing_more_to_ask_is_exhausted() -> None:
    report, loot = attack(Bare(), budget=10_000)
    assert (report.stopped, report.queries) == ("exhausted", 250)
    assert {tuple(row) for row in loot.x} == {tuple(row) for row in ROWS[:250]}


def test_without_the_victim_agreement_is_measured_on_answers_kept_aside() -> None:
    report, _ = attack(Bare())
    assert report.measured_on == "held-out answers"
    assert [point.queries for point in report.curve][-1] == 160
    assert report.fidelity > 0.6


def test_a_thief_stopped_at_once_has_no_copy() -> None:
    exam = Exam.by(Bare(), ROWS[250:])
    plan = make_strategy("uniform", Knowledge.of(ROWS), seed=1, surrogate=surrogate)
    report, _ = run_attack(Bare(4, ReviewRequired("held")), plan, name="uniform", surrogate=surrogate, budget=50, exam=exam)
    assert report.queries == LEAST_ROWS - 1
    assert report.curve == ()
    assert report.fidelity == report.majority == exam.majority


@pytest.mark.parametrize("budget", [1, 7, 8, 9, 63])
def test_the_budget_is_spent_to_the_row_and_not_beyond(budget: int) -> None:
    spent: list[int] = []
    plan = make_strategy("uniform", Knowledge.of(ROWS), seed=1, surrogate=surrogate)
    loot = steal(Bare(), plan, budget=budget, batch=8, watch=spent.append)
    assert len(loot.x) == budget == spent[-1]


@pytest.mark.parametrize(("budget", "batch"), [(0, 1), (1, 0), (-3, 4)])
def test_a_budget_or_batch_below_one_is_refused(budget: int, batch: int) -> None:
    plan = make_strategy("uniform", Knowledge.of(ROWS), seed=1, surrogate=surrogate)
    with pytest.raises(Invalid, match="at least one row"):
        run_attack(Bare(), plan, name="uniform", surrogate=surrogate, budget=budget, batch=batch)


def test_an_exam_needs_rows() -> None:
    with pytest.raises(Invalid, match="no rows"):
        Exam.by(Bare(), ROWS[:0])


@given(st.integers(0, 5_000), st.integers(2, 12))
def test_log_spaced_sizes_rise_from_the_least_to_the_most(most: int, points: int) -> None:
    sizes = log_spaced(most, points)
    if most < LEAST_ROWS:
        assert sizes == ()
    else:
        assert sizes[0] == LEAST_ROWS
        assert sizes[-1] == most
        assert list(sizes) == sorted(set(sizes))
        assert len(sizes) <= points


@pytest.mark.parametrize("make", [surrogate, lambda: TreesSurrogate(rounds=40)])
def test_a_surrogate_learns_soft_answers(make: type[MlpSurrogate]) -> None:
    copy = make()
    copy.fit(ROWS[:300], Bare().predict(ROWS[:300]))
    found, truth = copy.predict(ROWS[300:]), Bare().predict(ROWS[300:])
    np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=1e-6)
    assert (found.argmax(axis=1) == truth.argmax(axis=1)).mean() > 0.75


@pytest.mark.parametrize("make", [surrogate, lambda: TreesSurrogate(rounds=5)])
def test_a_surrogate_of_one_class_answers_that_class(make: type[MlpSurrogate]) -> None:
    copy = make()
    copy.fit(ROWS[:20], np.tile([0.0, 1.0, 0.0], (20, 1)))
    assert (copy.predict(ROWS[:50]).argmax(axis=1) == 1).all()
    assert copy.predict(ROWS[:50]).shape == (50, 3)


@pytest.mark.parametrize("make", [MlpSurrogate, TreesSurrogate])
def test_a_surrogate_refuses_to_learn_from_nothing_and_to_guess(make: type[MlpSurrogate]) -> None:
    with pytest.raises(Invalid, match="cannot learn"):
        make().fit(ROWS[:0], ROWS[:0])
    with pytest.raises(Invalid, match="fitted"):
        make().predict(ROWS)


def test_soft_answers_become_weighted_hard_ones() -> None:
    rows, classes, weights = harden(np.array([[0.7, 0.3, 0.0], [0.0, 0.0005, 0.9995]]))
    assert rows.tolist() == [0, 0, 1]
    assert classes.tolist() == [0, 1, 2]
    assert weights.tolist() == [0.7, 0.3, 0.9995]


class Regression:
    """Two numbers of five columns, one of them curved."""

    def predict(self, x: Array) -> Array:
        return np.stack([1e4 * (x @ WEIGHTS[:, 0]) + 5e4, np.tanh(x @ WEIGHTS[:, 1]) - 3.0], axis=1)


# path-finding is for trees; a hundred and fifty rows teach a generator of five columns little
@pytest.mark.parametrize(
    "name", [name for name, one in ATTACKS.items() if one.numbers and name not in ("path-finding", "data-free")]
)
def test_every_attack_on_numbers_steals_a_regression(name: str) -> None:
    known, make = Knowledge.of(ROWS[:250], numbers=True), lambda: MlpNumbers((32,), updates=400)
    exam = Exam.by(Regression(), ROWS[250:], numbers=True)
    plan = make_strategy(name, known, seed=1, surrogate=make)
    report, loot = run_attack(
        Regression(), plan, name=name, surrogate=copy_maker(name, known, make), budget=200, batch=8, exam=exam
    )
    assert (report.measure, report.majority, loot.probs.shape) == ("R²", 0.0, (200, 2))
    assert 0.6 < report.fidelity <= 1.0


def test_without_the_victim_r_squared_is_measured_on_answers_kept_aside() -> None:
    plan = make_strategy("in-distribution", Knowledge.of(ROWS, numbers=True), seed=1, surrogate=TreesNumbers)
    report, _ = run_attack(
        Regression(), plan, name="in-distribution", surrogate=TreesNumbers, budget=300, batch=8, exam=Exam(numbers=True)
    )
    assert (report.measured_on, report.measure) == ("held-out answers", "R²")
    assert 0.5 < report.fidelity < 1.0


@pytest.mark.parametrize("make", [MlpNumbers, TreesNumbers])
@pytest.mark.parametrize("outputs", [1, 2])
def test_a_copy_learns_numbers_of_any_size_and_refuses_to_learn_from_nothing(make: type[MlpNumbers], outputs: int) -> None:
    copy, truth = make(), Regression().predict(ROWS)[:, :outputs]
    copy.fit(ROWS[:300], truth[:300])
    found = Exam(ROWS[300:], truth[300:], numbers=True).fidelity(copy)
    assert copy.predict(ROWS[300:]).shape == (100, outputs)
    assert found > 0.7
    with pytest.raises(Invalid, match="cannot learn"):
        make().fit(ROWS[:0], truth[:0])
    with pytest.raises(Invalid, match="fitted"):
        make().predict(ROWS)
