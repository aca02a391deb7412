"""What a joblib file may hold: a pickle with the bytes of its arrays in between, compressed or not.

Source: ``joblib.numpy_pickle``: after the state of a ``NumpyArrayWrapper`` come a padding length, the padding and the bytes of
the array; an array of objects is a pickle of its own in that place. The same file may be given to ``pickle.load``, which reads
those bytes as opcodes, or to a joblib before 1.2, which knew no padding: so it is read in those ways too.
"""

import math
from enum import Enum
from typing import Any

from modelkeep.custody.scanning.pickles import PickleJudge
from modelkeep.custody.scanning.rules import Report
from modelkeep.custody.scanning.symbols import Array, DType, Global, UnlikeAny, check_shape, whole
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.compressed import unpack
from modelkeep.formats.pickle import Blob, Table

WRAPPER = ("joblib.numpy_pickle", "NumpyArrayWrapper")
MAX_ALIGNMENT = 64
_ATTRIBUTES = {"subclass", "shape", "order", "dtype", "allow_mmap", "numpy_array_alignment_bytes"}
"""What a wrapper has: any other, such as ``read``, could take the place of its methods."""


class _Reader(Enum):
    """Who reads the file: pickle takes the bytes of arrays for opcodes, joblib before 1.2 took the padding for an array."""

    PICKLE = 0
    OLD_JOBLIB = 1
    JOBLIB = 2


class JoblibJudge(PickleJudge):
    """Knows the wrapper. ``spent``: opcodes of all readings together."""

    def __init__(self, data: memoryview, report: Report, reader: _Reader, spent: list[int]) -> None:
        super().__init__(data, report)
        self._reader = reader
        self._spent = spent
        self._objects_judge = PickleJudge(data, report)
        self.wrappers = 0

    def judge(self) -> int:
        """Where the pickle ends. Raises Invalid, TooLarge."""
        return self.read(0, self._spent)[1]

    def find(self, module: str, name: str, at: int) -> Any:
        """The wrapper too."""
        if (module, name) == WRAPPER:
            return Global(module, name, True)
        return super().find(module, name, at)

    def call(self, target: Any, args: tuple[Any, ...], new: bool, at: int) -> Any:
        """A wrapper is made without arguments."""
        if isinstance(target, Global) and target.key == WRAPPER and new and not args:
            return Array()
        return super().call(target, args, new, at)

    def odd(self, rule: str, at: int, why: str) -> None:
        """Bytes of arrays make odd opcodes; they are looked at for what they reach."""
        if not self._misreads:
            super().odd(rule, at, why)
        elif rule == "pickle-extension":
            raise Invalid("nobody has registered what the bytes of an array ask for")

    def persistent(self, pid: Any, at: int) -> Any:
        """Neither loader has objects outside of the file."""
        if self._misreads:
            raise Invalid("the bytes of an array ask for an object that no loader has")
        return super().persistent(pid, at)

    def fill(self, target: Any, keyed: bool, items: list[Any], at: int) -> None:
        """Items of an array or a list may be set by the bytes of another: it runs nothing."""
        if not (self._misreads and keyed and isinstance(target, Array | list)):
            super().fill(target, keyed, items, at)

    @property
    def split(self) -> bool:
        """Whether a reading ended with what lies across the end of a frame."""
        return self.overran or self._objects_judge.overran

    @property
    def _misreads(self) -> bool:
        return self.wrappers > 0 and self._reader is not _Reader.JOBLIB

    def build(self, target: Any, state: Any, at: int) -> int:
        """Where the bytes of the array end, for joblib."""
        if isinstance(target, Array) and isinstance(state, Table):
            self.wrappers += 1
            return at if self._reader is _Reader.PICKLE else self._array(target, state, at)
        if self._misreads and self._reader is _Reader.PICKLE and isinstance(target, Array):
            return at  # of the pickle of an array of objects, read with another memo: numpy refuses what does not fit
        return super().build(target, state, at)

    def _array(self, array: Array, state: Table, at: int) -> int:
        try:
            return self._read_array(array, state, at)
        except UnlikeAny as cause:
            self.add(cause.rule, at, str(cause))
            raise Invalid("the bytes after an array cannot be read") from cause

    def _read_array(self, array: Array, state: Table, at: int) -> int:
        found = dict(pair for pair in state.pairs[:16] if isinstance(pair[0], str))
        cls, dtype, alignment = found.get("subclass"), found.get("dtype"), found.get("numpy_array_alignment_bytes")
        of_arrays = isinstance(cls, Global) and cls.key == ("numpy", "ndarray") and found.keys() <= _ATTRIBUTES
        if not of_arrays or not isinstance(dtype, DType) or len(found) != len(state.pairs) or array.dtype is not None:
            raise UnlikeAny("an array of joblib is of an unknown form", "pickle-state")
        array.dtype, array.shape = dtype, check_shape(found.get("shape"))
        if dtype.kind == "O":
            return self._objects(array, at)
        padded = alignment is not None and self._reader is _Reader.JOBLIB
        return self._bytes(array, self._padding(alignment, at) if padded else at)

    def _padding(self, alignment: Any, at: int) -> int:
        if not whole(alignment) or not 0 < alignment <= MAX_ALIGNMENT or at >= len(self.data):
            raise UnlikeAny("an array of joblib has an alignment that joblib does not write", "pickle-state")
        padding = self.data[at]
        if padding > alignment or bytes(self.data[at + 1 : at + 1 + padding]) != b"\xff" * padding:
            raise UnlikeAny("the padding before an array is not what joblib writes", "pickle-state")
        return at + 1 + padding

    def _bytes(self, array: Array, at: int) -> int:
        size = math.prod(array.shape) * (array.dtype.size if array.dtype else 0)
        if size > len(self.data) - at:
            raise UnlikeAny("an array does not have as many bytes as its shape needs", "size")
        array.data = Blob("bytes", at, size)
        return at + size

    def _objects(self, array: Array, at: int) -> int:
        """joblib hands the file to pickle, which reads an array of its own."""
        value, end = self._objects_judge.read(at, self._spent)
        if not isinstance(value, Array) or value.shape != array.shape:
            raise UnlikeAny("the pickle of an array of objects holds something else", "pickle-state")
        return end


def scan_joblib(data: memoryview, report: Report) -> None:
    """Judge a compressed joblib file. Raises Invalid, TooLarge."""
    scan_pickled(memoryview(unpack(data)).toreadonly(), report)


def scan_pickled(data: memoryview, report: Report) -> None:
    """Judge a pickle, which joblib may have written. Raises Invalid, TooLarge."""
    spent = [0]
    plain = JoblibJudge(data, report, _Reader.PICKLE, spent)
    end = _end(plain)
    if plain.wrappers:
        _end(JoblibJudge(data, report, _Reader.OLD_JOBLIB, spent))
        end = JoblibJudge(data, report, _Reader.JOBLIB, spent).judge()
    if end != len(data):
        report.add("trailing-data", f"byte {end}", "bytes follow the end of the pickle: another pickle, or something hidden")


def _end(judge: JoblibJudge) -> int:
    """Where a reading ends that may fail in the bytes of an array, as its reader would. Raises TooLarge; Invalid before any."""
    try:
        return judge.judge()
    except TooLarge:
        raise
    except Invalid:
        if not judge.wrappers:
            raise
        if judge.split:
            raise TooLarge("the bytes of an array begin a frame, and loaders differ in what they read at its end") from None
        return -1
