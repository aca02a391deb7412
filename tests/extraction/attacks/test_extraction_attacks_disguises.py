"""Disguises: what they add is counted right, what they hide is asked all the same, and they nest in any order."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelkeep.errors import Invalid
from modelkeep.extraction.attacks import ATTACKS, STRATEGIES, Array, Guise, Knowledge, Lesson, Strategy, make_strategy
from modelkeep.extraction.attacks.disguises import Interleaved, Noisy, Repeated, Sleeper

RNG = np.random.default_rng(31)
SEEDS = np.column_stack([RNG.normal(size=60), RNG.integers(0, 9, size=60), RNG.uniform(-1, 1, size=60)])
KNOWN = Knowledge.of(SEEDS)
HONEST = np.column_stack([RNG.normal(size=25), np.full(25, 100.0), RNG.uniform(-1, 1, size=25)])
"""Rows that can be told from the attack's: it never asks a 100."""


def victim(x: Array) -> Array:
    p = 1 / (1 + np.exp(-(x @ [1.0, 0.3, -2.0] - 1.0)))
    return np.column_stack([1 - p, p])


class Copy:
    def fit(self, x: Array, probs: Array) -> None:
        pass

    def predict(self, x: Array) -> Array:
        return victim(x)


def attack(name: str = "line-search", seed: int = 3) -> Strategy:
    return make_strategy(name, KNOWN, seed=seed, surrogate=Copy)


def run(plan: Strategy, total: int, batches: list[int], answer=victim) -> tuple[Array, Lesson]:
    """All that was asked, and all that was learnt."""
    asked: list[Array] = []
    taught: list[Lesson] = []
    while (left := total - sum(map(len, asked))) > 0:
        x = plan.propose(min(batches[len(asked) % len(batches)], left))
        if not len(x):
            break
        taught.append(plan.feed(x, answer(x)))
        asked.append(x)
    return np.concatenate(asked), Lesson(
        np.concatenate([one.x for one in taught]), np.concatenate([one.probs for one in taught]), sum(one.own for one in taught)
    )


def honest(x: Array) -> Array:
    return x[:, 1] == 100.0


def test_no_disguise_is_the_attack_itself() -> None:
    plain = attack()
    assert Guise().wear(plain, KNOWN) is plain
    assert Guise().words() == ()


@settings(max_examples=30, deadline=None)
@given(share=st.integers(1, 99), total=st.integers(1, 400), batch=st.integers(1, 64))
@example(share=29, total=100, batch=10)  # 0.29 x 100 is less than 29
def test_an_interleave_has_the_share_that_was_asked_for(share: int, total: int, batch: int) -> None:
    plan = Guise(share=share / 100).wear(attack(), KNOWN, honest=HONEST)
    x, lesson = run(plan, total, [batch])
    for t in range(1, total + 1):
        assert (~honest(x[:t])).sum() == t * share // 100
    assert lesson.own == (~honest(x)).sum()
    np.testing.assert_array_equal(lesson.x, x)


@pytest.mark.parametrize("percent", [50, 30, 10, 5])
def test_the_attack_among_honest_rows_is_the_attack(percent: int) -> None:
    x, _ = run(Guise(share=percent / 100).wear(attack(), KNOWN, honest=HONEST), 1_000, [16])
    plain, _ = run(attack(), 10 * percent, [16])
    np.testing.assert_array_equal(x[~honest(x)], plain)
    cover = [tuple(row) for row in x[honest(x)]]
    for at in range(0, len(cover) - 25, 25):
        assert len({*cover[at : at + 25]}) == 25, "none is asked again before all were"


@settings(max_examples=20, deadline=None)
@given(first=st.integers(1, 90), batch=st.integers(1, 50))
def test_a_sleeper_begins_with_honest_questions(first: int, batch: int) -> None:
    x, lesson = run(Guise(sleep=first).wear(attack(), KNOWN, honest=HONEST), first + 60, [batch])
    assert honest(x[:first]).all()
    assert not honest(x[first:]).any()
    assert lesson.own == 60
    np.testing.assert_array_equal(x[first:], run(attack(), 60, [7])[0])


def test_a_sleeper_whose_attack_has_nothing_to_ask_still_sleeps() -> None:
    class Done:
        def propose(self, count: int) -> Array:
            return np.empty((0, 0))

        def feed(self, x: Array, probs: Array) -> Lesson:
            raise AssertionError("nothing was asked")

    x, lesson = run(Sleeper(Done(), 7, HONEST, np.random.default_rng(1)), 50, [3])
    assert len(x) == 7
    assert lesson.own == 0


def test_repeats_are_averaged_before_the_attack_and_the_copy_see_them() -> None:
    rng = np.random.default_rng(1)

    def shaky(x: Array) -> Array:
        return np.clip(victim(x) + 0.1 * rng.normal(size=(len(x), 1)) * [1, -1], 0, 1)

    x, lesson = run(Guise(repeats=50).wear(attack("uniform"), KNOWN), 1_000, [33], shaky)
    assert len(lesson.x) == 20
    assert lesson.own == 1_000
    np.testing.assert_array_equal(x[::50], lesson.x)
    np.testing.assert_array_equal(x, np.repeat(lesson.x, 50, axis=0))
    assert np.abs(lesson.probs - victim(lesson.x)).max() < 0.06


def test_repeats_that_are_cut_short_teach_what_is_complete() -> None:
    _, lesson = run(Guise(repeats=3).wear(attack(), KNOWN), 10, [4])
    assert (len(lesson.x), lesson.own) == (3, 9)


def test_noise_is_snapped_and_the_copy_learns_what_was_asked() -> None:
    x, lesson = run(Guise(noise=0.05).wear(attack("uniform"), KNOWN), 300, [20])
    plain, _ = run(attack("uniform"), 300, [20])
    np.testing.assert_array_equal(KNOWN.snap(x), x)
    np.testing.assert_array_equal(lesson.x, x)
    np.testing.assert_array_equal(lesson.probs, victim(x))
    inside = (x > KNOWN.lower) & (x < KNOWN.upper) & ~KNOWN.whole
    spread = ((x - plain) / KNOWN.width)[inside].std()
    assert 0.03 < spread < 0.06
    assert lesson.own == 300


def test_repeats_with_noise_ask_around_each_question() -> None:
    x, lesson = run(Guise(repeats=4, noise=0.01).wear(attack("uniform"), KNOWN), 80, [9])
    assert len(np.unique(x, axis=0)) == 80
    assert lesson.own == 80
    groups = x.reshape(20, 4, 3)
    assert np.median(groups.std(axis=1) / KNOWN.width) < 0.02


@pytest.mark.parametrize("name", [name for name in STRATEGIES if not ATTACKS[name].explains])
def test_labels_only_shows_the_attack_and_the_copy_nothing_else(name: str) -> None:
    seen: list[Array] = []

    class Watching(Copy):
        def fit(self, x: Array, probs: Array) -> None:
            seen.append(probs)

    plan = Guise(labels_only=True, sleep=5).wear(make_strategy(name, KNOWN, seed=1, surrogate=Watching), KNOWN)
    x, lesson = run(plan, 150, [16])
    np.testing.assert_array_equal(lesson.probs, np.eye(2)[victim(x).argmax(axis=1)])
    assert all(np.isin(probs, [0.0, 1.0]).all() for probs in seen)


def test_decimals_are_dropped() -> None:
    _, lesson = run(Guise(decimals=2, repeats=2).wear(attack(), KNOWN), 40, [5])
    np.testing.assert_array_equal(lesson.probs, np.round(victim(lesson.x), 2))


GUISES = st.builds(
    Guise,
    repeats=st.integers(1, 3),
    noise=st.sampled_from([0.0, 0.02]),
    share=st.sampled_from([1.0, 0.5, 0.3, 0.1]),
    sleep=st.integers(0, 20),
    labels_only=st.booleans(),
    decimals=st.none() | st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(
    guise=GUISES,
    name=st.sampled_from(["line-search", "uniform", "in-distribution", "equation-solving", "t-rnd", "copycat"]),
    batches=st.lists(st.integers(1, 40), min_size=1, max_size=4),
)
def test_any_guise_keeps_its_counts_and_does_not_care_for_the_size_of_requests(
    guise: Guise, name: str, batches: list[int]
) -> None:
    x, lesson = run(guise.wear(attack(name), KNOWN, honest=HONEST, seed=9), 150, batches)
    again, same = run(guise.wear(attack(name), KNOWN, honest=HONEST, seed=9), 150, [150])
    np.testing.assert_array_equal(x, again)
    np.testing.assert_array_equal(lesson.x, same.x)
    np.testing.assert_array_equal(lesson.probs, same.probs)
    own = ~honest(x)
    assert not own[: guise.sleep].any()
    assert own.sum() == int(np.floor((len(x) - guise.sleep) * guise.share + 1e-9)) or name == "in-distribution"
    assert lesson.own == own.sum() - own.sum() % guise.repeats, "questions whose repeats are not complete are not counted yet"
    np.testing.assert_array_equal(KNOWN.snap(x[own]), x[own])


@settings(max_examples=40, deadline=None)
@given(order=st.permutations(range(4)), batch=st.integers(1, 30))
def test_disguises_nest_in_any_order(order: list[int], batch: int) -> None:
    layers = [
        lambda inner: Repeated(inner, 2),
        lambda inner: Noisy(inner, 0.01, replace(KNOWN, upper=np.array([9.0, 200.0, 9.0])), np.random.default_rng(1)),
        lambda inner: Interleaved(inner, 0.4, HONEST, np.random.default_rng(2)),
        lambda inner: Sleeper(inner, 6, HONEST, np.random.default_rng(3)),
    ]
    plan = attack("uniform")
    for one in order:
        plan = layers[one](plan)
    x, lesson = run(plan, 200, [batch])
    assert len(x) == 200
    assert len(lesson.x) == len(lesson.probs)
    near = np.abs(x[:, 1] - 100.0) < 40
    assert near[:6].all()
    assert 0 <= (~near).sum() - lesson.own <= 1, "at most one repeat is outstanding"
    assert 66 <= (~near).sum() <= 80


@pytest.mark.parametrize(
    "guise", [Guise(repeats=0), Guise(noise=-0.1), Guise(share=0.0), Guise(share=1.1), Guise(sleep=-1), Guise(decimals=0)]
)
def test_a_guise_out_of_bounds_is_refused(guise: Guise) -> None:
    with pytest.raises(Invalid, match="no thief"):
        guise.wear(attack(), KNOWN)


def test_honest_rows_must_be_there_and_fit() -> None:
    with pytest.raises(Invalid, match="columns"):
        Guise(sleep=3).wear(attack(), KNOWN, honest=np.zeros((3, 2)))
    with pytest.raises(Invalid, match="no honest rows"):
        Guise(sleep=3).wear(attack(), KNOWN, honest=np.zeros((0, 3)))


def test_answers_that_do_not_fit_the_questions_are_refused() -> None:
    plan = Guise(repeats=2).wear(attack(), KNOWN)
    x = plan.propose(4)
    with pytest.raises(Invalid, match="do not fit"):
        plan.feed(x, victim(x)[:2])


def test_a_guise_says_what_it_does() -> None:
    assert Guise(3, 0.01, 0.05, 200, labels_only=True).words() == (
        "every question 3 times", "noise of 0.01 ranges", "5% attack", "200 honest questions first", "labels only",
    )  # fmt: skip
