"""Two real models from data that ships with scikit-learn, and the rows that each party of the story holds.

The owner of a model holds ``train`` and ``reference``. Everybody else draws from rows that the model never saw: honest clients
from all of them, thieves from ``loose`` only, so that ``exam`` stays fit to measure fidelity on.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.adapters.targets import OnnxTarget

Array = NDArray[np.float64]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Victim:
    """One model worth stealing, as the ONNX file ``onnx``, and the data around it.

    ``train``, ``reference``, ``loose``, ``exam``: rows (n, d) that do not overlap; ``train_truth``, ``exam_truth``: true
    classes of two of them; ``accuracy``: share of the rows of ``exam`` that the model gets right.
    """

    name: str
    title: str
    onnx: bytes
    train: Array
    train_truth: Classes
    reference: Array
    loose: Array
    exam: Array
    exam_truth: Classes
    accuracy: float

    @property
    def classes(self) -> int:
        """How many classes the model tells apart."""
        return len(np.unique(self.train_truth))

    @property
    def unseen(self) -> Array:
        """Every row that the model never saw (n, d)."""
        return np.concatenate([self.loose, self.exam])

    @cached_property
    def bare(self) -> OnnxTarget:
        """The model with no defence, in this process."""
        return OnnxTarget(self.onnx)


def tumour() -> Victim:
    """A small tabular model: 30 measurements of a cell sample, malignant or benign (UCI Breast Cancer Wisconsin)."""
    data: Any = load_breast_cancer()
    return _victim("tumour", "30 measurements of a cell sample, 2 classes", data, hidden=(32,), shares=(0.35, 0.35, 0.15))


def digits() -> Victim:
    """A small vision model: 8 x 8 grey images of handwritten digits (UCI optical recognition test set)."""
    data: Any = load_digits()
    return _victim("digits", "8 by 8 images of handwritten digits, 10 classes", data, hidden=(64,), shares=(0.2, 0.3, 0.35))


def _victim(name: str, title: str, data: Any, *, hidden: tuple[int, ...], shares: tuple[float, float, float]) -> Victim:
    x = np.asarray(data.data, dtype=np.float32).astype(np.float64)  # what the wire and the model hold
    rest, rest_truth, parts, truths = x, data.target, [], []
    for share in shares:
        mine, rest, truth, rest_truth = train_test_split(
            rest, rest_truth, train_size=int(share * len(x)), stratify=rest_truth, random_state=7
        )
        parts.append(mine)
        truths.append(truth)
    # weight decay keeps the probabilities soft: a model that is always certain has nothing but labels to steal or to mark
    model = make_pipeline(StandardScaler(), MLPClassifier(hidden, alpha=0.3, max_iter=2_000, random_state=7))
    model.fit(parts[0], truths[0])
    exported = to_onnx(model, parts[0][:1].astype(np.float32), options={id(model): {"zipmap": False}}, target_opset=18)
    return Victim(
        name=name,
        title=title,
        onnx=exported.SerializeToString(),
        train=parts[0],
        train_truth=truths[0],
        reference=parts[1],
        loose=parts[2],
        exam=rest,
        exam_truth=rest_truth,
        accuracy=float(model.score(rest, rest_truth)),
    )
