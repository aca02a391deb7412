"""fingerprint make and fingerprint check."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from modelkeep.app.fingerprints import FingerprintMade, compare, open_population, redraw
from modelkeep.app.keep import Keep
from modelkeep.app.suspects import Suspect
from modelkeep.cli.claims import NOT_JUDGED, Claim, claim_options, told_count
from modelkeep.cli.context import Context, new_file, read_file, read_folder
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.training.fingerprint import PROBES
from modelkeep.workflows.fingerprints import commitment, parse_fingerprint


class FingerprintChecked(msgspec.Struct, frozen=True):
    """A suspect compared with a fingerprint. ``order``: whether the commitment is older than the suspect; ``redrawn``: the
    probes were drawn again, and the key draws these; ``log_index``: of the commitment; ``commitments``: to fingerprints
    in the log up to it, by which ``p`` is multiplied; ``models``: of the population."""

    suspect: str
    model: str
    verdict: str
    significance: float
    p: float
    p_population: float
    p_key: float
    rank: float
    shared: float
    population: tuple[float, ...]
    agreement: float
    models: int
    probes: int
    log_index: int
    commitments: int
    order: str
    redrawn: bool


@click.group(epilog="Example: modelkeep fingerprint make credit-risk@1 --reference ref.npz --out credit-risk.fingerprint")
def fingerprint() -> None:
    """Tell copies of a model that carries no mark from models that were trained independently."""


@fingerprint.command(
    "make", epilog="Example: modelkeep fingerprint make credit-risk@1 --reference ref.npz --out credit-risk.fingerprint"
)
@click.argument("model", metavar="MODEL")
@click.option("--reference", required=True, metavar="FILE", help="npz file: natural rows (array 'x') of several classes.")
@click.option("--out", required=True, metavar="FILE", help="New file for the fingerprint; keep it secret until you need it.")
@click.option("--probes", default=PROBES, show_default=True, help="How many questions it has.")
@click.pass_obj
def make(ctx: Context, model: str, reference: str, out: str, probes: int) -> None:
    """Make the fingerprint of MODEL, a release or an ONNX file, and commit to it in the releases log.

    It is about models that are first seen after the commitment: make it before anybody else has the model or its answers.
    """
    with new_file(out) as write, ctx.out.busy("Looking for the model's boundaries"):
        done = _made(ctx, model, {"reference": read_file(reference), "probes": probes})
        write(done.fingerprint)
    told = msgspec.structs.replace(done, fingerprint=b"")
    ctx.out.show(told, f"{done.model} ({done.model_digest[:19]}): {done.probes:,} probes in {out}, log entry {done.log_index}")


def _made(ctx: Context, model: str, how: dict[str, Any]) -> FingerprintMade:
    if "@" in model and not Path(model).exists():
        return ctx.call(Keep.fingerprint_make, ref=model, **how)
    return ctx.call(Keep.fingerprint_make_file, filename=Path(model).name, model=read_file(model), **how)


@fingerprint.command(
    "check",
    epilog="Example: modelkeep fingerprint check suspect.onnx --fingerprint f --population rivals --seen 2026-10-01",
)
@click.argument("suspect", metavar="SUSPECT")
@click.option("--fingerprint", "file", required=True, metavar="FILE", help="What 'fingerprint make' wrote.")
@click.option(
    "--model", default="", metavar="FILE", help="The model's ONNX file: draw the probes again; goes with --reference."
)
@click.option("--reference", default="", metavar="FILE", help="The npz file that the fingerprint was made with.")
@claim_options
@click.pass_obj
def check(ctx: Context, /, **given: Any) -> None:
    """Compare SUSPECT with a fingerprint and with independent models, and tell how likely such a likeness is by chance.

    SUSPECT is an ONNX file, an address https://HOST/v2/models/NAME/versions/N or a Python function FILE.py:NAME. It is refused
    when the releases log does not commit to the fingerprint, or not before the suspect was first seen.
    """
    asked = _Asked(**given)
    with ctx.out.busy("Asking the suspect and the independent models"):
        found = asked.run(ctx)
    ctx.out.show(found, _tell(found))


@dataclass(frozen=True, kw_only=True)
class _Asked(Claim):
    """The arguments of ``fingerprint check``, by the names of its options."""

    file: str
    model: str
    reference: str

    def run(self, ctx: Context) -> FingerprintChecked:
        """Raises NotTrusted (no commitment, or one that is too young; other probes), Invalid, Missing, Unavailable."""
        if bool(self.model) != bool(self.reference):
            raise Invalid("--model and --reference go together: the probes are drawn again from both")
        data = read_file(self.file)
        made = parse_fingerprint(data)
        known = ctx.call(Keep.committed, commitment=commitment(data))
        if (known.kind, known.model) != ("fingerprint", made.model.digest):
            raise NotTrusted(f"the log commits to this as a {known.kind} of {known.model}, and it is of {made.model.digest}")
        order = self.order(known.at)
        if self.model:
            redraw(made, read_file(self.model), read_file(self.reference))
        with self.opened() as suspect:
            others = {suspect.digest: "the suspect itself", made.model.digest: "the model of the fingerprint"}
            found = compare(suspect, made, open_population(read_folder(self.population), others))
        p = known.corrected(found.p)
        return FingerprintChecked(
            suspect=suspect.name,
            model=made.model.name,
            verdict=self._verdict(suspect, made.model.name, p, order),
            significance=self.significance,
            p=p,
            p_population=found.p_population,
            p_key=found.p_key,
            rank=found.rank,
            shared=found.shared,
            population=found.population,
            agreement=found.agreement,
            models=len(found.population),
            probes=len(made.probes.told),
            log_index=known.log_index,
            commitments=known.commitments,
            order=order,
            redrawn=bool(self.model),
        )

    def _verdict(self, suspect: Suspect, model: str, p: float, order: str) -> str:
        if p > self.significance:
            return f"{suspect.name} is not shown to come from {model}: p = {p:.2g}."
        proviso = " and the commitment is older than it" if order == NOT_JUDGED else ""
        return (
            f"{suspect.name} is no independent model (p = {p:.2g}): it comes from {model}, or from its training rows "
            f"if the population does not{proviso}."
        )


def _tell(found: FingerprintChecked) -> str:
    most = max(found.population)
    drawn = "drawn again, and the key draws these" if found.redrawn else "not drawn again: give --model and --reference"
    return "\n".join(
        [
            found.verdict,
            f"  shared peculiarities  {found.shared:.3f}, and at most {most:.3f} among {found.models} independent models",
            f"  rank                  {found.rank:.3g}: the share of all models that reach it, without any assumption",
            f"  p, population         {found.p_population:.2g}: if independent models' likeness is normally distributed",
            f"  p, key                {found.p_key:.2g}: that {found.probes:,} random probes show as much and more would not",
            f"  answers alike         {found.agreement:.1%} of the probes",
            f"  probes                {drawn}",
            f"  commitment            log entry {found.log_index}, {told_count(found.commitments)}; {found.order}",
        ]
    )


COMMANDS = (fingerprint,)
