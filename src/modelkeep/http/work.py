"""Puzzles and their solutions as header fields: of HTTP, and as metadata of gRPC. The page: docs/formats/puzzle.md."""

import re
from collections.abc import Mapping

from modelkeep.access.work import Solution
from modelkeep.crypto.puzzle import CHALLENGE_BYTES
from modelkeep.errors import Invalid, WorkRequired

PUZZLE, SOLUTION = b"modelkeep-puzzle", b"modelkeep-solution"
_SOLUTION = re.compile(rb"[0-9a-f]{80}")
"""Challenge and nonce, in hexadecimal."""


def solution(headers: Mapping[bytes, bytes]) -> Solution | None:
    """What came with a request; None when nothing did. Raises Invalid (it is written otherwise)."""
    value = headers.get(SOLUTION)
    if value is None:
        return None
    if not _SOLUTION.fullmatch(value):
        raise Invalid("modelkeep-solution is a challenge and a nonce: 64 and 16 hexadecimal digits, in lower case")
    raw = bytes.fromhex(value.decode("ascii"))
    return Solution(raw[:CHALLENGE_BYTES], raw[CHALLENGE_BYTES:])


def puzzle(error: WorkRequired) -> tuple[tuple[bytes, bytes], ...]:
    """What is to be solved: a string with parameters of RFC 9651; nothing of an error that says nothing of it."""
    if not error.challenge:
        return ()
    return ((PUZZLE, f'"{error.challenge.hex()}";hashes={error.hashes};seconds={error.seconds}'.encode()),)
