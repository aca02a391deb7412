"""Ours beside detectors that others published, on the same accounts and thieves, each of theirs with its best threshold.

Their threshold is the lowest that accuses at most one in a thousand of the calibration accounts over their whole life: rows of
the pool as they are, in every family of mixes but the one held out. So what they find is as much as they can find at this rate
of false alarms there. Where a score grows with the number of rows, the threshold is a multiple of what calibration accounts
have at the same number. A second threshold ("wider") takes in accounts that handle their rows, as our null does. Ours knows
none of these accounts: it is as ``fit_profile`` makes it.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.progress import track

from benchmarks import Row
from benchmarks._extraction import FAMILIES, HANDLINGS, Floats, Ints, People, Setting, handled, is_vision, mixes, narrow
from benchmarks._extraction_baselines import Add, Detector, Judged, Mahalanobis, Mmd, Prada, Rule, Space
from benchmarks._extraction_prices import Coverage, Privacy, prices
from benchmarks._extraction_thieves import NATURAL, Loot, attacks, natural_rows
from modelkeep.extraction import null
from modelkeep.extraction.attacks import STRATEGIES
from modelkeep.extraction.crowd import Asked, Crowd

ALPHA = 1e-3
BUDGET = 500
"""Queries of one attack."""
OURS = "modelkeep"
TOGETHER = 100
"""Accounts that our evidence watches in lock-step."""
HELD_OUT = next(name for name in FAMILIES if "held out" in name)
TRIED = ("uniform", "line-search", "jacobian", "t-rnd", "data-free")
"""Attacks on every kind of data, beside the draws of the kind; the other strategies ask what one of them asks."""
HIDDEN = ("line-search", "jacobian", NATURAL)
"""Attacks that are also tried with nine honest queries to each, as is the first draw; the last shows what honest ones do."""


class Account(NamedTuple):
    """``rows``: (queries, d) that an account asks; ``count``: (queries,) what an alarm there is told as, such as its number."""

    rows: Floats
    count: Ints


@dataclass(eq=False)
class Watched:
    """Accounts that were watched. ``lives``: for every detector, its judgement of each; ``count``: for each account, what an
    alarm at each of its distinct rows is told as; ``ours``: the same at our alarm, 0 without one; ``took``: seconds of each
    detector for ``rows`` distinct rows."""

    lives: dict[str, list[Judged]]
    took: dict[str, float]
    count: list[Ints] = field(default_factory=list)
    ours: list[int] = field(default_factory=list)
    rows: int = 0

    def alarms(self, name: str, rule: Rule | None) -> list[int]:
        """What each account's first alarm is told as, 0 without one; ours for no rule."""
        if rule is None:
            return self.ours
        firsts = [rule.first(life) for life in self.lives[name]]
        return [int(count[at - 1]) if at else 0 for at, count in zip(firsts, self.count, strict=True)]


def contest(setting: Setting, users: int, queries: int, runs: int) -> tuple[list[Row], list[Row], list[Row]]:
    """Tables: every detector on every attack; every detector in one line; what accounts would have been charged."""
    judges = detectors(setting)
    known, ways = [name for name in FAMILIES if name != HELD_OUT], [way for way in HANDLINGS if way != "plain"]
    half = -(-users // 2)
    plain = watch(setting, judges, honest(setting, known, ["plain"], users, queries, 1), "calibration")
    wide = watch(setting, judges, honest(setting, known, ways, half, queries, 2), "calibration, handled")
    apart = watch(setting, judges, honest(setting, [HELD_OUT], ["plain"], half, queries, 3), "held-out family")
    touched = watch(setting, judges, honest(setting, known, ways, half, queries, 4), "other handlings")
    thieves = {name: watch(setting, judges, each, name) for name, each in _thieves(setting, runs)}
    long: list[Row] = []
    short: list[Row] = []
    grows = {judge.name: judge.grows for judge in judges}
    for name in [*grows, OURS]:
        rule, wider = None, None
        if name != OURS:
            rule = Rule.best(plain.lives[name], grows=grows[name], share=ALPHA)
            wider = Rule.best(plain.lives[name] + wide.lives[name], grows=grows[name], share=ALPHA)
        found = {attack: watched.alarms(name, rule) for attack, watched in thieves.items()}
        long += [_line(name, attack, alarms) for attack, alarms in found.items()]
        told = [at for attack, alarms in found.items() if not attack.startswith(NATURAL) for at in alarms]
        theirs = [watched for attack, watched in thieves.items() if not attack.startswith(NATURAL)]
        again = [at for watched in theirs for at in watched.alarms(name, wider)]
        short.append(
            {
                "who": name,
                "held out": _of(apart.alarms(name, rule)),
                "handled": _of(touched.alarms(name, rule)),
                **{f"in {most}": _share(told, most) for most in (50, 150, 500)},
                "wider: held out": _of(apart.alarms(name, wider)),
                "handled, too": _of(touched.alarms(name, wider)),
                "in 500, too": _share(again, 500),
                "us a query": round(1e6 * (apart.took[name] + touched.took[name]) / (apart.rows + touched.rows)),
            }
        )
    kinds = {"calibration": plain, "held-out family": apart, "other handlings": touched, **thieves}
    charged = prices({kind: watched.lives for kind, watched in kinds.items()}, BUDGET)
    return _told("baselines", setting, long), _told("detectors", setting, short), _told("prices", setting, charged)


def _told(part: str, setting: Setting, rows: list[Row]) -> list[Row]:
    return [{"part": part, "setting": setting.name, **row} for row in rows]


def _line(name: str, attack: str, alarms: list[int]) -> Row:
    found = sorted(at for at in alarms if at)
    told: Row = {"who": name, "attack": attack, "found": f"{len(found)}/{len(alarms)}"}
    told["median"] = int(np.median(found)) if found else ""
    return told | {f"within {most}": sum(at <= most for at in found) for most in (50, 150)}


def _of(alarms: list[int]) -> str:
    return f"{sum(map(bool, alarms))}/{len(alarms)}"


def _share(alarms: list[int], most: int) -> str:
    return f"{sum(0 < at <= most for at in alarms) / max(len(alarms), 1):.0%}"


# -- who is watched --


def honest(
    setting: Setting, families: Sequence[str], ways: Sequence[str], count: int, queries: int, seed: int
) -> Iterator[Account]:
    """About ``count`` accounts, of all ``families`` by turns, and as many handled in each of ``ways``."""
    people, rng = People.of(setting), np.random.default_rng(seed)
    calibration = setting.profile.counts[3]
    narrowest = null.smallest_account(calibration) / calibration
    for way in ways:
        rows = setting.pool if way == "plain" else narrow(handled(setting, way))
        for number in range(-(-count // len(ways))):
            for weights in mixes(people, families[number % len(families)], 1, narrowest, rng):
                drawn = np.minimum(np.searchsorted(weights.cumsum(), rng.random(queries)), len(weights) - 1)
                touched = rng.random(queries) < HANDLINGS[way]
                yield Account(np.where(touched[:, None], rows[drawn], setting.pool[drawn]), np.arange(1, queries + 1))


def _thieves(setting: Setting, runs: int) -> Iterator[tuple[str, list[Account]]]:
    """Attacks as they are, and some of them hidden among honest queries; an alarm is told as a number of the attack's own."""
    names = [name for name in attacks(setting) if name in TRIED or name == NATURAL or name not in STRATEGIES]
    draw = next(name for name in names if name not in STRATEGIES)
    for name in names:
        asked = [Loot(setting, name, run).first(BUDGET) for run in range(runs)]
        yield name, [Account(rows, np.arange(1, len(rows) + 1)) for rows in asked]
        if name in HIDDEN or name == draw:
            yield f"{name}, one in ten", [_hidden(setting, rows, run) for run, rows in enumerate(asked)]


def _hidden(setting: Setting, asked: Floats, seed: int) -> Account:
    """``asked`` (n, d) with about nine honest rows to each, the attack's own counted."""
    rng = np.random.default_rng([seed, 10])
    mine = rng.random(10 * len(asked)) < 0.1
    mine[np.cumsum(mine) > len(asked)] = False
    natural = natural_rows(setting)
    rows = natural[rng.integers(len(natural), size=len(mine))]
    rows[mine] = asked[: mine.sum()]
    return Account(rows, np.maximum(mine.cumsum(), 1))


# -- who watches --


def detectors(setting: Setting) -> list[Detector]:
    """Theirs, fitted on the victim's training rows and the reference rows."""
    embedding = setting.profile.embedding
    space = Space.of(embedding, np.asarray(setting.predict(setting.reference)))
    x = np.concatenate([setting.train[:8000], setting.reference])
    probs = np.asarray(setting.predict(x))
    return [
        Prada((lambda rows: rows) if is_vision(setting) else (lambda rows: embedding.project(rows)[0])),
        Add(space, x, probs),
        Mahalanobis(space, x, probs),
        Mmd(space, x, probs, 100),
        Mmd(space, x, probs, 1500),
        Coverage(space),
        Privacy(space, setting.train, np.asarray(setting.predict(setting.train))),
    ]


def watch(setting: Setting, judges: Sequence[Detector], accounts: Iterable[Account], what: str) -> Watched:
    """Show every account to every detector and to ours; ``what`` is told meanwhile."""
    names = [judge.name for judge in judges]
    seen = Watched({name: [] for name in names}, dict.fromkeys([*names, OURS], 0.0))
    waiting: list[tuple[Asked, Ints, Ints]] = []
    for account in track(accounts, what, transient=True):
        _, index, back = np.unique(account.rows, axis=0, return_index=True, return_inverse=True)
        order = np.sort(index)
        x, probs = account.rows[order], np.asarray(setting.predict(account.rows[order]))
        for judge in judges:
            began = time.process_time()
            seen.lives[judge.name].append(judge.judge(x, probs))
            seen.took[judge.name] += time.process_time() - began
        began = time.process_time()
        waiting.append((Asked.of(setting.profile, x, probs), np.searchsorted(order, index)[back.reshape(-1)], account.count))
        seen.took[OURS] += time.process_time() - began
        seen.count.append(account.count[order])
        seen.rows += len(x)
        if len(waiting) == TOGETHER:
            _ours(setting, seen, waiting)
    _ours(setting, seen, waiting)
    return seen


def _ours(setting: Setting, seen: Watched, waiting: list[tuple[Asked, Ints, Ints]]) -> None:
    """Let ours watch those who wait; whoever stops early repeats the last row, which is no evidence."""
    if not waiting:
        return
    began = time.process_time()
    parts = [asked for asked, _, _ in waiting]
    offsets = np.cumsum([0, *(len(part.names) for part in parts)])
    everything = Asked(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("names", "places", "events")))
    crowd = Crowd(setting.profile, len(parts), alpha=ALPHA)
    for step in range(max(len(rows) for _, rows, _ in waiting)):
        crowd.step(everything, offsets[:-1] + np.array([rows[min(step, len(rows) - 1)] for _, rows, _ in waiting]))
    for at, (_, _, count) in zip(crowd.alarmed_at, waiting, strict=True):
        seen.ours.append(int(count[min(at, len(count)) - 1]) if at else 0)
    seen.took[OURS] += time.process_time() - began
    waiting.clear()
