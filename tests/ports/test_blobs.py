"""One conformance suite for every ``Blobs``, and what only a folder can do wrong."""

import os
import resource
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.adapters.blobs import s3
from modelkeep.adapters.blobs.local import FileReader, LocalBlobs
from modelkeep.adapters.blobs.memory import MemoryBlobs
from modelkeep.container import BlobReader
from modelkeep.core.values import Digest, digest_of
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable

NOWHERE = Digest("sha256:" + "0" * 64)


@pytest.fixture(params=["local", "local-named", "memory", "s3", "s3-large"])
def blobs(request, tmp_path, monkeypatch):
    if request.param == "memory":
        return MemoryBlobs()
    if request.param.startswith("s3"):
        if request.param == "s3-large":  # everything is large, and what has four bytes or more is copied through this process
            monkeypatch.setattr(s3, "ONE_REQUEST", 0)
            monkeypatch.setattr(s3, "MAX_COPY", 3)
        server = request.getfixturevalue("s3_server")
        return s3.S3Blobs.create(server.url(server.bucket()), "keep.example/ports")
    if request.param == "local-named":  # as on a file system without unnamed files: the open fails with EISDIR
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    return LocalBlobs(tmp_path / "blobs")


def test_what_is_put_is_there(blobs):
    digest = blobs.put([b"abc", bytearray(b"def"), memoryview(b"ghi"), b""])
    assert digest == digest_of(b"abcdefghi")
    assert blobs.size(digest) == 9
    assert blobs.read(digest, 0, 9) == b"abcdefghi"
    assert blobs.read(digest, 3, 3) == b"def"
    assert blobs.read(digest, 9, 0) == b""
    buffer = bytearray(4)
    blobs.read_into(digest, 5, memoryview(buffer))
    assert buffer == b"fghi"
    assert list(blobs.all()) == [digest]


def test_nothing_is_a_blob_too(blobs):
    digest = blobs.put([])
    assert (blobs.size(digest), blobs.read(digest, 0, 0)) == (0, b"")


def test_putting_twice_and_deleting_twice(blobs):
    assert blobs.put([b"a"]) == blobs.put([b"a"])
    assert len(list(blobs.all())) == 1
    blobs.delete(digest_of(b"a"))
    blobs.delete(digest_of(b"a"))
    assert list(blobs.all()) == []


def test_missing(blobs):
    for call in (
        lambda: blobs.size(NOWHERE),
        lambda: blobs.read(NOWHERE, 0, 1),
        lambda: blobs.read_into(NOWHERE, 0, memoryview(bytearray(1))),
    ):
        with pytest.raises(Missing):
            call()


def test_reading_past_the_end_is_not_trusted(blobs):
    digest = blobs.put([b"abc"])
    for offset, length in ((0, 4), (3, 1), (99, 1), (-1, 2)):
        with pytest.raises(NotTrusted):
            blobs.read(digest, offset, length)
    with pytest.raises(NotTrusted):
        blobs.read_into(digest, 2, memoryview(bytearray(2)))


def test_a_stream_that_fails_leaves_nothing(blobs):
    def failing():
        yield b"x" * 1000
        raise NotTrusted("the source shrank")

    with pytest.raises(NotTrusted, match="shrank"):
        blobs.put(failing())
    assert list(blobs.all()) == []
    if isinstance(blobs, LocalBlobs):
        assert [path for path in blobs.root.rglob("*") if path.is_file()] == []


@settings(max_examples=25, deadline=None)
@given(chunks=st.lists(st.binary(max_size=5000), max_size=5))
def test_any_chunks(tmp_path_factory, chunks):
    for blobs in (MemoryBlobs(), LocalBlobs(tmp_path_factory.mktemp("b"))):
        digest = blobs.put(chunks)
        assert blobs.read(digest, 0, blobs.size(digest)) == b"".join(chunks)


def test_reader_over_a_blob(blobs):
    reader = BlobReader(blobs, blobs.put([b"hello"]))
    buffer = bytearray(3)
    reader.read_into(1, memoryview(buffer))
    assert (reader.size, buffer) == (5, b"ell")
    with pytest.raises(Missing):
        BlobReader(blobs, NOWHERE)


class Slow(MemoryBlobs):
    """A store of which every answer takes long, so that its reads are counted."""

    read_ahead = 10

    def __init__(self):
        super().__init__()
        self.asked = []
        self.fails = False

    def read_into(self, digest, offset, into):
        self.asked.append((offset, into.nbytes))
        if self.fails:
            raise Unavailable("the store is down")
        super().read_into(digest, offset, into)


def test_a_reader_of_a_slow_store_reads_ahead_for_itself_alone():
    blobs = Slow()
    digest = blobs.put([bytes(range(95))])
    reader = BlobReader(blobs, digest)

    def read(offset, length, reader=reader):
        buffer = bytearray(length)
        reader.read_into(offset, memoryview(buffer))
        return bytes(buffer)

    blobs.fails = True
    with pytest.raises(Unavailable):
        read(3, 4)
    blobs.fails, blobs.asked = False, []
    assert read(3, 4) == bytes(range(3, 7)) and read(7, 2) == bytes((7, 8)) and blobs.asked == [(0, 10)]
    assert read(8, 9) == bytes(range(8, 17)) and read(93, 2) == bytes((93, 94)) and read(95, 0) == b""
    assert blobs.asked == [(0, 10), (10, 10), (90, 5)]
    assert read(2, 30) == bytes(range(2, 32)) and blobs.asked[-1] == (2, 30)  # what is as large goes straight through
    for offset, length in ((93, 3), (-1, 2), (96, 1)):
        with pytest.raises(NotTrusted):
            read(offset, length)
    blobs.stored[digest] = bytes(95)
    assert read(3, 1) == b"\x03" and read(3, 1, BlobReader(blobs, digest)) == b"\0"
    blobs.asked = []
    for number in range(9):
        read(10 * number, 1)
    assert len(blobs.asked) <= 8 and read(85, 1) == b"\0"


@settings(max_examples=60, deadline=None)
@given(
    data=st.binary(min_size=1, max_size=200), reads=st.lists(st.tuples(st.integers(0, 220), st.integers(1, 40)), max_size=30)
)
def test_reading_ahead_changes_no_byte(data, reads):
    blobs = Slow()
    reader = BlobReader(blobs, blobs.put([data]))
    for offset, length in reads:
        buffer = bytearray(length)
        if offset + length <= len(data):
            reader.read_into(offset, memoryview(buffer))
            assert buffer == data[offset : offset + length]
        else:
            with pytest.raises(NotTrusted):
                reader.read_into(offset, memoryview(buffer))


def test_threads_that_want_one_block_ask_once():
    blobs = Slow()
    reader = BlobReader(blobs, blobs.put([bytes(10)]))
    threads = [threading.Thread(target=reader.read_into, args=(at, memoryview(bytearray(1)))) for at in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs.asked == [(0, 10)]


def test_many_at_once(blobs):
    bodies = [bytes([i]) * (i * 1000) for i in range(8)]
    threads = [threading.Thread(target=blobs.put, args=([body],)) for body in bodies * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(blobs.all()) == {digest_of(body) for body in bodies}


def test_permissions_and_layout(tmp_path):
    blobs = LocalBlobs(tmp_path / "blobs")
    digest = blobs.put([b"secret"]).removeprefix("sha256:")
    path = tmp_path / "blobs" / digest[:2] / digest
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == stat.S_IMODE(blobs.root.stat().st_mode) == 0o700


def test_a_damaged_blob_is_mended_by_putting_it_again(tmp_path):
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put([b"abc"])
    path = next(path for path in tmp_path.rglob("*") if path.is_file())
    path.write_bytes(b"abX")
    assert blobs.put([b"abc"]) == digest
    assert path.read_bytes() == b"abc"


@pytest.mark.parametrize("named", [False, True])
def test_a_full_disk_is_unavailable_and_leaves_nothing(tmp_path, monkeypatch, named):
    """The file size limit stands in for a full disk: write(2) fails the same way in the middle of the stream."""
    if named:
        monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    blobs = LocalBlobs(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Unavailable, match="nothing was kept"):
            blobs.put(bytes(30_000) for _ in range(10))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_kill_9_in_the_middle_of_a_put_leaves_nothing(tmp_path):
    script = (
        "import os, signal, sys\n"
        "from modelkeep.adapters.blobs.local import LocalBlobs\n"
        "def chunks():\n"
        "    yield bytes(100_000)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "LocalBlobs(sys.argv[1]).put(chunks())\n"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=False).returncode == -9
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_folder_that_cannot_be_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(Unavailable):
        LocalBlobs(tmp_path / "file" / "blobs")
    blobs = LocalBlobs(tmp_path / "blobs")
    blobs.root.rmdir()
    with pytest.raises(Unavailable):
        blobs.put([b"x"])
    with pytest.raises(Unavailable):
        list(blobs.all())


def test_names_that_are_no_digests_never_reach_the_disk(tmp_path):
    with pytest.raises(Invalid):
        LocalBlobs(tmp_path).size(Digest("sha256:../../etc/passwd"))


def test_a_link_in_place_of_a_blob_is_not_followed(tmp_path):
    blobs = LocalBlobs(tmp_path)
    digest = blobs.put([b"abc"])
    path = next(path for path in tmp_path.rglob("*") if path.is_file())
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        blobs.read(digest, 0, 3)


def test_file_reader(tmp_path):
    (tmp_path / "f").write_bytes(b"hello")
    with FileReader(tmp_path / "f") as reader:
        buffer = bytearray(2)
        reader.read_into(3, memoryview(buffer))
        assert (reader.size, buffer) == (5, b"lo")
        with pytest.raises(NotTrusted):
            reader.read_into(4, memoryview(buffer))
    reader.close()
    with pytest.raises(Missing):
        FileReader(tmp_path / "g")
