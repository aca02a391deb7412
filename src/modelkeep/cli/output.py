"""What a person or a machine reads: text and tables, or one JSON document with ``--json``."""

import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from rich.console import Console
from rich.status import Status
from rich.table import Table
from rich.text import Text

from modelkeep.errors import Invalid, Missing, ModelkeepError, OverBudget, Refused, Unavailable

EXIT_REFUSED, EXIT_INVALID, EXIT_UNAVAILABLE, EXIT_INTERRUPTED = 1, 2, 3, 130
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: str) -> Text:
    """``text`` as it is, neither markup nor emoji; what would steer the terminal or turn the line around is written out.

    Reasons, owners and descriptions are other people's words.
    """
    return Text(_UNSEEN.sub(lambda found: ascii(found[0])[1:-1], text))


def exit_code(error: ModelkeepError) -> int:
    """0 yes · 1 refused · 2 usage or invalid · 3 unavailable. A missing thing is a usage error, a conflict a refusal."""
    if isinstance(error, Invalid | Missing):
        return EXIT_INVALID
    if isinstance(error, Unavailable | OverBudget):
        return EXIT_UNAVAILABLE
    return EXIT_REFUSED


def below(text: str, indent: int) -> str:
    """Lines after the first stand below it, so that none passes for one of ours."""
    return text.replace("\n", "\n" + " " * indent)


class Output:
    """Where commands print. Results go to standard output, everything else to standard error."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self.console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 160)
        self.notes = Console(stderr=True, highlight=False, soft_wrap=True)

    def show(self, result: Any, text: str) -> None:
        """Print ``result`` as JSON, or ``text``."""
        if self.json:
            sys.stdout.write(msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n")
        else:
            self.console.print(plain(text))

    def table(self, result: Any, columns: Sequence[str], rows: Iterable[Sequence[object]], *, empty: str) -> None:
        """Print ``result`` as JSON, or ``rows`` under ``columns``; ``empty`` when there is none."""
        listed = [[str(cell) for cell in row] for row in rows]
        if self.json or not listed:
            self.show(result, empty)
            return
        grid = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            grid.add_column(column, overflow="fold")
        for row in listed:
            grid.add_row(*(plain(cell.replace("\n", "\\n")) for cell in row))
        self.console.print(grid, soft_wrap=False)

    def note(self, text: str) -> None:
        """Something a person should know while the command runs; never on standard output."""
        self.notes.print(plain(text))

    def busy(self, text: str) -> Status:
        """Say on standard error what is being done, on a terminal, for the length of a block."""
        return self.notes.status(plain(text))

    def fail(self, error: ModelkeepError) -> int:
        """Print one clear line (or a JSON document, on standard error) and return the exit code."""
        if self.json:
            words = str(error).encode("utf-8", "backslashreplace").decode()  # file names need not be text
            document = {"code": error.code, "message": words}
            sys.stderr.write(msgspec.json.encode(document).decode() + "\n")
        else:
            word = "refused" if isinstance(error, Refused) else "error"
            self.notes.print(plain(f"modelkeep: {word}: {error}"))
        return exit_code(error)
