"""Flipped labels, for an account that a review put on the last rung: few answers are false, and the owner can tell which.

For a keyed share of the *spots*, small cells of the input space of which natural questions rarely share one, the two leading
classes change places. A spot and not the question decides, so that asking again, with less noise than a spot is wide, is told
the same. A copy that memorises its answers keeps the flips; whoever has the account's key, which was committed to before its
first answer, knows every one. Source: Szyller, Atli, Marchal, Asokan 2021, "DAWN: Dynamic Adversarial Watermarking of Neural
Networks", there by a key of the owner, here by one of each account.
"""

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from modelkeep.crypto.kdf import hkdf
from modelkeep.errors import Invalid
from modelkeep.extraction.deceive import exchanged
from modelkeep.extraction.features import margin
from modelkeep.extraction.profile import Profile

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

LEAST_SHARE, MOST_SHARE = 0.001, 0.1
"""Shares of the spots that a review may have flipped."""
COORDINATES = 6
BITS = 20
"""Natural rows fill about 2^20 spots."""
_NORMAL = math.sqrt(2.0 * math.pi * math.e)
"""A normal coordinate of deviation 1 has the entropy of a uniform one of this width."""
_BINS = 24
_LEAST_USUAL = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Spots:
    """Spot = floor((x - mean) @ slope + an offset by the key). ``mean``: (d,); ``slope``: (d, at most 6). No secret."""

    mean: Floats
    slope: Floats

    def places(self, x: Floats) -> Floats:
        """Where rows ``x`` (n, d) lie, in widths of a spot, (n, coordinates)."""
        rows = np.asarray(x, dtype=np.float32).astype(np.float64)
        out: Floats = np.einsum("nd,dc->nc", rows - self.mean, self.slope)  # one row at a time or many: the same numbers
        return out


@lru_cache(maxsize=64)
def spots_of(profile: Profile) -> Spots:
    """The spots of a profile: cubes along its leading principal coordinates, of which the deviation is 1."""
    embedding = profile.embedding
    count = min(COORDINATES, embedding.basis.shape[1])
    width = _NORMAL * 2.0 ** (-BITS / count)
    slope = embedding.basis[:, :count] / embedding.scale[:, None] / (width * embedding.spread[:count])
    return Spots(np.array(embedding.mean, dtype=np.float64), np.array(slope, dtype=np.float64))


class Flipper:
    """Says which answers to one account are flipped. ``key``: the account key k_u, 32 bytes. Raises Invalid (its length)."""

    def __init__(self, key: bytes, spots: Spots) -> None:
        if len(key) != 32:
            raise Invalid(f"an account key has 32 bytes, not {len(key)}")
        self._key = hkdf(key, salt=b"", info=b"modelkeep/flip/1")
        self._spots = spots
        drawn = hkdf(key, salt=b"", info=b"modelkeep/flip-offset/1")[: 4 * spots.slope.shape[1]]
        self._offset = np.frombuffer(drawn, dtype="<u4") / 2.0**32

    def names(self, x: Floats) -> list[bytes]:
        """The spot of each row of ``x`` (n, d)."""
        cells = np.floor(self._spots.places(x) + self._offset) + 0.0  # a zero has one sign only
        return [cell.tobytes() for cell in cells.astype("<f8")]

    def flips(self, names: list[bytes], share: float) -> Bools:
        """Whether answers in these spots are flipped, (n,): a larger ``share`` flips the same ones and more."""
        said = (hashlib.blake2b(name, key=self._key, digest_size=8).digest() for name in names)
        return np.array([int.from_bytes(each, "big") < share * 2.0**64 for each in said], dtype=bool)


def flipped(flipper: Flipper, x: Floats, probs: Floats, share: float) -> Floats:
    """Answers of which about ``share`` have another class on top. ``x``: (b, d); ``probs``: (b, k), marked; a new array."""
    return exchanged(probs, flipper.flips(flipper.names(x), share))


@dataclass(frozen=True, slots=True, eq=False)
class Told:
    """What a suspect answers to rows: ``clean`` (n, k), the model's own answers, and ``read`` (n, k), the suspect's."""

    clean: Floats
    read: Floats

    def instead(self) -> Bools:
        """Whether the suspect tells the model's second class, (n,)."""
        rest = np.array(self.clean)
        rest[np.arange(len(rest)), self.clean.argmax(axis=1)] = -1.0
        found: Bools = self.read.argmax(axis=1) == rest.argmax(axis=1)
        return found

    def leaning(self) -> Floats:
        """Log odds of the model's second class against its first, as the suspect has them, (n,)."""
        rows, order = np.arange(len(self.clean)), np.argsort(-self.clean, axis=1, kind="stable")
        out: Floats = np.log((self.read[rows, order[:, 1]] + 1e-3) / (self.read[rows, order[:, 0]] + 1e-3))
        return out


def flip_scores(asked: Told, probes: Told) -> list[Floats]:
    """How much each answer of a suspect looks as if it had been taught a flip, in several ways, (n,) each; no key is in it.

    ``asked``: to the questions, in order. The score of a question is of the suspect's answer to it, of those to questions
    before it, and of the probes: so it is settled before the key says whether that question was flipped.
    """
    return [_surprise(asked, probes), _leaning(asked, probes)]


def _bins(asked: Told, probes: Told) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Which answers the model is about as sure of: numbers 0 ... 23 of the questions and of the probes."""
    known = margin(probes.clean)
    edges = np.quantile(known, np.linspace(0.0, 1.0, _BINS + 1)[1:-1])
    return np.searchsorted(edges, margin(asked.clean)), np.searchsorted(edges, known)


def _surprise(asked: Told, probes: Told) -> Floats:
    """0 where the suspect does not tell the second class, and -log of how often it does where the model is as sure."""
    bins, known = _bins(asked, probes)
    hits = np.bincount(known, probes.instead(), minlength=_BINS) + 0.5
    count = np.bincount(known, minlength=_BINS) + 1.0
    out = np.zeros(len(bins))
    for i, (at, hit) in enumerate(zip(bins.tolist(), asked.instead().tolist(), strict=True)):
        if hit:
            out[i] = -math.log(max(hits[at] / count[at], _LEAST_USUAL))
        hits[at] += hit
        count[at] += 1.0
    return out


def _leaning(asked: Told, probes: Told) -> Floats:
    """How far the suspect leans to the second class beyond what it does where the model is as sure, by deviations, -1 ... 1."""
    bins, known = _bins(asked, probes)
    lean = probes.leaning()
    count = np.bincount(known, minlength=_BINS) + 2.0
    usual = (np.bincount(known, lean, minlength=_BINS) + 2.0 * lean.mean()) / count
    wide = (lean - usual[known]) ** 2
    spread = np.sqrt((np.bincount(known, wide, minlength=_BINS) + 2.0 * wide.mean()) / count) + 0.1
    out: Floats = np.clip((asked.leaning() - usual[bins]) / (4.0 * spread[bins]), -1.0, 1.0)
    return out


def first_of(names: list[bytes]) -> NDArray[np.int64]:
    """Where each spot stands first, ascending: what is asked there later may depend on what was answered."""
    return np.array(sorted({name: i for i, name in reversed(list(enumerate(names)))}.values()), dtype=np.int64)
