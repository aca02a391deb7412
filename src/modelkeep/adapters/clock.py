"""The machine's clock and entropy."""

import secrets
import time


class SystemClock:
    """``Clock`` of this machine."""

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        return time.time_ns()

    monotonic = staticmethod(time.monotonic)
    """Seconds since an arbitrary start; never decreases. The function itself: it is called ten times an answer."""

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


class SystemEntropy:
    """``Entropy`` from the operating system."""

    def token(self, size: int) -> bytes:
        """``size`` fresh random bytes."""
        return secrets.token_bytes(size)
