"""A bar for long work, on standard error and only on a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelkeep.workflows.rewrap import Progress as Told
from modelkeep.workflows.rewrap import silent


@contextmanager
def bar(*, shown: bool = True) -> Iterator[Told]:
    """Something to tell how far the work is; it shows nothing where nobody looks."""
    if not shown or not sys.stderr.isatty():
        yield silent
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total)
            progress.update(tasks[what], completed=done, total=total)

        yield told
