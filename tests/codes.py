"""One-time codes for tests, by the clock of this machine."""

import time

from modelkeep.access.totp import PERIOD, code_of, step_at


def code_before(secret: bytes, *, seconds: float = 10.0) -> str:
    """The code of the step before this one, which stays good for ``seconds`` at least: the end of the step is waited out."""
    left = PERIOD - time.time() % PERIOD
    if left < seconds:
        time.sleep(left)
    return code_of(secret, step_at(int(time.time())) - 1)
