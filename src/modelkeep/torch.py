"""``modelkeep.torch.load_file``: sealed tensors as PyTorch's. PyTorch is imported when a file is loaded, and never before."""

import importlib
from collections.abc import Sequence
from os import PathLike
from typing import Any

from modelkeep.app.sealed import Key, TensorInfo, open_sealed
from modelkeep.errors import Invalid

DTYPES = {
    "BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "U16": "uint16", "I32": "int32", "U32": "uint32",
    "I64": "int64", "U64": "uint64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64",
    "C64": "complex64", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
}  # fmt: skip
"""PyTorch's names of the safetensors dtypes."""


def load_file(
    path: str | PathLike[str],
    keys: Key | Sequence[Key],
    device: Any = "cpu",
    *,
    root: bytes | None = None,
    threads: int | None = None,
) -> dict[str, Any]:
    """The tensors of a sealed safetensors file, as ``safetensors.torch.load_file`` gives those of a plain one.

    Decrypted and checked by parallel threads to one buffer in memory, which the tensors share; then moved to ``device``.
    Raises as ``modelkeep.load_file``; Invalid when PyTorch is not installed, or lacks a dtype.
    """
    torch = _torch()
    with open_sealed(path, keys, root=root) as sealed:
        return {
            name: as_tensor(torch, name, info, data).to(device=device) for name, info, data in sealed.parts(threads=threads)
        }


def as_tensor(torch: Any, name: str, info: TensorInfo, data: memoryview) -> Any:
    """The bytes of one tensor as a tensor of the module ``torch``, not copied. Raises Invalid (a dtype that it lacks)."""
    dtype = getattr(torch, DTYPES.get(info.dtype, ""), None)
    if dtype is None:
        raise Invalid(
            f"this PyTorch has no dtype for {info.dtype} (tensor {name[:80]!r}): upgrade PyTorch, or read its bits with raw()"
        )
    if info.nbytes == 0:  # frombuffer takes no empty buffer
        return torch.empty(info.shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).reshape(info.shape)


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ModuleNotFoundError as cause:
        raise Invalid(
            "loading to PyTorch needs it: 'pip install torch', or use modelkeep.load_file for numpy arrays"
        ) from cause
