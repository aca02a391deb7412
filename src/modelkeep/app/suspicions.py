"""Rows of a data set that look planted or mislabelled, by what models that are made for it alone learn from the others."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from modelkeep.app.datachecks import Check
from modelkeep.core.tables import Column, Table
from modelkeep.errors import Invalid
from modelkeep.training.encoding import codes_of, matrix_of
from modelkeep.training.findings import Asked, Examined, Finding, Level, with_suspicions
from modelkeep.training.poison.ensemble import Suspicions, inspect

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
LEAST_ROWS, MOST_ROWS = 100, 100_000
MOST_CLASSES, LEAST_OF_CLASS = 100, 5
LEAST_SIDE = 8
"""Pixels of a picture that a network with two poolings learns from."""
_EXTRAS = {True: "torch", False: "lab"}


def suspicions(check: Check, asked: Asked) -> Check:
    """``check`` with what looking at all rows together finds, or with a note that says why nothing was looked for.

    Tables are learnt from with scikit-learn (extra ``lab``), pictures with PyTorch (extra ``torch``); where these are not
    installed, rows are told by their neighbours alone, and a note says so. Raises Invalid (pictures that are not finite).
    """
    if not check.label:
        return check  # that no label was named is said already
    table, why = check.data.table, _unfit(check)
    if why:
        return replace(check, found=_noted(check.found, f"planted and mislabelled rows were not looked for: {why}"))
    y = codes_of(table.columns[check.label])
    groups = np.array([str(one) for one in table.columns[asked.origin]]) if asked.origin else None
    pictures = [name for name in check.found.features if _is_picture(table.columns[name])]
    found = _of_pictures(table, pictures[0], y, groups, asked.seed) if pictures else _of_table(check, y, groups, asked.seed)
    more = with_suspicions(check.found, table.columns[check.label], found.reasons, found.sources)
    if "contradiction" not in found.scores:
        more = _noted(
            more, f"planted rows were looked for by neighbours alone: 'pip install modelkeep[{_EXTRAS[bool(pictures)]}]'"
        )
    return replace(check, found=more, scores={name: one.tolist() for name, one in found.scores.items()})


def _unfit(check: Check) -> str:
    """Why planted rows cannot be looked for; "" = they can."""
    rows = len(check.data.table)
    counts = np.bincount(codes_of(check.data.table.columns[check.label]))
    if not LEAST_ROWS <= rows <= MOST_ROWS:
        return f"it takes {LEAST_ROWS} to {MOST_ROWS:,} rows"
    if not 2 <= len(counts) <= MOST_CLASSES:
        return f"the label has {len(counts):,} different values, and it takes 2 to {MOST_CLASSES}"
    if counts.min() < LEAST_OF_CLASS:
        return f"a class has {counts.min()} rows, and it takes {LEAST_OF_CLASS}"
    for name in check.found.features:
        column = check.data.table.columns[name]
        if column.ndim > 1 and column.dtype.kind == "f" and not np.isfinite(column).all():
            return f"rows of {name[:80]!r} have gaps or infinite values: fill them first"
    return "" if check.found.features else "no column but the label describes the rows"


def _noted(found: Examined, said: str) -> Examined:
    return replace(found, findings=(*found.findings, Finding("poison", Level.NOTE, said)))


def _is_picture(column: Column) -> bool:
    return column.ndim in {3, 4} and min(column.shape[1:3]) >= LEAST_SIDE


def _of_table(check: Check, y: Ints, groups: NDArray[np.str_] | None, seed: int) -> Suspicions:
    x = matrix_of(check.data.table, check.found.features)
    try:
        from modelkeep.adapters.crossfit import cross_fit
    except ImportError:
        return inspect(x, y, groups=groups, seed=seed)
    return inspect(x, y, probabilities=cross_fit(x, y, int(y.max()) + 1, seed=seed), groups=groups, seed=seed)


def _of_pictures(table: Table, name: str, y: Ints, groups: NDArray[np.str_] | None, seed: int) -> Suspicions:
    x = table.columns[name].astype(np.float32)
    x = x / max(float(np.abs(x).max()), 1e-12)
    x = np.moveaxis(x, 3, 1) if x.ndim == 4 else x
    if not np.isfinite(x).all():
        raise Invalid(f"column {name[:80]!r} has pictures with values that are not finite")
    try:
        from modelkeep.training.lab.features import views
    except ImportError:
        return inspect(x, y, groups=groups, seed=seed)
    seen = views(x, y, int(y.max()) + 1, seed=seed)
    return inspect(x, y, probabilities=seen.probabilities, features=seen.features, pull=seen.pull, groups=groups, seed=seed)
