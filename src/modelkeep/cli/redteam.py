"""attack, trace, renew-mark and trace-check."""

import importlib.util
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modelkeep.app.arrays import load_rows
from modelkeep.app.keep import Keep
from modelkeep.app.probing import PROBES, Asked
from modelkeep.app.shelf import is_address
from modelkeep.app.tracing import Shown, check_trace, is_function, open_suspect
from modelkeep.cli.claims import seen_option
from modelkeep.cli.context import Context, check_new_folder, read_file, read_folder, read_secret_file, write_folder
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid, Missing
from modelkeep.extraction.attacks import (
    ATTACKS,
    STRATEGIES,
    Array,
    Guise,
    Knowledge,
    Recovering,
    Surrogate,
    copy_maker,
    make_strategy,
)
from modelkeep.workflows.attack import AttackReport, Exam, run_attack
from modelkeep.workflows.sybil import Sybil
from modelkeep.workflows.tracepage import PAGE

if TYPE_CHECKING:
    from modelkeep.adapters.surrogates import MlpNumbers, MlpSurrogate, TreesNumbers, TreesSurrogate
    from modelkeep.adapters.targets import HttpTarget
    from modelkeep.app.traceresults import Traced

_HELP = """Steal a model through a gateway, as a real client would, and report how good the copy is.

Run it against your own gateway only. Fidelity is agreement with the victim's top class, or R² of its numbers.
Attacks (--list says what they need):

\b
""" + "\n".join(f"{name:<20} {one.does}" for name, one in ATTACKS.items())


class ListedAttack(msgspec.Struct, frozen=True):
    """One row of ``attack --list``."""

    name: str
    does: str
    needs: str
    source: str
    against: str


def _list(click_context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if not wanted or click_context.resilient_parsing:
        return
    listed = [ListedAttack(name, one.does, one.needs, one.source, one.against) for name, one in ATTACKS.items()]
    rows = [(one.name, one.does, one.needs, one.against, one.source) for one in listed]
    click_context.obj.out.table(listed, ("NAME", "ASKS", "NEEDS", "AGAINST", "SOURCE"), rows, empty="There are no attacks.")
    click_context.exit()


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``attack``, by the names of its options."""

    url: str
    strategy: str
    ref: str
    key_file: tuple[str, ...]
    ca: str
    seed_data: str
    foreign_data: str
    honest_data: str
    eval_data: str
    victim: str
    budget: int
    batch: int
    repeats: int
    noise: float
    interleave: int
    sleep: int
    labels_only: bool
    decimals: int | None
    recover: bool
    copy: str
    numbers: bool
    seed: int
    save: str

    def guise(self) -> Guise:
        """The disguise that was asked for. Raises Invalid (an explanation is all numbers)."""
        if ATTACKS[self.strategy].explains and (self.labels_only or self.decimals is not None or self.recover):
            raise Invalid("an explanation without its numbers is none: leave out --labels-only, --decimals and --recover")
        return Guise(self.repeats, self.noise, self.interleave / 100, self.sleep, self.labels_only, self.decimals)

    def check_numbers(self) -> None:
        """Raises Invalid: what is asked for makes sense of classes only."""
        if self.labels_only or self.recover:
            raise Invalid("numbers have neither labels nor marks: leave out --labels-only and --recover")

    def exam(self, numbers: bool) -> Exam:
        """What fidelity is measured on. Raises Invalid."""
        from modelkeep.adapters.targets import OnnxTarget

        rows = _rows(self.eval_data)
        if not self.victim or rows is None:
            return Exam(numbers=numbers)
        return Exam.by(OnnxTarget(read_file(self.victim)), rows, numbers=numbers)

    def clients(self, stack: ExitStack) -> "list[HttpTarget]":
        """One client for each key, closed with ``stack``. Raises Invalid, Missing."""
        from modelkeep.adapters.targets import HttpTarget

        ref, ca = ReleaseRef.parse(self.ref), Path(self.ca) if self.ca else None
        keys = [read_secret_file(name).decode() for name in self.key_file]
        return [stack.enter_context(HttpTarget(self.url, ref, key, ca=ca)) for key in keys]

    def accounts(self, clients: "list[HttpTarget]") -> Sybil:
        """The accounts as one target."""
        from modelkeep.adapters.targets import Explained

        return Sybil([Explained(one) for one in clients] if ATTACKS[self.strategy].explains else clients)


@click.command(
    help=_HELP,
    epilog="Example: modelkeep attack https://localhost:8443 --as uniform --model risk@1 --key-file k --seed-data s.npz",
)
@click.argument("url", metavar="URL")
@click.option("--list", is_flag=True, is_eager=True, expose_value=False, callback=_list, help="List the attacks, ask nothing.")
@click.option("--as", "strategy", type=click.Choice(STRATEGIES), metavar="ATTACK", required=True, help="How to steal.")
@click.option("--model", "ref", required=True, metavar="NAME@VERSION", help="What to steal.")
@click.option("--key-file", required=True, multiple=True, help="File with the API key to steal with; again for more accounts.")
@click.option("--ca", default="", help="PEM file of the authority that signed the gateway's certificate.")
@click.option("--seed-data", required=True, help="npz file: rows (array 'x') that the thief has to begin with.")
@click.option("--foreign-data", default="", help="npz file: rows from elsewhere, for attacks that ask those.")
@click.option("--honest-data", default="", help="npz file: rows to hide among (default: the thief's own).")
@click.option("--eval-data", default="", help="npz file: rows to measure fidelity on; needs --victim.")
@click.option("--victim", default="", help="The model itself (ONNX), to measure fidelity against.")
@click.option("--budget", type=click.IntRange(1), default=500, show_default=True, help="Queries to spend at most.")
@click.option("--batch", type=click.IntRange(1, 1000), default=1, show_default=True, help="Rows a request.")
@click.option("--repeats", type=click.IntRange(1, 1000), default=1, show_default=True, help="Times to ask each question.")
@click.option("--noise", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Noise on questions, in ranges.")
@click.option("--interleave", type=click.IntRange(1, 100), default=100, show_default=True, help="Percent that attack.")
@click.option("--sleep", type=click.IntRange(0), default=0, show_default=True, help="Honest questions to ask first.")
@click.option("--labels-only", is_flag=True, help="Look at nothing but the top class of an answer.")
@click.option("--decimals", type=click.IntRange(1, 6), default=None, help="Look at so many decimals of an answer only.")
@click.option("--recover", is_flag=True, help="Undo rounding and marks before the copy learns, as far as can be.")
@click.option(
    "--copy", type=click.Choice(("perceptron", "trees")), default="perceptron", show_default=True, help="Copy to train."
)
@click.option("--numbers", is_flag=True, help="The model gives several numbers a row, and no classes; of one it is seen.")
@click.option("--seed", default=0, show_default=True, help="Seed of the attack's own randomness.")
@click.option("--save", default="", help="npz file for what was learnt: rows and answers.")
@click.pass_obj
def attack(ctx: Context, /, **given: Any) -> None:
    """Parse, attack, print."""
    asked = _Asked(**given)
    guise, seeds, foreign = asked.guise(), load_rows(read_file(asked.seed_data), asked.seed_data), _rows(asked.foreign_data)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        clients = asked.clients(stack)
        numbers = asked.numbers or clients[0].numbers()
        if numbers:
            asked.check_numbers()
        exam, make = asked.exam(numbers), _surrogates(asked.copy, numbers)
        known = Knowledge.of(seeds, foreign, numbers=numbers)

        def surrogate() -> Surrogate:
            return make(seed=asked.seed)

        copies = copy_maker(asked.strategy, known, surrogate)
        plan = make_strategy(asked.strategy, known, seed=asked.seed, surrogate=surrogate)
        accounts = asked.accounts(clients)
        progress = stack.enter_context(Progress(*columns, console=ctx.out.notes, transient=True))
        bar = progress.add_task(f"{asked.strategy} on {asked.ref}", total=asked.budget)
        report, loot = run_attack(
            accounts,
            guise.wear(plan, known, honest=_rows(asked.honest_data), seed=asked.seed),
            name=asked.strategy,
            surrogate=(lambda: Recovering(copies, seed=asked.seed)) if asked.recover else copies,
            budget=asked.budget,
            batch=asked.batch,
            exam=exam,
            watch=lambda spent: progress.update(bar, completed=spent),
        )
    if asked.save:
        np.savez(asked.save, x=loot.x, probs=loot.probs)
    words = (*guise.words(), *(("answers recovered",) if asked.recover else ()))
    spent = sum(one.hashes for one in clients)
    report = msgspec.structs.replace(report, guise=words, accounts=tuple(accounts.answered), hashes=spent)
    ctx.out.show(report, _tell(report))


def _rows(file: str) -> Array | None:
    return load_rows(read_file(file), file) if file else None


def _surrogates(copy: str, numbers: bool) -> "type[MlpSurrogate | TreesSurrogate | MlpNumbers | TreesNumbers]":
    if importlib.util.find_spec("sklearn") is None:
        raise Missing("the red team trains copies with scikit-learn: pip install 'modelkeep[lab]'")
    from modelkeep.adapters.surrogates import MlpNumbers, MlpSurrogate, TreesNumbers, TreesSurrogate

    if numbers:
        return TreesNumbers if copy == "trees" else MlpNumbers
    return TreesSurrogate if copy == "trees" else MlpSurrogate


def _tell(report: AttackReport) -> str:
    curve = "\n".join(f"  {point.queries:>6} queries   fidelity {point.fidelity:.3f}" for point in report.curve)
    disguised = f"Disguise: {', '.join(report.guise)}; {report.own} queries were the attack's own\n" if report.guise else ""
    shared = f"Queries of each account: {', '.join(map(str, report.accounts))}\n" if len(report.accounts) > 1 else ""
    work = f"Proof of work: {report.hashes:,} hashes\n" if report.hashes else ""
    measure = " (R²)" if report.measure == "R²" else ""
    return (
        f"{report.strategy}: {report.queries} of {report.budget} queries answered; {report.reason}\n{disguised}{shared}{work}"
        f"Fidelity on {report.measured_on}{measure} (a constant answer has {report.majority:.3f}):\n"
        f"{curve or '  too few answers for a copy'}"
    )


@click.command(epilog="Example: modelkeep trace suspect.onnx --model credit-risk@1 --beacon-file drawn.txt --report case-7")
@click.argument("suspect", metavar="SUSPECT")
@click.option("--model", "ref", required=True, metavar="NAME@VERSION", help="The release it may have been stolen from.")
@click.option(
    "--probe",
    type=click.Choice(PROBES),
    default=None,
    help="What the suspect is asked beside what accounts asked: rows of --probes, yours (data) or the other side's (theirs), "
    "or of the release's own pool, drawn by --beacon-file (beacon) or by the suspect's digest (log).  [default: what is given, "
    "else log]",
)
@click.option("--probes", default="", help="npz file: natural rows (array 'x'), from 'log-probes' or the other side.")
@click.option("--beacon-file", default="", help="File with a value that nobody knew when the suspect was fixed.")
@click.option("--key-file", default="", help="File with an API key, for a suspect at an address.")
@click.option("--ca", default="", help="PEM file of the certificate authority to trust for the address.")
@click.option(
    "--significance", type=click.FloatRange(1e-12, 0.1), default=1e-3, show_default=True, help="Accuse below this corrected p."
)
@click.option("--report", default="", metavar="FOLDER", help="New folder for a report that somebody else can run again.")
@seen_option
@click.pass_obj
def trace(ctx: Context, /, **given: Any) -> None:
    """Rank the accounts that a suspect model may have been trained through, with a p-value each.

    SUSPECT is an ONNX file; an address that speaks the Open Inference Protocol, https://HOST/v2/models/NAME/versions/N; or a
    Python function FILE.py:NAME from rows to probabilities, called in a process of its own. The p-values hold for any suspect
    made without knowledge of the keys. Draw the probes after the suspect is fixed.
    """
    asked = _Traced(**given)
    probes, beacon = asked.probing()
    with ctx.out.busy("Asking the suspect and comparing every account's mark"):
        found = asked.run(ctx, probes, beacon)
    if asked.report:
        write_folder(asked.report, found.report)
    rows = [(a.account, f"{a.p:.2e}", a.queries) for a in found.accounts]
    told = msgspec.structs.replace(found, report={})
    ctx.out.table(told, ("ACCOUNT", "P (BONFERRONI)", "QUERIES LOGGED"), rows, empty="No account has asked this release.")
    if not ctx.out.json:
        ctx.out.console.print(found.verdict, markup=False)
        for one in found.together:
            who = f"{one.name or 'a set'}: {', '.join(one.accounts)}"
            ctx.out.console.print(f"Together, {who}: p = {one.p:.2e} among {one.tests:.3g} groups.", markup=False)
        if asked.report:
            ctx.out.console.print(f"The report is in {asked.report}: read {PAGE}, check it with 'trace-check'.", markup=False)


@dataclass(frozen=True)
class _Traced:
    """The arguments of ``trace``, by the names of its options. ``probes``: a file's name."""

    suspect: str
    ref: str
    probe: str | None
    probes: str
    beacon_file: str
    key_file: str
    ca: str
    significance: float
    report: str
    seen: int

    def probing(self) -> tuple[bytes, bytes]:
        """The probes' file and the beacon, b"" where there is none. Raises Invalid, Missing."""
        how = self.probe or ("data" if self.probes else "beacon" if self.beacon_file else "log")
        if bool(self.probes) != (how in ("data", "theirs")) or (how != "data" and bool(self.beacon_file) != (how == "beacon")):
            raise Invalid(
                "--probe data goes with --probes and may have a --beacon-file, --probe theirs with --probes, --probe beacon "
                "with --beacon-file, and --probe log with neither"
            )
        if self.report:
            check_new_folder(self.report)
        return _given(self.probes), _given(self.beacon_file)

    def run(self, ctx: Context, probes: bytes, beacon: bytes) -> "Traced":
        """Trace a file on the keep or its server, anything else where the keep is. Raises Invalid, Missing, NotTrusted."""
        how = Asked(probes, beacon, self.significance, bool(self.report), self.seen, self.probe == "theirs")
        if (self.key_file or self.ca) and not is_address(self.suspect):
            raise Invalid("--key-file and --ca are for a suspect at an address")
        if is_address(self.suspect) or is_function(self.suspect):
            keep = ctx.local("trace of an address or a function")
            with ExitStack() as stack:
                key = read_secret_file(self.key_file).decode(errors="replace") if self.key_file else ""
                suspect = open_suspect(self.suspect, stack, key=key, ca=self.ca)
                return keep.trace_by(ref=self.ref, suspect=suspect, asked=how)
        return ctx.call(Keep.trace, ref=self.ref, suspect=read_file(self.suspect), **how._asdict())


def _given(file: str) -> bytes:
    """What is in a file that an option names; b"" without one. Raises Invalid (it is empty), Missing."""
    found = read_file(file) if file else b""
    if file and not found:
        raise Invalid(f"{file} is empty")
    return found


@click.command("log-probes", epilog="Example: modelkeep log-probes rows.npz --model credit-risk@1")
@click.argument("rows", metavar="ROWS")
@click.option(
    "--model", "ref", required=True, metavar="NAME@VERSION", help="The release whose suspects may be asked these rows."
)
@click.pass_obj
def log_probes(ctx: Context, rows: str, ref: str) -> None:
    """Log rows of your own that suspects may be asked, before there is a key that they could be chosen for.

    ROWS is an npz file (array 'x'); the log gets their Merkle root, and a report shows those that are drawn of them. A release
    has a pool of its own from 'publish' on: this is for rows that you like better, and for releases of before.
    """
    done = ctx.call(Keep.probes_log, ref=ref, probes=_given(rows))
    older = (
        f" {done.older} accounts have older keys: nothing is claimed by those with these rows ('renew-mark')."
        if done.older
        else ""
    )
    ctx.out.show(done, f"{done.rows:,} rows, root {done.pool}, are a pool for {done.ref} (log entry {done.log_index}).{older}")


@click.command("renew-mark", epilog="Example: modelkeep renew-mark alice --model credit-risk@1 --reason 'her key was shown'")
@click.argument("account")
@click.option("--model", "ref", required=True, metavar="NAME@VERSION", help="The release whose answers are marked.")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def renew_mark(ctx: Context, account: str, ref: str, reason: str) -> None:
    """Give an account a new key for the marks on its answers.

    The log commits to it, and gateways mark with it within a second. What was answered before is traced by the key that marked
    it. 'trace --report' does this by itself for every account whose newest key it opens.
    """
    done = ctx.call(Keep.mark_renew, ref=ref, account=account, reason=reason)
    ctx.out.show(done, f"{done.account}: its marks on {done.ref} are in epoch {done.epoch} now (log entry {done.log_index})")


@click.command("trace-check", epilog="Example: modelkeep trace-check case-7 --trust trust.toml --suspect suspect.onnx")
@click.argument("folder", metavar="FOLDER")
@click.option("--trust", required=True, help="trust.toml of the keep: its public keys.")
@click.option("--suspect", default="", help="Ask the suspect again: ONNX file, address or FILE.py:NAME.")
@click.option("--key-file", default="", help="File with an API key, for a suspect at an address.")
@click.option("--ca", default="", help="PEM file of the certificate authority to trust for the address.")
@click.option("--beacon-file", default="", help="File with the value that is to draw the probes, as you know it.")
@click.option("--probes", default="", help="npz file: the rows that the other side chose, as you know them.")
@click.option("--model-file", default="", help="The owner's model (ONNX), where it was shown to you: ask it again, too.")
@click.option(
    "--log", default="", metavar="DIR|URL", help="The keep's logs, as for 'log verify': look at all of the releases log."
)
@seen_option
@click.pass_obj
def trace_check(ctx: Context, /, **given: Any) -> None:
    """Run the report of a trace again, with the keep's public keys and nothing else of it.

    Signatures, commitments, their proofs and their order, where the probes come from, the marks on recorded answers and every
    p-value are computed anew.
    """
    told = _Checked(**given)
    with ExitStack() as stack, ctx.out.busy("Computing the report again"):
        found = check_trace(read_folder(told.folder), read_file(told.trust), told.shown(stack))
    ctx.out.table(found, ("CHECKED", "SEEN"), [(one.what, one.seen) for one in found.found], empty="Nothing.")
    if not ctx.out.json:
        ctx.out.console.print(_SETTLED if found.settled else _UNSETTLED, markup=False)
        for one in found.caveats:
            ctx.out.console.print(f"Not proven here: {one}", markup=False)


_SETTLED = "Settled before the keys: the cells, the mark and the pool of probes. Nobody chose them with the suspect in hand."
_UNSETTLED = (
    "NOT settled before the keys, as far as this report shows: whoever knows a key could have chosen the probes, the mark or "
    "the cells to fit it. Its p-values are the owner's word."
)


@dataclass(frozen=True)
class _Checked:
    """The arguments of ``trace-check``, by the names of its options."""

    folder: str
    trust: str
    suspect: str
    key_file: str
    ca: str
    beacon_file: str
    probes: str
    model_file: str
    log: str
    seen: int

    def shown(self, stack: ExitStack) -> Shown:
        """What the reader has. Raises Invalid, Missing, NotTrusted, Unavailable."""
        key = read_secret_file(self.key_file).decode(errors="replace") if self.key_file else ""
        asked = open_suspect(self.suspect, stack, key=key, ca=self.ca) if self.suspect else None
        return Shown(asked, self.seen, _given(self.model_file), _given(self.beacon_file), _given(self.probes), self.log)


COMMANDS = (attack, trace, log_probes, renew_mark, trace_check)
