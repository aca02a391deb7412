"""What is left of an audit log when its process died, and what an attacker may do to it meanwhile."""

import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import Killed, MemoryLogFiles

from modelkeep.adapters.clock import SystemClock
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.errors import Missing, NotTrusted
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog, read_bodies, recover_audit, verify_audit
from modelkeep.serving.journal import JournalReader, JournalWriter, Stamps, journal_key, split_frames

ORIGIN = "keep.example/audit/gw-1"
SIGNER = NoteSigner(ORIGIN, b"\x05" * 32)
CLOCK = SystemClock()


def recover(files):
    return recover_audit(files, SIGNER, ORIGIN, CLOCK)


def check(files, kept=()):
    return verify_audit(files, SIGNER.vkey, ORIGIN, kept)


def found(files):
    return list(read_bodies(files, SIGNER.vkey, ORIGIN))


def live(count=0, publish=3600.0):
    """The files of a log with ``count`` answered records whose process then dies, and how many of them a checkpoint covers."""
    files, told = MemoryLogFiles(), []
    log = AuditLog(files, SIGNER, ORIGIN, CLOCK, limits=AuditLimits(publish=publish))
    for number in range(count):
        log.submit(AuditEntry("predict", request=str(number)), b"body %d" % number, told.append)
        while len(told) <= number:
            time.sleep(0)
    if publish < 1:
        log.publish()
    dead = files.copy()
    log.stop()
    return dead


def add(files, *requests, close=False):
    """Durable records that no checkpoint covers, as a process that was then killed would leave them."""
    reader = JournalReader(files, journal_key(SIGNER), ORIGIN)
    entries = [entry for frame in reader.frames() for entry in frame.records]
    writer = JournalWriter(files, reader.key, ORIGIN)
    writer.resume(reader)
    stamps = Stamps(CLOCK.now_ns())
    for number, request in enumerate(requests, len(entries)):
        data = stamps.encode(AuditEntry("close" if close else "predict", request=request), b"b", number, 0)
        writer.commit([(data, b"b")])
    writer.close()
    return files


DEAD = add(live(20, publish=0.01), "late 1", "late 2")


def test_recovery_finishes_the_log():
    files = DEAD.copy()
    assert check(files).size == 21
    report = recover(files)
    assert (report.size, report.closed, report.bodies, report.absent) == (24, True, 22, 0)
    records = found(files)
    assert [entry.request for _, entry, _ in records[1:-1]] == [*map(str, range(20)), "late 1", "late 2"]
    assert (records[-1][1].kind, records[-1][1].outcome) == ("close", "recovered")


def test_recovery_of_a_finished_log_changes_nothing():
    files = DEAD.copy()
    report = recover(files)
    before = files.copy().files
    assert recover(files) == report
    assert files.files == before


def test_a_torn_frame_is_cut_off_and_the_log_says_so():
    whole = DEAD.read("journal/000000")
    for cut in (1, 19, 21, 60):
        files = DEAD.copy()
        add(files, "never acknowledged")
        torn = files.read("journal/000000")[len(whole) : len(whole) + cut]
        files.truncate("journal/000000", len(whole) + cut)
        report = recover(files)
        assert report.size == 24
        closing = found(files)[-1][1]
        assert closing.outcome.startswith(f"recovered; cut off {cut} bytes of a frame never acknowledged, sha256:")
        assert files.read("torn") == torn


@pytest.mark.parametrize("torn", [0, 1, 30])
def test_recovery_killed_at_every_step_is_finished_by_the_next(torn):
    dead = DEAD.copy()
    dead.files["journal/000000"] += b"\0\0\0\x20 torn"
    steps = 0
    while True:
        files = dead.copy()
        files.kill_at, files.torn = steps, torn
        try:
            recover(files)
        except Killed:
            pass
        else:
            break
        after = files.copy()
        report = recover(after)
        assert (report.size, report.closed, report.bodies) == (24, True, 22)
        assert "cut off" in found(after)[-1][1].outcome
        steps += 1
    assert steps > 6


def test_a_process_that_died_while_it_began_leaves_a_log_that_can_be_finished():
    copies = []
    files = MemoryLogFiles()
    files.watch = lambda: copies.append(files.copy())
    AuditLog(files, SIGNER, ORIGIN, CLOCK).stop()
    finished = 0
    for copy in copies:
        for cut in (0, 1, 30):
            dead = copy.copy()
            if not dead.paths("journal/"):
                with pytest.raises(Missing):
                    recover(dead)
                continue
            size = len(dead.files["journal/000000"])
            dead.truncate("journal/000000", size - cut if size > cut else size)
            if not dead.paths("checkpoint"):
                assert recover(dead).closed
                finished += 1
    assert finished > 5


@pytest.mark.parametrize("count", [1, 3, 300])
def test_at_every_moment_the_disk_holds_what_was_answered(count):
    """Every state that kill -9 could leave, with every frame torn too: answered ⊆ recorded, and the log can be finished."""
    moments, answered, files = [], [], MemoryLogFiles()
    log = AuditLog(files, SIGNER, ORIGIN, CLOCK, limits=AuditLimits(publish=0.005))
    files.watch = lambda: moments.append((len(answered), files.copy()))
    for number in range(count):
        log.submit(AuditEntry("predict", request=str(number)), b"body", lambda _, number=number: answered.append(number))
        if number % 7 == 0:
            time.sleep(0.001)
    log.stop()
    assert len(answered) == count
    for told, dead in moments[:: max(1, len(moments) // 60)]:
        recover(dead)
        recorded = {entry.request for _, entry, _ in found(dead)}
        assert {str(number) for number in answered[:told]} <= recorded


# damage


def damaged(change):
    files = DEAD.copy()
    change(files.files)
    return files


@pytest.mark.parametrize(
    "change",
    [
        lambda files: files.pop("checkpoint"),
        lambda files: files.pop("journal/000000"),
        lambda files: files.__setitem__("journal/000000", files["journal/000000"][:300]),
        lambda files: files.__setitem__("journal/000000", bytearray()),
        lambda files: files.pop("tile/0/000.p/21"),
        lambda files: files.__setitem__("journal/000001", bytearray(b"x")) or files.pop("journal/000000"),
    ],
    ids=["no checkpoint", "no journal", "journal behind its checkpoint", "empty journal", "no tile", "segment renamed"],
)
def test_damage_is_never_taken_for_a_torn_frame(change):
    files = damaged(change)
    before = files.copy().files
    with pytest.raises(NotTrusted):
        recover(files)
    if "tile/0/000.p/21" in before:
        assert files.files == before, "a damaged log is left as it was found"


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_in_the_journal_is_damage_even_where_no_checkpoint_covers_it(data):
    files = DEAD.copy()
    raw = files.files["journal/000000"]
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(NotTrusted):
        recover(files)


def test_a_journal_of_another_log_or_key_is_refused():
    other = NoteSigner(ORIGIN, b"\x06" * 32)
    with pytest.raises(NotTrusted):
        recover_audit(DEAD.copy(), other, ORIGIN, CLOCK)
    elsewhere = "keep.example/audit/gw-2"
    with pytest.raises(NotTrusted):
        recover_audit(DEAD.copy(), NoteSigner(elsewhere, b"\x05" * 32), elsewhere, CLOCK)
    with pytest.raises(Missing):
        recover(MemoryLogFiles())


def test_records_behind_a_closing_entry_are_refused():
    files = add(DEAD.copy(), "closing", close=True)
    add(files, "hidden")
    with pytest.raises(NotTrusted, match="after its closing entry"):
        recover(files)


# the auditor's check, with the verifier key alone


FINISHED = DEAD.copy()
recover(FINISHED)


def test_bodies_that_were_pruned_are_counted():
    files = FINISHED.copy()
    files.delete("journal/000000")
    report = check(files)
    assert (report.size, report.bodies, report.absent, report.closed) == (24, 0, 22, True)
    assert recover(files) == report


CURRENT = [path for path in FINISHED.paths() if path.endswith(("/24", "/000000", "checkpoint"))]
FRAMES, _ = split_frames(FINISHED.read("journal/000000"), ORIGIN, 0)


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(CURRENT), st.data())
def test_every_flipped_bit_of_tiles_bodies_and_checkpoint_is_noticed_offline(path, data):
    files = FINISHED.copy()
    raw = files.files[path]
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    if "journal" in path and any(frame.end - 32 <= at // 8 < frame.end for frame in FRAMES):
        check(files)  # a tag: it needs the key, and protects nothing that the tiles do not
        return
    with pytest.raises(NotTrusted):
        check(files)


def test_a_body_exchanged_for_another_is_noticed():
    files = FINISHED.copy()
    raw = files.files["journal/000000"]
    files.files["journal/000000"] = raw.replace(b"body 3", b"body 4", 1)
    with pytest.raises(NotTrusted, match="the body of audit entry 4 is not the one that was logged"):
        check(files)


def test_rollback_of_the_whole_folder_is_noticed_by_a_kept_checkpoint():
    newest = open_checkpoint(FINISHED.read("checkpoint"), SIGNER.vkey, ORIGIN)
    older = DEAD.copy()
    assert check(older).closed is False
    with pytest.raises(NotTrusted, match="rolled back: it has 21 entries and once had 24"):
        check(older, [newest])
    check(FINISHED, [Checkpoint(ORIGIN, 21, check(older).root), newest])
