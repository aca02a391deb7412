"""Break-glass: for a while, answers may leave without the audit sinks that are required. The journal is never waived.

The setting alone does nothing. Control, which holds the signing key, puts it into the releases log as an act when it starts; a
gateway does without sinks only while it has seen that act, signed by whom the trust root names, and at most 24 hours after it.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, ModelkeepError
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import Act, Trust
from modelkeep.ledger.statements import peek_type, predicate_of

BREAK_GLASS = "break-glass"
LONGEST_SECONDS = 86_400
LONGEST_REASON = 300
_FORM = '"until 2026-12-01T00:00Z: why"'
_BATCH = 256


class BreakGlass(NamedTuple):
    """``until``: Unix nanoseconds, and ``text`` the same as it was written; ``reason``: who decided it and why."""

    until: int
    text: str
    reason: str


def parse_break_glass(setting: str) -> BreakGlass | None:
    """What the setting ``audit.break_glass`` says; None when it is empty. Raises Invalid."""
    if not setting:
        return None
    moment, _, reason = setting.removeprefix("until ").partition(": ")
    reason = reason.strip()
    try:
        until = datetime.fromisoformat(moment)
    except ValueError:
        until = None
    if not setting.startswith("until ") or until is None or until.tzinfo is None or not reason:
        raise Invalid(f"[audit] break_glass has the form {_FORM}, with a time zone and a reason, unlike {setting[:80]!r}")
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise Invalid(f"[audit] break_glass has a reason of more than {LONGEST_REASON} characters, or of more than one line")
    since = until.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return BreakGlass(since // timedelta(microseconds=1) * 1000, moment, reason)


class Glass:
    """Whether a break-glass is in force in this process."""

    def __init__(
        self, wanted: BreakGlass | None, now_ns: Callable[[], int], monotonic: Callable[[], float] = lambda: 0.0
    ) -> None:
        """``wanted``: what the settings say. Nothing is in force before ``allow``. ``monotonic``: seconds that nobody sets."""
        self.wanted = wanted
        self._now, self._monotonic = now_ns, monotonic
        self._until = 0
        self._ends = 0.0
        self._highest = 0
        self._lock = threading.Lock()

    def allow(self, at: int) -> None:
        """The act was logged at ``at``, Unix nanoseconds; the first one counts."""
        with self._lock:
            if self.wanted is not None and not self._until:
                self._until = min(self.wanted.until, at + LONGEST_SECONDS * 1_000_000_000)
                self._ends = self._monotonic() + min((self._until - self._now()) / 1e9, LONGEST_SECONDS)

    @property
    def allowed(self) -> bool:
        """Whether the act was seen in the log."""
        return self._until > 0

    def __call__(self) -> str:
        """Until when and why, while it is in force; else empty. A clock that is put back neither revives nor prolongs it."""
        if self.wanted is None or not self._until:
            return ""
        self._highest = max(self._highest, self._now())
        over = self._highest >= self._until or self._monotonic() > self._ends
        return "" if over else f"until {self.wanted.text}: {self.wanted.reason}"


class GlassWatch:
    """Looks for the act in the releases log. Acts that no trusted identity signed count for nothing."""

    def __init__(self, glass: Glass, trust: TrustRoot) -> None:
        self._glass = glass
        self._signatories = Signatories(trust)
        self._size = 0

    def catch_up(self, view: LogView, size: int) -> None:
        """Read the log up to ``size`` entries, where something is wanted. Raises NotTrusted, Unavailable."""
        while self._glass.wanted is not None and self._size < size:
            for entry in view.entries(self._size, min(size, self._size + _BATCH)):
                self._see(entry, self._size)
                self._size += 1

    def _see(self, entry: bytes, index: int) -> None:
        """The evidence book reports what is wrong with an entry."""
        try:
            envelope = parse_envelope(entry)
            kind = peek_type(envelope)
            if kind not in (Act.TYPE, Trust.TYPE):
                return
            statement, _ = self._signatories.check(envelope, index)
            if kind == Trust.TYPE:
                self._signatories.follow(index, envelope, statement)
                return
            said = predicate_of(statement, Act)
        except ModelkeepError:
            return
        wanted = self._glass.wanted
        if wanted and (said.verb, said.about, said.detail.get("reason")) == (BREAK_GLASS, wanted.text, wanted.reason):
            self._glass.allow(said.at)
