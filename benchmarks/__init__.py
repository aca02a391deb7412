"""Benchmarks: one module each; ``run(args)`` prints JSON lines and a table, with a peer or a limit in the same run."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

Row = dict[str, object]


def report(title: str, rows: Sequence[Row]) -> None:
    """Print ``rows`` as JSON lines, then as one table whose columns are the keys in the order of their first use."""
    for row in rows:
        print(json.dumps(row))
    columns = list(dict.fromkeys(key for row in rows for key in row if key != "bench"))
    table = Table(title=title)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "case" else "right")
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    Console().print(table)
