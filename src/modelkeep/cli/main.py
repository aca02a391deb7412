"""The command line: parse, call Keep once, print. ``main`` alone turns errors into exit codes."""

import errno
import gc
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from types import ModuleType

import click

from modelkeep import __version__
from modelkeep.adapters.process import no_core_dumps, open_standard_streams
from modelkeep.cli import files
from modelkeep.cli.context import DIRECTORY, PASSPHRASE_FILE, SERVER, Context
from modelkeep.cli.output import EXIT_INTERRUPTED, EXIT_INVALID, EXIT_UNAVAILABLE
from modelkeep.errors import Invalid, ModelkeepError

_EPILOG = "Example: modelkeep init keep && modelkeep --dir keep publish model.onnx --name risk --reference ref.npz"


class House(click.Group):
    """Every verb. Those of sealed files need little and are there at once; any other brings the whole house in."""

    _known: dict[str, click.Command]
    _whole = False

    @property
    def commands(self) -> MutableMapping[str, click.Command]:
        """By name."""
        if not self._whole:
            self._whole = True
            with _nothing_is_garbage():
                self._known |= {str(command.name): command for room in _rooms() for command in room.COMMANDS}
        return self._known

    @commands.setter
    def commands(self, _: object) -> None:
        self._known = {str(command.name): command for command in files.COMMANDS}

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The verb of that name, if there is one."""
        return self._known.get(cmd_name) or super().get_command(ctx, cmd_name)


@contextmanager
def _nothing_is_garbage() -> Iterator[None]:
    """What loading makes stays: to look through all of it for garbage, now and later, is a tenth of the time of a start."""
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def _rooms() -> tuple[ModuleType, ...]:
    from modelkeep.cli import (
        accounts,
        backup,
        bom,
        calibrate,
        cases,
        catalogue,
        certificates,
        config,
        data,
        evaluate,
        factors,
        fingerprint,
        harden,
        intel,
        keys,
        loglife,
        operations,
        policy,
        privacy,
        publishing,
        redteam,
        releases,
        run,
        scanning,
        server,
        setup,
        standing,
        trigger,
        trust,
        unsealing,
        watermark,
        witness,
    )

    models = (setup, publishing, releases, run, scanning, catalogue, policy, bom, intel, privacy)
    return (
        *models,
        accounts,
        certificates,
        factors,
        standing,
        keys,
        unsealing,
        trust,
        server,
        config,
        loglife,
        backup,
        witness,
        operations,
        calibrate,
        cases,
        redteam,
        watermark,
        fingerprint,
        trigger,
        data,
        harden,
        evaluate,
    )


@click.group(cls=House, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--dir", "directory", envvar=DIRECTORY, default=".", show_default=True, help="Folder of the keep.")
@click.option("--server", envvar=SERVER, default="", help="Act on a running control process, https://HOST:PORT, as logged in.")
@click.option("--passphrase-file", envvar=PASSPHRASE_FILE, default="", help="File with the passphrase; asked for if not given.")
@click.option(
    "--set", "flags", multiple=True, metavar="SECTION.SETTING=VALUE", help="A setting, over file and environment; repeatable."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document instead of text; may stand anywhere.")
@click.version_option(__version__, prog_name="modelkeep")
@click.pass_context
def cli(ctx: click.Context, directory: str, server: str, passphrase_file: str, flags: tuple[str, ...], as_json: bool) -> None:
    """Keep machine-learning models sealed, signed, logged, admitted, served and defended.

    No weights in the clear. No release without evidence. No answer without a record.
    """
    if flags:
        from modelkeep.app.configuration import set_flag

        for each in flags:
            set_flag(each)
    ctx.obj = Context(directory=directory, server=server, passphrase_file=passphrase_file, json=as_json)


_NOT_PRINTED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})
"""What standard output may fail with when it is a file; those that a command names itself are in ``errors.py``'s terms."""


def _split(given: list[str]) -> tuple[list[str], list[str]]:
    """What is said to modelkeep, and what stands after ``--`` and is another command's."""
    at = given.index("--") if "--" in given else len(given)
    return given[:at], given[at:]


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code: 0 yes · 1 refused · 2 usage or invalid · 3 unavailable."""
    no_core_dumps()  # before any key is read: servers do more once they have their keys (adapters/process.harden)
    given = sys.argv[1:] if arguments is None else arguments
    ours, others = _split(given)
    as_json = "--json" in ours  # wherever it stands there: it is the same option for every command
    words = [*(["--json"] if as_json else []), *(word for word in ours if word != "--json"), *others]
    shown = open_standard_streams()
    found = Context(directory=".", server="", passphrase_file="", json=as_json)
    if not shown:
        return found.out.fail(
            Invalid("standard output is closed, and nothing would be seen: send it somewhere, or to /dev/null")
        )
    try:
        code = cli.main(args=words, standalone_mode=False, prog_name="modelkeep")
    except ModelkeepError as error:
        return found.out.fail(error)
    except click.exceptions.Abort as stopped:  # click's word for Ctrl-C, and for an input that ended
        return EXIT_INTERRUPTED if isinstance(stopped.__context__, KeyboardInterrupt) else EXIT_INVALID
    except click.ClickException as error:
        if not as_json or isinstance(error, click.exceptions.NoArgsIsHelpError):
            error.show()
            return EXIT_INVALID
        return found.out.fail(Invalid(error.format_message()))
    except (BrokenPipeError, SystemExit):  # click exits when it finds the pipe broken
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left; nothing more to say to it
        return 0
    except OSError as error:
        if error.errno not in _NOT_PRINTED:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it would be tried again at the end
        found.out.note(f"modelkeep: error: cannot print the answer: {error.strerror}")
        return EXIT_UNAVAILABLE
    except MemoryError:
        found.out.note("modelkeep: error: not enough memory for this")
        return EXIT_UNAVAILABLE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return code if isinstance(code, int) else 0
