"""publish: a model file, a pickle that is converted, or a model that another server runs."""

from pathlib import Path
from typing import Any

import click
import msgspec

from modelkeep.app.keep import Keep
from modelkeep.app.results import Published
from modelkeep.app.upstreams import UpstreamPlace
from modelkeep.cli.catalogue import read_metadata
from modelkeep.cli.context import Context, read_file
from modelkeep.cli.signatures import check_place, saying_that, write_signature
from modelkeep.errors import Invalid

_OUTSIDE = "\n  custody external: another server has the weights, and policies other than 'open' do not serve it"


@click.command(epilog="Example: modelkeep publish model.onnx --name credit-risk --reference ref.npz")
@click.argument("model", metavar="[MODEL]", default="")
@click.option("--name", required=True, help="Name of the model; the version is the next one.")
@click.option("--reference", default="", help="npz file with benign input rows, array 'x' (rows, features...); ONNX needs it.")
@click.option("--metadata", default="", help="TOML file with owner, classification, licence, tags and model card.")
@click.option("--signature", default="", help="File for the OpenSSF signature; without it MODEL.sig beside the model.")
@click.option("--convert", is_flag=True, help="MODEL is a pickle of scikit-learn: run it, confined, and publish it as ONNX.")
@click.option("--embedding", default="", metavar="TENSOR", help="Inner tensor that the guard looks at, too; 'auto' finds one.")
@click.option("--upstream", default="", help="URL of an Open Inference Protocol v2 server that runs the model.")
@click.option("--upstream-model", default="", help="What the model is called there; without it NAME.")
@click.option("--upstream-version", default="", help="Version of the model there; without it the server chooses.")
@click.option("--upstream-ca", default="", help="PEM file of the authorities that its certificate must descend from.")
@click.option("--upstream-pin", default=(), multiple=True, help="Hex SHA-256 of its public key; may be given several times.")
@click.option("--upstream-token", default="", help="Where its token is: env:MODELKEEP_UPSTREAM_TOKEN_NAME or file:NAME.")
@click.pass_obj
def publish(ctx: Context, /, model: str, name: str, reference: str, metadata: str, signature: str, **how: Any) -> None:
    """Scan, seal, calibrate, sign and log MODEL (ONNX or safetensors), and publish it as NAME@VERSION.

    The file is read, never run (but with --convert). The original stays where it is: it is yours to remove. With --upstream in
    place of MODEL, the model stays on the server that runs it, and this gateway guards it.
    """
    check_place(signature)
    upstream = {option.removeprefix("upstream").lstrip("_"): value for option, value in how.items() if "upstream" in option}
    _check(model, signature, how["convert"], upstream)
    if how["embedding"] and not model:
        raise Invalid("the inner layers of a model that another server runs are not seen here: leave out --embedding")
    with ctx.out.busy(f"Publishing {model or upstream['']}: scan, seal, calibrate, sign, log"):
        rows = read_file(reference) if reference else b""
        about, card = read_metadata(metadata) if metadata else (b"", b"")
        described: dict[str, Any] = {"reference": rows, "metadata": about, "card": card}
        if model:
            file, data = Path(model).name, read_file(model)
            described |= {"convert": how["convert"], "embedding": how["embedding"]}
            done = ctx.call(Keep.publish, name=name, filename=file, model=data, **described)
        else:
            done = ctx.call(Keep.publish_upstream, name=name, at=_place(upstream), **described)
    _show(ctx, done, "" if how["convert"] else model, signature)


def _check(model: str, signature: str, convert: bool, upstream: dict[str, Any]) -> None:
    """Raises Invalid: options that do not go together."""
    if bool(model) == bool(upstream[""]):
        raise Invalid("name the file of a model, or with --upstream the server that runs it: one of the two")
    if not upstream[""] and any(upstream.values()):
        raise Invalid("--upstream-... goes with --upstream, the URL of the server that runs the model")
    if convert and not model:
        raise Invalid("--convert goes with MODEL, and not with --upstream")
    if signature and (convert or not model):
        raise Invalid("--signature is of MODEL, which is not what is published here: 'modelkeep export' writes both")


def _place(upstream: dict[str, Any]) -> UpstreamPlace:
    """Raises Invalid, Missing, Unavailable."""
    try:
        authority = read_file(upstream["ca"]).decode("ascii") if upstream["ca"] else ""
    except UnicodeDecodeError:
        raise Invalid(f"{upstream['ca']} is not a PEM file") from None
    return UpstreamPlace(
        url=upstream[""],
        model=upstream["model"],
        version=upstream["version"],
        authority=authority,
        pins=tuple(upstream["pin"]),
        token=upstream["token"],
    )


def _show(ctx: Context, done: Published, model: str, signature: str) -> None:
    """``model``: the file that was published as it is, "" when another was."""
    written = ""
    if model:
        with saying_that(f"{done.ref} is published"):
            written = write_signature(ctx, done.signature, model, signature)
    layer = f"  layer   {done.layer}\n" if done.layer else ""
    kept = "in the keep; 'modelkeep export' writes it" if done.signature else "not"
    ctx.out.show(
        {**msgspec.structs.asdict(done), "signature": written},
        f"{done.ref}\n  model   {done.model_digest}\n  sealed  {done.sealed_digest}\n  log     entry {done.log_index}\n"
        f"  guard   {done.promise}\n{layer}  signed  {written or kept}{_OUTSIDE if done.custody != 'sealed' else ''}",
    )


COMMANDS = (publish,)
