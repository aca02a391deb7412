"""What a pickle may do: exactly the functions and classes of the lists below, called the way their libraries write it.

Every global must be listed by module and name; each call is checked where it happens, because lists and dicts change later.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from modelkeep.custody.scanning import sklearn_names
from modelkeep.custody.scanning.rules import Report
from modelkeep.custody.scanning.symbols import (
    Array,
    DType,
    Global,
    Made,
    UnlikeAny,
    make_dtype,
    set_array,
    set_dtype,
    whole,
)
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.pickle import MAX_OPS, Bag, Blob, Machine, Table

Key = tuple[str, str]
Call = Callable[["PickleJudge", tuple[Any, ...]], Any]

_GENERATOR = ("numpy.random._pickle", "__bit_generator_ctor")
_SEED = ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence")
_RENAMED = {"__builtin__": "builtins", "copy_reg": "copyreg"}


def _listed(table: str) -> frozenset[Key]:
    rows = (row.split(": ") for row in table.split("\n") if row)
    return frozenset((f"sklearn.{module}", name) for module, names in rows for name in names.split())


CLASSES = _listed(sklearn_names.CLASSES)
"""Made without arguments, and given a dict of attributes."""

_NUMBERS = (
    "bool_ bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64 longdouble complex64 complex128 "
    "intc uintc longlong ulonglong str_ bytes_ datetime64 timedelta64 float128"
)
_TYPES = ("object", "int", "float", "str", "bool", "list", "dict", "set", "tuple", "bytes", "complex", "frozenset")
VALUES = (
    _listed(sklearn_names.VALUES)
    | {("builtins", name) for name in _TYPES}
    | {("numpy", name) for name in ("ndarray", *_NUMBERS.split())}
    | {("numpy", "mean"), ("numpy.random.bit_generator", "SeedSequence")}
    | {(f"numpy.random._{module}", name) for module, name in (("mt19937", "MT19937"), ("pcg64", "PCG64"))}
)
"""Passed around, never called."""

_DICTS = {
    ("collections", "OrderedDict"),
    ("collections", "defaultdict"),
    ("collections", "Counter"),
    ("sklearn.utils._bunch", "Bunch"),
}


class PickleJudge:
    """Judges one pickle, or several that belong together. ``calls``: what may be called, and how."""

    def __init__(self, data: memoryview, report: Report, where: str = "", calls: Mapping[Key, Call] | None = None) -> None:
        self.data = data
        self.report = report
        self.where = where
        self._calls = CALLS if calls is None else calls
        self._work = MAX_OPS
        self._byte_budget = 4 * len(data) + (16 << 20)
        self._lengths: dict[int, int] = {}
        self.overran = False

    def spend(self, work: int) -> None:
        """Count items looked at: a pickle can show the same list a thousand times. Raises TooLarge."""
        self._work -= work
        if self._work < 0:
            raise TooLarge("the pickle shows the same values over and over")

    def _spend_bytes(self, size: int) -> None:
        self._byte_budget -= size
        if self._byte_budget < 0:
            raise TooLarge("the pickle shows the same bytes over and over")

    def read(self, at: int, spent: list[int]) -> tuple[Any, int]:
        """The value of the pickle at ``at``, and where it ends. Raises Invalid, TooLarge."""
        machine = Machine(self.data, self, spent)
        try:
            end = machine.run(at)
        finally:
            self.overran = machine.overran  # not the machine itself: in a ring of references the bytes would outlive the scan
        return machine.value, end

    def add(self, rule: str, at: int, why: str) -> None:
        """Report a finding at an offset."""
        self.report.add(rule, f"{self.where}byte {at}", why)

    # -- the judge of a machine

    def find(self, module: str, name: str, at: int) -> Any:  # noqa: ARG002 - the port has it
        """A global must be on a list."""
        key = _RENAMED.get(module, "numpy._core" + module[10:] if module.startswith("numpy.core.") else module), name
        known = key in self._calls or key in CLASSES or key in VALUES
        if not known:
            self.report.add("pickle-global", f"{self.where}{module}.{name}", "not a function or class that models need")
        return Global(*key, known)

    def call(self, target: Any, args: tuple[Any, ...], new: bool, at: int) -> Any:
        """Only listed functions, the way their libraries call them."""
        if not isinstance(target, Global | Made):
            raise Invalid("the pickle calls a value that cannot be called")
        if isinstance(target, Made):
            self.add("pickle-call", at, "something is called that is not named in the pickle")
            return Made(None)
        if not target.known:
            return Made(None)  # its name is a finding already
        self.spend(len(args) + sum(len(value) for value in args[:8] if isinstance(value, list | tuple)))
        name = f"{target.module}.{target.name}"
        if new or target.key not in self._calls:
            if new and target.key in CLASSES and not args:
                return Made(target.key)
            self.add("pickle-call", at, f"{name} is made or called in a way that no library writes")
            return Made(None)
        try:
            return self._calls[target.key](self, args)
        except UnlikeAny as cause:
            self.add(cause.rule, at, f"{name}: {cause}")
            return Made(None)

    def build(self, target: Any, state: Any, at: int) -> int:
        """Only objects made here, with attributes that such an object has."""
        try:
            self._build(target, state)
        except UnlikeAny as cause:
            self.add(cause.rule, at, str(cause))
        return at

    def fill(self, target: Any, keyed: bool, items: list[Any], at: int) -> None:
        """Only dicts of the listed kinds take items."""
        if isinstance(target, Made) and (target.key is None or (keyed and target.key in _DICTS)):
            target.items += len(items)
        elif isinstance(target, Array | DType) and not keyed:
            if items:
                raise Invalid("the pickle appends to a value that does not grow")
        else:
            self.add("pickle-call", at, "items are added to something that is no list, dict or set")

    def persistent(self, pid: Any, at: int) -> Any:  # noqa: ARG002 - the port has it
        """Nothing is outside of a plain pickle."""
        self.add("pickle-extension", at, "an object is taken from outside the file by its persistent id")
        return Made(None)

    def odd(self, rule: str, at: int, why: str) -> None:
        """What the machine finds."""
        self.add(rule, at, why)

    # --

    def _build(self, target: Any, state: Any) -> None:
        self.spend(sum(len(_items(value)) for value in state) if isinstance(state, tuple) and len(state) < 10 else 0)
        if isinstance(target, DType):
            set_dtype(target, state)
        elif isinstance(target, Array):
            data = state[-1] if isinstance(state, tuple) and state else None
            set_array(target, state, self.length(data))
        elif isinstance(target, Global):
            raise UnlikeAny("attributes are set on a function or class", "pickle-state")
        elif not isinstance(target, Made):
            if _sets_something(state):
                raise Invalid("the pickle sets attributes of a value that has none")
            raise UnlikeAny("attributes are set on a value that has none", "pickle-state")
        elif target.key is not None:
            self._set_state(target, state)

    def _set_state(self, target: Made, state: Any) -> None:
        if target.key == ("collections", "OrderedDict"):
            self._check_state(state, frozenset({"_metadata"}))
        elif target.key in CLASSES or target.key in _STATEFUL:
            self._check_state(state, None)
            target.state = state
            if target.key == ("sklearn.tree._tree", "Tree"):
                _check_tree(self, target)
        elif target.key == _SEED and isinstance(state, tuple):
            return
        elif target.key == _GENERATOR:
            inner = state[0] if isinstance(state, tuple) and len(state) == 2 else state
            self._check_state(inner, None)
        else:
            raise UnlikeAny("attributes are set on something that has none", "pickle-state")

    def _check_state(self, state: Any, only: frozenset[str] | None) -> None:
        if not isinstance(state, Table):
            raise UnlikeAny("the attributes of an object are not a dict", "pickle-state")
        self.spend(len(state.pairs))
        for name, value in state.pairs:
            if not isinstance(name, str) or name.startswith("__") or (only is not None and name not in only):
                raise UnlikeAny(f"the attribute {str(name)[:40]!r} is set, which no library does", "pickle-state")
            if (name == "memory" and value is not None) or (name == "input" and (type(value) is not str or value != "content")):
                raise UnlikeAny(f"the attribute {name!r} makes the model read files that others may write", "pickle-state")

    def length(self, value: Any) -> int | None:
        """Bytes that a value holds; of a string in latin-1, as protocols below 3 write bytes. None when it is neither."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, Blob) or value.kind == "int":
            return None
        if value.kind == "bytes":
            return value.length
        if value.begin not in self._lengths:
            self._lengths[value.begin] = self._characters(value)
        return self._lengths[value.begin]

    def _characters(self, value: Blob) -> int:
        if value.kind == "escaped":
            return len(self.content(value))
        raw = np.frombuffer(self.data[value.begin : value.begin + value.length], np.uint8)
        step = 1 << 20
        return sum(int(np.count_nonzero((raw[at : at + step] & 0xC0) != 0x80)) for at in range(0, len(raw), step))

    def content(self, value: Blob | str) -> bytes | memoryview:
        """The bytes that a value stands for. Raises UnlikeAny: it is text that is not latin-1."""
        self._spend_bytes(value.length if isinstance(value, Blob) else len(value))
        if isinstance(value, Blob):
            raw = self.data[value.begin : value.begin + value.length]
            if value.kind == "bytes":
                return raw
        try:
            text = value if isinstance(value, str) else str(raw, "raw-unicode-escape" if value.kind == "escaped" else "utf-8")
            return text.encode("latin-1")
        except UnicodeError as cause:
            raise UnlikeAny("bytes are written as a string that is not latin-1", "pickle-state") from cause


class _Names(PickleJudge):
    """Only asks whether a pickle gets as far as to name something that can be imported."""

    def find(self, module: str, name: str, at: int) -> Any:
        """It does."""
        if not all(part.isidentifier() for part in module.split(".")):
            raise Invalid("no module has such a name")
        raise TooLarge(f"the pickle names {module}.{name} at {at}")

    def persistent(self, pid: Any, at: int) -> Any:
        """Where a pickle begins no loader has objects outside of it."""
        raise Invalid(f"the pickle asks for {pid!r} at {at}, which nobody has")


def loads_as_pickle(data: memoryview) -> bool:
    """Whether a file of another format is a pickle, too: a loader comes to its end, or imports something."""
    if bytes(data[:1]) in (b"P", b"p"):  # what these opcodes need is never there at the begin, however long their line is
        return False
    try:
        _Names(data, Report()).read(0, [0])
    except TooLarge:
        return True
    except Invalid:
        return False
    return True


def _sets_something(state: Any) -> bool:
    """Whether every loader looks for attributes to set; of nothing, or of nothing and slots, some set none without a word."""
    return isinstance(state, str | int | float) and bool(state)


def _items(value: Any) -> Any:
    return value.pairs if isinstance(value, Table) else value if isinstance(value, tuple) else ()


def _ordered(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    """Empty, or from a list of pairs as Python 2 wrote it."""
    pairs = args[0] if len(args) == 1 else []
    if len(args) > 1 or not isinstance(pairs, list) or not all(isinstance(pair, list | tuple) for pair in pairs):
        raise UnlikeAny("it is not made from a list of pairs")
    return Made(("collections", "OrderedDict"), len(pairs))


def _default(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if len(args) > 1 or not all(value is None or (isinstance(value, Global) and value.key in VALUES) for value in args):
        raise UnlikeAny("its factory is no plain type")
    return Made(("collections", "defaultdict"))


def _counter(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if len(args) > 1 or not all(isinstance(value, Table) for value in args):
        raise UnlikeAny("it is not made from a dict")
    return Made(("collections", "Counter"))


def _bag(_judge: PickleJudge, args: tuple[Any, ...]) -> Bag:
    if len(args) > 1 or not all(isinstance(value, list | tuple) for value in args):
        raise UnlikeAny("it is not made from a list")
    return Bag()


def _bytearray(judge: PickleJudge, args: tuple[Any, ...]) -> Any:
    if not args:
        return Blob("bytes", 0, 0)
    if len(args) > 2 or judge.length(args[0]) is None or args[1:] not in ((), ("latin-1",)):
        raise UnlikeAny("it is not made from bytes")
    return args[0] if isinstance(args[0], Blob) else Made(("builtins", "bytearray"))


def _bytes(_judge: PickleJudge, args: tuple[Any, ...]) -> Blob:
    if args:
        raise UnlikeAny("it is made from something")
    return Blob("bytes", 0, 0)


def _numbers(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if not 1 <= len(args) <= 3 or not all(value is None or type(value) in (int, float) for value in args):
        raise UnlikeAny("it is not made from numbers")
    return Made(("builtins", "complex"))


def _encode(judge: PickleJudge, args: tuple[Any, ...]) -> Any:
    """Bytes as protocols below 3 write them; the string stays, its length in latin-1 is that of the bytes."""
    if len(args) != 2 or args[1] != "latin1" or judge.length(args[0]) is None:
        raise UnlikeAny("it is called for something else than bytes")
    return args[0]


def _reconstructor(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    cls, base, state = args if len(args) == 3 else (None, None, None)
    plain = isinstance(base, Global) and base.key == ("builtins", "object") and state is None
    if not plain or not isinstance(cls, Global) or cls.key not in CLASSES:
        raise UnlikeAny("it makes something else than an object of a listed class")
    return Made(cls.key)


def _dtype(_judge: PickleJudge, args: tuple[Any, ...]) -> DType:
    return make_dtype(args)


def _reconstruct(judge: PickleJudge, args: tuple[Any, ...]) -> Array:
    """``_reconstruct(ndarray, (0,), b'b')``."""
    cls, shape, code = args if len(args) == 3 else (None, None, None)
    of_arrays = isinstance(cls, Global) and cls.key == ("numpy", "ndarray")
    if not of_arrays or shape != (0,) or judge.length(code) != 1:
        raise UnlikeAny("it makes something else than an empty array")
    return Array()


def _scalar(judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    dtype, data = args if len(args) == 2 else (None, None)
    if not isinstance(dtype, DType) or dtype.kind in "OV" or judge.length(data) != dtype.size:
        raise UnlikeAny("a number does not have the bytes that its type needs", "size")
    return Made(("numpy", "generic"))


def _frombuffer(judge: PickleJudge, args: tuple[Any, ...]) -> Array:
    data, dtype, shape, order = args if len(args) == 4 else (None, None, None, None)
    if not isinstance(dtype, DType) or dtype.kind == "O" or order not in ("C", "F", "A") or not isinstance(data, Blob):
        raise UnlikeAny("an array is made in a way that numpy does not write")
    array = Array()
    set_array(array, (shape, dtype, False, data), judge.length(data))
    return array


def _bit_generator(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    """By name, or by the class; other callables would be called."""
    for value in args:
        of_class = isinstance(value, Global) and (value.key in VALUES or value.key == _GENERATOR)
        made = isinstance(value, Made) and value.key == _GENERATOR
        if not of_class and not made and value not in ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"):
            raise UnlikeAny("it makes something else than a random generator")
    return Made(_GENERATOR)


def _random_state(judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    _bit_generator(judge, args)
    return Made(("numpy.random._pickle", "__randomstate_ctor"))


def _seed(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    """``__pyx_unpickle_SeedSequence(SeedSequence, checksum, state)``."""
    cls, checksum, state = args if len(args) == 3 else (None, None, None)
    of_seeds = isinstance(cls, Global) and cls.key == ("numpy.random.bit_generator", "SeedSequence")
    if not of_seeds or not whole(checksum) or not (state is None or isinstance(state, tuple)):
        raise UnlikeAny("it makes something else than a seed")
    return Made(_SEED)


def _date(judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if not args or not all(type(value) is int or judge.length(value) in (2, 3, 4, 6, 10) for value in args):
        raise UnlikeAny("it is not made from the parts of a date")
    return Made(("datetime", "datetime"))


def _native(name: str) -> Call:
    """An object of scikit-learn's C code: from numbers and arrays alone."""

    def made(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
        if not all(value is None or isinstance(value, bool | int | float | Array) for value in args):
            raise UnlikeAny("it is not made from numbers and arrays")
        return Made(("sklearn.tree._tree", "Tree") if name == "Tree" else ("sklearn", name), args=args)

    return made


def _check_tree(judge: PickleJudge, tree: Made) -> None:
    """The C code of a tree follows its child indices unchecked: each must be a later node, or none."""
    pairs = tree.state.pairs if tree.state else []
    state = dict(pairs[:16])
    nodes, features = state.get("nodes"), tree.args[0] if tree.args else None
    plain = isinstance(nodes, Array) and nodes.dtype is not None and nodes.data is not None and len(state) == len(pairs)
    if not plain or not isinstance(nodes, Array) or not whole(features):
        raise UnlikeAny("a tree has no nodes", "pickle-state")
    count = nodes.shape[0] if len(nodes.shape) == 1 else -1
    if state.get("node_count") != count:
        raise UnlikeAny("a tree does not have as many nodes as it says", "size")
    left, right, feature = (_column(judge, nodes, name) for name in ("left_child", "right_child", "feature"))
    own = np.arange(max(count, 0))
    leaf = left == -1
    inner = (left > own) & (left < count) & (right > own) & (right < count) & (feature >= 0) & (feature < features)
    if not np.all(leaf | inner):
        raise UnlikeAny("a node of a tree points outside of it", "size")


def _column(judge: PickleJudge, nodes: Array, name: str) -> Any:
    inner, offset = (nodes.dtype.fields or {}).get(name, (None, 0)) if nodes.dtype else (None, 0)
    if inner is None or nodes.dtype is None or nodes.data is None or (inner.kind, inner.size) != ("i", 8):
        raise UnlikeAny("the nodes of a tree have no such column", "pickle-state")
    raw = np.frombuffer(judge.content(nodes.data), np.uint8)
    rows = raw.reshape(-1, nodes.dtype.size)[:, offset : offset + 8]
    return np.ascontiguousarray(rows).view("<i8")[:, 0]


_STATEFUL = {("sklearn.tree._tree", "Tree"), ("numpy.random._pickle", "__randomstate_ctor")}

CALLS: Mapping[Key, Call] = {
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): _default,
    ("collections", "Counter"): _counter,
    ("builtins", "set"): _bag,
    ("builtins", "frozenset"): _bag,
    ("builtins", "bytearray"): _bytearray,
    ("builtins", "bytes"): _bytes,
    ("builtins", "complex"): _numbers,
    ("builtins", "slice"): _numbers,
    ("builtins", "range"): _numbers,
    ("_codecs", "encode"): _encode,
    ("copyreg", "_reconstructor"): _reconstructor,
    ("datetime", "datetime"): _date,
    ("datetime", "date"): _date,
    ("datetime", "timedelta"): _date,
    ("numpy", "dtype"): _dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    _SEED: _seed,
    _GENERATOR: _bit_generator,
    ("numpy.random._pickle", "__randomstate_ctor"): _random_state,
    ("numpy.random._pickle", "__generator_ctor"): _bit_generator,
    **{key: _native(key[1]) for key in _listed(sklearn_names.CALLS)},
}
"""What may be called."""
