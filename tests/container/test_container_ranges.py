"""A sealed source read in any order, and only as far as it is asked for."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.cobblestone import Cobblestone256Encryptor
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.container import ranges
from modelkeep.container.layout import HEADER_SIZE, PIECE_LIMIT, BodyKeys, Kind, check_header, sealed_length
from modelkeep.container.open import open_sealed
from modelkeep.container.ranges import RangeReader
from modelkeep.container.reader import BytesReader, read_bytes
from modelkeep.container.seal import seal
from modelkeep.errors import NotTrusted, Unavailable

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


WHOLE = sealed_length(PIECE_LIMIT)


def place(piece: int) -> int:
    """Where a stream begins in the body."""
    return HEADER_SIZE + piece * WHOLE


def flipped(body: bytearray) -> None:
    body[place(3) + 700_000] ^= 1


def swapped(body: bytearray) -> None:
    one, other = slice(place(3), place(4)), slice(place(4), place(5))
    body[one], body[other] = body[other], body[one]


def repeated(body: bytearray) -> None:
    body[place(3) : place(4)] = body[place(2) : place(3)]


def forged(body: bytearray) -> None:
    """By somebody who has the data key: it decrypts, and is not what the root was signed for."""
    encryptor = Cobblestone256Encryptor(*BodyKeys(DEK, check_header(bytes(body[:HEADER_SIZE])).hash).stream(4))
    message = bytearray(WHOLE)
    at = encryptor.update_into(bytes(PIECE_LIMIT), message)
    message[at:] = encryptor.finalize()
    body[place(3) : place(4)] = message


@pytest.mark.parametrize("step", [100_000, PIECE_LIMIT, PIECE_LIMIT + 1, 2 * PIECE_LIMIT])
@pytest.mark.parametrize("attack", [flipped, swapped, repeated, forged])
def test_read_in_order_everything_before_an_altered_piece_is_genuine_and_nothing_of_it_is_handed_out(attack, step):
    altered = bytearray(BODY)
    attack(altered)
    reader, at = RangeReader(open_sealed(BytesReader(bytes(altered)), DEK)), 0
    while at + step <= 3 * PIECE_LIMIT:
        assert read_bytes(reader, at, step) == PLAIN[at : at + step]
        at += step
    for _ in range(2):
        with pytest.raises(NotTrusted, match=r"altered|BLAKE3"):
            read_bytes(reader, at, step)
    assert read_bytes(reader, 5 * PIECE_LIMIT, 777) == PLAIN[5 * PIECE_LIMIT :]


class Store(BytesReader):
    """Bytes, and what is done whenever some of them are asked for: ``watch(offset)``."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.watch = lambda _: None

    def read_into(self, offset: int, into: memoryview) -> None:
        self.watch(offset)
        super().read_into(offset, into)


@pytest.mark.parametrize("step", [100_000, 1000, PIECE_LIMIT])
def test_what_is_read_in_order_is_decrypted_ahead_by_other_threads(step):
    store, mine, me = Store(BODY), set[int](), threading.get_ident()
    reader = RangeReader(open_sealed(store, DEK))

    def watch(offset: int) -> None:
        if threading.get_ident() == me:
            mine.add((offset - HEADER_SIZE) // WHOLE)

    store.watch = watch
    for at in range(0, SIZE - step, step):
        read_bytes(reader, at, step)
        if PIECE_LIMIT < at < 4 * PIECE_LIMIT:
            assert max(reader._kept) > (at + step - 1) // PIECE_LIMIT
    assert mine <= {0, 1}  # by then nobody knew that it would go on


def test_places_that_are_read_in_turns_keep_what_each_needs(monkeypatch):
    monkeypatch.setattr(ranges, "KEPT", 2)

    def read(places: int) -> int:
        source = Counted(BODY)
        reader = RangeReader(open_sealed(source, DEK), places=places)
        begun = source.read
        for at in range(0, PIECE_LIMIT, 1 << 17):
            for start in range(0, 5 * PIECE_LIMIT, PIECE_LIMIT + 100):
                assert read_bytes(reader, start + at, 1 << 17) == PLAIN[start + at : start + at + (1 << 17)]
        return source.read - begun

    assert read(5) <= len(BODY) < 3 * len(BODY) < read(1)


def test_however_many_places_there_are_memory_has_a_bound():
    reader = RangeReader(open_sealed(BytesReader(BODY), DEK), places=4096)
    assert reader._room == ranges.MOST_KEPT


@pytest.mark.parametrize("error", [Unavailable, OSError])
def test_a_store_that_failed_is_asked_again(error):
    store = Store(BODY)
    reader = RangeReader(open_sealed(store, DEK))

    def fail(_: int) -> None:
        raise error("the store is away")

    store.watch = fail
    with pytest.raises(error):
        read_bytes(reader, 5, 10)
    store.watch = lambda _: None
    assert read_bytes(reader, 5, 10) == PLAIN[5:15]


def test_what_could_not_be_read_ahead_is_asked_for_again_when_it_is_wanted():
    store = Store(BODY)
    reader = RangeReader(open_sealed(store, DEK))

    def fail(offset: int) -> None:
        if offset >= place(3):
            raise Unavailable("the store is away")

    store.watch = fail
    for piece in range(3):
        read_bytes(reader, piece * PIECE_LIMIT, 10)
    assert isinstance(reader._kept[3].done.exception(60), Unavailable)
    store.watch = lambda _: None
    assert read_bytes(reader, 3 * PIECE_LIMIT, 10) == PLAIN[3 * PIECE_LIMIT : 3 * PIECE_LIMIT + 10]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_threads_of_its_parent():
    reader = RangeReader(open_sealed(BytesReader(BODY), DEK))
    read_bytes(reader, 5, 10)
    with reader._lock:
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                os._exit(read_bytes(reader, 3, 2 * PIECE_LIMIT) != PLAIN[3 : 3 + 2 * PIECE_LIMIT])
            finally:
                os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert read_bytes(reader, 4 * PIECE_LIMIT, 10) == PLAIN[4 * PIECE_LIMIT : 4 * PIECE_LIMIT + 10]


def test_a_read_that_fails_leaves_no_thread_that_writes_to_its_buffer():
    store, begun, failed, ended = Store(BODY), threading.Event(), threading.Event(), list[bool]()
    me = threading.get_ident()
    reader = RangeReader(open_sealed(store, DEK))
    reader._threads = 2

    def watch(offset: int) -> None:
        if threading.get_ident() == me:
            assert begun.wait(60)
            failed.set()
            raise Unavailable("the store is away")
        begun.set()
        assert failed.wait(60)
        ended.append(True)

    store.watch = watch
    with pytest.raises(Unavailable):
        read_bytes(reader, 0, 5 * PIECE_LIMIT)
    assert ended == [True]
