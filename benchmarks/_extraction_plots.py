"""Plots of the extraction bench, one SVG a setting and kind: fidelity curves with the stops marked, and alarm times."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import Row
from benchmarks._extraction_results import Results

BARE, NATURAL, STOP, GREY = "#3b6ea5", "#8a94a6", "#c0392b", "#d5d9e0"
COLUMNS = 5
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "modelkeep",
    "font.family": "sans-serif",
    "font.size": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a94a6",
    "path.simplify_threshold": 0.5,
}


def draw(results: Results, folder: Path) -> list[Path]:
    """Every plot that there are rows for; the files written."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    made = []
    with mpl.rc_context({**STYLE, "backend": "svg"}):
        for part, plot in (("blocked", _fidelity), ("thieves", _alarms)):
            rows = [row for row in results.of(part) if "curve" in row or "times" in row]
            for setting in dict.fromkeys(str(row["setting"]) for row in rows):
                file = folder / f"extraction-{'fidelity' if part == 'blocked' else 'alarms'}-{setting.replace('/', '-')}.svg"
                plot(setting, [row for row in rows if row["setting"] == setting], file)
                made.append(file)
    return made


def _fidelity(setting: str, rows: Sequence[Row], file: Path) -> None:
    """A panel an attack: what a copy is worth after n answers of the bare model and of natural rows, and each run's stop."""
    import matplotlib.pyplot as plt

    height = -(-len(rows) // COLUMNS)
    figure, panels = plt.subplots(
        height, COLUMNS, figsize=(11, 1.65 * height + 0.6), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    lowest = min(_lowest(row) for row in rows)
    for panel, row in zip(panels.flat, rows, strict=False):
        at: list[int] = row["checkpoints"]  # type: ignore[assignment]
        stops = [(n, fid) for n, fid in row["stops"] if n]  # type: ignore[attr-defined]
        panel.axhline(row["majority"], color=GREY, linewidth=0.8)
        panel.plot(at, row["control"], color=NATURAL, linewidth=1.2, linestyle="--")
        panel.plot(at, row["curve"], color=BARE, linewidth=1.4)
        if stops:
            panel.scatter(*zip(*stops, strict=True), s=9, color=STOP, zorder=3, linewidths=0)
        shown = f"{row['blocked']}/{row['runs']} blocked" if stops else "never stopped"
        panel.set_title(f"{row['attack']}: {shown}", fontsize=8, loc="left")
        panel.set_xscale("log", base=2)
        panel.set_xticks([8, 64, 500, 2000], ["8", "64", "500", "2000"])
        panel.set_ylim(lowest, 1.0)
    for panel in panels.flat[len(rows) :]:
        panel.axis("off")
    figure.suptitle(
        f"{setting}: agreement of the copy with the model, by answers. Blue: bare model. Dashed: natural rows, defended. "
        "Red: each run at its stop. Grey: commonest class.",
        fontsize=9,
    )
    save(figure, file)


def _lowest(row: Row) -> float:
    """The lowest agreement of a panel, down to the next tenth."""
    told = [row["majority"], *row["control"], *row["curve"], *(fid for n, fid in row["stops"] if n)]  # type: ignore[misc]
    return float(np.floor(10.0 * min(told)) / 10.0)


def _alarms(setting: str, rows: Sequence[Row], file: Path) -> None:
    """A panel for each way to hide: the attacks' queries at the alarm, a dot a run, their median, and how many never were."""
    import matplotlib.pyplot as plt

    ways = list(dict.fromkeys(str(row["how"]) for row in rows))
    names = list(dict.fromkeys(str(row["attack"]) for row in rows))[::-1]
    figure, panels = plt.subplots(
        1, len(ways), figsize=(11, 0.21 * len(names) + 0.9), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for panel, way in zip(panels.flat, ways, strict=True):
        for row in (row for row in rows if row["how"] == way):
            times = np.array(row["times"])
            height, hits = names.index(str(row["attack"])), np.sort(times[times >= 0])
            panel.scatter(np.maximum(hits, 1), np.full(len(hits), height), s=7, color=BARE, alpha=0.5, linewidths=0)
            if len(hits):
                panel.scatter([np.median(hits)], [height], s=45, color=BARE, marker="|", linewidths=1.6)
            if len(hits) < len(times):
                panel.text(620, height, f"{len(times) - len(hits)} never", color=STOP, fontsize=7, va="center")
        for bar in (50, 150, 500):
            panel.axvline(bar, color=GREY, linewidth=0.8, zorder=0)
        panel.set_xscale("log")
        panel.set_xlim(5, 1300)
        panel.set_ylim(-0.7, len(names) - 0.3)
        panel.set_xticks([8, 50, 150, 500], ["8", "50", "150", "500"])
        panel.minorticks_off()
        panel.set_title(way, fontsize=8, loc="left")
    panels[0, 0].set_yticks(range(len(names)), names)
    figure.suptitle(f"{setting}: attack queries at the alarm, a dot a run, the median marked", fontsize=9)
    save(figure, file)


def save(figure: object, file: Path) -> None:
    """Write a figure as SVG, the same on every run, without digits that nobody sees."""
    import matplotlib.pyplot as plt

    figure.savefig(file, metadata={"Date": None, "Creator": None})  # type: ignore[attr-defined]
    plt.close(figure)  # type: ignore[arg-type]
    plain = "\n".join(line.rstrip() for line in file.read_text().splitlines())
    file.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", plain) + "\n")  # a hundredth of a point is not seen
