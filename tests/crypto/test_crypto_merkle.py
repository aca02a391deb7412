"""RFC 6962 hashing and proofs: the published answers, the slow definitions of the RFC, and what an attacker would try."""

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.merkle import (
    EMPTY_ROOT,
    check_consistency,
    check_inclusion,
    consistency_path,
    inclusion_path,
    leaf_hash,
    node_hash,
    range_root,
    root_of,
)
from modelkeep.errors import Invalid, NotTrusted

# The reference data of the Certificate Transparency implementations (merkle_tree_test, transparency-dev/merkle).
ENTRIES = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
A, B, C, D, E, F, G = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
)
PATHS = [(0, 1, []), (0, 8, [A, B, C]), (5, 8, [D, E, ROOTS[4]]), (2, 3, [ROOTS[2]]), (1, 5, [G, B, D])]
CONSISTENCY = [(1, 1, []), (1, 8, [A, B, C]), (6, 8, [F, E, ROOTS[4]]), (2, 5, [B, D])]


def tree(entries):
    """``NodeAt`` over a list: RFC 6962, section 2.1, as it is written there."""
    leaves = [leaf_hash(entry) for entry in entries]

    def mth(hashes):
        if len(hashes) == 1:
            return hashes[0]
        split = 1
        while split * 2 < len(hashes):
            split *= 2
        return node_hash(mth(hashes[:split]), mth(hashes[split:]))

    def node(level, index):
        part = leaves[index << level : (index + 1) << level]
        assert len(part) == 1 << level, "only complete subtrees may be asked for"
        return mth(part)

    return mth(leaves) if leaves else EMPTY_ROOT, node


def hashes(path):
    return [bytes.fromhex(text) for text in path]


def test_hash_prefixes():
    assert leaf_hash(b"x") == hashlib.sha256(b"\x00x").digest()
    assert node_hash(b"l" * 32, b"r" * 32) == hashlib.sha256(b"\x01" + b"l" * 32 + b"r" * 32).digest()


@pytest.mark.parametrize("size", range(9))
def test_known_roots(size):
    assert root_of([leaf_hash(entry) for entry in ENTRIES[:size]]).hex() == ROOTS[size]
    assert range_root(0, size, tree(ENTRIES[:size])[1]).hex() == ROOTS[size]


@pytest.mark.parametrize(("index", "size", "path"), PATHS)
def test_known_inclusion_paths(index, size, path):
    assert inclusion_path(index, size, tree(ENTRIES[:size])[1]) == hashes(path)
    check_inclusion(leaf_hash(ENTRIES[index]), index, size, hashes(path), bytes.fromhex(ROOTS[size]))


@pytest.mark.parametrize(("old", "new", "path"), CONSISTENCY)
def test_known_consistency_paths(old, new, path):
    assert consistency_path(old, new, tree(ENTRIES[:new])[1]) == hashes(path)
    check_consistency(old, bytes.fromhex(ROOTS[old]), new, bytes.fromhex(ROOTS[new]), hashes(path))


def test_the_worked_example_of_the_rfc():
    """RFC 6962, section 2.1.3, and RFC 9162, section 2.1.5: seven leaves, with its letters for the nodes."""
    entries = [b"d%d" % number for number in range(7)]
    a, b, c, d, e, f, j = map(leaf_hash, entries)
    g, h, i = node_hash(a, b), node_hash(c, d), node_hash(e, f)
    k, l = node_hash(g, h), node_hash(i, j)  # noqa: E741
    root, node = tree(entries)
    assert root == node_hash(k, l) == range_root(0, 7, node)
    for index, path in ((0, [b, h, l]), (3, [c, g, l]), (4, [f, j, k]), (6, [i, k])):
        assert inclusion_path(index, 7, node) == path
        check_inclusion(leaf_hash(entries[index]), index, 7, path, root)
    for old, before, path in ((3, node_hash(g, c), [c, d, g, l]), (4, k, [l]), (6, node_hash(k, i), [i, j, k])):
        assert consistency_path(old, 7, node) == path
        check_consistency(old, before, 7, root, path)


sizes = st.integers(1, 70)


@settings(max_examples=60)
@given(sizes, st.data())
def test_an_entry_proves_and_an_impostor_does_not(size, data):
    entries = [b"%d" % number for number in range(size)]
    index = data.draw(st.integers(0, size - 1))
    root, node = tree(entries)
    path = inclusion_path(index, size, node)
    leaf = leaf_hash(entries[index])
    check_inclusion(leaf, index, size, path, root)
    assert root_of([leaf_hash(entry) for entry in entries]) == root
    bad = [
        (leaf_hash(b"!"), index, size, path, root),
        (leaf, index, size, path, leaf_hash(b"!")),
        (leaf, size, size, path, root),
        (leaf, -1, size, path, root),
        (leaf[:31], index, size, path, root),
        (leaf, index, size, [*path, leaf], root),
        *[(leaf, other, size, path, root) for other in range(size) if other != index],
        *[(leaf, index, size, path[:cut], root) for cut in range(len(path))],
        *[(leaf, index, size, flip(path, at), root) for at in range(len(path))],
    ]
    for case in bad:
        with pytest.raises(NotTrusted):
            check_inclusion(*case)


@settings(max_examples=80)
@given(sizes, st.data())
def test_a_log_that_grows_proves_and_a_rewritten_one_does_not(new, data):
    entries = [b"%d" % number for number in range(new)]
    old = data.draw(st.integers(1, new))
    new_root, node = tree(entries)
    old_root, _ = tree(entries[:old])
    path = consistency_path(old, new, node)
    check_consistency(old, old_root, new, new_root, path)
    forged, _ = tree([b"!", *entries[1:old]])
    bad = [
        (old, forged, new, new_root, path),
        (old, old_root, new, forged, path),
        (old, old_root, new, new_root, [*path, new_root]),
        (new + 1, old_root, new, new_root, path),
        (-1, old_root, new, new_root, path),
        *[(old, old_root, new, new_root, path[:cut]) for cut in range(len(path))],
        *[(old, old_root, new, new_root, flip(path, at)) for at in range(len(path))],
    ]
    for case in bad:
        with pytest.raises(NotTrusted):
            check_consistency(*case)


def flip(path, at):
    return [*path[:at], bytes([path[at][0] ^ 1]) + path[at][1:], *path[at + 1 :]]


def test_every_log_continues_the_empty_one():
    root, _ = tree(ENTRIES)
    check_consistency(0, EMPTY_ROOT, 8, root, [])
    check_consistency(0, EMPTY_ROOT, 0, EMPTY_ROOT, [])
    for case in ((0, EMPTY_ROOT, 8, root, [root]), (0, root, 8, root, []), (0, root, 0, root, [])):
        with pytest.raises(NotTrusted):
            check_consistency(*case)


def test_a_proof_that_cannot_be_is_invalid():
    _, node = tree(ENTRIES)
    for index in (-1, 8):
        with pytest.raises(Invalid):
            inclusion_path(index, 8, node)
    for old, new in ((0, 8), (9, 8)):
        with pytest.raises(Invalid):
            consistency_path(old, new, node)
