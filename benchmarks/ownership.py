"""Ownership: what fingerprints and triggers prove of copies, and what they say of independent models.

``python -m benchmarks ownership [-- digits fashion victims=3 keys=10 wrong=1000 data=FOLDER]``. Each p is the larger of the one
by the key and the one by 21 independent models. Two populations: models of *other* rows of the same task, and models of the
*same* rows as the victim. Beside it, in the same run: fingerprints of version 1, triggers as they were before references, plain
trigger sets (Adi et al. 2018: 100 pictures of noise with random labels, by the binomial), and DAWN (0.5 % false labels,
by the binomial).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy import stats

from benchmarks import Row, report
from benchmarks._extraction import BESIDE, datasets
from benchmarks._ownership import Floats, Ints, Model, Recipe, Split, dawn, fresh, suspects
from modelkeep.training.fingerprint import answers, draw_probes, likeness, resemblance
from modelkeep.training.tails import binomial_tail
from modelkeep.training.triggers import SHARE, Trigger, draw_trigger, leanings, mark_rows, weigh, with_references

CLASSES, POPULATION, ROWS, FEW, NOISE = 10, 21, 200, 40, 100
BARS = {"fine-tuned 5 epochs": 1e-6, "pruned 80 %": 1e-6, "distilled, soft": 1e-3, "distilled, hard": 1e-3}


@dataclass(frozen=True, eq=False)
class Task:
    """A data set with its recipe; ``widths`` of the population's models, in turn."""

    name: str
    recipe: Recipe
    split: Split
    widths: tuple[tuple[int, int], ...]


def _tasks(folder: Path | None, wanted: set[str]) -> list[Task]:
    made = []
    for data in datasets(folder, wanted & {"digits", "fashion"} or {"digits", "fashion"}):
        small = data.name == "digits"
        ends = (600, 1300, 1550, 1797) if small else (5_000, 10_000, 12_000, 14_000)
        parts = [
            (data.x[low:high], data.y[low:high]) for low, high in zip((0, *ends[:-1]), ends, strict=True)
        ]  # train, theirs, reference, exam
        recipe = Recipe("mlp", 60) if small else Recipe("cnn", 6, widths=(12, 24))
        widths = ((64, 32), (48, 32), (96, 48), (128, 64)) if small else ((12, 24), (8, 24), (10, 16), (12, 32))
        made.append(Task(data.name, recipe, Split(*parts), widths))
    return made


def _population(task: Task, rows: tuple[Floats, Ints], first: int) -> list[Model]:
    return [
        fresh(task.recipe, *rows, seed=first + at, classes=CLASSES, widths=task.widths[at % len(task.widths)])
        for at in range(POPULATION)
    ]


def _accuracy(model: Model, task: Task) -> float:
    return float((model(task.split.exam[0]).argmax(axis=1) == task.split.exam[1]).mean())


# -- one victim --


def _key(*numbers: int) -> bytes:
    return np.random.default_rng(numbers).bytes(32)


class Found:
    """p-values by (suspect, method), one a victim."""

    def __init__(self) -> None:
        self.p: dict[tuple[str, str], list[float]] = {}
        self.accuracy: dict[tuple[str, str], list[float]] = {}

    def add(self, suspect: str, method: str, p: float, accuracy: float) -> None:
        """One more."""
        self.p.setdefault((suspect, method), []).append(p)
        self.accuracy.setdefault((suspect, method), []).append(accuracy)


def _fingerprint(task: Task, seed: int, populations: dict[str, list[Model]], found: Found) -> None:
    victim = fresh(task.recipe, *task.split.train, seed=seed, classes=CLASSES)
    probes = draw_probes(victim, task.split.reference[0], _key(seed, 1))
    told = {name: [answers(one, probes.points) for one in models] for name, models in populations.items()}
    for name, suspect in [("itself", victim), *suspects(victim, task.recipe, task.split, seed, CLASSES)]:
        own, accuracy = answers(suspect, probes.points), _accuracy(suspect, task)
        for population, their in told.items():
            found.add(name, f"fingerprint, {population} rows", likeness(probes, own, their).p, accuracy)
            before = resemblance(probes, own.argmax(axis=1), np.stack(their).argmax(axis=2)).p
            found.add(name, f"fingerprint before, {population} rows", before, accuracy)


def _drawn(task: Task, key: bytes, *, plain: bool = False) -> Trigger:
    """As ``trigger mark`` draws it with a reference; ``plain``: as it did before there were any."""
    x, y = task.split.train
    if plain:
        return draw_trigger(x, CLASSES, key, patterns=24, amplitude=4.0)
    unmarked = fresh(task.recipe, x, y, seed=30_000, classes=CLASSES, widths=task.widths[1])
    return with_references(draw_trigger(x, CLASSES, key), [unmarked], x)


def _triggered(task: Task, seed: int, populations: dict[str, list[Model]], found: Found) -> None:
    rows = task.split.reference[0][:ROWS]
    for method, plain, share in (("trigger", False, SHARE), ("trigger before", True, 0.3)):
        trigger = _drawn(task, _key(seed, 2), plain=plain)
        marked = mark_rows(*task.split.train, trigger, share=share)
        victim = fresh(task.recipe, marked.x, marked.y, seed=seed, classes=CLASSES)
        others = {name: [leanings(one, rows, trigger) for one in models] for name, models in populations.items()}
        for name, suspect in [("itself", victim), *suspects(victim, task.recipe, task.split, seed, CLASSES)]:
            leaned, accuracy = leanings(suspect, rows, trigger), _accuracy(suspect, task)
            for population, their in others.items():
                found.add(name, f"{method}, {population} rows", weigh(trigger, leaned, their).p, accuracy)


def _adi(task: Task, seed: int, found: Found) -> None:
    x, y = task.split.train
    rng = np.random.default_rng([seed, 3])
    noise = rng.uniform(x.min(), x.max(), size=(NOISE, x.shape[1]))
    told = rng.integers(CLASSES, size=NOISE)
    times = max(1, round(0.3 * len(x) / NOISE))
    added = np.concatenate([x, np.tile(noise, (times, 1))]), np.concatenate([y, np.tile(told, times)])
    victim = fresh(task.recipe, *added, seed=seed, classes=CLASSES)
    for name, suspect in [("itself", victim), *suspects(victim, task.recipe, task.split, seed, CLASSES)]:
        hits = int((suspect(noise).argmax(axis=1) == told).sum())
        found.add(name, "plain trigger set", binomial_tail(hits, NOISE, 1 / CLASSES), _accuracy(suspect, task))


def _dawn(task: Task, seed: int, found: Found) -> None:
    victim = fresh(task.recipe, *task.split.train, seed=seed, classes=CLASSES)
    hits, trials = dawn(victim, task.recipe, task.split, seed, CLASSES)
    found.add("extracted, 2,000 hard", "DAWN", binomial_tail(hits, trials, 1 / (CLASSES - 1)), float("nan"))


def _copies(task: Task, found: Found) -> list[Row]:
    rows: list[Row] = []
    methods = list(dict.fromkeys(method for _, method in found.p))
    for name in dict.fromkeys(name for name, _ in found.p):
        bar = BARS.get(name)
        row: Row = {"bench": "ownership", "case": f"{task.name}: {name}", "bar": f"{bar:.0e}" if bar else ""}
        row["accuracy"] = round(float(np.nanmean(found.accuracy[name, methods[0]])), 3)
        row["accuracy_marked"] = round(float(np.nanmean(found.accuracy[name, "trigger, other rows"])), 3)
        for method in methods:
            told = found.p.get((name, method))
            row[method] = f"{np.median(told):.0e} ({max(told):.0e})" if told else ""
        rows.append(row)
    return rows


# -- models of nobody's --


def _false_claims(task: Task, models: list[Model], keys: int, against: str) -> list[Row]:
    """Models of a population against the others: fingerprints of another victim by so many keys, each for every model; triggers
    by 20 times as many, each for one model."""
    victim = fresh(task.recipe, *task.split.train, seed=77, classes=CLASSES)
    rows, by_fingerprint, by_trigger = task.split.reference[0][:FEW], [], []
    for at in range(keys):
        probes = draw_probes(victim, task.split.reference[0], _key(at, 4), 2000)
        told = np.stack([answers(one, probes.points) for one in models])
        by_fingerprint += [likeness(probes, one, np.delete(told, number, axis=0)) for number, one in enumerate(told)]
    for at in range(20 * keys):
        trigger = with_references(draw_trigger(task.split.train[0], CLASSES, _key(at, 5)), [victim], task.split.train[0])
        own, *rest = (leanings(one, rows, trigger) for one in (*models[at % len(models) :], *models[: at % len(models)]))
        by_trigger.append(weigh(trigger, own, rest))
    found: list[Row] = []
    for method, many in (("fingerprint", by_fingerprint), ("trigger", by_trigger)):
        case = f"{task.name}, {against} rows: {method}"
        numbers = ("p", "p_key", "p_population", "rank")
        found += [_uniformity(case, which, [getattr(one, which) for one in many]) for which in numbers]
    return found


def _wrong_keys(task: Task, models: list[Model], keys: int) -> list[Row]:
    """The patterns of one marked model with the classes of so many other keys: asked of the marked model itself, which leans as
    much as any can, and of independent models in turn."""
    drawn, rows = _drawn(task, _key(0, 7)), task.split.reference[0][:FEW]
    marked = mark_rows(*task.split.train, drawn)
    own = leanings(fresh(task.recipe, marked.x, marked.y, seed=77, classes=CLASSES), rows, drawn)
    others, found, theirs = [leanings(one, rows, drawn) for one in models], [], []
    for at in range(keys):
        wrong, one = replace(drawn, key=_key(at, 8)), at % len(others)
        found.append(weigh(wrong, own, others))
        theirs.append(weigh(wrong, others[one], [*others[:one], *others[one + 1 :]]))
    numbers = ("p", "p_key", "p_population", "rank")
    return [
        _uniformity(f"{task.name}, {case}, wrong keys: trigger", which, [getattr(one, which) for one in many])
        for case, many in (("the marked model", found), ("other rows", theirs))
        for which in numbers
    ]


def _wrong_population(task: Task, populations: dict[str, list[Model]]) -> list[Row]:
    """Models trained independently on the victim's own rows, judged by models of other rows: what must not be done."""
    victim = fresh(task.recipe, *task.split.train, seed=77, classes=CLASSES)
    probes = draw_probes(victim, task.split.reference[0], _key(0, 6))
    told = [answers(one, probes.points) for one in populations["other"]]
    found = [likeness(probes, answers(one, probes.points), told).p for one in populations["same"]]
    return [_uniformity(f"{task.name}, same rows judged by other rows: fingerprint", "p", found)]


def _uniformity(case: str, which: str, told: Sequence[float]) -> Row:
    p = np.array(told)
    return {
        "bench": "ownership",
        "case": f"independent, {case}",
        "number": which,
        "tests": len(p),
        "least": f"{p.min():.1e}",
        "1/tests": f"{1 / len(p):.1e}",
        "at_most_0.01": round(float((p <= 0.01).mean()), 4),
        "at_most_0.05": round(float((p <= 0.05).mean()), 4),
        "larger_than_uniform_KS_p": f"{stats.kstest(p, 'uniform', alternative='greater').pvalue:.2g}",
    }


def run(args: list[str]) -> None:
    """Print what copies and independent models come to."""
    import torch

    torch.set_num_threads(1)
    told = dict(one.split("=", 1) for one in args if "=" in one)
    folder = Path(told.get("data", str(BESIDE)))
    for task in _tasks(folder if folder.is_dir() else None, {one for one in args if "=" not in one}):
        began, found = time.perf_counter(), Found()
        populations = {
            "other": _population(task, task.split.theirs, 10_000),
            "same": _population(task, task.split.train, 20_000),
        }
        for seed in range(int(told.get("victims", "3"))):
            _fingerprint(task, seed, populations, found)
            _triggered(task, seed, populations, found)
            _adi(task, seed, found)
            _dawn(task, seed, found)
        report(f"ownership: {task.name}, copies: median p (largest) over victims", _copies(task, found))
        keys, claims = int(told.get("keys", "10")), []
        for against, models in populations.items():
            claims += _false_claims(task, models, keys, against)
        claims += _wrong_keys(task, populations["other"], int(told.get("wrong", "1000")))
        claims += _wrong_population(task, populations)
        report(f"ownership: {task.name}, models that nobody copied", claims)
        print(f"{task.name}: {time.perf_counter() - began:,.0f} s")
