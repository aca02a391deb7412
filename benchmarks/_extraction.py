"""Data, victims and honest people of the extraction bench.

Rows are split once: what the victim learns from, what its owner calibrates with, and a pool that everybody else draws from.
"""

import csv
import gzip
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks._extraction_cnn import fit_cnn
from modelkeep.extraction import null, synthetic
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Predict = Callable[[Floats], Floats]
BESIDE = Path(__file__).parents[2] / "shared" / "data"
REFERENCE = 4000
DATA = ("digits", "adult", "credit", "fashion", "elec2", "elec2-mixed")


@dataclass(frozen=True, eq=False)
class Data:
    """Rows (n, d) and labels (n,), shuffled unless ``ordered`` by time; ``train``: how many the victim learns from."""

    name: str
    x: Floats
    y: Ints
    train: int
    ordered: bool = False


@dataclass(frozen=True, eq=False)
class Setting:
    """A victim with its profile, and the rows that people hold: ``pool`` (n, d), with the victim's answers."""

    name: str
    predict: Predict
    profile: Profile
    train: Floats
    reference: Floats
    pool: Floats
    answers: Floats


# -- data --


def datasets(folder: Path | None, wanted: set[str]) -> Iterator[Data]:
    """Digits always; adult, credit-default, fashion-mnist and elec2 where their folder is. ``wanted``: names, or all."""
    makers: dict[str, Callable[[], Data]] = {"digits": _digits}
    if folder is not None and folder.is_dir():
        makers |= {
            "adult": lambda: _adult(folder / "adult"),
            "credit": lambda: _credit(folder / "credit-default" / "UCI_Credit_Card.csv.gz"),
            "fashion": lambda: _fashion(folder / "fashion-mnist"),
            "elec2": lambda: _elec(folder / "elec2" / "elec.csv.gz"),
            "elec2-mixed": lambda: _mixed(_elec(folder / "elec2" / "elec.csv.gz")),
        }
    for name, make in makers.items():
        if not wanted or name in wanted:
            yield make()


def _digits() -> Data:
    bunch = load_digits()
    return _shuffled("digits", bunch.data, bunch.target, 600)


def _shuffled(name: str, x: NDArray[np.generic], y: NDArray[np.generic], train: int) -> Data:
    order = np.random.default_rng(20).permutation(len(x))
    return Data(name, narrow(np.asarray(x))[order], np.asarray(y, dtype=np.int64)[order], train)


def narrow(x: NDArray[np.generic]) -> Floats:
    """Numbers as they reach a model: float32, in wide form."""
    return x.astype(np.float32).astype(np.float64)


def _table(path: Path, head: bool) -> list[list[str]]:
    with gzip.open(path, "rt") as file:
        return [row for row in csv.reader(file) if row][int(head) :]


_WORDS = (1, 3, 5, 6, 7, 8, 9, 13)


def _adult(folder: Path) -> Data:
    """Words as one column each, numbers as they are."""
    rows = [*_table(folder / "adult-train.csv.gz", False), *_table(folder / "adult-test.csv.gz", False)]
    rows = [[word.strip() for word in row] for row in rows if len(row) == 15]
    columns: list[Floats] = []
    for at in range(14):
        told = [row[at] for row in rows]
        if at in _WORDS:
            known = sorted(set(told))
            codes = np.array([known.index(word) for word in told])
            columns += [(codes == code) * 1.0 for code in range(len(known))]
        else:
            columns.append(np.array(told, dtype=np.float64))
    y = np.array([row[14].startswith(">50K") for row in rows])
    return _shuffled("adult", np.stack(columns, axis=1), y, 16_000)


def _credit(path: Path) -> Data:
    table = np.array([row[1:] for row in _table(path, True)], dtype=np.float64)
    return _shuffled("credit", table[:, :23], table[:, 23], 6_000)


def _fashion(folder: Path) -> Data:
    x, y = [], []
    for part in ("train", "t10k"):
        with gzip.open(folder / f"{part}-images-idx3-ubyte.gz") as file:
            x.append(np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 784) / 255.0)
        with gzip.open(folder / f"{part}-labels-idx1-ubyte.gz") as file:
            y.append(np.frombuffer(file.read()[8:], np.uint8))
    return _shuffled("fashion", np.concatenate(x), np.concatenate(y), 20_000)


def _elec(path: Path) -> Data:
    table = _table(path, True)
    x = np.array([row[:6] for row in table], dtype=np.float64)
    return Data(
        "elec2", narrow(x), np.array([row[6] in {"UP", "1", "1.0"} for row in table], dtype=np.int64), 15_000, ordered=True
    )


def _mixed(data: Data) -> Data:
    """The same rows in no order: of one population, which does not drift."""
    return _shuffled(f"{data.name}-mixed", data.x, data.y, data.train)


# -- victims --

Fit = Callable[[Floats, Ints], Predict]


def _network(x: Floats, y: Ints) -> Predict:
    model = make_pipeline(
        StandardScaler(), MLPClassifier((64, 32), alpha=0.01, max_iter=40, early_stopping=True, random_state=1)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)
    return model.predict_proba


def _trees(x: Floats, y: Ints) -> Predict:
    return HistGradientBoostingClassifier(max_iter=120, early_stopping=True, random_state=1).fit(x, y).predict_proba


def victims(data: str) -> dict[str, Fit]:
    """What is served of a data set: an MLP, boosted trees, and of large pictures a convolutional network."""
    found: dict[str, Fit] = {"mlp": _network, "trees": _trees}
    return {**found, "cnn": fit_cnn} if data == "fashion" else found


def settings(folder: Path | None, wanted: set[str]) -> Iterator[Setting]:
    """Every data set with every victim; ``wanted``: names such as ``adult/mlp`` or ``adult``, all when empty."""
    for data in datasets(folder, {name.split("/")[0] for name in wanted}):
        for kind, fit in victims(data.name).items():
            name = f"{data.name}/{kind}"
            if not wanted or name in wanted or data.name in wanted:
                yield _setting(name, data, fit(data.x[: data.train], data.y[: data.train]))


def is_vision(setting: Setting) -> bool:
    """Whether rows are square pictures."""
    return setting.name.split("/")[0] in {"digits", "fashion"}


def _setting(name: str, data: Data, predict: Predict) -> Setting:
    rest = data.x[data.train :]
    size = min(REFERENCE, len(rest) // 2)
    reference, pool = rest[:size], rest[size:]
    profile = fit_profile(reference, predict, seed=3, train_rows=data.x[: data.train])
    return Setting(name, predict, profile, data.x[: data.train], reference, pool, np.asarray(predict(pool)))


# -- honest people --

Weigh = Callable[["People", np.random.Generator], Floats]


@dataclass(frozen=True, eq=False)
class People:
    """The pool as families of people see it: principal coordinates (n, f), groups (n,), the victim's class and margin."""

    coordinates: Floats
    groups: Ints
    classes: Ints
    margin: Floats

    @classmethod
    def of(cls, setting: Setting) -> "People":
        """Coordinates and groups of the bench's own, which calibration has not seen."""
        centred = (setting.pool - setting.pool.mean(axis=0)) / (setting.pool.std(axis=0) + 1e-9)
        _, _, directions = np.linalg.svd(centred[:4000], full_matrices=False)
        found = centred @ directions[:12].T
        found /= found.std(axis=0) + 1e-9
        two = np.partition(setting.answers, -2, axis=1)[:, -2:]
        groups = null.clusters(found, 20, np.random.default_rng(8))[1]
        return cls(found, groups, setting.answers.argmax(axis=1), np.log((two[:, 1] + 1e-9) / (two[:, 0] + 1e-9)))


def _labels(labels: Ints, concentration: float, rng: np.random.Generator) -> Floats:
    _, index, counts = np.unique(labels, return_inverse=True, return_counts=True)
    drawn = rng.dirichlet(np.full(len(counts), concentration)) + 1e-9
    return (drawn / counts)[index]


def _rank(value: Floats) -> Floats:
    return (np.argsort(np.argsort(value)) + 0.5) / len(value)


def _segment(people: People, rng: np.random.Generator) -> Floats:
    direction = people.coordinates @ rng.normal(size=people.coordinates.shape[1])
    rank = _rank(direction)
    return np.exp(rng.uniform(0.5, 3.0) * rank) if rng.random() < 0.7 else (rank > 0.75) + 1e-9


def _hard(people: People, rng: np.random.Generator) -> Floats:
    return np.exp(rng.uniform(0.5, 3.0) * _rank(-people.margin))


def _neighbourhood(people: People, rng: np.random.Generator) -> Floats:
    """Rows around one of them, as wide as the null says: the family that calibration does not know."""
    apart = ((people.coordinates - people.coordinates[rng.integers(len(people.coordinates))]) ** 2).sum(axis=1)
    return np.exp(-0.5 * apart / np.quantile(apart, rng.uniform(0.1, 0.5)))


FAMILIES: dict[str, Weigh] = {
    "everybody": lambda people, _: np.ones(len(people.classes)),
    "class mix": lambda people, rng: _labels(people.classes, 0.3, rng),
    "group mix": lambda people, rng: _labels(people.groups, 0.5, rng),
    "class and group": lambda people, rng: _labels(people.classes, 0.3, rng) * _labels(people.groups, 0.5, rng),
    "segment": _segment,
    "hard cases": _hard,
    "neighbourhood (held out)": _neighbourhood,
}
SESSIONS = "sessions of segments"
"""A family whose mix changes from session to session."""
HANDLINGS: dict[str, float] = {"plain": 0.0, **null.SHARES}
"""What people do to their rows, and to what share of them."""


def handled(setting: Setting, how: str) -> Floats:
    """The pool's rows, each as somebody sends it who handles them so."""
    rng = np.random.default_rng(list(how.encode()))
    rows, columns = setting.pool, synthetic.study_columns(setting.train, setting.profile.embedding.scale)
    match how:
        case "jittered":
            return synthetic.jittered(rows, columns, synthetic.JITTER, rng)
        case "slightly jittered":
            return synthetic.jittered(rows, columns, 0.1 * synthetic.JITTER, rng)
        case "rounded":
            return synthetic.rounded(rows, columns)
        case "defaulted":
            return synthetic.defaulted(rows, rng)
        case "mistyped":
            return synthetic.mistyped(rows, rng)
        case _:
            return synthetic.what_if(rows, rng)


def mixes(people: People, family: str, count: int, narrowest: float, rng: np.random.Generator) -> Iterator[Floats]:
    """The weights of so many accounts of a family, each as spread as ``narrowest`` (a share of the pool) or more."""
    made, tried = 0, 0
    while made < count and tried < 50 * count:
        tried += 1
        weights = FAMILIES[family](people, rng)
        weights = weights / weights.sum()
        if 1.0 / (weights**2).sum() >= narrowest * len(weights):
            made += 1
            yield weights
