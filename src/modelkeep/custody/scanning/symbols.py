"""What stands for the objects that a pickle would make, and the rules of numpy's own: dtypes and arrays.

Source: numpy's ``arraydescr_reduce``/``arraydescr_setstate`` and ``array_reduce``/``array_setstate``. A dtype that lies about
its flags or fields makes numpy read bytes as pointers, so each must say exactly what its type code implies.
"""

import math
import re
from typing import Any

import msgspec

from modelkeep.formats.pickle import Blob, Table

MAX_FIELDS = 256
MAX_RANK = 64

_CODE = re.compile(r"([<>|=]?)([bifcuSUVmMO?])(\d{0,9})\Z")
_WIDTHS = {
    "b": (1,),
    "i": (1, 2, 4, 8),
    "u": (1, 2, 4, 8),
    "f": (2, 4, 8, 16),
    "c": (8, 16, 32),
    "m": (8,),
    "M": (8,),
    "?": (1,),
}
_PLAIN_FLAGS = 0x08 | 0x10 | 0x80
_OBJECT_FLAGS = 63


class Global(msgspec.Struct, frozen=True, gc=False):
    """A function or class; ``known``: it is on the list of harmless ones."""

    module: str
    name: str
    known: bool

    @property
    def key(self) -> tuple[str, str]:
        """Module and name."""
        return self.module, self.name


class Made(msgspec.Struct):
    """An object of a class, or the outcome of a call; ``key``: of what, None when that was not allowed."""

    key: tuple[str, str] | None
    items: int = 0
    state: Table | None = None
    args: tuple[Any, ...] = ()


class DType(msgspec.Struct):
    """A numpy dtype of ``size`` bytes. ``fields``: name to offset, for a structured one. ``set``: its state was given."""

    kind: str
    size: int
    fields: dict[str, tuple["DType", int]] | None = None
    set: bool = False


class Array(msgspec.Struct):
    """A numpy array; ``data``: its bytes, or where they are; None for one of objects."""

    dtype: DType | None = None
    shape: tuple[int, ...] = ()
    data: Blob | str | None = None


class Storage(msgspec.Struct):
    """Bytes of a PyTorch archive: ``count`` elements of ``size`` bytes, or bytes alone (``size`` 1, untyped)."""

    size: int
    count: int


class UnlikeAny(Exception):
    """An object is made or changed in a way that no library writes."""

    def __init__(self, why: str, rule: str = "pickle-call") -> None:
        super().__init__(why)
        self.rule = rule


def whole(*values: Any) -> bool:
    """Whether all are integers that count something."""
    return all(type(value) is int and 0 <= value < 1 << 62 for value in values)


def make_dtype(args: tuple[Any, ...]) -> DType:
    """``numpy.dtype(code, align, copy)``. Raises UnlikeAny."""
    found = _CODE.match(args[0]) if args and isinstance(args[0], str) else None
    if found is None or not all(value in (0, 1) for value in args[1:]) or len(args) > 3:
        raise UnlikeAny("a numpy dtype is made from what is no plain type code")
    kind, digits = found[2], found[3]
    width = int(digits or 1 if kind in "?b" else digits or 0)
    if kind == "O":
        return DType("O", 8)
    if kind in "SUV":
        return DType(kind, width * (4 if kind == "U" else 1))
    if width not in _WIDTHS[kind] and not (kind in "mM" and width == 0):
        raise UnlikeAny("a numpy dtype has a width that its type does not come in")
    return DType(kind, width or 8)


def set_dtype(dtype: DType, state: Any) -> None:
    """``dtype.__setstate__``. Raises UnlikeAny unless the state says what the type code implies."""
    if dtype.set or not isinstance(state, tuple) or len(state) not in (8, 9) or state[0] not in (3, 4):
        raise UnlikeAny("a numpy dtype is given a state of an unknown form", "pickle-state")
    _, order, base, names, fields, size, alignment, flags = state[:8]
    wanted = flags == _OBJECT_FLAGS if dtype.kind == "O" else type(flags) is int and not flags & ~_PLAIN_FLAGS
    if order not in ("<", ">", "|", "=") or not wanted or not (alignment == -1 or (whole(alignment) and alignment <= 64)):
        raise UnlikeAny("the flags of a numpy dtype are not those of its type", "pickle-state")
    if len(state) == 9 and not _is_unit(state[8], dtype.kind):
        raise UnlikeAny("a numpy dtype has metadata of an unknown form", "pickle-state")
    dtype.set = True
    if dtype.kind == "V" and base is not None:
        _set_base(dtype, base, names, fields)
    elif dtype.kind == "V" and names is not None:
        dtype.fields = _fields(names, fields, dtype.size)
    elif base is not None or names is not None or fields is not None:
        raise UnlikeAny("a plain numpy dtype has fields", "pickle-state")
    if size != (-1 if dtype.kind in "biufcO?mM" else dtype.size):
        raise UnlikeAny("the size of a numpy dtype is not that of its type", "pickle-state")


def _is_unit(metadata: Any, kind: str) -> bool:
    """The unit of a date, as version 4 of the state has it: ``({}, ('ns', 1, 1, 1))``."""
    if kind not in "mM" or not isinstance(metadata, tuple) or len(metadata) != 2:
        return False
    notes, unit = metadata
    plain = notes is None or (isinstance(notes, Table) and not notes.pairs)
    return plain and isinstance(unit, tuple) and len(unit) == 4 and isinstance(unit[0], str | Blob) and whole(*unit[1:])


def _set_base(dtype: DType, base: Any, names: Any, fields: Any) -> None:
    """A field that is itself an array: ``(dtype, shape)``."""
    inner, shape = base if isinstance(base, tuple) and len(base) == 2 else (None, None)
    shape = (shape,) if type(shape) is int else shape
    if not isinstance(inner, DType) or inner.kind == "O" or not isinstance(shape, tuple) or not whole(*shape):
        raise UnlikeAny("a numpy dtype is made of something else than a dtype", "pickle-state")
    if names is not None or fields is not None or inner.size * math.prod(shape) != dtype.size:
        raise UnlikeAny("the size of a numpy dtype is not that of its parts", "pickle-state")


def _fields(names: Any, fields: Any, size: int) -> dict[str, tuple[DType, int]]:
    pairs = fields.pairs if isinstance(fields, Table) else []
    if not isinstance(names, tuple) or not 0 < len(names) <= MAX_FIELDS or len(pairs) != len(names):
        raise UnlikeAny("the fields of a numpy dtype do not match their names", "pickle-state")
    found: dict[str, tuple[DType, int]] = {}
    for name, place in pairs:
        inner, offset = place if isinstance(place, tuple) and len(place) == 2 else (None, None)
        plain = isinstance(name, str) and isinstance(inner, DType) and inner.kind != "O"
        if not plain or not isinstance(inner, DType) or not isinstance(offset, int) or not whole(offset):
            raise UnlikeAny("a field of a numpy dtype is of an unknown form", "pickle-state")
        if offset + inner.size > size:
            raise UnlikeAny("a field of a numpy dtype lies outside of it", "size")
        found[name] = inner, offset
    if not all(isinstance(name, str) and name in found for name in names):
        raise UnlikeAny("the fields of a numpy dtype do not match their names", "pickle-state")
    return found


def check_shape(shape: Any) -> tuple[int, ...]:
    """A shape of whole numbers. Raises UnlikeAny."""
    if not isinstance(shape, tuple) or len(shape) > MAX_RANK or not whole(*shape):
        raise UnlikeAny("an array has a shape that is none", "pickle-state")
    return shape


def set_array(array: Array, state: Any, length: int | None) -> None:
    """``ndarray.__setstate__``; ``length``: bytes of the state's data when it is a blob. Raises UnlikeAny."""
    state = state[1:] if isinstance(state, tuple) and len(state) == 5 and state[0] == 1 else state
    if not isinstance(state, tuple) or len(state) != 4 or array.dtype is not None:
        raise UnlikeAny("an array is given a state of an unknown form", "pickle-state")
    shape, dtype, fortran, data = state
    shape = check_shape(shape)
    if not isinstance(dtype, DType) or fortran not in (True, False):
        raise UnlikeAny("an array is given a state of an unknown form", "pickle-state")
    count = math.prod(shape)
    if dtype.kind == "O":
        if not dtype.set or not isinstance(data, list) or len(data) != count:
            raise UnlikeAny("an array of objects does not have as many as its shape needs", "size")
    elif length != count * dtype.size:
        raise UnlikeAny("an array does not have as many bytes as its shape needs", "size")
    array.dtype, array.shape, array.data = dtype, shape, data if isinstance(data, Blob | str) else None
