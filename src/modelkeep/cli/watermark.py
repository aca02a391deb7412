"""watermark embed and watermark verify: marks in the weights of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec

from modelkeep.app.keep import Keep
from modelkeep.app.markresults import MarkEmbedded, MarkVerified
from modelkeep.app.markverbs import read_suspect
from modelkeep.app.weightmarks import mark_model, model_layout
from modelkeep.cli.claims import seen_option
from modelkeep.cli.context import Context, moment, new_file, read_file, read_folder
from modelkeep.cli.output import EXIT_REFUSED
from modelkeep.errors import Invalid

KEY_FILE = click.option("--key-file", default="", help="File with a secret key of 64 hex digits, instead of a keep's.")
OWNER = click.option("--owner", default="", help="Who claims the model, in words; goes with --key-file.")


@click.group(epilog="Example: modelkeep watermark embed model.onnx --name credit-risk --out marked.onnx")
def watermark() -> None:
    """Marks in the weights of a model, which its copies keep."""


@watermark.command(
    epilog="Example: modelkeep watermark embed model.onnx --name credit-risk --reference rows.npz --out marked.onnx"
)
@click.argument("model", metavar="MODEL")
@click.option("--out", required=True, help="New ONNX file with the mark in it.")
@click.option("--name", default="", help="Name that it will be released under: the keep derives a key and commits to it.")
@KEY_FILE
@OWNER
@click.option("--reference", default="", help="npz file: rows (array 'x') whose answers are to change least.")
@click.pass_obj
def embed(ctx: Context, model: str, out: str, name: str, key_file: str, owner: str, reference: str) -> None:
    """Put a secret mark in the weights of MODEL, an ONNX file, without training it.

    Publish the marked file and nothing else. Give rows with --reference: they keep the cost small, and it is measured on every
    other one of them. With --name the keep's releases log commits to the key before anybody has the model.
    """
    _check_source(name, "--name", key_file, owner)
    data, rows = read_file(model), read_file(reference) if reference else b""
    with new_file(out) as write, ctx.out.busy("Marking the weights"):
        if key_file:
            done = mark_model(data, _key(key_file), owner, rows)
        else:
            done = ctx.call(Keep.watermark_embed, name=name, filename=Path(out).name, model=data, reference=rows)
        write(done.model)
    ctx.out.show(msgspec.structs.replace(done, model=b""), _tell_embedded(done, out))


@watermark.command(
    epilog="Example: modelkeep watermark verify suspect.onnx --model credit-risk@3 --seen 2026-05-01 --independent others"
)
@click.argument("suspect", metavar="SUSPECT")
@click.option("--model", "ref", default="", metavar="NAME@VERSION", help="The release whose mark is looked for.")
@KEY_FILE
@OWNER
@click.option("--marked", default="", help="The marked ONNX file, where SUSPECT may have other layers; with --key-file.")
@click.option("--independent", default="", metavar="FOLDER", help="Folder of ONNX models of the same architecture by others.")
@seen_option
@click.option("--open-key", default="", metavar="FILE", help="New file for the key, for who is to check a claim; with --model.")
@click.option(
    "--significance", type=click.FloatRange(1e-12, 0.1), default=1e-6, show_default=True, help="Claim it at or below this p."
)
@click.pass_obj
def verify(ctx: Context, /, **given: Any) -> None:
    """Read the mark in the weights of SUSPECT, an ONNX file, with an exact p-value; it is not run.

    With --model the claim counts only if the releases log committed to the key before the suspect was seen. Exit code 1: the
    mark is not there, or not significantly.
    """
    asked = _Asked(**given)
    asked.check()
    with asked.opened() as write:
        with ctx.out.busy("Reading the mark"):
            found = asked.run(ctx)
        if found.p <= asked.significance and found.key:
            write(f"{found.key}\n".encode())
    ctx.out.show(msgspec.structs.replace(found, key=""), _tell_verified(found, asked.significance))
    if found.p <= asked.significance and found.key:
        ctx.out.note(_HOW.format(key=asked.open_key, found=found))
    if found.p > asked.significance:
        raise click.exceptions.Exit(EXIT_REFUSED)


@dataclass(frozen=True)
class _Asked:
    """The arguments of ``watermark verify``, by the names of its options."""

    suspect: str
    ref: str
    key_file: str
    owner: str
    marked: str
    independent: str
    seen: int
    open_key: str
    significance: float

    def check(self) -> None:
        """Raises Invalid: options that do not go together."""
        _check_source(self.ref, "--model", self.key_file, self.owner)
        if (self.key_file and (self.seen or self.open_key)) or (self.ref and self.marked):
            raise Invalid("--seen and --open-key go with --model, where there is a log, and --marked with --key-file")

    def opened(self) -> AbstractContextManager[Callable[[bytes], None]]:
        """The file for the opened key. Raises Invalid (it exists), Missing, Unavailable."""
        return new_file(self.open_key) if self.open_key else nullcontext(lambda _data: None)

    def run(self, ctx: Context) -> MarkVerified:
        """Read it with the key of a keep, or here with the one in the file. Raises Invalid, Missing, NotTrusted."""
        data, others = read_file(self.suspect), list(read_folder(self.independent).values()) if self.independent else []
        if not self.key_file:
            more: dict[str, Any] = {"seen": self.seen, "open_key": bool(self.open_key)}
            return ctx.call(Keep.watermark_verify, ref=self.ref, suspect=data, independent=others, **more)
        marked = read_file(self.marked) if self.marked else data
        layout = model_layout(marked, "the marked model" if self.marked else "the suspect")
        return read_suspect(data, _key(self.key_file), self.owner, layout, others)


def _check_source(named: str, option: str, key_file: str, owner: str) -> None:
    if bool(named) == bool(key_file):
        raise Invalid(f"name {option}, for a key of the keep, or --key-file, for one of your own: one of them")
    if bool(owner) != bool(key_file):
        raise Invalid("--owner goes with --key-file: the bits of the mark are derived from both")


def _key(path: str) -> bytes:
    try:
        key = bytes.fromhex(read_file(path).decode("ascii").strip())
    except ValueError as cause:
        raise Invalid(f"{path} does not hold a key of 64 hex digits: make one with 'openssl rand -hex 32'") from cause
    if len(key) != 32:
        raise Invalid(f"{path} holds a key of {len(key)} bytes, not 32: make one with 'openssl rand -hex 32'")
    return key


def _tell_embedded(done: MarkEmbedded, out: str) -> str:
    cost = "its cost in answers was not measured: give rows with --reference, which also keeps it small"
    if done.cost is not None:
        cost = (
            f"of {done.cost.rows} rows that had no part in it, {done.cost.changed:.2%} have another top class; "
            f"the largest change is {done.cost.largest:.3g}"
        )
    logged = (
        f"log entry {done.log_index} commits to its key" if done.log_index >= 0 else "no log commits to it: do that yourself"
    )
    return (
        f"{out}: 64 bits in {done.weights:,} weights, changed by {done.change:.1%} (root mean square)\n{cost}\n"
        f"Commitment {done.commitment}; {logged}"
    )


def _tell_verified(found: MarkVerified, significance: float) -> str:
    verdict = "The mark is there" if found.p <= significance else "No claim: the mark is not there, or not significantly"
    of_key = f"over the key's randomness {found.p_key:.2g}" + (f" after {found.marks} marks" if found.marks > 1 else "")
    of_models = f", against {found.independent} independent models {found.p_models:.2g}" if found.independent else ""
    said = [f"{verdict}: {found.matched} of {found.bits} bits, p = {found.p:.2g} ({of_key}{of_models})"]
    if found.release:
        said.append(f"Log entry {found.log_index} committed to the mark of {found.release} at {moment(found.committed)}")
        said.append(f"The suspect was there at {moment(found.seen)}, {_SEEN[found.seen_by]}")
    else:
        said.append(
            f"Commitment {found.commitment}: show that it was public before the suspect was there, else this proves nothing"
        )
    if not found.independent:
        said.append("Held against no independent models: give some with --independent, and the larger p-value counts")
    return "\n".join(said)


_SEEN = {
    "given": "as you say: be ready to prove it",
    "log": "as the releases log says",
    "now": "which is now: say with --seen since when, if you can prove it",
}

_HOW = (
    "The key of this mark, and of no other, is in {key}. With it and the marked file anybody can check the claim:\n"
    "  modelkeep watermark verify SUSPECT --key-file {key} --owner '{found.owner}' --marked MARKED\n"
    "says the commitment of log entry {found.log_index}, which 'modelkeep log prove --entry {found.log_index}' proves."
)

COMMANDS = (watermark,)
