"""run."""

import contextlib
import secrets
from pathlib import Path

import click
import msgspec

from modelkeep.adapters.child import Ended
from modelkeep.adapters.process import no_tracing
from modelkeep.app.keep import Keep
from modelkeep.app.runresults import RunRecorded
from modelkeep.app.runs import Named, Plan, record
from modelkeep.cli.context import Context, read_file, write_file
from modelkeep.custody.provenance import RunReport
from modelkeep.errors import Invalid, Refused

_SETTINGS = {"allow_interspersed_args": False}


@click.command(
    epilog="Example: modelkeep run --data loans --output model.onnx -- python train.py --lr 0.1", context_settings=_SETTINGS
)
@click.argument("command", metavar="COMMAND", nargs=-1, type=click.UNPROCESSED)
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]PATH", help="File or folder that goes in; may be repeated.")
@click.option("--data", multiple=True, metavar="[NAME=]FOLDER", help="Folder of which whatever is opened went in; repeatable.")
@click.option("--output", "outputs", multiple=True, help="Model file that comes out; may be repeated.")
@click.option("--output-dir", "folders", multiple=True, help="Folder whose new and changed files come out; repeatable.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Parameter to record; may be repeated.")
@click.option("--python", default="", help="Interpreter whose packages are recorded; the command's own if not given.")
@click.option("--allow-dirty", is_flag=True, help="Record a run of code with uncommitted changes, by their digest.")
@click.option("--no-code", is_flag=True, help="Record no code: the run is outside version control.")
@click.option("--out", default="", help="New file for the DSSE envelopes of the statements, one a line.")
@click.option("--from", "report_file", default="", help="Record the run in this file, which a run that could not be left.")
@click.pass_obj
def run(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    command: tuple[str, ...],
    inputs: tuple[str, ...],
    data: tuple[str, ...],
    outputs: tuple[str, ...],
    folders: tuple[str, ...],
    parameters: tuple[str, ...],
    python: str,
    allow_dirty: bool,
    no_code: bool,
    out: str,
    report_file: str,
) -> int:
    """Run COMMAND, and log what code, data, environment and machine its outputs came out of.

    Ends with the exit code of COMMAND when that is not 0; then nothing is recorded.
    """
    if out and Path(out).exists():
        raise Invalid(f"{out} exists: name another file or remove it first")
    no_tracing()  # the keys may be in this process while the command runs as the same user
    if report_file:
        if command:
            raise Invalid("--from records a run that has ended: leave out the command")
        report = _parse_report(read_file(report_file))
    else:
        plan = Plan(
            command=command,
            inputs=tuple(map(Named.parse, inputs)),
            data=tuple(map(Named.parse, data)),
            outputs=tuple(map(Path, outputs)),
            output_folders=tuple(map(Path, folders)),
            parameters=_parameters(parameters),
            allow_dirty=allow_dirty,
            no_code=no_code,
            python=python,
            quiet=ctx.out.json,
            apart=_keep_folder(ctx),
        )
        with contextlib.ExitStack() as after:
            reading = ctx.out.busy("Reading what went in and what came out")
            found = record(plan, lambda code: ctx.call(Keep.run_check, code=code), lambda: after.enter_context(reading))
        if isinstance(found, Ended):
            ctx.out.fail(Refused(f"{found.why}: nothing was recorded"))
            return found.code
        report = found
    _say(ctx, _recorded(ctx, report, kept=report_file), report, out)
    return 0


def _recorded(ctx: Context, report: RunReport, *, kept: str) -> RunRecorded:
    """Have the keep record a run. When it cannot, the report stays in a file: training may have taken hours."""
    try:
        with ctx.out.busy("Recording the run"):
            return ctx.call(Keep.run_record, report=report)
    except BaseException:  # whatever it is, somebody's patience included
        if not kept:
            name = f"modelkeep-run-{secrets.token_hex(4)}.json"
            write_file(name, msgspec.json.encode(report))
            ctx.out.note(f"modelkeep: the run itself ended well; when this is mended: modelkeep run --from {name}")
        raise


def _say(ctx: Context, done: RunRecorded, report: RunReport, out: str) -> None:
    if out:
        write_file(out, b"".join(model.envelope.rstrip(b"\n") + b"\n" for model in done.models), mode=0o644)
    ran = report.environment
    signed = f"signed by {done.signer}" if done.signature == "good" else f"signature: {done.signature}"
    code = f"{done.commit[:12]}{', with changes' if done.dirty else ''}, {signed}" if done.commit else "not recorded"
    python = f"Python {ran.python}, {len(ran.packages)} packages" if ran.python else "not recorded: COMMAND is no Python"
    shown = ", ".join(done.inputs[:5]) + (f" and {len(done.inputs) - 5} more" if len(done.inputs) > 5 else "")
    lines = [
        f"run {done.run}",
        f"  code      {code}",
        f"  python    {python}",
        f"  inputs    {shown or 'none: name them with --input or --data'}",
        f"  took      {(report.ended - report.started) / 1e9:,.1f} s",
        *(f"  output    {model.name}  {model.digest}  log entry {model.log_index}" for model in done.models),
        *([f"  written   {out}"] if out else []),
    ]
    models = [{"name": one.name, "digest": one.digest, "log_index": one.log_index} for one in done.models]
    ctx.out.show({**msgspec.structs.asdict(done), "models": models, "file": out}, "\n".join(lines))


def _keep_folder(ctx: Context) -> tuple[Path, ...]:
    """The keep, when it lies in the working tree; not when the tree lies in the keep, for then nothing would be code."""
    keep = ctx.directory.resolve()
    return () if ctx.server or keep in (Path.cwd(), *Path.cwd().parents) else (keep,)


def _parameters(given: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals or name in found:
            raise Invalid(f"{text[:80]!r} is no parameter: write it once, as NAME=VALUE")
        found[name] = value
    return found


def _parse_report(data: bytes) -> RunReport:
    try:
        return msgspec.json.decode(data, type=RunReport)
    except msgspec.MsgspecError as cause:
        raise Invalid(f"this is no report of a run: {cause}") from cause


COMMANDS = (run,)
