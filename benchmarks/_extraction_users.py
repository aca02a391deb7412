"""Users beyond the null of publish: tools that nobody declared, a population that moved, and a null as wide as their habits."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks import Row
from benchmarks._extraction import FAMILIES, HANDLINGS, Floats, People, Setting, handled, is_vision, mixes, narrow
from benchmarks._extraction_honest import draw, honest
from benchmarks._extraction_thieves import TABULAR, Loot, alarm, natural_rows, timed
from modelkeep.extraction import null, synthetic
from modelkeep.extraction.calibration import Recorded, over_people, over_tool, smallest_stretch
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import Profile, with_kappa

Tool = Callable[[Setting, Floats, np.random.Generator], Floats]
"""What becomes of the rows (n, d) of an account, in the order in which it asks them."""

EDITS = 4
QUESTIONS = 300
"""Of one account."""
WITH, WITHOUT = 10, 15
"""Accounts with the tool and without, of those that are watched together."""
DECLARED = 600
"""Rows of other people with which a tool is declared."""


# -- tools --


def _pictures(change: Callable[[Floats], Floats]) -> Tool:
    def use(_: Setting, rows: Floats, __: np.random.Generator) -> Floats:
        side = int(np.sqrt(rows.shape[1]))
        return change(rows.reshape(-1, side, side)).reshape(len(rows), -1)

    return use


def _levels(setting: Setting, rows: Floats, _: np.random.Generator) -> Floats:
    highest = setting.reference.max()
    return np.rint(rows / highest * 3.0) / 3.0 * highest


def _encoded(setting: Setting, rows: Floats, _: np.random.Generator) -> Floats:
    """Each picture as a JPEG of quality 60, and back."""
    side, highest, out = int(np.sqrt(rows.shape[1])), setting.reference.max(), []
    for row in rows:
        file = BytesIO()
        Image.fromarray(np.rint(row.reshape(side, side) / highest * 255.0).astype(np.uint8)).save(file, "JPEG", quality=60)
        out.append(np.asarray(Image.open(file), dtype=np.float64).ravel() / 255.0 * highest)
    return np.stack(out)


def _quantised(setting: Setting, rows: Floats, _: np.random.Generator) -> Floats:
    grid = setting.profile.embedding.scale
    return np.rint(rows / grid) * grid


def _what_if(_: Setting, rows: Floats, rng: np.random.Generator) -> Floats:
    """Each case as it is, then four times with one or two columns edited."""
    base = rows[: -(-len(rows) // (1 + EDITS))]
    edited = [synthetic.what_if(base, rng) for _ in range(EDITS)]
    return np.stack([base, *edited], axis=1).reshape(-1, rows.shape[1])[: len(rows)]


def _often(_: Setting, rows: Floats, rng: np.random.Generator) -> Floats:
    return np.where(rng.random((len(rows), 1)) < 0.2, synthetic.what_if(rows, rng), rows)


def tools(setting: Setting) -> dict[str, Tool]:
    """The habits that are tried on a setting."""
    both: dict[str, Tool] = {"what-if tool": _what_if, "one in five what-if": _often}
    if not is_vision(setting):
        return {**both, "rounded to a whole deviation": _quantised}
    return {
        **both,
        "four levels": _levels,
        "re-encoded": _encoded,
        "mirrored": _pictures(lambda rows: rows[:, :, ::-1]),
        "moved by a pixel": _pictures(lambda rows: np.roll(rows, 1, axis=2)),
    }


def transformed(setting: Setting) -> Iterator[Row]:
    """How many accounts with a habit are accused: each alone, ten of them among twenty-five, and after it was declared."""
    for name, tool in tools(setting).items():
        rng = np.random.default_rng([41, *name.encode()])
        mine = [_used(setting, tool, rng) for _ in range(WITH)]
        alone = [_first_alarm(setting, setting.profile, rows) for rows in mine]
        plain = [_own(setting, rng) for _ in range(WITHOUT)]
        together = _together(setting, [*mine, *plain])
        names = [f"account {number}" for number in range(WITH + WITHOUT)]
        verdicts = [together.verdict(one) for one in names]
        theirs = narrow(tool(setting, _own(setting, rng, DECLARED), rng))
        kappa = over_tool(setting.profile, theirs, np.asarray(setting.predict(theirs)), 7)
        declared = with_kappa(setting.profile, kappa)
        after = [_first_alarm(setting, declared, rows) for rows in mine]
        uniform = alarm(setting, Loot(setting, "uniform", 0), 500, profile=declared).queries
        yield {
            "part": "transformed",
            "setting": setting.name,
            "who": name,
            "accounts": WITH,
            "accused alone": sum(at is not None for at in alone),
            "at": int(np.median([at for at in alone if at is not None])) if any(alone) else "",
            "accused among others": sum(one.alarmed_at is not None for one in verdicts[:WITH]),
            "withheld": sum(one.withheld for one in verdicts[:WITH]),
            "others accused": sum(one.alarmed_at is not None for one in verdicts[WITH:]),
            "uncovered": sum(one.uncovered for one in verdicts),
            "accused when declared": sum(at is not None for at in after),
            "uniform then found at": uniform or "never",
        }


def _own(setting: Setting, rng: np.random.Generator, count: int = QUESTIONS) -> Floats:
    rows = natural_rows(setting)
    return rows[rng.choice(len(rows), size=count, replace=count > len(rows))]


def _used(setting: Setting, tool: Tool, rng: np.random.Generator) -> Floats:
    return narrow(tool(setting, _own(setting, rng), rng))


def _first_alarm(setting: Setting, profile: Profile, rows: Floats) -> int | None:
    guard = Guard(profile)
    guard.observe("account", rows, np.asarray(setting.predict(rows)))
    return guard.verdict("account").alarmed_at


def _together(setting: Setting, asked: list[Floats]) -> Guard:
    """All accounts by turns under one guard, which watches for drift."""
    guard, names = Guard(setting.profile), [f"account {number}" for number in range(len(asked))]
    rows = np.stack(asked, axis=1).reshape(-1, asked[0].shape[1])
    answers = np.asarray(setting.predict(rows))
    guard.observe_many(names * len(asked[0]), rows, answers)
    return guard


# -- a population that moved --


def drifting(setting: Setting, users: int, queries: int) -> Iterator[Row]:
    """A pool in the order of time: honest accounts accused under the null of publish, with the guard that looks for drift,
    after a calibration on users of its first half, and after the model was published anew with reference rows of that half; the
    last two on users of the second half."""
    half = len(setting.pool) // 2
    first, second = _part(setting, slice(0, half)), _part(setting, slice(half, None))
    yield _moved(setting, "calibrated once", users, queries)
    asked = list(people_rows(setting, 60, min(queries, 2000), 43))
    guard = _together(setting, asked)
    verdicts = [guard.verdict(one) for one in guard.subjects()]
    yield {
        "part": "drift",
        "setting": setting.name,
        "who": "with the drift guard",
        "accounts": len(asked),
        "questions": len(asked[0]),
        "accused": sum(one.alarmed_at is not None for one in verdicts),
        "withheld": sum(one.withheld for one in verdicts),
    }
    recorded = [
        Recorded(f"user {number}", rows, np.asarray(setting.predict(rows)), vouched=True)
        for number, rows in enumerate(people_rows(first, 120, 1000, 47))
    ]
    fitted = with_kappa(setting.profile, over_people(setting.profile, recorded).kappa)
    yield _moved(replace(second, profile=fitted), "recalibrated from users", users, queries)
    recent = first.pool[np.random.default_rng(53).permutation(half)[:4000]]
    anew = fit_profile(recent, setting.predict, seed=3, train_rows=setting.train)
    yield _moved(replace(second, profile=anew), "published anew", users, queries)


def _part(setting: Setting, rows: slice) -> Setting:
    return replace(setting, pool=setting.pool[rows], answers=setting.answers[rows])


def _moved(setting: Setting, who: str, users: int, queries: int) -> Row:
    found = honest(setting, users, queries)
    return {
        "part": "drift",
        "setting": setting.name,
        "who": who,
        "accounts": sum(int(str(row["accounts"])) for row in found),
        "questions": queries,
        "accused": sum(int(str(row["accused"])) for row in found),
        "highest": max((str(row["highest"]) for row in found), key=float),
    }


def people_rows(setting: Setting, count: int, queries: int, seed: int) -> Iterator[Floats]:
    """What so many honest accounts ask, (queries, d) each: families and handlings of the null by turns."""
    rng, people = np.random.default_rng(seed), People.of(setting)
    rows = setting.pool
    touched = {how: rows if how == "plain" else narrow(handled(setting, how)) for how in HANDLINGS}
    calibration = setting.profile.counts[3]
    narrowest = null.smallest_account(calibration) / calibration
    for number in range(count):
        how, share = list(HANDLINGS.items())[number % len(HANDLINGS)]
        weights = next(mixes(people, list(FAMILIES)[number % len(FAMILIES)], 1, narrowest, rng))
        drawn = draw(weights, queries, rng)
        again = (rng.random(len(rows)) < share)[drawn]  # a row that comes again comes as it was
        yield np.where(again[:, None], touched[how][drawn], rows[drawn])


# -- a null wide enough for what-if users --


def widened(setting: Setting) -> Profile:
    """The profile after sixty recorded users of whose questions one in five is what-if."""
    rng, size = np.random.default_rng(59), smallest_stretch(setting.profile)
    rows = setting.reference
    recorded = []
    for number in range(60):
        drawn = rows[rng.choice(len(rows), size=4 * size, replace=4 * size > len(rows))]
        asked = narrow(_often(setting, drawn, rng))
        recorded.append(Recorded(f"user {number}", asked, np.asarray(setting.predict(asked)), vouched=True))
    return with_kappa(setting.profile, over_people(setting.profile, recorded).kappa)


def interleaved(setting: Setting, names: list[str], runs: int, budget: int) -> Iterator[Row]:
    """Attacks hidden among honest questions, under the null that ships and under the wide one; and what-if users accused."""
    profiles = {"null that ships": setting.profile, "wide null": widened(setting)}
    for null_name, profile in profiles.items():
        rng = np.random.default_rng(61)
        users = [_first_alarm(setting, profile, narrow(_often(setting, _own(setting, rng, 1000), rng))) for _ in range(20)]
        yield timed(
            {"part": "interleaved", "setting": setting.name, "attack": "one in five what-if (honest)", "how": null_name}, users
        )
    for attack in names:
        loots = [Loot(setting, attack, run) for run in range(runs)]
        for share, null_name in ((0.5, "null that ships"), (0.3, "null that ships"), (0.05, "null that ships")):
            times = [alarm(setting, loot, budget, share=share, seed=run).queries for run, loot in enumerate(loots)]
            yield timed(_hidden(setting, attack, share, null_name), times)
        for share in (0.1, 0.05):
            wide = profiles["wide null"]
            times = [
                alarm(setting, loot, budget, share=share, seed=run, profile=wide).queries for run, loot in enumerate(loots)
            ]
            yield timed(_hidden(setting, attack, share, "wide null"), times)


def _hidden(setting: Setting, attack: str, share: float, null_name: str) -> Row:
    return {"part": "interleaved", "setting": setting.name, "attack": attack, "how": f"{100 * share:g} %, {null_name}"}


def hidden_attacks(setting: Setting) -> list[str]:
    """The attacks that the bar of one in ten is about, and mild shifts beside them."""
    foreign = ["photographs", "mirrored"] if is_vision(setting) else list(TABULAR)
    return ["line-search", "jacobian", "t-rnd", "knockoff", "copycat", *foreign]


# -- Sybil --

ACCOUNTS = (1, 2, 5, 10, 20)


def sybil_attacks(setting: Setting) -> list[str]:
    """What is dealt over many accounts."""
    return ["uniform", "photographs" if is_vision(setting) else "columns shuffled", "line-search", "jacobian"]


def sybil(setting: Setting, names: list[str], runs: int, budget: int) -> Iterator[Row]:
    """Attacks dealt over so many accounts that share a covariate: all accounts' queries until the case, beside one account's
    until its alarm."""
    for attack in names:
        loots = [Loot(setting, attack, run) for run in range(runs)]
        ones = [alarm(setting, loot, budget).queries for loot in loots]
        for count in ACCOUNTS:
            times = ones if count == 1 else [_case(setting, loot, budget, count) for loot in loots]
            within = sum(one is not None and at is not None and at <= 2 * one for one, at in zip(ones, times, strict=True))
            row = {"part": "sybil", "setting": setting.name, "attack": attack, "how": f"{count} accounts"}
            yield {**timed(row, times), "within twice": within}


def _case(setting: Setting, loot: Loot, budget: int, count: int) -> int | None:
    """Queries of all accounts when they are accused of acting as one, or one of them alone is."""
    guard, rows = Guard(setting.profile), loot.first(budget)
    answers = np.asarray(setting.predict(rows))
    names = [f"account {at % count}" for at in range(len(rows))]
    for at in range(0, len(rows), 4):
        end = at + 4
        guard.observe_many(names[at:end], rows[at:end], answers[at:end], [("network",)] * len(rows[at:end]))
        if guard.cases() or guard.alarmed():
            return min(end, len(rows))
    return None
