"""Verbs about the witnesses of this keep's releases log: how it stands, and asking them now."""

from modelkeep.adapters.witnesses import HttpWitnesses, trust_of
from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.verbs import verb
from modelkeep.app.witnessing import inside
from modelkeep.app.witnessresults import WitnessReport, WitnessRow
from modelkeep.errors import NotTrusted
from modelkeep.ledger.quorum import LogPolicy
from modelkeep.workflows.cosign import Cosigning, Told, read_told

INCIDENT = "witness"


class WitnessVerbs(OversightVerbs):
    """witness status/ask."""

    @verb("status")
    def witnesses(self) -> WitnessReport:
        """Who cosigned the releases log, and how far, as was last told. Raises NotTrusted, Missing, Invalid, Unavailable."""
        policy = self.premises.witness_policy.read()
        names = [witness.name for witness in policy.witnesses] if policy else []
        return self._report(policy, {name: read_told(self.premises.records, name) for name in names})

    @verb("status")
    def witness_ask(self) -> WitnessReport:
        """Ask the witnesses that have not cosigned the newest checkpoint. Raises NotTrusted, Missing, Invalid, Unavailable."""
        return self.ask_witnesses(self.cosigning())

    def cosigning(self) -> Cosigning:
        """What asks the witnesses of the releases log; it remembers whom to leave alone for a while."""
        here = self.premises
        return Cosigning(here.releases_files(), here.trust.releases_log, here.records, self._witnesses(), here.clock)

    def _witnesses(self) -> HttpWitnesses:
        here, name = self.premises, self.premises.settings.witness.ca
        return HttpWitnesses(trust_of(inside(here.directory, name, "witness.ca")) if name else None)

    def ask_witnesses(self, cosigning: Cosigning) -> WitnessReport:
        """One round, for whoever acts; an incident is opened for every witness that contradicts the log."""
        policy = self.premises.witness_policy.read()
        try:
            told = {} if policy is None else cosigning.round(self.premises.view(), policy)
            for name, found in told.items():
                if found.contradicts:
                    self.raise_incident(INCIDENT, name, found.problem)
            return self._report(policy, told)
        except NotTrusted as cause:
            self.raise_incident(INCIDENT, "log", str(cause))
            raise

    def _report(self, policy: LogPolicy | None, told: dict[str, Told]) -> WitnessReport:
        registry = self.premises.registry()
        found = registry.witnessed()
        rows = []
        for witness in policy.witnesses if policy else ():
            one = told[witness.name]
            rows.append(
                WitnessRow(witness.name, witness.verifier.name, witness.url, one.size, one.at, one.problem, one.contradicts)
            )
        return WitnessReport(
            origin=self.premises.trust.releases_origin,
            vkey=self.premises.trust.releases_log,
            log_size=registry.book.size,
            quorum=policy.quorum if policy else "",
            witnessed=found.size if found else 0,
            names=found.names if found else (),
            witnesses=tuple(rows),
        )
