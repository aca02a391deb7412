"""The rows that a suspect is asked beside what accounts asked, drawn so that nobody chose them with a key in hand.

Whoever knows a key and picks the rows can have any model agree with it. So the rows come from a *pool* whose Merkle root the
log has from before it committed to the key, and a seed draws them: a hash of a value that nobody knew when the suspect was
fixed, of the root, and of the suspect. Then the key is independent of the rows, and who could try n seeds gains a factor of n
at most. All is exact arithmetic, so that every machine draws the same rows."""

import hashlib
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.crypto.merkle import HASH_SIZE, check_inclusion, inclusion_path, leaf_hash, node_hash, root_of
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.extraction.features import Embedding
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Rows = NDArray[np.float32]

DRAWN = 2_000
"""Probes that are drawn of a pool, or all of it where it has no more."""
POOLED, WIDE, PART = 16_384, 1 << 24, 1 << 18
"""Rows of a release's own pool: so many, fewer where they would hold more values than ``WIDE``, and never fewer than are drawn;
values that are worked out at once, which stay in the processor's cache."""
NEIGHBOURS = 5
_TAG = b"modelkeep/probes/2"
_POOL = b"modelkeep/pool/1"


class Pool:
    """Rows (n, d) in order, as float32, and the Merkle tree (RFC 9162) whose leaves are their little-endian bytes."""

    def __init__(self, rows: NDArray[np.floating]) -> None:
        """Raises Invalid (no rows, or numbers that are not finite)."""
        self.rows: Rows = np.ascontiguousarray(rows, dtype="<f4") + np.float32(0.0)  # a zero has one sign only
        if self.rows.ndim != 2 or not self.rows.size or not np.isfinite(self.rows).all():
            raise Invalid("a pool of probes is rows of finite numbers")

    def __len__(self) -> int:
        """How many rows."""
        return len(self.rows)

    @property
    def root(self) -> str:
        """The Merkle root, 64 hex digits."""
        return root_of(self._levels[0]).hex()

    def paths(self, index: Ints) -> NDArray[np.uint8]:
        """The inclusion paths of the rows at ``index`` (m,): (m, depth, 32), from the leaf upwards, zeros behind its end."""
        found = [inclusion_path(one, len(self), lambda level, at: self._levels[level][at]) for one in index.tolist()]
        out = np.zeros((len(index), (len(self) - 1).bit_length(), HASH_SIZE), dtype=np.uint8)
        for into, path in zip(out, found, strict=True):
            for at, sibling in enumerate(path):
                into[at] = np.frombuffer(sibling, dtype=np.uint8)
        return out

    @cached_property
    def _levels(self) -> list[list[bytes]]:
        """Hashes of the complete subtrees, by level; level 0 is the leaf hashes."""
        levels = [[leaf_hash(row.tobytes()) for row in self.rows]]
        while len(below := levels[-1]) > 1:
            levels.append([node_hash(below[at], below[at + 1]) for at in range(0, len(below) - 1, 2)])
        return levels


def check_paths(x: Floats, index: Ints, paths: NDArray[Any], root: str, rows: int) -> None:
    """Check that the rows ``x`` (m, d) stand at ``index`` (m,) of the pool of so many ``rows`` called ``root``, by ``paths``,
    as ``Pool.paths`` has them. Raises NotTrusted."""
    with np.errstate(over="ignore"):
        plain = np.ascontiguousarray(x, dtype="<f4")
    depth = max(rows - 1, 0).bit_length()
    if (
        not np.array_equal(plain, x)
        or index.shape != (len(x),)
        or paths.shape != (len(x), depth, HASH_SIZE)
        or paths.dtype != np.uint8
    ):
        raise NotTrusted("the probes are not rows of a pool, each with its place and its path")
    for row, at, path in zip(plain, index.tolist(), paths, strict=True):
        siblings = [path[level].tobytes() for level in range(_length(at, rows))]
        check_inclusion(leaf_hash(row.tobytes()), at, rows, siblings, bytes.fromhex(root))


def _length(index: int, size: int) -> int:
    """How many siblings the inclusion path of leaf ``index`` of a tree of ``size`` leaves has."""
    length, last = 0, size - 1
    while last > 0:
        length += 1 if index % 2 or index < last else 0
        index, last = index // 2, last // 2
    return length


def drawn(beacon: bytes, root: str, rows: int, suspect: bytes, count: int = DRAWN) -> Ints:
    """The places (m,) of the probes for a suspect with the SHA-256 ``suspect`` in the pool called ``root``: ``count`` of its
    ``rows``, or all of them, each once.

    A Fisher-Yates shuffle by the 8-byte little-endian words of SHAKE-256 (FIPS 202) over a tag, the SHA-256 of the ``beacon``
    (a value that nobody knew when the suspect was fixed, b"" = none), the root and the suspect's SHA-256.
    """
    count, order = min(count, rows), np.arange(rows)
    said = _TAG + hashlib.sha256(beacon).digest() + bytes.fromhex(root) + suspect
    words = np.frombuffer(hashlib.shake_256(said).digest(8 * count), dtype="<u8").tolist()
    for at, word in enumerate(words):
        other = at + word % (rows - at)
        order[at], order[other] = order[other], order[at]
    return order[:count].astype(np.int64)


def draw_pool(embedding: Embedding, count: int = 0) -> Pool:
    """The pool of a release, which its profile's ``embedding`` says: ``count`` (0 = as many as its width allows) points, each
    between a remembered row and one of its nearest neighbours."""
    return Pool(np.concatenate(list(_parts(embedding, count or _room(embedding)))))


def name_pool(embedding: Embedding) -> tuple[str, int]:
    """Root and rows of ``draw_pool``, without holding it."""
    leaves = [leaf_hash(row.tobytes()) for part in _parts(embedding, _room(embedding)) for row in part]
    return root_of(leaves).hex(), len(leaves)


def _room(embedding: Embedding) -> int:
    return max(DRAWN, min(POOLED, WIDE // len(embedding.mean)))


def _parts(embedding: Embedding, count: int) -> Iterator[Rows]:
    near = _neighbours(embedding.memory)
    words = np.frombuffer(hashlib.shake_256(_POOL).digest(24 * count), dtype="<u8").reshape(count, 3)
    first = (words[:, 0] % len(near)).astype(np.int64)
    second = near[first, (words[:, 1] % near.shape[1]).astype(np.int64)]
    mix = (words[:, 2] >> np.uint64(11)).astype(np.float64)[:, None] * 2.0**-54
    points = (1.0 - mix) * embedding.memory[first] + mix * embedding.memory[second]
    step = max(1, PART // len(embedding.mean))
    for at in range(0, count, step):
        yield _outwards(embedding, points[at : at + step])


def _outwards(embedding: Embedding, points: Floats) -> Rows:
    """Rows (n, d) of ``points`` (n, r). One component after the other: a matrix product sums in another order elsewhere."""
    rows = np.zeros((len(points), len(embedding.mean)))
    for component in range(points.shape[1]):
        rows += points[:, component, None] * embedding.basis[None, :, component]
    rows = embedding.mean + embedding.scale * rows
    return np.clip(rows, embedding.low, embedding.high).astype("<f4") + np.float32(0.0)


def _neighbours(memory: Floats) -> Ints:
    """The nearest other rows of each row of ``memory`` (m, r), by distances of whole numbers: (m, up to 5)."""
    _, exponent = np.frexp(np.abs(memory).max(initial=1.0))
    whole = np.rint(memory * 2.0 ** (20 - int(exponent))).astype(np.int64)
    found = np.zeros((len(whole), max(1, min(NEIGHBOURS, len(whole) - 1))), dtype=np.int64)
    for at, row in enumerate(whole):
        gaps = ((whole - row) ** 2).sum(axis=1)
        gaps[at] = -1
        found[at] = np.argsort(gaps, kind="stable")[1 : 1 + found.shape[1]] if len(whole) > 1 else 0
    return found


def probe_seed(beacon: bytes, suspect: bytes) -> int:
    """The seed of probes for a suspect with the SHA-256 ``suspect`` (32 bytes) by a value that nobody could know when the
    suspect was fixed: SHA-256 over a domain tag, the beacon's SHA-256 and the suspect's."""
    said = b"modelkeep/probes/1" + hashlib.sha256(beacon).digest() + suspect
    return int.from_bytes(hashlib.sha256(said).digest(), "big")


def draw_probes(profile: Profile, count: int, seed: int) -> Floats:
    """``count`` inputs (count, d) like natural rows, from the profile alone: points between a remembered row and one of its
    near neighbours. Draw them once the suspect is fixed, with a seed that neither side chose alone (a public beacon).
    """
    rng = np.random.default_rng(seed)
    memory = profile.embedding.memory
    first = rng.integers(len(memory), size=count)
    gaps = ((memory[first][:, None] - memory[None]) ** 2).sum(axis=2)
    second = np.argsort(gaps, axis=1)[np.arange(count), rng.integers(1, min(6, len(memory)), size=count)]
    mix = rng.uniform(0.0, 0.5, size=(count, 1))
    points = (1 - mix) * memory[first] + mix * memory[second]
    rows = profile.embedding.mean + profile.embedding.scale * (points @ profile.embedding.basis.T)
    return np.clip(rows, profile.embedding.low, profile.embedding.high).astype(np.float32).astype(np.float64)
