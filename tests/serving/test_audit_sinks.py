"""An audit log with sinks: what is required holds back answers, what is not follows, and nothing is lost on the way (P1)."""

import contextlib
import shutil
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles
from sink_servers import MemorySink

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.room import FolderRoom
from modelkeep.adapters.sinks.disk import DiskSink
from modelkeep.crypto.notes import NoteSigner, open_checkpoint
from modelkeep.errors import NotTrusted, Unavailable
from modelkeep.serving import feeds
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog, Backing, read_bodies, recover_audit, verify_audit
from modelkeep.serving.feeds import Feed
from modelkeep.serving.journal import JournalWriter
from modelkeep.serving.recovery import restore_tiles
from modelkeep.serving.sinks import CURSOR, SinkLimits, Sinks, Stretch, read_cursor

ORIGIN = "keep.example/audit/gw-1"
SIGNER = NoteSigner(ORIGIN, b"\x05" * 32)
CLOCK = SystemClock()
QUICK = {"hang": 0.3, "slow": 0.15, "probe": 0.03}


def eventually(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.005)


class Patience(SystemClock):
    """Seconds pass only while they are ``passing``: who gets no turn on a loaded machine is not taken for one that hangs."""

    def __init__(self):
        self._at, self._since = 0.0, None

    def monotonic(self):
        since = self._since
        return self._at if since is None else self._at + time.monotonic() - since

    @contextlib.contextmanager
    def passing(self):
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._at, self._since = self.monotonic(), None


class Keep:
    """One log with sinks, its files and cursors in memory. Its clock stands still once it has begun."""

    def __init__(self, *sinks, require=0, files=None, waived=str, hang=0.4, old=(), room=None, **limits):
        self.clock = Patience()
        self.files = files or MemoryLogFiles()
        self.cursors = {sink.name: MemoryLogFiles() for sink in sinks}
        made = Sinks(
            [(sink, old) for sink in sinks],
            self.clock,
            SinkLimits(require, **{**QUICK, **limits}),
            cursor=lambda sink: (self.cursors[sink.name], ExitStack()),
            waived=waived,
        )
        begins = self.clock.passing() if any(sink.down for sink in sinks if isinstance(sink, MemorySink)) else ExitStack()
        with begins:
            self.log = AuditLog(
                self.files,
                SIGNER,
                ORIGIN,
                self.clock,
                limits=AuditLimits(hang=hang, publish=0.02),
                backing=Backing(made, room),
            )

    def stop(self):
        """Stop the log, which gives its sinks time for what they have not taken; the final checkpoint."""
        self.log._limits = replace(self.log._limits, hang=60.0)
        return self.log.stop()

    def ask(self, request, body=b"body", seconds=60.0):
        """The index of a record, or why it may not be answered."""
        told, event = [], threading.Event()
        try:
            self.log.submit(
                AuditEntry("predict", "s", "m@1", str(request), "ok"), body, lambda r: (told.append(r), event.set())
            )
        except Unavailable as refused:
            return refused
        assert event.wait(seconds)
        return told[0]

    def ready(self):
        eventually(lambda: not self.log.refusal)

    def entries(self):
        return [data for frame in [list(self.records())] for data in frame]

    def records(self):
        for index, entry, _ in read_bodies(self.files, SIGNER.vkey, ORIGIN):
            yield index, entry


def held(sink):
    return sorted(index for origin, index in sink.records if origin == ORIGIN)


def test_a_required_sink_has_every_record_that_was_answered():
    one, two = MemorySink("one:"), MemorySink("two:")
    keep = Keep(one, two, require=2)
    keep.ready()
    for request in range(20):
        index = keep.ask(request)
        assert isinstance(index, int) and (ORIGIN, index) in one.records and (ORIGIN, index) in two.records
    note = keep.stop()
    report = verify_audit(keep.files, SIGNER.vkey, ORIGIN)
    assert held(one) == held(two) == list(range(report.size)) and one.notes[-1] == two.notes[-1] == note
    assert read_cursor(keep.cursors["one:"]) == report.size


def test_a_sink_that_came_back_in_its_pause_has_everything_when_the_process_ends(monkeypatch):
    monkeypatch.setattr(feeds, "_LONGEST_PAUSE", 600.0)
    sink = MemorySink()
    keep = Keep(sink)
    keep.ready()
    sink.down = "the line is cut"
    keep.log._sinks._feeds[0]._pauses = 14  # as if it had been down for long: it pauses for longer than a stop waits
    keep.ask("a")
    eventually(lambda: keep.log.sinks()[0].failed)
    sink.down = ""
    keep.stop()
    assert held(sink) == list(range(verify_audit(keep.files, SIGNER.vkey, ORIGIN).size))


@pytest.mark.parametrize("trouble", ["down", "hung"])
def test_a_required_sink_in_trouble_refuses_answers_also_while_idle(trouble):
    sink = MemorySink()
    keep = Keep(sink, require=1)
    keep.ready()
    assert keep.ask("a") == 1
    if trouble == "down":
        sink.down = "the line is cut"
    else:
        sink.open.clear()
    with keep.clock.passing():
        eventually(lambda: keep.log.refusal)  # nobody asked
        refused = keep.ask("b")
        assert isinstance(
            refused, Unavailable
        ) and f"1 of 1 audit sinks must accept every record, and too few do (memory: {trouble})" in str(refused)
        assert [state.state for state in keep.log.sinks()] == [trouble]
    sink.down = ""
    sink.open.set()
    keep.ready()
    assert isinstance(keep.ask("c"), int)
    keep.stop()
    assert held(sink) == list(range(verify_audit(keep.files, SIGNER.vkey, ORIGIN).size))


def test_a_record_that_the_sink_did_not_take_is_recorded_refused_and_sent_later():
    sink = MemorySink()
    keep = Keep(sink, require=1)
    keep.ready()
    sink.open.clear()
    with keep.clock.passing():
        assert isinstance(keep.ask("a"), Unavailable)
    assert sink.records.keys() == {(ORIGIN, 0)}
    sink.open.set()
    keep.ready()
    assert keep.ask("b") > 1
    keep.stop()
    requests = [entry.request for _, entry in keep.records()]
    assert requests[1:3] == ["a", "b"] and held(sink) == list(range(len(requests)))


def test_one_of_two_is_enough_where_one_is_required():
    good, bad = MemorySink("good:"), MemorySink("bad:")
    bad.down = "it never worked"
    keep = Keep(good, bad, require=1)
    keep.ready()
    for request in range(5):
        assert isinstance(keep.ask(request), int)
    assert {state.name: state.state for state in keep.log.sinks()} == {"good:": "ok", "bad:": "down"}
    good.down = "now this one, too"
    eventually(lambda: keep.log.refusal)
    bad.down = ""
    keep.ready()
    assert isinstance(keep.ask("last"), int)
    keep.log.stop()
    assert held(bad) == list(range(len(held(bad)))), "it caught up from the journal, without a gap"


def test_a_sink_that_is_not_required_follows_and_holds_nothing_up():
    sink = MemorySink()
    sink.open.clear()
    keep = Keep(sink)
    assert not keep.log.refusal
    for request in range(50):
        assert isinstance(keep.ask(request), int)
    with keep.clock.passing():
        eventually(lambda: keep.log.sinks()[0].state == "hung")
        assert not keep.log.refusal and keep.log.sinks()[0].lag > 0
    sink.open.set()
    eventually(lambda: len(held(sink)) == 51)
    keep.stop()
    assert held(sink) == list(range(52))


def test_more_than_fits_into_memory_is_read_from_the_journal():
    sink = MemorySink()
    keep = Keep(sink, queue=2_000)
    eventually(lambda: held(sink) == [0])
    sink.open.clear()
    for request in range(200):
        assert isinstance(keep.ask(request, body=b"x" * 300), int)
    sink.open.set()
    eventually(lambda: len(held(sink)) == 201)
    assert isinstance(keep.ask("after"), int)
    keep.stop()
    assert [data for _, data in sorted(sink.records.items())] == all_entries(keep.files)


def all_entries(files):
    from modelkeep.ledger.log import LogView

    view = LogView(files, SIGNER.vkey, ORIGIN)
    return list(view.entries(0, view.refresh().size))


def test_what_a_dead_process_did_not_deliver_is_delivered_by_the_next(tmp_path):
    """kill -9 between journal and sink: the journal has records that the sink never saw."""
    files, sink = MemoryLogFiles(), MemorySink()
    keep = Keep(sink, files=files)
    keep.ask("a")
    eventually(lambda: len(held(sink)) == 2)
    sink.open.clear()
    for request in "bcd":
        keep.ask(request)
    left, cursor = files.copy(), keep.cursors[sink.name].copy()  # as another process would find them
    size = recover_audit(left, SIGNER, ORIGIN, CLOCK).size
    accepted = read_cursor(cursor)
    assert accepted <= 2 and size == 6
    fresh = MemorySink()
    fresh.records = dict(sink.records)
    stretch = Stretch(ORIGIN, left, cursor, accepted, size, size)
    other = NoteSigner("keep.example/audit/gw-2", b"\x05" * 32)
    sinks = Sinks([(fresh, [stretch])], CLOCK, SinkLimits(0, **QUICK), cursor=lambda _sink: (MemoryLogFiles(), ExitStack()))
    log = AuditLog(MemoryLogFiles(), other, other.name, CLOCK, backing=Backing(sinks))
    eventually(lambda: read_cursor(cursor) == size)
    assert held(fresh) == list(range(size)) and left.read("checkpoint") in fresh.notes
    log.stop()
    sink.open.set()
    keep.log.stop()


def test_a_cursor_that_is_damaged_is_an_error():
    files = MemoryLogFiles()
    assert read_cursor(files) == 0
    files.write(CURSOR, b"-1")
    with pytest.raises(NotTrusted):
        read_cursor(files)


# -- P1 --


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    faults=st.lists(st.tuples(st.integers(0, 1), st.sampled_from(["down", "hung", "up", "ask"])), min_size=4, max_size=14),
    require=st.integers(1, 2),
)
def test_what_was_answered_is_in_the_journal_and_in_as_many_sinks_as_are_required(faults, require):
    sinks = [MemorySink("one:"), MemorySink("two:")]
    keep = Keep(*sinks, require=require, hang=0.1, slow=0.03, probe=0.01)
    told = {}
    with keep.clock.passing():
        for number, (which, what) in enumerate(faults):
            if what == "down":
                sinks[which].down = "an injected failure"
            elif what == "hung":
                sinks[which].open.clear()
            elif what == "up":
                sinks[which].down = ""
                sinks[which].open.set()
            told[number] = keep.ask(number)
            if isinstance(told[number], int):
                there = sum((ORIGIN, told[number]) in sink.records for sink in sinks)
                assert there >= require, (number, faults)
    for sink in sinks:
        sink.down = ""
        sink.open.set()
    keep.ready()
    assert isinstance(keep.ask("last"), int), "it comes back"
    keep.log.stop()
    recorded = {entry.request: index for index, entry in keep.records()}
    assert {str(number): index for number, index in told.items() if isinstance(index, int)}.items() <= recorded.items()
    for sink in sinks:
        assert held(sink) in ([], list(range(len(recorded)))) or held(sink) == list(range(len(held(sink))))


# -- break-glass --


def test_break_glass_answers_without_the_sink_says_so_in_the_log_and_ends():
    sink, reason = MemorySink(), [""]
    sink.down = "the second disk is being replaced"
    keep = Keep(sink, require=1, waived=lambda: reason[0])
    assert isinstance(keep.ask("refused"), Unavailable)
    reason[0] = "until noon: the disk is being replaced"
    assert not keep.log.refusal
    assert isinstance(keep.ask("a"), int) and keep.log.waiving == reason[0]
    assert isinstance(keep.ask("b"), int)
    reason[0] = ""  # it expired
    assert keep.log.refusal
    assert isinstance(keep.ask("c"), Unavailable)
    sink.down = ""
    keep.ready()
    assert isinstance(keep.ask("d"), int) and not keep.log.waiving
    keep.stop()
    said = [(entry.kind, entry.request or entry.outcome) for _, entry in keep.records()]
    assert said == [
        ("open", ""),
        ("break-glass", "begins: until noon: the disk is being replaced"),
        ("predict", "a"),
        ("predict", "b"),
        ("break-glass", "ends"),
        ("predict", "d"),
        ("close", "stopped"),
    ]
    assert held(sink) == list(range(7)), "it got everything afterwards"


def test_break_glass_never_waives_the_journal():
    sink = MemorySink()
    files = MemoryLogFiles()
    keep = Keep(sink, require=1, waived=lambda: "until noon: why", files=files)
    keep.ready()
    files.fail_from = files.steps
    assert isinstance(keep.ask("a"), Unavailable)
    assert "failed" in keep.log.refusal
    with pytest.raises(Unavailable):
        keep.log.stop()


# -- a mirror, and the disk under the journal --


def test_a_mirror_takes_the_place_of_a_lost_log(tmp_path):
    files = FolderLogFiles(tmp_path / "log")
    (tmp_path / "second").mkdir()
    keep = Keep(DiskSink(tmp_path / "second", beside=None, reserve=4096), require=1, files=files)
    keep.ready()
    for request in range(300):
        assert isinstance(keep.ask(request, body=b"body of %d" % request), int)
    keep.log.publish()
    keep.ask("beyond the checkpoint")
    copied = tmp_path / "copied"
    eventually((tmp_path / "second" / "gw-1" / "checkpoint").exists)
    passing = shutil.ignore_patterns(".new-*")  # a checkpoint's temporary name may be renamed while we copy
    shutil.copytree(tmp_path / "second" / "gw-1", copied, ignore=passing)  # as if process and first disk were gone now
    keep.log.stop()
    lost = FolderLogFiles(copied)
    restore_tiles(lost, SIGNER.vkey, ORIGIN)
    report = recover_audit(lost, SIGNER, ORIGIN, CLOCK)
    assert report.closed and report.bodies == 301 and report.absent == 0
    assert all_entries(lost)[:302] == all_entries(files)[:302]


def test_a_mirror_that_was_altered_does_not_become_a_log(tmp_path):
    files = FolderLogFiles(tmp_path / "log")
    (tmp_path / "second").mkdir()
    keep = Keep(DiskSink(tmp_path / "second", beside=None, reserve=4096), require=1, files=files)
    keep.ready()
    keep.ask("a")
    keep.log.stop()
    path = tmp_path / "second" / "gw-1" / "journal" / "000000"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"request":"a"', b'"request":"b"'))
    lost = FolderLogFiles(tmp_path / "second" / "gw-1")
    with pytest.raises(NotTrusted):
        restore_tiles(lost, SIGNER.vkey, ORIGIN)
    assert not lost.paths("tile/")


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_an_idle_log_notices_that_its_file_is_gone(tmp_path, how):
    keep = Keep(files=FolderLogFiles(tmp_path))
    path = tmp_path / "journal" / "000000"
    data = path.read_bytes()
    path.unlink()
    if how == "replaced":
        path.write_bytes(data)
    eventually(lambda: how in keep.log.failure)
    with pytest.raises(Unavailable):
        keep.log.stop()


class Tank:
    """``Room`` that is full when it is told to be."""

    def __init__(self):
        self.full, self.reserved = "", False
        self.open = threading.Event()
        self.open.set()

    def prepare(self):
        self.check()
        self.reserved = True

    def check(self):
        self.open.wait(60)
        if self.full:
            raise Unavailable(self.full)

    def release(self):
        self.reserved = False


def test_a_disk_that_fills_up_refuses_before_it_is_full_and_comes_back():
    tank = Tank()
    keep = Keep(room=tank)
    assert isinstance(keep.ask("a"), int) and tank.reserved
    tank.full = "the disk is full: make room"
    eventually(lambda: keep.log.refusal == tank.full)
    assert str(keep.ask("b")) == tank.full
    tank.full = ""
    keep.ready()
    assert isinstance(keep.ask("c"), int)
    tank.full = "full again"
    keep.log.stop()  # the reserve is for this
    assert not tank.reserved and verify_audit(keep.files, SIGNER.vkey, ORIGIN).closed


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB, as root may mount it."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_full_disk_takes_no_log_down(small_disk):
    keep = Keep(files=FolderLogFiles(small_disk / "log"), room=FolderRoom(small_disk / "log", 131_072))
    assert keep.ask("a") == 1
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
        while True:
            stream.write(bytes(4096))
    eventually(lambda: "is full" in keep.log.refusal)
    assert isinstance(keep.ask("b"), Unavailable)
    assert open_checkpoint(keep.log.publish(), SIGNER.vkey, ORIGIN).size == 2, "what is durable is published all the same"
    ballast.unlink()
    keep.ready()
    assert isinstance(keep.ask("c"), int) and (small_disk / "log" / ".reserve").exists()
    keep.log.stop()
    assert verify_audit(keep.files, SIGNER.vkey, ORIGIN).closed and not (small_disk / "log" / ".reserve").exists()


def test_a_disk_that_hangs_under_an_idle_log_is_noticed():
    tank = Tank()
    keep = Keep(room=tank)
    tank.open.clear()
    with keep.clock.passing():
        eventually(lambda: "does not answer" in keep.log.refusal)
        assert isinstance(keep.ask("a"), Unavailable)
    tank.open.set()
    keep.ready()
    assert isinstance(keep.ask("b"), int)
    keep.log.stop()


def test_a_log_does_not_begin_on_a_full_disk(tmp_path):
    room = FolderRoom(tmp_path, 1 << 62)
    with pytest.raises(Unavailable, match="full"):
        Keep(files=FolderLogFiles(tmp_path / "log"), room=room)
    assert not list(tmp_path.glob(".reserve"))
    with contextlib.suppress(Unavailable):
        room.release()


class Watched(MemoryLogFiles):
    """Files that count how often a segment of the journal is read."""

    def __init__(self):
        super().__init__()
        self.reads = 0

    def read(self, path):
        self.reads += path.startswith("journal/")
        return super().read(path)


def test_catching_up_reads_each_segment_once_however_long_the_journal_is(monkeypatch):
    monkeypatch.setattr("modelkeep.serving.journal.SEGMENT_SIZE", 20_000)
    monkeypatch.setattr("modelkeep.serving.feeds.MERGED_BYTES", 3_000)
    files, sink = Watched(), MemorySink()
    writer = JournalWriter(files, b"k" * 32, ORIGIN)
    writer.begin()
    for number in range(800):
        writer.commit([(b'{"t":%d}' % number, b"x" * 500)])
    segments = len(files.paths("journal/"))
    stretch = Stretch(ORIGIN, files, MemoryLogFiles(), 0, writer.index, writer.index)
    feed = Feed(sink, CLOCK, SinkLimits(), threading.Condition(), [])
    feed.begin(stretch)
    tries = 0
    while stretch.accepted < stretch.goal:
        sink.down = "" if tries % 3 else "now and then"  # what was not accepted is not read again
        tries += 1
        with contextlib.suppress(Unavailable):
            feed._once()
    assert segments > 20 and tries > 150
    assert files.reads < segments + 10
    assert [sink.records[ORIGIN, number] for number in range(800)] == [b'{"t":%d}' % number for number in range(800)]


def test_a_mirror_is_continued_from_its_last_segment_without_reading_those_before(monkeypatch, tmp_path):
    monkeypatch.setattr("modelkeep.serving.journal.SEGMENT_SIZE", 20_000)
    files, sink = Watched(), DiskSink(tmp_path, beside=None, reserve=4096)
    writer = JournalWriter(files, b"k" * 32, ORIGIN)
    writer.begin()
    for number in range(400):
        writer.commit([(b'{"t":%d}' % number, b"x" * 500)])
    stretch = Stretch(ORIGIN, files, MemoryLogFiles(), 0, writer.index, writer.index)
    feed = Feed(sink, CLOCK, SinkLimits(), threading.Condition(), [])
    feed.begin(stretch)
    while stretch.accepted < stretch.goal:
        feed._once()
    for number in range(8):
        writer.commit([(b'{"t":%d}' % number, b"y" * 500)])
    stretch.goal, feed._ready_for, files.reads = writer.index, "", 0
    while stretch.accepted < stretch.goal:
        feed._once()
    assert files.reads < 10
    folder = FolderLogFiles(tmp_path / ORIGIN.rpartition("/")[2])
    assert all(folder.read(path) == MemoryLogFiles.read(files, path) for path in files.paths("journal/"))
