"""The copies that a thief trains: scikit-learn models on soft answers or on numbers (extra ``modelkeep[lab]``).

scikit-learn's classifiers take no soft labels, so each row appears once for every class that its answer gives weight to, with
that weight: the expected cross-entropy is then that of the soft labels themselves (Hinton et al. 2015, "Distilling the
Knowledge in a Neural Network", temperature 1).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.errors import Invalid

Array = NDArray[np.float64]

_LEAST_WEIGHT = 1e-3
"""Answers below this are not worth a training row of their own."""
_BATCH = 128


def harden(probs: Array) -> tuple[NDArray[np.intp], NDArray[np.intp], Array]:
    """Soft answers (n, k) as weighted hard ones: row numbers, classes and weights, each of shape (m,)."""
    rows, classes = np.nonzero(probs > _LEAST_WEIGHT)
    return rows, classes, probs[rows, classes]


class MlpSurrogate:
    """A multilayer perceptron on standardised inputs, trained to convergence with Adam."""

    def __init__(self, hidden: tuple[int, ...] = (64,), *, updates: int = 300, seed: int = 0) -> None:
        self._hidden, self._updates, self._seed = hidden, updates, seed
        self._scaler = StandardScaler()
        self._model: Any = None

    def fit(self, x: Array, probs: Array) -> None:
        """Learn from questions (n, d) and soft answers (n, k). Raises Invalid (no rows)."""
        rows, classes, weights = harden(_checked(x, probs))
        again = np.resize(np.arange(len(rows)), max(len(rows), 10 * _BATCH))  # few rows, many times: fewer and longer epochs
        scaled, classes, weights = self._scaler.fit_transform(x)[rows[again]], classes[again], weights[again]
        model = MLPClassifier(self._hidden, batch_size=_BATCH, learning_rate_init=5e-3, random_state=self._seed)
        for _ in range(max(10, round(self._updates * _BATCH / len(again)))):
            # partial_fit is one epoch; fit would warn whenever a budget of epochs ends it
            model.partial_fit(scaled, classes, classes=np.arange(probs.shape[1]), sample_weight=weights)
        self._model = model

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k). Raises Invalid before ``fit``."""
        if self._model is None:
            raise Invalid("a surrogate must be fitted before it can predict")
        return np.asarray(self._model.predict_proba(self._scaler.transform(x)), dtype=np.float64)

    def onnx(self) -> bytes:
        """The copy as an ONNX file, fit for ``modelkeep trace``. Raises Invalid before ``fit``."""
        from skl2onnx import to_onnx

        if self._model is None:
            raise Invalid("a surrogate must be fitted before it can be exported")
        whole = make_pipeline(self._scaler, self._model)
        example = np.zeros((1, self._scaler.n_features_in_), dtype=np.float32)
        return bytes(to_onnx(whole, example, options={id(whole): {"zipmap": False}}, target_opset=18).SerializeToString())


class TreesSurrogate:
    """Histogram gradient-boosted trees on the raw columns."""

    def __init__(self, *, rounds: int = 100, seed: int = 0) -> None:
        self._rounds, self._seed = rounds, seed
        self._model: Any = None
        self._classes = 0

    def fit(self, x: Array, probs: Array) -> None:
        """Learn from questions (n, d) and soft answers (n, k). Raises Invalid (no rows)."""
        rows, classes, weights = harden(_checked(x, probs))
        self._classes = probs.shape[1]
        if len(np.unique(classes)) < 2:
            self._model = int(classes[0])
            return
        leaf = int(np.clip(len(x) // 20, 2, 20))
        model = HistGradientBoostingClassifier(
            max_iter=self._rounds, min_samples_leaf=leaf, early_stopping=False, random_state=self._seed
        )
        self._model = model.fit(x[rows], classes, sample_weight=weights)

    def predict(self, x: Array) -> Array:
        """Class probabilities (n, k). Raises Invalid before ``fit``."""
        if self._model is None:
            raise Invalid("a surrogate must be fitted before it can predict")
        probs = np.zeros((len(x), self._classes))
        if isinstance(self._model, int):
            probs[:, self._model] = 1.0
        else:
            probs[:, self._model.classes_] = self._model.predict_proba(x)
        return probs


class MlpNumbers:
    """A multilayer perceptron on standardised inputs and standardised numbers, trained to convergence with Adam."""

    def __init__(self, hidden: tuple[int, ...] = (64,), *, updates: int = 1500, seed: int = 0) -> None:
        self._hidden, self._updates, self._seed = hidden, updates, seed
        self._scaler, self._scale = StandardScaler(), StandardScaler()
        self._model: Any = None

    def fit(self, x: Array, answers: Array) -> None:
        """Learn from questions (n, d) and numbers (n, k). Raises Invalid (no rows)."""
        told = self._scale.fit_transform(_checked(x, answers))
        again = np.resize(np.arange(len(x)), max(len(x), 10 * _BATCH))
        scaled, told = self._scaler.fit_transform(x)[again], told[again]
        model = MLPRegressor(
            hidden_layer_sizes=self._hidden, batch_size=_BATCH, learning_rate_init=3e-3, random_state=self._seed
        )
        for _ in range(max(10, round(self._updates * _BATCH / len(again)))):
            model.partial_fit(scaled, told if told.shape[1] > 1 else told.ravel())
        self._model = model

    def predict(self, x: Array) -> Array:
        """Numbers (n, k). Raises Invalid before ``fit``."""
        if self._model is None:
            raise Invalid("a surrogate must be fitted before it can predict")
        found = self._model.predict(self._scaler.transform(x)).reshape(len(x), -1)
        return np.asarray(self._scale.inverse_transform(found), dtype=np.float64)


class TreesNumbers:
    """Histogram gradient-boosted trees on the raw columns, one ensemble a number."""

    def __init__(self, *, rounds: int = 100, seed: int = 0) -> None:
        self._rounds, self._seed = rounds, seed
        self._models: list[Any] = []

    def fit(self, x: Array, answers: Array) -> None:
        """Learn from questions (n, d) and numbers (n, k). Raises Invalid (no rows)."""
        leaf = int(np.clip(len(_checked(x, answers)) // 20, 2, 20))
        self._models = [
            HistGradientBoostingRegressor(
                max_iter=self._rounds, min_samples_leaf=leaf, early_stopping=False, random_state=self._seed
            ).fit(x, column)
            for column in answers.T
        ]

    def predict(self, x: Array) -> Array:
        """Numbers (n, k). Raises Invalid before ``fit``."""
        if not self._models:
            raise Invalid("a surrogate must be fitted before it can predict")
        return np.stack([model.predict(x) for model in self._models], axis=1)


def _checked(x: Array, probs: Array) -> Array:
    if not len(x) or len(x) != len(probs):
        raise Invalid(f"a surrogate cannot learn from {len(x)} questions and {len(probs)} answers")
    return probs
