"""The Merkle tree of RFC 6962, section 2.1 (unchanged in RFC 9162): hashing, and building and checking its two proofs.

A tree is named by its size and root alone. Whoever builds a proof hands in a ``NodeAt``: the hash of a *complete* subtree by
level and index, wherever it comes from (a list in memory, tiles on a disk). Whoever checks one needs nothing but bytes.
"""

import hashlib
from collections.abc import Callable, Sequence

from modelkeep.errors import Invalid, NotTrusted

HASH_SIZE = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()

NodeAt = Callable[[int, int], bytes]
"""``(level, index)`` → the hash over leaves ``[index << level, (index + 1) << level)``; level 0 is the leaf hashes."""


def leaf_hash(entry: bytes) -> bytes:
    """SHA-256(0x00 ‖ entry)."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01 ‖ left ‖ right)."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf *hashes*, in one pass upwards; ``EMPTY_ROOT`` for none."""
    if not leaves:
        return EMPTY_ROOT
    level = list(leaves)
    while len(level) > 1:
        paired = [node_hash(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = paired + level[len(level) & ~1 :]
    return level[0]


def range_root(start: int, end: int, node: NodeAt) -> bytes:
    """MTH(D[start:end]) of a non-empty range that a tree node covers (``start`` is a multiple of a power of two ≥ the length).

    ``range_root(0, size, node)`` is the root of the tree. Source: RFC 6962, section 2.1.
    """
    size = end - start
    if size <= 0:
        return EMPTY_ROOT
    if size & (size - 1) == 0:
        return node(size.bit_length() - 1, start >> (size.bit_length() - 1))
    split = 1 << ((size - 1).bit_length() - 1)
    return node_hash(range_root(start, start + split, node), range_root(start + split, end, node))


def inclusion_path(index: int, size: int, node: NodeAt) -> list[bytes]:
    """PATH(index, D[size]): sibling hashes, leaf upwards. Source: RFC 6962, section 2.1.1. Raises Invalid."""
    if not 0 <= index < size:
        raise Invalid(f"entry {index} is not in a log of {size} entries")
    path, start, end = [], 0, size
    while end - start > 1:
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        if index < middle:
            path.append(range_root(middle, end, node))
            end = middle
        else:
            path.append(range_root(start, middle, node))
            start = middle
    return path[::-1]


def consistency_path(old: int, new: int, node: NodeAt) -> list[bytes]:
    """PROOF(old, D[new]). Source: RFC 6962, section 2.1.2. Raises Invalid unless 0 < old ≤ new."""
    if not 0 < old <= new:
        raise Invalid(f"there is no consistency proof from {old} to {new} entries")
    path, start, end, whole = [], 0, new, True
    while old < end:
        middle = start + (1 << ((end - start - 1).bit_length() - 1))
        if old <= middle:
            path.append(range_root(middle, end, node))
            end = middle
        else:
            path.append(range_root(start, middle, node))
            start, whole = middle, False
    if not whole:
        path.append(range_root(start, end, node))
    return path[::-1]


def check_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> None:
    """Check that leaf hash ``leaf`` sits at ``index`` of the ``size``-leaf tree called ``root``.

    ``path``: sibling hashes, leaf upwards. Source: RFC 9162, section 2.1.3.2.
    Raises NotTrusted if it does not, or if the path does not have the length it must.
    """
    if not 0 <= index < size or len(leaf) != HASH_SIZE:
        raise NotTrusted(f"no {len(leaf)}-byte leaf {index} can be in a tree of {size} leaves")
    node, last = leaf, size - 1
    for sibling in path:
        if last == 0:
            raise NotTrusted("inclusion path is too long")
        if index % 2 or index == last:
            node = node_hash(sibling, node)
            while index % 2 == 0 and index:
                index, last = index // 2, last // 2
        else:
            node = node_hash(node, sibling)
        index, last = index // 2, last // 2
    if last or node != root:
        raise NotTrusted("inclusion path does not lead to the root")


def check_consistency(old: int, old_root: bytes, new: int, new_root: bytes, path: Sequence[bytes]) -> None:
    """Check that the tree (``new``, ``new_root``) begins with all of the tree (``old``, ``old_root``).

    From an empty tree everything follows, and the path must be empty. Source: RFC 9162, section 2.1.4.2.
    Raises NotTrusted: a shrunken tree, a fork, or a path of the wrong length.
    """
    if not 0 <= old <= new:
        raise NotTrusted(f"a log cannot go from {old} entries to {new}")
    if old in (0, new):
        if path or old_root != (EMPTY_ROOT if old == 0 else new_root):
            raise NotTrusted(f"two different logs of {old} entries" if old else "an empty log has only one root")
        return
    rest = list(path)
    if old & (old - 1) == 0:
        rest.insert(0, old_root)
    if not rest:
        raise NotTrusted("consistency path is too short")
    index, last = old - 1, new - 1
    while index % 2:
        index, last = index // 2, last // 2
    before = after = rest[0]
    for sibling in rest[1:]:
        if last == 0:
            raise NotTrusted("consistency path is too long")
        if index % 2 or index == last:
            before, after = node_hash(sibling, before), node_hash(sibling, after)
            while index % 2 == 0 and index:
                index, last = index // 2, last // 2
        else:
            after = node_hash(after, sibling)
        index, last = index // 2, last // 2
    if last or before != old_root or after != new_root:
        raise NotTrusted(f"the log of {new} entries does not continue the log of {old} entries: it was rewritten")
