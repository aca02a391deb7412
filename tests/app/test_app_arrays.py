"""npz files that users hand in."""

import io
import zipfile

import numpy as np
import pytest

from modelkeep.app.arrays import MAX_VALUES, load_rows
from modelkeep.errors import Invalid, TooLarge


def npz(**arrays) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr(name, data)
    return stream.getvalue()


def header(shape: tuple[int, ...], descr: str = "<f8") -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_rows_come_flattened_and_in_double_precision():
    images = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    assert load_rows(npz(x=images), "r").tolist() == images.reshape(2, 12).astype(float).tolist()
    assert load_rows(npz(x=np.eye(3, dtype=bool)), "r").dtype == np.float64


class Bomb:
    """Says so when it is unpickled."""

    ran: list[int] = []  # noqa: RUF012

    def __reduce__(self):
        return (Bomb.ran.append, (1,))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not an npz"),
        (b"PK\x03\x04 and no more", "not an npz"),
        (npz(y=np.eye(2)), "no array 'x'"),
        (npz(x=np.zeros(3)), "shape"),
        (npz(x=np.zeros((0, 3))), "shape"),
        (npz(x=np.array([["a"]])), "numbers"),
        (npz(x=np.array([[1j]])), "numbers"),
        (npz(x=np.array([[np.nan]])), "NaN"),
        (npz(x=np.array([[np.inf]])), "infinite"),
        (npz(x=np.array([[np.datetime64("2026-01-01")]])), "numbers"),
        (npz(x=np.array([[Bomb()]], dtype=object)), "objects"),
        (zipped("x.npy", b""), "not an npz"),
        (zipped("x.npy", b"\x93NUMPY\x09\x00"), "npy version"),
        (zipped("x.npy", b"\x93NUMPY\x01\x00\xff\xff{"), "not an npz"),
        (zipped("x.npy", header((5, 5))), "not an npz"),
        (zipped("x.npy", header((-5, 5))), "not an npz"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_refused_and_never_run(data, words):
    with pytest.raises(Invalid, match=words):
        load_rows(data, "rows.npz")
    assert not Bomb.ran


@pytest.mark.parametrize("shape", [(MAX_VALUES + 1, 1), (1 << 40, 1 << 40), (1 << 62, 8, 8)])
def test_a_shape_that_is_too_large_is_refused_before_it_is_allocated(shape):
    with pytest.raises(TooLarge):
        load_rows(zipped("x.npy", header(shape)), "rows.npz")
