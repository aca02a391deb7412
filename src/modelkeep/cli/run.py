"""run."""

import contextlib
import re
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import click
import msgspec

from modelkeep.adapters.child import Ended
from modelkeep.adapters.limits import Limits
from modelkeep.adapters.process import no_tracing
from modelkeep.app.datasets import SealedDataset
from modelkeep.app.isolation import Isolate, SealedFile
from modelkeep.app.keep import Keep
from modelkeep.app.runresults import RunRecorded
from modelkeep.app.runs import Named, Plan, record
from modelkeep.cli.context import Context, parse_parameters, read_file, write_file
from modelkeep.core.values import digest_of
from modelkeep.custody.provenance import CodeReport, DataReport, RunReport
from modelkeep.errors import Invalid, NotTrusted, Refused
from modelkeep.ledger.attestations import Isolation

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NOT_SIGNED = "--require-signed-code: this is no clean tree of a commit that somebody known signed"
_SETTINGS = {"allow_interspersed_args": False}


@click.command(
    epilog="Example: modelkeep run --data loans --output model.onnx -- python train.py --lr 0.1", context_settings=_SETTINGS
)
@click.argument("command", metavar="COMMAND", nargs=-1, type=click.UNPROCESSED)
@click.option("--input", "inputs", multiple=True, metavar="[NAME=]PATH", help="File or folder that goes in; may be repeated.")
@click.option("--data", multiple=True, metavar="[NAME=]FOLDER", help="Folder of which whatever is opened went in; repeatable.")
@click.option("--sealed", multiple=True, metavar="NAME@VERSION", help="Isolated: sealed data set, at /data; may be repeated.")
@click.option("--purpose", default="", help="What the sealed data sets are read for.")
@click.option("--output", "outputs", multiple=True, help="Model file that comes out; may be repeated.")
@click.option("--output-dir", "folders", multiple=True, help="Folder whose new and changed files come out; repeatable.")
@click.option("--param", "parameters", multiple=True, metavar="NAME=VALUE", help="Parameter to record; may be repeated.")
@click.option("--python", default="", help="Interpreter whose packages are recorded; the command's own if not given.")
@click.option("--allow-dirty", is_flag=True, help="Record a run of code with uncommitted changes, by their digest.")
@click.option("--no-code", is_flag=True, help="Record no code: the run is outside version control.")
@click.option("--out", default="", help="New file for the DSSE envelopes of the statements, one a line.")
@click.option("--require-signed-code", is_flag=True, help="Do not run code whose commit is signed by nobody the keep knows.")
@click.option("--isolate", is_flag=True, help="Let COMMAND reach nothing but its code, what is declared here, and its Python.")
@click.option("--network", is_flag=True, help="Isolated: with this machine's network.")
@click.option("--gpu", is_flag=True, help="Isolated: with this machine's NVIDIA GPUs.")
@click.option("--env", "names", multiple=True, metavar="NAME", help="Isolated: variable of yours to pass on; repeatable.")
@click.option("--readable", multiple=True, metavar="PATH", help="Isolated: file or folder to read besides; repeatable.")
@click.option("--memory", default="", metavar="SIZE", help="Isolated: memory of all its processes, as in 8G.")
@click.option("--disk", default="", metavar="SIZE", help="Isolated: what it may write, as in 20G.")
@click.option("--cpus", default=0.0, type=click.FloatRange(min=0), help="Isolated: processors.")
@click.option("--time", "duration", default="", metavar="DURATION", help="Isolated: time, as in 90s, 30m or 2h.")
@click.option("--processes", default=None, type=click.IntRange(min=4), help="Isolated: processes and threads (4096).")
@click.option("--from", "report_file", default="", help="Record the run in this file, which a run that could not be left.")
@click.pass_obj
def run(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    /,
    command: tuple[str, ...],
    inputs: tuple[str, ...],
    data: tuple[str, ...],
    sealed: tuple[str, ...],
    purpose: str,
    outputs: tuple[str, ...],
    folders: tuple[str, ...],
    parameters: tuple[str, ...],
    python: str,
    allow_dirty: bool,
    no_code: bool,
    out: str,
    report_file: str,
    require_signed_code: bool,
    isolate: bool,
    **limits: Any,
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
        if (sealed or purpose) and not isolate:
            raise Invalid("sealed data sets are opened for isolated runs alone: say --isolate")
        plan = Plan(
            command=command,
            inputs=tuple(map(Named.parse, inputs)),
            data=tuple(map(Named.parse, data)),
            outputs=tuple(map(Path, outputs)),
            output_folders=tuple(map(Path, folders)),
            parameters=parse_parameters(parameters),
            allow_dirty=allow_dirty,
            no_code=no_code,
            python=python,
            quiet=ctx.out.json,
            apart=_keep_folder(ctx),
            isolate=_isolate(limits) if _wanted(isolate, limits) else None,
            sealed=_opened(ctx, sealed, purpose) if isolate else (),
        )

        def check(code: CodeReport) -> None:
            found = ctx.call(Keep.run_check, code=code, isolated=isolate and not limits["network"])
            if require_signed_code and (found.signature != "good" or code.changes):
                raise NotTrusted(f"{_NOT_SIGNED}: its signature is {found.signature}{', with changes' if code.changes else ''}")

        with contextlib.ExitStack() as after:
            reading = ctx.out.busy("Reading what went in and what came out")
            found = record(plan, check, lambda: after.enter_context(reading))
        if isinstance(found, Ended):
            ctx.out.fail(Refused(f"{found.why}: nothing was recorded"))
            return found.code
        report = found
    _say(ctx, _recorded(ctx, report, kept=report_file), report, out)
    return 0


def _opened(ctx: Context, names: tuple[str, ...], purpose: str) -> tuple[SealedFile, ...]:
    """The data sets, opened for ``purpose``, which the log has before COMMAND begins."""
    found = []
    for name in names:
        if ctx.server:
            fetched = ctx.call(Keep.data_fetch, dataset=name, purpose=purpose)
            told = DataReport(f"{fetched.ref}/{fetched.filename}", digest_of(fetched.data))
            found.append(SealedFile(told, partial(iter, [fetched.data])))
        else:
            opened = ctx.call(_open_here, dataset=name, purpose=purpose)
            told = DataReport(f"{opened.ref}/{opened.record.filename}", opened.sealed.model_digest)
            found.append(SealedFile(told, opened.whole))
    return tuple(found)


def _open_here(keep: Keep, *, dataset: str, purpose: str) -> SealedDataset:
    return keep.data(dataset, purpose=purpose)


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
        *([f"  isolated  {_isolation(report.isolation)}"] if report.isolation else []),
        f"  took      {(report.ended - report.started) / 1e9:,.1f} s",
        *(f"  output    {model.name}  {model.digest}  log entry {model.log_index}" for model in done.models),
        *([f"  written   {out}"] if out else []),
    ]
    models = [{"name": one.name, "digest": one.digest, "log_index": one.log_index} for one in done.models]
    ctx.out.show({**msgspec.structs.asdict(done), "models": models, "file": out}, "\n".join(lines))


def _isolation(said: Isolation) -> str:
    limits = [
        *([f"{said.memory:,} bytes of memory"] if said.memory else []),
        *([f"{said.disk:,} bytes to write"] if said.disk else []),
        *([f"{said.cpus:g} processors"] if said.cpus else []),
        *([f"{said.seconds:,.0f} s"] if said.seconds else []),
        f"{said.processes:,} processes",
    ]
    network = "no network" if said.network == "none" else "with this machine's network"
    return f"{said.engine}, {network}{', with its GPUs' if said.gpu else ''}; at most {', '.join(limits)} ({said.limited_by})"


def _wanted(isolate: bool, limits: dict[str, Any]) -> bool:
    """Whether a run is to be isolated; a limit that would limit nothing is an error."""
    if not isolate:
        given = [name for name, value in limits.items() if value]
        if given:
            names = {"names": "env", "duration": "time"}
            raise Invalid(f"--{names.get(given[0], given[0])} limits an isolated run: say --isolate")
    return isolate


def _isolate(given: dict[str, Any]) -> Isolate:
    processes = Limits().processes if given["processes"] is None else given["processes"]
    for name in given["names"]:
        if not _NAME.fullmatch(name):
            raise Invalid(f"{name[:80]!r} is no name of a variable: the value is taken from your own environment")
        if name.startswith("LD_"):
            raise Invalid(f"{name[:80]} is for the linker, which would heed it outside of the isolation, too")
    return Isolate(
        limits=Limits(
            memory=_size(given["memory"]),
            disk=_size(given["disk"]),
            processes=processes,
            cpus=given["cpus"],
            seconds=_seconds(given["duration"]),
        ),
        network=given["network"],
        gpu=given["gpu"],
        environment=given["names"],
        readable=tuple(map(Path, given["readable"])),
    )


def _size(text: str) -> int:
    """``8G`` in bytes; 0 for "". Raises Invalid."""
    found = re.fullmatch(r"([1-9][0-9]{0,11})([KMGT]?)(?:i?B)?", text)
    if text and not found:
        raise Invalid(f"{text[:40]!r} is no size: write a whole number with K, M, G or T, as in 8G")
    return int(found[1]) << {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}[found[2]] if found else 0


def _seconds(text: str) -> float:
    """``2h`` in seconds; 0 for "". Raises Invalid."""
    found = re.fullmatch(r"([1-9][0-9]{0,8})([smhd]?)", text)
    if text and not found:
        raise Invalid(f"{text[:40]!r} is no duration: write a whole number with s, m, h or d, as in 2h")
    return int(found[1]) * {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}[found[2]] if found else 0.0


def _keep_folder(ctx: Context) -> tuple[Path, ...]:
    """The keep, when it lies in the working tree; not when the tree lies in the keep, for then nothing would be code."""
    keep = ctx.directory.resolve()
    return () if ctx.server or keep in (Path.cwd(), *Path.cwd().parents) else (keep,)


def _parse_report(data: bytes) -> RunReport:
    try:
        return msgspec.json.decode(data, type=RunReport)
    except msgspec.MsgspecError as cause:
        raise Invalid(f"this is no report of a run: {cause}") from cause


COMMANDS = (run,)
