"""The audit log while it runs: P1 (no answer without a record) and P5 (a backend that fails or hangs refuses)."""

import contextlib
import sys
import threading
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner, open_checkpoint
from modelkeep.errors import Conflict, Invalid, TooLarge, Unavailable
from modelkeep.ledger.tiles import TrustedTiles
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog, read_bodies, recover_audit, verify_audit

ORIGIN = "keep.example/audit/gw-1"
SIGNER = NoteSigner(ORIGIN, b"\x05" * 32)


class Clock(SystemClock):
    """The machine's clock until ``wall`` is set."""

    wall = 0

    def now_ns(self):
        return self.wall or super().now_ns()


class Answers:
    """Collects what ``done`` was told, by request."""

    def __init__(self):
        self.told = {}
        self.threads = set()

    def to(self, request):
        def done(result):
            assert request not in self.told
            self.told[request] = result
            self.threads.add(threading.current_thread().name)

        return done

    def wait(self, count, seconds=60.0):
        end = time.monotonic() + seconds
        while len(self.told) < count:
            assert time.monotonic() < end, f"{len(self.told)} of {count} answers after {seconds} s"
            time.sleep(0.001)


def start(files, clock=None, hang=30.0, **limits):
    return AuditLog(files, SIGNER, ORIGIN, clock or Clock(), limits=AuditLimits(hang=hang, **limits), opening="test")


def eventually(holds, seconds=60.0):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def entry(request):
    return AuditEntry("predict", "sub_1", "m@1", str(request), "ok")


def submit(log, answers, *requests, body=b"body"):
    for request in requests:
        log.submit(entry(request), body, answers.to(request))


def test_a_record_is_answered_with_its_index_and_read_back():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    submit(log, answers, "a", "b", "c")
    answers.wait(3)
    assert answers.told == {"a": 1, "b": 2, "c": 3}
    note = log.stop()
    found = [(index, item.kind, item.request, body) for index, item, body in read_bodies(files, SIGNER.vkey, ORIGIN)]
    assert found == [
        (0, "open", "", b""),
        (1, "predict", "a", b"body"),
        (2, "predict", "b", b"body"),
        (3, "predict", "c", b"body"),
        (4, "close", "", b""),
    ]
    report = verify_audit(files, SIGNER.vkey, ORIGIN)
    assert (report.size, report.closed, report.bodies, report.absent) == (5, True, 3, 0)
    assert open_checkpoint(note, SIGNER.vkey, ORIGIN).root == report.root
    assert log.stop() == note


def test_nothing_is_answered_before_its_sync_returned():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    files.hang.clear()
    submit(log, answers, "a")
    time.sleep(0.1)
    assert not answers.told
    files.hang.set()
    answers.wait(1)
    log.stop()


def test_what_arrives_during_a_sync_is_one_commit():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    files.hang.clear()
    submit(log, answers, "first")
    while not log._inflight:
        time.sleep(0.001)
    before = files.syncs
    submit(log, answers, *range(500))
    files.hang.set()
    answers.wait(501)
    assert files.syncs - before == 2
    assert [answers.told[number] for number in range(500)] == list(range(2, 502))
    log.stop()


def test_results_are_delivered_in_batches():
    files, batches = MemoryLogFiles(), []
    log = AuditLog(files, SIGNER, ORIGIN, Clock(), deliver=batches.append, limits=AuditLimits(hang=30.0))
    files.hang.clear()
    log.submit(entry("first"), b"", print)
    while not log._inflight:
        time.sleep(0.001)
    for number in range(50):
        log.submit(entry(number), b"", print)
    files.hang.set()
    log.stop()
    assert [len(batch) for batch in batches] == [1, 50]
    assert [result for _, result in batches[1]] == list(range(2, 52))


def test_many_threads_may_submit():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    threads = [
        threading.Thread(target=lambda base=base: submit(log, answers, *range(base, base + 200)))
        for base in range(0, 1600, 200)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.wait(1600)
    log.stop()
    assert sorted(answers.told.values()) == list(range(1, 1601))
    recorded = {item.request: index for index, item, _ in read_bodies(files, SIGNER.vkey, ORIGIN)}
    assert all(recorded[str(request)] == index for request, index in answers.told.items())


def test_a_checkpoint_follows_within_the_interval():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, publish=0.05)
    submit(log, answers, *range(300))
    answers.wait(300)
    eventually(lambda: open_checkpoint(log.note, SIGNER.vkey, ORIGIN).size == 301)
    assert files.read("checkpoint") == log.note
    assert verify_audit(files, SIGNER.vkey, ORIGIN).closed is False
    log.stop()


def test_publish_covers_everything_answered_so_far():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, publish=3600.0)
    for number in range(5):
        submit(log, answers, number)
        answers.wait(number + 1)
        checkpoint = open_checkpoint(log.publish(), SIGNER.vkey, ORIGIN)
        assert checkpoint.size == number + 2
        TrustedTiles(files, checkpoint).edge()
    log.stop()


def test_stop_commits_what_waits():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    submit(log, answers, *range(1000))
    log.stop()
    assert sorted(answers.told.values()) == list(range(1, 1001))
    with pytest.raises(Unavailable, match="is stopping"):
        submit(log, answers, "late")
    assert "late" not in answers.told


# one log, one process, one life


def test_two_gateways_cannot_hold_one_log(tmp_path):
    log = start(FolderLogFiles(tmp_path))
    with pytest.raises(Conflict, match="another process holds"):
        start(FolderLogFiles(tmp_path))
    with pytest.raises(Conflict, match="another process holds"):
        recover_audit(FolderLogFiles(tmp_path), SIGNER, ORIGIN, Clock())
    log.stop()


def test_a_log_begins_although_another_process_that_starts_looks_into_its_folder(tmp_path):
    with contextlib.ExitStack() as look:
        looked = threading.Timer(0.15, look.close)
        look.enter_context(FolderLogFiles(tmp_path).lock(wait=False))
        looked.start()
        start(FolderLogFiles(tmp_path)).stop()
    looked.join()


def test_a_log_is_never_continued(tmp_path):
    start(FolderLogFiles(tmp_path)).stop()
    with pytest.raises(Conflict, match="an audit log in this folder already"):
        start(FolderLogFiles(tmp_path))


def test_the_key_is_named_by_the_origin():
    with pytest.raises(Invalid):
        AuditLog(MemoryLogFiles(), SIGNER, "other", Clock())


def test_a_log_that_cannot_begin_lets_the_folder_go():
    files = MemoryLogFiles()
    for step in range(6):
        files.fail_from = step
        with pytest.raises(Unavailable):
            start(files)
        with files.lock(wait=False):
            pass
        files = MemoryLogFiles()


# bounds


def test_a_full_queue_refuses_at_once():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, records=10)
    files.hang.clear()
    submit(log, answers, "first")
    while not log._inflight:
        time.sleep(0.001)
    submit(log, answers, *range(10))
    with pytest.raises(Unavailable, match="does not keep up"):
        submit(log, answers, "one too many")
    files.hang.set()
    answers.wait(11)
    submit(log, answers, "later")
    answers.wait(12)
    assert "one too many" not in answers.told
    log.stop()


def test_bodies_in_the_queue_are_bounded_in_bytes():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, size=1000)
    files.hang.clear()
    submit(log, answers, "first")
    while not log._inflight:
        time.sleep(0.001)
    submit(log, answers, "big", body=b"x" * 1001)
    with pytest.raises(Unavailable):
        submit(log, answers, "more")
    files.hang.set()
    answers.wait(2)
    log.stop()


def test_an_entry_too_large_is_refused_alone():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files)
    files.hang.clear()
    submit(log, answers, "first", "second")
    log.submit(AuditEntry("predict", request="x" * 70_000), b"", answers.to("large"))
    submit(log, answers, "last")
    files.hang.set()
    answers.wait(4)
    assert isinstance(answers.told.pop("large"), TooLarge)
    assert answers.told == {"first": 1, "second": 2, "last": 3}
    log.stop()
    assert verify_audit(files, SIGNER.vkey, ORIGIN).size == 5


# faults


def recorded(files):
    """Requests in a log after its process died."""
    after = files.copy()
    recover_audit(after, SIGNER, ORIGIN, Clock())
    return {item.request: index for index, item, _ in read_bodies(after, SIGNER.vkey, ORIGIN)}


@pytest.mark.parametrize("ahead", range(8))
def test_a_disk_that_fails_poisons_the_log_and_loses_no_answer(ahead):
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, publish=0.01)
    refused = 0
    files.fail_from = files.steps + ahead
    for number in range(2000):
        try:
            submit(log, answers, number)
        except Unavailable as error:
            refused += 1
            assert "has failed and takes nothing more" in str(error)
            break
        time.sleep(0.001)
    assert refused, "a failed disk must be noticed"
    answers.wait(number)
    assert log.refusal
    files.fail_from = -1
    with pytest.raises(Unavailable, match="has failed"):
        submit(log, answers, "after the disk came back")
    with pytest.raises(Unavailable, match="has failed"):
        log.stop()
    found = recorded(files)
    for request, result in answers.told.items():
        assert isinstance(result, Unavailable) or found[str(request)] == result


def test_a_deleted_journal_is_noticed_before_the_next_answer(tmp_path):
    files, answers = FolderLogFiles(tmp_path), Answers()
    log = start(files)
    submit(log, answers, "a")
    answers.wait(1)
    (tmp_path / "journal" / "000000").unlink()
    submit(log, answers, "b")
    answers.wait(2)
    assert answers.told["a"] == 1
    assert isinstance(answers.told["b"], Unavailable)
    assert "its file was deleted" in str(answers.told["b"])
    with pytest.raises(Unavailable):
        log.stop()


def test_a_whole_folder_deleted_is_noticed(tmp_path):
    answers = Answers()
    log = start(FolderLogFiles(tmp_path / "log"))
    (tmp_path / "log").rename(tmp_path / "moved")
    submit(log, answers, "a")
    answers.wait(1)
    assert isinstance(answers.told["a"], Unavailable)
    with pytest.raises(Unavailable):
        log.stop()


def test_a_hung_sync_refuses_after_the_limit_and_serves_again_when_it_ends():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, hang=0.5)
    files.hang.clear()
    begun = time.monotonic()
    submit(log, answers, "stuck")
    answers.wait(1)
    assert time.monotonic() - begun >= 0.5
    assert isinstance(answers.told["stuck"], Unavailable)
    for number in range(3):
        with pytest.raises(Unavailable, match="does not keep up"):
            submit(log, answers, number)
    assert log.refusal
    files.hang.set()
    eventually(lambda: not log.refusal)
    submit(log, answers, "again")
    answers.wait(2)
    assert answers.told["again"] == 2, "the record that was given up on is in the log all the same, as entry 1"
    log.stop()
    assert [item.request for _, item, _ in read_bodies(files, SIGNER.vkey, ORIGIN)] == ["", "stuck", "again", ""]


def test_submit_refuses_by_itself_when_the_oldest_record_is_too_old():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, hang=0.2)
    log._give_up_on_stuck = lambda: None  # as if the watchdog were starved
    files.hang.clear()
    submit(log, answers, "stuck")
    time.sleep(0.3)
    with pytest.raises(Unavailable, match="does not keep up"):
        submit(log, answers, "next")
    files.hang.set()
    answers.wait(1)
    log.stop()


def test_a_log_that_cannot_publish_takes_no_more():
    files, answers = MemoryLogFiles(), Answers()
    log = start(files, publish=0.01, behind=0.5, hang=1.0)
    submit(log, answers, "durable, and soon under a checkpoint")
    answers.wait(1)
    log.publish()
    log._publish = lambda: None  # as if the publisher hung
    submit(log, answers, "durable, and under no checkpoint")
    answers.wait(2)
    eventually(lambda: log.refusal)
    with pytest.raises(Unavailable, match="does not keep up"):
        submit(log, answers, "one more")
    del log._publish
    log.publish()
    eventually(lambda: not log.refusal)
    submit(log, answers, "again")
    answers.wait(3)
    log.stop()


def test_a_clock_that_goes_back_never_breaks_the_order():
    files, answers, clock = MemoryLogFiles(), Answers(), Clock()
    log = start(files, clock)
    begun = time.time_ns()
    for number, wall in enumerate((0, 1_000, 0)):
        clock.wall = wall
        submit(log, answers, number)
        answers.wait(number + 1)
    log.stop()
    assert verify_audit(files, SIGNER.vkey, ORIGIN).closed
    times = [(item.t, item.behind) for _, item, _ in read_bodies(files, SIGNER.vkey, ORIGIN)]
    assert [t for t, _ in times] == sorted(t for t, _ in times)
    assert times[2][1] > begun - 1_000
    assert times[1][1] == times[3][1] == 0
