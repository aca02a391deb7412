"""keys: the key ring of the keep and the life of its keys."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from modelkeep.adapters.keys.uri import is_key_uri
from modelkeep.app.keep import Keep
from modelkeep.app.keyresults import KeyRotated, VersionRow
from modelkeep.cli.context import Context, moment, read_secret_file
from modelkeep.cli.progress import bar
from modelkeep.cli.unsealing import tell_locked_out
from modelkeep.custody.keys import WRAPPING_FAMILIES
from modelkeep.errors import Invalid


@click.group(epilog="Example: modelkeep keys list")
def keys() -> None:
    """The key ring: one sealed compartment per purpose."""


@keys.command("list", epilog="Example: modelkeep keys list")
@click.pass_obj
def keys_list(ctx: Context) -> None:
    """List the key families, where their keys live, and the states of their versions."""
    found = ctx.call(Keep.keys_list)
    rows = [
        (family.family, family.purpose, key.key_id, key.state, moment(key.created), moment(key.due))
        for family in found
        for key in family.versions
    ]
    ctx.out.table(found, ("FAMILY", "PURPOSE", "KEY", "STATE", "CREATED", "DESTROYED ON"), rows, empty="There is no key.")


@keys.command("inventory", epilog="Example: modelkeep keys inventory")
@click.pass_obj
def keys_inventory(ctx: Context) -> None:
    """Show what is wrapped under which key, and where the records and the stored bodies disagree."""
    found = ctx.call(Keep.keys_inventory)
    rows = [(row.family, row.key_id, row.state, row.things) for row in found.keys]
    ctx.out.table(found, ("FAMILY", "KEY", "STATE", "WRAPS"), rows, empty="There is no key.")
    for problem in found.problems:
        ctx.out.note(f"modelkeep: {problem}")


@keys.command("new", epilog="Example: modelkeep keys new vault:transit/models")
@click.argument("name", metavar="KEY")
@click.pass_obj
def keys_new(ctx: Context, name: str) -> None:
    """Make a key: a new primary of a family for what is new, or the first key at a provider URI.

    A URI needs no keep: the key can then be a recipient of sealed files, or the place that 'keys move' moves model keys to.
    """
    if is_key_uri(name):
        made = Keep.keys_create(name, ctx.passphrase)
        ctx.out.show({"key_id": made}, f"Made {made}.")
        return
    done = ctx.call(Keep.keys_new, family=name)
    ctx.out.show(done, f"{done.primary} is the primary key now; what is wrapped stays under the former one.")


@keys.command("rotate", epilog="Example: modelkeep keys rotate model-kek")
@click.argument("family")
@click.option("--rewrap-only", is_flag=True, help="Make no new key: only wrap what is not under the primary yet.")
@click.option("--keep-old", is_flag=True, help="Leave the former key able to open; nothing is disabled or destroyed.")
@click.pass_obj
def keys_rotate(ctx: Context, family: str, rewrap_only: bool, keep_old: bool) -> None:
    """Make a new primary, wrap everything under it, disable the former key and schedule its destruction.

    Cut off anywhere, run it again: it goes on where it stopped. Bodies, signatures and the log are not touched.
    """
    if rewrap_only and keep_old:
        raise Invalid("--rewrap-only makes no new key, so there is no old one to keep: give one of the two options")
    with watched(ctx):
        done = ctx.call(Keep.keys_rotate, family=family, rewrap_only=rewrap_only, keep_old=keep_old)
    ctx.out.show(done, summary(done))


@keys.command("move", epilog="Example: modelkeep keys move 'pkcs11:token=prod;object=model-kek?module-path=/usr/lib/libhsm.so'")
@click.argument("uri")
@click.pass_obj
def keys_move(ctx: Context, uri: str) -> None:
    """Move the model keys to a provider (an HSM, a KMS), or back with 'ring', and wrap everything there.

    Cut off anywhere, run it again.
    """
    with watched(ctx):
        done = ctx.local("keys move").keys_move(uri)
    ctx.out.show(done, summary(done))


@keys.command("disable", epilog="Example: modelkeep keys disable model-kek 1")
@click.argument("family")
@click.argument("version")
@click.pass_obj
def keys_disable(ctx: Context, family: str, version: str) -> None:
    """Stop a key from opening anything. Refused while something is wrapped under it."""
    _show_key(ctx, ctx.call(Keep.keys_disable, family=family, version=version))


@keys.command("enable", epilog="Example: modelkeep keys enable model-kek 1")
@click.argument("family")
@click.argument("version")
@click.pass_obj
def keys_enable(ctx: Context, family: str, version: str) -> None:
    """Let a disabled key open again."""
    _show_key(ctx, ctx.call(Keep.keys_enable, family=family, version=version))


@keys.command("destroy", epilog="Example: modelkeep keys destroy model-kek 1")
@click.argument("family")
@click.argument("version")
@click.option("--now", is_flag=True, help="Without a grace period; give a --reason.")
@click.option("--reason", default="", help="Why, for the releases log.")
@click.pass_obj
def keys_destroy(ctx: Context, family: str, version: str, now: bool, reason: str) -> None:
    """Destroy a disabled key after the grace period. Refused while something is wrapped under it."""
    _show_key(ctx, ctx.call(Keep.keys_destroy, family=family, version=version, now=now, reason=reason))


@keys.command("cancel", epilog="Example: modelkeep keys cancel model-kek 1")
@click.argument("family")
@click.argument("version")
@click.pass_obj
def keys_cancel(ctx: Context, family: str, version: str) -> None:
    """Take back the destruction of a key that is not due yet."""
    _show_key(ctx, ctx.call(Keep.keys_cancel, family=family, version=version))


@keys.command("compromise", epilog="Example: modelkeep keys compromise model-kek 1 --reason 'backup tape lost'")
@click.argument("family")
@click.argument("version")
@click.option("--reason", required=True, help="What happened, for the releases log and the incident.")
@click.option("--since", default="", help="statement-signing: log index or UTC time from which on its statements do not count.")
@click.pass_obj
def keys_compromise(ctx: Context, family: str, version: str, reason: str, since: str) -> None:
    """Act on a key that may be in other hands: fresh data keys for whatever was under it, its end, and an incident.

    Cut off anywhere, run it again.
    """
    with watched(ctx):
        done = ctx.call(Keep.keys_compromise, family=family, version=version, reason=reason, since=since)
    ctx.out.show(done, summary(done))


@contextmanager
def watched(ctx: Context) -> Iterator[None]:
    """Show how far work on this machine is; a server does not say."""
    if ctx.server:
        yield
        return
    with bar(shown=not ctx.out.json) as progress:
        ctx.keep.progress = progress
        yield


def summary(done: KeyRotated) -> str:
    """What a rotation did, in words."""
    work = f"; {done.changed} wrapped anew, {done.current} were already" if done.family in WRAPPING_FAMILIES else ""
    lines = [f"{done.primary} is the primary key of {done.family}{work}."]
    if done.resealed:
        lines.append(f"{done.resealed} releases were sealed anew with fresh data keys.")
    lines += [f"{ref} fell away: 'modelkeep trust resign {ref}', then promote it." for ref in done.gone]
    lines += [f"{ref} is no longer promoted: look at it with 'modelkeep show {ref}'." for ref in done.held]
    lines += [
        f"The {kind} policy that was in force does not count any more: 'modelkeep policy history {kind}' shows those that do."
        for kind in done.policies
    ]
    for key in done.retired:
        end = f"it is destroyed on {moment(key.due)}" if key.due else "no destruction is scheduled"
        lines.append(f"{key.key_id} is {key.state}; {'it is gone' if key.state == 'destroyed' else end}.")
    return "\n".join(lines)


def _show_key(ctx: Context, key: VersionRow) -> None:
    due = f"; it is destroyed on {moment(key.due)}" if key.due else ""
    ctx.out.show(key, f"{key.key_id} is {key.state}{due}.")


@keys.command("passwd", epilog="Example: modelkeep --dir ./keep keys passwd")
@click.option("--new-passphrase-file", default="", help="File with the new passphrase; asked for if not given.")
@click.pass_obj
def keys_passwd(ctx: Context, new_passphrase_file: str) -> None:
    """Change the passphrase of every compartment. Cut off, it is done or has not begun.

    Running processes keep the keys that they have, and are locked out of the key ring until they are started again.
    """
    keep = ctx.local("keys passwd")
    new = ctx.new_passphrase("New passphrase", new_passphrase_file, "--new-passphrase-file")
    changed, late = keep.keys_passwd(new)
    locked_out = tell_locked_out(ctx)
    said = {"families": changed, "locked_out": locked_out}
    ctx.out.show(said, f"{len(changed)} compartments have the new passphrase; the keys are the same.")
    for why in late:
        ctx.out.note(f"modelkeep: this opens the key ring no more: {why}")


@keys.command("recover", epilog="Example: modelkeep --dir ./keep keys recover --identity-file recovery.txt")
@click.option("--identity-file", default="", help="File with the recovery identity that init printed; asked for if not given.")
@click.option("--new-passphrase-file", default="", help="File with the new passphrase; asked for if not given.")
@click.pass_obj
def keys_recover(ctx: Context, identity_file: str, new_passphrase_file: str) -> None:
    """Set a new passphrase with the recovery identity, when the old one is lost."""
    identity = read_secret_file(identity_file) if identity_file else ctx.ask("Recovery identity", "--identity-file")
    new = ctx.new_passphrase("New passphrase", new_passphrase_file, "--new-passphrase-file")
    changed = Keep.keys_recover(ctx.directory, identity.decode("ascii", "replace").strip(), new)
    locked_out = tell_locked_out(ctx)
    ctx.out.show({"families": changed, "locked_out": locked_out}, f"{len(changed)} compartments have the new passphrase.")


COMMANDS = (keys,)
