"""Replacing the end of a file in place: kill -9 at every step, power cuts that lose any unsynced write, full disks, journals.

Whatever happens, the file and its journal together read as the old file or as the new one, and the next holder finishes it.
"""

import errno
import hashlib
import itertools
import os
import signal
import struct
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.adapters.tails import SUFFIX, Journal, LocalDisk, SealedReader, held, journal_of
from modelkeep.container import BytesReader, Passphrase, XWingRecipient, pack_bytes, read_bytes, split_file, unpack_bytes
from modelkeep.container.file import rewrap_tail
from modelkeep.container.layout import encode_footer, sealed_length
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.errors import Conflict, Missing, NotTrusted, Unavailable

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")

FAST = Argon2Params(memory_kib=32, passes=1, lanes=1)
WORD = Passphrase(b"a passphrase", FAST)
SOURCE = bytes(range(256)) * 40


def forge(others):
    """A sealed file, the size of its body, and the tail that it would get for ``others`` recipients instead."""
    file = pack_bytes(SOURCE, [WORD], purpose="file")
    more = [XWingRecipient(recipient_of(generate_identity())) for _ in range(others)]
    tail = rewrap_tail(BytesReader(file), [WORD], more, purpose="file", keep=[])
    return file, split_file(BytesReader(file)).body.size, tail


LONG = forge(3)
SHORT = (LONG[0][: LONG[1]] + LONG[2], LONG[1], LONG[0][LONG[1] :])
SAME = (LONG[0], LONG[1], rewrap_tail(BytesReader(LONG[0]), [WORD], [WORD], purpose="file", keep=[]))
CASES = {"longer": LONG, "shorter": SHORT, "as long": SAME}


def contents(path):
    """The sealed file as a reader sees it."""
    with SealedReader(path) as reader:
        return read_bytes(reader, 0, reader.size)


def finished(path):
    """The sealed file once somebody held it."""
    with held(path):
        pass
    assert not journal_of(path).exists()
    return path.read_bytes()


class Recorder(LocalDisk):
    """Writes down every operation, and does something of the tester's before each."""

    def __init__(self, before=lambda step, name, run: run()):
        self.before, self.steps = before, []

    def _do(self, name, *args):
        self.steps.append((name, args))
        self.before(len(self.steps), name, lambda: getattr(LocalDisk, name)(self, *args))

    def create(self, path, data, mode):
        if self.steps and self.steps[-1][0] == "create":
            LocalDisk.create(self, path, data, mode)
        else:
            self._do("create", path, data, mode)

    def sync_folder(self, folder):
        self._do("sync_folder", folder)

    def write(self, fd, offset, data):
        if self.steps[-1][0] == "create":  # create writes with it
            LocalDisk.write(self, fd, offset, data)
        else:
            self._do("write", fd, offset, data)

    def truncate(self, fd, size):
        self._do("truncate", fd, size)

    def sync(self, fd):
        self._do("sync", fd)

    def remove(self, path):
        self._do("remove", path)


def replace(path, size, tail, disk):
    with held(path, disk) as file:
        file.replace_tail(size, tail)


@pytest.fixture(params=CASES, ids=str)
def case(request, tmp_path):
    file, size, tail = CASES[request.param]
    path = tmp_path / "m.keep"
    path.write_bytes(file)
    return path, file, size, tail


def test_the_tail_is_replaced_and_the_body_stays(case):
    path, file, size, tail = case
    inode = path.stat().st_ino
    disk = Recorder()
    replace(path, size, tail, disk)
    assert path.read_bytes() == file[:size] + tail == contents(path)
    assert path.stat().st_ino == inode and not journal_of(path).exists()
    assert [name for name, _ in disk.steps] == ["create", "sync_folder", "write", "truncate", "sync", "remove"]


@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.parametrize("half", [False, True], ids=["before", "half way"])
def test_kill_minus_nine_at_every_step(case, step, half):
    path, file, size, tail = case

    def die(now, name, run):
        if now != step:
            run()
            return
        if half and name == "create":
            journal_of(path).write_bytes(Journal(b"h" * 32, size, tail).encode()[:-40])
        if half and name == "write":
            with path.open("r+b") as stream:
                stream.seek(size)
                stream.write(tail[: len(tail) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    pid = os.fork()
    if pid == 0:
        replace(path, size, tail, Recorder(die))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    old, new = file, file[:size] + tail
    assert contents(path) == (old if step == 1 else new)
    if step == 2:  # written and not synced as a name: it may be there or not, and is whole either way
        assert journal_of(path).exists()
    assert finished(path) == (old if step == 1 else new)
    replace(path, size, tail, LocalDisk())
    assert path.read_bytes() == new


def crash_images(file, size, tail):
    """Every state that a power cut may leave: what was synced is there; of the rest any part, in any order."""
    new = file[:size] + tail
    yield file, None
    journal = Journal(split_file(BytesReader(file)).header_hash, size, tail).encode()
    for cut in (0, 1, 7, 8, 50, len(journal) - 1):
        yield file, journal[:cut]
        yield file, journal[:cut].ljust(len(journal), b"\0")
    long = max(len(file), len(new))
    pages = [slice(at, min(at + 512, long)) for at in range(size, long, 512)]
    for chosen in itertools.product([False, True], repeat=min(len(pages), 7)):
        for length in {len(file), len(new)}:
            torn = bytearray(file.ljust(long, b"\0"))
            for page, written in zip(pages, chosen, strict=False):
                if written:
                    torn[page] = new.ljust(long, b"\0")[page]
            yield bytes(torn[:length]), journal
    yield new, journal
    yield new, None


def test_a_power_cut_that_loses_any_unsynced_write(case):
    path, file, size, tail = case
    new, seen = file[:size] + tail, 0
    for image, journal in crash_images(file, size, tail):
        path.write_bytes(image)
        journal_of(path).unlink(missing_ok=True)
        if journal is not None:
            journal_of(path).write_bytes(journal)
        read = contents(path)
        assert read in (file, new)
        assert finished(path) == read
        seen += 1
    assert seen > 14


def test_the_bytes_of_a_journal():
    """As docs/sealed-files.md specifies them, put together by hand."""
    rest = b"KEEPTAIL" + b"\x01" + b"\x11" * 32 + (70_000).to_bytes(8, "big") + (4).to_bytes(4, "big") + b"tail"
    raw = rest + hashlib.sha256(rest).digest()
    assert Journal(b"\x11" * 32, 70_000, b"tail").encode() == raw
    assert Journal.parse(raw) == Journal(b"\x11" * 32, 70_000, b"tail")
    for other in (rest.replace(b"\x01", b"\x02", 1), rest.replace(b"KEEPTAIL", b"KEEPTAIM"), rest + b"!", rest[:-1]):
        assert Journal.parse(other + hashlib.sha256(other).digest()) is None
    assert Journal.parse(b"") is None


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_journal_with_a_flipped_bit_counts_for_nothing(tmp_path_factory, data):
    file, size, tail = LONG
    raw = bytearray(Journal(split_file(BytesReader(file)).header_hash, size, tail).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert Journal.parse(bytes(raw)) is None


class Failing(Recorder):
    """A disk that fails at some steps."""

    def __init__(self, failing, error=errno.ENOSPC):
        def before(step, name, run):
            if step in failing:
                raise OSError(error, os.strerror(error))
            run()

        super().__init__(before)


@pytest.mark.parametrize("step", range(1, 6))
def test_a_disk_that_fails_once_leaves_the_file_as_it_was(case, step):
    path, file, size, tail = case
    with pytest.raises(Unavailable, match="as it was") as caught:
        replace(path, size, tail, Failing({step}))
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == file == contents(path) and not journal_of(path).exists()


@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_disk_that_fails_and_goes_on_failing_keeps_the_journal(case, step):
    path, file, size, tail = case
    with pytest.raises(Unavailable, match="keep both"):
        replace(path, size, tail, Failing(set(range(step, 20))))
    assert contents(path) == file[:size] + tail
    assert finished(path) == file[:size] + tail


def test_a_reader_waits_for_a_writer_and_sees_one_state(case):
    path, file, size, tail = case
    seen = []

    def look(step, name, run):
        pid = os.fork()
        if pid == 0:
            os._exit(0 if contents(path) in (file, file[:size] + tail) else 1)
        run()
        seen.append(pid)

    replace(path, size, tail, Recorder(look))
    assert {os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in seen} == {0}


def test_a_reader_that_was_open_before_keeps_what_it_saw(case):
    path, file, size, tail = case
    with SealedReader(path) as reader:
        replace(path, size, tail, LocalDisk())
        assert read_bytes(reader, 0, reader.size) == file


def test_links_lead_to_the_one_journal(case, tmp_path):
    path, file, size, tail = case
    link = tmp_path / "elsewhere" / "link.keep"
    link.parent.mkdir()
    link.symlink_to(path)
    assert journal_of(link) == journal_of(path)
    replace(link, size, tail, LocalDisk())
    assert link.is_symlink() and path.read_bytes() == file[:size] + tail


def test_a_journal_of_another_file_of_this_name_is_dropped(case):
    path, file, size, tail = case
    journal_of(path).write_bytes(Journal(b"\1" * 32, size, tail).encode())
    assert contents(path) == file == finished(path)


def test_a_journal_that_would_cut_the_body_short_is_refused(case):
    """Its tail brings a footer of its own, so that header, footer and trailer agree, and the rest of the body would be lost."""
    path, file, size, tail = case
    end = 300 + len(footer := encode_footer(sealed_length(0), 324))
    forged = footer + b"KEEPRCPT" + struct.pack(">QI8s", end, 8, b"KEEPFIL\n")
    journal_of(path).write_bytes(Journal(split_file(BytesReader(file)).header_hash, 300, forged).encode())
    with pytest.raises(NotTrusted, match="more than the recipients"):
        replace(path, size, tail, LocalDisk())
    assert path.read_bytes() == file


@pytest.mark.parametrize("what", ["text", "folder", "link", "pipe", "large"])
def test_what_is_no_journal_is_left_alone_and_said(case, tmp_path, what):
    path, file, size, tail = case
    place = path.with_name(path.name + SUFFIX)
    if what == "text":
        place.write_text("my notes about rewrapping")
    elif what == "folder":
        place.mkdir()
    elif what == "link":
        (tmp_path / "x").write_bytes(Journal(split_file(BytesReader(file)).header_hash, size, tail).encode())
        place.symlink_to(tmp_path / "x")
    elif what == "pipe":
        os.mkfifo(place)
    else:
        place.write_bytes(b"KEEPTAIL" * 100_000)
    assert contents(path) == file
    with pytest.raises(Conflict, match="in the way"):
        replace(path, size, tail, LocalDisk())
    assert path.read_bytes() == file and os.path.lexists(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_a_stranger_s_journal_in_a_shared_folder_is_no_journal(case):
    path, file, size, tail = case
    os.chown(path, 1234, 1234)
    place = journal_of(path)
    place.write_bytes(Journal(split_file(BytesReader(file)).header_hash, size, tail).encode())
    os.chown(place, 4321, 4321)
    assert contents(path) == file
    with pytest.raises(Conflict, match="in the way"):
        replace(path, size, tail, LocalDisk())


def test_a_journal_whose_tail_is_no_tail_is_refused(case):
    path, file, size, tail = case
    journal_of(path).write_bytes(Journal(split_file(BytesReader(file)).header_hash, size, b"x" * 500).encode())
    with pytest.raises(NotTrusted):
        replace(path, size, tail, LocalDisk())
    assert path.read_bytes() == file


def test_two_holders_take_turns_and_readers_go_on(case, monkeypatch):
    path, file, size, tail = case
    monkeypatch.setattr("modelkeep.adapters.tails._LOCK_SECONDS", 0.05)
    with held(path):
        with pytest.raises(Conflict, match="another process"), held(path):
            pass
        assert contents(path) == file
    refused = []

    def look(step, name, run):
        with pytest.raises(Conflict, match="another process"):
            SealedReader(path)
        refused.append(name)
        run()

    replace(path, size, tail, Recorder(look))
    assert len(refused) == 6 and contents(path) == file[:size] + tail


def test_whoever_waited_gets_the_file_that_has_the_name_now(case, tmp_path):
    path, *_ = case
    other = tmp_path / "other"
    other.write_bytes(SHORT[0])
    got = []

    def wait():
        with held(path) as file:
            got.append(file.stat().st_ino)

    with held(path):
        thread = threading.Thread(target=wait)
        thread.start()
        thread.join(0.2)
        other.replace(path)
    thread.join()
    assert got == [path.stat().st_ino]


def test_a_file_that_is_not_there(tmp_path):
    for use in (SealedReader, lambda p: held(p).__enter__()):
        with pytest.raises(Missing):
            use(tmp_path / "none")


def test_the_journal_has_the_mode_of_the_file(case):
    path, _, size, tail = case
    path.chmod(0o640)
    modes = []

    def look(step, name, run):
        run()
        if name == "create":
            modes.append(journal_of(path).stat().st_mode & 0o777)

    replace(path, size, tail, Recorder(look))
    assert modes == [0o640] and path.stat().st_mode & 0o777 == 0o640


def test_it_still_opens(case):
    path, _, size, tail = case
    replace(path, size, tail, LocalDisk())
    if tail is not LONG[2]:  # the passphrase is a recipient
        assert unpack_bytes(path.read_bytes(), [WORD], purpose="file") == SOURCE
