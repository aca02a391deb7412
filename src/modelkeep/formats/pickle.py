"""Read a pickle's opcodes without running it: values are symbols, and whoever judges is told what a loader would do.

Invalid is raised only where every loader fails too, so that nothing can hide behind it; what is not followed is TooLarge.

Source: CPython's ``pickletools`` (protocols 0 to 5) and ``Modules/_pickle.c``, whose stack, marks and memo are followed
exactly. One pass, no recursion, nothing copied but short strings. Opcodes that no library writes are refused or reported.
"""

import struct
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from modelkeep.errors import Invalid, TooLarge

MAX_OPS = 400_000
MAX_TEXT = 256
MAX_INTEGER = 1024
MAX_LINE = 1 << 24

_NEVER = 1 << 62
_F64 = struct.Struct(">d")
_I32 = struct.Struct("<i")


class Blob(msgspec.Struct, frozen=True, gc=False):
    """What lies in the file and is not kept. ``kind``: bytes, text (UTF-8), escaped (text as protocol 0 has it), int."""

    kind: str
    begin: int
    length: int


class Table:
    """A dict, as pairs in the order of the pickle: nothing is hashed, so that no choice of keys is slow."""

    __slots__ = ("pairs",)

    def __init__(self) -> None:
        self.pairs: list[tuple[Any, Any]] = []


class Bag:
    """A set or frozenset; what is in it is only counted."""

    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 0


_FIXED = (str, int, float, tuple, type(None))
"""Values that have neither items to set nor a method to add any."""


class Judge(Protocol):
    """Is told, at the moment it would happen, what a loader does; answers with the value that stands for the outcome.

    Values are None, bool, int, float, str, tuple, list, Blob, Table, Bag, and whatever the judge answered before.
    """

    def find(self, module: str, name: str, at: int) -> Any:
        """A global is imported."""
        ...

    def call(self, target: Any, args: tuple[Any, ...], new: bool, at: int) -> Any:
        """``target(*args)``, or with ``new`` ``target.__new__(target, *args)``."""
        ...

    def build(self, target: Any, state: Any, at: int) -> int:
        """``target.__setstate__(state)`` or its like, at the opcode before ``at``. Returns where reading goes on: ``at``."""
        ...

    def fill(self, target: Any, keyed: bool, items: list[Any], at: int) -> None:
        """Items are added to what is no plain list or dict; ``keyed``: by ``__setitem__``, keys and values in turn."""
        ...

    def persistent(self, pid: Any, at: int) -> Any:
        """An object is taken from outside the pickle by its id."""
        ...

    def odd(self, rule: str, at: int, why: str) -> None:
        """Something that no library writes. ``rule``: pickle-opcode or pickle-extension."""
        ...


class Machine:
    """Reads one pickle of ``data`` from ``at`` on. ``ops``: opcodes read, by all machines that share ``spent``."""

    def __init__(self, data: memoryview, judge: Judge, spent: list[int]) -> None:
        self._data = data
        self._judge = judge
        self._spent = spent
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._frame = _NEVER
        self._reach = 0
        self.value: Any = None

    def run(self, at: int) -> int:
        """Read up to and with STOP; where that ends. Raises Invalid (malformed, cut off), TooLarge (too many opcodes)."""
        first, table = at, {code: getattr(self, name) for code, name in _METHODS.items()}
        data, end, spent = self._data, len(self._data), self._spent
        while at < end:
            code = data[at]
            if code == 0x2E:
                return self._stop(at + 1)
            step = table.get(code)
            if step is None:
                raise Invalid(f"the pickle has an unknown opcode {code:#04x} at {at}")
            if code == 0x80 and at != first:
                self._judge.odd("pickle-opcode", at, "a protocol is named in the middle of the pickle")
            spent[0] += 1
            if spent[0] > MAX_OPS:
                raise TooLarge(f"the pickle has more than {MAX_OPS} opcodes")
            at = step(at + 1)
            if at >= self._frame:
                if at > self._frame:  # Python's C code then drops what is left of the frame, if it reads from a file
                    raise TooLarge(f"an opcode before byte {at} of the pickle runs over the end of its frame")
                self._frame = _NEVER
        raise Invalid("the pickle is cut off: it has no end")

    # -- reading arguments

    def _take(self, at: int, size: int) -> int:
        self._reach = at + size
        if size > len(self._data) - at:
            self._reach = 1 << 65
            raise Invalid("the pickle is cut off: a value is longer than the file")
        return at + size

    def _number(self, at: int, width: int) -> tuple[int, int]:
        end = self._take(at, width)
        return int.from_bytes(self._data[at:end], "little"), end

    def _line(self, at: int) -> tuple[bytes, int]:
        size = 64
        while True:
            raw = bytes(self._data[at : at + size])
            end = raw.find(b"\n")
            if end >= 0:
                self._reach = at + end + 1
                return raw[:end], at + end + 1
            if len(raw) < size:
                self._reach = 1 << 65
                raise Invalid("the pickle is cut off in a line")
            if size >= MAX_LINE:
                raise TooLarge(f"the pickle has a line of more than {MAX_LINE} bytes")
            size *= 8

    def _text_line(self, at: int) -> tuple[str, int]:
        raw, at = self._line(at)
        try:
            return raw.decode(), at
        except UnicodeDecodeError as cause:
            raise Invalid("the pickle has a name that is not text") from cause

    # -- the stack

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Invalid("the pickle takes more from its stack than is there")
        return self._stack.pop()

    def _top(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise Invalid("the pickle takes more from its stack than is there")
        return self._stack[-1]

    def _cut(self) -> list[Any]:
        if not self._marks:
            raise Invalid("the pickle takes a mark from its stack that is not there")
        mark = self._marks.pop()
        items = self._stack[mark:]
        del self._stack[mark:]
        return items

    def _stop(self, at: int) -> int:
        self.value = self._pop()
        if self._stack or self._marks:
            self._judge.odd("pickle-opcode", at, "values are left over at the end of the pickle")
        if self._frame not in (_NEVER, at):
            self._judge.odd("pickle-opcode", at, "the last frame does not end where the pickle does")
        return at

    # -- constants

    def proto(self, at: int) -> int:
        version, at = self._number(at, 1)
        if version > 5:
            raise Invalid(f"pickle protocol {version} is not known")
        return at

    def frame(self, at: int) -> int:
        size, at = self._number(at, 8)
        if self._frame != _NEVER:
            raise TooLarge(f"a frame of the pickle begins within a frame, before byte {at}")
        self._frame = at + size
        self._take(at, size)
        return at

    @property
    def overran(self) -> bool:
        """Whether the last argument lies across the end of a frame, or of the file: loaders differ in what they then read."""
        return self._frame != _NEVER and self._reach > self._frame

    def none(self, at: int) -> int:
        self._push(None)
        return at

    def true(self, at: int) -> int:
        self._push(True)
        return at

    def false(self, at: int) -> int:
        self._push(False)
        return at

    def int_line(self, at: int) -> int:
        raw, end = self._line(at)
        if raw in (b"00", b"01"):
            self._push(raw == b"01")
        else:
            self._decimal(raw.removesuffix(b"L"), at)
        return end

    def _decimal(self, raw: bytes, at: int) -> None:
        digits = raw.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 40:
            self._judge.odd("pickle-opcode", at, "an integer is written in a way that no library writes")
            self._push(Blob("int", at, len(raw)))
        else:
            self._push(int(raw))

    def int4(self, at: int) -> int:
        end = self._take(at, 4)
        self._push(_I32.unpack_from(self._data, at)[0])
        return end

    def int1(self, at: int) -> int:
        value, at = self._number(at, 1)
        self._push(value)
        return at

    def int2(self, at: int) -> int:
        value, at = self._number(at, 2)
        self._push(value)
        return at

    def long1(self, at: int) -> int:
        size, at = self._number(at, 1)
        return self._long(at, size)

    def long4(self, at: int) -> int:
        size, at = self._number(at, 4)
        return self._long(at, size)

    def _long(self, at: int, size: int) -> int:
        end = self._take(at, size)
        if size > MAX_INTEGER:
            self._judge.odd("pickle-opcode", at, f"an integer of {size} bytes")
        self._push(int.from_bytes(self._data[at:end], "little", signed=True) if size <= 16 else Blob("int", at, size))
        return end

    def float_line(self, at: int) -> int:
        raw, end = self._line(at)
        try:
            self._push(float(raw.split(b"\0")[0]))  # C reads up to a NUL
        except ValueError as cause:
            raise Invalid("the pickle has a malformed number") from cause
        return end

    def float8(self, at: int) -> int:
        end = self._take(at, 8)
        self._push(_F64.unpack_from(self._data, at)[0])
        return end

    def string_line(self, at: int) -> int:
        raw, end = self._line(at)
        if len(raw) < 2 or raw[:1] != raw[-1:] or raw[:1] not in (b"'", b'"'):
            raise Invalid("the pickle has a string without quotes")
        plain = b"\\" not in raw and raw.isascii() and len(raw) <= MAX_TEXT
        self._push(raw[1:-1].decode("ascii") if plain else Blob("text", at, len(raw)))
        return end

    def unicode_line(self, at: int) -> int:
        raw, end = self._line(at)
        try:
            text = raw.decode("raw-unicode-escape")
        except UnicodeDecodeError as cause:
            raise Invalid("the pickle has a string that is not text") from cause
        self._push(text if len(text) <= MAX_TEXT else Blob("escaped", at, len(raw)))
        return end

    def _text(self, at: int, size: int, encoding: str) -> int:
        end = self._take(at, size)
        if size > MAX_TEXT:
            self._push(Blob("text", at, size))
            return end
        try:
            self._push(str(self._data[at:end], encoding, "surrogatepass" if encoding == "utf-8" else "strict"))
        except UnicodeDecodeError:
            self._push(Blob("text", at, size))
        return end

    def text1(self, at: int) -> int:
        size, at = self._number(at, 1)
        return self._text(at, size, "utf-8")

    def text4(self, at: int) -> int:
        size, at = self._number(at, 4)
        return self._text(at, size, "utf-8")

    def text8(self, at: int) -> int:
        size, at = self._number(at, 8)
        return self._text(at, size, "utf-8")

    def string1(self, at: int) -> int:
        size, at = self._number(at, 1)
        return self._text(at, size, "ascii")

    def string4(self, at: int) -> int:
        size, at = self._number(at, 4)
        return self._text(at, size, "ascii")

    def bytes1(self, at: int) -> int:
        return self._bytes(at, 1)

    def bytes4(self, at: int) -> int:
        return self._bytes(at, 4)

    def bytes8(self, at: int) -> int:
        return self._bytes(at, 8)

    def _bytes(self, at: int, width: int) -> int:
        size, at = self._number(at, width)
        end = self._take(at, size)
        self._push(Blob("bytes", at, size))
        return end

    def buffer(self, at: int) -> int:
        raise Invalid(f"the pickle takes a buffer from outside the file at {at}")

    def readonly(self, at: int) -> int:
        self._judge.odd("pickle-opcode", at, "a buffer is made read-only, of which the file has none")
        self._top()
        return at

    # -- containers

    def mark(self, at: int) -> int:
        self._marks.append(len(self._stack))
        return at

    def empty_tuple(self, at: int) -> int:
        self._push(())
        return at

    def tuple_(self, at: int) -> int:
        self._push(tuple(self._cut()))
        return at

    def tuple1(self, at: int) -> int:
        self._push((self._pop(),))
        return at

    def tuple2(self, at: int) -> int:
        second = self._pop()
        self._push((self._pop(), second))
        return at

    def tuple3(self, at: int) -> int:
        third, second = self._pop(), self._pop()
        self._push((self._pop(), second, third))
        return at

    def empty_list(self, at: int) -> int:
        self._push([])
        return at

    def list_(self, at: int) -> int:
        self._push(self._cut())
        return at

    def append(self, at: int) -> int:
        self._extend([self._pop()], at)
        return at

    def appends(self, at: int) -> int:
        self._extend(self._cut(), at)
        return at

    def _extend(self, items: list[Any], at: int) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, (*_FIXED, Table, Bag)):
            if items:  # else no loader looks at the value
                raise Invalid("the pickle appends to a value that does not grow")
        else:
            self._judge.fill(target, False, items, at)

    def empty_dict(self, at: int) -> int:
        self._push(Table())
        return at

    def dict_(self, at: int) -> int:
        items, table = self._cut(), Table()
        self._put(table, items, at)
        self._push(table)
        return at

    def setitem(self, at: int) -> int:
        value, key = self._pop(), self._pop()
        self._put(self._top(), [key, value], at)
        return at

    def setitems(self, at: int) -> int:
        items = self._cut()
        self._put(self._top(), items, at)
        return at

    def _put(self, target: Any, items: list[Any], at: int) -> None:
        if len(items) % 2:
            raise Invalid("the pickle has a key without a value")
        if isinstance(target, Table):
            target.pairs.extend(zip(items[::2], items[1::2], strict=True))
        elif isinstance(target, (*_FIXED, Bag)):
            if items:
                raise Invalid("the pickle sets items of a value that has none")
        else:
            self._judge.fill(target, True, items, at)

    def empty_set(self, at: int) -> int:
        self._push(Bag())
        return at

    def additems(self, at: int) -> int:
        items = self._cut()
        target = self._top()
        if isinstance(target, Bag):
            target.size += len(items)
        elif isinstance(target, (*_FIXED, Table, list)):
            if items:
                raise Invalid("the pickle adds to a value that is no set")
        else:
            self._judge.fill(target, False, items, at)
        return at

    def frozenset_(self, at: int) -> int:
        bag = Bag()
        bag.size = len(self._cut())
        self._push(bag)
        return at

    # -- stack and memo

    def pop(self, at: int) -> int:
        if self._marks and self._marks[-1] == len(self._stack):
            self._marks.pop()
        else:
            self._pop()
        return at

    def dup(self, at: int) -> int:
        self._judge.odd("pickle-opcode", at, "a value is duplicated, which no library does")
        self._push(self._top())
        return at

    def pop_mark(self, at: int) -> int:
        self._cut()
        return at

    def get_line(self, at: int) -> int:
        raw, end = self._line(at)
        return self._get(self._index(raw), end)

    def get1(self, at: int) -> int:
        index, at = self._number(at, 1)
        return self._get(index, at)

    def get4(self, at: int) -> int:
        index, at = self._number(at, 4)
        return self._get(index, at)

    def _get(self, index: int, at: int) -> int:
        if index not in self._memo:
            raise Invalid("the pickle takes from its memo what is not there")
        self._push(self._memo[index])
        return at

    def put_line(self, at: int) -> int:
        raw, end = self._line(at)
        return self._remember(self._index(raw), end)

    @staticmethod
    def _index(raw: bytes) -> int:
        """C reads up to a NUL, and takes spaces, signs and underscores: what no library writes is not followed."""
        try:
            index = int(raw.split(b"\0")[0])
        except ValueError as cause:
            raise Invalid("the pickle has a memo entry whose number is none") from cause
        if not raw.isdigit() or len(raw) > 10:
            raise TooLarge("the pickle writes the number of a memo entry in a way that no library does")
        return index

    def put1(self, at: int) -> int:
        index, at = self._number(at, 1)
        return self._remember(index, at)

    def put4(self, at: int) -> int:
        index, at = self._number(at, 4)
        return self._remember(index, at)

    def memoize(self, at: int) -> int:
        return self._remember(len(self._memo), at)

    def _remember(self, index: int, at: int) -> int:
        if index in self._memo:
            self._judge.odd("pickle-opcode", at, "a memo entry is written twice")
        if index > len(self._memo) + 1:  # cPickle of Python 2 counted from 1
            self._judge.odd("pickle-opcode", at, "a memo entry is far beyond the others")
        self._memo[index] = self._top()
        return at

    # -- what reaches outside

    def ext1(self, at: int) -> int:
        return self._extension(at, 1)

    def ext2(self, at: int) -> int:
        return self._extension(at, 2)

    def ext4(self, at: int) -> int:
        return self._extension(at, 4)

    def _extension(self, at: int, width: int) -> int:
        code, end = self._number(at, width)
        self._judge.odd("pickle-extension", at, f"an object is taken from the extension registry by its code {code}")
        self._push(self._judge.find("copyreg", "<extension>", at))
        return end

    def global_(self, at: int) -> int:
        module, end = self._text_line(at)
        name, end = self._text_line(end)
        self._push(self._judge.find(module, name, at))
        return end

    def stack_global(self, at: int) -> int:
        name, module = self._pop(), self._pop()
        if any(isinstance(value, Blob) and value.kind in ("text", "escaped") for value in (name, module)):
            raise TooLarge("the pickle names a global by a string that is too long, or written with escapes")
        if not isinstance(name, str) or not isinstance(module, str):
            raise Invalid("the pickle names a global by something that is not a string")
        self._push(self._judge.find(module, name, at))
        return at

    def reduce(self, at: int) -> int:
        args = self._pop()
        self._push(self._judge.call(self._pop(), self._tuple(args), False, at))
        return at

    def newobj(self, at: int) -> int:
        args = self._pop()
        self._push(self._judge.call(self._pop(), self._tuple(args), True, at))
        return at

    def newobj_ex(self, at: int) -> int:
        named, args = self._pop(), self._tuple(self._pop())
        if isinstance(named, (*_FIXED, Bag, Blob, list)):
            raise Invalid("the pickle makes an object with named arguments that are no dict")
        if not isinstance(named, Table):
            raise TooLarge("the pickle makes an object with named arguments that are some kind of dict")
        if named.pairs:
            self._judge.odd("pickle-call", at, "an object is made with named arguments")
        self._push(self._judge.call(self._pop(), args, True, at))
        return at

    def inst(self, at: int) -> int:
        module, end = self._text_line(at)
        name, end = self._text_line(end)
        self._push(self._judge.call(self._judge.find(module, name, at), tuple(self._cut()), False, at))
        return end

    def obj(self, at: int) -> int:
        items = self._cut()
        if not items:
            raise Invalid("the pickle makes an object of no class")
        self._push(self._judge.call(items[0], tuple(items[1:]), False, at))
        return at

    def build(self, at: int) -> int:
        state = self._pop()
        end = self._judge.build(self._top(), state, at)
        if end != at and self._frame not in (_NEVER, at):
            raise TooLarge("the bytes of an array begin within a frame: its loader would take those after the frame")
        if end != at:
            self._frame = _NEVER
        return end

    def persid(self, at: int) -> int:
        name, end = self._text_line(at)
        self._push(self._judge.persistent(name, at))
        return end

    def binpersid(self, at: int) -> int:
        self._push(self._judge.persistent(self._pop(), at))
        return at

    @staticmethod
    def _tuple(args: Any) -> tuple[Any, ...]:
        if args is None or isinstance(args, int | float):
            raise Invalid("the pickle calls something with arguments that are not a tuple")
        if not isinstance(args, tuple):  # some loaders take whatever has items
            raise TooLarge("the pickle calls something with arguments that are not a plain tuple")
        return args


Step = Callable[[int], int]
_METHODS = {
    0x80: "proto", 0x95: "frame", ord("N"): "none", 0x88: "true", 0x89: "false", ord("I"): "int_line", ord("J"): "int4",
    ord("K"): "int1", ord("M"): "int2", ord("L"): "int_line", 0x8A: "long1", 0x8B: "long4", ord("F"): "float_line",
    ord("G"): "float8", ord("S"): "string_line", ord("T"): "string4", ord("U"): "string1", ord("V"): "unicode_line",
    ord("X"): "text4", 0x8C: "text1", 0x8D: "text8", ord("B"): "bytes4", ord("C"): "bytes1", 0x8E: "bytes8",
    0x96: "bytes8", 0x97: "buffer", 0x98: "readonly", ord("("): "mark", ord(")"): "empty_tuple", ord("t"): "tuple_",
    0x85: "tuple1", 0x86: "tuple2", 0x87: "tuple3", ord("]"): "empty_list", ord("l"): "list_", ord("a"): "append",
    ord("e"): "appends", ord("}"): "empty_dict", ord("d"): "dict_", ord("s"): "setitem", ord("u"): "setitems",
    0x8F: "empty_set", 0x90: "additems", 0x91: "frozenset_", ord("0"): "pop", ord("2"): "dup", ord("1"): "pop_mark",
    ord("g"): "get_line", ord("h"): "get1", ord("j"): "get4", ord("p"): "put_line", ord("q"): "put1", ord("r"): "put4",
    0x94: "memoize", 0x82: "ext1", 0x83: "ext2", 0x84: "ext4", ord("c"): "global_", 0x93: "stack_global",
    ord("R"): "reduce", ord("b"): "build", ord("i"): "inst", ord("o"): "obj", 0x81: "newobj", 0x92: "newobj_ex",
    ord("P"): "persid", ord("Q"): "binpersid",
}  # fmt: skip
"""Every opcode but STOP."""
