"""Line search: bisect between rows of different classes and train on points that hug the boundary."""

import numpy as np

from modelkeep.extraction.attacks.base import Array, Knowledge, Plan


def line_search(known: Knowledge, rng: np.random.Generator, *, lines: int = 8, steps: int = 10) -> Plan:
    """Ask natural rows until two classes are seen, then bisect ``lines`` segments at once, ``steps`` times each; begin again.

    Source: Lowd and Meek 2005, "Adversarial Learning", section 4; Tramer et al. 2016, section 5.2.1 (line-search retraining).
    """
    anchors = known.draw(rng, lines)
    labels = (yield anchors).argmax(axis=1)
    while True:
        if len(np.unique(labels)) < 2 or len(anchors) < 4 * lines:
            more = known.draw(rng, lines)
            answers = yield more
            anchors, labels = np.concatenate([anchors, more]), np.concatenate([labels, answers.argmax(axis=1)])
        if len(np.unique(labels)) < 2:
            continue
        near, far, mine = _pairs(anchors, labels, rng, lines)
        for _ in range(steps):
            middle = known.snap((near + far) / 2)
            same = (yield middle).argmax(axis=1) == mine
            near, far = np.where(same[:, None], middle, near), np.where(same[:, None], far, middle)


def _pairs(anchors: Array, labels: np.ndarray, rng: np.random.Generator, lines: int) -> tuple[Array, Array, np.ndarray]:
    """``lines`` random pairs of anchors with different labels, and the label of the first of each."""
    first = rng.integers(len(anchors), size=lines)
    second = np.array([rng.choice(np.flatnonzero(labels != labels[one])) for one in first])
    return anchors[first], anchors[second], labels[first]
