"""Honest accounts of the extraction bench: thousands at once, each from a family of mixes with a handling of its rows."""

import time
from collections.abc import Iterator, Sequence

import numpy as np
from rich.progress import Progress

from benchmarks import Row
from benchmarks._extraction import FAMILIES, HANDLINGS, SESSIONS, Floats, Ints, People, Setting, handled, mixes
from modelkeep.extraction import null
from modelkeep.extraction.crowd import Asked, Crowd

ALPHA = 1e-3
AT_ONCE = 250
"""Accounts that walk in lock-step: more do not fit the caches."""
SAME = "the same rows for ever, handled anew (not promised)"
FEW = 600
"""So many rows has an account of this family: most of its distinct questions are slips, which the null does not cover."""


def honest(setting: Setting, users: int, queries: int) -> list[Row]:
    """How many accounts of each family were accused in ``queries`` questions each."""
    began = time.perf_counter()
    asked = _asked(setting)
    rng = np.random.default_rng(11)
    families = [*FAMILIES, SESSIONS, SAME]
    each = -(-users // ((len(families) - 1) * len(HANDLINGS)))  # so many of those that something is promised to
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
            "part": "honest",
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
                again = family != SAME  # a row that comes again comes as it was: the shares are those of distinct questions
                touched = (rng.random(size) < share)[rows] if again else rng.random(queries) < share
                asking.append((rows + size * number * touched).astype(np.int64))
                handling.append(how)
        for at in range(0, len(asking), AT_ONCE):
            yield family, np.stack(asking[at : at + AT_ONCE]), handling[at : at + AT_ONCE]


def _draws(people: People, family: str, each: int, queries: int, narrowest: float, rng: np.random.Generator) -> Iterator[Ints]:
    if family == SAME:
        for _ in range(each):
            few = rng.permutation(len(people.classes))[:FEW]
            yield few[rng.integers(len(few), size=queries)]
        return
    if family != SESSIONS:
        for weights in mixes(people, family, each, narrowest, rng):
            yield draw(weights, queries, rng)
        return
    for _ in range(each):
        lengths = rng.integers(100, 1000, size=queries // 100)
        parts = [
            draw(next(mixes(people, "segment", 1, narrowest, rng)), int(length), rng)
            for length in lengths[: int(np.searchsorted(lengths.cumsum(), queries)) + 1]
        ]
        yield np.concatenate(parts)[:queries]


def draw(weights: Floats, count: int, rng: np.random.Generator) -> Ints:
    drawn: Ints = np.minimum(np.searchsorted(weights.cumsum(), rng.random(count)), len(weights) - 1)
    return drawn
