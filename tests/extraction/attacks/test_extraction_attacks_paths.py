"""Path finding on trees whose every split is known."""

import numpy as np

from modelkeep.adapters.surrogates import TreesSurrogate
from modelkeep.extraction.attacks import Array, Knowledge, Planned
from modelkeep.extraction.attacks.path_finding import path_finding

RNG = np.random.default_rng(51)
SEEDS = np.column_stack([RNG.uniform(-1, 1, 50), RNG.integers(0, 20, 50), RNG.uniform(0, 10, 50), np.full(50, 4.0)])
KNOWN = Knowledge.of(SEEDS)
SPLITS = ((0, 0.3137), (1, 11.5), (2, 2.71), (2, 7.77))
"""Column and threshold of every split of the tree."""


def tree(x: Array) -> Array:
    """Five leaves with a confidence each."""
    left = np.where(x[:, 1] <= 11.5, 0.91, np.where(x[:, 2] <= 2.71, 0.12, 0.72))
    p = np.where(x[:, 0] <= 0.3137, left, np.where(x[:, 2] <= 7.77, 0.33, 0.81))
    return np.column_stack([p, 1 - p])


def walk(budget: int = 10_000) -> tuple[Array, bool]:
    """All questions, and whether the attack said that it is done."""
    plan, asked = Planned(path_finding(KNOWN, np.random.default_rng(1), bisections=14)), []
    while sum(map(len, asked)) < budget:
        x = plan.propose(32)
        if not len(x):
            return np.concatenate(asked), True
        plan.feed(x, tree(x))
        asked.append(x)
    return np.concatenate(asked), False


def test_every_split_is_found_and_then_the_attack_ends() -> None:
    x, done = walk()
    assert done
    assert len(x) < 600
    assert len(np.unique(tree(x)[:, 0])) == 5, "every leaf was met"
    for column, threshold in SPLITS:
        gap = x[:, column] - threshold
        nearest = gap[gap > 0].min() - gap[gap <= 0].max()
        assert nearest <= (1.0 if KNOWN.whole[column] else KNOWN.width[column] / 2**13), (column, nearest)


def test_what_was_asked_makes_a_copy_of_the_tree() -> None:
    x, _ = walk()
    copy = TreesSurrogate(rounds=40)
    copy.fit(x, tree(x))
    fresh = KNOWN.snap(RNG.uniform(KNOWN.lower, KNOWN.upper, size=(2_000, 4)))
    assert (copy.predict(fresh).argmax(axis=1) == tree(fresh).argmax(axis=1)).mean() > 0.88


def test_answers_that_never_repeat_are_walked_among_without_end() -> None:
    plan, answers = Planned(path_finding(KNOWN, np.random.default_rng(1))), np.random.default_rng(2)
    for _ in range(100):
        x = plan.propose(16)
        assert len(x), "there is always another leaf"
        p = answers.random(len(x))
        plan.feed(x, np.column_stack([p, 1 - p]))
