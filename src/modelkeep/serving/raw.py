"""The raw form of a tensor: its elements in a row, little-endian, row-major, without padding; before each text its length.

Source: Triton's binary tensor data extension, and ``raw_input_contents`` of the Open Inference Protocol's gRPC: both mean the
same bytes. A size that does not follow from datatype and shape is refused, to the byte.
"""

import math
from collections.abc import Sequence
from struct import Struct
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.serving.oip import DATATYPES, dtype_of

Raw = bytes | memoryview
_LENGTH = Struct("<I")
_WIRE = {name: dtype_of(name).newbyteorder("<") for name in DATATYPES - {"BYTES"}}


class RawTensor(msgspec.Struct, frozen=True):
    """One input whose data came raw."""

    name: str
    datatype: str
    shape: Sequence[int]
    raw: Raw
    finite: ClassVar[bool] = False

    def values(self, datatype: str) -> NDArray[Any]:
        """The data as a flat array of ``datatype``: a view wherever the bytes allow it. Raises Invalid."""
        count = math.prod(self.shape)
        if datatype == "BYTES":
            return np.array(_texts(self.name, self.raw, count) or [], dtype=object)
        wire = _WIRE[datatype]
        if len(self.raw) != wire.itemsize * count:
            raise Invalid(
                f"input {self.name!r} has {len(self.raw)} bytes of data; {datatype} of shape {list(self.shape)} "
                f"needs {wire.itemsize * count}"
            )
        if datatype == "BOOL":
            flags = np.frombuffer(self.raw, np.uint8)
            if flags.max(initial=0) > 1:
                raise Invalid(f"input {self.name!r}: a BOOL is neither 0 nor 1")
            return flags.view(np.bool_)
        array = np.frombuffer(self.raw, wire)
        if not array.flags.aligned:  # a runtime may read it with instructions that need that
            array = array.copy()
        return array.astype(dtype_of(datatype), copy=False)


def _texts(name: str, raw: Raw, count: int) -> list[bytes]:
    """``count`` texts, each after its length (uint32). Raises Invalid unless they are all of ``raw``."""
    found: list[bytes] = []
    at, end = 0, len(raw)
    while at < end and len(found) < count:
        if end - at < _LENGTH.size:
            raise Invalid(f"input {name!r}: the length of text {len(found)} is cut off")
        start = at + _LENGTH.size
        at = start + _LENGTH.unpack_from(raw, at)[0]
        if at > end:
            raise Invalid(f"input {name!r}: text {len(found)} is longer than what is left of the data")
        found.append(bytes(raw[start:at]))
    if at != end or len(found) != count:
        raise Invalid(f"input {name!r}: the data is not {count} texts, each after its length in four bytes")
    return found


def hold(raw: memoryview, size: int) -> Raw:
    """``raw``, a part of a body of ``size`` bytes, to be kept for as long as its tensor.

    A view keeps the whole body in memory, and the evidence keeps rows for a while: only most of a body may do that.
    """
    return raw if 2 * len(raw) >= size else bytes(raw)


def to_raw(array: NDArray[Any], datatype: str) -> bytes:
    """The raw form of an output, as ``datatype``, which it is cast to."""
    if datatype == "BYTES":
        texts = (item if isinstance(item, bytes) else str(item).encode() for item in array.ravel())
        return b"".join(_LENGTH.pack(len(text)) + text for text in texts)
    return array.astype(_WIRE[datatype], copy=False).tobytes()
