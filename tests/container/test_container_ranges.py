"""A sealed source read in any order, and only as far as it is asked for."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.container.layout import PIECE_LIMIT, Kind
from modelkeep.container.open import open_sealed
from modelkeep.container.ranges import RangeReader
from modelkeep.container.reader import BytesReader, read_bytes
from modelkeep.container.seal import seal
from modelkeep.errors import NotTrusted

SIZE = 5 * PIECE_LIMIT + 777
PLAIN = np.random.default_rng(3).bytes(SIZE)


def sealed(plain: bytes, kind: Kind = Kind.PIECES) -> tuple[bytes, bytes]:
    sealing = seal(BytesReader(plain), kind=kind)
    return b"".join(bytes(chunk) for chunk in sealing.chunks()), sealing.model.dek


BODY, DEK = sealed(PLAIN)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 3 * PIECE_LIMIT)), min_size=1, max_size=6))
def test_any_ranges_in_any_order_are_those_of_the_source(asked):
    reader = RangeReader(open_sealed(BytesReader(BODY), DEK))
    for offset, wanted in asked:
        size = min(wanted, SIZE - offset)
        assert read_bytes(reader, offset, size) == PLAIN[offset : offset + size]


def test_in_order_by_small_steps():
    reader = RangeReader(open_sealed(BytesReader(BODY), DEK))
    found = b"".join(read_bytes(reader, at, min(100_000, SIZE - at)) for at in range(0, SIZE, 100_000))
    assert found == PLAIN


@pytest.mark.parametrize("kind", [Kind.BYTES, Kind.PIECES])
@pytest.mark.parametrize("size", [0, 1, PIECE_LIMIT])
def test_sources_of_few_bytes_and_of_other_kinds(kind, size):
    body, dek = sealed(PLAIN[:size], kind)
    reader = RangeReader(open_sealed(BytesReader(body), dek))
    assert read_bytes(reader, 0, size) == PLAIN[:size]
    with pytest.raises(NotTrusted, match="truncated"):
        reader.read_into(size, memoryview(bytearray(1)))


class Counted:
    """Bytes, and how many of them were asked for."""

    def __init__(self, data: bytes) -> None:
        self._inner, self.read = BytesReader(data), 0

    @property
    def size(self) -> int:
        return self._inner.size

    def read_into(self, offset: int, into: memoryview) -> None:
        self.read += into.nbytes
        self._inner.read_into(offset, into)


def test_a_range_reads_its_own_pieces_and_no_others():
    source = Counted(BODY)
    reader = RangeReader(open_sealed(source, DEK))
    begun = source.read
    assert read_bytes(reader, 3 * PIECE_LIMIT + 5, 10) == PLAIN[3 * PIECE_LIMIT + 5 : 3 * PIECE_LIMIT + 15]
    assert source.read - begun < 2 * PIECE_LIMIT


@pytest.mark.parametrize("piece", [0, 2, 5])
def test_a_flipped_bit_is_refused_where_it_is_and_nowhere_else(piece):
    at = 48 + piece * (PIECE_LIMIT + 56 + 16 * 65) + 70
    altered = bytearray(BODY)
    altered[at] ^= 1
    reader = RangeReader(open_sealed(BytesReader(bytes(altered)), DEK))
    with pytest.raises(NotTrusted, match="altered"):
        read_bytes(reader, piece * PIECE_LIMIT + 3, 5)
    with pytest.raises(NotTrusted, match="altered"):
        read_bytes(reader, 0, SIZE)
    other = 3
    assert read_bytes(reader, other * PIECE_LIMIT, 9) == PLAIN[other * PIECE_LIMIT : other * PIECE_LIMIT + 9]


def test_threads_that_read_in_many_places_at_once_all_get_what_they_asked_for():
    reader = RangeReader(open_sealed(BytesReader(BODY), DEK))
    reader._room = 2  # less than there are threads: buffers are used again while others wait for theirs

    def ask(seed: int) -> bool:
        draw = np.random.default_rng(seed)
        places = [int(draw.integers(0, SIZE - 3000)) for _ in range(60)]
        return all(read_bytes(reader, at, 3000) == PLAIN[at : at + 3000] for at in places)

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(ask, range(6)))
