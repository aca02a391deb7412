"""Verbs that judge models again: what is judged by older rules, one release, all of them."""

from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.scanresults import CLEAN, UNCLEAN, UNDECIDED, UNREADABLE, Rescanned, StaleScan
from modelkeep.app.verbs import verb
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.opinions import undecided
from modelkeep.errors import ModelkeepError
from modelkeep.workflows.rescan import Judged, rescan, stale

SCAN = "scan"
"""Kind of an incident about a verdict."""


class ScanVerbs(OversightVerbs):
    """scan --release, scan --stale."""

    @verb("list")
    def stale_scans(self) -> tuple[StaleScan, ...]:
        """One release of each model that was judged by older rules, or other versions of scanners, than those of now."""
        return tuple(_stale(evidence) for evidence in stale(self.premises.registry(), self.premises.scanner))

    @verb("scan")
    def rescan(self, *, ref: str) -> Rescanned:
        """Judge the model of a release by the rules and scanners of now, and say so of its digest in the log.

        One that is not clean is put into quarantine, with every release of the same model, and an incident is opened. When the
        only thing against it is that another scanner failed, nothing is logged: an incident says so.
        Raises Missing, Conflict (collected), NotTrusted (damaged), Denied, Unavailable.
        """
        done = rescan(self.premises.desk(), self.ref(ref), actor=self.actor.subject)
        answer = _rescanned(done)
        if answer.outcome != CLEAN:
            first = answer.findings[0]
            detail = f"{answer.outcome} by rules {answer.rules_version}: {first.message} [{first.rule} at {first.where}]"
            for about in answer.quarantined or (answer.ref,):
                self.raise_incident(SCAN, about, detail, again=answer.outcome == UNCLEAN)
        return answer

    @verb("scan")
    def rescan_stale(self) -> tuple[Rescanned, ...]:
        """``rescan`` of every model in ``stale_scans``. One that cannot be read does not keep the others from it."""
        found = stale(self.premises.registry(), self.premises.scanner)
        return tuple(self._again(evidence) for evidence in found)

    def _again(self, evidence: ReleaseEvidence) -> Rescanned:
        ref, scanner = str(evidence.ref), self.premises.scanner
        try:
            return self.rescan(ref=ref)
        except ModelkeepError as problem:
            at, why = (scanner.name, scanner.rules_version), str(problem)
            return Rescanned(ref, evidence.model, UNREADABLE, *at, (), (), -1, (), problem=why)


def _stale(evidence: ReleaseEvidence) -> StaleScan:
    said = evidence.scan
    if said is None:
        return StaleScan(str(evidence.ref), evidence.model, "", "", ())
    return StaleScan(str(evidence.ref), evidence.model, said.scanner, said.rules_version, said.opinions)


def _rescanned(done: Judged) -> Rescanned:
    verdict = done.verdict
    bad = UNDECIDED if undecided(verdict) else UNCLEAN
    return Rescanned(
        str(done.evidence.ref),
        done.evidence.model,
        CLEAN if verdict.clean else bad,
        verdict.scanner,
        verdict.rules_version,
        verdict.findings,
        verdict.opinions,
        done.index,
        tuple(map(str, done.quarantined)),
    )
