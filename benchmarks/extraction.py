"""Extraction evidence, honestly: is an honest account ever accused, and how soon is a thief?

``python -m benchmarks extraction [-- SETTING… PART… users=3000 queries=10000 runs=20 data=DIR]``: SETTING such as
``adult/mlp``, PART ``honest`` or ``thieves``, all without any; DIR has adult, credit-default, fashion-mnist and elec2 (by
default ``shared/data`` beside the checkout, where it is; else scikit-learn's digits alone).

An honest account is a mix of the pool (a family), a handling of its rows, and its own random draws, with replacement, so that
it repeats itself, too. One family of mixes is unknown to the calibration. Rows that calibrate and rows that people hold are
different. A thief asks the bare victim whatever its attack asks; it is watched as it is, hidden among nine honest queries each,
and after 3,000 honest ones.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rich.progress import Progress

from benchmarks import Row, report
from benchmarks._extraction import (
    BESIDE,
    FAMILIES,
    HANDLINGS,
    SESSIONS,
    Floats,
    Ints,
    People,
    Setting,
    handled,
    mixes,
    settings,
)
from benchmarks._extraction_thieves import SLEEP, alarm, attacks, loot
from modelkeep.extraction import null
from modelkeep.extraction.crowd import Asked, Crowd

ALPHA = 1e-3
AT_ONCE = 250
"""Accounts that walk in lock-step: more do not fit the caches."""


PARTS = ("honest", "thieves")
BUDGET = 500
"""Queries of one attack."""


def run(args: list[str]) -> None:
    """``args``: settings, parts, and ``users=``, ``queries=``, ``runs=``, ``data=``."""
    told = dict(arg.split("=", 1) for arg in args if "=" in arg)
    parts = [part for part in PARTS if part in args] or PARTS
    wanted = {arg for arg in args if "=" not in arg and arg not in PARTS}
    for setting in settings(Path(told["data"]) if "data" in told else BESIDE, wanted):
        if "honest" in parts:
            rows = honest(setting, int(told.get("users", 3000)), int(told.get("queries", 10_000)))
            report(f"extraction, {setting.name}: honest accounts, alpha {ALPHA}", rows)
        if "thieves" in parts:
            report(
                f"extraction, {setting.name}: attack queries to the alarm", list(thieves(setting, int(told.get("runs", 20))))
            )


def thieves(setting: Setting, runs: int) -> Iterator[Row]:
    """Alarm times of every attack: how many of the runs were found, median and largest query, and found within 50, 150, 500."""
    for attack in attacks(setting):
        asked = [loot(setting, attack, BUDGET, run) for run in range(runs)]
        ways = {"as it is": {}, "one in ten": {"share": 0.1}, "after 3,000": {"sleep": SLEEP}}
        for how, options in ways.items() if attack != "in-distribution" else [("as it is", {})]:
            found = [alarm(setting, rows, seed=run, **options).queries for run, rows in enumerate(asked)]
            hits = sorted(at for at in found if at is not None)
            yield {
                "bench": "extraction",
                "setting": setting.name,
                "attack": attack,
                "how": how,
                "found": f"{len(hits)}/{runs}",
                "median": int(np.median(hits)) if hits else "",
                "largest": hits[-1] if hits else "",
                **{f"within {most}": sum(at <= most for at in hits) for most in (50, 150, 500)},
            }


def honest(setting: Setting, users: int, queries: int) -> list[Row]:
    """How many accounts of each family were accused in ``queries`` questions each."""
    began = time.perf_counter()
    asked = _asked(setting)
    rng = np.random.default_rng(11)
    families = [*FAMILIES, SESSIONS]
    each = -(-users // (len(families) * len(HANDLINGS)))
    found: dict[str, list[Floats]] = {}
    alarms: dict[str, list[str]] = {}
    with Progress(transient=True) as progress:
        bar = progress.add_task(setting.name, total=len(families) * len(HANDLINGS) * each)
        for family, chunk, handling in _accounts(setting, families, each, queries, rng):
            crowd = Crowd(setting.profile, len(chunk), alpha=ALPHA)
            for asking in chunk.T:
                crowd.step(asked, asking)
            found.setdefault(family, []).append(crowd.highest)
            progress.update(bar, advance=len(chunk))
            for number in np.flatnonzero(crowd.alarmed_at):
                alarms.setdefault(family, []).append(f"{handling[number]} at {crowd.alarmed_at[number]}")
    return [
        {
            "bench": "extraction",
            "setting": setting.name,
            "family": family,
            "accounts": int(sum(map(len, highest))),
            "questions": queries,
            "accused": len(alarms.get(family, [])),
            "highest": f"{np.concatenate(highest).max():.3g}",
            "one in a hundred": f"{np.quantile(np.concatenate(highest), 0.99):.3g}",
            "of": "; ".join(alarms.get(family, [])[:4]),
            "seconds": round(time.perf_counter() - began),
        }
        for family, highest in found.items()
    ]


def _asked(setting: Setting) -> Asked:
    """The pool once for each handling, one after the other."""
    parts = []
    for handling in HANDLINGS:
        rows = setting.pool if handling == "plain" else handled(setting, handling).astype(np.float32).astype(np.float64)
        answers = setting.answers if handling == "plain" else np.asarray(setting.predict(rows))
        parts.append(Asked.of(setting.profile, rows, answers))
    return Asked(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("names", "places", "events")))


def _accounts(
    setting: Setting, families: Sequence[str], each: int, queries: int, rng: np.random.Generator
) -> Iterator[tuple[str, Ints, list[str]]]:
    """What accounts ask: family, rows of ``_asked`` (accounts, queries), and the handling of each account."""
    people, size = People.of(setting), len(setting.pool)
    calibration = setting.profile.counts[3]
    narrowest = null.smallest_account(calibration) / calibration
    for family in families:
        asking: list[Ints] = []
        handling: list[str] = []
        for number, (how, share) in enumerate(HANDLINGS.items()):
            for rows in _draws(people, family, each, queries, narrowest, rng):
                touched = rng.random(queries) < share
                asking.append((rows + size * number * touched).astype(np.int64))
                handling.append(how)
        for at in range(0, len(asking), AT_ONCE):
            yield family, np.stack(asking[at : at + AT_ONCE]), handling[at : at + AT_ONCE]


def _draws(people: People, family: str, each: int, queries: int, narrowest: float, rng: np.random.Generator) -> Iterator[Ints]:
    if family != SESSIONS:
        for weights in mixes(people, family, each, narrowest, rng):
            yield _draw(weights, queries, rng)
        return
    for _ in range(each):
        lengths = rng.integers(100, 1000, size=queries // 100)
        parts = [
            _draw(next(mixes(people, "segment", 1, narrowest, rng)), int(length), rng)
            for length in lengths[: int(np.searchsorted(lengths.cumsum(), queries)) + 1]
        ]
        yield np.concatenate(parts)[:queries]


def _draw(weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    drawn: Ints = np.minimum(np.searchsorted(weights.cumsum(), rng.random(count)), len(weights) - 1)
    return drawn


if __name__ == "__main__":
    run(sys.argv[1:])
