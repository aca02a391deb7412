"""The journal's frames: a known answer, and the line between a frame cut off and a frame damaged."""

import hashlib
import hmac
import itertools
import struct
import sys
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.core.values import to_json
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import NotTrusted
from modelkeep.serving import journal as journal_module
from modelkeep.serving.journal import (
    FIRST_TAG,
    AuditEntry,
    JournalReader,
    JournalWriter,
    Stamps,
    decode_entry,
    encode_frame,
    journal_key,
    split_frames,
)

ORIGIN = "keep.example/audit/gw-1"
KEY = journal_key(NoteSigner(ORIGIN, b"\x05" * 32))
records = st.lists(st.tuples(st.binary(max_size=30), st.binary(max_size=60)), min_size=1, max_size=5)


def write(batches, files=None):
    files = files or MemoryLogFiles()
    writer = JournalWriter(files, KEY, ORIGIN)
    writer.begin()
    for batch in batches:
        writer.commit(batch)
    writer.close()
    return files


def read(files):
    reader = JournalReader(files, KEY, ORIGIN)
    return [record for frame in reader.frames() for record in frame.records], reader


def test_a_known_frame():
    frame, tag = encode_frame(b"k" * 32, FIRST_TAG, 7, [(b"entry", b"body"), (b"e", b"")])
    payload = b"\x00\x05entry\x00\x00\x00\x04body" + b"\x00\x01e\x00\x00\x00\x00"
    header = struct.pack(">IIQ", len(payload), 2, 7)
    signed = header + struct.pack(">I", zlib.crc32(header)) + payload
    assert tag == hmac.digest(b"k" * 32, bytes(32) + signed, "sha256")
    assert frame == signed + tag


def test_a_segment_begins_by_saying_whose_it_is():
    data = write([]).read("journal/000000")
    assert data[20:-32] == b"modelkeep-audit-journal/1\nkeep.example/audit/gw-1\n0\n"
    for origin, number in (("other", 0), (ORIGIN, 1)):
        with pytest.raises(NotTrusted, match="is not segment"):
            split_frames(data, origin, number)


@settings(max_examples=50)
@given(st.lists(records, max_size=6))
def test_what_is_committed_is_read(batches):
    found, reader = read(write(batches))
    assert found == [record for batch in batches for record in batch]
    assert reader.index == len(found)
    assert reader.torn == b""


BATCHES = [[(b"entry %d" % i, b"body %d" % i)] * (i + 1) for i in range(4)]


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(journal_module, "SEGMENT_SIZE", 200)


def test_every_cut_is_a_torn_frame_and_nothing_whole_is_lost():
    whole = write(BATCHES)
    data = whole.read("journal/000000")
    frames, _ = split_frames(data, ORIGIN, 0)
    for cut in range(len(data)):
        files = MemoryLogFiles({"journal/000000": data[:cut]})
        found, reader = read(files)
        kept = [frame for frame in frames if frame.end <= cut]
        assert found == [record for frame in kept for record in frame.records]
        assert reader.end == (kept[-1].end if kept else 0)
        assert reader.torn == data[reader.end : cut]


def test_zeros_behind_the_last_frame_are_torn():
    files = write(BATCHES)
    size = len(files.files["journal/000000"])
    files.files["journal/000000"] += bytes(4096)
    found, reader = read(files)
    assert len(found) == 10
    assert (reader.end, reader.torn) == (size, bytes(4096))


@settings(max_examples=200)
@given(st.data())
def test_a_flipped_bit_is_damage_or_a_shorter_journal_never_other_records(data):
    files = write(BATCHES)
    raw = files.files["journal/000000"]
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    with pytest.raises(NotTrusted):
        read(files)


def test_frames_reordered_deleted_or_of_another_key_are_damage():
    data = write(BATCHES).read("journal/000000")
    frames, _ = split_frames(data, ORIGIN, 0)
    starts = [0, *[frame.end for frame in frames]]
    parts = [data[a:b] for a, b in itertools.pairwise(starts)]
    for bad in ([0, 2, 1, 3, 4], [0, 2, 3, 4], [0, 1, 1, 2, 3, 4], [1, 2, 3, 4]):
        with pytest.raises(NotTrusted):
            read(MemoryLogFiles({"journal/000000": b"".join(parts[i] for i in bad)}))
    forged, _ = encode_frame(b"x" * 32, frames[3].tag, frames[4].first, [(b"forged", b"")])
    with pytest.raises(NotTrusted, match="altered at record 6"):
        read(MemoryLogFiles({"journal/000000": b"".join(parts[:4]) + forged}))


def test_segments_follow_each_other(small_segments):
    files = write(BATCHES)
    assert len(files.paths("journal/")) == 3
    assert [record for batch in BATCHES for record in batch] == read(files)[0]


def test_a_missing_swapped_or_torn_segment_in_the_middle_is_damage(small_segments):
    files = write(BATCHES)
    one, two = files.read("journal/000000"), files.read("journal/000001")
    for path, data in (("journal/000000", two), ("journal/000001", one), ("journal/000001", two[:-1]), ("journal/000000", b"")):
        bad = files.copy()
        bad.write(path, data)
        with pytest.raises(NotTrusted):
            read(bad)
    for path in ("journal/000000", "journal/000001"):
        bad = files.copy()
        bad.delete(path)
        with pytest.raises(NotTrusted, match="missing a segment"):
            read(bad)
    files.write("journal/notes.txt", b"")
    with pytest.raises(NotTrusted, match="is not a segment"):
        read(files)


def test_a_journal_is_resumed_after_every_cut(small_segments):
    whole = write(BATCHES)
    for path in whole.paths("journal/"):
        later = [other for other in whole.paths("journal/") if other > path]
        for cut in range(len(whole.read(path)) + 1):
            files = whole.copy()
            for other in later:
                files.delete(other)
            files.truncate(path, cut)
            before, reader = read(files)
            files.truncate(path, reader.end)
            writer = JournalWriter(files, KEY, ORIGIN)
            writer.resume(reader)
            writer.commit([(b"closing", b"")])
            writer.close()
            assert read(files)[0] == [*before, (b"closing", b"")]


def test_entries_are_canonical_json_and_time_never_goes_back():
    stamps = Stamps()
    body = b"encrypted"
    first = stamps.encode(AuditEntry("predict", "sub_1", "m@1", "r1", "ok"), body, 0, 1_000)
    second = stamps.encode(AuditEntry("predict"), b"", 1, 400)
    third = stamps.encode(AuditEntry("predict"), b"", 2, 1_001)
    assert first == (
        b'{"behind":0,"body":"' + hashlib.sha256(body).hexdigest().encode() + b'","kind":"predict","outcome":"ok",'
        b'"release":"m@1","request":"r1","seq":0,"subject":"sub_1","t":1000,"v":1}'
    )
    entries = [decode_entry(data, index) for index, data in enumerate((first, second, third))]
    assert [(entry.t, entry.behind) for entry in entries] == [(1000, 0), (1000, 600), (1001, 0)]
    assert to_json(entries[0]) == first


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"kind":1}',
        b'{"kind":"x","seq":1,"v":1}',
        b'{"kind":"x","seq":0,"v":2}',
        b'{"kind":"x","seq":0,"v":1,"z":0}',
    ],
)
def test_what_is_no_entry(data):
    with pytest.raises(NotTrusted):
        decode_entry(data, 0)
