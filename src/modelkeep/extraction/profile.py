"""The extraction profile of a release: all that the gateway needs to judge queries, fitted once when a model is published."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction import evidence, null, synthetic
from modelkeep.extraction.discriminator import Discriminator
from modelkeep.extraction.features import Embedding
from modelkeep.extraction.layer import Layer
from modelkeep.extraction.pictures import MEASURES, PictureJudge
from modelkeep.extraction.surroundings import Surroundings
from modelkeep.extraction.trees import DEPTH, Trees

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]
Hidden = NDArray[np.float32] | None

MIN_CALIBRATION = 80
"""Fewer reference rows than this cannot bound the event rate of a skewed account below what thieves reach."""


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Rows as tables hold them, and the others. ``whole``: (d,), 1 where all real rows hold whole numbers; ``limits``: (scores,
    t) thresholds of rows that hold another number there, as honest ones do once they were jittered or rounded."""

    whole: Floats
    limits: Floats

    def left(self, x: Floats) -> NDArray[np.bool_]:
        """Which rows (b, d) are not on the grid, (b,)."""
        out: NDArray[np.bool_] = ((x != np.rint(x)) & (self.whole > 0.0)).any(axis=1)
        return out

    def events(self, x: Floats, scores: Floats, limits: Floats) -> NDArray[np.bool_]:
        """Whether the ``scores`` (b, scores) of rows ``x`` exceed ``limits`` (scores, t) on the grid, else its own. (b, scores,
        t)."""
        out: NDArray[np.bool_] = scores[:, :, None] > limits
        left = self.left(x)
        if left.any():
            out[left] = scores[left, :, None] > self.limits
        return out


@dataclass(frozen=True, slots=True, eq=False)
class Profile:
    """A fitted profile, immutable. Build it with ``fit_profile`` or ``from_arrays``.

    ``trees``: None in a profile of before there were any; ``class_shift``, ``class_scale``: (classes or 1, scores that are
    standardised); ``reference``: (scores, n) ascending calibration scores;
    ``taus``: (t,); ``limits``: (scores, t) thresholds; ``step_limits``: (t,); ``near``: radius of a near repeat; ``beside``:
    distance within which the trees' events count once more, 0 in a profile of before that; ``kappa``: bounds (streams,), see
    ``streams``; ``cells``: (64, r) centres of the trace code; ``curve``: (3, points) of the budget; ``counts``: (features,
    classes, training rows, calibration rows); ``layer``: the inner layer that is looked at, too, None where none is;
    ``pictures``: what judges pictures, None where rows are a table's and in a profile of before that; ``grid``,
    ``surroundings``: None in a profile of before those; ``fine``: share of the answers that carry the fine mark alone, 0
    in a profile of before that, by which each carries both; ``error``: the model's own error, of a model that answers with one
    number and whose reference rows came with the truth, else 0: then its answers carry no mark.
    """

    embedding: Embedding
    discriminator: Discriminator
    trees: Trees | None
    class_shift: Floats
    class_scale: Floats
    reference: Floats
    taus: Floats
    limits: Floats
    step_limits: Floats
    near: float
    beside: float
    kappa: Floats
    cells: Floats
    curve: Floats
    counts: tuple[int, int, int, int]
    alpha: float
    layer: Layer | None = None
    pictures: PictureJudge | None = None
    grid: Grid | None = None
    surroundings: Surroundings | None = None
    fine: float = 0.0
    error: float = 0.0

    @property
    def n_features(self) -> int:
        """Values in one flattened input row."""
        return self.counts[0]

    @property
    def n_classes(self) -> int:
        """Classes of the model; 0 when it does not give probabilities."""
        return self.counts[1]

    @property
    def streams(self) -> tuple[str, ...]:
        """What is bet on, each at every one of ``taus``."""
        *scores, trees = evidence.SCORES
        scores += ["layer"] if self.layer is not None else []
        scores += ["pictures"] if self.pictures is not None else []
        scores += [trees] if self.trees is not None else []
        return (*scores, "step", "beside") if self.beside else (*scores, "step")

    @property
    def fidelity(self) -> Literal["agreement", "R²", ""]:
        """What the fidelity of the budget is: agreement of top classes, R² of numbers, or "" where it was not measured."""
        if self.n_classes:
            return "agreement"
        return "" if (self.curve[2] == 1.0).all() else "R²"

    @property
    def promise(self) -> str:
        """The null that the guarantee is stated under, in words."""
        rows, shares = self.counts[3], {name: f"{100 * share:g} %" for name, share in null.SHARES.items()}
        return (
            f"An account that draws its distinct questions from the benign population (known from {rows} reference rows) "
            f"with any mix of classes, subpopulations and segments as wide as {null.smallest_account(rows):.0f} of them, "
            f"repeated at will, rounded to {synthetic.ROUNDING:g} or jittered by up to {synthetic.JITTER:g} deviations "
            f"of a column, with at most {shares['defaulted']} defaults, {shares['mistyped']} slips and "
            f"{shares['what-if']} what-if questions, is ever alarmed with probability at most {self.alpha:g}."
        )

    def scores(self, x: Floats, probs: Floats | None, hidden: Hidden = None) -> Floats:
        """Scores (b, scores) that are large for synthetic rows; see ``evidence.SCORES``. ``hidden``: coordinates (b, r) of the
        inner layer, where the profile has one."""
        raw, features = self._judges.raw_scores(x, probs, hidden)
        scores = standard_scores(raw, probs, self.class_shift, self.class_scale)
        return scores if self.surroundings is None else among(self.surroundings, scores, features)

    def events(self, x: Floats, probs: Floats | None, hidden: Hidden = None) -> NDArray[np.bool_]:
        """The events (b, score streams) of questions, with arguments as of ``scores``."""
        scores = self.scores(x, probs, hidden)
        grid = self.grid
        found = scores[:, :, None] > self.limits if grid is None else grid.events(x, scores, self.limits)
        out: NDArray[np.bool_] = found.reshape(len(x), -1)
        return out

    @property
    def _judges(self) -> "Judges":
        return Judges(self.embedding, self.layer, self.pictures, self.discriminator, self.trees)

    def to_arrays(self) -> dict[str, NDArray[np.generic]]:
        """The profile as named arrays (float64 and int64), for a safetensors file."""
        out: dict[str, NDArray[np.generic]] = {
            f"embedding.{f.name}": getattr(self.embedding, f.name) for f in fields(Embedding)
        }
        out |= {f"discriminator.{i}": w for i, w in enumerate(self.discriminator.weights)}
        if self.trees is not None:
            out |= {f"trees.{f.name}": getattr(self.trees, f.name) for f in fields(Trees)}
        if self.layer is not None:
            out |= self.layer.to_arrays()
        if self.pictures is not None:
            out |= self.pictures.to_arrays()
        if self.grid is not None:
            out |= {f"grid.{f.name}": getattr(self.grid, f.name) for f in fields(Grid)}
        if self.surroundings is not None:
            out |= {f"surroundings.{f.name}": getattr(self.surroundings, f.name) for f in fields(Surroundings)}
        out |= {name: getattr(self, name) for name in _PLAIN}
        later = [number for number in (self.beside, self.fine, self.error) if number]
        scalars = [self.near, self.alpha, *later]
        out["scalars"] = np.array(scalars)
        out["counts"] = np.array((self._version, *self.counts), dtype=np.int64)
        return {name: np.ascontiguousarray(value) for name, value in out.items()}

    @property
    def _version(self) -> int:
        if self.trees is None:
            return 2
        if not self.beside:
            return 3
        if self.grid is None and self.pictures is None:
            return 4
        if not self.fine:
            return 5
        return VERSION if self.error else 6

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> "Profile":
        """Rebuild from ``to_arrays``. Raises Invalid (missing, misshapen or not finite)."""
        try:
            counts = [int(v) for v in arrays["counts"]]
            if counts[0] not in {2, 3, 4, 5, 6, VERSION} or len(counts) != 5:
                raise Invalid(
                    f"extraction profile version {counts[0]} is none that this modelkeep reads: publish the model again"
                )
            got = {name: np.asarray(arrays[name], dtype=np.float64) for name in arrays if name != "counts"}
            if not all(np.isfinite(value).all() for value in got.values()):
                raise Invalid("the extraction profile holds numbers that are not finite: publish the model again")
            profile = cls(
                embedding=Embedding(**{f.name: got[f"embedding.{f.name}"] for f in fields(Embedding)}),
                discriminator=Discriminator(tuple(got[f"discriminator.{i}"] for i in range(6))),
                trees=None if counts[0] == 2 else _trees(got),
                **{name: got[name] for name in _PLAIN},
                near=float(got["scalars"][0]),
                beside=float(got["scalars"][2]) if counts[0] >= 4 else 0.0,
                alpha=float(got["scalars"][1]),
                layer=Layer.from_arrays(got),
                pictures=PictureJudge.from_arrays(got),
                grid=Grid(*(got[f"grid.{f.name}"] for f in fields(Grid))) if counts[0] >= 5 else None,
                surroundings=_surroundings(got) if counts[0] >= 5 else None,
                fine=float(got["scalars"][3]) if counts[0] >= 6 else 0.0,
                error=float(got["scalars"][4]) if counts[0] >= 7 else 0.0,
                counts=(counts[1], counts[2], counts[3], counts[4]),
            )
        except (KeyError, IndexError, TypeError, ValueError) as cause:
            raise Invalid("the extraction profile lacks an array that it needs: publish the model again") from cause
        bets_on = len(profile.streams) * len(profile.taus)
        fits = profile.embedding.basis.shape[0] == profile.n_features and len(profile.kappa) == bets_on
        parts_fit = _in_range(profile) and _sees(profile) and _on_grid(profile)
        if not fits or not parts_fit or profile._version != counts[0]:
            raise Invalid("the extraction profile's arrays do not fit together: publish the model again")
        return profile


def _surroundings(got: Mapping[str, Floats]) -> Surroundings:
    return Surroundings(*(got[f"surroundings.{f.name}"] for f in fields(Surroundings)))


def _trees(got: Mapping[str, Floats]) -> Trees:
    found = Trees(got["trees.columns"].astype(np.int64), got["trees.limits"], got["trees.leaves"])
    if found.columns.ndim != 2 or found.columns.shape[1] != DEPTH or found.limits.shape != found.columns.shape:
        raise ValueError("trees")
    if found.leaves.shape != (len(found.columns), 1 << DEPTH):
        raise ValueError("leaves")
    return found


def _in_range(profile: Profile) -> bool:
    """Whether the trees ask about columns that rows have."""
    if profile.trees is None:
        return True
    wide = profile.n_features > WIDEST
    width = len(profile.embedding.centre) if wide else profile.n_features + max(0, profile.n_classes - 1)
    return bool((profile.trees.columns >= 0).all() and (profile.trees.columns < width).all())


def _sees(profile: Profile) -> bool:
    """Whether what judges pictures takes rows as wide as these."""
    if profile.pictures is None:
        return True
    features = len(profile.embedding.centre) + MEASURES
    return profile.pictures.picture.pixels == profile.n_features and profile.pictures.discriminator.inputs == features


def _on_grid(profile: Profile) -> bool:
    """Whether what came with versions 5 to 7 fits the rest."""
    grid, around = profile.grid, profile.surroundings
    if grid is None or around is None:
        return grid is None and around is None
    if not 0.0 <= profile.fine < 1.0 or profile.error < 0.0 or (profile.error and profile.n_classes):
        return False
    fits = grid.whole.shape == (profile.n_features,) and grid.limits.shape == profile.limits.shape
    size = (1 + len(profile.embedding.centre), len(LEARNT))
    return fits and around.mean.shape == around.spread.shape == size and bool((around.least > 0.0).all())


VERSION = 7
"""Of a profile that holds the model's own error; one that does not is of version 6."""
LEARNT = [-1]
"""The scores that are judged by their surroundings: the trees'."""
_PLAIN = ("class_shift", "class_scale", "reference", "taus", "limits", "step_limits", "kappa", "cells", "curve")


def with_kappa(profile: Profile, kappa: Sequence[float] | Floats) -> Profile:
    """The profile with other bounds. Raises Invalid (not one a stream, or outside (0, 1))."""
    bounds = np.asarray(kappa, dtype=np.float64)
    if bounds.shape != profile.kappa.shape or not ((bounds > 0.0) & (bounds < 1.0)).all():
        raise Invalid(f"a calibration of this profile has {len(profile.kappa)} bounds between 0 and 1")
    return replace(profile, kappa=bounds)


def with_error(profile: Profile, error: float) -> Profile:
    """The profile of a model without classes, with its own ``error``. Raises Invalid (it has classes, or it is negative)."""
    if profile.n_classes or error < 0.0:
        raise Invalid("only a model that answers with one number has an error of its own, of 0 or more")
    return replace(profile, error=error)


WIDEST = 160
"""Rows with more columns are shown to the trees through their features."""


def tree_rows(x: Floats, probs: Floats | None, features: Floats) -> Floats:
    """What the trees see: the columns as they are with log odds of the answer, or the features of wide rows."""
    if x.shape[1] > WIDEST:
        return features
    if probs is None or probs.shape[1] < 2:
        return x
    log = np.log(probs + 1e-6)
    return np.concatenate([x, log[:, 1:] - log[:, :1]], axis=1)


class Judges(NamedTuple):
    """What the scores come from."""

    embedding: Embedding
    layer: Layer | None
    pictures: PictureJudge | None
    discriminator: Discriminator
    trees: Trees | None

    def raw_scores(self, x: Floats, probs: Floats | None, hidden: Hidden) -> tuple[Floats, Floats]:
        """Scores before class standardisation, (b, 3 to 6): synthetic, far, small margin and, where there are those, of the
        inner layer, of pictures and of the trees. And the features (b, f) of the rows."""
        features = self.embedding.features(x, probs)
        far = features[:, -5] + features[:, -10]
        scores = [self.discriminator.suspicion(features), far, -features[:, -1]]
        if self.layer is not None and hidden is not None:
            scores.append(self.layer.strangeness(hidden))
        if self.pictures is not None:
            scores.append(self.pictures.suspicion(x, features))
        if self.trees is not None:
            scores.append(self.trees.suspicion(tree_rows(x, probs, features)))
        return np.stack(scores, axis=1), features


def standard_scores(raw: Floats, probs: Floats | None, shift: Floats, scale: Floats) -> Floats:
    """The scores within the predicted class, in the order of ``Profile.streams``. ``raw``: (b, 3 to 6); ``shift``,
    ``scale``: (classes or 1, 3 to 6)."""
    classes = classes_of(probs, len(raw), len(shift))
    within = (raw - shift[classes]) / scale[classes]
    return np.concatenate([within[:, :3], within[:, :1] + within[:, 1:2], within[:, 3:]], axis=1)


def among(surroundings: Surroundings, scores: Floats, features: Floats) -> Floats:
    """The scores (b, scores), the trees' in deviations of real rows around. Changes ``scores``."""
    scores[:, LEARNT] = surroundings.standard(scores[:, LEARNT], features)
    return scores


def classes_of(probs: Floats | None, count: int, known: int) -> Ints:
    """The predicted class of each of ``count`` rows by ``probs`` (count, k), at most ``known`` - 1; 0 where there are none."""
    if probs is None or probs.shape[1] < 2:
        return np.zeros(count, dtype=np.int64)
    out: Ints = np.minimum(probs.argmax(axis=1), known - 1)
    return out
