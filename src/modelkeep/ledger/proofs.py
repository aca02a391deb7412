"""Proofs that travel: one text that shows, with the log's verifier key alone, that an entry is in the log.

The format is C2SP tlog-proof. Its optional ``extra`` line carries the entry itself, so that the file is complete; the entry is
trusted only because it hashes to the leaf that the path proves.
"""

import base64
import re
from dataclasses import dataclass

from modelkeep.crypto.merkle import HASH_SIZE, check_inclusion, leaf_hash
from modelkeep.crypto.notes import Checkpoint, open_checkpoint, unbase64
from modelkeep.errors import Invalid, NotTrusted

HEADER = "c2sp.org/tlog-proof@v1"
MAX_PROOF = 1 << 20
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
