"""Evidence of other gateways of the same keep: what they recorded is read from their audit logs, a moment later.

Each gateway puts its log under a signed checkpoint every second, and this looks once a second: so an account that goes from
gateway to gateway is judged by all of its questions, with two seconds' delay. Nothing but the log is believed.
"""

from collections.abc import Callable, Collection, Sequence

from modelkeep.core.ports import Clock
from modelkeep.errors import Missing, ModelkeepError, NotTrusted, Unavailable
from modelkeep.workflows.evidence import AuditFolder, OwnEvidence

EVERY = 1.0
"""Seconds between two looks."""
LATEST = 5.0
"""Seconds after which evidence that could not be read ends serving (promise P5)."""


class Siblings:
    """Takes in what other processes recorded. ``look`` and ``check`` may be called by different threads."""

    def __init__(
        self,
        evidence: OwnEvidence,
        names: Callable[[], Sequence[str]],
        open_log: Callable[[str], AuditFolder | None],
        ours: Callable[[], Collection[str]],
        clock: Clock,
    ) -> None:
        """``names``: instances that have an audit log; ``open_log``: one of them, None while it has no checkpoint; ``ours``:
        instances whose answers come another way, asked for after ``names``."""
        self._evidence, self._names, self._open, self._ours = evidence, names, open_log, ours
        self._monotonic = clock.monotonic
        self._sizes: dict[str, int] = {}
        self._closed: set[str] = set()
        self._good = clock.monotonic()
        self._problem = ""

    def look(self) -> None:
        """Take in what is new. Raises NotTrusted (a log is damaged), Unavailable."""
        try:
            for name in self._wanted():
                self._take(name)
        except Missing as cause:  # a live log replaced a tile at this moment
            self._problem = str(cause)
        except ModelkeepError as cause:
            self._problem = str(cause)
            raise
        else:
            self._good = self._monotonic()

    def check(self) -> None:
        """Raise Unavailable when the last look that went well is too long ago."""
        if self._monotonic() > self._good + LATEST:
            raise Unavailable(f"what other gateways recorded cannot be read: {self._problem}")

    def _wanted(self) -> list[str]:
        names = self._names()
        done = self._closed | set(self._ours())
        return [name for name in names if name not in done]

    def _take(self, name: str) -> None:
        log = self._open(name)
        known = self._sizes.get(name, -1)
        if log is None:
            if known >= 0:
                raise Unavailable(f"the audit log {name} is gone")
            return
        size = log.size()
        if size < known:
            raise NotTrusted(f"the audit log {name} went back from {known} to {size} records")
        if size == known:
            return
        for ref in self._evidence.by_release():
            self._evidence.catch_up(ref, [log])
        self._sizes[name] = size
        if log.closed():
            self._closed.add(name)
