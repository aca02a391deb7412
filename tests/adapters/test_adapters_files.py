"""New files that appear whole or not at all, also where the file system lacks unnamed files or links; files to read."""

import errno
import os

import pytest

from modelkeep.adapters.files import NewFile, SourceFile
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted


@pytest.fixture(params=["unnamed", "stand-in", "no links"])
def system(request, monkeypatch):
    """The operating system as it is, without O_TMPFILE, and without hard links too."""
    real_open = os.open

    def open_(path, flags, *more, **other):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, "not supported")
        return real_open(path, flags, *more, **other)

    def link(*places, **other):
        raise OSError(errno.EPERM, "not permitted")

    if request.param != "unnamed":
        monkeypatch.setattr(os, "open", open_)
    if request.param == "no links":
        monkeypatch.setattr(os, "link", link)
    return request.param


def test_it_appears_when_it_is_published_and_not_before(system, tmp_path):
    with NewFile(tmp_path / "x") as new:
        new.write([b"abc", memoryview(b"def")])
        new.write_at(0, memoryview(b"A"))
        assert not (tmp_path / "x").exists()
        with new.reader() as back:
            assert back.size == 6
        new.publish()
    assert (tmp_path / "x").read_bytes() == b"Abcdef" and (tmp_path / "x").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_is_not_published_is_gone(system, tmp_path):
    with pytest.raises(RuntimeError), NewFile(tmp_path / "x") as new:
        new.write([b"abc"])
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_it_replaces_only_when_told(system, tmp_path):
    (tmp_path / "x").write_text("mine")
    with NewFile(tmp_path / "x") as new, pytest.raises(Conflict, match="exists already"):
        new.publish()
    assert (tmp_path / "x").read_text() == "mine"
    with NewFile(tmp_path / "x") as new:
        new.write([b"new"])
        new.publish(replace=True)
    assert (tmp_path / "x").read_text() == "new" and [path.name for path in tmp_path.iterdir()] == ["x"]


def test_it_takes_the_mode_of_another(system, tmp_path):
    (tmp_path / "x").write_text("mine")
    (tmp_path / "x").chmod(0o640)
    with NewFile(tmp_path / "x", like=(tmp_path / "x").stat()) as new:
        new.publish(replace=True)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_folders_that_are_not_there(tmp_path):
    with pytest.raises(Missing, match="no folder"):
        NewFile(tmp_path / "none" / "x")


def test_only_regular_files_are_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path, words in ((tmp_path, "folder"), (tmp_path / "pipe", "pipe"), ("/dev/zero", "device")):
        with pytest.raises(Invalid, match=words):
            SourceFile(path)
    with pytest.raises(Missing):
        SourceFile(tmp_path / "none")


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    (tmp_path / "x").write_bytes(b"0123456789")
    with SourceFile(tmp_path / "x") as file:
        file.check_unchanged()
        (tmp_path / "x").write_bytes(b"01234")
        with pytest.raises(NotTrusted, match="truncated"):
            file.read_into(0, memoryview(bytearray(10)))
        with pytest.raises(Conflict, match="changed"):
            file.check_unchanged()
