"""Tell systemd how this process is: READY, STATUS, STOPPING, and a sign of life for its watchdog.

The protocol is one datagram to the socket that the environment names; without one nothing is sent. Source: sd_notify(3).
"""

import os
import socket
import time
from collections.abc import Callable, Mapping

_PATIENCE = 1.0


class Notifier:
    """Says how a service is. ``beat`` may be called often: it speaks twice in each of the watchdog's periods."""

    def __init__(self, environ: Mapping[str, str] = os.environ, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._address = environ.get("NOTIFY_SOCKET", "")
        self._monotonic = monotonic
        period, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        mine = period.isdigit() and int(period) > 0 and pid in ("", str(os.getpid()))
        self._pause = int(period) / 2e6 if mine else float("inf")
        self._next = 0.0
        self._ready = ""

    def ready(self, status: str) -> None:
        """It serves, or waits sealed, as ``status`` says; said once for every status."""
        if status != self._ready and self._say(f"READY=1\nSTATUS={status}"):
            self._ready = status

    def stopping(self) -> None:
        """It stops."""
        self._say("STOPPING=1\nSTATUS=stopping")

    def beat(self) -> None:
        """It lives."""
        if self._pause < float("inf") and (now := self._monotonic()) >= self._next:
            self._next = now + self._pause
            self._say("WATCHDOG=1", patience=0.0)

    def _say(self, text: str, patience: float = _PATIENCE) -> bool:
        """Whether it was said. Never waits for long: whoever does not read must not hold a server up."""
        if not self._address:
            return True
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as end:
                end.settimeout(patience)
                end.sendto(text.encode(), address)
        except OSError:  # who asked to be told is gone, or does not read; a server goes on without it
            return False
        return True
