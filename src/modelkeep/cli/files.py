"""seal, open, inspect, rewrap, reencrypt, keygen: sealed files with no keep at all."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from msgspec import to_builtins
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from modelkeep.adapters.keys.uri import open_keys
from modelkeep.app.filechanges import FileRewrapped, RecipientChange, each_file, reencrypt_file, rewrap_file
from modelkeep.app.fileinspect import Inspected, inspect_file
from modelkeep.app.filekeys import Ask, Keychain, once, recipients_in, recipients_of
from modelkeep.app.files import FileSealed, Watch, fresh_key, make_key, open_file, seal_file, stream_opened, stream_sealed
from modelkeep.cli.context import Context, read_secret_file
from modelkeep.cli.output import exit_code
from modelkeep.errors import Invalid, ModelkeepError, Unavailable

SEAL_PASSPHRASE, RING_PASSPHRASE = "MODELKEEP_SEAL_PASSPHRASE_FILE", "MODELKEEP_RING_PASSPHRASE_FILE"
_BAR_FROM = 64 << 20
_TOLD = 8 << 20

F = TypeVar("F", bound=Callable[..., Any])

_recipient = click.option(
    "--recipient", "-r", multiple=True, metavar="RECIPIENT",
    help="Seal for this X-Wing recipient, or key URI (pkcs11: vault: aws-kms: file:); may be given several times.",
)  # fmt: skip
_recipients_file = click.option(
    "--recipients-file", "-R", multiple=True, metavar="FILE", help="Seal for every recipient in FILE, one a line."
)
_identity = click.option(
    "--identity", "-i", multiple=True, metavar="IDENTITY",
    help="Open with the identities in this file (modelkeep keygen), or a key URI; may be given several times.",
)  # fmt: skip
_typed_file = click.option(
    "--seal-passphrase-file", metavar="FILE", envvar=SEAL_PASSPHRASE, default="",
    help="File with the passphrase of sealed files; asked for if not given.",
)  # fmt: skip
_ring_file = click.option(
    "--ring-passphrase-file", metavar="FILE", envvar=RING_PASSPHRASE, default="",
    help="File with the passphrase of a file: key ring; asked for if not given.",
)  # fmt: skip
_new_typed = click.option("--passphrase", is_flag=True, help="Set a new passphrase; one that was there is replaced.")
_new_typed_file = click.option(
    "--new-passphrase-file", metavar="FILE", default="", help="File with the new passphrase; asked for if not given."
)
_remove = click.option("--remove-recipient", multiple=True, metavar="ID", help="Leave out this recipient, as inspect names it.")
_only = click.option("--remove-others", is_flag=True, help="Leave out everybody who is not named with -r, -R or --passphrase.")
_under = click.option("--only-if-under", metavar="ID", default="", help="Leave files alone that this id is no recipient of.")


def _changing(command: F) -> F:
    """The options that rewrap and reencrypt share."""
    shared = (
        _identity,
        _typed_file,
        _ring_file,
        _recipient,
        _recipients_file,
        _new_typed,
        _new_typed_file,
        _remove,
        _only,
        _under,
    )
    for option in reversed(shared):
        command = option(command)
    return command


@click.command(epilog="Example: modelkeep keygen -o alice.key")
@click.option("--out", "-o", default="", metavar="FILE", help="New file for it (mode 0600); standard output if not given.")
@click.option(
    "--recipient-of", "-y", "known", default="", metavar="FILE", help="Only print the recipients of identities in FILE."
)
@click.option(
    "--key", default="", metavar="URI", help="Make the key that this URI names instead: pkcs11: vault: aws-kms: file:"
)
@_ring_file
@click.pass_obj
def keygen(ctx: Context, out: str, known: str, key: str, ring_passphrase_file: str) -> None:
    """Make an X-Wing identity (ML-KEM-768 with X25519): the secret that opens what is sealed for its recipient.

    The recipient is public: give it to those who seal for you. The identity is stored nowhere else. With --key, a wrapping key
    is made in its provider instead; -r and -i take its URI.
    """
    if sum(map(bool, (out, known, key))) > 1:
        raise Invalid("-o, -y and --key do different things: give one of them")
    if key:
        ask = partial(ctx.new_passphrase, f"New passphrase for {key}", ring_passphrase_file, "--ring-passphrase-file")
        made_key = open_keys(key, passphrase=ask).create()
        ctx.out.show({"key_id": made_key.key_id}, f"{made_key.key_id} made: -r and -i take its URI, {key}")
    elif known:
        found = recipients_of(known)
        ctx.out.show({"recipients": found}, "\n".join(found))
    elif out:
        made = make_key(out)
        ctx.out.show(
            made, f"{made.file}: identity {made.id}. Keep it secret, and keep a copy. Its recipient:\n{made.recipient}"
        )
    else:
        text = fresh_key()
        *_, comment, identity = text.splitlines()
        ctx.out.show({"identity": identity, "recipient": comment.split()[-1]}, text.rstrip())


@click.command(epilog="Example: modelkeep seal model.onnx -R team.recipients")
@click.argument("files", metavar="FILES", nargs=-1, required=True)
@_recipient
@_recipients_file
@click.option("--passphrase", is_flag=True, help="Seal for a passphrase too; alone, when no recipient is named.")
@_typed_file
@_ring_file
@click.option("--out", "-o", default="", metavar="FILE", help="File to write; FILE.keep if not given, - for a pipe.")
@click.option("--force", "-f", is_flag=True, help="Replace a file of that name.")
@click.option("--remove-plaintext", is_flag=True, help="Unlink the originals once the sealed file was read back and compared.")
@click.pass_obj
def seal(  # noqa: PLR0913, PLR0917  # click hands over one argument an option
    ctx: Context,
    files: Sequence[str],
    recipient: Sequence[str],
    recipients_file: Sequence[str],
    passphrase: bool,
    seal_passphrase_file: str,
    ring_passphrase_file: str,
    out: str,
    force: bool,
    remove_plaintext: bool,
) -> None:
    """Seal each of FILES to FILE.keep, for recipients or a passphrase. No keep is needed.

    An ONNX model takes the data files that it names along. --remove-plaintext removes names, not bytes: on SSDs and
    copy-on-write file systems nobody can overwrite a file for certain, and older copies (backups, snapshots, caches) stay.
    Where that matters, never write plaintext to a disk that is not encrypted.
    """
    if out and len(files) > 1:
        raise Invalid("-o names one output, and several files were given: seal them one by one, or leave out -o")
    named = _named(recipient, recipients_file)
    ask = None
    if passphrase or not named:
        ask = once(
            lambda: ctx.new_passphrase("New passphrase for " + _these(files), seal_passphrase_file, "--seal-passphrase-file")
        )
    chain = _keychain(ctx, ring_passphrase_file)
    if out == "-":
        if remove_plaintext:
            raise Invalid("--remove-plaintext reads the sealed file back, which a pipe does not allow: name an output")
        with _pipe(ctx) as write:
            stream_sealed(files[0], named, write, passphrase=ask, keychain=chain)
        return
    done = []
    for file in files:
        with _bytes_bar(ctx, f"Sealing {file}", _size(file)) as watch:
            done.append(
                seal_file(
                    file,
                    named,
                    passphrase=ask,
                    out=out,
                    force=force,
                    remove_plaintext=remove_plaintext,
                    keychain=chain,
                    watch=watch,
                )
            )
    ctx.out.show(done, "\n".join(_sealed_text(one) for one in done))


@click.command("open", epilog="Example: modelkeep open model.onnx.keep -i alice.key")
@click.argument("file", metavar="FILE")
@_identity
@_typed_file
@_ring_file
@click.option(
    "--out", "-o", default="", metavar="FILE", help="New file to write; the name without .keep if not given, - for a pipe."
)
@click.pass_obj
def open_(
    ctx: Context, file: str, identity: Sequence[str], seal_passphrase_file: str, ring_passphrase_file: str, out: str
) -> None:
    """Write what is sealed in FILE again, byte for byte, in the clear. Nothing is ever overwritten.

    To a file, nothing appears before all of it was checked. To a pipe (-o -), each piece is checked before it is written; if a
    later one fails, the command says so and ends with 1: what came before is incomplete.
    """
    ask = _ask_once(ctx, file, seal_passphrase_file)
    chain = _keychain(ctx, ring_passphrase_file)
    if out == "-":
        with _pipe(ctx) as write:
            stream_opened(file, identity, write, passphrase=ask, keychain=chain)
        return
    with _bytes_bar(ctx, f"Opening {file}", _size(file)) as watch:
        done = open_file(file, identity, passphrase=ask, out=out, keychain=chain, watch=watch)
    held = "".join(f"\n  {name}" for name in done.files)
    ctx.out.show(done, f"{done.out}: {done.size:,} bytes, in the clear{held}")


@click.command(epilog="Example: modelkeep inspect model.onnx.keep")
@click.argument("file", metavar="FILE")
@click.option("--expect", metavar="DIGEST", default="", help="The sealed digest that it must have, such as a statement names.")
@click.pass_obj
def inspect(ctx: Context, file: str, expect: str) -> None:
    """Show what a sealed file (or a body in a keep's blobs) tells without any key. It is hashed, not opened."""
    with _bytes_bar(ctx, f"Hashing {file}", _size(file)) as watch:
        found = inspect_file(file, expect=expect, watch=watch)
    ctx.out.show(found, _inspected_text(found, expected=bool(expect)))


@click.command(epilog="Example: modelkeep rewrap *.keep -i alice.key -r vault:transit/models")
@click.argument("files", metavar="FILES", nargs=-1, required=True)
@_changing
@click.option("--threads", type=click.IntRange(1, 64), default=4, show_default=True, help="Files to work on at once.")
@click.pass_obj
def rewrap(ctx: Context, /, files: Sequence[str], threads: int, **options: Any) -> None:
    """Change the recipients of sealed files in place. Kilobytes are written; the sealed body keeps every byte.

    It revokes nobody: who could open a file before may have kept its data key or a copy. 'modelkeep reencrypt' makes a new key.
    Files that are so already are left alone, so a run that was cut off is repeated as it is.
    """
    change, ask, chain = _change(ctx, files, options)
    identities = options["identity"]

    def one(path: str) -> FileRewrapped:
        return rewrap_file(path, change, identities, passphrase=ask, keychain=chain)

    _run(ctx, files, one, threads=threads, word="rewrapped")


@click.command(epilog="Example: modelkeep reencrypt model.onnx.keep -i alice.key --remove-recipient xwing:5d1e...")
@click.argument("files", metavar="FILES", nargs=-1, required=True)
@_changing
@click.pass_obj
def reencrypt(ctx: Context, /, files: Sequence[str], **options: Any) -> None:
    """Seal the contents of files anew under a fresh data key, verify that, and put it in the place of the old file.

    Everybody who is to stay must be named with -r or be among those who open; who was removed cannot open the new file. A copy
    of the old one they still can.
    """
    change, ask, chain = _change(ctx, files, options)
    identities = options["identity"]

    def one(path: str) -> FileRewrapped:
        with _bytes_bar(ctx, f"Reencrypting {path}", _size(path) if len(files) == 1 else 0) as watch:
            return reencrypt_file(path, change, identities, passphrase=ask, keychain=chain, watch=watch)

    _run(ctx, files, one, threads=1, word="reencrypted")


def _change(ctx: Context, files: Sequence[str], options: dict[str, Any]) -> tuple[RecipientChange, Ask, Keychain]:
    chain = _keychain(ctx, options["ring_passphrase_file"])
    new = options["new_passphrase_file"]
    fresh = None
    if options["passphrase"] or new:
        fresh = once(lambda: ctx.new_passphrase("New passphrase for " + _these(files), new, "--new-passphrase-file"))
    change = RecipientChange(
        add=chain.recipients(_named(options["recipient"], options["recipients_file"]), passphrase=fresh),
        remove=tuple(options["remove_recipient"]),
        only=options["remove_others"],
        under=options["only_if_under"],
    )
    return change, _ask_once(ctx, _these(files), options["seal_passphrase_file"]), chain


def _run(ctx: Context, files: Sequence[str], work: Callable[[str], FileRewrapped], *, threads: int, word: str) -> None:
    if len(files) == 1:
        done = work(files[0])
        ctx.out.show([done], _rewrapped_text(done, word))
        return
    results: list[Any] = []
    failed: list[ModelkeepError] = []
    changed = 0
    with _files_bar(ctx, "Rewrapping" if word == "rewrapped" else "Reencrypting", len(files)) as step:
        for path, outcome in each_file(list(dict.fromkeys(files)), work, threads=threads):
            if isinstance(outcome, ModelkeepError):
                failed.append(outcome)
                if not ctx.out.json:
                    ctx.out.fail(outcome)
                results.append({"file": path, "code": outcome.code, "message": str(outcome)})
            else:
                changed += outcome.changed
                results.append(to_builtins(outcome))
            step()
    same = len(results) - changed - len(failed)
    ctx.out.show(results, f"{changed} {word}, {same} as they should be already, {len(failed)} failed")
    if failed:
        raise click.exceptions.Exit(min(exit_code(each) for each in failed))


def _named(recipients: Sequence[str], files: Sequence[str]) -> list[str]:
    return [*recipients, *(text for file in files for text in recipients_in(file))]


def _these(files: Sequence[str]) -> str:
    return files[0] if len(files) == 1 else f"{len(files)} files"


def _ask_once(ctx: Context, what: str, file: str) -> Ask:
    """The passphrase of files to open, asked for when one is needed and never twice."""

    def ask() -> bytes:
        if file:
            return read_secret_file(file)
        return ctx.ask(f"Passphrase of {what}", f"--seal-passphrase-file or {SEAL_PASSPHRASE}")

    return once(ask)


def _keychain(ctx: Context, file: str) -> Keychain:
    def ask(uri: str) -> bytes:
        return (
            read_secret_file(file) if file else ctx.ask(f"Passphrase of {uri}", f"--ring-passphrase-file or {RING_PASSPHRASE}")
        )

    return Keychain(ask)


@contextmanager
def _pipe(ctx: Context) -> Iterator[Callable[[memoryview], object]]:
    """Standard output, for bytes. Raises Invalid on a terminal, and with --json; Unavailable when it cannot be written."""
    if ctx.out.json:
        raise Invalid("-o - and --json both want standard output: leave one out")
    if sys.stdout.isatty():
        raise Invalid("this would write bytes to a terminal: name an output with -o, or pipe it somewhere")
    try:
        yield partial(_write_all, sys.stdout.fileno())
    except BrokenPipeError:
        raise  # the reader left
    except OSError as cause:
        raise Unavailable(f"cannot write to standard output: {cause.strerror}; what came is incomplete") from cause


def _write_all(fd: int, data: memoryview) -> None:
    view = data.cast("B")
    while view:
        view = view[os.write(fd, view) :]


def _size(path: str) -> int:
    try:
        return Path(path).stat().st_size
    except OSError:
        return 0  # whoever opens it says why


@contextmanager
def _bytes_bar(ctx: Context, what: str, size: int) -> Iterator[Watch]:
    """A progress bar for large files on a terminal, told every few megabytes."""
    if size < _BAR_FROM or not ctx.out.notes.is_terminal:
        yield lambda _: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ctx.out.notes, transient=True) as progress:
        bar, waiting = progress.add_task(what, total=size), [0]

        def watch(done: int) -> None:
            waiting[0] += done
            if waiting[0] >= _TOLD:
                progress.advance(bar, waiting[0])
                waiting[0] = 0

        yield watch


@contextmanager
def _files_bar(ctx: Context, what: str, count: int) -> Iterator[Callable[[], object]]:
    if not ctx.out.notes.is_terminal:
        yield lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=ctx.out.notes, transient=True) as progress:
        bar = progress.add_task(what, total=count)
        yield lambda: progress.advance(bar)


def _sealed_text(done: FileSealed) -> str:
    lines = [f"{done.sealed}: {done.sealed_size:,} bytes, for {', '.join(done.recipients)}"]
    lines += [f"  with {name}" for name in done.files[1:]]
    if done.removed:
        names = " and ".join(done.files or (done.file,))
        lines.append(f"  removed {names}: the name is gone; its bytes may be on the medium still (docs/sealed-files.md)")
    else:
        lines.append(f"  {done.file} is still there, in the clear")
    return "\n".join(lines)


def _inspected_text(found: Inspected, *, expected: bool) -> str:
    sizes = found.sizes
    lines = [
        f"{found.file}: {'a sealed file' if found.form == 'file' else 'the body of a sealed file, without its recipients'}",
        f"  suite        {found.suite}: {found.suite_name}",
        f"  size         {sizes.file:,} bytes: body {sizes.body:,} (streams {sizes.streams:,}, index {sizes.index:,}), "
        f"recipients {sizes.recipients:,}",
        f"  header hash  {found.header_hash}",
        f"  sealed       {found.sealed_digest}{' (as expected)' if expected else ''}",
    ]
    if found.claims is not None:
        lines += [
            f"  model        {found.claims.model_digest} (claimed: only a key proves it)",
            f"  purpose      {found.claims.purpose} (claimed)",
            f"  recipients   {len(found.recipients)} (claimed)",
            *(f"    {row.id}  {row.how}" for row in found.recipients),
        ]
    lines.append("  What kind of file is in it, and its names and contents, are not visible without a key.")
    if found.pending:
        lines.append("  A rewrap was cut off: its journal beside the file was read. Keep both; the next rewrap finishes it.")
    return "\n".join(lines)


def _rewrapped_text(done: FileRewrapped, word: str) -> str:
    absent = "".join(f"\n  {id_} was no recipient of it" for id_ in done.absent)
    return f"{done.file}: {word if done.changed else 'unchanged'}, for {', '.join(done.recipients)}{absent}"


COMMANDS = (keygen, seal, open_, inspect, rewrap, reencrypt)
