"""The sequencer and its readers: what is appended is read, and every cut, edit, fork and rollback is noticed."""

import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memorylogfiles import Killed, MemoryLogFiles

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.merkle import EMPTY_ROOT, check_consistency, leaf_hash, root_of
from modelkeep.crypto.notes import Checkpoint, NoteSigner
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, TooLarge, Unavailable
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.proofs import check_proof
from modelkeep.ledger.tiles import tiles_of
from modelkeep.ledger.verify import verify_log

ORIGIN = "keep.example/releases"


def entries(count, first=0):
    return [b"entry %d" % number for number in range(first, first + count)]


def test_entries_come_back_in_order(make_log, log_signer):
    files = make_log(entries(3), entries(600, 3), [], entries(1, 603))
    view = LogView(files, log_signer.vkey, ORIGIN)
    assert view.refresh().size == 604
    assert view.entries(0, 604) == entries(604)
    assert view.entries(255, 257) == entries(2, 255)
    assert view.entries(5, 5) == []
    assert view.checkpoint.root == root_of([leaf_hash(entry) for entry in entries(604)])


def test_append_tells_the_indexes(log_signer):
    log = ReleasesLog(MemoryLogFiles(), log_signer, ORIGIN)
    assert log.create() == Checkpoint(ORIGIN, 0, EMPTY_ROOT)
    assert log.append(entries(3)) == range(3)
    assert log.append([]) == range(3, 3)
    assert log.append([b""]) == range(3, 4)


def test_a_log_is_made_once_and_on_purpose(make_log, log_signer):
    files = make_log()
    with pytest.raises(Conflict):
        ReleasesLog(files, log_signer, ORIGIN).create()
    with pytest.raises(Missing):
        ReleasesLog(MemoryLogFiles(), log_signer, ORIGIN).append([b"x"])
    with pytest.raises(Missing):
        LogView(MemoryLogFiles(), log_signer.vkey, ORIGIN).refresh()


def test_the_key_is_named_by_the_origin(log_signer):
    with pytest.raises(Invalid):
        ReleasesLog(MemoryLogFiles(), log_signer, "other.example/log")


def test_an_entry_too_large_logs_nothing(make_log, log_signer):
    files = make_log(entries(1))
    with pytest.raises(TooLarge):
        ReleasesLog(files, log_signer, ORIGIN).append([b"fine", b"x" * 65_536])
    assert verify_log(files, log_signer.vkey, ORIGIN).size == 1


@pytest.mark.parametrize(("start", "end"), [(-1, 1), (2, 1), (0, 4)])
def test_entries_out_of_range(make_log, log_signer, start, end):
    view = LogView(make_log(entries(3)), log_signer.vkey, ORIGIN)
    view.refresh()
    with pytest.raises(Invalid):
        view.entries(start, end)


def test_partial_tiles_go_when_the_full_one_is_there(make_log, log_signer):
    files = make_log(*[entries(50, first) for first in range(0, 300, 50)])
    assert not files.paths("tile/0/000.p/")
    assert not files.paths("tile/entries/000.p/")
    assert files.paths("tile/0/") == ["tile/0/000", "tile/0/001.p/44"]
    assert set(files.paths("tile/")) == {tile.path for tile in tiles_of(300)}


def test_a_reader_with_an_older_checkpoint_reads_the_full_tile(make_log, log_signer):
    files = make_log(entries(200))
    view = LogView(files, log_signer.vkey, ORIGIN)
    view.refresh()
    ReleasesLog(files, log_signer, ORIGIN).append(entries(100, 200))
    assert view.entries(190, 200) == entries(10, 190)
    assert check_proof(view.inclusion(199).encode(), log_signer.vkey)[1].size == 200


def test_several_writers_take_turns(tmp_path, log_signer):
    ReleasesLog(FolderLogFiles(tmp_path), log_signer, ORIGIN).create()
    ranges = []

    def write(name):
        log = ReleasesLog(FolderLogFiles(tmp_path), log_signer, ORIGIN)
        ranges.extend(log.append([b"%s %d" % (name, number)] * 3) for number in range(8))

    threads = [threading.Thread(target=write, args=(name,)) for name in (b"a", b"b", b"c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index for taken in ranges for index in taken) == list(range(72))
    assert verify_log(FolderLogFiles(tmp_path), log_signer.vkey, ORIGIN).size == 72


# proofs


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.integers(1, 800), st.data())
def test_consistency_proofs_hold_for_every_pair(make_log, log_signer, size, data):
    view = LogView(make_log(entries(size)), log_signer.vkey, ORIGIN)
    view.refresh()
    new = data.draw(st.integers(1, size))
    old = data.draw(st.integers(1, new))
    check_consistency(old, view.root_at(old), new, view.root_at(new), view.consistency(old, new))
    assert view.root_at(old) == root_of([leaf_hash(entry) for entry in entries(old)])


def test_proofs_out_of_range_are_invalid(make_log, log_signer):
    view = LogView(make_log(entries(3)), log_signer.vkey, ORIGIN)
    view.refresh()
    for call in (
        lambda: view.consistency(1, 4),
        lambda: view.consistency(0, 3),
        lambda: view.inclusion(3),
        lambda: view.root_at(4),
    ):
        with pytest.raises(Invalid):
            call()


# rollback and forks


def test_rollback_is_noticed_by_a_view_and_by_the_writer(make_log, log_signer):
    files = make_log(entries(10))
    older = files.copy()
    log = ReleasesLog(files, log_signer, ORIGIN)
    log.append(entries(300, 10))
    view = LogView(files, log_signer.vkey, ORIGIN)
    newest = view.refresh()
    files.files = older.files
    with pytest.raises(NotTrusted, match="rolled back: it has 10 entries and once had 310"):
        view.refresh()
    assert view.checkpoint == newest
    with pytest.raises(NotTrusted, match="rolled back"):
        log.append([b"x"])
    with pytest.raises(NotTrusted, match="rolled back"):
        LogView(files, log_signer.vkey, ORIGIN, known=newest).refresh()
    LogView(files, log_signer.vkey, ORIGIN).refresh()  # nothing newer was kept: this is what witnesses are for


@pytest.mark.parametrize("size", [10, 11, 400])
def test_a_rewrite_with_the_real_key_is_noticed(make_log, log_signer, size):
    honest = make_log(entries(10))
    view = LogView(honest, log_signer.vkey, ORIGIN)
    kept = view.refresh()
    honest.files = make_log([b"forged", *entries(size - 1, 1)]).files
    with pytest.raises(NotTrusted, match="rewritten"):
        view.refresh()
    with pytest.raises(NotTrusted, match="rewritten"):
        verify_log(honest, log_signer.vkey, ORIGIN, [kept])


def test_a_log_of_another_origin_or_key_is_refused(make_log, log_signer):
    files = make_log(entries(3))
    other = NoteSigner(ORIGIN, b"other seed".ljust(32))
    with pytest.raises(NotTrusted):
        LogView(files, other.vkey, ORIGIN).refresh()
    with pytest.raises(NotTrusted):
        LogView(files, log_signer.vkey, "keep.example/audit").refresh()
    with pytest.raises(NotTrusted):
        ReleasesLog(files, other, ORIGIN).append([b"x"])


def test_an_unsigned_change_of_the_log_is_not_built_upon(make_log, log_signer):
    files = make_log(entries(10))
    files.files["tile/entries/000.p/10"][5] ^= 1
    with pytest.raises(NotTrusted):
        ReleasesLog(files, log_signer, ORIGIN).append([b"x"])


# cut off anywhere


@pytest.mark.parametrize("torn", [0, 1])
def test_killed_at_every_step_the_log_is_the_old_one_or_the_new_one(make_log, log_signer, torn):
    before = make_log(entries(250))
    steps = 0
    while True:
        files = before.copy()
        files.kill_at, files.torn = steps, torn
        try:
            ReleasesLog(files, log_signer, ORIGIN).append(entries(20, 250))
        except Killed:
            pass
        else:
            break
        after = files.copy()
        assert verify_log(after, log_signer.vkey, ORIGIN).size in (250, 270)
        size = verify_log(after, log_signer.vkey, ORIGIN).size
        assert ReleasesLog(after, log_signer, ORIGIN).append([b"other"]) == range(size, size + 1)
        view = LogView(after, log_signer.vkey, ORIGIN)
        view.refresh()
        assert view.entries(0, size + 1) == [*entries(270)[:size], b"other"]
        verify_log(after, log_signer.vkey, ORIGIN)
        steps += 1
    assert steps > 6


def test_a_full_disk_logs_nothing_and_the_next_append_goes_on(make_log, log_signer):
    files = make_log(entries(250))
    log = ReleasesLog(files, log_signer, ORIGIN)
    for extra in range(5):
        files.fail_from = files.steps + extra
        with pytest.raises(Unavailable):
            log.append(entries(20, 250))
        files.fail_from = -1
        assert verify_log(files, log_signer.vkey, ORIGIN).size == 250
    assert log.append(entries(20, 250)) == range(250, 270)


def test_refresh_is_cheap_when_nothing_changed(make_log, log_signer):
    files = make_log(entries(5))
    view = LogView(files, log_signer.vkey, ORIGIN)
    first = view.refresh()
    for path in files.paths("tile/"):
        files.delete(path)
    assert view.refresh() is first


class _Interrupted(MemoryLogFiles):
    """Calls ``between`` once, at the next read of a tile: where another thread may come in."""

    def __init__(self, files):
        super().__init__(files)
        self.between = lambda: None

    def read(self, path):
        act, self.between = self.between, (lambda: None) if path.startswith("tile/") else self.between
        if path.startswith("tile/"):
            act()
        return super().read(path)


def test_a_proof_stands_under_one_checkpoint_though_the_view_is_refreshed_meanwhile(make_log, log_signer):
    files = _Interrupted(make_log(entries(300)).copy().files)
    log, view = ReleasesLog(files, log_signer, ORIGIN), LogView(files, log_signer.vkey, ORIGIN)
    view.refresh()

    def grow():
        log.append(entries(300, 300))
        view.refresh()

    files.between = grow
    proof = view.inclusion(7)
    assert check_proof(proof.encode(), log_signer.vkey)[0].entry == b"entry 7"
    assert view.checkpoint.size == 600
