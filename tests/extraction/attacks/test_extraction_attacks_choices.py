"""What adaptive attacks choose to ask, with copies and victims made so that the right choice is known."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks import Array, Knowledge, Planned, make_strategy
from modelkeep.extraction.attacks.active_thief import dfal, entropy, k_centre
from modelkeep.extraction.attacks.adaptive import adaptive
from modelkeep.extraction.attacks.bandit import bandit, clusters
from modelkeep.extraction.attacks.data_free import Generator
from modelkeep.extraction.attacks.jb_tr import towards
from modelkeep.extraction.attacks.t_rnd import t_rnd

RNG = np.random.default_rng(21)
SEEDS = RNG.normal(size=(120, 3))
KNOWN = Knowledge.of(SEEDS)


def three(x: Array) -> Array:
    """Softmax over the three columns."""
    raised = np.exp(3.0 * x)
    return raised / raised.sum(axis=1, keepdims=True)


class Copy:
    """A copy that is the victim."""

    def fit(self, x: Array, probs: Array) -> None:
        pass

    def predict(self, x: Array) -> Array:
        return three(x)


def run(plan: Planned, rounds: int, victim=three) -> list[Array]:
    asked = []
    for _ in range(rounds):
        x = plan.propose(10_000)
        if not len(x):
            break
        plan.feed(x, victim(x))
        asked.append(x)
    return asked


def margin(x: Array) -> Array:
    two = np.sort(three(x), axis=1)
    return two[:, -1] - two[:, -2]


def test_adaptive_retraining_asks_on_the_boundary_of_the_copy() -> None:
    first, *later = run(Planned(adaptive(KNOWN, np.random.default_rng(1), Copy)), 4)
    assert np.median(margin(first)) > 0.2
    for x in later:
        assert np.median(margin(x)) < 0.01


def test_adaptive_retraining_goes_on_while_the_copy_knows_one_class() -> None:
    class Constant(Copy):
        def predict(self, x: Array) -> Array:
            return np.tile([1.0, 0.0, 0.0], (len(x), 1))

    assert [len(x) for x in run(Planned(adaptive(KNOWN, np.random.default_rng(1), Constant, start=30, step=20)), 3)] == [
        30,
        20,
        20,
    ]


def test_jb_tr_moves_rows_towards_their_target() -> None:
    target = (three(SEEDS).argmax(axis=1) + 1) % 3
    moved = towards(Copy(), SEEDS, target, np.full(3, 0.3), 0.01 * KNOWN.width, 3)
    at = np.arange(len(SEEDS))
    assert (three(moved)[at, target] > three(SEEDS)[at, target]).all()
    np.testing.assert_allclose(np.abs(moved - SEEDS).max(axis=0), 0.3)


def test_jb_tr_aims_at_every_other_class() -> None:
    natural, asked = run(plan_of("jb-tr"), 2)
    assert len(natural) == 100
    before = {tuple(row) for row in SEEDS}
    assert not any(tuple(row) in before for row in asked)


def plan_of(name: str) -> Planned:
    found = make_strategy(name, KNOWN, seed=3, surrogate=Copy)
    assert isinstance(found, Planned)
    return found


def test_t_rnd_takes_one_step_in_every_column_and_walks_on() -> None:
    wide = replace(KNOWN, lower=KNOWN.lower - 100, upper=KNOWN.upper + 100)
    natural, first, second = run(Planned(t_rnd(wide, np.random.default_rng(1), start=40, step=0.01)), 3)
    stride = wide.stride(0.01)

    def steps(x: Array, base: Array) -> Array:
        return np.min(np.abs(np.abs(x[:, None, :] - base) / stride - 1.0).max(axis=2), axis=1)

    assert (steps(first, natural) < 1e-6).all()
    assert (steps(second, np.concatenate([natural, first])) < 1e-6).all()
    assert (steps(second, natural) > 1e-6).any(), "some are two steps away"


def test_the_bandit_comes_to_prefer_what_is_rewarded() -> None:
    """Four far clusters: three that the victim is certain and unanimous about, one about which it is certain and diverse."""
    centres = np.array([[9.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 9.0, 9.0]])
    foreign = np.concatenate([centre + 0.1 * RNG.normal(size=(400, 3)) for centre in centres])
    known = Knowledge.of(foreign[::7], foreign)

    def victim(x: Array) -> Array:
        rough = np.where(x.min(axis=1) > 5, np.floor(x[:, 0] * 1e3) % 3, x.argmax(axis=1)).astype(int)
        return np.eye(3)[rough]

    asked = run(Planned(bandit(known, np.random.default_rng(0), Copy, arms=4, rate=30.0, step=20)), 30, victim)
    late = np.concatenate(asked[-12:])
    assert (late.min(axis=1) > 5).mean() > 0.35


def test_the_bandit_asks_each_row_of_the_pool_once() -> None:
    foreign = RNG.normal(size=(150, 3))
    asked = run(Planned(bandit(Knowledge.of(foreign, foreign), np.random.default_rng(0), Copy, arms=5)), 100)
    assert sorted(map(tuple, np.concatenate(asked))) == sorted(map(tuple, foreign))


def test_clusters_find_groups_that_lie_apart() -> None:
    x = np.concatenate([RNG.normal(size=(30, 2)) + centre for centre in ([0, 0], [50, 0], [0, 50])])
    found = clusters(x, 3, np.random.default_rng(4))
    assert sorted(Counter(found).values()) == [30, 30, 30]


def test_entropy_chooses_the_rows_of_most_entropy() -> None:
    found = entropy(KNOWN, Copy(), SEEDS, SEEDS[:0], 10)
    doubt = -(three(SEEDS) * np.log(three(SEEDS))).sum(axis=1)
    assert set(found) == set(np.argsort(doubt)[-10:])


def test_k_centre_is_the_greedy_choice() -> None:
    asked, left = SEEDS[:5], SEEDS[5:60]
    found = k_centre(KNOWN, Copy(), left, asked, 12)
    chosen = list(three(asked))
    for one in found:  # the slow definition
        gaps = [min(np.linalg.norm(row - other) for other in chosen) for row in three(left)]
        assert gaps[one] == pytest.approx(max(gaps))
        chosen.append(three(left)[one])
    assert len(set(found)) == 12


def test_dfal_chooses_rows_near_the_boundary_not_rows_of_small_margin() -> None:
    """Two classes split at zero in the first column, steep on the right half of the second column and flat on the left."""

    class Kinked(Copy):
        def predict(self, x: Array) -> Array:
            p = 1 / (1 + np.exp(-np.where(x[:, 1] > 0, 5.0, 0.1) * x[:, 0]))
            return np.column_stack([1 - p, p])

    right = np.column_stack([np.full(20, 0.3), np.full(20, 1.0), np.zeros(20)])  # near, margin large
    left = np.column_stack([np.full(20, 1.5), np.full(20, -1.0), np.zeros(20)])  # far, margin small
    pool = np.concatenate([left, right])
    assert set(dfal(KNOWN, Kinked(), pool, pool[:0], 10)) <= set(range(20, 40))
    assert set(entropy(KNOWN, Kinked(), pool, pool[:0], 10)) <= set(range(20))


@pytest.mark.parametrize("name", ["activethief-entropy", "activethief-k-centre", "activethief-dfal", "knockoff", "copycat"])
def test_the_pool_is_asked_row_by_row_and_then_the_attack_ends(name: str) -> None:
    foreign = RNG.normal(size=(170, 3))
    plan = make_strategy(name, Knowledge.of(foreign, foreign), seed=1, surrogate=Copy)
    count: Counter[tuple[float, ...]] = Counter()
    while len(x := plan.propose(33)):
        plan.feed(x, three(x))
        count.update(map(tuple, x))
    assert len(count) == 170
    assert set(count.values()) == {1}


def test_foreign_rows_are_snapped_to_values_that_are_valid_here() -> None:
    foreign = 50 * RNG.normal(size=(30, 3))
    x = make_strategy("knockoff", Knowledge.of(SEEDS, foreign), seed=1, surrogate=Copy).propose(30)
    assert (x >= SEEDS.min(axis=0)).all()
    assert (x <= SEEDS.max(axis=0)).all()


@pytest.mark.parametrize("foreign", [np.zeros((4, 2)), np.zeros((0, 3)), np.zeros(3)])
def test_foreign_rows_of_another_shape_are_refused(foreign: Array) -> None:
    with pytest.raises(Invalid, match="foreign rows"):
        Knowledge.of(SEEDS, foreign)


def test_copycat_teaches_top_classes_only() -> None:
    plan = make_strategy("copycat", KNOWN, seed=1, surrogate=Copy)
    x = plan.propose(20)
    lesson = plan.feed(x, three(x))
    np.testing.assert_array_equal(lesson.probs, np.eye(3)[three(x).argmax(axis=1)])


def test_the_generator_climbs() -> None:
    rng = np.random.default_rng(5)
    maker = Generator(KNOWN, rng)
    goal = KNOWN.lower + 0.9 * KNOWN.width

    def gap() -> float:
        return float(np.abs(maker.rows(np.random.default_rng(1), 200)[0] - goal).mean())

    before = gap()
    for _ in range(150):
        x, inside = maker.rows(rng, 16)
        maker.climb(inside, np.sign(goal - x))
    assert gap() < 0.3 * before


def test_data_free_learns_to_ask_where_copy_and_victim_differ() -> None:
    """They differ where the first column is high: there the questions go."""

    class Wrong(Copy):
        def predict(self, x: Array) -> Array:
            return np.tile([0.5, 0.5], (len(x), 1))

    def victim(x: Array) -> Array:
        p = 0.5 + 0.5 * np.clip(x[:, 0] / KNOWN.upper[0], 0, 1)
        return np.column_stack([p, 1 - p])

    asked = run(Planned(make_plan("data-free", Wrong)), 250, victim)
    early, late = np.concatenate(asked[:20])[:, 0], np.concatenate(asked[-20:])[:, 0]
    assert late.mean() > early.mean() + 0.5 * SEEDS[:, 0].std()


def make_plan(name: str, copy):
    from modelkeep.extraction.attacks import ATTACKS

    return ATTACKS[name].plan(KNOWN, np.random.default_rng(2), copy)
