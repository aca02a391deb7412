"""attack and trace."""

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from modelkeep.app.arrays import load_rows
from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, read_file, read_secret_file
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Missing
from modelkeep.extraction.attacks import STRATEGIES, Knowledge, make_strategy
from modelkeep.workflows.attack import AttackReport, Exam, run_attack

if TYPE_CHECKING:
    from modelkeep.adapters.surrogates import MlpSurrogate


@click.command(
    epilog="Example: modelkeep attack https://localhost:8443 --as uniform --model risk@1 --key-file k --seed-data s.npz"
)
@click.argument("url", metavar="URL")
@click.option("--as", "strategy", type=click.Choice(STRATEGIES), required=True, help="How to steal.")
@click.option("--model", "ref", required=True, metavar="NAME@VERSION", help="What to steal.")
@click.option("--key-file", required=True, help="File with the API key to steal with.")
@click.option("--ca", default="", help="PEM file of the authority that signed the gateway's certificate.")
@click.option("--seed-data", required=True, help="npz file: rows (array 'x') that the thief has to begin with.")
@click.option("--eval-data", default="", help="npz file: rows to measure fidelity on; needs --victim.")
@click.option("--victim", default="", help="The model itself (ONNX), to measure fidelity against.")
@click.option("--budget", type=click.IntRange(1), default=500, show_default=True, help="Queries to spend at most.")
@click.option("--batch", type=click.IntRange(1, 1000), default=1, show_default=True, help="Rows a request.")
@click.option("--seed", default=0, show_default=True, help="Seed of the attack's own randomness.")
@click.option("--save", default="", help="npz file for the questions and answers.")
@click.pass_obj
def attack(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    url: str,
    strategy: str,
    ref: str,
    key_file: str,
    ca: str,
    seed_data: str,
    eval_data: str,
    victim: str,
    budget: int,
    batch: int,
    seed: int,
    save: str,
) -> None:
    """Steal a model through a gateway, as a real client would, and report how good the copy is.

    Run it against your own gateway only. Fidelity is agreement with the victim's top class.
    """
    from modelkeep.adapters.targets import HttpTarget, OnnxTarget

    def surrogate() -> "MlpSurrogate":
        return _surrogates()(seed=seed)

    seeds = load_rows(read_file(seed_data), seed_data)
    exam = Exam.by(OnnxTarget(read_file(victim)), load_rows(read_file(eval_data), eval_data)) if victim and eval_data else None
    target = HttpTarget(url, ReleaseRef.parse(ref), read_secret_file(key_file).decode(), ca=Path(ca) if ca else None)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with target, Progress(*columns, console=ctx.out.notes, transient=True) as progress:
        bar = progress.add_task(f"{strategy} on {ref}", total=budget)
        plan = make_strategy(strategy, Knowledge.of(seeds), seed=seed, surrogate=surrogate)
        report, loot = run_attack(
            target,
            plan,
            name=strategy,
            surrogate=surrogate,
            budget=budget,
            batch=batch,
            exam=exam,
            watch=lambda spent: progress.update(bar, completed=spent),
        )
    if save:
        np.savez(save, x=loot.x, probs=loot.probs)
    ctx.out.show(report, _tell(report))


def _surrogates() -> "type[MlpSurrogate]":
    if importlib.util.find_spec("sklearn") is None:
        raise Missing("the red team trains copies with scikit-learn: pip install 'modelkeep[lab]'")
    from modelkeep.adapters.surrogates import MlpSurrogate

    return MlpSurrogate


def _tell(report: AttackReport) -> str:
    curve = "\n".join(f"  {point.queries:>6} queries   fidelity {point.fidelity:.3f}" for point in report.curve)
    return (
        f"{report.strategy}: {report.queries} of {report.budget} queries answered; {report.reason}\n"
        f"Fidelity on {report.measured_on} (a constant answer has {report.majority:.3f}):\n"
        f"{curve or '  too few answers for a copy'}"
    )


@click.command(epilog="Example: modelkeep trace suspect.onnx --model credit-risk@1 --probes fresh.npz")
@click.argument("suspect", metavar="SUSPECT")
@click.option("--model", "ref", required=True, metavar="NAME@VERSION", help="The release it may have been stolen from.")
@click.option(
    "--probes", required=True, help="npz file: natural rows (array 'x') to ask the suspect; best drawn after it was fixed."
)
@click.option(
    "--significance", type=click.FloatRange(1e-12, 0.1), default=1e-3, show_default=True, help="Accuse below this corrected p."
)
@click.pass_obj
def trace(ctx: Context, suspect: str, ref: str, probes: str, significance: float) -> None:
    """Rank the accounts that a suspect model (ONNX) may have been trained through, with a p-value each.

    The p-values hold for any suspect made without knowledge of the keys. Draw the probes after the suspect is fixed.
    """
    with ctx.out.busy("Asking the suspect and comparing every account's mark"):
        found = ctx.call(Keep.trace, ref=ref, suspect=read_file(suspect), probes=read_file(probes), significance=significance)
    rows = [(a.account, f"{a.p:.2e}", a.queries) for a in found.accounts]
    ctx.out.table(found, ("ACCOUNT", "P (BONFERRONI)", "QUERIES LOGGED"), rows, empty="No account has asked this release.")
    if not ctx.out.json:
        ctx.out.console.print(found.verdict, markup=False)


COMMANDS = (attack, trace)
