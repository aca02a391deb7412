"""unseal, lock, shares, unsealing: what gives running processes their keys, and takes them away."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from modelkeep.adapters.localsocket import ask
from modelkeep.cli.context import Context, moment, new_file, read_secret_file, write_file
from modelkeep.custody.unsealing import KINDS
from modelkeep.errors import Conflict, Denied, Invalid, Missing, ModelkeepError, NotTrusted, OverBudget, Unavailable

_LOCK_SECONDS, _PAUSE = 90.0, 0.05
_LOCKED_OUT = (
    "goes on with the keys that it has, takes over no key that is made from now on and rotates none: seal and unseal it "
    "('modelkeep lock', 'modelkeep unseal'), or start it again with the new passphrase"
)
_NOBODY = "no process of this keep is running: start one with 'modelkeep up --sealed'"


@click.command(epilog="Example: modelkeep --dir ./keep unseal --share")
@click.option("--share", "by_share", is_flag=True, help="Give one share, asked for on the terminal, instead of the passphrase.")
@click.option("--share-file", default="", metavar="FILE", help="The same, from a file.")
@click.option("--status", is_flag=True, help="Only say which processes are sealed, and how many shares were given.")
@click.pass_obj
def unseal(ctx: Context, by_share: bool, share_file: str, status: bool) -> None:
    """Give the processes of this keep their keys: with the passphrase, or with shares that each come from another person.

    It speaks to them over sockets in the keep's run folder, as the owner of the keep or as root.
    """
    if ctx.server:
        raise Invalid("unseal works where the processes run: leave out --server, and come over ssh")
    found = _each(ctx, lambda path: ask(path, {"do": "status"}))
    if status:
        _show(ctx, found)
        return
    sealed = [path for path, state in found if state.get("sealed")]
    if not sealed:
        _show(ctx, found)
        return
    if by_share or share_file:
        secret = read_secret_file(share_file) if share_file else ctx.ask("Share", "--share-file")
        question = {"do": "share", "secret": secret.decode("utf-8", "replace").strip()}
    else:
        question = {"do": "passphrase", "secret": ctx.passphrase().decode("latin-1")}  # bytes, not text
    _show(ctx, _of_all(sealed, lambda path: _checked(ask(path, question))))


@click.command(epilog="Example: modelkeep --dir ./keep lock")
@click.pass_obj
def lock(ctx: Context) -> None:
    """Take the keys from all running processes of this keep at once: gateways stop answering, and wait sealed."""
    if ctx.server:
        raise Invalid("lock works where the processes run: leave out --server, and come over ssh")
    running = [path for path, _ in _each(ctx, lambda path: ask(path, {"do": "status"}))]
    _show(ctx, _of_all(running, _sealed))


@click.group(epilog="Example: modelkeep shares make --threshold 3 --shares 5")
def shares() -> None:
    """Shares of which some together unseal the keep, so that no single person can."""


@shares.command("make", epilog="Example: modelkeep shares make --threshold 3 --shares 5 --out-dir /media/shares")
@click.option("--threshold", type=click.IntRange(2, 32), required=True, help="How many shares unseal the keep.")
@click.option("--shares", "count", type=click.IntRange(2, 32), required=True, help="How many shares there are.")
@click.option(
    "--out-dir", default="", metavar="DIR", help="Write each share to a file of its own there; else they are printed."
)
@click.pass_obj
def shares_make(ctx: Context, threshold: int, count: int, out_dir: str) -> None:
    """Make shares, one for each person; those made before open nothing any more. They are shown once and stored nowhere."""
    if out_dir and not Path(out_dir).is_dir():
        raise Missing(f"there is no folder {out_dir}")
    if out_dir:
        with new_file(str(Path(out_dir) / ".shares"), room=count * 4096):
            pass  # there is room for them: those of until now open nothing once these are made
    made = ctx.local("shares make").shares_make(threshold=threshold, shares=count)
    lines = [f"Set {made.set_id}: any {made.threshold} of these {len(made.shares)} shares unseal the keep."]
    if out_dir:
        for number, text in enumerate(made.shares, 1):
            path = Path(out_dir) / f"share-{made.set_id}-{number}.txt"
            write_file(str(path), text.encode() + b"\n")
            lines.append(str(path))
        ctx.out.show({"set_id": made.set_id, "threshold": made.threshold, "files": lines[1:]}, "\n".join(lines))
    else:
        ctx.out.show(made, "\n".join([*lines, *made.shares]))
    ctx.out.note("Give each to another person now: nobody can show them again.")


@click.group(epilog="Example: modelkeep unsealing list")
def unsealing() -> None:
    """What opens the key ring besides its passphrase."""


@unsealing.command("list", epilog="Example: modelkeep unsealing list")
@click.pass_obj
def unsealing_list(ctx: Context) -> None:
    """List what opens the key ring besides its passphrase and the offline recovery identity."""
    found = ctx.local("unsealing list").unsealing_list()
    rows = [(row.kind, row.what, moment(row.made)) for row in found]
    ctx.out.table(found, ("KIND", "WHAT", "MADE"), rows, empty="Nothing but the passphrase and the recovery identity.")


@unsealing.command(
    "provider", epilog="Example: modelkeep unsealing provider 'pkcs11:token=prod;object=unseal?module-path=/usr/lib/libhsm.so'"
)
@click.argument("uri")
@click.pass_obj
def unsealing_provider(ctx: Context, uri: str) -> None:
    """Let a key in an HSM or a KMS unseal the keep at start, where the setting unseal.provider names it."""
    made = ctx.local("unsealing provider").unsealing_provider(uri)
    ctx.out.show(made, f"From now on {made.what} unseals this keep where unseal.provider names it.")


@unsealing.command("drop", epilog="Example: modelkeep unsealing drop shares")
@click.argument("kind", metavar="KIND", type=click.Choice(list(KINDS)))
@click.pass_obj
def unsealing_drop(ctx: Context, kind: str) -> None:
    """Take shares or a provider away. Who copied the file before can still use it with the passphrase of then."""
    index = ctx.local("unsealing drop").unsealing_drop(kind)
    ctx.out.show({"kind": kind, "log_index": index}, f"{kind}: opens nothing any more (log entry {index}).")


def _each(ctx: Context, do: Callable[[Path], dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """What every process that listens says. Raises Unavailable when there is none, or one does not answer."""
    found = []
    for path in sorted((ctx.directory / "run").glob("*.sock")):
        try:
            found.append((path, do(path)))
        except Missing:  # it was killed, and its socket stayed
            continue
    if not found:
        raise Unavailable(_NOBODY)
    return found


def _of_all(paths: list[Path], do: Callable[[Path], dict[str, Any]]) -> list[tuple[Path, dict[str, Any]]]:
    """What ``do`` says of all ``paths``; one that refuses keeps none of the others from being asked. Raises what it raises."""
    found, failed = [], list[ModelkeepError]()
    for path in paths:
        try:
            found.append((path, do(path)))
        except ModelkeepError as cause:
            failed.append(cause)
    if failed:
        raise failed[0]
    return found


def _sealed(path: Path) -> dict[str, Any]:
    """Have the process at ``path`` give its keys up; what it says once it has none, or is gone. Raises Unavailable."""
    until, role, asked = time.monotonic() + _LOCK_SECONDS, path.stem.rpartition("-")[0], False
    while time.monotonic() < until:
        try:
            state = ask(path, {"do": "status"})
            if state.get("sealed") and asked:
                return state
            asked = ask(path, {"do": "seal"}).get("code") is None  # refused: it is just being unsealed, or takes long
        except Missing:
            if not _runs(path):
                return {"role": role, "sealed": True}
        except Unavailable:  # it became another process while it was asked
            asked = True
        time.sleep(_PAUSE)
    raise Unavailable(f"{role} does not say that it gave its keys up: stop it")


def _runs(path: Path) -> bool:
    """Whether the process that made the socket at ``path`` is still there."""
    try:
        os.kill(int(path.stem.rpartition("-")[2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _checked(answer: dict[str, Any]) -> dict[str, Any]:
    """Raise what the process at the other end raised."""
    code, message = answer.get("code"), str(answer.get("message", "refused"))
    if code is None:
        return answer
    if code == OverBudget.code:
        raise OverBudget(message, float(answer.get("retry_after", 1.0)))
    kinds: tuple[type[ModelkeepError], ...] = (Invalid, Missing, Conflict, Denied, NotTrusted)
    raise next((kind for kind in kinds if kind.code == code), Unavailable)(message)


def tell_locked_out(ctx: Context) -> list[dict[str, Any]]:
    """Say which running processes a change of passphrase locked out; each with its role and process id."""
    found = []
    for path in sorted((ctx.directory / "run").glob("*.sock")):
        with contextlib.suppress(Denied, Missing, Unavailable):  # none of ours, or it ends or starts just now
            state = ask(path, {"do": "status"})
            if state.get("locked_out"):
                found.append({"role": state["role"], "pid": int(path.stem.rpartition("-")[2])})
    for one in found:
        ctx.out.note(f"modelkeep: {one['role']} (process {one['pid']}) {_LOCKED_OUT}")
    return found


def _show(ctx: Context, found: list[tuple[Path, dict[str, Any]]]) -> None:
    states = [{key: state.get(key) for key in ("role", "sealed", "shares", "needed", "locked_out")} for _, state in found]
    lines = []
    for state in states:
        given = state["shares"] or []
        so_far = f"; given: {', '.join(f'share {x}' for x in given)}, {len(given)} of {state['needed']}" if given else ""
        keys = (
            f"has its keys, and the passphrase was changed since: it {_LOCKED_OUT}" if state["locked_out"] else "has its keys"
        )
        lines.append(f"{state['role']}: {'sealed' + so_far if state['sealed'] else keys}")
    ctx.out.show(states, "\n".join(lines))


COMMANDS = (unseal, lock, shares, unsealing)
