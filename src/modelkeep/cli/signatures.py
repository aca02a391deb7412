"""OpenSSF signatures on disk: written beside model files, and checked by ``verify --oms``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from modelkeep.adapters.files import NewFile
from modelkeep.app.modelfiles import check_signature, own_keys
from modelkeep.cli.context import Context, read_file
from modelkeep.custody.oms import BundleKey, signed_by
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, Unavailable

SUFFIX = ".sig"


def check_place(asked: str) -> None:
    """Refuse a place for a signature that holds something else, before anything is done. Raises Invalid, Unavailable."""
    if asked and (found := _there(Path(asked))) is not None:
        try:
            signed_by(found)
        except Invalid:
            raise Invalid(f"{asked} exists and is no OpenSSF signature: name another file with --signature") from None


def write_signature(ctx: Context, text: str, model: str, asked: str) -> str:
    """Write a signature to ``asked``, or beside the file ``model``; where it is now, "" where nothing was written.

    A signature by the same key is replaced, anything else is left alone: with a word about it beside a model, and Conflict
    where the place was asked for. Raises Conflict, Unavailable, Missing.
    """
    if not text:
        ctx.out.note("No signature was written: the release was published before this keep made OpenSSF signatures.")
        return ""
    path = Path(asked or f"{model}{SUFFIX}")
    try:
        _write(path, text.encode(), model)
    except (Conflict, Missing, Unavailable) as cause:
        if asked:
            raise
        ctx.out.note(f"The signature was not written: {cause}.")
        return ""
    return str(path)


@contextlib.contextmanager
def saying_that(done: str) -> Iterator[None]:
    """Say that what came before succeeded when writing the signature fails."""
    try:
        yield
    except (Conflict, Missing, Unavailable) as cause:
        raise type(cause)(f"{done}, but not its signature: {cause}") from cause


def verify_signature(ctx: Context, model: str, bundle: str, key: str) -> None:
    """Check ``model`` against the signature in the file ``bundle``, and say so. Raises NotTrusted and what reading raises."""
    keys = (BundleKey.from_pem(read_file(key)),) if key else own_keys(ctx.directory)
    with ctx.out.busy(f"Hashing {model}"):
        done = check_signature(model, bundle, *keys)
    what = "the file" if done.files == (".",) else f"{len(done.files):,} files"
    text = f"{model}: signed by the key {done.key[:16]}… as {done.name!r}\n  ok  {what}, by {done.algorithm}"
    left = f"\n  not signed: {', '.join(done.ignored)}" if done.ignored and done.files != (".",) else ""
    ctx.out.show(done, text + left)


def _write(path: Path, data: bytes, model: str) -> None:
    found = _there(path)
    if found == data:
        return
    if found is not None and not _same_key(found, data):
        raise Conflict(f"{path} exists and was not made with this keep's key")
    with NewFile(path, like=Path(model).stat()) as fresh:  # whoever may read the model may read its signature
        fresh.write([data])
        fresh.publish(replace=found is not None)


def _there(path: Path) -> bytes | None:
    try:
        return read_file(str(path))
    except Missing:
        return None


def _same_key(one: bytes, other: bytes) -> bool:
    try:
        return signed_by(one) == signed_by(other)
    except ModelkeepError:
        return False
