"""The reading half of ``LogFiles``, ``StaticFiles``, over every adapter; and what only a web server can get wrong."""

import contextlib
import gzip
import itertools
import socket
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from memorylogfiles import MemoryLogFiles
from static_server import ENDLESS, answering, static, trickling

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.weblog import LARGEST, FetchedAhead, WebLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Denied, Invalid, Missing, Unauthenticated, Unavailable
from modelkeep.ledger.log import ReleasesLog
from modelkeep.ledger.verify import reading_order, verify_log

SIGNER = NoteSigner("keep.example/releases", b"\x07" * 32)


@pytest.fixture(params=["folder", "memory", "web", "web, fetched ahead"])
def both(request, tmp_path):
    """A place to write a log's files, and the same to read them."""
    if request.param == "memory":
        files = MemoryLogFiles()
        yield files, files
        return
    folder = FolderLogFiles(tmp_path / "log")
    if request.param == "folder":
        yield folder, folder
        return
    with static(tmp_path) as address, contextlib.closing(WebLogFiles(f"{address}/log/")) as web, ThreadPoolExecutor(4) as pool:
        yield folder, web if request.param == "web" else FetchedAhead(web, pool)


def test_what_is_written_is_read(both):
    writer, reader = both
    writer.write("checkpoint", b"a note\n")
    writer.write("tile/0/x001/234.p/17", bytes(range(256)) * 3)
    writer.write("tile/entries/000", b"")
    assert reader.read("checkpoint") == b"a note\n"
    assert reader.read("tile/0/x001/234.p/17") == bytes(range(256)) * 3
    assert reader.read("tile/entries/000") == b""


def test_reading_what_is_not_there_is_missing(both):
    writer, reader = both
    writer.write("tile/0/000", b"x")
    for path in ("checkpoint", "tile/0/001", "tile/0/000/1"):
        with pytest.raises(Missing):
            reader.read(path)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a//b", "", ".", "a/../b", "%2e%2e/x", "a?b", "a#b", "a\0b", "a/", "ü"]
)
def test_no_path_leaves_the_log(path, tmp_path):
    server, seen = answering(200, {})
    with server as address, contextlib.closing(WebLogFiles(f"{address}/log")) as web:
        with pytest.raises(Invalid):
            web.read(path)
        with pytest.raises(Invalid):
            web.below(path)
        with pytest.raises(Invalid):
            FolderLogFiles(tmp_path).read(path)
    assert not seen


def test_a_whole_log_verifies_over_the_web_and_is_fetched_once(tmp_path):
    folder = FolderLogFiles(tmp_path / "log")
    log = ReleasesLog(folder, SIGNER, SIGNER.name)
    log.create()
    log.append([b"entry %d" % number for number in range(600)])
    asked = []

    class Counted:
        def __init__(self, files):
            self.files = files

        def read(self, path):
            asked.append(path)
            return self.files.read(path)

    with static(tmp_path / "log") as address, contextlib.closing(WebLogFiles(address)) as web, ThreadPoolExecutor(4) as pool:
        ahead = FetchedAhead(Counted(web), pool)
        ahead.want(reading_order(600))
        told = []
        report = verify_log(ahead, SIGNER.vkey, SIGNER.name, progress=lambda *said: told.append(said))
        assert report == verify_log(folder, SIGNER.vkey, SIGNER.name)
        assert verify_log(ahead, SIGNER.vkey, SIGNER.name) == report
    assert sorted(asked) == folder.paths()
    assert told == [(SIGNER.name, done, 3) for done in (1, 2, 3)]


@pytest.mark.parametrize(
    "address",
    [
        "ftp://host/log",
        "file:///etc",
        "host/log",
        "https://",
        "http://a b/",
        "https://u:p@host/",
        "https://h/?q=1",
        "https://h/#f",
        "http://[::1",
    ],
)
def test_what_is_no_address_of_a_log_is_invalid(address):
    with pytest.raises(Invalid):
        WebLogFiles(address)


def test_a_token_never_goes_over_plain_http():
    server, seen = answering(200, {})
    with server as address, pytest.raises(Invalid, match="only ever sent over https"):
        WebLogFiles(address, token="secret")
    assert not seen


@pytest.mark.parametrize("token", ["a b", "a\nb", "a\r\nx: y", "ü", "\x00", "\ufffd"])
def test_a_token_is_one_word(token):
    with pytest.raises(Invalid, match="one line of plain letters"):
        WebLogFiles("https://localhost/log", token=token)


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (404, Missing),
        (410, Missing),
        (401, Unauthenticated),
        (403, Denied),
        (500, Unavailable),
        (204, Unavailable),
        (206, Unavailable),
    ],
)
def test_answers_that_are_no_file(status, error):
    server, seen = answering(status, {"content-length": "0"})
    with server as address, contextlib.closing(WebLogFiles(address)) as web, pytest.raises(error):
        web.read("checkpoint")
    assert len(seen) == 1  # no second try


def test_no_redirect_is_followed():
    elsewhere, followed = answering(200, {"content-length": "0"})
    with elsewhere as target:
        for status in (301, 302, 307, 308):
            server, _ = answering(status, {"location": f"{target}/checkpoint", "content-length": "0"})
            with (
                server as address,
                contextlib.closing(WebLogFiles(address)) as web,
                pytest.raises(Unavailable, match="has moved"),
            ):
                web.read("checkpoint")
    assert not followed


def test_a_file_that_does_not_end_is_given_up():
    server, _ = answering(200, {}, itertools.repeat(bytes(1 << 20), 2 * LARGEST >> 20))
    with (
        server as address,
        contextlib.closing(WebLogFiles(address)) as web,
        pytest.raises(Unavailable, match="larger than any"),
    ):
        web.read("tile/entries/000")


def test_a_server_that_drips_is_given_up():
    released = threading.Event()

    def drip():
        for _ in range(500):
            yield b"x"
            released.wait(0.01)

    server, _ = answering(200, {}, drip())
    with server as address, contextlib.closing(WebLogFiles(address, seconds=0.6)) as web:
        with pytest.raises(Unavailable, match=r"longer than 0\.6 seconds"):
            web.read("checkpoint")
        released.set()


@pytest.mark.parametrize("said", ENDLESS.values(), ids=ENDLESS)
def test_whatever_a_server_drips_has_an_end(said):
    with trickling(*said) as address, contextlib.closing(WebLogFiles(address, seconds=0.6)) as web:
        for _ in range(2):  # and a second file is not waited for
            with pytest.raises(Unavailable, match=r"checkpoint takes longer than 0\.6 seconds"):
                web.read("checkpoint")


@pytest.mark.parametrize("packed", ["gzip, gzip", "gzip, gzip, gzip", "br", "deflate"])
def test_only_what_was_asked_for_is_unpacked(packed):
    data = bytes(LARGEST * 4)
    for _ in packed.split(","):
        data = gzip.compress(data)
    server, _ = answering(200, {"content-encoding": packed, "content-length": str(len(data))}, data)
    with server as address, contextlib.closing(WebLogFiles(address)) as web, pytest.raises(Unavailable, match="gzip alone"):
        web.read("tile/entries/000")


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (gzip.compress(bytes(LARGEST * 4)), "larger than any file"),
        (gzip.compress(bytes(1000))[:-9], "cut off"),
        (b"plain", "no gzip"),
    ],
    ids=["large", "cut", "plain"],  # the bytes hold the time, and every process must call the tests the same
)
def test_a_bad_gzip_is_unavailable(data, word):
    server, _ = answering(200, {"content-encoding": "gzip", "content-length": str(len(data))}, data)
    with server as address, contextlib.closing(WebLogFiles(address)) as web, pytest.raises(Unavailable, match=word):
        web.read("tile/entries/000")


def test_gzip_is_unpacked():
    for data in (bytes(LARGEST), b"", b"a note\n"):
        packed = gzip.compress(data)
        server, _ = answering(200, {"content-encoding": "gzip", "content-length": str(len(packed))}, packed)
        with server as address, contextlib.closing(WebLogFiles(address)) as web:
            assert web.read("tile/entries/000") == data


def test_an_answer_that_is_cut_off_is_unavailable():
    server, _ = answering(200, {"content-length": "100"}, b"half")
    with server as address, contextlib.closing(WebLogFiles(address)) as web, pytest.raises(Unavailable, match="cannot fetch"):
        web.read("checkpoint")


def test_nobody_there_is_unavailable():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
        with contextlib.closing(WebLogFiles(address)) as web, pytest.raises(Unavailable, match="cannot fetch"):
            web.read("checkpoint")


def test_what_cannot_be_fetched_ahead_is_said_when_it_is_read(tmp_path):
    FolderLogFiles(tmp_path).write("tile/0/000", b"x")
    with static(tmp_path) as address, contextlib.closing(WebLogFiles(address)) as web, ThreadPoolExecutor(4) as pool:
        ahead = FetchedAhead(web, pool)
        ahead.want(["tile/0/000", "tile/0/001"])
        assert ahead.read("tile/0/000") == b"x"
        with pytest.raises(Missing):
            ahead.read("tile/0/001")


def test_the_first_checkpoint_stays(tmp_path):
    files = MemoryLogFiles({"checkpoint": b"one"})
    with ThreadPoolExecutor(1) as pool:
        ahead = FetchedAhead(files, pool)
        assert ahead.read("checkpoint") == b"one"
        files.write("checkpoint", b"two")
        assert ahead.read("checkpoint") == b"one"
