"""A data set without some of its rows, in its own format. Of a CSV file every other line stays as it is, byte for byte."""

import csv
import io
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from modelkeep.adapters.csvrows import CsvRows
from modelkeep.adapters.streams import buffered
from modelkeep.adapters.tables import CSV, IMAGES, NPZ, PARQUET, Source
from modelkeep.adapters.tarred import tar_files
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.errors import Invalid, Missing, Unavailable


def without_rows(kind: str, reader: Reader, gone: Collection[int]) -> Iterator[bytes]:
    """The bytes of a data set less the rows numbered in ``gone``, counted from 0, in pieces; the same ones each time.

    Raises Invalid (not what ``kind`` says), and what ``reader`` raises.
    """
    makers: dict[str, Callable[[Reader, Collection[int]], Iterator[bytes]]] = {
        CSV: _csv,
        NPZ: _npz,
        PARQUET: _parquet,
        IMAGES: _archive,
    }
    return makers[kind](reader, gone)


def other_pictures(names: Iterable[str], gone: Collection[int]) -> list[str]:
    """The names of pictures, in the order of their rows, less those numbered in ``gone``."""
    return [name for row, name in enumerate(names) if row not in gone]


def _csv(reader: Reader, gone: Collection[int]) -> Iterator[bytes]:
    taken: list[str] = []
    text = io.TextIOWrapper(buffered(reader), encoding="utf-8-sig", newline="")

    def lines() -> Iterator[str]:
        for line in text:
            taken.append(line)
            yield line

    row = -2  # the header is row -1
    for fields in csv.reader(lines(), delimiter=CsvRows(reader).separator, skipinitialspace=True, strict=True):
        row += bool(fields)
        if not fields or row not in gone:
            yield "".join(taken).encode()
        taken.clear()


def _npz(reader: Reader, gone: Collection[int]) -> Iterator[bytes]:
    Source(NPZ, reader).rows()  # Invalid if it is no such file, or holds what nothing here unpickles
    packed = io.BytesIO()
    with np.load(buffered(reader), allow_pickle=False) as arrays, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in arrays.files:
            kept = np.delete(arrays[name], list(gone), axis=0)
            with archive.open(zipfile.ZipInfo(f"{name}.npy", (1980, 1, 1, 0, 0, 0)), "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, kept, allow_pickle=False)
    yield packed.getvalue()


def _parquet(reader: Reader, gone: Collection[int]) -> Iterator[bytes]:
    Source(PARQUET, reader).rows()  # Invalid if there is no library, or it is no such file
    from pyarrow import ArrowException, parquet

    try:
        found: Any = parquet.read_table(buffered(reader))
    except (ArrowException, OSError) as cause:
        raise Invalid(f"the Parquet file cannot be read: {str(cause)[:200]}") from None
    keep = np.ones(len(found), dtype=bool)
    keep[list(gone)] = False
    packed = io.BytesIO()
    parquet.write_table(found.filter(keep), packed)
    yield packed.getvalue()


def _archive(reader: Reader, gone: Collection[int]) -> Iterator[bytes]:
    """A tar archive of pictures: headers and contents of the others as they are."""
    for row, member in enumerate(list(tar_files(reader))):
        if row not in gone:
            end = member.offset_data + member.size + -member.size % tarfile.BLOCKSIZE
            yield bytes(read_bytes(reader, member.offset, end - member.offset))
    yield bytes(2 * tarfile.BLOCKSIZE)


def copy_pictures(folder: Path, names: Iterable[str], out: Path) -> None:
    """Copies of the pictures ``names`` of ``folder`` in the folder ``out``, which is made and must not be there.

    Raises Invalid (it is), Missing (there is no folder to make it in), Unavailable.
    """
    fresh = out.with_name(f".{out.name}.{os.getpid()}.new")
    try:
        if out.exists():
            raise Invalid(f"{out} exists: name another or remove it first")
        fresh.mkdir(mode=0o700)
        for name in names:
            place = fresh / name
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / name, place)
        fresh.rename(out)
    except FileNotFoundError:
        raise Missing(f"cannot write {out}: there is no folder {out.parent}") from None
    except OSError as cause:
        raise Unavailable(f"cannot write {out}: {cause.strerror}") from cause
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
