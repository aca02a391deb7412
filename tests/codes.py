"""One-time codes for tests, by the clock of this machine."""

import time

from modelkeep.access.totp import PERIOD, code_of, step_at


def code_before(secret: bytes, *, seconds: float = 10.0) -> str:
    """The code of the step before this one, which stays good for ``seconds`` at least: the end of the step is waited out."""
    left = PERIOD - time.time() % PERIOD
    if left < seconds:
        time.sleep(left)
    return code_of(secret, step_at(int(time.time())) - 1)


def wrong_code(secret: bytes) -> str:
    """A code that is not good for the next minutes."""
    soon = {code_of(secret, step_at(int(time.time())) + off) for off in range(-2, 10)}
    return next(code for code in (f"{number:06}" for number in range(20)) if code not in soon)
