"""Extraction evidence, honestly: is an honest account ever accused, how soon is a thief found, and what did it get until then?

``python -m benchmarks extraction [-- SETTING… PART… users=3000 queries=10000 runs=20 budget=500 most=2000 attacks=A,B data=DIR
out=DIR]``: SETTING such as ``adult/mlp`` or ``adult``, PART of ``PARTS`` below, all without any. DIR ``data`` has adult,
credit-default, fashion-mnist and elec2 (by default ``shared/data`` beside the checkout, where it is; else scikit-learn's digits
alone); DIR ``out`` keeps all rows, to which later runs add theirs, and the plots. The bars are judged over whatever there is.

An honest account is a mix of the pool (a family), a handling of its rows, and its own random draws, with replacement, so that
it repeats itself, too. One family of mixes is unknown to the calibration. Rows that calibrate and rows that people hold are
different. A thief asks whatever its attack asks: of the bare victim to time the alarm (as it is, hidden among nine honest
queries each, after 3,000 honest ones), of the whole defence to see what its copy is worth. Equal arguments, equal results.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from threadpoolctl import threadpool_limits

from benchmarks._extraction import BESIDE, DATA, Setting, settings
from benchmarks._extraction_bars import judged
from benchmarks._extraction_blocked import Blocked
from benchmarks._extraction_contest import contest
from benchmarks._extraction_honest import honest
from benchmarks._extraction_plots import draw
from benchmarks._extraction_quantiser import answers
from benchmarks._extraction_results import Results
from benchmarks._extraction_thieves import WAYS, attacks, found
from benchmarks._extraction_users import (
    ACCOUNTS,
    drifting,
    hidden_attacks,
    interleaved,
    sybil,
    sybil_attacks,
    tools,
    transformed,
)


class Told(NamedTuple):
    """``users`` and ``queries`` of each: honest ones; ``runs`` of each attack; ``budget``: queries of an attack that is timed;
    ``most``: answers of the bare model (B); ``attacks``: names, all when empty."""

    users: int = 3000
    queries: int = 10_000
    runs: int = 20
    budget: int = 500
    most: int = 2000
    attacks: tuple[str, ...] = ()

    def names(self, known: list[str]) -> list[str]:
        """Those of ``known`` that are asked for."""
        return [name for name in known if not self.attacks or name in self.attacks]


def _honest(setting: Setting, results: Results, told: Told) -> None:
    results.take(f"{setting.name}: honest accounts", honest(setting, told.users, told.queries))


def _thieves(setting: Setting, results: Results, told: Told) -> None:
    names = told.names(attacks(setting))
    rows = found(setting, names, told.runs, told.budget)
    results.take(f"{setting.name}: attack queries to the alarm", rows, len(names) * len(WAYS))


def _blocked(setting: Setting, results: Results, told: Told) -> None:
    names, judge = told.names(attacks(setting)), Blocked(setting, told.runs, told.most)
    results.take(f"{setting.name}: what a copy is worth at the stop", (judge.row(name) for name in names), len(names))


def _transformed(setting: Setting, results: Results, _: Told) -> None:
    results.take(f"{setting.name}: habits that nobody declared", transformed(setting), len(tools(setting)))


def _drift(setting: Setting, results: Results, told: Told) -> None:
    if setting.name.startswith("elec2/"):  # its pool is in the order of time
        rows = drifting(setting, told.users, told.queries)
        results.take(f"{setting.name}: a population that moved", rows, 4)


def _interleaved(setting: Setting, results: Results, told: Told) -> None:
    names = told.names(hidden_attacks(setting))
    rows = interleaved(setting, names, told.runs, told.budget)
    results.take(f"{setting.name}: hidden among honest questions", rows, 2 + 5 * len(names))


def _sybil(setting: Setting, results: Results, told: Told) -> None:
    names = told.names(sybil_attacks(setting))
    rows = sybil(setting, names, told.runs, told.budget)
    results.take(f"{setting.name}: many accounts that share a network", rows, len(names) * len(ACCOUNTS))


def _baselines(setting: Setting, results: Results, told: Told) -> None:
    alarms, detectors, charged = contest(setting, min(told.users, 1000), min(told.queries, 2000), told.runs)
    results.take(f"{setting.name}: attack queries to the alarm, by detector", alarms)
    results.take(f"{setting.name}: detectors, one in a thousand calibration accounts accused", detectors)
    results.take(f"{setting.name}: what B4B and proof of work charge", charged)
    results.take(f"{setting.name}: copies from coarse answers", answers(setting, told.runs))


PARTS: dict[str, Callable[[Setting, Results, Told], None]] = {
    "honest": _honest,
    "thieves": _thieves,
    "blocked": _blocked,
    "transformed": _transformed,
    "drift": _drift,
    "interleaved": _interleaved,
    "sybil": _sybil,
    "baselines": _baselines,
}


def run(args: list[str]) -> None:
    """``args``: settings, parts, and ``name=value`` as above."""
    said = dict(arg.split("=", 1) for arg in args if "=" in arg)
    parts = [part for part in PARTS if part in args] or list(PARTS)
    wanted = {arg for arg in args if "=" not in arg and arg not in PARTS}
    strange = sorted({*said} - {*Told._fields, "data", "out"} | {name for name in wanted if name.split("/")[0] not in DATA})
    if strange:
        sys.exit(f"the bench knows no {strange[0]!r}: settings begin with {', '.join(DATA)}; parts are {', '.join(PARTS)}")
    names = tuple(said["attacks"].split(",")) if "attacks" in said else ()
    told = Told(attacks=names, **{name: int(said[name]) for name in Told._fields[:-1] if name in said})
    results = Results(Path(said["out"]) if "out" in said else None)
    with threadpool_limits(1):  # matrices are small, and threads that wait for each other cost more than they bring
        for setting in settings(Path(said["data"]) if "data" in said else BESIDE, wanted):
            for part in parts:
                PARTS[part](setting, results, told)
    if results.rows:
        results.take("bars", judged(results))
    if results.folder is not None:
        for file in draw(results, results.folder):
            print(f"written: {file}")


if __name__ == "__main__":
    run(sys.argv[1:])
