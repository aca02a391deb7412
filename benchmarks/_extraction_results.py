"""Results of the extraction bench: printed as they come, and kept in a folder, so that parts can run at different times."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.progress import track

from benchmarks import Row, report

TRACES = frozenset({"part", "checkpoints", "control", "curve", "stops", "times"})
"""What plots are made of and no table shows."""
FILE = "extraction.jsonl"


@dataclass
class Results:
    """``folder``: where rows are kept, None: nowhere. ``rows``: those of this run, and those kept before it."""

    folder: Path | None
    rows: list[Row] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.folder is not None:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = self.folder / FILE
            self.rows += [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def take(self, title: str, made: Iterable[Row], total: int = 0) -> None:
        """Keep rows as they are made, with a bar over ``total`` of them if that is known, then print them."""
        found: list[Row] = []
        for row in track(made, title, total=total, transient=True) if total else made:
            found.append({"bench": "extraction", **row})
            self._keep(found[-1])
        report(title, [{name: value for name, value in row.items() if name not in TRACES} for row in found])

    def _keep(self, row: Row) -> None:
        self.rows = [one for one in self.rows if _names(one) != _names(row)] + [row]
        if self.folder is not None:
            (self.folder / FILE).write_text("".join(f"{json.dumps(one)}\n" for one in self.rows))

    def of(self, part: str) -> Sequence[Row]:
        """The rows of one part."""
        return [row for row in self.rows if row["part"] == part]


def _names(row: Row) -> tuple[object, ...]:
    """What a row is about: a later one about the same takes its place."""
    return tuple(row.get(name) for name in ("part", "setting", "attack", "how", "family", "who", "bar"))
