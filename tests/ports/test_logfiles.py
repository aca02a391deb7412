"""The conformance suite of the ``LogFiles`` and ``Journal`` ports, and what only the folder on a disk can get wrong."""

import errno
import os
import resource
import stat
import subprocess
import sys
import threading

import pytest
from memorylogfiles import MemoryLogFiles

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.errors import Conflict, Invalid, Missing, Unavailable


@pytest.fixture(params=["folder", "memory"])
def files(request, tmp_path):
    return FolderLogFiles(tmp_path / "log") if request.param == "folder" else MemoryLogFiles()


@pytest.fixture
def folder(tmp_path):
    return FolderLogFiles(tmp_path / "log")


def test_what_is_written_is_read(files):
    files.write("tile/0/x001/234.p/17", b"one")
    files.write("tile/0/x001/234.p/17", b"two")
    assert files.read("tile/0/x001/234.p/17") == b"two"


def test_many_files_are_written_at_once(files):
    files.write("tile/0/000", b"old")
    many = {f"tile/{level}/{number:03d}": b"%d %d" % (level, number) for level in range(3) for number in range(50)}
    files.write_all(many)
    assert {path: files.read(path) for path in files.paths()} == many
    files.write_all({})


def test_reading_what_is_not_there_is_missing(files):
    files.write("tile/0/000", b"x")
    for path in ("checkpoint", "tile/0/001", "tile/0", "tile/0/000/1"):
        with pytest.raises(Missing):
            files.read(path)


def test_paths_are_sorted_and_below_the_prefix(files):
    for path in ("checkpoint", "tile/0/000", "tile/0/000.p/7", "tile/0/001.p/3", "tile/entries/000"):
        files.write(path, b"")
    assert files.paths() == ["checkpoint", "tile/0/000", "tile/0/000.p/7", "tile/0/001.p/3", "tile/entries/000"]
    assert files.paths("tile/0/000.p/") == ["tile/0/000.p/7"]
    assert files.paths("tile/0/00") == ["tile/0/000", "tile/0/000.p/7", "tile/0/001.p/3"]
    assert files.paths("checkpoint") == ["checkpoint"]
    assert files.paths("nothing/") == []


def test_an_empty_folder_has_no_paths(files):
    assert files.paths() == []
    assert files.paths("tile/") == []


def test_delete_is_silent_about_what_is_gone(files):
    files.write("a", b"x")
    files.delete("a")
    files.delete("a")
    files.delete("b/c")
    assert files.paths() == []


def test_a_journal_appends_and_goes_on_after_reopening(files):
    journal = files.journal("journal/000000")
    journal.append(b"one")
    journal.sync()
    assert journal.size() == 3
    journal.close()
    journal.close()
    again = files.journal("journal/000000")
    again.append(b"two")
    again.sync()
    assert again.size() == 6
    again.close()
    assert files.read("journal/000000") == b"onetwo"


def test_a_closed_journal_takes_nothing(files):
    journal = files.journal("j")
    journal.close()
    for call in (lambda: journal.append(b"x"), journal.sync, journal.size):
        with pytest.raises(Unavailable):
            call()


def test_a_journal_whose_file_was_deleted_is_poisoned(files):
    journal = files.journal("j")
    journal.append(b"one")
    journal.sync()
    files.delete("j")
    journal.append(b"two")
    with pytest.raises(Unavailable, match="deleted"):
        journal.sync()
    for call in (lambda: journal.append(b"x"), journal.sync):
        with pytest.raises(Unavailable):
            call()
    journal.close()


def test_a_journal_whose_file_was_replaced_is_poisoned(files):
    journal = files.journal("j")
    journal.append(b"one")
    files.write("j", b"one")
    with pytest.raises(Unavailable, match="replaced"):
        journal.sync()
    journal.close()


def test_a_journal_that_is_idle_sees_that_its_file_is_gone(files):
    journal = files.journal("j")
    journal.append(b"one")
    journal.sync()
    journal.check()
    files.delete("j")
    with pytest.raises(Unavailable, match="deleted"):
        journal.check()
    with pytest.raises(Unavailable):
        journal.append(b"two")
    journal.close()


def test_truncate_cuts(files):
    files.write("j", b"0123456789")
    files.truncate("j", 4)
    assert files.read("j") == b"0123"
    with pytest.raises(Missing):
        files.truncate("k", 0)


def test_the_lock_excludes_and_is_released(files):
    with files.lock(wait=False), pytest.raises(Conflict), files.lock(wait=False):
        pass
    with files.lock(wait=False):
        pass


def test_the_lock_is_released_by_an_error(files):
    with pytest.raises(ZeroDivisionError), files.lock(wait=False):
        raise ZeroDivisionError
    with files.lock(wait=True):
        pass


def test_a_waiting_lock_gets_its_turn(files):
    order = []

    def second():
        with files.lock(wait=True):
            order.append("second")

    with files.lock(wait=True):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join(60)
    assert order == ["first", "second"]


# what only the folder can get wrong


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a//b", "", ".", "a/../b", ".lock", "tile/.new-000", "a\0b", "a/", "ü"]
)
def test_no_path_leaves_the_folder(folder, path):
    folder.write("a/b", b"x")
    for call in (folder.read, folder.delete, folder.journal, lambda p: folder.write(p, b""), lambda p: folder.truncate(p, 0)):
        with pytest.raises(Invalid):
            call(path)


def test_folders_and_files_are_private(folder, tmp_path):
    before = os.umask(0)
    try:
        folder.write("tile/0/000", b"x")
        folder.journal("journal/000000").close()
        with folder.lock(wait=False):
            pass
    finally:
        os.umask(before)
    for path in (tmp_path / "log").rglob("*"):
        assert stat.S_IMODE(path.lstat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_what_is_half_written_is_never_listed_or_left_behind(folder, tmp_path):
    folder.write("checkpoint", b"old")
    with FileSizeLimit(1 << 20), pytest.raises(Unavailable, match="cannot write checkpoint"):
        folder.write("checkpoint", b"x" * (2 << 20))
    assert folder.read("checkpoint") == b"old"
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["checkpoint"]
    (tmp_path / "log" / ".new-checkpoint").write_bytes(b"half")  # what kill -9 leaves
    assert folder.paths() == ["checkpoint"]
    folder.write("checkpoint", b"new")
    assert [path.name for path in (tmp_path / "log").iterdir()] == ["checkpoint"]


def test_of_many_files_that_cannot_be_written_none_is_left_half(folder, tmp_path):
    folder.write("tile/0/000", b"old")
    with FileSizeLimit(1 << 20), pytest.raises(Unavailable, match="cannot write tile/0/000"):
        folder.write_all({"tile/0/000": b"new", "tile/0/001": b"x" * (2 << 20), "tile/0/002": b"y"})
    assert folder.read("tile/0/000") == b"old"
    assert [path.name for path in (tmp_path / "log" / "tile" / "0").iterdir()] == ["000"]


def test_a_short_write_poisons_the_journal(folder):
    journal = folder.journal("j")
    journal.append(b"x" * 1000)
    journal.sync()
    with FileSizeLimit(1 << 20), pytest.raises(Unavailable):
        journal.append(b"y" * (2 << 20))
    with pytest.raises(Unavailable, match="takes nothing more"):
        journal.append(b"z")
    with pytest.raises(Unavailable, match="takes nothing more"):
        journal.sync()
    journal.close()


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["fdatasync", "write"])
def test_a_failed_call_poisons_the_journal_and_is_not_tried_again(folder, monkeypatch, call, error):
    """After a failed fsync the kernel may call pages clean that never reached the disk: asking again would answer yes."""
    asked = []

    def failing(*_):
        asked.append(call)
        raise OSError(error, os.strerror(error))

    journal = folder.journal("j")
    journal.append(b"one")
    journal.sync()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(Unavailable, match=os.strerror(error)):
            journal.append(b"two")
            journal.sync()
    for again in (lambda: journal.append(b"three"), journal.sync, journal.sync):
        with pytest.raises(Unavailable, match="takes nothing more"):
            again()
    assert asked == [call]
    journal.close()


def test_bytes_written_by_a_stranger_poison_the_journal(folder, tmp_path):
    journal = folder.journal("j")
    journal.append(b"mine")
    with (tmp_path / "log" / "j").open("ab") as file:
        file.write(b"not mine")
    with pytest.raises(Unavailable, match="12 bytes where 4 were written"):
        journal.sync()
    journal.close()


def test_a_symbolic_link_is_not_a_journal(folder, tmp_path):
    folder.write("other", b"")
    (tmp_path / "log" / "j").symlink_to(tmp_path / "log" / "other")
    with pytest.raises(Unavailable):
        folder.journal("j")


def test_a_pipe_or_a_device_is_no_file_of_a_log(folder, tmp_path):
    root = tmp_path / "elsewhere"
    (root / "tile").mkdir(parents=True)
    os.mkfifo(root / "checkpoint")
    (root / "tile" / "000").symlink_to("/dev/zero")
    for path in ("checkpoint", "tile/000"):
        with pytest.raises(Unavailable, match="no regular file"):
            FolderLogFiles(root).read(path)
    with pytest.raises(Missing):
        FolderLogFiles(root).read("tile")


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "log").write_bytes(b"a file stands here")
    folder = FolderLogFiles(tmp_path / "log")
    with pytest.raises(Unavailable):
        folder.write("a", b"")
    with pytest.raises(Unavailable):
        folder.journal("a")
    with pytest.raises(Unavailable), folder.lock(wait=False):
        pass
    assert folder.paths() == []


def test_the_lock_holds_against_another_process_and_ends_with_it(folder, tmp_path):
    code = (
        "import sys; from pathlib import Path; from modelkeep.adapters.logfile import FolderLogFiles\n"
        "with FolderLogFiles(Path(sys.argv[1])).lock(wait=False):\n"
        "    print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(Conflict), folder.lock(wait=False):
            pass
        other.kill()
    with folder.lock(wait=False):
        pass


class FileSizeLimit:
    """A disk that is full at ``size`` bytes a file."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
