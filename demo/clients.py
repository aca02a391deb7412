"""Twenty honest clients with uneven habits, each a real HTTPS client in a thread of its own."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from demo.findings import ClientRow
from demo.train import Array, Victim
from modelkeep.adapters.targets import HttpTarget
from modelkeep.errors import ModelkeepError, ReviewRequired

Connect = Callable[[str, Victim], HttpTarget]
"""Opens a connection for an account to the release of a model."""


@dataclass(frozen=True)
class Habit:
    """How an honest account asks.

    ``rows``: how many; ``batch``: rows a request; ``favourites``: share of the questions about one class (0 = no preference);
    ``repeats``: share of the questions that were asked before (retries, dashboards); ``burst``: requests between two pauses.
    """

    title: str
    rows: int
    batch: int = 1
    favourites: float = 0.0
    repeats: float = 0.0
    burst: int = 20


HABITS = (
    Habit("one at a time", 60),
    Habit("a nightly batch", 160, batch=16, burst=100),
    Habit("a dashboard that repeats", 120, repeats=0.6),
    Habit("a specialist in one class", 80, favourites=0.7),
    Habit("in bursts", 100, burst=50),
    Habit("retries after time-outs", 90, repeats=0.25),
    Habit("a small clinic", 30),
    Habit("batches of one class", 120, batch=8, favourites=0.9),
    Habit("heavy and steady", 200, batch=2),
    Habit("a slow evaluator", 50, batch=4, burst=2),
)


def questions(habit: Habit, victim: Victim, rng: np.random.Generator) -> Array:
    """What an account of this habit asks: natural rows (n, d) that the model never saw, in order."""
    pool = victim.unseen
    labels = victim.bare.predict(pool).argmax(axis=1)
    favourite = np.flatnonzero(labels == rng.integers(victim.classes))
    fresh = rng.permutation(len(pool))
    asked: list[int] = []
    for turn in range(habit.rows):
        if asked and rng.random() < habit.repeats:
            asked.append(int(rng.choice(asked)))
        elif rng.random() < habit.favourites:
            asked.append(int(rng.choice(favourite)))
        else:
            asked.append(int(fresh[turn % len(fresh)]))
    return pool[asked]


@dataclass
class HonestClient:
    """One account at work. Counters may be read while it runs; ``error`` says why it stopped early."""

    name: str
    habit: Habit
    victim: Victim
    seed: int
    pace: float = 0.02
    asked: int = 0
    answered: int = 0
    changed: int = 0
    alarms: int = 0
    error: str = ""
    done: bool = False
    waits: list[float] = field(default_factory=list)
    receipts: list[str] = field(default_factory=list)

    @property
    def state(self) -> str:
        """One word for the live table."""
        return "held" if self.alarms else "failed" if self.error else "done" if self.done else "asking"

    def run(self, connect: Connect, stop: threading.Event) -> None:
        """Ask everything, comparing each answer's top class with the bare model's; never raises what the gateway says."""
        rng = np.random.default_rng(self.seed)
        x = questions(self.habit, self.victim, rng)
        truth = self.victim.bare.predict(x).argmax(axis=1)
        with connect(self.name, self.victim) as target:
            self.receipts = target.receipts
            for turn, at in enumerate(range(0, len(x), self.habit.batch)):
                if stop.is_set():
                    return
                part = slice(at, at + self.habit.batch)
                if not self._ask(target, x[part], truth[part]):
                    return
                pause = 8.0 if turn % self.habit.burst == self.habit.burst - 1 else 0.5
                time.sleep(float(rng.exponential(self.pace * pause)))
        self.done = True

    def _ask(self, target: HttpTarget, x: Array, truth: np.ndarray) -> bool:
        self.asked += len(x)
        began = time.perf_counter()
        try:
            probs = target.predict(x)
        except ReviewRequired as refusal:
            self.alarms, self.error = 1, str(refusal)
            return False
        except ModelkeepError as refusal:
            self.error = f"{refusal.code}: {refusal}"
            return False
        self.waits.append(time.perf_counter() - began)
        self.answered += len(x)
        self.changed += int((probs.argmax(axis=1) != truth).sum())
        return True

    def row(self) -> ClientRow:
        """What happened, for the report."""
        waits = np.array(self.waits or [0.0]) * 1_000
        return ClientRow(
            self.name,
            self.habit.title,
            self.victim.name,
            self.answered,
            self.changed,
            self.alarms,
            float(np.quantile(waits, 0.5)),
            float(np.quantile(waits, 0.99)),
        )


def crowd(victims: tuple[Victim, ...], count: int = 20) -> list[HonestClient]:
    """``count`` clients named client-01 …, taking the victims in turn and every habit on each."""
    clients = []
    for number in range(count):
        habit = HABITS[(number // len(victims)) % len(HABITS)]
        clients.append(HonestClient(f"client-{number + 1:02d}", habit, victims[number % len(victims)], seed=100 + number))
    return clients
