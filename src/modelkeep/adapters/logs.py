"""What a server process says of itself: one line an event on standard error, as text for people or JSON for machines.

Every line has time, level, process and a stable event name; other fields are named by whoever speaks. What looks like a secret
is cut out of every line, whoever wrote it, and line ends are written out, so that nobody's words pass for a line of ours. A
line that comes again within seconds is counted instead of written.
"""

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import msgspec

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "text", "json"]
LEVELS: Final[dict[Level, int]] = {"debug": 10, "info": 20, "warning": 30, "error": 40}
REPEAT_SECONDS = 10.0
MAX_FIELD = 2048
_MOST_REMEMBERED = 256

_CUT = "[cut out]"
_SECRETS = re.compile(
    r"""(?x)
    \bmk[a-z]{0,2}_[A-Za-z0-9_-]{12,}                           # API keys and their kin
    | \beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,3}   # JWS and JWE
    | \b(?i:keepshare|modelkeep-recovery)-?[A-Za-z0-9-]{12,}    # shares, however they were typed, and recovery identities
    | \botpauth://[^\s"]+                                       # secrets of second factors
    | \bwhsec_[A-Za-z0-9+/=]{8,}                                # webhook secrets
    | (?<=[Bb]earer\ )[!-~]{6,}
    | (?<=[Dd][Pp]o[Pp]\ )[!-~]{20,}
    | (?<=://)[^/@\s:"]*:[^/@\s"]+(?=@)                         # passwords in URLs
    | -----BEGIN\ [A-Z\ ]*PRIVATE\ KEY-----.*?(?:-----END\ [A-Z\ ]*PRIVATE\ KEY-----|\Z)
    """,
    re.DOTALL,
)
_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def redact(text: str) -> str:
    """``text`` without what looks like a secret, and without what would end a line or steer a terminal."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], _SECRETS.sub(_CUT, text))


class Log:
    """Where a process says what happens. Thread-safe; a stream that is gone loses lines and stops nothing."""

    def __init__(
        self,
        process: str,
        *,
        form: Format = "auto",
        level: Level = "info",
        repeat_seconds: float = REPEAT_SECONDS,
        stream: TextIO | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        """``form``: auto is text on a terminal and JSON elsewhere. ``repeat_seconds``: 0 writes every line."""
        self._stream = stream or sys.stderr
        self._process, self._least = process, LEVELS[level]
        self.json = form == "json" or (form == "auto" and not self._stream.isatty())
        self._repeat, self._monotonic, self._now = repeat_seconds, monotonic, now
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}
        self._turn = threading.Lock()

    def event(self, level: Level, event: str, message: str = "", /, **fields: Any) -> None:
        """Say that ``event`` happened. Fields that are None or "" are left out."""
        if LEVELS[level] < self._least:
            return
        said = redact(message)
        with self._turn:
            again = self._again(event, said) if message else 0
            if again < 0:
                return
            if again:
                fields["repeated"] = again
            self._write(level, event, said, fields)

    def tell(self, message: str) -> None:
        """Something happened that was to happen."""
        self.event("info", "notice", message)

    def report(self, message: str) -> None:
        """Something is wrong, and the process goes on."""
        self.event("warning", "trouble", message)

    def _again(self, event: str, message: str) -> int:
        """How often the line was left out since it was last written; -1 when it is left out now."""
        if not self._repeat:
            return 0
        now, key = self._monotonic(), (event, message)
        last, times = self._seen.get(key, (float("-inf"), 0))
        if now - last < self._repeat:
            self._seen[key] = last, times + 1
            return -1
        self._seen.pop(key, None)
        while len(self._seen) >= _MOST_REMEMBERED:
            self._seen.pop(next(iter(self._seen)))
        self._seen[key] = now, 0
        return times

    def _write(self, level: Level, event: str, message: str, fields: dict[str, Any]) -> None:
        at = datetime.fromtimestamp(self._now(), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
        plain = {name: _plain(value) for name, value in fields.items() if value not in (None, "")}
        if self.json:
            line = {"time": at, "level": level, "process": self._process, "event": event}
            if message:
                line["message"] = message
            text = msgspec.json.encode({**line, **{name: each for name, each in plain.items() if name not in line}}).decode()
        else:
            pairs = "".join(f" {name}={value}" for name, value in plain.items())
            text = f"{at} {level.upper():7} {self._process}: {message or event}{pairs}"
        try:
            self._stream.write(text + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            return  # nobody reads: a full pipe or a closed stream stops no server


class Handler(logging.Handler):
    """Lines of libraries that use Python's logging, as events of ours: without the values that a traceback quotes."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record."""
        level: Level = "error" if record.levelno >= logging.ERROR else "warning"
        failure = record.exc_info[1] if record.exc_info else None
        places = (
            [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_tb(failure.__traceback__)[-3:]] if failure else []
        )
        said = str(record.msg) if failure else record.getMessage()
        self._log.event(level, "library", said, logger=record.name, error=type(failure).__name__ if failure else "", at=places)


def take_over_logging(log: Log) -> None:
    """Have what libraries log, asyncio's own complaints among it, written by ``log``."""
    logging.basicConfig(handlers=[Handler(log)], level=logging.WARNING, force=True)
    logging.captureWarnings(True)


def standard_error(process: str, form: Format, level: Level, repeat_seconds: float) -> Log:
    """The log of a process, on standard error."""
    if sys.stderr.closed:
        return Log(process, form=form, level=level, repeat_seconds=repeat_seconds, stream=open(os.devnull, "w"))  # noqa: PTH123
    return Log(process, form=form, level=level, repeat_seconds=repeat_seconds)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return redact(str(value))[:MAX_FIELD]
