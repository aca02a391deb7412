"""A model on disk against its OpenSSF signature: walk the folder or take the file, hash, compare. No keep is needed."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelkeep.app.results import SignatureChecked
from modelkeep.custody.bundles import MAX_BUNDLE
from modelkeep.custody.oms import HASHES, WHOLE, BundleKey, SignedModel, open_bundle
from modelkeep.custody.trust import ANY, TrustRoot
from modelkeep.errors import Invalid, Missing, NotTrusted, TooLarge, Unavailable

_CHUNK = 1 << 20


def check_signature(model: str, bundle: str, *keys: BundleKey) -> SignatureChecked:
    """Check the file or folder ``model`` against the signature in the file ``bundle``, made with one of ``keys``.

    Everything in a folder must have been signed, except what the signer left out and the signature itself. A symbolic link to
    a file is followed where the signature says so, one to a folder never.
    Raises NotTrusted (one line for the first thing that does not hold), Invalid (not a bundle), Missing, Unavailable.
    """
    signed = open_bundle(_read_bundle(Path(bundle)), *keys)
    root = Path(model)
    try:
        found = _hash_all(root, signed, Path(bundle))
    except FileNotFoundError as cause:
        raise Missing(f"there is no file or folder {cause.filename}") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {cause.filename}: {cause.strerror}") from cause
    signed.check(found)
    return SignatureChecked(model, signed.name, signed.key.hint, signed.algorithm, tuple(sorted(found)), signed.ignored)


def _hash_all(root: Path, signed: SignedModel, bundle: Path) -> dict[str, str]:
    mode = root.stat().st_mode
    if stat.S_ISREG(mode):
        if not signed.whole:
            raise NotTrusted(f"{root} is one file, and the signature is that of a folder: name the folder")
        return {WHOLE: _digest(root, signed.algorithm)}
    if not stat.S_ISDIR(mode):
        raise Invalid(f"{root} is neither a file nor a folder")
    if signed.whole:
        raise NotTrusted(f"{root} is a folder, and the signature is that of one file: name the file")
    return {path: _digest(place, signed.algorithm) for path, place in _walk(root, signed, bundle)}


def _walk(root: Path, signed: SignedModel, bundle: Path) -> Iterator[tuple[str, Path]]:
    """Relative path and place of every file below ``root`` that the signature must speak of, in no order."""
    own, folders = bundle.stat(), [""]
    while folders:
        under = folders.pop()
        with os.scandir(root / under) as entries:
            for entry in entries:
                path = f"{under}{entry.name}"
                if signed.ignores(path):
                    continue
                found = entry.stat(follow_symlinks=False)
                if stat.S_ISDIR(found.st_mode):
                    folders.append(f"{path}/")
                elif (found.st_dev, found.st_ino) != (own.st_dev, own.st_ino):
                    _check_kind(path, found, entry, signed)
                    yield path, Path(entry.path)


def _check_kind(path: str, found: os.stat_result, entry: "os.DirEntry[str]", signed: SignedModel) -> None:
    if stat.S_ISLNK(found.st_mode):
        if not signed.symlinks:
            raise NotTrusted(f"{path!r} is a symbolic link, and the signer allowed none")
        if not entry.is_file():
            raise NotTrusted(f"{path!r} is a symbolic link that does not lead to a file: what is behind it was not signed")
    elif not stat.S_ISREG(found.st_mode):
        raise NotTrusted(f"{path!r} is neither a file nor a folder")


def _digest(path: Path, algorithm: str) -> str:
    engine: Any = HASHES[algorithm][0]()
    with path.open("rb", buffering=0) as stream:
        while chunk := stream.read(_CHUNK):
            engine.update(chunk)
    digest: str = engine.hexdigest()
    return digest


def _read_bundle(path: Path) -> bytes:
    try:
        size = path.stat().st_size
        if size > MAX_BUNDLE:
            raise TooLarge(f"{path} has {size:,} bytes and is no OpenSSF signature")
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"there is no file {path}") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


def own_keys(directory: Path) -> tuple[BundleKey, ...]:
    """The keys that the keep in ``directory`` signs models with, from its ``trust.toml``; none that was compromised.

    Nor one that may sign some models only: which model a file on disk is, nothing says.

    Raises Missing (no keep there), NotTrusted (no key is left), Invalid, Unavailable.
    """
    path = directory / "trust.toml"
    try:
        trust = TrustRoot.parse(path.read_bytes())
    except FileNotFoundError:
        raise Missing(f"there is no keep in {directory}: name one with --dir, or the signer's key with --key") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
    found = tuple(BundleKey(key.public) for key in trust.oms if key.until is None and ANY in key.releases)
    if not found:
        raise NotTrusted(f"{path} has no key of OpenSSF signatures: name the signer's key with --key")
    return found
