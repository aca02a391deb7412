"""Thefts of the trace bench: what was asked and answered, the copy made of it, and the p-values for the account.

A theft is drawn by its setting and run alone, so that every part judges the same thefts, and equal arguments give equal rows.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from benchmarks._extraction import Floats, Predict, Setting
from benchmarks._trace_copies import copies
from modelkeep.extraction.attacks import Surrogate
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.probes import draw_probes
from modelkeep.extraction.reading import DOUBTFUL, Heard, Reading, hear

ACCOUNTS = 100_000
"""Over which a p-value is corrected."""
PROBES = 2000
EPSILON = 0.05
_FRESH = 0.3
"""Of the pool's rows, which no thief asks."""


@dataclass(frozen=True, eq=False)
class Theft:
    """Questions ``x`` (n, d), the model's answers ``clean`` (n, k), the account's ``key``, and what it was answered."""

    run: int
    x: Floats
    clean: Floats
    key: bytes
    served: Floats


@dataclass
class Thefts:
    """Thefts and copies of one setting, each made once."""

    setting: Setting
    _made: dict[tuple[str, int, int], tuple[Theft, Surrogate]] = field(default_factory=dict)
    _probes: dict[int, Heard] = field(default_factory=dict)

    def theft(self, run: int, queries: int) -> Theft:
        """The first ``queries`` questions of a thief of natural rows."""
        rng = np.random.default_rng([61, run])
        x, key = questions(self.setting, queries, rng), np.random.default_rng([62, run]).bytes(32)
        clean = np.asarray(self.setting.predict(x))
        return Theft(run, x, clean, key, served(self.setting, key, x, clean))

    def copy(self, kind: str, run: int, queries: int) -> tuple[Theft, Surrogate]:
        """A theft, and the copy of a ``kind`` that was trained on its answers."""
        name = (kind, run, queries)
        if name not in self._made:
            theft = self.theft(run, queries)
            self._made[name] = theft, self.taught(kind, run, theft.x, theft.served)
        return self._made[name]

    def taught(self, kind: str, seed: int, x: Floats, probs: Floats) -> Surrogate:
        """A copy of a ``kind`` that was taught answers ``probs`` (n, k) to ``x`` (n, d)."""
        made = copies(large(self.setting))[kind](seed)
        made.fit(x, probs)
        return made

    def rows(self, count: int, seed: int) -> Floats:
        """Natural rows (count, d) that no thief has asked; where they run out, rows moved a little."""
        fresh = self.setting.pool[-int(_FRESH * len(self.setting.pool)) :]
        return _more(self.setting, fresh, count, np.random.default_rng([63, seed]))

    def read(self, suspect: Predict, run: int, doubtful: tuple[float, float] = DOUBTFUL) -> Reading:
        """A suspect as the product reads it: on fresh probes, drawn from the profile. ``doubtful``: as of ``Reading``."""
        if run not in self._probes:
            x = draw_probes(self.setting.profile, PROBES, 1_000 + run)
            self._probes[run] = hear(self.setting.predict, self.setting.predict, x)
        probes = self._probes[run]
        return Reading(Heard(probes.x, probes.clean, np.asarray(suspect(probes.x))), EPSILON, doubtful)

    def weighed(self, suspect: Predict, theft: Theft) -> dict[str, float]:
        """log10 of p after Bonferroni, at most 0: ``log``, with the account's log, and ``probes``, from fresh probes alone."""
        reading, asked = self.read(suspect, theft.run), Heard(theft.x, theft.clean, np.asarray(suspect(theft.x)))
        found = {"log": asked, "probes": None}
        return {how: corrected(reading.weigh(theft.key, self.setting.profile, some)[0]) for how, some in found.items()}


def large(setting: Setting) -> bool:
    """Whether rows are pictures large enough for convolutions."""
    return setting.name.startswith("fashion")


def corrected(p: float) -> float:
    """log10 of a p-value times the accounts, at most 0."""
    return round(min(0.0, float(np.log10(p * ACCOUNTS))), 2)


def served(setting: Setting, key: bytes, x: Floats, clean: Floats) -> Floats:
    """Answers ``clean`` (n, k) to ``x`` as a gateway gives them to the account with that key: marked, then rounded."""
    return respond(DEFAULT.steps[0], Marker(key, setting.profile, EPSILON).apply(x, clean))


def questions(setting: Setting, count: int, rng: np.random.Generator) -> Floats:
    """What a thief of natural rows asks (count, d)."""
    return _more(setting, setting.pool[: len(setting.pool) - int(_FRESH * len(setting.pool))], count, rng)


def _more(setting: Setting, known: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Some of the rows ``known`` (n, d), each once; where they run out, rows moved a little, as a thief makes more of few."""
    natural = known[rng.permutation(len(known))[:count]]
    missing = count - len(natural)
    moved = natural[rng.integers(len(natural), size=missing)]
    moved = moved + setting.profile.embedding.scale * rng.normal(0.0, 0.2, moved.shape)
    moved = np.clip(moved, known.min(axis=0), known.max(axis=0))
    return np.concatenate([natural, moved]).astype(np.float32).astype(np.float64)


Mixed = tuple[list[tuple[bytes, slice]], Floats]
"""Keys of accounts with the questions that each asked, and the answers that the thief makes of theirs."""


def averaged(setting: Setting, theft: Theft, accounts: int) -> Mixed:
    """All of them ask everything, and the thief takes the mean of their answers."""
    keys = _keys(theft, accounts)
    answers = [served(setting, key, theft.x, theft.clean) for key in keys]
    return [(key, slice(None)) for key in keys], np.mean(answers, axis=0)


def pooled(setting: Setting, theft: Theft, accounts: int) -> Mixed:
    """Each of them asks its share."""
    keys, answers = _keys(theft, accounts), np.empty_like(theft.served)
    shares = [slice(at, None, accounts) for at in range(accounts)]
    for key, share in zip(keys, shares, strict=True):
        answers[share] = served(setting, key, theft.x[share], theft.clean[share])
    return list(zip(keys, shares, strict=True)), answers


def _keys(theft: Theft, accounts: int) -> list[bytes]:
    rng = np.random.default_rng([64, theft.run])
    return [theft.key, *(rng.bytes(32) for _ in range(accounts - 1))]


TOGETHER: dict[str, Callable[[Setting, Theft, int], Mixed]] = {"averaged": averaged, "pooled": pooled}
