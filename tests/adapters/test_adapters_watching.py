"""What is opened while a command runs: by any process, under any name; and every way in which that could go unseen."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from modelkeep.adapters.watching import Watch, walk
from modelkeep.errors import Conflict


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "deep" / "er").mkdir(parents=True)
    for name in ("a.csv", "b.csv", "deep/c.csv", "deep/er/d.csv"):
        (folder / name).write_text(name)
    return folder


def seen(folder, act):
    with Watch([folder]) as watch:
        watch.start()
        act()
        return watch.finish()


def names(folder, paths):
    return {path.relative_to(folder).as_posix() for path in paths}


def test_what_a_grandchild_opens_is_seen_whatever_it_is_written_in(data):
    found = seen(data, lambda: subprocess.run(["sh", "-c", "sh -c 'cat a.csv deep/er/d.csv'"], cwd=data, check=True))
    assert names(data, found.opened) == {"a.csv", "deep/er/d.csv"}
    assert (found.written, found.new) == (frozenset(), frozenset())


def test_what_happened_before_the_thread_began_is_seen(data):
    with Watch([data]) as watch:
        (data / "a.csv").read_bytes()
        watch.start()
        assert names(data, watch.finish().opened) == {"a.csv"}


def test_looking_is_not_opening(data):
    found = seen(data, lambda: [list(data.rglob("*")), (data / "a.csv").stat()])
    assert found.opened == frozenset()


def test_a_hard_link_from_outside_is_seen(data, tmp_path):
    (tmp_path / "alias").hardlink_to(data / "a.csv")
    assert names(data, seen(data, (tmp_path / "alias").read_bytes).opened) == {"a.csv"}


def test_links_that_lead_out_are_seen(data, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "e.csv").write_text("e")
    (outside / "f.csv").write_text("f")
    (data / "file").symlink_to(outside / "e.csv")
    (data / "folder").symlink_to(outside)
    (data / "loop").symlink_to(data)
    (data / "nowhere").symlink_to(tmp_path / "nothing")
    assert names(data, seen(data, (data / "file").read_bytes).opened) == {"file", "folder/e.csv"}
    assert names(data, seen(data, (outside / "f.csv").read_bytes).opened) == {"folder/f.csv"}


def test_writing_moving_and_new_folders(data):
    def act():
        (data / "a.csv").write_text("other")
        (data / "b.csv").rename(data / "z.csv")
        (data / "new").mkdir()
        (data / "new" / "file").write_text("x")

    found = seen(data, act)
    assert names(data, found.written) >= {"a.csv", "b.csv"}
    assert names(data, found.new) == {"new", "z.csv"}


@pytest.mark.parametrize("act", ["moved", "removed", "replaced"])
def test_a_folder_that_goes_is_refused(data, act):
    def go():
        if act == "moved":
            (data / "deep").rename(data / "depth")
        else:
            subprocess.run(["rm", "-r", data / "deep"], check=True)
        if act == "replaced":
            (data / "deep").mkdir()

    with pytest.raises(Conflict, match="moved, removed or exchanged"):
        seen(data, go)


@pytest.mark.parametrize("back", [False, True])
def test_a_link_to_a_folder_that_is_exchanged_is_refused(data, tmp_path, back):
    """Also one that leads where it led again at the end."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.csv").write_text(name)
    (data / "link").symlink_to(tmp_path / "one")

    def act():
        for target in ("two", "one") if back else ("two",):
            (data / "fresh").symlink_to(tmp_path / target)
            (data / "fresh").rename(data / "link")
            (data / "link" / "x.csv").read_text()

    with pytest.raises(Conflict, match="moved, removed or exchanged"):
        seen(data, act)


def test_a_data_folder_that_is_a_link_elsewhere_afterwards_is_refused(data, tmp_path):
    (tmp_path / "current").symlink_to(data)
    (tmp_path / "next").mkdir()
    with Watch([tmp_path / "current"]) as watch:
        watch.start()
        (tmp_path / "current").unlink()
        (tmp_path / "current").symlink_to(tmp_path / "next")
        with pytest.raises(Conflict, match="moved, removed or exchanged"):
            watch.finish()


def test_lost_events_are_refused(data):
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    with Watch([data]) as watch:  # nobody reads: the queue fills up
        for _ in range(limit // 2 + 100):
            for name in ("a.csv", "b.csv"):
                os.close(os.open(data / name, os.O_RDONLY))
        with pytest.raises(Conflict, match="could not see every file"):
            watch.finish()


def test_no_more_watches(data, tmp_path):
    """A limit of this process alone: everybody else's watches stay as they are."""
    program = f"""
import os, resource
from pathlib import Path
from modelkeep.adapters.watching import Watch
from modelkeep.errors import Unavailable
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
resource.setrlimit(resource.RLIMIT_NOFILE, (taken[-1] + 1, {resource.getrlimit(resource.RLIMIT_NOFILE)[1]}))
try:
    Watch([Path({str(data)!r})])
except Unavailable as refused:
    print(refused)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert "cannot watch" in said
    assert "max_user_instances" in said


LEAK = """
import sys
from pathlib import Path
from modelkeep.adapters.watching import Watch
from modelkeep.errors import Unavailable
def count():
    return len(list(Path("/proc/self/fd").iterdir()))
before, data = count(), Path(sys.argv[1])
with Watch([data]) as watch:
    watch.start()
    watch.finish()
with Watch([data]) as watch:
    watch.start()  # and then the run fails
watch.close()
try:
    Watch([data / "nothing"])
except Unavailable:
    print(count() - before)
"""


def test_a_watch_leaves_nothing_open(data):
    """Also one of a folder that is not there. In a process of its own, where nobody else opens and closes anything."""
    done = subprocess.run([sys.executable, "-c", LEAK, data], capture_output=True, text=True, check=True)
    assert done.stdout == "0\n"


def test_walk_gives_every_file_and_whether_it_has_a_second_name(data, tmp_path):
    (tmp_path / "alias").hardlink_to(data / "a.csv")
    os.mkfifo(data / "pipe")
    assert {(path.name, second) for path, _, second in walk([data])} == {
        ("a.csv", True), ("b.csv", False), ("c.csv", False), ("d.csv", False),
    }  # fmt: skip
