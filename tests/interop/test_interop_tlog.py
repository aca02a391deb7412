"""Every log of 1 to 300 entries, both ways between modelkeep and Go's ``sumdb/note`` and ``sumdb/tlog``.

What the two write is the same to the byte, and each believes what the other wrote: checkpoints, tiles and bundles, inclusion
proofs of every entry, consistency proofs from every earlier size.
"""

from functools import cache

import pytest
from golang import seed_of, signer_key
from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.merkle import (
    check_consistency,
    check_inclusion,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    range_root,
)
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.tiles import tiles_of
from modelkeep.ledger.verify import verify_log

ORIGIN = "keep.example/releases"
SEED = bytes(range(32))
SIGNER = NoteSigner(ORIGIN, SEED)
SKEY = signer_key(SIGNER.vkey, SEED)
SIZES = range(1, 301)
ENTRIES = [b"" if number == 7 else b"entry %d " % number * (number % 5 + 1) for number in range(SIZES[-1])]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]


@cache
def node(level: int, index: int) -> bytes:
    """Hash of a complete subtree: the same in every tree that is long enough."""
    if level == 0:
        return LEAVES[index]
    return node_hash(node(level - 1, 2 * index), node(level - 1, 2 * index + 1))


ROOTS = [range_root(0, size, node) for size in SIZES]


@pytest.fixture(scope="module")
def ours():
    """For each size the files that our writer left, grown one entry at a time."""
    files = MemoryLogFiles()
    log = ReleasesLog(files, SIGNER, ORIGIN)
    log.create()
    found = {}
    for size in SIZES:
        log.append([ENTRIES[size - 1]])
        needed = ["checkpoint", *(tile.path for tile in tiles_of(size))]
        found[size] = {path: files.read(path) for path in needed}
    return found


def test_go_believes_every_log_that_we_write(go, ours):
    for size, files in ours.items():
        said = go("folder", Files=files, Key=SIGNER.vkey, Name=ORIGIN)
        assert (said.error, said.size, said.root) == ("", size, ROOTS[size - 1]), size


def test_go_writes_every_log_as_we_do_and_we_believe_it(go, ours):
    for size in SIZES:
        written = go("write", Entries=ENTRIES[:size], Key=SKEY, Name=ORIGIN).files
        assert {path: written[path] for path in ours[size]} == ours[size], size  # Go keeps every partial tile
        report = verify_log(MemoryLogFiles(written), SIGNER.vkey, ORIGIN)
        assert (report.size, report.root) == (size, ROOTS[size - 1])


def test_every_proof_is_the_same_and_believed_by_both(go):
    for size in SIZES:
        root = ROOTS[size - 1]
        theirs = go("prove", Entries=ENTRIES[:size], Size=size)
        assert theirs.error == ""
        records = [inclusion_path(index, size, node) for index in range(size)]
        trees = [consistency_path(old, size, node) for old in range(1, size + 1)]
        assert theirs.record == [b"".join(path) for path in records], size
        assert theirs.tree == [b"".join(path) for path in trees], size
        for index, path in enumerate(records):
            check_inclusion(LEAVES[index], index, size, path, root)
        for old, path in enumerate(trees, 1):
            check_consistency(old, ROOTS[old - 1], size, root, path)
        assert go("records", Size=size, Root=root, Paths=theirs.record, Leaves=LEAVES[:size]).error == "", size
        assert go("trees", Size=size, Root=root, Paths=theirs.tree, Roots=ROOTS[:size]).error == "", size


def test_every_proof_file_of_ours_is_believed_by_go(go):
    files = MemoryLogFiles()
    log = ReleasesLog(files, SIGNER, ORIGIN)
    log.create()
    log.append(ENTRIES)
    view = LogView(files, SIGNER.vkey, ORIGIN)
    view.refresh()
    for index in range(len(ENTRIES)):
        assert go("proof", Proof=view.inclusion(index).encode(), Key=SIGNER.vkey, Name=ORIGIN).error == "", index


@pytest.mark.parametrize("origin", ["keep.example/releases", "großbank.example/modelle/☃"])
def test_keys_and_checkpoints_go_both_ways(go, origin):
    made = go("key", Name=origin)
    signer = NoteSigner(origin, seed_of(made.skey))
    assert signer.vkey == made.vkey
    theirs = go("write", Entries=ENTRIES[:3], Key=made.skey, Name=origin).files["checkpoint"]
    found = open_checkpoint(theirs, made.vkey, origin)
    assert found.sign(signer) == theirs
    said = go("checkpoint", Note=Checkpoint(origin, 3, found.root).sign(signer), Key=made.vkey, Name=origin)
    assert (said.error, said.size, said.root) == ("", 3, found.root)
