"""What the record of an answer says, and the key of its subject that seals it.

A body holds everything that the evidence needs to be rebuilt from the log alone: the input as the model took it, the raw
probabilities and the ones that were served. It is sealed under a random key of its subject, which is wrapped by the
``audit-subject`` family: dropping that one record erases what the log says about a subject and leaves every proof intact. That
it was dropped stands in the releases log, so that a copy of the record is of no use to whoever puts it back.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.epochs import Epochs, epoch_key, never_erased
from modelkeep.core.ports import Change, Entropy, Record, Records, Wrapper
from modelkeep.crypto.wrap import WRAPPED_SIZE, Sealer, join_wrapped, open_bytes, split_wrapped
from modelkeep.errors import Conflict, Missing, NotTrusted

T = TypeVar("T")

SUBJECT_KEY = "audit-key"
"""Record kind: the wrapped key of one subject; the key is the subject (and epoch, core/epochs)."""

MAX_CACHED = 100_000
MAX_SEALERS = 16
_FIRST_KEY = "file:audit-subject/1"
_BODY_VERSION = 1


class Body(msgspec.Struct, frozen=True, array_like=True, tag=False):
    """The plain body of an answer's record, as MessagePack: an array of these fields in this order.

    ``version``: 1; ``rows``: queries; ``x``: (rows, features), little-endian, row-major, float64 if ``wide`` and float32
    otherwise; ``raw`` and ``served``: (rows, classes) float64 in the same way, empty when the model is no classifier;
    ``outputs``: what was answered then, as the JSON that left; ``rung``: the ladder's rung in force; ``network``: the name of
    the network that asked (access/networks), 8 bytes or nothing; records of before have none; ``hidden``: (rows, r) float32
    coordinates of the model's inner layer, in the same way, or nothing when the evidence looks at none; ``epoch``: of the
    account key that marked the answer, 0 where nothing did.
    """

    version: int
    rows: int
    wide: bool
    x: bytes
    raw: bytes
    served: bytes
    outputs: bytes
    rung: int
    network: bytes = b""
    hidden: bytes = b""
    epoch: int = 0

    def inputs(self) -> NDArray[np.float64]:
        """The inputs, shape (rows, features)."""
        return np.frombuffer(self.x, "<f8" if self.wide else "<f4").reshape(self.rows, -1).astype(np.float64)

    def raw_probs(self) -> NDArray[np.float64]:
        """The model's own probabilities, shape (rows, classes); (rows, 0) when the model is no classifier."""
        return np.frombuffer(self.raw, "<f8").reshape(self.rows, -1)

    def coordinates(self) -> NDArray[np.float32] | None:
        """The coordinates of the inner layer, shape (rows, r); None when there are none."""
        return np.frombuffer(self.hidden, "<f4").reshape(self.rows, -1) if self.hidden else None

    def served_probs(self) -> NDArray[np.float64]:
        """The probabilities that left, shape (rows, classes); (rows, 0) when the model is no classifier."""
        return np.frombuffer(self.served, "<f8").reshape(self.rows, -1)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Body)
_EMPTY = b""


def encode_body(
    x: NDArray[Any],
    raw: NDArray[np.float64] | None,
    served: bytes,
    outputs: bytes,
    rung: int,
    network: bytes = b"",
    hidden: NDArray[np.float32] | None = None,
    epoch: int = 0,
) -> bytes:
    """The plain body of an answer. ``x``: shape (rows, features), float32 or float64; the rest as ``Body`` has it."""
    raw_bytes = _EMPTY if raw is None else raw.tobytes()
    seen = _EMPTY if hidden is None else hidden.tobytes()
    body = Body(_BODY_VERSION, len(x), x.itemsize == 8, x.tobytes(), raw_bytes, served, outputs, rung, network, seen, epoch)
    return _ENCODER.encode(body)


def decode_body(data: bytes) -> Body:
    """Read a plain body. Raises NotTrusted (malformed, or of a later version)."""
    try:
        body = _DECODER.decode(data)
    except msgspec.DecodeError as cause:
        raise NotTrusted(f"the body of an audit record is malformed: {cause}") from cause
    if body.version != _BODY_VERSION:
        raise NotTrusted(
            f"the body of an audit record has version {body.version}; this modelkeep knows version {_BODY_VERSION}"
        )
    return body


class SubjectWrapping(Protocol):
    """What wraps the keys of subjects; every ``WrappingKeys`` does. Both are asked at every use: keys rotate meanwhile."""

    def wrapper(self) -> Wrapper:
        """The primary. Raises Denied, Unavailable."""
        ...

    def opens(self, key_id: str) -> Wrapper | None:
        """The version that ``key_id`` names; None when it is another key's. Raises Missing, Unavailable."""
        ...


class _Held(NamedTuple):
    """A key at hand: the epoch of its subject that it is of, and what seals with it, by release."""

    epoch: int
    key: bytes
    sealers: dict[str, Sealer]


class SubjectKeys:
    """The body keys of all subjects: one for each epoch of a subject, kept wrapped in the records, cached here."""

    def __init__(self, records: Records, wrapping: SubjectWrapping, entropy: Entropy, epochs: Epochs = never_erased) -> None:
        """``epochs``: of subjects, as the releases log says *now*: a key of an earlier one is not used, wherever it lies."""
        self._records, self._wrapping, self._entropy, self._epochs = records, wrapping, entropy, epochs
        self._keys: dict[str, _Held] = {}

    def cached(self, subject: str) -> bytes | None:
        """The key if it is at hand and its subject was not erased since; never touches the disk."""
        found = self._keys.get(subject)
        return found.key if found is not None and found.epoch == self._epochs(subject) else None

    def sealer(self, subject: str, release: str) -> Sealer | None:
        """What seals bodies of ``subject`` about ``release``, if the key is at hand, as ``cached``; never touches the disk."""
        found = self._keys.get(subject)
        if found is None or found.epoch != self._epochs(subject):
            return None
        sealer = found.sealers.get(release)
        if sealer is None:
            if len(found.sealers) >= MAX_SEALERS:
                found.sealers.clear()
            sealer = found.sealers[release] = Sealer(found.key, body_context(subject, release))
        return sealer

    def forget(self, subject: str) -> None:
        """Drop the key from memory."""
        self._keys.pop(subject, None)

    def key(self, subject: str) -> bytes:
        """The 32-byte key of ``subject``, made and stored when there is none. Raises Unavailable, NotTrusted, Denied."""
        try:
            return self.existing(subject)
        except Missing:
            return self._make(subject)

    def existing(self, subject: str) -> bytes:
        """The key of ``subject``. Raises Missing (there is none, or it was erased), Unavailable, NotTrusted, Denied."""
        found = self.cached(subject)
        if found is not None:
            return found
        epoch = self._epochs(subject)
        record = self._records.get(SUBJECT_KEY, epoch_key(subject, epoch))
        return self._remember(subject, epoch, _unwrap(record, self._wrapping))

    def open(self, sealed: bytes, subject: str, release: str) -> Body:
        """A sealed body of a record that the log vouches for.

        Raises Missing (its subject was erased since), NotTrusted, Unavailable, Denied.
        """
        return self.opened(subject, lambda key: open_body(key, sealed, subject, release))

    def opened(self, subject: str, opening: Callable[[bytes], T]) -> T:
        """What ``opening`` makes of the key of ``subject`` and of what a record that the log vouches for has sealed.

        Raises Missing (its subject was erased since), NotTrusted, Unavailable, Denied, and what ``opening`` raises.
        """
        key = self.existing(subject)
        try:
            return opening(key)
        except NotTrusted:
            if self._epochs(subject):  # the record is whole: so the body was sealed under a key that is gone
                raise Missing(f"this record of {subject} was erased") from None
            raise

    def _make(self, subject: str) -> bytes:
        key, epoch = self._entropy.token(32), self._epochs(subject)
        name = epoch_key(subject, epoch)
        try:
            self._records.commit([Change(SUBJECT_KEY, name, _wrap(key, name, self._wrapping.wrapper()), 0)])
        except Conflict:  # another gateway made it first
            return self.existing(subject)
        return self._remember(subject, epoch, key)

    def _remember(self, subject: str, epoch: int, key: bytes) -> bytes:
        if len(self._keys) >= MAX_CACHED:
            self._keys.pop(next(iter(self._keys)), None)
        self._keys[subject] = _Held(epoch, key, {})
        return key


def subject_key_id(record: Record) -> str:
    """Which key a subject's key is wrapped under. Raises NotTrusted (malformed)."""
    return _split(record)[0]


def rewrapped_subject(record: Record, wrapping: SubjectWrapping, wrapper: Wrapper) -> bytes:
    """The record's body with the same key wrapped by ``wrapper``. Raises NotTrusted, Denied, Missing, Unavailable."""
    return _wrap(_unwrap(record, wrapping), record.key, wrapper)


def _wrap(key: bytes, name: str, wrapper: Wrapper) -> bytes:
    return join_wrapped(wrapper.key_id, wrapper.wrap(key, _context(name)))


def _unwrap(record: Record, wrapping: SubjectWrapping) -> bytes:
    key_id, wrapped = _split(record)
    found = wrapping.opens(key_id)
    if found is None:
        raise NotTrusted(f"the audit key of {record.key} is wrapped under {key_id[:80]}, which this keep does not know")
    return found.unwrap(wrapped, _context(record.key))


def _split(record: Record) -> tuple[str, bytes]:
    body = record.body or b""
    if len(body) == WRAPPED_SIZE:  # written before keys could rotate: under the first one, and without saying so
        return _FIRST_KEY, body
    return split_wrapped(body, f"the audit key of {record.key[:80]}")


def _context(name: str) -> bytes:
    return b"modelkeep/audit-key/1\x00" + name.encode()


def body_context(subject: str, release: str) -> bytes:
    """What a sealed body is bound to."""
    return f"modelkeep/audit-body/1\0{subject}\0{release}".encode()


def open_body(key: bytes, sealed: bytes, subject: str, release: str) -> Body:
    """Open a body that a ``SubjectKeys.sealer`` sealed, and read it. Raises NotTrusted."""
    return decode_body(open_bytes(key, sealed, body_context(subject, release)))
