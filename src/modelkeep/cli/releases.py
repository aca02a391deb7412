"""verify, export, list, show, promote, quarantine, reinstate, retire."""

import click

from modelkeep.app.keep import Keep
from modelkeep.app.results import ReleaseDetail, StateChanged
from modelkeep.cli.context import Context, moment, new_file
from modelkeep.cli.output import below
from modelkeep.cli.signatures import check_place, saying_that, verify_signature, write_signature
from modelkeep.errors import Invalid


@click.command(epilog="Example: modelkeep verify credit-risk@1")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--oms", default="", help="Check the file or folder named instead of a release against this OpenSSF signature.")
@click.option("--key", default="", help="With --oms: PEM file of the signer's public key; without it this keep's own.")
@click.pass_obj
def verify(ctx: Context, ref: str, oms: str, key: str) -> None:
    """Check signatures, log inclusion and container integrity of one release; with --oms, a model on disk."""
    if key and not oms:
        raise Invalid("--key goes with --oms: a release is checked with the keys of its keep")
    if oms:
        verify_signature(ctx, ref, oms, key)
        return
    found = ctx.call(Keep.verify, ref=ref)
    checks = "\n".join(f"  ok  {check}" for check in found.checks)
    ctx.out.show(
        found, f"{found.ref}: trusted, signed by {found.signer}, log entry {found.log_index} of {found.tree_size}\n{checks}"
    )


@click.command(epilog="Example: modelkeep export credit-risk@1 --out model.onnx")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--out", "-o", required=True, help="File to write; it must not exist.")
@click.option("--signature", default="", help="File for the OpenSSF signature; without it OUT.sig.")
@click.pass_obj
def export(ctx: Context, ref: str, out: str, signature: str) -> None:
    """Write the model file again, byte for byte. A permission of its own, and logged before a byte is written."""
    check_place(signature)
    with new_file(out) as write:  # before the log says that it left
        done = ctx.call(Keep.export, ref=ref)
        write(done.model)
    with saying_that(f"{out} is written"):
        written = write_signature(ctx, done.signature, out, signature)
    result = {"ref": done.ref, "file": out, "bytes": len(done.model), "log_index": done.log_index, "signature": written}
    ctx.out.show(result, f"{done.ref}: {len(done.model):,} bytes written to {out}, in the clear (log entry {done.log_index})")


@click.command("list", epilog="Example: modelkeep list --classification restricted")
@click.option("--owner", default="", help="Only releases whose metadata name this owner.")
@click.option("--classification", default="", help="Only releases of this data classification.")
@click.option("--tag", default="", help="Only releases with this tag.")
@click.pass_obj
def list_(ctx: Context, owner: str, classification: str, tag: str) -> None:
    """List the releases."""
    found = ctx.call(Keep.releases, owner=owner, classification=classification, tag=tag)
    empty = "No release is described so." if owner or classification or tag else "Nothing is published yet."
    columns = ("RELEASE", "STATE", "ALIASES", "FORMAT", "MODEL", "OWNER", "CLASS", "PUBLISHED", "BY")
    rows = [
        (r.ref, f"{r.state}, held" if r.held else r.state, ", ".join(r.aliases), r.format, r.model_digest[:19], r.owner,
         r.classification, moment(r.published), r.by)
        for r in found
    ]  # fmt: skip
    ctx.out.table(found, columns, rows, empty=empty)


@click.command(epilog="Example: modelkeep show credit-risk@1")
@click.argument("ref", metavar="NAME@VERSION")
@click.pass_obj
def show(ctx: Context, ref: str) -> None:
    """Show one release and its evidence from the log."""
    found = ctx.call(Keep.show, ref=ref)
    head = found.release
    outside = head.custody != "sealed"
    lines = [
        f"{head.ref}  {head.state}",
        f"  model      {head.model_digest} ({head.format})",
        f"  sealed     {found.sealed_digest}",
        f"  interface  {found.interface}",
        f"  admission  {found.admission}",
        *_catalogued(found),
        *(["  custody    external: what is sealed says where it runs; another server has its weights"] if outside else []),
        "  evidence",
        *(f"    {s.index:>5}  {moment(s.at)}  {s.type:<18} {s.actor}  {below(s.summary, 13)}" for s in found.statements),
    ]
    ctx.out.show(found, "\n".join(lines))


@click.command(epilog="Example: modelkeep promote credit-risk@1")
@click.argument("ref", metavar="NAME@VERSION")
@click.pass_obj
def promote(ctx: Context, ref: str) -> None:
    """Let the gateway serve a published release."""
    _say(ctx, ctx.call(Keep.promote, ref=ref))


@click.command(epilog="Example: modelkeep quarantine credit-risk@1 --reason 'scores look wrong'")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def quarantine(ctx: Context, ref: str, reason: str) -> None:
    """Stop serving a release at once: no request that starts after this command returns is answered."""
    _say(ctx, ctx.call(Keep.quarantine, ref=ref, reason=reason))


@click.command(epilog="Example: modelkeep reinstate credit-risk@1 --reason 'blob restored from backup'")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def reinstate(ctx: Context, ref: str, reason: str) -> None:
    """Take a release that verifies out of quarantine; promote it to serve it again."""
    _say(ctx, ctx.call(Keep.reinstate, ref=ref, reason=reason))


@click.command(epilog="Example: modelkeep retire credit-risk@1 --reason 'replaced by credit-risk@2'")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--reason", required=True, help="Why; it is logged.")
@click.pass_obj
def retire(ctx: Context, ref: str, reason: str) -> None:
    """End a release for good."""
    _say(ctx, ctx.call(Keep.retire, ref=ref, reason=reason))


def _catalogued(found: ReleaseDetail) -> list[str]:
    """What the catalogue says of a release, as far as it says anything."""
    head = found.release
    said = {
        "aliases": ", ".join(head.aliases),
        "owner": head.owner,
        "class": head.classification,
        "licence": found.licence,
        "tags": ", ".join(head.tags),
        "about": found.description,
        "card": found.card,
        "held": "; ".join(f"{hold.id[:8]} ({hold.reason})" for hold in found.holds),
    }
    return [f"  {name:<10} {below(value, 13)}" for name, value in said.items() if value]


def _say(ctx: Context, changed: StateChanged) -> None:
    note = f"\nIt is not served yet: {changed.note}" if changed.note else ""
    ctx.out.show(changed, f"{changed.ref} is {changed.state} (log entry {changed.log_index}){note}")


COMMANDS = (verify, export, list_, show, promote, quarantine, reinstate, retire)
