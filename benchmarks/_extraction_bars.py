"""The bars of the extraction defence, each with what was measured: judged over the rows that a run, or several, made."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from benchmarks import Row
from benchmarks._extraction_honest import SAME
from benchmarks._extraction_results import Results

TABLES = ("adult", "credit", "elec2", "elec2-mixed")
FOREIGN = {
    "knockoff",
    "knockoff-adaptive",
    "copycat",
    "columns shuffled",
    "half the columns shuffled",
    "Gaussian copula",
    "photographs",
}
STEPS = {"jacobian", "jb-tr", "t-rnd"}


class Bar(NamedTuple):
    """``least``: the share of runs that must be found within so many queries, in every setting."""

    name: str
    least: float
    within: int
    rows: Callable[[Row], bool]
    part: str = "thieves"


def _plain(row: Row, names: set[str]) -> bool:
    return row["how"] == "as it is" and row["attack"] in names


def _table(row: Row) -> bool:
    return str(row["setting"]).split("/")[0] in TABLES


def _line(row: Row, near: bool) -> bool:
    """Line search on vision and adult (``near``), or everywhere."""
    return _plain(row, {"line-search"}) and not (
        near and str(row["setting"]).split("/")[0] in {"credit", "elec2", "elec2-mixed"}
    )


FOUND = (
    Bar("uniform, equation solving: 99 % within 50", 0.99, 50, lambda row: _plain(row, {"uniform", "equation-solving"})),
    Bar("line search on vision and adult: 99 % within 50", 0.99, 50, lambda row: _line(row, True)),
    Bar("line search everywhere: 95 % within 150", 0.95, 150, lambda row: _line(row, False)),
    Bar("JBDA, JB-TR, T-RND: 99 % within 150", 0.99, 150, lambda row: _plain(row, STEPS)),
    Bar("out of distribution: 99 % within 50", 0.99, 50, lambda row: _plain(row, FOREIGN)),
    Bar("data-free; mirrored: 95 % within 500", 0.95, 500, lambda row: _plain(row, {"data-free", "mirrored"})),
    Bar(
        "one in ten, wide null (line search, JBDA, T-RND, out of distribution): 90 % within 500",
        0.90,
        500,
        lambda row: row["how"] == "10 %, wide null" and row["attack"] != "mirrored",
        "interleaved",
    ),
)


def judged(results: Results) -> Iterator[Row]:
    """Every bar for which there are rows: the measured value, met or missed, and where it is worst."""
    yield from _honest(results.of("honest"))
    for bar in FOUND:
        rows = [row for row in results.of(bar.part) if bar.rows(row)]
        if rows:
            yield _found(bar, rows)
    yield from _sleeper(results.of("thieves"))
    yield from _sybil(results.of("sybil"))
    yield from _blocked(results.of("blocked"))
    yield from _transformed(results.of("transformed"))


def _bar(name: str, measured: str, met: bool | None, where: str = "") -> Row:
    return {
        "part": "bars",
        "bar": name,
        "measured": measured,
        "verdict": {True: "met", False: "missed"}.get(met, ""),
        "worst": where,
    }  # type: ignore[arg-type]


def _count(row: Row, key: str) -> int:
    return int(str(row.get(key) or 0))


def _where(row: Row) -> str:
    return f"{row['setting']} {row.get('attack', row.get('family', row.get('who', '')))}"


def _honest(rows: Sequence[Row]) -> Iterator[Row]:
    promised = [row for row in rows if row["family"] != SAME]
    drifts = [row for row in promised if str(row["setting"]).startswith("elec2/")]
    for name, those in (
        (
            "honest accounts accused, every setting but elec2 in the order of time: 0",
            [row for row in promised if row not in drifts],
        ),
        ("honest accounts accused, elec2 as calibrated once (drifts): reported", drifts),
        (f"accused of {SAME}: reported", [row for row in rows if row["family"] == SAME]),
    ):
        if those:
            accused, accounts = (sum(_count(row, key) for row in those) for key in ("accused", "accounts"))
            most = max(those, key=lambda row: _count(row, "accused"))
            questions = min(_count(row, "questions") for row in those)
            met = None if "reported" in name else accused == 0
            yield _bar(
                name, f"{accused} of {accounts:,} accounts of {questions:,} questions", met, _where(most) if accused else ""
            )


def _found(bar: Bar, rows: Sequence[Row]) -> Row:
    shares = [_count(row, f"within {bar.within}") / max(_count(row, "runs"), 1) for row in rows]
    total = sum(_count(row, f"within {bar.within}") for row in rows) / max(sum(_count(row, "runs") for row in rows), 1)
    worst = min(range(len(rows)), key=shares.__getitem__)
    missed = [row for row, share in zip(rows, shares, strict=True) if share < bar.least]
    where = f"{_where(rows[worst])} {shares[worst]:.0%}" + (f", {len(missed)} of {len(rows)} below" if missed else "")
    return _bar(bar.name, f"{total:.1%} of all runs", not missed, where)


def _sleeper(rows: Sequence[Row]) -> Iterator[Row]:
    awake = {(row["setting"], row["attack"]): row for row in rows if row["how"] == "as it is"}
    extra = []
    for row in rows:
        before = awake.get((row["setting"], row["attack"]))
        if str(row["how"]).startswith("after") and before is not None and row["median"] != "" and before["median"] != "":
            extra.append((_count(row, "median") - _count(before, "median"), row))
    if extra:
        most, row = max(extra, key=lambda pair: pair[0])
        late = sum(more > 30 for more, _ in extra)
        where = f"{_where(row)} +{most}" + (f", {late} of {len(extra)} above" if late else "")
        yield _bar("sleeper after 3,000: median at most 30 queries more", f"at most {most:+d}", most <= 30, where)


def _sybil(rows: Sequence[Row]) -> Iterator[Row]:
    many = [row for row in rows if row["how"] != "1 accounts"]
    if many:
        runs, within = (sum(_count(row, key) for row in many) for key in ("runs", "within twice"))
        worst = min(many, key=lambda row: _count(row, "within twice") / _count(row, "runs"))
        where = f"{_where(worst)} {worst['how']}: {worst['within twice']}/{worst['runs']}"
        yield _bar(
            "Sybil, 2 to 20 accounts: within twice the queries of one", f"{within} of {runs} runs", within == runs, where
        )


def _blocked(rows: Sequence[Row]) -> Iterator[Row]:
    if not rows:
        return
    natural = [row for row in rows if row["attack"] == "in-distribution"]
    others = [row for row in rows if row["attack"] != "in-distribution"]
    for name, key, least in (
        ("all attacks but in-distribution blocked (half the way and no gain): 95 %", "blocked", 0.95),
        ("… of which: half the way at most", "half", None),
        ("… of which: no gain over natural rows", "no gain", None),
        ("… of which: stopped by alarm", "alarm", None),
    ):
        runs, hits = (sum(_count(row, one) for row in others) for one in ("runs", key))
        share = hits / max(runs, 1)
        never = [row for row in others if _count(row, key) == 0]
        where = ", ".join(dict.fromkeys(str(row["attack"]) for row in never))
        yield _bar(
            name, f"{share:.1%} of {runs} runs", None if least is None else share >= least, f"never: {where}" if where else ""
        )
    if natural:
        runs, stopped = (sum(_count(row, one) for row in natural) for one in ("runs", "budget"))
        gain = max(natural, key=lambda row: float(str(row["advantage"])))
        kept = float(str(gain["advantage"])) <= 0.02
        measured = f"{stopped} of {runs} stopped by budget; advantage at most {gain['advantage']}"
        yield _bar(
            "in-distribution: stopped by budget, advantage at most 0.02", measured, kept and stopped == runs, _where(gain)
        )
    changed = sum(_count(row, "top-1 changed") for row in rows)
    yield _bar("top-1 answers changed below the last rung: 0", str(changed), changed == 0)


def _transformed(rows: Sequence[Row]) -> Iterator[Row]:
    if rows:
        accounts = sum(_count(row, "accounts") for row in rows)
        alone, among, held, after = (
            sum(_count(row, key) for row in rows)
            for key in ("accused alone", "accused among others", "withheld", "accused when declared")
        )
        measured = f"accused {alone} alone, {among} among others ({held} withheld), {after} when declared, of {accounts}"
        yield _bar("held-out transformations: reported, not promised", measured, None)
