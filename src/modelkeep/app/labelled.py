"""Labelled rows that verbs train and measure on: from a file, a folder of pictures, or a sealed data set of the keep.

Whatever they come from is read whole, in memory; a sealed data set is decrypted there and written nowhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.tables import IMAGES, NPZ, Source, table_of
from modelkeep.app.arrays import MAX_VALUES, load_labelled
from modelkeep.app.dataresults import DataFetched
from modelkeep.app.datasets import plain_bytes
from modelkeep.container.reader import BytesReader
from modelkeep.core.tables import Table
from modelkeep.core.values import Digest, digest_of
from modelkeep.errors import Invalid, TooLarge

Fetch = Callable[[str, str], DataFetched]
"""``Keep.data_fetch`` of a data set for a purpose."""
LABEL = "y"


@dataclass(frozen=True, eq=False)
class Labelled:
    """``x``: rows (n, d), features flattened; ``y``: whole numbers (n,); ``shape``: of one row before that.

    ``name``, ``digest``: what statements call the data, and the SHA-256 of its bytes (pictures: of a tar archive), as
    ``Salted`` has them. ``columns``: names of the features of a table, in their order, none of arrays; ``classes``: what the
    numbers stand for where the data names them, as folders of pictures do; ``sealed``: it is a version of a data set of the
    keep.
    """

    name: str
    digest: Digest
    x: NDArray[np.float64]
    y: NDArray[np.int64]
    shape: tuple[int, ...]
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    sealed: bool = False


def labelled(source: str, fetch: Fetch, *, label: str = "", purpose: str = "") -> Labelled:
    """Rows of a CSV, npz or Parquet file, of a folder of pictures, or of ``name@version``, sealed, read for ``purpose``.

    ``label``: the column of a table that is predicted; ``y`` unless given. Raises Invalid (no such data, text that is no
    feature), Missing (no such file or column), TooLarge, Denied (and logs it), NotTrusted, Unavailable.
    """
    if is_sealed(source):
        got = fetch(source, purpose)
        rows = Source(got.kind, BytesReader(got.data), got.columns or None)
        return _read(rows, got.data, source, got.ref, label, sealed=True)
    kind, filename, data = plain_bytes(source)
    return _read(Source(kind, BytesReader(data)), data, source, filename, label)


def labelled_npz(data: bytes, name: str) -> Labelled:
    """Arrays ``x`` and ``y`` of an npz file. Raises Invalid, TooLarge."""
    return _arrays(data, name, name, sealed=False)


def is_sealed(source: str) -> bool:
    """Whether that is a sealed data set, ``name@version``, and no file."""
    return "@" in source and not Path(source).exists()


def check_alike(one: Labelled, other: Labelled) -> None:
    """Raises Invalid: their rows, columns or classes are not the same ones, in the same order."""
    if one.shape != other.shape:
        raise Invalid(f"{other.name} has rows of shape {other.shape}, and {one.name} of {one.shape}")
    for what, mine, others in (("columns", one.columns, other.columns), ("classes", one.classes, other.classes)):
        if mine and others and mine != others:
            raise Invalid(f"{other.name} has the {what} {_listed(others)}, and {one.name} {_listed(mine)}: give both alike")


def _read(source: Source, data: bytes, where: str, name: str, label: str, *, sealed: bool = False) -> Labelled:
    """``source``: of ``data``."""
    kind = source.kind
    if kind == NPZ and label in {"", LABEL}:
        return _arrays(data, where, name, sealed=sealed)
    try:
        rows = source.rows()
        if kind == NPZ and label not in rows.names and {"x", LABEL} <= set(rows.names):
            return _arrays(data, where, name, sealed=sealed)  # beside a table, whose label has a name
        table, digest = table_of(rows), digest_of(data)
    except Invalid as cause:  # a verb reads several: which one is it?
        raise type(cause)(str(cause) if where in str(cause) else f"{where}: {cause}") from cause
    if kind == IMAGES:
        classes, numbers = np.unique(table.column(LABEL).astype(str), return_inverse=True)
        pictures = table.column("x")
        _check_size(pictures.size, where)
        flat = pictures.reshape(len(pictures), -1).astype(np.float64)
        shape, named = tuple(pictures.shape[1:]), tuple(map(str, classes))
        return Labelled(name, digest, flat, numbers.astype(np.int64), shape, classes=named, sealed=sealed)
    features, labels, columns = _features(table, where, label)
    return Labelled(name, digest, features, labels, (len(columns),), columns, sealed=sealed)


def _arrays(data: bytes, where: str, name: str, *, sealed: bool) -> Labelled:
    rows, labels, shape = load_labelled(data, where)
    return Labelled(name, digest_of(data), rows, labels, shape, sealed=sealed)


def _features(table: Table, where: str, label: str) -> tuple[NDArray[np.float64], NDArray[np.int64], tuple[str, ...]]:
    """Rows, labels, and the names of the features."""
    if not label and LABEL not in table.columns:
        raise Invalid(f"{where} is a table: say which column is predicted with --label COLUMN")
    target, label = table.column(label or LABEL), label or LABEL
    names = tuple(one for one in table.columns if one != label)
    if not names:
        raise Invalid(f"{where} has no column beside the label {label!r}")
    text = [one for one in table.columns if table.columns[one].dtype.kind not in "iufb"]
    if text:
        raise Invalid(f"{where}: text cannot be trained on: encode {_listed(text)} as numbers first")
    if deep := [one for one in names if table.columns[one].ndim > 1]:
        raise Invalid(f"{where}: more than one number a row in {_listed(deep)}: name the rows x, and the labels y")
    _check_size(len(names) * len(table), where)
    rows = np.column_stack([table.columns[one].astype(np.float64) for one in names])
    if gaps := [one for one, column in zip(names, rows.T, strict=True) if not np.isfinite(column).all()]:
        raise Invalid(f"{where}: NaN, infinite values or gaps in {_listed(gaps)}: fill them first")
    if target.ndim != 1 or target.dtype.kind not in "iub":
        raise Invalid(f"{where}: the label {label!r} needs one whole number a row, with no gap")
    return rows, target.astype(np.int64), names


def _check_size(values: int, where: str) -> None:
    if values > MAX_VALUES:
        raise TooLarge(f"{where}: its features are more than {MAX_VALUES:,} numbers")


def _listed(names: tuple[str, ...] | list[str]) -> str:
    """Names for a sentence, not too many."""
    some = ", ".join(repr(one[:60]) for one in names[:8])
    return some + f" and {len(names) - 8} more" * (len(names) > 8)
