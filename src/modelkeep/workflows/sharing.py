"""What the workers of one gateway and the owner of their evidence say to each other: frames of MessagePack, both ways.

A worker follows a release, sends what it answered, and is told every verdict; the owner's beats say that what it was told is
of now. Every message is an array whose first element is its kind. docs/adr/0030 says why.
"""

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Grants, Want
from modelkeep.core.tallies import Series
from modelkeep.errors import Invalid
from modelkeep.extraction.verdicts import Verdict
from modelkeep.workflows.watch import Observation

MAX_FRAME = 32 << 20
"""Bytes of the largest message; whoever sends a larger one is cut off."""
PART_BYTES = 1 << 20
"""A message of answers is closed when it holds this much."""
PART_ROWS = 256
"""And when it holds this many rows: the owner looks at nothing else while it examines one."""
TABLE_PART = 1024
"""Verdicts in one message."""
FRESH = 1.0
"""Seconds for which a beat of the owner allows serving (promise P5)."""
BEAT = 0.1
"""Seconds between two beats."""


class Answered(msgspec.Struct, frozen=True, array_like=True):
    """One answer: record ``at`` of ``instance``; ``x`` (rows, features) float64 if ``wide``, else float32; ``probs`` (rows,
    classes) float64; both little-endian, row-major. ``charged``: of an explanation, which has no rows; ``covariates``: as
    ``Observation`` has them; ``hidden`` (rows, r) float32, or nothing."""

    instance: str
    at: int
    subject: str
    rows: int
    wide: bool
    x: bytes
    probs: bytes
    charged: float = 0.0
    covariates: tuple[str, ...] = ()
    hidden: bytes = b""

    def observation(self) -> Observation:
        """The same with arrays. Raises Invalid (sizes that do not fit)."""
        if not self.rows:
            return Observation(self.at, self.subject, np.empty((0, 0)), np.empty((0, 0)), self.instance, self.charged)
        try:
            x = np.frombuffer(self.x, "<f8" if self.wide else "<f4").reshape(self.rows, -1).astype(np.float64)
            probs = np.frombuffer(self.probs, "<f8")
            probs = probs.reshape(self.rows, -1) if len(probs) else np.empty((self.rows, 0))
            hidden = np.frombuffer(self.hidden, "<f4").reshape(self.rows, -1) if self.hidden else None
        except ValueError as cause:
            raise Invalid(f"an answer's arrays do not fit its {self.rows} rows") from cause
        return Observation(self.at, self.subject, x, probs, self.instance, self.charged, self.covariates, hidden)


class Follow(msgspec.Struct, frozen=True, array_like=True, tag="follow"):
    """Worker: tell me the verdicts on ``release``. ``upto``: records by instance that an owner took from me; they are under a
    checkpoint of their log."""

    release: str
    upto: dict[str, int]


class Answers(msgspec.Struct, frozen=True, array_like=True, tag="answers"):
    """Worker: what I answered, to be examined; ``number`` comes back in ``Examined``."""

    number: int
    release: str
    answers: list[Answered]


class Tally(msgspec.Struct, frozen=True, array_like=True, tag="tally"):
    """Worker: my counts of now. With a ``number`` that is not 0 it asks for everybody's, in ``Tallied``."""

    number: int
    series: list[Series]


class Borrow(msgspec.Struct, frozen=True, array_like=True, tag="borrow"):
    """Worker: lease me units of these limits; answered by ``Borrowed``."""

    number: int
    wants: list[Want]


class GiveBack(msgspec.Struct, frozen=True, array_like=True, tag="give-back"):
    """Worker: I did not use these units, which were granted under ``epoch``."""

    epoch: str
    units: list[tuple[Want, float]]


class Beat(msgspec.Struct, frozen=True, array_like=True, tag="beat"):
    """Owner: all that I had examined at monotonic second ``at`` (of this machine) has been told."""

    at: float


class Standing(msgspec.Struct, frozen=True, array_like=True, tag="standing"):
    """Owner: verdicts in force, and subjects of which nothing is held any more."""

    release: str
    verdicts: dict[str, Verdict]
    gone: list[str]


class Following(msgspec.Struct, frozen=True, array_like=True, tag="following"):
    """Owner: all verdicts on ``release`` were told, and ``unseen`` is that on an account that never asked; or why not."""

    release: str
    unseen: Verdict | None
    problem: str


class Examined(msgspec.Struct, frozen=True, array_like=True, tag="examined"):
    """Owner: what came as ``number`` is in the verdicts that were told."""

    number: int


class Tallied(msgspec.Struct, frozen=True, array_like=True, tag="tallied"):
    """Owner: the counts of all workers."""

    number: int
    series: list[Series]


class Borrowed(msgspec.Struct, frozen=True, array_like=True, tag="borrowed"):
    """Owner: what is leased; "until" is of the monotonic clock of this machine."""

    number: int
    grants: Grants


ToOwner = Follow | Answers | Tally | Borrow | GiveBack
ToWorker = Beat | Standing | Following | Examined | Tallied | Borrowed

_ENCODER = msgspec.msgpack.Encoder()
_TO_OWNER = msgspec.msgpack.Decoder(ToOwner)
_TO_WORKER = msgspec.msgpack.Decoder(ToWorker)


def encode(message: ToOwner | ToWorker) -> bytes:
    """One message."""
    return _ENCODER.encode(message)


def for_owner(frame: bytes) -> ToOwner:
    """A message that a worker sent. Raises Invalid."""
    try:
        message: ToOwner = _TO_OWNER.decode(frame)
    except msgspec.MsgspecError as cause:
        raise Invalid(f"a worker sent what is no message: {cause}") from cause
    return message


def for_worker(frame: bytes) -> ToWorker:
    """A message that the owner sent. Raises Invalid."""
    try:
        message: ToWorker = _TO_WORKER.decode(frame)
    except msgspec.MsgspecError as cause:
        raise Invalid(f"the owner of the evidence sent what is no message: {cause}") from cause
    return message


def answered(one: Observation) -> Answered:
    """An observation to send."""
    x: NDArray[Any] = np.ascontiguousarray(one.x)
    wide = x.dtype != np.float32
    x = x.astype("<f8" if wide else "<f4", copy=False)
    probs = np.ascontiguousarray(one.probs, "<f8")
    arrays = x.tobytes(), probs.tobytes()
    hidden = b"" if one.hidden is None else np.ascontiguousarray(one.hidden, "<f4").tobytes()
    return Answered(one.instance, one.at, one.subject, len(x), wide, *arrays, one.charged, one.covariates, hidden)


def parts(observations: list[Observation]) -> list[list[Answered]]:
    """Answers cut into what one message may hold, in order."""
    out: list[list[Answered]] = []
    size = rows = 0
    for one in map(answered, observations):
        size, rows = size + len(one.x) + len(one.probs), rows + one.rows
        if not out or size > PART_BYTES or rows > PART_ROWS:
            out.append([])
            size, rows = len(one.x) + len(one.probs), one.rows
        out[-1].append(one)
    return out
