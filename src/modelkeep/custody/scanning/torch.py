"""What PyTorch files may hold: tensors, parameters and plain data; every tensor within its storage, every byte accounted for.

Source: ``torch.serialization`` (zip and legacy formats) and ``torch._weights_only_unpickler``, whose list of globals is longer.
"""

import re
from typing import Any

from modelkeep.custody.scanning.archives import Opened, open_archive
from modelkeep.custody.scanning.pickles import CALLS, Call, Key, PickleJudge
from modelkeep.custody.scanning.rules import Report
from modelkeep.custody.scanning.symbols import Global, Made, Storage, UnlikeAny, check_shape, whole
from modelkeep.errors import Invalid
from modelkeep.formats.pickle import Table

MAX_PICKLE = 32 << 20
MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
MAX_STRIDES = 64

_WIDTHS = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1,
    "ComplexDouble": 16, "ComplexFloat": 8,
}  # fmt: skip
_DTYPES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1,
    "uint16": 2, "uint32": 4, "uint64": 8, "bool": 1, "complex64": 8, "complex128": 16, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1, "float8_e8m0fnu": 1,
}  # fmt: skip
_PLACE = re.compile(r"[a-z]{1,16}(:\d{1,3})?\Z")
_KEY = re.compile(r"[0-9]{1,20}\Z")
_SMALL = frozenset({"version", "byteorder", ".format_version", ".storage_alignment", ".data/serialization_id"})


class _TorchJudge(PickleJudge):
    """Knows tensors. ``storages``: what the pickle refers to, by key; ``finding`` takes a storage when it is first named."""

    def __init__(self, data: memoryview, report: Report, where: str) -> None:
        super().__init__(data, report, where, TORCH_CALLS)
        self.storages: dict[str, Storage] = {}

    def find(self, module: str, name: str, at: int) -> Any:
        width = _WIDTHS.get(name.removesuffix("Storage")) if name.endswith("Storage") else _DTYPES.get(name)
        if (module == "torch" and width) or (module, name) == ("torch.storage", "UntypedStorage"):
            return Global(module, name, True)
        return super().find(module, name, at)

    def persistent(self, pid: Any, at: int) -> Any:
        """``('storage', type, key, location, count)``, and in old files the view, which must be None."""
        try:
            return self._storage(pid)
        except UnlikeAny as cause:
            self.add(cause.rule, at, str(cause))
            return Made(None)

    def _storage(self, pid: Any) -> Storage:
        if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or pid[5:] not in ((), (None,)):
            raise UnlikeAny("an object is taken from outside the pickle that is no storage", "pickle-extension")
        _, kind, key, place, count = pid[:5]
        if not isinstance(kind, Global) or not kind.known or not isinstance(key, str) or not whole(count):
            raise UnlikeAny("a storage is of an unknown form", "torch-storage")
        if not isinstance(place, str) or not _PLACE.match(place) or not _KEY.match(key):
            raise UnlikeAny("a storage has a place or key that PyTorch does not write", "torch-storage")
        width = _WIDTHS.get(kind.name.removesuffix("Storage")) if kind.module == "torch" else 1
        storage = Storage(width or 0, count)
        known = self.storages.setdefault(key, storage)
        if not width or known.size * known.count != storage.size * storage.count:
            raise UnlikeAny("a storage is of an unknown type, or named twice with different sizes", "torch-storage")
        return storage


def _tensor(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    """``_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])``, and v3 with a dtype."""
    if len(args) < 4 or not isinstance(args[0], Storage):
        raise UnlikeAny("a tensor is made from no storage", "torch-storage")
    storage, offset, size, stride = args[0], args[1], check_shape(args[2]), check_shape(args[3])
    _check_view(storage, offset, size, stride)
    for extra in args[4:]:
        plain = extra is None or isinstance(extra, bool) or (isinstance(extra, Global) and extra.name in _DTYPES)
        hooks = isinstance(extra, Made) and extra.key == ("collections", "OrderedDict") and not extra.items
        if not plain and not hooks and not (isinstance(extra, Table) and not extra.pairs):
            raise UnlikeAny("a tensor comes with hooks or metadata")
    return Made(("torch", "Tensor"))


def _tensor3(judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    """The same over bytes, with the dtype as seventh argument; offset and strides count elements."""
    dtype = args[6] if len(args) >= 7 else None
    if not isinstance(dtype, Global) or dtype.name not in _DTYPES or not isinstance(args[0], Storage):
        raise UnlikeAny("a tensor is made from no storage, or of no type", "torch-storage")
    width = _DTYPES[dtype.name]
    return _tensor(judge, (Storage(width, args[0].size * args[0].count // width), *args[1:]))


def _check_view(storage: Storage, offset: Any, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
    if not whole(offset) or len(size) != len(stride):
        raise UnlikeAny("a tensor has no such offset, or not a stride for each extent", "torch-storage")
    elements, last = 1, offset
    for extent, step in zip(size, stride, strict=True):
        elements *= extent
        last += (extent - 1) * step if extent else 0
    if elements and (last >= storage.count or elements > storage.count):
        raise UnlikeAny("a tensor is larger than its storage, or lies outside of it", "torch-storage")


def _parameter(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    tensor, grad, hooks = args if len(args) == 3 else (None, None, None)
    of_tensor = isinstance(tensor, Made) and tensor.key in (("torch", "Tensor"), None)
    if not of_tensor or not isinstance(grad, bool) or not isinstance(hooks, Made) or hooks.items:
        raise UnlikeAny("a parameter is not made from a tensor without hooks")
    return Made(("torch", "Tensor"))


def _size(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if len(args) != 1 or not whole(*(args[0] if isinstance(args[0], tuple | list) else (None,))):
        raise UnlikeAny("it is not made from whole numbers")
    return Made(("torch", "Size"))


def _device(_judge: PickleJudge, args: tuple[Any, ...]) -> Made:
    if not args or len(args) > 2 or not isinstance(args[0], str) or not _PLACE.match(args[0]) or not whole(*args[1:]):
        raise UnlikeAny("it is not made from the name of a device")
    return Made(("torch", "device"))


TORCH_CALLS: dict[Key, Call] = {
    **CALLS,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor3,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch", "Size"): _size,
    ("torch", "device"): _device,
}


def scan_torch_zip(data: memoryview, report: Report) -> None:
    """Judge an archive: ``NAME/data.pkl``, ``NAME/data/KEY`` for each storage, and small notes. Raises Invalid, TooLarge."""
    opened = open_archive(data, report)
    prefix, seen = opened.members[0].name.split("/")[0] + "/" if opened.members else "", set[str]()
    judge: _TorchJudge | None = None
    sizes: dict[str, int] = {}
    for member in opened.members:
        name = member.name.removeprefix(prefix)
        if name.casefold() in seen:
            report.add("zip-duplicate", member.name, "the archive has two members of this name, but for capitals")
        seen.add(name.casefold())
        if name == "data.pkl" and member.name != name:
            judge = _read_pickle(opened, member.size, opened.unpack(member, min(member.size, MAX_PICKLE)), report)
        elif name.startswith("data/") and member.name != name:
            sizes[name.removeprefix("data/")] = member.size
            opened.unpack(member, 0)
        else:
            _judge_other(member.name, name, opened.unpack(member, 64), member.size, report)
    if judge is None:
        report.add("malformed", "data.pkl", "the archive has no pickle in it that is called data.pkl")
    else:
        _compare(judge.storages, sizes, report)


def _read_pickle(opened: Opened, size: int, raw: bytes | None, report: Report) -> _TorchJudge | None:
    if raw is None or size > min(MAX_PICKLE, len(opened.archive.data) + MAX_PICKLE):
        report.add("too-large", "data.pkl", "the pickle could not be unpacked, or is too large")
        return None
    judge = _TorchJudge(memoryview(raw), report, "data.pkl ")
    end = judge.read(0, [0])[1]
    if end != len(raw):
        report.add("trailing-data", f"data.pkl byte {end}", "bytes follow the end of the pickle")
    return judge


def _judge_other(full: str, name: str, raw: bytes | None, size: int, report: Report) -> None:
    if name.startswith("code/") or name == "constants.pkl" or name.endswith((".py", ".debug_pkl")):
        report.add("torch-code", full, "the archive holds TorchScript code: save the state_dict alone")
    elif name not in _SMALL or full == name or size > 64 or raw is None or not raw.isascii() or b"\x80" in raw:
        report.add("zip-member", full, "PyTorch writes no such member")
    elif name == "byteorder" and raw != b"little":
        report.add("zip-member", full, "the tensors are not in little-endian order")


def _compare(storages: dict[str, Storage], sizes: dict[str, int], report: Report) -> None:
    for key, storage in storages.items():
        if sizes.get(key) != storage.size * storage.count:
            report.add("torch-storage", f"data/{key}", "a storage does not have the bytes that its tensors say")
    for key in sizes.keys() - storages.keys():
        report.add("zip-member", f"data/{key}", "no tensor refers to this storage")


def scan_torch_legacy(data: memoryview, report: Report) -> None:
    """Judge a file of before PyTorch 1.6: five pickles, then count and bytes of each storage. Raises Invalid, TooLarge."""
    judge, spent = _TorchJudge(data, report, ""), [0]
    at, parts = 0, []
    for _ in range(5):
        value, at = judge.read(at, spent)
        parts.append(value)
    magic, protocol, system, _, keys = parts
    if magic != MAGIC or protocol != PROTOCOL or not isinstance(system, Table) or not _all_keys(keys):
        raise Invalid("the parts of the PyTorch file are not those that PyTorch writes")
    if ("little_endian", True) not in [pair for pair in system.pairs[:16] if isinstance(pair[0], str)]:
        report.add("malformed", "header", "the tensors are not in little-endian order")
    for key in keys:
        storage = judge.storages.get(key)
        count = int.from_bytes(data[at : at + 8], "little")
        if storage is None or len(data) < at + 8 or count != storage.count:
            raise Invalid("a storage of the PyTorch file is cut off, or is not the one that its tensors say")
        at += 8 + count * storage.size
    if at != len(data) or len(keys) != len(judge.storages):
        report.add("trailing-data", f"byte {min(at, len(data))}", "the file does not end where its last storage does")


def _all_keys(keys: Any) -> bool:
    return isinstance(keys, list) and all(isinstance(key, str) for key in keys) and len(set(keys)) == len(keys)
