"""bom."""

import click

from modelkeep.app.keep import Keep
from modelkeep.cli.context import Context, read_file, write_file
from modelkeep.core.values import digest_of
from modelkeep.custody.bom import made_through
from modelkeep.errors import Invalid


@click.command(epilog="Example: modelkeep bom credit-risk@1 --out bom.json")
@click.argument("ref", metavar="NAME@VERSION")
@click.option("--out", default="", help="New file for the document; standard output if not given.")
@click.option("--record", is_flag=True, help="Record in the log that this document was written.")
@click.option("--check", "given", default="", help="Check this document against the log, and write none.")
@click.pass_obj
def bom(ctx: Context, ref: str, out: str, record: bool, given: str) -> None:
    """Write the bill of materials of a release: CycloneDX 1.7 with a model card, from its statements in the log.

    The same log gives the same bytes, so anybody can make it again and compare.
    """
    if given:
        if out or record:
            raise Invalid("--check writes nothing: leave out --out and --record")
        _check(ctx, ref, given)
        return
    made = ctx.call(Keep.bom_record if record else Keep.bom, ref=ref)
    if out:
        write_file(out, made.document, mode=0o644)
        where = "not recorded" if made.log_index is None else f"log entry {made.log_index}"
        text = f"{out}: {made.components} components, {made.vulnerabilities} vulnerabilities, {made.digest} ({where})"
        ctx.out.show({"file": out, "digest": made.digest, "serial": made.serial, "log_index": made.log_index}, text)
    else:
        click.echo(made.document.decode(), nl=False)


def _check(ctx: Context, ref: str, given: str) -> None:
    document = read_file(given)
    found = ctx.call(Keep.bom_check, ref=ref, digest=digest_of(document), through=made_through(document))
    statements = "statement" if found.later == 1 else "statements"
    later = f"{found.later} later {statements} would be in a new one" if found.later else "nothing was said since"
    where = ", ".join(map(str, found.recorded)) or "nowhere"
    ctx.out.show(found, f"{given} is what the first {found.through} log entries say of {found.ref}; {later}; recorded: {where}")


COMMANDS = (bom,)
