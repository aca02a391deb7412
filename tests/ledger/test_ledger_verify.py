"""The whole-log check against an attacker with write access to every file but without the key."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.notes import Checkpoint, NoteSigner
from modelkeep.errors import Missing, NotTrusted
from modelkeep.ledger.log import ReleasesLog
from modelkeep.ledger.tiles import encode_bundle
from modelkeep.ledger.verify import LogReport, verify_log

ORIGIN = "keep.example/releases"

SIGNER = NoteSigner(ORIGIN, b"\x07" * 32)
SIZE = 600


def build(size=SIZE, signer=SIGNER):
    files = MemoryLogFiles()
    log = ReleasesLog(files, signer, ORIGIN)
    log.create()
    log.append([b"entry %d" % number for number in range(size)])
    return files


WHOLE = build()
PATHS = WHOLE.paths()


def check(files, kept=()):
    return verify_log(files, SIGNER.vkey, ORIGIN, kept)


def test_an_honest_log(make_log):
    report = check(WHOLE)
    assert report == LogReport(ORIGIN, SIZE, report.root)
    assert check(make_log()).size == 0


@pytest.mark.parametrize("path", PATHS)
def test_every_missing_file_is_noticed(path):
    files = WHOLE.copy()
    files.delete(path)
    with pytest.raises(NotTrusted, match="checkpoint" if path == "checkpoint" else f"missing {path}"):
        check(files)


@pytest.mark.parametrize("path", PATHS)
def test_every_truncated_or_longer_file_is_noticed(path):
    for cut in (0, 1, 31, 32, -1, -2, -32):
        files = WHOLE.copy()
        files.files[path] = files.files[path][:cut]
        with pytest.raises(NotTrusted):
            check(files)
    files = WHOLE.copy()
    files.files[path] += b"\0"
    with pytest.raises(NotTrusted):
        check(files)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(PATHS), st.data())
def test_every_flipped_bit_is_noticed(path, data):
    files = WHOLE.copy()
    at = data.draw(st.integers(0, len(files.files[path]) * 8 - 1))
    files.files[path][at // 8] ^= 1 << at % 8
    with pytest.raises(NotTrusted):
        check(files)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(PATHS), st.sampled_from(PATHS))
def test_swapped_files_are_noticed(one, two):
    files = WHOLE.copy()
    files.files[one], files.files[two] = files.files[two], files.files[one]
    if one == two:
        check(files)
        return
    with pytest.raises(NotTrusted):
        check(files)


@pytest.mark.parametrize(
    "change",
    [
        lambda entries: [entries[1], entries[0], *entries[2:]],
        lambda entries: [b"", *entries[1:]],
        lambda entries: entries[:-1],
        lambda entries: entries[1:],
        lambda entries: [*entries, b"more"],
        lambda entries: [entries[0], *entries],
    ],
    ids=["reordered", "altered", "last deleted", "first deleted", "appended", "repeated"],
)
def test_entries_changed_in_their_bundle(change):
    files = WHOLE.copy()
    entries = [b"entry %d" % number for number in range(256, 512)]
    files.write("tile/entries/001", encode_bundle(change(entries)))
    with pytest.raises(NotTrusted):
        check(files)


def test_a_tree_that_is_consistent_but_unsigned_is_refused():
    files = build(SIZE, NoteSigner(ORIGIN, b"\x08" * 32))
    with pytest.raises(NotTrusted, match="not signed"):
        check(files)
    files.write("checkpoint", WHOLE.read("checkpoint"))
    check(files)  # the same entries: the same tree
    forged = build(SIZE - 1, NoteSigner(ORIGIN, b"\x08" * 32))
    forged.write("checkpoint", WHOLE.read("checkpoint"))
    with pytest.raises(NotTrusted):
        check(forged)


def test_a_signed_checkpoint_of_another_size_is_noticed():
    root = check(WHOLE).root
    for size in (0, 1, SIZE - 1, SIZE + 1, 1 << 40):
        files = WHOLE.copy()
        files.write("checkpoint", Checkpoint(ORIGIN, size, root).sign(SIGNER))
        with pytest.raises(NotTrusted):
            check(files)


def test_kept_checkpoints_must_be_continued():
    earlier = [check(build(size)) for size in (0, 1, 256, 599, 600)]
    check(WHOLE, [Checkpoint(report.origin, report.size, report.root) for report in earlier])
    later = check(build(601))
    with pytest.raises(NotTrusted, match="rolled back"):
        check(WHOLE, [Checkpoint(ORIGIN, 601, later.root)])
    with pytest.raises(NotTrusted, match="of the log 'other'"):
        check(WHOLE, [Checkpoint("other", 1, earlier[1].root)])


def test_nothing_there_is_missing():
    with pytest.raises(Missing):
        check(MemoryLogFiles())
