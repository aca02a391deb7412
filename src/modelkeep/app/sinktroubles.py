"""Incidents about audit sinks, and the log entry without which a break-glass is not in force."""

from collections.abc import Callable

from modelkeep.app.keep import Keep
from modelkeep.app.premises import Premises
from modelkeep.errors import Invalid
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.breakglass import BREAK_GLASS, LONGEST_SECONDS, Glass, GlassWatch

AUDIT_SINK = "audit-sink"
_PATIENCE = 5.0
"""A sink in trouble for this long is an incident, seconds."""


class SinkTroubles:
    """Reports when a sink gets into trouble or out of it, and opens an incident where it stays there, and for every use of a
    break-glass."""

    def __init__(self, premises: Premises, audit: AuditSeries, report: Callable[[str], None]) -> None:
        self._keep, self._audit, self._report = Keep(premises), audit, report
        self._monotonic = premises.clock.monotonic
        self._since: dict[str, float] = {}
        self._told: set[str] = set()

    def look(self) -> None:
        """Open what is not open yet. Raises Unavailable."""
        now = self._monotonic()
        for sink in self._audit.sinks():
            if sink.state == "ok":
                if self._since.pop(sink.name, None) is not None:
                    self._report(f"the audit sink {sink.name} is well again")
                self._told.discard(sink.name)
                continue
            if sink.name not in self._since:
                self._since[sink.name] = now
                self._report(f"the audit sink {sink.name} is {sink.state}: {sink.why}")
            if now - self._since[sink.name] > _PATIENCE and sink.name not in self._told:
                self._keep.raise_incident(AUDIT_SINK, sink.name, f"this audit sink is {sink.state}: {sink.why}")
                self._told.add(sink.name)
        waiving = self._audit.waiving
        if not waiving:
            self._told.discard(BREAK_GLASS)
        elif BREAK_GLASS not in self._told:
            detail = f"answers leave without required audit sinks, {waiving}"
            self._keep.raise_incident(BREAK_GLASS, self._audit.current.instance, detail)
            self._told.add(BREAK_GLASS)


def log_break_glass(keep: Keep, glass: Glass, report: Callable[[str], None]) -> None:
    """Put what the settings say about a break-glass into the releases log, once, and open an incident for it.

    Raises Invalid (it is to last longer than 24 hours), NotTrusted, Unavailable.
    """
    wanted, here = glass.wanted, keep.premises
    if wanted is None:
        return
    now = here.clock.now_ns()
    if wanted.until <= now:
        report(f"the break-glass of the settings ended, {wanted.text}: take it out")
        return
    registry = here.registry()
    GlassWatch(glass, here.trust).catch_up(registry.view, registry.view.checkpoint.size)
    if not glass.allowed:
        if wanted.until - now > LONGEST_SECONDS * 1_000_000_000:
            raise Invalid(f"[audit] break_glass lasts at most 24 hours from now, and {wanted.text} is later")
        keep.act(BREAK_GLASS, wanted.text, reason=wanted.reason)
        glass.allow(now)
    said = f"required audit sinks may be done without, {glass() or 'but no longer: its 24 hours are over'}"
    keep.raise_incident(BREAK_GLASS, wanted.text, said, again=False)
    report(f"BREAK-GLASS: {said}")
