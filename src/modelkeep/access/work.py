"""Work: from a rung of the extraction ladder on, a question is answered once hashes were spent on it.

The gateway sets a puzzle (crypto/puzzle) and keeps nothing of it. Its challenge says until when it is good, and has a MAC over
that, what is asked (an answer or an explanation), account and release, under a key that every gateway of a keep has; so any
of them can check a solution. A challenge is good for many questions, each of which takes its own work, since the body is part
of its puzzle. Who sends the same body again meanwhile pays nothing, and learns nothing.
"""

import hmac

import msgspec

from modelkeep.access.steady import SteadyTime
from modelkeep.access.stepup import StepUp
from modelkeep.access.view import Grant
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Clock
from modelkeep.crypto.puzzle import CHALLENGE_BYTES, check_solution
from modelkeep.errors import NotTrusted, WorkRequired

LIFETIME = 60
"""Seconds that a challenge is good for."""
CLOCK_SKEW = 5
"""Seconds that the clock of another gateway may be ahead of this one's."""
_TIME_BYTES = 8
_MAC_BYTES = CHALLENGE_BYTES - _TIME_BYTES
_NONE = "this account's questions are unusual, and each is answered for a proof of work"
_OVER = "the puzzle that was solved is over"
_FOREIGN = "the puzzle that was solved was not set for this account and release here"
_WRONG = "the solution is none for this body, or for less work"


class Solution(msgspec.Struct, frozen=True, gc=False):
    """What came with a question: the challenge that was solved, 32 bytes, and the nonce that does, 8 bytes."""

    challenge: bytes
    nonce: bytes


class Question(msgspec.Struct, frozen=True, gc=False):
    """What work is asked for. ``action``: predict or explain; ``release``: NAME@VERSION; ``rows``: what it is charged as."""

    action: str
    release: str
    body: bytes
    rows: int
    solution: Solution | None = None


@never_pickled
class Work:
    """Sets puzzles and judges solutions. Safe to use from several threads."""

    def __init__(self, key: bytes, step_up: StepUp, clock: Clock) -> None:
        """``key``: 32 bytes, the same in every gateway of a keep."""
        self._key, self._step_up, self._time = key, step_up, SteadyTime(clock)

    def check(self, grant: Grant, question: Question, bits: int, *, or_factor: bool = False) -> None:
        """Check that 2^``bits`` hashes were spent on each row of ``question``, on average.

        ``or_factor``: a recent second factor does instead. Raises WorkRequired (with a new puzzle): neither is there.
        """
        if or_factor and self._step_up.recent(grant):
            return
        now, subject, hashes = self._time.now(), grant.principal.subject, question.rows << bits
        why = self._fault(subject, question, hashes, now)
        if not why:
            return
        costs = f"{why}: solve the puzzle that came with this, of {hashes:,} hashes"
        factor = self._step_up.required(grant) if or_factor else None
        said = f"{costs}, or show a second factor, and ask on" if or_factor else f"{costs}, and ask again"
        raise WorkRequired(said, self._challenge(subject, question, now + LIFETIME), hashes, LIFETIME, factor)

    def _fault(self, subject: str, question: Question, hashes: int, now: int) -> str:
        """What is wrong with the solution; "" when it is one."""
        solution = question.solution
        if solution is None:
            return _NONE
        end = int.from_bytes(solution.challenge[:_TIME_BYTES])
        if not hmac.compare_digest(solution.challenge, self._challenge(subject, question, end)):
            return _FOREIGN
        if not now < end <= now + LIFETIME + CLOCK_SKEW:
            return _OVER
        try:
            check_solution(solution.challenge, question.body, hashes, solution.nonce)
        except NotTrusted:
            return _WRONG
        return ""

    def _challenge(self, subject: str, question: Question, end: int) -> bytes:
        """The challenge that is good until the Unix second ``end``."""
        at = end.to_bytes(_TIME_BYTES)
        about = "\0".join((question.action, subject, question.release)).encode()
        mac = hmac.digest(self._key, b"modelkeep/work-challenge/1" + at + about, "sha256")
        return at + mac[:_MAC_BYTES]
