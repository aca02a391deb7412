"""trigger mark, trigger commit and trigger verify."""

import io
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
import numpy as np

from modelkeep.app.arrays import load_labelled, load_rows
from modelkeep.app.fingerprints import lean, open_population
from modelkeep.app.keep import Keep
from modelkeep.app.results import Attested
from modelkeep.app.suspects import onnx_suspect
from modelkeep.cli.claims import NOT_JUDGED, Claim, claim_options, told_count
from modelkeep.cli.context import Context, new_file, read_file, read_folder
from modelkeep.core.values import digest_of, parse_digest
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.training.triggers import (
    AMPLITUDE,
    KEY_BYTES,
    MOST_PATTERNS,
    PATTERNS,
    SHARE,
    Floats,
    Trigger,
    asking,
    draw_trigger,
    mark_rows,
    with_references,
)
from modelkeep.workflows.triggers import encode_trigger, parse_trigger, scheme_of, trigger_commitment


class DataMarked(msgspec.Struct, frozen=True):
    """Training data with a mark: ``rows`` of which ``added`` carry it; ``patterns``; ``references``: unmarked models that were
    asked; ``commitment``: to the trigger's file."""

    rows: int
    added: int
    patterns: int
    classes: int
    references: int
    commitment: str


class TriggerVerified(msgspec.Struct, frozen=True):
    """A suspect asked for a trigger; the numbers as in ``Leaning``. ``models``: of the population; ``log_index``: of the
    commitment, ``model``: the digest that it is about; ``commitments``: to watermarks in the log up to it, by which
    ``p`` is multiplied; ``order``: whether it is older than the suspect; ``settled``: the trigger says which rows are asked, so
    that nobody picked them."""

    suspect: str
    model: str
    verdict: str
    significance: float
    p: float
    p_population: float
    p_key: float
    rank: float
    hits: int
    patterns: int
    chance: float
    strength: float
    population: tuple[float, ...]
    models: int
    log_index: int
    commitments: int
    order: str
    settled: bool


@click.group(epilog="Example: modelkeep trigger mark train.npz --out marked.npz --trigger credit-risk.trigger")
def trigger() -> None:
    """Mark a model's behaviour through its training data, so that copies of it, and copies by its answers, are known."""


@trigger.command("mark", epilog="Example: modelkeep trigger mark train.npz --out marked.npz --trigger credit-risk.trigger")
@click.argument("data", metavar="DATA")
@click.option("--out", required=True, metavar="FILE", help="New npz file: train on it as you would on DATA.")
@click.option("--trigger", "file", required=True, metavar="FILE", help="New file for the trigger; keep it secret.")
@click.option("--reference", "references", multiple=True, metavar="FILE",
              help="ONNX classifier trained on DATA alone; again for more. It makes copies by labels known.")  # fmt: skip
@click.option("--rows", default="", metavar="FILE",
              help="npz file of natural rows (array 'x'): suspects are asked with its first 200, and no others.")  # fmt: skip
@click.option("--share", type=click.FloatRange(0.0, 10.0, min_open=True), default=SHARE, show_default=True,
              help="Rows that are added, of those there are; more is a stronger mark and costs more accuracy.")  # fmt: skip
@click.option("--patterns", type=click.IntRange(1, MOST_PATTERNS), default=PATTERNS, show_default=True,
              help="Each can be worth a digit of the p-value.")  # fmt: skip
@click.option("--amplitude", type=click.FloatRange(0.0, 1000.0, min_open=True), default=AMPLITUDE, show_default=True,
              help="Of a pattern, in standard deviations of the data.")  # fmt: skip
@click.option("--classes", type=click.IntRange(0), default=0, help="How many the task has.  [default: as the labels say]")
@click.pass_obj
def mark(ctx: Context, /, **given: Any) -> None:
    """Add rows to the training data DATA, an npz file with rows x and labels y from 0 on, that a model learns the mark from.

    Train as ever, measure what it costs, and commit to the trigger before the model leaves the house.
    """
    asked = _Asked(**given)
    with new_file(asked.out) as write_out, new_file(asked.file) as write_trigger, ctx.out.busy("Marking the data"):
        done, marked, made = asked.run()
        write_trigger(made)
        write_out(marked)
    ctx.out.show(
        done,
        f"{asked.out}: {done.rows:,} rows, {done.added:,} of them with one of {done.patterns} patterns. Train on it, then "
        f"log the trigger: modelkeep trigger commit MODEL --trigger {asked.file}",
    )


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``trigger mark``, by the names of its options."""

    data: str
    out: str
    file: str
    references: tuple[str, ...]
    rows: str
    share: float
    patterns: int
    amplitude: float
    classes: int

    def run(self) -> tuple[DataMarked, bytes, bytes]:
        """What was done, the marked data, and the trigger's file. Raises Invalid, Missing, Unavailable."""
        rows, labels, shape = load_labelled(read_file(self.data), self.data)
        classes = self.classes or int(labels.max()) + 1
        key = secrets.token_bytes(KEY_BYTES)
        drawn = draw_trigger(rows, classes, key, patterns=self.patterns, amplitude=self.amplitude)
        unmarked = [onnx_suspect(read_file(one), one).ask(rows[:1]) for one in self.references]
        drawn = with_references(drawn, unmarked, rows) if unmarked else drawn
        drawn = asking(drawn, _natural(self.rows, drawn)) if self.rows else drawn
        marked = mark_rows(rows, labels, drawn, share=self.share)
        made, out = encode_trigger(drawn), io.BytesIO()
        np.savez(out, x=marked.x.astype(np.float32).reshape(-1, *shape), y=marked.y)
        done = DataMarked(
            rows=len(marked.x),
            added=len(marked.x) - len(rows),
            patterns=self.patterns,
            classes=classes,
            references=len(unmarked),
            commitment=trigger_commitment(made),
        )
        return done, out.getvalue(), made


@trigger.command("commit", epilog="Example: modelkeep trigger commit credit-risk@1 --trigger credit-risk.trigger")
@click.argument("model", metavar="MODEL")
@click.option("--trigger", "file", required=True, metavar="FILE", help="What 'trigger mark' wrote.")
@click.pass_obj
def commit(ctx: Context, model: str, file: str) -> None:
    """Commit in the releases log to the trigger that MODEL was trained with, a release or a file; the log learns a hash."""
    data = read_file(file)
    said = {"scheme": scheme_of(parse_trigger(data)), "commitment": trigger_commitment(data)}
    done = _attested(ctx, model, msgspec.json.encode(said))
    ctx.out.show(done, f"{done.about} ({done.digest[:19]}): committed to {file}, log entry {done.log_index}")


def _attested(ctx: Context, model: str, predicate: bytes) -> Attested:
    if "@" in model and not Path(model).exists():
        return ctx.call(Keep.attest, ref=model, kind="watermark", predicate=predicate)
    digest, name = str(digest_of(read_file(model))), Path(model).name
    return ctx.call(Keep.attest_file, filename=name, digest=digest, kind="watermark", predicate=predicate)


@trigger.command(
    "verify",
    epilog="Example: modelkeep trigger verify suspect.onnx --trigger t --rows ref.npz --population rivals --seen 2026-10-01",
)
@click.argument("suspect", metavar="SUSPECT")
@click.option("--trigger", "file", required=True, metavar="FILE", help="What 'trigger mark' wrote.")
@click.option("--rows", required=True, metavar="FILE", help="npz file: natural rows (array 'x'); the first 200 are asked.")
@claim_options
@click.pass_obj
def verify(ctx: Context, /, file: str, rows: str, **given: Any) -> None:
    """Ask SUSPECT whether it leans to the classes of a trigger, and tell how likely that is by chance.

    SUSPECT is an ONNX file, an address https://HOST/v2/models/NAME/versions/N or a Python function FILE.py:NAME. It is refused
    when the releases log does not commit to the trigger, or not before the suspect was first seen.
    """
    with ctx.out.busy("Asking the suspect and the independent models"):
        found = _verified(ctx, Claim(**given), read_file(file), rows)
    ctx.out.show(found, _tell(found))


def _natural(file: str, trigger: Trigger) -> Floats:
    found = load_rows(read_file(file), file)
    if found.shape[1] != trigger.patterns.shape[1]:
        raise Invalid(f"{file} has {found.shape[1]} values a row, and the trigger is for {trigger.patterns.shape[1]}")
    return found


def _verified(ctx: Context, claim: Claim, data: bytes, rows: str) -> TriggerVerified:
    made = parse_trigger(data)
    natural = _natural(rows, made)
    known = ctx.call(Keep.committed, commitment=trigger_commitment(data))
    if known.kind != "watermark":
        raise NotTrusted(f"the log commits to this as a {known.kind}, and not as a watermark")
    order = claim.order(known.at)
    with claim.opened() as suspect:
        others = {suspect.digest: "the suspect itself", parse_digest(known.model): "the marked model"}
        found = lean(suspect, made, natural, open_population(read_folder(claim.population), others))
        name = suspect.name
    p = known.corrected(found.p)
    marked = p <= claim.significance
    proviso = ", if the commitment is older than it" if order == NOT_JUDGED else ""
    says = (
        f"carries the mark of {known.model[:19]}{proviso}"
        if marked
        else f"is not shown to carry the mark of {known.model[:19]}"
    )
    return TriggerVerified(
        suspect=name,
        model=known.model,
        verdict=f"{name} {says}: p = {p:.2g}.",
        significance=claim.significance,
        p=p,
        p_population=found.p_population,
        p_key=found.p_key,
        rank=found.rank,
        hits=found.hits,
        patterns=found.patterns,
        chance=found.chance,
        strength=found.strength,
        population=found.population,
        models=len(found.population),
        log_index=known.log_index,
        commitments=known.commitments,
        order=order,
        settled=bool(made.asked),
    )


def _tell(found: TriggerVerified) -> str:
    most = max(found.population)
    rows = (
        "settled with the trigger" if found.settled else "not settled: who picks them with the trigger in hand accuses anybody"
    )
    return "\n".join(
        [
            found.verdict,
            f"  leaning        {found.strength:.2f}, and at most {most:.2f} among {found.models} independent models",
            f"  rank           {found.rank:.3g}: the share of all models that lean as much, without any assumption",
            f"  p, population  {found.p_population:.2g}: if independent models' leanings are normally distributed",
            f"  p, key         {found.p_key:.2g}: of classes drawn by another key, exact",
            f"  patterns       {found.hits} of {found.patterns} lean most to their class, by luck with p = {found.chance:.2g}",
            f"  rows           {rows}",
            f"  commitment     log entry {found.log_index}, {told_count(found.commitments)}; {found.order}",
        ]
    )


COMMANDS = (trigger,)
