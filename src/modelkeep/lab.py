"""``modelkeep.lab``: models attacked, hardened and trained in private, in your own process.

PyTorch (``modelkeep[torch]``) is imported by the calls.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.labelled import labelled_npz
from modelkeep.app.predictor import Predictor
from modelkeep.app.robustness import Asked, clean_interface, in_laboratory, with_gradients
from modelkeep.app.robustness import evaluate as _evaluate
from modelkeep.app.robustnesspage import report
from modelkeep.app.robustnessresults import Evaluated
from modelkeep.errors import Invalid
from modelkeep.training.lab.attacks.square import Space
from modelkeep.training.lab.attacks.square import square as _square
from modelkeep.training.smoothing import Certificate
from modelkeep.training.smoothing import smooth as _smooth

__all__ = [
    "Attacked", "Evaluated", "Limits", "attack", "certify", "evaluate", "harden", "load_net", "report", "smooth", "square",
    "train_private",
]  # fmt: skip
Floats = NDArray[np.floating]
Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Limits:
    """Where an attacker may go: ``epsilon`` in ``norm`` (``linf`` or ``l2``) around each row, in units of the input, and
    between ``low`` and ``high``, of every input or of each feature."""

    epsilon: float
    norm: str = "linf"
    low: ArrayLike = 0.0
    high: ArrayLike = 1.0

    def box(self, width: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """``low`` and ``high`` of so many features, shape (width,). Raises Invalid."""
        try:
            low, high = (np.broadcast_to(np.asarray(one, np.float64).ravel(), (width,)) for one in (self.low, self.high))
        except ValueError as cause:
            raise Invalid(f"the box needs one bound, or one for each of {width} features") from cause
        return low, high


class Attacked(NamedTuple):
    """``adversarial``: rows in the shape that they came in, in place of fallen ones what fools the model; ``standing``: which
    rows no attack turned, shape (n,); rows that were answered wrongly before do not stand."""

    adversarial: Floats
    standing: NDArray[np.bool_]


def load_net(onnx: bytes, rows: ArrayLike) -> Any:
    """An ONNX classifier as a ``torch.nn.Module`` that gives logits, (n, k), with gradients; its weights are parameters.

    ``rows``: some that it takes, (n, ...): the file is asked them too, and no score may differ by more than 1e-4.
    Raises Invalid ("black box only: …" where the file has no gradients, such as trees), NotTrusted (not clean, or not alike).
    """
    flat = _flat(rows)
    predictor = Predictor(OnnxRuntime(onnx), clean_interface("the model", onnx), flat)
    return with_gradients(onnx, predictor, flat)[0]


def attack(
    module: Any, x: ArrayLike, y: ArrayLike, limits: Limits, *, attacks: tuple[str, ...] = ("apgd-ce", "apgd-t", "fab"),
    steps: int = 100, restarts: int = 1, seed: int = 0,
) -> Attacked:  # fmt: skip
    """Attack a ``torch.nn.Module`` that takes rows shaped as ``x`` (n, ...) and gives logits (n, k). ``y``: the right classes.

    Attacks run in turn, each on the rows that are left, and the module answers as for evaluation meanwhile. Raises Invalid.
    """
    cascade = in_laboratory("attacks.cascade")
    given, labels = np.asarray(x, np.float32), np.asarray(y, np.int64)
    flat = given.reshape(len(given), -1)
    subject = cascade.Shaped(module, given.shape[1:])
    ball = cascade.ball_of(subject, limits.norm, limits.epsilon, *limits.box(flat.shape[1]))
    right = cascade.answers(subject, flat) == labels
    out = cascade.attack(subject, flat[right], labels[right], ball, attacks, cascade.Plan(steps, restarts, seed))
    standing, moved = right.copy(), flat.copy()
    standing[right] = ~np.any(list(out.broken.values()), axis=0)
    moved[right] = out.adversarial
    return Attacked(moved.reshape(given.shape), standing)


def square(
    scores: Callable[[Rows], Rows], x: ArrayLike, y: ArrayLike, limits: Limits, *,
    picture: tuple[int, int, int] | None = None, queries: int = 1000, seed: int = 0,
) -> Attacked:  # fmt: skip
    """The same by answers alone. ``scores``: any function of flat rows (n, d) to logits or log-probabilities (n, k).

    ``picture``: channels, height and width of a row, where it is one. Needs no PyTorch.
    """
    given, labels = np.asarray(x, np.float64), np.asarray(y, np.int64)
    flat = given.reshape(len(given), -1)
    space = Space(limits.norm, limits.epsilon, *limits.box(flat.shape[1]), picture)
    right = scores(flat).argmax(axis=1) == labels
    standing, moved = right.copy(), flat.copy()
    moved[right], fallen = _square(scores, flat[right], labels[right], space, queries=queries, seed=seed)
    standing[right] = ~fallen
    return Attacked(moved.reshape(given.shape), standing)


def certify(net: Any, x: ArrayLike, y: ArrayLike, limits: Limits) -> NDArray[np.bool_]:
    """Which rows a net of ``load_net`` provably answers rightly in the whole L-infinity ball, (n,); by interval bounds.

    Raises Invalid (another norm, or an operator that bounds are not known of).
    """
    flat = _flat(x)
    ball = in_laboratory("attacks.cascade").ball_of(net, limits.norm, limits.epsilon, *limits.box(flat.shape[1]))
    return np.asarray(in_laboratory("certify").certified(net, flat.astype(np.float32), np.asarray(y, np.int64), ball))


def smooth(
    classes: Callable[[Rows], NDArray[np.int64]], x: ArrayLike, *, sigma: float, count: int, draws: int = 1000, seed: int = 0
) -> list[Certificate]:
    """Randomized smoothing of any function of flat rows (n, d) to numbers of classes: the class that it answers each row with
    over Gaussian noise of ``sigma``, and the L2 radius in which that holds with probability 99.9 %; -1 where it abstains."""
    return _smooth(classes, _flat(x), sigma, draws, count=count, seed=seed)


def harden(
    module: Any, x: ArrayLike, y: ArrayLike, limits: Limits, *, held: tuple[ArrayLike, ArrayLike] | None = None, **recipe: Any
) -> Any:
    """A hardened copy of a ``torch.nn.Module`` (``module`` of what is returned), and its ``history``, epoch by epoch.

    ``x``: rows in the shape that it takes, (n, ...); ``held``: rows and classes to choose the best epoch by; ``recipe``: of
    ``training.lab.adversarial.Recipe``, such as ``method="pgd"``, ``epochs=40``, ``shift=0.005``. Rules of columns are in
    ``training.lab.constraints``. Raises Invalid.
    """
    lab, torch = in_laboratory("adversarial"), in_laboratory("constraints").torch
    given = np.asarray(x, np.float32)
    low, high = (one.reshape(given.shape[1:]).copy() for one in limits.box(int(np.prod(given.shape[1:]))))
    masks: dict[str, NDArray[np.bool_]] = {}
    radius = np.full(given.shape[1:], limits.epsilon)
    threat = in_laboratory("constraints").threat_of(limits.norm, radius, low, high, masks=masks)

    def pair(rows: ArrayLike, classes: ArrayLike) -> tuple[Any, Any]:
        return torch.from_numpy(np.asarray(rows, np.float32)), torch.from_numpy(np.asarray(classes, np.int64))

    return lab.harden(module, pair(given, y), threat, lab.Recipe(**recipe), held=None if held is None else pair(*held))


def train_private(
    module: Any, x: ArrayLike, y: ArrayLike, *, epsilon: float, delta: float, seed: int | None = None, **recipe: Any
) -> Any:
    """A classifier trained with (epsilon, delta)-differential privacy for each row, from fresh weights: its ``module``, and
    what was ``spent``.

    ``module``: of layers of ``torch.nn``, which can be given fresh weights; ``seed``: None = noise that nobody can foretell;
    ``recipe``: of ``training.budgets.Recipe``, such as ``epochs=20``. No ledger knows of it: ``modelkeep privacy train
    --dataset`` counts. Raises Invalid.
    """
    lab = in_laboratory("private")
    rows, classes = np.asarray(x, np.float32), np.asarray(y, np.int64)
    return lab.train_private(module, rows, classes, epsilon=epsilon, delta=delta, recipe=lab.Recipe(**recipe), seed=seed)


def evaluate(onnx: bytes, x: ArrayLike, y: ArrayLike, **asked: Any) -> Evaluated:
    """What ``modelkeep evaluate`` finds of an ONNX model. ``asked``: its options by name, such as ``epsilon=0.1``,
    ``attacks=("apgd", "square")``. Raises Invalid, NotTrusted."""
    data = io.BytesIO()
    np.savez(data, x=np.asarray(x), y=np.asarray(y))
    return _evaluate("model.onnx", onnx, labelled_npz(data.getvalue(), "test"), Asked(**asked))


def _flat(x: ArrayLike) -> NDArray[np.float64]:
    rows = np.asarray(x, np.float64)
    return rows.reshape(len(rows), -1)
