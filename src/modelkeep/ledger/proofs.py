"""Proofs that travel: texts that show, with the log's verifier key alone, that an entry is in the log, or that it only grew.

Inclusion is C2SP tlog-proof. Its optional ``extra`` line carries the entry itself, so that the file is complete; the entry is
trusted only because it hashes to the leaf that the path proves. Continuation is what C2SP tlog-witness sends to a witness: old
size, consistency path and new checkpoint. Whoever checks it holds the old checkpoint, as a witness does.
"""

import base64
import re
from dataclasses import dataclass

from modelkeep.crypto.merkle import HASH_SIZE, check_consistency, check_inclusion, leaf_hash
from modelkeep.crypto.notes import MAX_SIZE, Checkpoint, open_checkpoint, unbase64
from modelkeep.errors import Invalid, NotTrusted

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF = 1 << 20
MAX_STEPS = 63
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})\Z")
_INDEX = re.compile(r"index (0|[1-9][0-9]{0,18})\Z")


@dataclass(frozen=True)
class Proof:
    """Entry ``index`` of a log, the sibling hashes from its leaf upwards, and the signed checkpoint they lead to."""

    index: int
    entry: bytes
    path: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The proof as C2SP tlog-proof text."""
        lines = [HEADER, f"extra {base64.b64encode(self.entry).decode()}", f"index {self.index}"]
        lines += [base64.b64encode(step).decode() for step in self.path]
        return "\n".join([*lines, "", ""]).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> "Proof":
        """Undo ``encode``; proves nothing yet. Raises Invalid: not a tlog-proof with the entry in its ``extra`` line."""
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as cause:
            raise Invalid("not a log proof: expected C2SP tlog-proof text") from cause
        if len(data) > MAX_PROOF or not blank or lines[0] != HEADER:
            raise Invalid("not a log proof: expected C2SP tlog-proof text")
        index = _INDEX.match(lines[2]) if len(lines) > 2 and lines[1].startswith("extra ") else None
        if index is None:
            raise Invalid("the log proof has no 'extra' line with the entry, or no 'index' line")
        path = tuple(unbase64(line) for line in lines[3:])
        if any(len(step) != HASH_SIZE for step in path):
            raise Invalid("a hash in the log proof does not have 32 bytes")
        return cls(int(index[1]), unbase64(lines[1].removeprefix("extra ")), path, checkpoint)


def check_proof(data: bytes, vkey: str, origin: str | None = None) -> tuple[Proof, Checkpoint]:
    """Check a proof with nothing but the log's verifier key. ``origin`` defaults to the key's name.

    Raises NotTrusted (the signature, the path or the entry does not hold), Invalid (not a proof, not a key).
    """
    try:
        proof = Proof.parse(data)
    except Invalid as cause:
        raise NotTrusted(f"the proof cannot be read: {cause}") from cause
    checkpoint = open_checkpoint(proof.checkpoint, vkey, vkey.partition("+")[0] if origin is None else origin)
    check_inclusion(leaf_hash(proof.entry), proof.index, checkpoint.size, proof.path, checkpoint.root)
    return proof, checkpoint


@dataclass(frozen=True)
class Continuation:
    """The consistency path from the first ``old`` entries of a log to the signed checkpoint: what a witness is asked."""

    old: int
    path: tuple[bytes, ...]
    checkpoint: bytes

    def encode(self) -> bytes:
        """The body of an add-checkpoint request. Source: C2SP tlog-witness."""
        lines = [f"old {self.old}", *(base64.b64encode(step).decode() for step in self.path)]
        return "\n".join([*lines, "", ""]).encode() + self.checkpoint

    @classmethod
    def parse(cls, data: bytes) -> "Continuation":
        """Undo ``encode``; proves nothing yet. Raises Invalid."""
        head, blank, checkpoint = data.partition(b"\n\n")
        try:
            first, *lines = head.decode("ascii").split("\n")
        except UnicodeDecodeError as cause:
            raise Invalid("not a consistency proof: expected the text of C2SP tlog-witness") from cause
        old = _OLD.match(first)
        if len(data) > MAX_PROOF or not blank or old is None or len(lines) > MAX_STEPS or int(old[1]) > MAX_SIZE:
            raise Invalid("expected the line 'old SIZE', at most 63 hashes, an empty line and a checkpoint")
        path = tuple(unbase64(line) for line in lines)
        if any(len(step) != HASH_SIZE for step in path):
            raise Invalid("a hash in the consistency proof does not have 32 bytes")
        return cls(int(old[1]), path, checkpoint)


def is_continuation(data: bytes) -> bool:
    """Whether ``data`` is meant to be a ``Continuation`` rather than a ``Proof``."""
    return data.startswith(b"old ")


def origin_of(proof: bytes) -> str:
    """The origin that the checkpoint in a proof of either kind names, not checked. Raises Invalid."""
    checkpoint = (Continuation.parse(proof) if is_continuation(proof) else Proof.parse(proof)).checkpoint
    return checkpoint.partition(b"\n")[0].decode(errors="replace")


def check_continuation(data: bytes, kept: bytes, vkey: str) -> tuple[Checkpoint, Checkpoint]:
    """Check that a log continues the signed checkpoint ``kept``; both checkpoints, the kept one first.

    Raises NotTrusted (a signature or the path does not hold, or it proves from another size), Invalid (not a key).
    """
    try:
        found = Continuation.parse(data)
    except Invalid as cause:
        raise NotTrusted(f"the proof cannot be read: {cause}") from cause
    origin = vkey.partition("+")[0]
    before, after = open_checkpoint(kept, vkey, origin), open_checkpoint(found.checkpoint, vkey, origin)
    if before.size != found.old:
        raise NotTrusted(f"the proof begins at {found.old} entries, and the kept checkpoint has {before.size}")
    check_consistency(before.size, before.root, after.size, after.root, found.path)
    return before, after
