"""``modelkeep.torch``: sealed tensors as PyTorch's, and modules as ONNX. PyTorch is imported when needed, never before."""

import importlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

from modelkeep.app.sealed import Key, TensorInfo, open_sealed
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.training.weightmark import LEAN, LEVELS, layout_of, plan_of

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


OPSET = 18


def to_onnx(module: Any, example: Any, *, logits: bool = False) -> bytes:
    """A ``torch.nn.Module`` that you hold as the bytes of an ONNX file, fit for ``modelkeep publish``.

    ``example``: a tensor of some rows, shape (n, ...), for the module's one input, which is called ``x``; any number of rows is
    taken. ``logits``: the module gives scores of classes, shape (n, k), and the file ``label`` and ``probabilities`` of them.
    Module and file are asked the example: no number may differ by more than 1e-4. The module is exported as for evaluation, and
    left in the mode that it was in. Raises Invalid (PyTorch or onnxscript are not installed, or it cannot be exported),
    NotTrusted (they do not answer alike).
    """
    torch = _torch()
    whole = _with_labels(torch, module) if logits else module
    example = torch.cat([example, example]) if len(example) == 1 else example  # of one row alone, "any number" is not learnt
    training = module.training
    try:
        with torch.no_grad(), _quiet_exporter():
            whole.eval()
            original = whole(example)
            made = torch.onnx.export(
                whole,
                (example,),
                input_names=["x"],
                output_names=["label", "probabilities"] if logits else None,
                dynamic_shapes=({0: torch.export.Dim("rows")},),
                opset_version=OPSET,
                external_data=False,
                verbose=False,
                dynamo=True,
            )
            onnx = bytes(made.model_proto.SerializeToString())
    except ImportError as cause:
        raise Invalid(f"exporting a module needs onnxscript: 'pip install modelkeep[torch]' ({cause})") from cause
    except (RuntimeError, TypeError, ValueError) as cause:  # torch.onnx.OnnxExporterError is a RuntimeError
        raise Invalid(
            f"{type(module).__name__} cannot be exported: {str(cause).strip().partition(chr(10))[0][:300]}"
        ) from cause
    finally:
        module.train(training)
    _compare(onnx, example, original)
    return onnx


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """What it says is about itself, and about packages that nobody asked for."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def mark_penalty(module: Any, key: bytes, owner: str) -> Callable[[], Any]:
    """What to add to the loss so that a module learns to carry a mark while it is trained: a function of nothing to a scalar
    tensor, 0 once every bit leans its way (``modelkeep.training.weightmark``), also over the largest weights alone.

    ``key``: 32 bytes; ``owner``: who claims it, as for ``watermark embed --key-file``; the layers are those that multiply by a
    weight (Linear and convolutions), in the order in which the module uses them. Raises Invalid (too few weights).
    """
    torch = _torch()
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    weights = [layer.weight for layer in module.modules() if isinstance(layer, kinds)]
    carrying = [weight for weight in weights if min(weight.flatten(1).shape) > 1]
    plan = plan_of(key, owner, layout_of([weight.detach().flatten(1).cpu().numpy() for weight in carrying]))
    at, signs = torch.from_numpy(plan.at), torch.from_numpy(plan.signs).float()

    def penalty() -> Any:
        parts = [weight.flatten() / weight.square().mean().sqrt() for weight in carrying]
        x, device = torch.cat(parts), carrying[0].device
        values, turned, total = x[at.to(device)], signs.to(device), 0.0
        for level in LEVELS:
            limits = [part.detach().abs().kthvalue(max(1, int(level * part.numel()))).values for part in parts]
            kept = torch.cat([part.detach().abs() >= limit for part, limit in zip(parts, limits, strict=True)])[at.to(device)]
            large = values * kept
            wanted = LEAN * (kept.sum(dim=1) * large.square().sum(dim=1)).sqrt()
            lack = torch.relu(wanted.detach() - (turned * large).sum(dim=1))
            total = total + (lack / kept.sum(dim=1).clamp(min=1)).mean()
        return total

    return penalty


def _with_labels(torch: Any, module: Any) -> Any:
    class Labelled(torch.nn.Module):  # type: ignore[misc]  # PyTorch is imported when it is needed
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, x: Any) -> Any:
            probabilities = torch.softmax(self.module(x), dim=1)
            return probabilities.argmax(dim=1), probabilities

    return Labelled()


def _compare(onnx: bytes, example: Any, original: Any) -> None:
    """Raises NotTrusted: the file does not answer as the module did, Invalid: it takes no other number of rows."""
    from modelkeep.adapters.runtime.onnx import OnnxRuntime
    from modelkeep.app.fidelity import differences

    wanted = list(original) if isinstance(original, tuple | list) else [original]
    found = list(OnnxRuntime(onnx).run({"x": example.numpy()}).values())
    if len(found) != len(wanted):
        raise NotTrusted(f"the exported model has {len(found)} outputs, the module has {len(wanted)}")
    for one, other in zip(found, wanted, strict=True):
        differences(one, other.numpy())
    try:
        OnnxRuntime(onnx).run({"x": example[:1].numpy()})
    except Invalid as cause:
        raise Invalid(
            f"exported, this module takes {len(example)} rows and no other number: its forward must not make a constant of how "
            "many there are (use x.shape[0] or -1, not len(x))"
        ) from cause


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
