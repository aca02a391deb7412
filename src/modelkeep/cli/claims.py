"""What the checks of ownership share: who is asked, and whether what the log commits to is older than the suspect."""

import datetime
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from modelkeep.app.shelf import is_address
from modelkeep.app.suspects import Suspect
from modelkeep.app.tracing import open_suspect
from modelkeep.cli.context import moment, read_secret_file
from modelkeep.errors import Invalid
from modelkeep.workflows.fingerprints import check_older

F = TypeVar("F", bound=Callable[..., Any])


def _since(_context: click.Context, _param: click.Parameter, said: str) -> int:
    """A day (its begin, UTC) or a time, in Unix nanoseconds; 0 when nothing is said."""
    if not said:
        return 0
    try:
        at = datetime.datetime.fromisoformat(said)
    except ValueError:
        raise click.BadParameter(f"{said[:40]!r} is no day or time, such as 2026-11-20 or 2026-11-20T15:00+01:00") from None
    since = (at if at.tzinfo else at.replace(tzinfo=datetime.UTC)) - datetime.datetime.fromtimestamp(0, datetime.UTC)
    if since <= datetime.timedelta(0):
        raise click.BadParameter(f"{said[:40]!r} is before 1970, and no model was")
    return since // datetime.timedelta(microseconds=1) * 1000


def told_count(commitments: int) -> str:
    """How many commitments a claim could have been made with."""
    return "the first of its kind" if commitments == 1 else f"number {commitments} of its kind, by which p is multiplied"


seen_option = click.option(
    "--seen",
    default="",
    metavar="TIME",
    callback=_since,
    help="When the suspect was there, such as 2026-11-20 (UTC): what the log committed to later proves nothing.",
)
"""Unix nanoseconds, 0 = nobody says; the same for every claim about a suspect."""

NOT_JUDGED = "not judged: say with --seen when the suspect was first seen"

_OPTIONS = (
    click.option(
        "--population",
        required=True,
        metavar="FOLDER",
        help="20 or more ONNX models that were trained independently for the task.",
    ),
    seen_option,
    click.option("--key-file", default="", help="File with an API key, for a suspect at an address."),
    click.option("--ca", default="", help="PEM file of the certificate authority to trust for the address."),
    click.option(
        "--significance",
        type=click.FloatRange(1e-12, 0.1),
        default=1e-3,
        show_default=True,
        help="Call it a copy below this p.",
    ),
)


def claim_options(command: F) -> F:
    """The options that every check has."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The arguments that every check has, by the names of its options."""

    suspect: str
    population: str
    seen: int
    key_file: str
    ca: str
    significance: float

    def order(self, at: int) -> str:
        """Whether a commitment, logged ``at`` (Unix nanoseconds), is older than the suspect, in words. Raises NotTrusted."""
        if not self.seen:
            return NOT_JUDGED
        words = f"logged {moment(at)}, and the suspect was seen {moment(self.seen)}"
        check_older(at, self.seen, words)
        return f"the commitment is older than the suspect: {words}"

    @contextmanager
    def opened(self) -> Iterator[Suspect]:
        """The suspect. Raises Invalid, Missing, NotTrusted, Unavailable."""
        if (self.key_file or self.ca) and not is_address(self.suspect):
            raise Invalid("--key-file and --ca are for a suspect at an address")
        with ExitStack() as stack:
            key = read_secret_file(self.key_file).decode(errors="replace") if self.key_file else ""
            yield open_suspect(self.suspect, stack, key=key, ca=self.ca)
