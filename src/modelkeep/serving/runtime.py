"""What a model's outputs are, and which of them may leave: decided once, when a model is loaded.

A classifier answers with a label and with probabilities. Only those two leave the gateway: another floating output (logits, a
second copy of the probabilities) would carry what the ladder coarsens and the watermark marks, so it is withheld.
"""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid, NotTrusted

_FLOATING = ("FP16", "FP32", "FP64")
_SUM_TOLERANCE = 1e-3
_ZERO = -1e-6
"""Sums of many trees in float32 come out a little below zero, and mean zero."""


class Runtime(Protocol):
    """A loaded model, ready to run."""

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Safe to call from several threads. Raises Invalid (the model refuses the input), Unavailable."""
        ...


@runtime_checkable
class RemoteRuntime(Runtime, Protocol):
    """A model that another server runs: asked without holding a thread, and it may be down."""

    @property
    def platform(self) -> str:
        """What runs it, as metadata say."""
        ...

    async def infer(self, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Cancelling it cancels the question there. Raises Invalid (it refuses the input), Unavailable."""
        ...

    async def check_ready(self) -> None:
        """Raise Unavailable unless it answers, as far as is known."""
        ...

    def close(self) -> None:
        """Let go of its connections, in the thread that asked."""
        ...


class OutputPlan(msgspec.Struct, frozen=True):
    """The outputs of one model.

    ``served``: what may leave, in signature order; ``probabilities``: name of the (rows, classes) output that is coarsened and
    marked, None when the model is no classifier; ``label``: name of the class output, if any; ``withheld``: what never leaves.
    """

    served: tuple[TensorSpec, ...]
    probabilities: str | None
    label: str | None
    withheld: tuple[str, ...] = ()

    @property
    def number(self) -> str | None:
        """The output of a model that answers with one number a row, which can be marked; None of any other model."""
        if self.probabilities is not None or len(self.served) != 1:
            return None
        spec = self.served[0]
        return spec.name if spec.datatype in ("FP32", "FP64") and spec.shape[1:] in ((), (1,)) else None

    def wanted(self, names: tuple[str, ...]) -> tuple[TensorSpec, ...]:
        """The specs of the outputs ``names``, all that are served when empty. Raises Invalid."""
        if not names:
            return self.served
        found = {spec.name: spec for spec in self.served}
        for name in names:
            if name not in found:
                why = "is withheld: it would bypass the watermark" if name in self.withheld else "does not exist"
                raise Invalid(f"output {name[:60]!r} {why}; this model serves {', '.join(found)}")
        if len(set(names)) != len(names):
            raise Invalid("an output is asked for twice")
        return tuple(found[name] for name in names)


def plan_outputs(signature: ModelSignature, sample: Mapping[str, NDArray[Any]]) -> OutputPlan:
    """Decide from the signature and the outputs for one probe row what each output is.

    Probabilities: the first floating output of rank 2 with at least two columns whose rows are non-negative and sum to 1.
    Label: the first integer or text output with one value a row. Raises NotTrusted if the model does not give what its
    signature names.
    """
    for spec in signature.outputs:
        if spec.name not in sample:
            raise NotTrusted(f"the model does not give the output {spec.name!r} that its signature names")
    probabilities = next((s.name for s in signature.outputs if s.datatype in _FLOATING and _sums_to_one(sample[s.name])), None)
    label = next((s.name for s in signature.outputs if s.datatype not in _FLOATING and sample[s.name].size == 1), None)
    return _plan(signature, probabilities, label)


def plan_unseen(signature: ModelSignature) -> OutputPlan:
    """Decide from the signature alone, for a model of which no row is known that it takes: its texts come from a set.

    An integer or text output of one value a row is a label, and the first floating output of rank 2 beside it holds
    probabilities. Where it does not, ``probability_rows`` refuses every answer.
    """
    label = next((s.name for s in signature.outputs if s.datatype not in _FLOATING and s.shape[1:] in ((), (1,))), None)
    columns = (s.name for s in signature.outputs if s.datatype in _FLOATING and len(s.shape) == 2 and s.shape[1] != 1)
    return _plan(signature, next(columns, None) if label is not None else None, label)


def _plan(signature: ModelSignature, probabilities: str | None, label: str | None) -> OutputPlan:
    if probabilities is None:
        return OutputPlan(signature.outputs, None, None)
    kept = tuple(s for s in signature.outputs if s.name in (probabilities, label))
    withheld = tuple(s.name for s in signature.outputs if s not in kept)
    return OutputPlan(kept, probabilities, label, withheld)


def _sums_to_one(array: NDArray[Any]) -> bool:
    if array.ndim != 2 or array.shape[1] < 2 or not np.isfinite(array).all():
        return False
    return bool((array >= _ZERO).all() and (np.abs(array.sum(axis=1) - 1) <= _SUM_TOLERANCE).all())


def probability_rows(array: NDArray[Any], rows: int) -> NDArray[np.float64]:
    """The model's probabilities, shape (rows, classes), as float64, checked on every answer.

    Raises Invalid if they are no probabilities: then nothing may be said about the input, not even a guess.
    """
    if array.ndim != 2 or len(array) != rows:
        raise Invalid(f"the model answered with shape {array.shape} for {rows} rows")
    probs = array.astype(np.float64)
    if rows == 1:  # plain Python is three times as quick as numpy on one short row
        row = probs[0].tolist()
        if min(row) >= 0.0 and abs(sum(row) - 1.0) <= _SUM_TOLERANCE:
            return probs
    if not (probs.min(initial=1.0) >= _ZERO and (abs(probs.sum(axis=1) - 1.0) <= _SUM_TOLERANCE).all()):
        raise Invalid("the model did not answer with probabilities for this input; check the input's range")
    return np.maximum(probs, 0.0)


def round_floats(array: NDArray[Any], digits: int = 6) -> NDArray[Any]:
    """A floating output of a model that is no classifier, to ``digits`` significant digits. Raises Invalid (not finite)."""
    if array.dtype.kind != "f":
        return array
    wide = array.astype(np.float64)
    if not np.isfinite(wide).all():
        raise Invalid("the model's answer for this input is not a finite number; check the input's range")
    power = digits - 1 - np.floor(np.log10(np.abs(wide), where=wide != 0, out=np.zeros_like(wide)))
    scale: NDArray[Any] = 10.0 ** np.minimum(
        power, 300.0
    )  # what is smaller than that loses digits, and not its place among the numbers
    rounded: NDArray[Any] = np.round(wide * scale) / scale
    return rounded
