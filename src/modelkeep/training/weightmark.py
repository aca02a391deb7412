"""A mark in a model's weights: secret signs that the weights lean towards, put in without training and read with the key alone.

A key and an owner's statement decide, through keyed hashes, which weights carry each of 64 bits, with which signs, and what
the bits are. A bit is the sign of a sum over many weights, so no single weight matters: ``embed`` makes each sum lean its way
over all of its weights and also over the largest of them alone, which is what pruning leaves. The change goes where it alters
the outputs of the layers least: where rows are at hand whose answers count, that is where the layers' inputs do not look.

*Theorem* (an exact sign test: Fisher 1935, "The Design of Experiments", chapter III; Dixon and Mood 1946). Let weights W be
made without the key. For given W each bit matches with probability at most 1/2, independently of all others, over the uniform
signs alone, because turning all signs of a bit turns its sum. So the matches of any such model are at most Binomial(64, 1/2)
in the usual stochastic order, whatever its architecture, training or data, and ``p`` bounds the chance of as many.

What is assumed: SHAKE-256 with the key in front is a pseudo-random function, and W does not depend on the key. An owner who
picks a key until it fits weights that are known already breaks the second; a commitment in a log before the suspect was made,
and a look at independent models (``against``), are what stand against that. A secret hash selects the weights as in Yao, Song
and Jin 2026, "Hashed Watermark as a Filter". No unmarked original takes part in reading: whoever may choose what is subtracted
can make any model match.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.crypto.kdf import hkdf
from modelkeep.errors import Invalid
from modelkeep.training.tails import binomial_tail

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Layout = tuple[tuple[int, int], ...]

BITS = 64
FEWEST = 32 * BITS
"""Weights below which a model carries no mark."""
MOST = 16_384 * BITS
"""Weights that carry a mark in a large model."""
LEVELS = (0.0, 0.5, 0.8, 0.9, 0.95)
"""Shares of the smallest weights without which every bit must still stand."""
LEAN = 0.5
"""Least correlation of a bit's weights with its signs, at each level: fine-tuning halves it among the largest weights."""
BOUND = 2.0
"""Most that one weight is changed by, in root mean squares of its matrix."""
WIDEST = 4096
"""Inputs of a layer up to which their second moments are used."""
_ROUNDS, _RIDGE, _SLACK, _STEP = 60, 0.1, 0.02, 0.5


class Plan(NamedTuple):
    """What a key says about models of a layout. ``at``: (64, m) places of the carrying weights in all matrices laid end to
    end; ``signs``: (64, m), ±1, already turned by the bit that is expected, so that every sum is to be positive; ``layout``:
    shapes (out, in).
    """

    at: Ints
    signs: Floats
    layout: Layout


class Reading(NamedTuple):
    """What was read. ``matched`` of ``bits``; ``p``: exact, one-sided, over the key's randomness."""

    matched: int
    bits: int
    p: float


@dataclass(frozen=True, eq=False)
class Embedded:
    """Marked weights. ``matrices``: (out, in) each; ``change``: root mean square of the change over that of the weights, of all
    carrying matrices; ``largest``: of one weight, in root mean squares of its matrix."""

    matrices: tuple[Floats, ...]
    change: float
    largest: float


def layout_of(matrices: Sequence[Floats]) -> Layout:
    """Shapes (out, in) of the matrices that carry a mark: those of both at least 2. Raises Invalid (too few weights)."""
    layout = tuple((int(w.shape[0]), int(w.shape[1])) for w in matrices if min(w.shape) > 1)
    size = sum(rows * columns for rows, columns in layout)
    if size < FEWEST:
        raise Invalid(f"the model has {size:,} floating-point weights in matrices, and a mark needs {FEWEST:,}")
    return layout


def commitment(key: bytes, owner: str, layout: Layout) -> bytes:
    """32 bytes that bind to key, statement and layout and say nothing about the key."""
    return hashlib.sha256(b"modelkeep/weight-mark-commitment/1" + _seed(key, owner, layout)).digest()


def plan_of(key: bytes, owner: str, layout: Layout) -> Plan:
    """Carrying weights and signs. ``key``: 32 bytes; ``owner``: who claims, in words. Raises Invalid (another length)."""
    seed = _seed(key, owner, layout)
    size = sum(rows * columns for rows, columns in layout)
    if size <= MOST:
        order = np.argsort(_stream(seed, b"order", size), kind="stable")
    else:
        drawn = (_stream(seed, b"order", 2 * MOST) % np.uint64(size)).astype(np.int64)
        order = drawn[np.sort(np.unique(drawn, return_index=True)[1])][:MOST]
    each = len(order) // BITS
    at = order[: each * BITS].astype(np.int64).reshape(BITS, each)
    signs = 1.0 - 2.0 * _coins(seed, b"signs", at.size).reshape(at.shape)
    expected = 1.0 - 2.0 * _coins(seed, b"bits", BITS)
    return Plan(at, signs * expected[:, None], layout)


def read(matrices: Sequence[Floats], plan: Plan) -> Reading:
    """How many bits of a mark a model's weights show. Raises Invalid (other shapes, or a number that is not finite).

    The matrices of the plan's layout are looked for in order; layers that somebody added between them are passed over.
    """
    sums = (plan.signs * _flat(_scaled(_fit(matrices, plan.layout))[0])[plan.at]).sum(axis=1)
    matched = int((sums > 0.0).sum())
    return Reading(matched, BITS, binomial_tail(matched, BITS, 0.5))


def embed(matrices: Sequence[Floats], plan: Plan, moments: Sequence[Floats | None] = (), lean: float = LEAN) -> Embedded:
    """Change weights until every bit leans its way at every level; no weight by more than ``BOUND``.

    ``moments``: of each matrix the second moments (in, in) of what it is multiplied with, on rows whose answers count; None
    where unknown. Raises Invalid (other shapes, a number that is not finite, or the bits cannot be placed within the bound).
    """
    chosen = _chosen(matrices, plan.layout)
    scaled, scales = _scaled([matrices[at] for at in chosen])
    paths = [_path(part, moments[at] if at < len(moments) else None) for at, part in zip(chosen, scaled, strict=True)]
    start = _flat(scaled)
    x = start.copy()
    for _ in range(_ROUNDS):
        if not _lean(x, start, plan, paths, lean):
            break
    marked = [np.array(w, dtype=np.float64) for w in matrices]
    for at, part, scale in zip(chosen, _parts(x, plan.layout), scales, strict=True):
        marked[at] = part * scale
    if read(marked, plan).matched < BITS:
        raise Invalid("the weights cannot carry the mark within the bound of change: most of them are zero, or all alike")
    moved = x - start
    change = float(np.sqrt((moved**2).mean() / (start**2).mean()))
    return Embedded(tuple(marked), change, float(np.abs(moved).max()))


def against(found: Reading, others: Sequence[Reading]) -> float:
    """A p-value of ``found`` from independent models: that a model whose bits match as often as theirs at worst shows as many.

    The share of their matches is taken at the upper end of its one-sided 99.9 % interval (Clopper and Pearson 1934). It shows a
    key that was picked to fit what such models have in common. Raises Invalid (none).
    """
    if not others:
        raise Invalid("a claim is held against independent models, and there are none")
    trials, matched = sum(one.bits for one in others), sum(one.matched for one in others)
    if matched == trials:
        return 1.0
    low, high = matched / trials, 1.0
    for _ in range(50):
        middle = (low + high) / 2.0
        if 1.0 - binomial_tail(matched + 1, trials, middle) > 0.001:
            low = middle
        else:
            high = middle
    return binomial_tail(found.matched, found.bits, high)


def _seed(key: bytes, owner: str, layout: Layout) -> bytes:
    if len(key) != 32:
        raise Invalid(f"the key of a weight mark has 32 bytes, not {len(key)}")
    shapes = ",".join(f"{rows}x{columns}" for rows, columns in layout)
    about = hashlib.sha256(owner.encode()).digest() + hashlib.sha256(shapes.encode()).digest()
    return hkdf(key, salt=b"", info=b"modelkeep/weight-mark-seed/1" + about)


def _stream(seed: bytes, label: bytes, count: int) -> NDArray[np.uint64]:
    return np.frombuffer(_hashed(seed, label, 8 * count), dtype="<u8").astype(np.uint64)


def _coins(seed: bytes, label: bytes, count: int) -> Floats:
    packed = np.frombuffer(_hashed(seed, label, -(-count // 8)), dtype=np.uint8)
    return np.unpackbits(packed, count=count, bitorder="little").astype(np.float64)


def _hashed(seed: bytes, label: bytes, size: int) -> bytes:
    """SHAKE-256 (FIPS 202) over the 32-byte seed and a label."""
    return hashlib.shake_256(seed + label).digest(size)


def _chosen(matrices: Sequence[Floats], layout: Layout) -> list[int]:
    """Which of ``matrices`` are those of ``layout``, in order: the first that fits each. Raises Invalid."""
    chosen, at = [], 0
    for shape in layout:
        while at < len(matrices) and matrices[at].shape != shape:
            at += 1
        if at == len(matrices):
            raise Invalid(f"the model has no weight of shape {shape} where the marked one has: it is of another architecture")
        chosen.append(at)
        at += 1
    return chosen


def _fit(matrices: Sequence[Floats], layout: Layout) -> list[Floats]:
    return [matrices[at] for at in _chosen(matrices, layout)]


def _scaled(matrices: Sequence[Floats]) -> tuple[list[Floats], list[float]]:
    """Each over its root mean square, and those."""
    if not all(np.isfinite(w).all() for w in matrices):
        raise Invalid("the model's weights hold NaN or infinite numbers")
    scales = []
    for w in matrices:
        largest = float(np.abs(w).max()) or 1.0  # squares of very small or large numbers would leave the range
        scales.append(largest * float(np.sqrt(((w / largest) ** 2).mean())) or 1.0)
    return [w / scale for w, scale in zip(matrices, scales, strict=True)], scales


def _flat(parts: Sequence[Floats]) -> Floats:
    return np.concatenate([part.ravel() for part in parts])


def _parts(x: Floats, layout: Layout) -> list[Floats]:
    """Views of ``x``, one a matrix."""
    ends = np.cumsum([rows * columns for rows, columns in layout])[:-1]
    return [part.reshape(shape) for part, shape in zip(np.split(x, ends), layout, strict=True)]


def _path(scaled: Floats, moments: Floats | None) -> Floats | float:
    """What to multiply a step with so that the outputs of all layers change by small shares: the inverse of the inputs' second
    moments, (in, in), times what the outputs hold. Inputs that are not known are taken to be alike and independent.
    """
    if moments is None or len(moments) > WIDEST or not float(np.trace(moments)) > 0.0:
        return float((scaled**2).sum())
    size = len(moments)
    seen = moments * (size / np.trace(moments)) + _RIDGE * np.eye(size)
    inverse: Floats = np.linalg.inv(seen)
    return inverse * float(((scaled @ seen) * scaled).sum())


def _lean(x: Floats, start: Floats, plan: Plan, paths: Sequence[Floats | float], lean: float) -> bool:
    """One round over the levels, in place; whether anything lacked."""
    lacked = False
    thresholds = [np.quantile(np.abs(part), LEVELS) for part in _parts(x, plan.layout)]
    for level in range(len(LEVELS)):
        kept = _flat([np.abs(p) >= limits[level] for p, limits in zip(_parts(x, plan.layout), thresholds, strict=True)])[
            plan.at
        ]
        values = np.where(kept, x[plan.at], 0.0)
        count = np.maximum(kept.sum(axis=1), 1)
        wanted = lean * np.sqrt(count * (values**2).sum(axis=1))
        lack = np.maximum(wanted - (plan.signs * values).sum(axis=1), 0.0)
        if (lack <= _SLACK * wanted).all():
            continue
        lacked = True
        step = np.zeros_like(x)
        step[plan.at] = plan.signs * kept * (lack / count)[:, None]
        parts = _parts(step, plan.layout)
        step = _flat([part * path if isinstance(path, float) else part @ path for part, path in zip(parts, paths, strict=True)])
        gain = np.where(kept, plan.signs * step[plan.at], 0.0).sum(axis=1)
        step *= _STEP * max(float((lack * gain).sum()), 0.0) / max(float((gain**2).sum()), 1e-300)
        np.clip(x + step, start - BOUND, start + BOUND, out=x)
    return lacked
