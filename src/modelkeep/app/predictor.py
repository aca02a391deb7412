"""A model as a function of rows: what calibration, tracing and the demo of a suspect ask."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature
from modelkeep.errors import Invalid, Unavailable
from modelkeep.extraction.layer import Inner
from modelkeep.serving.runtime import OutputPlan, Runtime, plan_outputs, probability_rows

Rows = NDArray[np.float64]
BATCH = 512
MOST_NUMBERS = 64
"""Numbers of an answer that a copy is measured on: models that answer with a picture have very many."""
_FEW = 3
_MIXED = "the inner tensor {tensor!r} holds other numbers for a row that is asked alone than for one among others: name another"
_MIXED_SHARE = 0.05
"""Of the largest number: kernels differ by batch in the last digits, and a scale that is fitted to the batch by a percent."""
_DTYPES = {
    "FP16": np.float16,
    "FP32": np.float32,
    "FP64": np.float64,
    "INT8": np.int8,
    "INT16": np.int16,
    "INT32": np.int32,
    "INT64": np.int64,
    "UINT8": np.uint8,
    "UINT16": np.uint16,
    "UINT32": np.uint32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
}


class Predictor:
    """A model of one numeric input, asked with flattened rows (n, d)."""

    def __init__(self, runtime: Runtime, interface: ModelSignature, sample: Rows, *, batch: int = BATCH) -> None:
        """``sample``: a few rows, to see what the model answers; ``batch``: rows that it is asked at once.

        Raises Invalid (other inputs), NotTrusted.
        """
        if len(interface.inputs) != 1 or interface.inputs[0].datatype not in _DTYPES:
            raise Invalid("extraction evidence needs a model with one numeric input: join its inputs into one tensor")
        self._runtime, self._batch, self._sample = runtime, batch, sample[:_FEW]
        self._input = interface.inputs[0]
        self._tail = tuple(self._input.shape[1:])
        self._plan: OutputPlan = plan_outputs(interface, self._runtime.run({self._input.name: self._tensor(sample[:1])}))

    @property
    def classifies(self) -> bool:
        """Whether the model answers with class probabilities."""
        return self._plan.probabilities is not None

    @property
    def label(self) -> str | None:
        """The output with the answered class, if there is one."""
        return self._plan.label

    def probabilities(self, rows: Rows) -> Rows:
        """Class probabilities (n, k) for rows (n, d). Raises Invalid (not a classifier, wrong width, no probabilities)."""
        name = self._plan.probabilities
        if name is None:
            raise Invalid("the model does not answer with class probabilities")
        parts = []
        for at in range(0, len(rows), self._batch):
            some = rows[at : at + self._batch]
            parts.append(probability_rows(self._runtime.run({self._input.name: self._tensor(some)})[name], len(some)))
        return np.concatenate(parts)

    def scores(self, rows: Rows) -> Rows:
        """What is nearest to class probabilities (n, k) of what the model gives for rows (n, d), unchecked: what were
        probabilities in its first answer, else its numbers. Raises Invalid (wrong width)."""
        name = self._plan.probabilities
        if name is None:
            return np.concatenate([self._numbers(rows[at : at + self._batch]) for at in range(0, len(rows), self._batch)])
        return np.concatenate([np.asarray(found[name], dtype=np.float64) for found in self.answers(rows)])

    def as_function(self) -> Callable[[Rows], Rows] | None:
        """``probabilities``, or None when the model does not classify."""
        return self.probabilities if self.classifies else None

    def numbers(self, rows: Rows) -> Rows:
        """The numbers (n, m) that a model without classes answers rows (n, d) with, of which the first 64 are told.

        Raises Invalid (wrong width, or an answer that is no finite number).
        """
        found = np.concatenate([self._numbers(rows[at : at + self._batch]) for at in range(0, len(rows), self._batch)])
        if not np.isfinite(found).all():
            raise Invalid("the model answers some of the reference rows with what is no finite number: leave those rows out")
        return found

    def inner(self, tensor: str) -> Inner:
        """An inner tensor that the runtime gives as an output, as a function of rows (n, d): values (n, w) when it is called.

        Raises Invalid (the function too): it holds no floating numbers, or not as many for each row, or others when a row is
        asked with others.
        """

        def values(rows: Rows) -> Rows:
            parts = []
            for at in range(0, len(rows), self._batch):
                some = rows[at : at + self._batch]
                found = self._runtime.run({self._input.name: self._tensor(some)})[tensor]
                if found.dtype.kind != "f" or not found.ndim or len(found) != len(some):
                    raise Invalid(
                        f"the inner tensor {tensor[:80]!r} does not hold floating numbers for each row: it is of type "
                        f"{found.dtype} and shape {found.shape} for {len(some)} rows"
                    )
                parts.append(found.reshape(len(some), -1).astype(np.float64))
            if len({part.shape[1] for part in parts}) > 1:
                raise Invalid(_MIXED.format(tensor=tensor[:80]))
            return np.concatenate(parts)

        together, alone = values(self._sample), [values(row[None]) for row in self._sample]
        if any(one.shape[1] != together.shape[1] for one in alone) or not _alike(together, np.concatenate(alone)):
            raise Invalid(_MIXED.format(tensor=tensor[:80]))
        return Inner(tensor, values)

    def as_numbers(self) -> Callable[[Rows], Rows] | None:
        """``numbers``, or None when the model classifies or does not give floating numbers for each of several rows."""
        if self.classifies:
            return None
        two = np.repeat(self._sample[:1], 2, axis=0)
        try:
            return self.numbers if self._numbers(two).shape[1] else None
        except (Invalid, Unavailable):  # it takes one row at a time
            return None

    @property
    def one_number(self) -> bool:
        """Whether the model answers with one number a row and nothing else."""
        return self._plan.number is not None

    def answers(self, rows: Rows) -> Iterator[dict[str, NDArray[Any]]]:
        """All that the runtime gives for rows (n, d), a batch at a time, and the input itself, by name. Raises Invalid."""
        for at in range(0, len(rows), self._batch):
            tensor = self._tensor(rows[at : at + self._batch])
            yield {self._input.name: tensor, **self._runtime.run({self._input.name: tensor})}

    def _numbers(self, rows: Rows) -> Rows:
        found = self._runtime.run({self._input.name: self._tensor(rows)})
        told = [found[spec.name] for spec in self._plan.served if found[spec.name].dtype.kind == "f"]
        flat = [one.reshape(len(rows), -1) for one in told if one.ndim and len(one) == len(rows)]
        parts = [np.empty((len(rows), 0)), *(one[:, :MOST_NUMBERS].astype(np.float64) for one in flat)]
        return np.concatenate(parts, axis=1)[:, :MOST_NUMBERS]

    def _tensor(self, rows: Rows) -> NDArray[np.generic]:
        wanted = [size for size in self._tail if size > 0]
        if len(self._tail) == len(wanted) and int(np.prod(wanted, dtype=np.int64)) != rows.shape[1]:
            raise Invalid(
                f"the model takes {int(np.prod(wanted, dtype=np.int64))} values a row, and the rows have {rows.shape[1]}"
            )
        if len(self._tail) > 1 and len(wanted) == len(self._tail):
            rows = rows.reshape(len(rows), *self._tail)
        with np.errstate(over="ignore", invalid="ignore"):
            cast: NDArray[np.generic] = np.ascontiguousarray(rows.astype(_DTYPES[self._input.datatype]))
        if not np.isfinite(cast.astype(np.float64)).all():
            raise Invalid(f"the rows hold values beyond the range of {self._input.datatype}, which the model takes")
        return cast


def _alike(one: Rows, other: Rows) -> bool:
    largest = np.abs(one[np.isfinite(one)]).max(initial=0.0)
    return np.allclose(one, other, rtol=0.0, atol=_MIXED_SHARE * largest, equal_nan=True)
