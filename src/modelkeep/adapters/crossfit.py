"""Out-of-fold probabilities of rows of numbers: scikit-learn models that never saw the row (extra ``modelkeep[lab]``)."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import ExtraTreesClassifier, HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.errors import Invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def _boosting(seed: int) -> Any:
    return HistGradientBoostingClassifier(
        max_iter=150, learning_rate=0.06, max_leaf_nodes=15, l2_regularization=1.0, early_stopping=False, random_state=seed
    )


def _forest(seed: int) -> Any:
    return ExtraTreesClassifier(150, min_samples_leaf=5, random_state=seed)


def _linear(_seed: int) -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.3, max_iter=300))


FAMILIES: dict[str, Callable[[int], Any]] = {"boosting": _boosting, "forest": _forest, "linear": _linear}
"""Makers of models by name; each takes a seed."""


def cross_fit(
    x: Floats, y: Ints, classes: int, *, family: str = "boosting", folds: int = 5, repeat: int = 0, seed: int = 0
) -> Floats:
    """Probabilities (n, classes) of rows ``x`` (n, d) with labels ``y`` (n,), each by a model of the other folds.

    ``repeat``: which of several divisions into folds. NaN is a gap, which only "boosting" takes.
    Raises Invalid (no such family, a class with fewer rows than folds, gaps where none may be).
    """
    if family not in FAMILIES:
        raise Invalid(f"there is no family {family!r}: there are {', '.join(FAMILIES)}")
    counts = np.bincount(y)
    if len(x) != len(y) or counts[counts > 0].min() < folds or len(np.unique(y)) < 2 or len(counts) > classes:
        raise Invalid(f"out-of-fold probabilities need two of {classes} classes or more, of {folds} rows or more each")
    if family != "boosting" and not np.isfinite(x).all():
        raise Invalid(f"the family {family!r} takes finite numbers alone: fill gaps before, or use 'boosting'")
    out = np.zeros((len(y), classes))
    for seen, held in StratifiedKFold(folds, shuffle=True, random_state=seed + repeat).split(x, y):
        fitted = FAMILIES[family](seed + repeat).fit(x[seen], y[seen])
        out[np.ix_(held, fitted.classes_)] = fitted.predict_proba(x[held])
    return out
