"""Which attacks are blocked: what a copy is worth at the alarm or when the budget is spent.

fid(n): how often the better of two copies trained on the first n answers agrees with the victim on held-out natural rows. A run
is *blocked* that is stopped at n with (fid(n) - majority) / (fid(B) - majority) <= 1/2, where fid(B) is what the same attack
gets from B answers of the bare model (at least majority + .05: what is worth less cannot be halved), **and** with
fid(n) <= fid of a thief who asks natural rows at random, at the same n, + .02.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from benchmarks import Row
from benchmarks._extraction import Floats, Ints, Setting, is_vision
from benchmarks._extraction_pipeline import Stolen, steal
from benchmarks._extraction_thieves import NATURAL, exam_rows, knowledge, planner, strategy
from modelkeep.adapters.surrogates import MlpSurrogate, TreesSurrogate
from modelkeep.extraction.attacks import STRATEGIES, Surrogate, copy_maker

CHECKPOINTS = (8, 16, 32, 64, 125, 250, 500, 1000, 2000)
LEAST = 0.05
HALF, ADVANTAGE = 0.5, 0.02
CONTROLS = 5
"""Thieves of natural rows, whose mean is what others are compared with."""


class Ridge:
    """A copy for planning that is fitted in milliseconds: ridge regression of the answers on cosines of random directions."""

    def __init__(self, seed: int, features: int = 256) -> None:
        self._rng, self._features = np.random.default_rng(seed), features

    def fit(self, x: Floats, probs: Floats) -> None:
        """Learn from questions (n, d) and soft answers (n, k)."""
        self._mean, self._scale = x.mean(axis=0), x.std(axis=0) + 1e-9
        self._turn = self._rng.normal(size=(x.shape[1], self._features)) * (0.5 / np.sqrt(x.shape[1]))
        self._phase = self._rng.uniform(0.0, 2.0 * np.pi, self._features)
        lifted = self._lift(x)
        gram = lifted.T @ lifted + 0.3 * np.eye(lifted.shape[1])
        self._solved = np.linalg.solve(gram, lifted.T @ probs)

    def predict(self, x: Floats) -> Floats:
        """Class probabilities (n, k)."""
        raw = np.clip(self._lift(x) @ self._solved, 1e-4, 1.0)
        out: Floats = raw / raw.sum(axis=1, keepdims=True)
        return out

    def _lift(self, x: Floats) -> Floats:
        white = np.clip((x - self._mean) / self._scale, -5.0, 5.0)
        return np.column_stack([np.ones(len(x)), white, np.cos(white @ self._turn + self._phase)])


class Exam(NamedTuple):
    """Rows (n, d) with the victim's own top classes (n,), and the fidelity of the constant copy."""

    x: Floats
    labels: Ints
    majority: float

    @classmethod
    def of(cls, setting: Setting) -> "Exam":
        """The rows of a setting that nobody asks."""
        rows = exam_rows(setting)
        labels = np.asarray(setting.predict(rows)).argmax(axis=1)
        return cls(rows, labels, float(np.bincount(labels).max() / len(labels)))


@dataclass(frozen=True, eq=False)
class Judge:
    """Measures copies of one setting's victim."""

    setting: Setting
    exam: Exam

    def fidelity(self, attack: str, x: Floats, probs: Floats, seed: int) -> float:
        """Of the best copy that a thief trains on these answers; of the constant copy without any."""
        if not len(x):
            return self.exam.majority
        return max(self._agreement(make(), x, probs) for make in self._copies(attack, seed))

    def _copies(self, attack: str, seed: int) -> list[Callable[[], Surrogate]]:
        def network() -> Surrogate:
            return MlpSurrogate(seed=seed, updates=200)

        own = copy_maker(attack, knowledge(self.setting, seed), network) if attack in STRATEGIES else network
        return [own] if is_vision(self.setting) else [own, lambda: TreesSurrogate(seed=seed)]

    def _agreement(self, copy: Surrogate, x: Floats, probs: Floats) -> float:
        copy.fit(x, probs)
        return float((copy.predict(self.exam.x).argmax(axis=1) == self.exam.labels).mean())

    def curve(self, attack: str, stolen: Stolen, seed: int, most: int) -> Floats:
        """Fidelity at each checkpoint up to ``most``; where less was answered, of all answers."""
        out: list[float] = []
        for count in _checkpoints(most):
            known = min(count, len(stolen.x))
            done = out and known == min(_before(count), len(stolen.x))
            out.append(out[-1] if done else self.fidelity(attack, stolen.x[:known], stolen.probs[:known], seed))
        return np.array(out)


def _checkpoints(most: int) -> list[int]:
    return [count for count in CHECKPOINTS if count <= most]


def _before(count: int) -> int:
    return CHECKPOINTS[max(CHECKPOINTS.index(count) - 1, 0)]


class Run(NamedTuple):
    """One thief behind the defence. ``at``: queries at the stop, None without one; ``relative`` and ``advantage``: of its copy
    then."""

    at: int | None
    why: str
    relative: float
    advantage: float
    fidelity: float
    changed: int

    @property
    def blocked(self) -> bool:
        """By the definition above."""
        return self.at is not None and self.relative <= HALF and self.advantage <= ADVANTAGE


class Blocked:
    """All attacks on one setting. ``most``: B."""

    def __init__(self, setting: Setting, runs: int, most: int) -> None:
        self._setting, self._runs, self._most = setting, runs, most
        self._judge = Judge(setting, Exam.of(setting))
        controls = [
            self._judge.curve(NATURAL, steal(setting, strategy(setting, NATURAL, 1000 + seed, planner(seed)), most), seed, most)
            for seed in range(min(runs, CONTROLS))
        ]
        self.control: Floats = np.mean(controls, axis=0)
        """fid at each checkpoint of a thief who asks natural rows of the defended model."""

    def row(self, attack: str) -> Row:
        """One attack: undefended once, for the curve, then ``runs`` times behind the defence until it is stopped."""
        bare = steal(self._setting, strategy(self._setting, attack, 0, lambda: Ridge(0)), self._most, on=False)
        curve = self._judge.curve(attack, bare, 0, self._most)
        runs = [self._run(attack, seed, float(curve[-1])) for seed in range(self._runs)]
        stops = [run.at for run in runs if run.at is not None]
        return {
            "part": "blocked",
            "setting": self._setting.name,
            "attack": attack,
            "runs": len(runs),
            "alarm": sum(run.why == "alarm" for run in runs),
            "budget": sum(run.why == "budget" for run in runs),
            "stopped at": int(np.median(stops)) if stops else "",
            "latest": max(stops, default=""),
            "majority": _three(self._judge.exam.majority),
            "fid": _three(float(np.mean([run.fidelity for run in runs]))),
            "fid(B)": _three(float(curve[-1])),
            "relative": _three(float(np.mean([run.relative for run in runs]))),
            "advantage": _three(float(np.mean([run.advantage for run in runs]))),
            "half": sum(run.relative <= HALF for run in runs),
            "no gain": sum(run.advantage <= ADVANTAGE for run in runs),
            "blocked": sum(run.blocked for run in runs),
            "top-1 changed": sum(run.changed for run in runs),
            "checkpoints": _checkpoints(self._most),
            "curve": curve.tolist(),
            "control": self.control.tolist(),
            "stops": [[run.at or 0, run.fidelity] for run in runs],
        }

    def _run(self, attack: str, seed: int, whole: float) -> Run:
        """``whole``: what the attack gets from B answers of the bare model."""
        stolen = steal(self._setting, strategy(self._setting, attack, seed, planner(seed)), self._most)
        known = min(stolen.stop or self._most, len(stolen.x))
        fidelity = self._judge.fidelity(attack, stolen.x[:known], stolen.probs[:known], seed)
        majority = self._judge.exam.majority
        return Run(
            stolen.stop,
            "" if stolen.stop is None else "alarm" if stolen.stop == stolen.alarmed else "budget",
            (fidelity - majority) / max(whole - majority, LEAST),
            fidelity - self._natural(known),
            fidelity,
            stolen.changed,
        )

    def _natural(self, count: int) -> float:
        at = np.log(_checkpoints(self._most))
        first = self._judge.exam.majority
        return float(np.interp(np.log(max(count, 1)), np.concatenate([[0.0], at]), np.concatenate([[first], self.control])))


def _three(value: float) -> float:
    return round(value, 3)


def share(rows: Sequence[Row], key: str = "blocked") -> float:
    """The share of all runs of these rows that are blocked (or whatever else ``key`` counts); 0 without any."""
    runs = sum(int(str(row["runs"])) for row in rows)
    return sum(int(str(row[key])) for row in rows) / runs if runs else 0.0
