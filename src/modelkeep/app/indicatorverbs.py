"""Verbs about threat intelligence on whoever copies models: take a file of indicators, list them, take a source away."""

from modelkeep.app.accountresults import IndicatorRow, IndicatorsTaken
from modelkeep.app.acting import Acts
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change
from modelkeep.core.values import digest_of, to_json
from modelkeep.errors import Missing, TooLarge
from modelkeep.extraction.indicators import MAX_INDICATORS, Indicator, parse_indicators
from modelkeep.workflows.cautions import INDICATORS, load_indicators
from modelkeep.workflows.decisions import INDICATE


class IndicatorVerbs(Acts):
    """intel indicators, intel indicate, intel forget."""

    @verb("intel.import")
    def intel_indicate(self, *, data: bytes, source: str) -> IndicatorsTaken:
        """Put the indicators of a STIX 2.1 bundle or a CSV file in force, in place of those that ``source`` gave before.

        What is over already is left out. Logged; gateways follow before this returns. Raises Invalid, TooLarge, NotTrusted.
        """
        parsed, now = parse_indicators(data, source), self.premises.clock.now_ns()
        fresh = tuple(one for one in parsed.found if not one.until or now < one.until)
        index = self._replace(source, fresh)
        return IndicatorsTaken(source, len(fresh), len(parsed.found) - len(fresh), parsed.passed_over, index)

    @verb("intel.import")
    def intel_forget(self, *, source: str) -> IndicatorsTaken:
        """Take all indicators of a source out of force; budgets that they lowered are as before. Logged. Raises Missing."""
        if all(one.source != source for one in self._in_force()[1]):
            raise Missing(f"there is no indicator of the source {source[:64]!r}")
        return IndicatorsTaken(source, 0, 0, 0, self._replace(source, ()))

    @verb("review")
    def intel_indicators(self) -> tuple[IndicatorRow, ...]:
        """The indicators in force, with where they are from and until when they hold. Raises NotTrusted."""
        now = self.premises.clock.now_ns()
        return tuple(
            IndicatorRow(one.kind, one.value, one.source, one.id, one.since, one.until, one.holds(now))
            for one in self._in_force()[1]
        )

    def _in_force(self) -> tuple[str, tuple[Indicator, ...]]:
        digest = self.premises.decisions().indicators
        return digest, load_indicators(self.premises.records, digest)

    def _replace(self, source: str, fresh: tuple[Indicator, ...]) -> int:
        before, held = self._in_force()
        whole = (*(one for one in held if one.source != source), *fresh)
        if len(whole) > MAX_INDICATORS:
            raise TooLarge(f"there are at most {MAX_INDICATORS:,} indicators in force, of all sources")
        body, records = to_json(whole), self.premises.records
        digest = str(digest_of(body))
        known = {record.key: record.revision for record in records.scan(INDICATORS)}
        if digest not in known:
            records.commit([Change(INDICATORS, digest, body, 0)])
        index = self.act(INDICATE, source, digest=digest, count=str(len(fresh)))
        self.premises.settle_lease()
        old = [key for key in known if key not in (digest, before)]
        records.commit([Change(INDICATORS, key, None, known[key]) for key in old])
        return index
