"""The witness protocol, both sides, without a socket: what is asked, what is answered, and what a witness remembers.

A witness cosigns a checkpoint once it has proven that the log continues the last checkpoint it cosigned. What it cosigned is
durable before the cosignature leaves, so no crash lets it cosign two histories of one log. Source: C2SP tlog-witness.
"""

import hashlib
import re
import threading
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import NamedTuple

from modelkeep.core.ports import Clock, LogFiles
from modelkeep.crypto.cosignatures import Cosigner, cosignatures
from modelkeep.crypto.merkle import EMPTY_ROOT, check_consistency
from modelkeep.crypto.notes import (
    MAX_SIZE,
    Checkpoint,
    NoteVerifier,
    SignatureLine,
    open_note,
    parse_checkpoint,
    signature_line,
    split_note,
)
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.ledger.proofs import Continuation

MAX_REQUEST = 128 << 10
"""Largest request, bytes: room for 63 hashes and some thirty post-quantum signatures."""
MAX_ANSWER = 64 << 10
SIZE_TYPE = "text/x.tlog.size"
_SIZE = r"0|[1-9][0-9]{0,18}"
_KNOWN = re.compile(rf"({_SIZE})\n\Z".encode())


class Objection(Enum):
    """Why a witness does not cosign."""

    MALFORMED = "malformed"
    UNKNOWN_LOG = "unknown log"
    NOT_SIGNED = "not signed by the log"
    STALE = "the witness has seen another size"
    FORK = "another tree of the same size"
    BAD_PROOF = "does not continue what was seen"


class Refusal(NamedTuple):
    """A witness does not cosign. ``size``: of the last checkpoint it cosigned, where the objection is STALE."""

    objection: Objection
    why: str
    size: int = 0


class Heard(NamedTuple):
    """A checkpoint that a witness may cosign: ``text`` of the note, and the log's own signature lines that hold."""

    checkpoint: Checkpoint
    text: str
    lines: tuple[SignatureLine, ...]


KnownLogs = Mapping[str, Sequence[NoteVerifier]]
"""The keys that each log signs with, by its origin."""


def hear(note: bytes, logs: KnownLogs) -> Heard | Refusal:
    """Look at a checkpoint: is it of a log that is known, and signed by it?"""
    try:
        text, lines = split_note(note)
        found = parse_checkpoint(text)
    except NotTrusted as cause:
        return Refusal(Objection.MALFORMED, str(cause))
    if found.origin not in logs:
        return Refusal(Objection.UNKNOWN_LOG, f"the log {found.origin[:200]!r} is not known here")
    good: list[SignatureLine] = []
    for verifier in logs[found.origin]:
        try:
            open_note(note, verifier)
        except NotTrusted:
            continue
        good += [line for line in lines if (line.name, line.data[:4]) == (verifier.name, verifier.key_id)]
    if not good:
        return Refusal(Objection.NOT_SIGNED, f"no signature of a key of the log {found.origin} holds")
    return Heard(found, text, tuple(good))


def judge(asked: Continuation, found: Checkpoint, last: Checkpoint | None) -> Refusal | None:
    """Whether a witness that last cosigned ``last`` (None: nothing of this log) may cosign ``found``; None = it may."""
    size, root = (last.size, last.root) if last else (0, EMPTY_ROOT)
    if asked.old > found.size:
        return Refusal(Objection.MALFORMED, f"the old size {asked.old} is larger than the checkpoint's, {found.size}")
    if asked.old != size:
        return Refusal(Objection.STALE, f"the last checkpoint cosigned here has the size {size}", size)
    if found.size == size and found.root != root:
        return Refusal(Objection.FORK, f"the tree of size {size} cosigned here has another root: the log forked")
    try:
        check_consistency(size, root, found.size, found.root, asked.path)
    except NotTrusted as cause:
        return Refusal(Objection.BAD_PROOF, str(cause))
    return None


class Witness:
    """A witness with its memory in ``files``: for each log the last checkpoint that it cosigned, with the cosignatures.

    Thread-safe; ``files`` must be its own (no second process). Every answer rests on what the files say now.
    """

    def __init__(self, files: LogFiles, keys: Sequence[Cosigner], logs: KnownLogs, clock: Clock) -> None:
        """``keys``: each gives one cosignature."""
        self._files, self._keys, self._logs, self._clock = files, tuple(keys), logs, clock
        self._turn = threading.Lock()

    @property
    def origins(self) -> tuple[str, ...]:
        """The logs that are known here."""
        return tuple(self._logs)

    def add_checkpoint(self, body: bytes) -> bytes | Refusal:
        """Cosign, or say why not. The answer is signature lines. Raises NotTrusted (the memory is damaged), Unavailable."""
        try:
            asked = Continuation.parse(body)
        except Invalid as cause:
            return Refusal(Objection.MALFORMED, str(cause))
        heard = hear(asked.checkpoint, self._logs)
        if isinstance(heard, Refusal):
            return heard
        with self._turn:
            last, at = self._remembered(heard.checkpoint.origin)
            refusal = judge(asked, heard.checkpoint, last)
            if refusal is None:
                return self._cosign(heard, at)
            if refusal.objection in (Objection.FORK, Objection.BAD_PROOF):
                self._keep_refused(heard.checkpoint.origin, body)
            return refusal

    def _cosign(self, heard: Heard, at: int) -> bytes:
        """Remember, durably, and only then let the cosignatures go. The time never goes backwards."""
        now = max(self._clock.now_ns() // 10**9, at)
        made = [key.cosign(heard.text, now).encode() for key in self._keys]
        note = heard.text.encode() + b"\n" + b"".join([line.encode() for line in heard.lines] + made)
        self._files.write(checkpoint_path(heard.checkpoint.origin), note)
        return b"".join(made)

    def _keep_refused(self, origin: str, body: bytes) -> None:
        """Keep the last request that contradicts what was seen: signed by the log, it is evidence against it."""
        path = refused_path(origin)
        try:
            if self._files.read(path) == body:
                return
        except Missing:
            pass
        self._files.write(path, body)

    def latest(self, folder: str) -> bytes:
        """The last checkpoint cosigned of the log whose folder that is, with the cosignatures. Raises Missing, Unavailable."""
        if not any(folder == origin_folder(origin) for origin in self._logs):
            raise Missing("no log of this name is known here")
        return self._files.read(f"{folder}/checkpoint")

    def _remembered(self, origin: str) -> tuple[Checkpoint | None, int]:
        try:
            note = self._files.read(checkpoint_path(origin))
        except Missing:
            return None, 0
        return remembered(note, origin, self._keys)


def remembered(note: bytes, origin: str, keys: Sequence[Cosigner]) -> tuple[Checkpoint, int]:
    """What a witness remembers of the log ``origin``: a checkpoint with a cosignature of its own, and its time, Unix seconds.

    Raises NotTrusted: damaged, or of another witness. Then it must not cosign anything of this log any more.
    """
    try:
        found = parse_checkpoint(split_note(note)[0])
        times = cosignatures(note, [key.verifier for key in keys])
    except NotTrusted as cause:
        raise NotTrusted(f"what this witness remembers of the log {origin} is damaged: {cause}") from cause
    if not times or found.origin != origin:
        raise NotTrusted(f"what this witness remembers of the log {origin} is not signed by its keys: it was altered")
    return found, max(times.values())


def origin_folder(origin: str) -> str:
    """The name under which a witness keeps and serves what it saw of a log: the SHA-256 of its origin, in hex."""
    return hashlib.sha256(origin.encode()).hexdigest()


def checkpoint_path(origin: str) -> str:
    """Where a witness keeps the last checkpoint it cosigned of a log."""
    return f"{origin_folder(origin)}/checkpoint"


def refused_path(origin: str) -> str:
    """Where a witness keeps the last request that contradicted it, whole."""
    return f"{origin_folder(origin)}/refused"


def parse_answer(status: int, content_type: str, body: bytes) -> tuple[SignatureLine, ...] | Refusal:
    """A witness's answer as the log reads it: signature lines (not checked), or why not. Raises NotTrusted (malformed)."""
    if status == 200:
        try:
            text = body.decode()
        except UnicodeDecodeError as cause:
            raise NotTrusted("the answer is not UTF-8") from cause
        if not text.endswith("\n"):
            raise NotTrusted("the answer does not end in a newline")
        return tuple(signature_line(line) for line in text[:-1].split("\n"))
    if status == 409 and content_type == SIZE_TYPE:
        known = _KNOWN.match(body)
        if known is None or int(known[1]) > MAX_SIZE:
            raise NotTrusted("the answer 409 says no size")
        return Refusal(Objection.STALE, "it has seen another size", int(known[1]))
    objections = {
        400: Objection.MALFORMED,
        403: Objection.NOT_SIGNED,
        404: Objection.UNKNOWN_LOG,
        409: Objection.FORK,
        422: Objection.BAD_PROOF,
    }
    if status not in objections:
        raise NotTrusted(f"the answer has the status {status}")
    return Refusal(objections[status], objections[status].value)
