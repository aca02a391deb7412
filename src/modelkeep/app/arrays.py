"""Arrays that users hand in: npz files, read without pickle and within bounds."""

import io
import zipfile
from typing import IO

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid, TooLarge

MAX_VALUES = 1 << 28
"""Largest array accepted, numbers."""


def load_rows(data: bytes, where: str) -> NDArray[np.float64]:
    """Array ``x`` of an npz file as rows (n, d), features flattened. Raises Invalid, TooLarge.

    The declared shape is checked before anything is allocated, and pickled objects are refused.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
            if "x.npy" not in names:
                raise Invalid(f"{where} has no array 'x': save it with numpy.savez({where!r}, x=rows)")
            with archive.open("x.npy") as stream:
                shape = _declared_shape(stream, where)
                if np.prod(shape, dtype=object) > MAX_VALUES:
                    raise TooLarge(f"{where}: an array of shape {shape} is more than {MAX_VALUES:,} numbers")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            rows = np.asarray(arrays["x"])
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError, RuntimeError) as cause:
        raise Invalid(f"{where} is not an npz file of plain numbers: {cause}") from cause
    if rows.ndim < 2 or rows.dtype.kind not in "fiub" or not rows.size:
        raise Invalid(f"{where}: array 'x' needs shape (rows, features...) and numbers, not {rows.dtype} of shape {rows.shape}")
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise Invalid(f"{where}: array 'x' holds NaN or infinite values")
    return flat


def load_labelled(data: bytes, where: str) -> tuple[NDArray[np.float64], NDArray[np.int64], tuple[int, ...]]:
    """Arrays ``x`` and ``y`` of an npz file: rows (n, d), labels (n,) and the shape of one row. Raises Invalid, TooLarge."""
    rows = load_rows(data, where)
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        shape = arrays["x"].shape[1:]
        try:
            labels = np.asarray(arrays["y"])
        except (KeyError, ValueError, OSError, zipfile.BadZipFile) as cause:
            raise Invalid(f"{where} has no labels: save them with numpy.savez({where!r}, x=rows, y=labels)") from cause
    if labels.shape != (len(rows),) or labels.dtype.kind not in "iu":
        raise Invalid(f"{where}: array 'y' needs one whole number a row, not {labels.dtype} of shape {labels.shape}")
    return rows, labels.astype(np.int64), shape


def load_truth(data: bytes, where: str, rows: int) -> NDArray[np.float64] | None:
    """Array ``y`` of an npz file whose ``x`` was read: the true numbers (rows,) of a regression; None when there is none.

    Raises Invalid, TooLarge.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        if "y.npy" not in archive.namelist():
            return None
        try:
            with archive.open("y.npy") as stream:
                shape = _declared_shape(stream, where, "y")
            if shape not in ((rows,), (rows, 1)):
                raise Invalid(f"{where}: array 'y' needs one true number for each of the {rows} rows, not shape {shape}")
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                truth = np.asarray(arrays["y"])
        except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError, RuntimeError) as cause:
            raise Invalid(f"{where}: array 'y' is no array of plain numbers: {cause}") from cause
    if truth.dtype.kind not in "fiu" or not np.isfinite(truth).all():
        raise Invalid(f"{where}: array 'y' needs finite numbers, not {truth.dtype}")
    return truth.reshape(rows).astype(np.float64)


def _declared_shape(stream: IO[bytes], where: str, name: str = "x") -> tuple[int, ...]:
    version = np.lib.format.read_magic(stream)
    read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
    if read is None:
        raise Invalid(f"{where}: array {name!r} has npy version {version}, not 1.0 or 2.0")
    shape, _, dtype = read(stream)
    if dtype.hasobject:
        raise Invalid(f"{where}: array {name!r} holds Python objects, which are never loaded")
    return tuple(shape)
