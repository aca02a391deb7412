"""Knockoff nets, adaptive: a gradient bandit learns which part of the pool is worth asking about."""

import numpy as np
from numpy.typing import NDArray

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan, Surrogate, SurrogateMaker


def bandit(  # the paper's parameters
    known: Knowledge,
    rng: np.random.Generator,
    surrogate: SurrogateMaker,
    *,
    arms: int = 10,
    rate: float = 1.0,
    step: int = 32,
) -> Plan:
    """Split the pool into ``arms`` clusters; ask ``step`` rows by a softmax policy over them; reward, update, retrain, repeat.

    The reward of a row is the mean of three, each scaled to 0 ... 1 by what was seen so far: the victim's certainty
    (p1 - p2), diversity (distance of the answer to the mean answer of its cluster) and the copy's loss (cross-entropy; of
    numbers, which have no certainty either, the squared error). The
    policy's preferences follow the gradient bandit with the mean reward of the round as baseline; clusters stand in for the
    paper's tree of labels, which foreign rows here do not have.
    Source: Orekondy et al. 2019, "Knockoff Nets", section 4.2 (adaptive strategy, equations 3 to 5).
    """
    pool = known.pool(rng)
    cluster = clusters(pool / np.where(known.width > 0, known.width, 1.0), arms, rng)
    left = [list(rng.permutation(np.flatnonzero(cluster == arm))) for arm in range(arms)]
    likes, spans = np.zeros(arms), np.tile([np.inf, -np.inf], (3, 1))
    x, answers, total, count = pool[:0], np.empty((0, 0)), np.empty((0, 0)), np.zeros(arms)
    copy: Surrogate | None = None
    while any(left):
        policy = _softmax(np.where([bool(rows) for rows in left], likes, -np.inf))
        chosen = [arm for arm in rng.choice(arms, size=step, p=policy) if left[arm]]
        pulled = np.array(_draw(left, chosen), dtype=np.int64)
        if not len(pulled):
            continue
        got = yield pool[pulled]
        actions = cluster[pulled]
        if copy is None:
            total, answers = np.zeros((arms, got.shape[1])), got[:0]
        diverse, loss = _diversity(got, total, count, actions), _loss(known, got, pool[pulled], copy)
        rewards = np.column_stack([_certainty(known, got), diverse, loss])
        spans = np.column_stack([np.minimum(spans[:, 0], rewards.min(axis=0)), np.maximum(spans[:, 1], rewards.max(axis=0))])
        reward = ((rewards - spans[:, 0]) / np.maximum(spans[:, 1] - spans[:, 0], 1e-12)).mean(axis=1)
        for arm, gain in zip(actions, reward - reward.mean(), strict=True):
            likes += rate / step * gain * (np.eye(arms)[arm] - policy)
        np.add.at(total, actions, got)
        np.add.at(count, actions, 1.0)
        x, answers = np.concatenate([x, pool[pulled]]), np.concatenate([answers, got])
        copy = surrogate()
        copy.fit(x, answers)


def _draw(left: list[list[np.int64]], chosen: list[int]) -> list[np.int64]:
    return [left[arm].pop() for arm in chosen if left[arm]]


def _softmax(likes: Array) -> Array:
    raised = np.exp(likes - likes.max())
    return np.asarray(raised / raised.sum())


def _certainty(known: Knowledge, got: Array) -> Array:
    if known.numbers:
        return np.zeros(len(got))
    two = np.sort(got, axis=1)[:, -2:]
    return np.asarray(two[:, -1] - two[:, 0])


def _diversity(got: Array, total: Array, count: Array, actions: NDArray[np.int64]) -> Array:
    mean = total[actions] / np.maximum(count[actions], 1.0)[:, None]
    return np.asarray(np.abs(got - mean).sum(axis=1))


def _loss(known: Knowledge, got: Array, x: Array, copy: Surrogate | None) -> Array:
    if copy is None:
        return np.zeros(len(x))
    if known.numbers:
        return np.asarray(((got - copy.predict(x)) ** 2).sum(axis=1))
    return np.asarray(-(got * np.log(np.maximum(copy.predict(x), 1e-6))).sum(axis=1))


def clusters(x: Array, count: int, rng: np.random.Generator, rounds: int = 10) -> NDArray[np.int64]:
    """Cluster numbers (n,) of rows (n, d): Lloyd's algorithm from ``count`` random rows."""
    centres = x[rng.choice(len(x), size=count, replace=count > len(x))]
    mine = np.zeros(len(x), dtype=np.int64)
    for _ in range(rounds):
        mine = ((centres**2).sum(axis=1) - 2.0 * x @ centres.T).argmin(axis=1)
        centres = np.array([x[mine == one].mean(axis=0) if (mine == one).any() else centres[one] for one in range(count)])
    return mine
