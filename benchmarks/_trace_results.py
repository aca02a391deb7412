"""Results of the trace bench: a row a theft, kept in a folder so that nothing is measured twice; tables and plots of them."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks import Row
from benchmarks._extraction_plots import BARE, GREY, NATURAL, STOP, STYLE, save

FILE = "trace.jsonl"
NAMES = ("part", "setting", "case", "queries", "run")
HOW = {"log": "with the account's log", "probes": "from fresh probes alone"}
MANY = -9.0
FEW = -6.0
"""log10 of p that is wanted with the log, and from probes alone."""


@dataclass
class Kept:
    """``folder``: where rows are kept, None: nowhere. ``rows``: those of this run, and those kept before it, by ``NAMES``."""

    folder: Path | None
    rows: dict[tuple[object, ...], Row] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / FILE
            for line in file.read_text().splitlines() if file.exists() else ():
                row = json.loads(line)
                self.rows[tuple(row[name] for name in NAMES)] = row

    def once(self, make: Callable[[], Row], **names: object) -> Row:
        """The row with these ``NAMES``: the one kept, or else the one made now."""
        key = tuple(names[name] for name in NAMES)
        if key not in self.rows:
            self.rows[key] = {"bench": "trace", **names, **make()}
            if self.folder is not None:
                with (self.folder / FILE).open("a") as file:
                    file.write(f"{json.dumps(self.rows[key])}\n")
        return self.rows[key]

    def of(self, *parts: str) -> list[Row]:
        """The rows of some parts."""
        return [row for row in self.rows.values() if row["part"] in parts]


def told(log10: float) -> str:
    """A p-value by its logarithm."""
    return f"1e{log10:.0f}" if log10 <= -2 else f"{10.0**log10:.2g}"


def summary(rows: Sequence[Row]) -> Iterator[Row]:
    """A row over all runs of each case: the median p, the weakest, and in how many it is below what is wanted."""
    for key in dict.fromkeys((row["case"], row["queries"]) for row in rows):
        mine = [row for row in rows if (row["case"], row["queries"]) == key]
        out: Row = {"bench": "trace", "case": key[0], "queries": key[1], "runs": len(mine)}
        for how, name in HOW.items():
            found = np.sort([float(row[how]) for row in mine])  # type: ignore[arg-type]
            out[name] = told(float(np.median(found)))
            out[f"{name}, weakest"] = told(found[-1])
            for bar in (MANY, FEW):
                out[f"{how} < {told(bar)}"] = f"{int((found < bar).sum())}/{len(found)}"
        for more in ("named", "dawn"):
            if more in mine[0]:
                out[more] = _more(more, mine)
        yield out


def _more(name: str, rows: Sequence[Row]) -> str:
    values = [float(row[name]) for row in rows]  # type: ignore[arg-type]
    return told(float(np.median(values))) if name == "dawn" else f"{np.mean(values):.1f} of {rows[0]['accounts']}"


def draw(kept: Kept, folder: Path) -> list[Path]:
    """Every plot that there are rows for; the files written."""
    import matplotlib as mpl

    made = []
    with mpl.rc_context({**STYLE, "backend": "svg"}):
        for name, plot, parts in (("curve", _curve, ("traced",)), ("thefts", _thefts, ("changed", "colluding"))):
            rows = kept.of(*parts)
            for setting in dict.fromkeys(str(row["setting"]) for row in rows):
                file = folder / f"trace-{name}-{setting.replace('/', '-')}.svg"
                plot(setting, [row for row in rows if row["setting"] == setting], file)
                made.append(file)
    return made


def _curve(setting: str, rows: Sequence[Row], file: Path) -> None:
    """A panel for each way to read: p against queries, a line a kind of copy (the median), a dot a theft."""
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(str(row["case"]) for row in rows))
    figure, panels = plt.subplots(1, 2, figsize=(9, 3), sharex=True, layout="constrained")
    for panel, (how, name) in zip(panels, HOW.items(), strict=True):
        for kind, colour in zip(kinds, plt.get_cmap("tab10").colors, strict=False):  # type: ignore[attr-defined]
            mine = [row for row in rows if row["case"] == kind]
            at = sorted({int(row["queries"]) for row in mine})  # type: ignore[call-overload]
            values = [[-float(row[how]) for row in mine if row["queries"] == one] for one in at]  # type: ignore[arg-type]
            panel.plot(at, [np.median(some) for some in values], color=colour, linewidth=1.2, label=kind)
            for one, some in zip(at, values, strict=True):
                panel.scatter([one] * len(some), some, s=6, color=colour, alpha=0.5, linewidths=0)
        panel.axhline(-MANY if how == "log" else -FEW, color=STOP, linewidth=0.8, linestyle="--")
        panel.set_xscale("log", base=2)
        panel.set_xticks(at, [str(one) for one in at])
        panel.minorticks_off()
        panel.set_xlabel("queries")
        panel.set_title(name, fontsize=8, loc="left")
    panels[0].set_ylabel("digits of 1/p, after Bonferroni")
    panels[1].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{setting}: p of the account, a dot a theft, the median of each kind of copy; red: wanted", fontsize=9)
    save(figure, file)


def _thefts(setting: str, rows: Sequence[Row], file: Path) -> None:
    """A panel for each way to read: p of every theft of each case, the median marked."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(str(row["case"]) for row in rows))[::-1]
    figure, panels = plt.subplots(1, 2, figsize=(9, 0.2 * len(names) + 0.9), sharey=True, layout="constrained")
    for panel, (how, name) in zip(panels, HOW.items(), strict=True):
        for height, case in enumerate(names):
            found = [-float(row[how]) for row in rows if row["case"] == case]  # type: ignore[arg-type]
            panel.scatter(found, [height] * len(found), s=8, color=BARE, alpha=0.5, linewidths=0)
            panel.scatter([np.median(found)], [height], s=45, color=BARE, marker="|", linewidths=1.6)
        panel.axvline(-FEW, color=STOP, linewidth=0.8, linestyle="--")
        panel.axvline(0.0, color=GREY, linewidth=0.8, zorder=0)
        panel.set_title(name, fontsize=8, loc="left")
        panel.set_xlabel("digits of 1/p, after Bonferroni", color=NATURAL)
    panels[0].set_yticks(range(len(names)), names)
    figure.suptitle(
        f"{setting}: p of the account (of the one most strongly named), a dot a theft, the median marked", fontsize=9
    )
    save(figure, file)
