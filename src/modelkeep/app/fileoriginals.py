"""The plaintext files that a sealing begins with: what belongs together, what may be removed afterwards, and the removal."""

import mmap
import os
import posixpath
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.folders import sync_folder
from modelkeep.container.bundle import FilesReader
from modelkeep.container.open import SealedFile
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.formats.detect import Format, detect
from modelkeep.formats.onnx import parse_onnx

_PIECE = 4 << 20


def sources(path: str) -> Iterator[SourceFile]:
    """The file at ``path``, and the data files that it names if it is an ONNX model."""
    file = SourceFile(path)
    yield file
    prefix = read_bytes(file, 0, min(4096, file.size))
    found = detect(prefix)
    if found is Format.KEEP:
        raise Invalid(f"{path} is sealed already: rewrap it for other recipients, or reencrypt it")
    if found is Format.ONNX:
        for name in _data_files(file):
            _check_inside(file.path, name)
            try:
                yield SourceFile(file.path.parent / name)
            except Missing as cause:
                raise Missing(f"{path} keeps tensors in {name}, which is not beside it: bring the two together") from cause


def _data_files(file: SourceFile) -> list[str]:
    """Where the tensors of an ONNX model lie outside of it: relative POSIX paths. What cannot be parsed names none."""
    # Mapped, not read: a model may keep gigabytes in itself. Not closed by hand: what was parsed still points into it.
    mapped = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        named = parse_onnx(mapped).external
    except Invalid:
        return []
    plain = sorted({posixpath.normpath(name) for name in named})
    for name in plain:
        if name.startswith(("/", "../")) or name == "..":
            raise Invalid(f"{file.path} keeps tensors in {name[:80]!r}, outside its folder: bring them beside it")
    return plain


def _check_inside(model: Path, name: str) -> None:
    """Raises Invalid when links lead ``name`` away from the model: it is a stranger's word what is read, and what removed."""
    real, folder, place = (Path(os.path.realpath(path)) for path in (model.parent / name, model.parent, model))
    # Where the model itself is a link, as in a cache of downloads, its data may lie where it really lies.
    if not real.is_relative_to(folder) and not real.is_relative_to(place.parent):
        raise Invalid(f"{model} keeps tensors in {name[:80]!r}, which a link leads out of its folder: bring them beside it")


def joined(files: Sequence[SourceFile]) -> Reader:
    """One source of all ``files``, the model first. Raises Invalid (too many, or a name that no container carries)."""
    if len(files) == 1:
        return files[0]
    folder = files[0].path.parent
    return FilesReader([(file.path.relative_to(folder).as_posix(), file) for file in files])


def check_target(target: Path, *, force: bool = False) -> None:
    """Raises Conflict when there is something at ``target``; with ``force``, only when it is no file."""
    if target.is_dir() if force else os.path.lexists(target):
        what = "is a folder" if target.is_dir() else "exists already"
        raise Conflict(f"{target} {what}: it was not touched, name another output")


def check_apart(files: Sequence[SourceFile], target: Path) -> None:
    """Raises Invalid when ``target`` is one of ``files``: replacing it would remove plaintext that was not compared."""
    if os.path.lexists(target) and any(os.path.samestat(target.lstat(), file.found) for file in files):
        raise Invalid(f"{target} is what is to be sealed: name another output, and --remove-plaintext if it shall go")


def check_removable(files: Sequence[SourceFile]) -> None:
    """Unlinking removes one name of a file. Raises Invalid where that would leave the plaintext under another."""
    for file in files:
        if file.path.is_symlink():
            raise Invalid(f"{file.path} is a link: --remove-plaintext would leave what it leads to, so name the file itself")
        if file.found.st_nlink > 1:
            raise Invalid(
                f"{file.path} has {file.found.st_nlink} names (hard links): --remove-plaintext would leave the others"
            )


def compare(sealed: SealedFile, source: Reader) -> None:
    """Decrypt everything and check that it is what ``source`` holds, byte for byte. Raises NotTrusted, Unavailable."""
    at = 0
    buffer = memoryview(bytearray(_PIECE))
    for chunk in sealed.chunks():
        for begin in range(0, chunk.nbytes, _PIECE):
            part = chunk[begin : begin + _PIECE]
            original = buffer[: part.nbytes]
            source.read_into(at, original)
            if part != original:
                raise NotTrusted("the sealed file does not hold what the original holds: nothing was removed, try again")
            at += part.nbytes
    if at != source.size:
        raise NotTrusted("the sealed file is shorter than the original: nothing was removed, try again")


def remove(files: Iterable[SourceFile]) -> None:
    """Unlink the originals, durably. Raises Conflict (changed or replaced meanwhile: that one stays), Unavailable."""
    for file in files:
        try:
            file.check_unchanged()
            if not os.path.samestat(file.path.lstat(), file.found):
                raise Conflict(f"{file.path} was replaced while it was sealed: it was not removed")
            file.path.unlink()
            sync_folder(file.path.parent)
        except OSError as cause:
            raise Unavailable(f"sealed, and cannot remove {file.path}: {cause.strerror}; it lies there in the clear") from cause
