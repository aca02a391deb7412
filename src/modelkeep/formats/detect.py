"""Tell model formats apart by their first bytes. Nothing is run, nothing is decompressed."""

import re
from enum import Enum
from typing import NamedTuple

from modelkeep.formats.onnx import looks_like_onnx
from modelkeep.formats.safetensors import MAX_HEADER
from modelkeep.formats.upstream import looks_like_upstream


class _Facts(NamedTuple):
    id: str
    article: str
    convert: str


_SKLEARN = "convert a scikit-learn model with skl2onnx.to_onnx, a PyTorch model with torch.onnx.export"
_TORCH = "convert it with torch.onnx.export, or save its weights with safetensors.torch.save_file"
_KERAS = "convert it with tf2onnx or keras.Model.export(format='onnx')"
_ARRAYS = "save the arrays with safetensors.numpy.save_file"
_OTHER = "export the model as ONNX, or its weights as safetensors"


class Format(Enum):
    """A file format; ``article`` names it in a sentence, ``convert`` says how to come to one that is accepted."""

    SAFETENSORS = _Facts("safetensors", "a plain safetensors file", "")
    ONNX = _Facts("onnx", "a plain ONNX model", "")
    UPSTREAM = _Facts("upstream", "an upstream document", "")
    KEEP = _Facts("keep", "a sealed container", "open it first")
    PICKLE = _Facts("pickle", "a pickle", _SKLEARN)
    JOBLIB = _Facts("joblib", "a compressed joblib pickle", _SKLEARN)
    TORCH_ZIP = _Facts("torch-zip", "a PyTorch archive (a zip with a pickle in it)", _TORCH)
    TORCH_LEGACY = _Facts("torch-legacy", "a PyTorch file of the old kind (a pickle)", _TORCH)
    KERAS_ZIP = _Facts("keras-zip", "a Keras archive", _KERAS)
    HDF5 = _Facts("hdf5", "an HDF5 file", _KERAS)
    NPY = _Facts("npy", "a numpy array file", _ARRAYS)
    NPZ = _Facts("npz", "a numpy archive", _ARRAYS)
    GGUF = _Facts("gguf", "a GGUF file", _OTHER)
    TFLITE = _Facts("tflite", "a TensorFlow Lite model", _OTHER)
    ZIP = _Facts("zip", "a zip archive", _OTHER)
    UNKNOWN = _Facts("unknown", "a file of no known model format", _OTHER)

    @property
    def id(self) -> str:
        """Stable name, for records and statements."""
        return self.value.id

    @property
    def article(self) -> str:
        """How a sentence calls such a file."""
        return self.value.article

    @property
    def convert(self) -> str:
        """How to get an accepted file out of it; empty when it is one."""
        return self.value.convert


_HDF5 = b"\x89HDF\r\n\x1a\n"
_PREFIXES = (
    (b"\x89KEEP\r\n\x1a", Format.KEEP),
    (b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19", Format.TORCH_LEGACY),
    (_HDF5, Format.HDF5),
    (b"\x93NUMPY", Format.NPY),
    (b"GGUF", Format.GGUF),
    (b"\x1f\x8b", Format.JOBLIB),
    (b"BZh", Format.JOBLIB),
    (b"\xfd7zXZ\x00", Format.JOBLIB),
    (b"]\x00\x00", Format.JOBLIB),
    (b"\x04\x22\x4d\x18", Format.JOBLIB),
    (b"ZF", Format.JOBLIB),
)
_OLD_PICKLE = (
    b"(dp",
    b"(lp",
    b"(i",
    b"ccopy_reg\n",
    b"c__builtin__\n",
    b"cbuiltins\n",
    b"cos\n",
    b"cposix\n",
    b"csklearn",
    b"cnumpy",
)
_PICKLED = re.compile(rb"[}\])]q\x00|\(?[ci][A-Za-z_][\w.]{0,200}\n[A-Za-z_]|\(X.\x00\x00\x00|P[\w.]{1,200}\n\.", re.DOTALL)
"""How pickles of protocols 0 and 1 begin: a container and its memo entry, a mark and a text, or a global."""


def detect(data: bytes | bytearray | memoryview) -> Format:
    """The format that ``data``, or a prefix of some kilobytes of it, has the marks of. It may still be malformed."""
    view = memoryview(data).cast("B")
    prefix = bytes(view[:4096])
    for magic, found in _PREFIXES:
        if prefix.startswith(magic):
            return found
    if looks_like_upstream(prefix):
        return Format.UPSTREAM
    if prefix.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return _zip_kind(prefix)
    if len(prefix) > 8 and prefix[8:9] == b"{" and int.from_bytes(prefix[:8], "little") <= MAX_HEADER:
        return Format.SAFETENSORS
    if len(prefix) > 1 and prefix[0] == 0x80 and 2 <= prefix[1] <= 5:
        return Format.PICKLE
    if len(prefix) > 1 and prefix[0] == 0x78 and prefix[1] in (0x01, 0x5E, 0x9C, 0xDA):
        return Format.JOBLIB
    if prefix[4:8] == b"TFL3":
        return Format.TFLITE
    if prefix.startswith(_OLD_PICKLE) or _PICKLED.match(prefix):
        return Format.PICKLE
    return Format.ONNX if looks_like_onnx(view) else Format.UNKNOWN


def begins_as_tar(data: memoryview) -> bool:
    """Whether the first 512 bytes are a tar header: their sum is what they say it is (POSIX ustar; signed or not)."""
    head = bytes(data[:512])
    said = _tar_number(head[148:156])
    if len(head) < 512 or said is None:
        return False
    total = sum(head) - sum(head[148:156]) + 8 * 0x20
    signed = total - 256 * sum(byte > 0x7F for byte in head[:148] + head[156:])
    return said in (total, signed)


def _tar_number(raw: bytes) -> int | None:
    """As Python's ``tarfile`` reads one: octal, with whatever ``int`` takes around it, or with a flag in base 256."""
    if raw[:1] in (b"\x80", b"\xff"):
        return int.from_bytes(raw[1:], "big") - (256 ** (len(raw) - 1) if raw[0] == 0xFF else 0)
    try:
        return int(raw.split(b"\0")[0].decode("ascii").strip() or "0", 8)
    except ValueError:
        return None


def hides_hdf5(data: memoryview) -> int:
    """Where HDF5 finds a file behind a user block, which may hold any other: at 512 bytes, 1024, 2048 and so on; -1: nowhere.

    Source: the HDF5 File Format Specification, section II.A.
    """
    at = 512
    while at < len(data):
        if bytes(data[at : at + len(_HDF5)]) == _HDF5:
            return at
        at *= 2
    return -1


def _zip_kind(prefix: bytes) -> Format:
    """By the name of the first member, as the libraries write it."""
    length = int.from_bytes(prefix[26:28], "little")
    name = prefix[30 : 30 + length]
    if name.endswith((b"/data.pkl", b"/constants.pkl", b"/version", b"/byteorder", b"/.format_version")):
        return Format.TORCH_ZIP
    if name.endswith(b".npy"):
        return Format.NPZ
    if name in (b"metadata.json", b"config.json", b"model.weights.h5"):
        return Format.KERAS_ZIP
    return Format.ZIP
