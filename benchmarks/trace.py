"""Whose answers taught this copy? p of thieves' accounts, of copies changed or mixed, and of accounts that taught nobody.

``python -m benchmarks trace [-- SETTING… PART… runs=5 models=20 keys=1000 queries=500,2000 data=DIR out=DIR]``: SETTING as in
the extraction bench (by default digits/mlp and credit/mlp, where their data are), PART of ``PARTS`` below, all without any.
``out`` keeps a row a theft, which is not measured again, and the plots.

A thief asks natural rows and trains a copy on the answers as a gateway gives them: marked, then rounded to four decimals. p is
corrected for 100,000 accounts (Bonferroni), and read twice: with the account's log, and from fresh probes alone, as
``modelkeep trace`` draws them. Beside it DAWN, on the same questions with the same kind of copy, and for the price of a mark a
plain softmax of the answer. Equal arguments, equal p-values.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from benchmarks import Row, report
from benchmarks._extraction import BESIDE, DATA, Floats, Predict, Setting, settings
from benchmarks._trace_copies import CONVERGED, CONVOLUTIONS, FITTING, FOREST, WEAK, Network, copies
from benchmarks._trace_dawn import answered, p_value
from benchmarks._trace_results import Kept, draw, summary
from benchmarks._trace_thefts import EPSILON, TOGETHER, Theft, Thefts, corrected, large, served
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.reading import Heard

SETTINGS = ("digits/mlp", "credit/mlp")
EPOCHS = 5
"""Of fine-tuning."""
SOME = 400
"""Questions of an account that taught nobody."""
DRAWS = 10
"""Of probes, which models that learnt from nobody take in turn."""
ALL = (-np.inf, np.inf)
"""Doubtful e-values where every key is weighed by everything that a suspect can be read by."""


class Told(NamedTuple):
    """``runs``: thefts of each case; ``queries``: of each theft, the last one everywhere but in the curve; ``models``: that
    learnt from nobody's answers, and ``keys`` tried on each."""

    runs: int = 5
    queries: tuple[int, ...] = (500, 2000)
    models: int = 20
    keys: int = 1000


def _traced(thefts: Thefts, kept: Kept, told: Told) -> Iterator[Row]:
    """Every kind of copy, by queries."""
    for kind in copies(large(thefts.setting)):
        for queries in told.queries:
            for run in range(told.runs):

                def made(kind: str = kind, queries: int = queries, run: int = run) -> Row:
                    theft, copy = thefts.copy(kind, run, queries)
                    return {**thefts.weighed(copy.predict, theft)}

                yield kept.once(made, part="traced", setting=thefts.setting.name, case=kind, queries=queries, run=run)


# -- what a thief does to his copy --

Change = Callable[[Thefts, Theft, Network], Predict]


def _tuned(thefts: Thefts, theft: Theft, copy: Network) -> Predict:
    """A few epochs more on true labels of as many other rows."""
    return copy.tuned(*_labelled(thefts, theft), epochs=EPOCHS).predict


def _pruned_and_tuned(thefts: Thefts, theft: Theft, copy: Network) -> Predict:
    return copy.pruned(0.5).tuned(*_labelled(thefts, theft), epochs=EPOCHS).predict


def _labelled(thefts: Thefts, theft: Theft) -> tuple[Floats, "np.ndarray[tuple[int], np.dtype[np.int64]]"]:
    rows = thefts.rows(len(theft.x), theft.run)
    return rows, np.asarray(thefts.setting.predict(rows)).argmax(axis=1)


def _taught(thefts: Thefts, theft: Theft, copy: Network) -> Predict:
    """A second copy, taught by the first one's answers to other rows."""
    rows = thefts.rows(len(theft.x), theft.run)
    second = Network(1_000 + theft.run, copy.hidden, copy.epochs)
    second.fit(rows, copy.predict(rows))
    return second.predict


def _three(_: Thefts, __: Theft, copy: Network) -> Predict:
    """The three leading classes alone."""

    def predict(x: Floats) -> Floats:
        probs = copy.predict(x)
        least = np.sort(probs, axis=1)[:, -min(3, probs.shape[1])][:, None]
        kept = np.where(probs >= least, probs, 0.0)
        out: Floats = kept / kept.sum(axis=1, keepdims=True)
        return out

    return predict


CHANGES: dict[str, Change] = {
    "as it is": lambda _, __, copy: copy.predict,
    "half of the weights pruned": lambda _, __, copy: copy.pruned(0.5).predict,
    "five epochs more on labels": _tuned,
    "pruned, then five epochs": _pruned_and_tuned,
    "a copy of the copy": _taught,
    "top three alone": _three,
    "two decimals": lambda _, __, copy: lambda x: np.round(copy.predict(x), 2),
}


def _changed(thefts: Thefts, kept: Kept, told: Told) -> Iterator[Row]:
    """A network that fits the answers, changed afterwards."""
    kind, queries = CONVOLUTIONS if large(thefts.setting) else CONVERGED, told.queries[-1]
    for case, change in CHANGES.items():
        if change is _three and thefts.setting.answers.shape[1] <= 3:
            continue
        for run in range(told.runs):

            def made(change: Change = change, run: int = run) -> Row:
                theft, copy = thefts.copy(kind, run, queries)
                assert isinstance(copy, Network)
                return {**thefts.weighed(change(thefts, theft, copy), theft)}

            yield kept.once(made, part="changed", setting=thefts.setting.name, case=case, queries=queries, run=run)


# -- accounts that act together --


def _colluding(thefts: Thefts, kept: Kept, told: Told) -> Iterator[Row]:
    """p of the account that is most strongly named; ``named``: how many are, below a millionth."""
    for accounts in (2, 4, 8):
        for how in TOGETHER:
            for kind in (FOREST, CONVERGED) if accounts == 2 else (FOREST,):
                for run in range(told.runs):

                    def made(accounts: int = accounts, how: str = how, kind: str = kind, run: int = run) -> Row:
                        return _together(thefts, thefts.theft(run, told.queries[-1]), accounts, how, kind)

                    case = f"{accounts} accounts, {how}, {kind}"
                    yield kept.once(
                        made, part="colluding", setting=thefts.setting.name, case=case, queries=told.queries[-1], run=run
                    )


def _together(thefts: Thefts, theft: Theft, accounts: int, how: str, kind: str) -> Row:
    shares, answers = TOGETHER[how](thefts.setting, theft, accounts)
    copy = thefts.taught(kind, theft.run, theft.x, answers)
    found = [
        thefts.weighed(copy.predict, Theft(theft.run, theft.x[share], theft.clean[share], key, answers[share]))
        for key, share in shares
    ]
    best = {how: min(one[how] for one in found) for how in ("log", "probes")}
    return {**best, "accounts": accounts, "named": sum(one["log"] < -6.0 for one in found)}


# -- beside it, and what is promised --


def _peers(thefts: Thefts, kept: Kept, told: Told) -> Iterator[Row]:
    """DAWN on the same questions: other answers, another copy of the same kind."""
    for kind in FITTING:
        for run in range(told.runs):

            def made(kind: str = kind, run: int = run) -> Row:
                theft, copy = thefts.copy(kind, run, told.queries[-1])
                answers = respond(DEFAULT.steps[0], answered(theft.key, theft.x, theft.clean))
                other = thefts.taught(kind, run, theft.x, answers)
                p = p_value(theft.key, theft.x, theft.clean, np.asarray(other.predict(theft.x)))
                return {**thefts.weighed(copy.predict, theft), "dawn": corrected(p)}

            yield kept.once(made, part="peers", setting=thefts.setting.name, case=kind, queries=told.queries[-1], run=run)


def _innocent(thefts: Thefts, told: Told) -> Iterator[Row]:
    """Copies of every kind that learnt clean answers to an account's very questions, against keys that never served."""
    kinds, smallest, low, tests = list({**FITTING, **WEAK}), 1.0, 0, 0
    for model in range(told.models):
        theft, rng = thefts.theft(10_000 + model, told.queries[0]), np.random.default_rng([71, model])
        clean = respond(DEFAULT.steps[0], theft.clean)
        copy = thefts.taught(kinds[model % len(kinds)], model, theft.x, clean)
        reading, some = thefts.read(copy.predict, model % DRAWS, ALL), slice(0, SOME)
        asked = Heard(theft.x[some], theft.clean[some], np.asarray(copy.predict(theft.x[some])))
        p = np.array([reading.weigh(rng.bytes(32), thefts.setting.profile, asked)[0] for _ in range(told.keys)])
        smallest, low, tests = min(smallest, float(p.min())), low + int((p <= 0.05).sum()), tests + len(p)
    yield {
        "bench": "trace",
        "case": f"{told.models} models that learnt from nobody",
        "tests": tests,
        "smallest p": f"{smallest:.2g}",
        "wanted above": f"{1 / tests:.2g}",
        "p ≤ 0.05": f"{low / tests:.3%}",
        "verdict": "met" if smallest >= 1 / tests else "missed",
    }


def _cost(thefts: Thefts, told: Told) -> Iterator[Row]:
    """Answers changed at the top, and what a mark costs on the path."""
    x = thefts.setting.pool[:2000]
    clean, changed, most = np.asarray(thefts.setting.predict(x)), 0, 0.0
    for run in range(told.runs):
        answers = served(thefts.setting, np.random.default_rng(run).bytes(32), x, clean)
        changed += int((answers.argmax(axis=1) != clean.argmax(axis=1)).sum())
        most = max(most, float(np.abs(answers - clean).sum(axis=1).max()))
    dawn = sum(
        int((answered(bytes([run]) * 32, x, clean).argmax(axis=1) != clean.argmax(axis=1)).sum()) for run in range(told.runs)
    )
    marker, row, logits = Marker(bytes(32), thefts.setting.profile, EPSILON), x[:1].astype(np.float32), np.log(clean[:1] + 1e-9)
    answer = clean[0].tolist()
    yield {
        "bench": "trace",
        "case": f"{told.runs * len(x)} honest answers",
        "top-1 changed": changed,
        "by DAWN": dawn,
        "largest L1 change, rounded": f"{most:.4f}",
        "mark one row, µs": _micros(lambda: marker.apply_one(row, answer)),
        "softmax of one row, µs": _micros(lambda: _softmax(logits)),
    }


def _softmax(logits: Floats) -> Floats:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    out: Floats = raised / raised.sum(axis=1, keepdims=True)
    return out


def _micros(act: Callable[[], object], times: int = 2000) -> float:
    """Microseconds of one call: the least mean of five rounds."""
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(times):
            act()
        best = min(best, (time.perf_counter() - start) / times)
    return round(1e6 * best, 2)


THIEVES: dict[str, Callable[[Thefts, Kept, Told], Iterator[Row]]] = {
    "traced": _traced,
    "changed": _changed,
    "colluding": _colluding,
    "peers": _peers,
}
HONEST: dict[str, Callable[[Thefts, Told], Iterator[Row]]] = {"innocent": _innocent, "cost": _cost}
PARTS = (*THIEVES, *HONEST)


def measure(setting: Setting, parts: list[str], kept: Kept, told: Told) -> None:
    """Measure and print some parts for one setting."""
    thefts = Thefts(setting)
    for part in parts:
        rows = THIEVES[part](thefts, kept, told) if part in THIEVES else HONEST[part](thefts, told)
        report(f"{setting.name}: {part}", list(summary(list(rows)) if part in THIEVES else rows))


def run(args: list[str]) -> None:
    """``args``: settings, parts, and ``name=value`` as above."""
    said = dict(arg.split("=", 1) for arg in args if "=" in arg)
    parts = [part for part in PARTS if part in args] or list(PARTS)
    wanted = {arg for arg in args if "=" not in arg and arg not in PARTS} or set(SETTINGS)
    strange = sorted({*said} - {*Told._fields, "data", "out"} | {name for name in wanted if name.split("/")[0] not in DATA})
    if strange:
        sys.exit(f"the bench knows no {strange[0]!r}: settings begin with {', '.join(DATA)}; parts are {', '.join(PARTS)}")
    numbers = {name: int(said[name]) for name in ("runs", "models", "keys") if name in said}
    queries = {"queries": tuple(sorted(int(one) for one in said["queries"].split(",")))} if "queries" in said else {}
    kept = Kept(Path(said["out"]) if "out" in said else None)
    with threadpool_limits(1):
        for setting in settings(Path(said["data"]) if "data" in said else BESIDE, wanted):
            measure(setting, parts, kept, Told(**numbers, **queries))
    if kept.folder is not None:
        for file in draw(kept, kept.folder):
            print(f"written: {file}")


if __name__ == "__main__":
    run(sys.argv[1:])
