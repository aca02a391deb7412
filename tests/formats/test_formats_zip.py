"""Archives: what we read without a fault, Python's own reader reads alike; and so with the headers of arrays."""

import io
import random
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.custody.scan import scan
from modelkeep.errors import Invalid
from modelkeep.formats.zip import BadMember, ends_as_zip, read_zip

sys.path.insert(0, str(Path(__file__).parents[1] / "scan_corpus"))
from fuzz import damaged

NAMES = st.text("abcxyz0123456789_.-", min_size=1, max_size=8).filter(lambda name: name.strip("."))
MEMBERS = st.dictionaries(NAMES, st.binary(max_size=200), min_size=1, max_size=5)


def zipped(members: dict[str, bytes], method: int) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


def contents(data: bytes) -> dict[str, bytes]:
    """By our reader. Raises Invalid for an archive with any fault, BadMember."""
    archive = read_zip(memoryview(data))
    if archive.faults:
        raise Invalid(str(archive.faults[0]))
    return {member.name: archive.unpack(member, 1 << 20) for member in archive.members}


@settings(max_examples=60, deadline=None)
@given(MEMBERS, st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))
def test_archives_of_python_are_read_as_written(members, method):
    data = zipped(members, method)
    assert contents(data) == members
    assert ends_as_zip(memoryview(data))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_damage_leaves_readable_is_the_same_to_python(method):
    rng = random.Random(7)
    seed = zipped({"a.npy": b"hello" * 9, "b/c.txt": bytes(40), "d": b""}, method)
    agreed = 0
    for _ in range(3000):
        data = damaged(rng, seed, seed)
        try:
            ours = contents(data)
        except (Invalid, BadMember):
            continue
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert ours == {name: archive.read(name) for name in archive.namelist()}
        agreed += 1
    assert agreed


def test_an_array_that_is_clean_is_the_same_to_numpy():
    rng, out, agreed = random.Random(7), io.BytesIO(), 0
    np.save(out, np.arange(12, dtype="<f4").reshape(3, 4))
    for _ in range(3000):
        data = damaged(rng, out.getvalue(), out.getvalue())
        if scan(data, "a.npy").format == "npy" and scan(data, "a.npy").clean:
            assert np.load(io.BytesIO(data), allow_pickle=False).nbytes <= len(data)
            agreed += 1
    assert agreed
