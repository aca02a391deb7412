"""Judge the model of a release again, by the rules and scanners of now: a new scan statement, and quarantine for what is bad.

Quarantine comes before the statement. Cut off between the two, the model counts as judged by older rules still, and the next
look finds it again; the other way round a release that is known to be bad could stay where it is.
"""

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, ReleaseState, Resource
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.opinions import Scanner, undecided
from modelkeep.custody.releases import QUARANTINE
from modelkeep.custody.scan import ScanVerdict
from modelkeep.custody.signing import scan_statement
from modelkeep.errors import Conflict
from modelkeep.workflows.registry import MODEL, Desk, Registry
from modelkeep.workflows.release_state import change_state

STANDING = (ReleaseState.PUBLISHED, ReleaseState.PROMOTED, ReleaseState.QUARANTINED)
_AT_LARGE = (ReleaseState.PUBLISHED, ReleaseState.PROMOTED)


class Judged(msgspec.Struct, frozen=True):
    """A model that was judged again. ``index``: of the scan statement in the log, -1 when none was made because nothing was
    decided; ``quarantined``: releases of it that were put into quarantine for it.
    """

    evidence: ReleaseEvidence
    verdict: ScanVerdict
    index: int
    quarantined: tuple[ReleaseRef, ...]


def stale(registry: Registry, scanner: Scanner) -> tuple[ReleaseEvidence, ...]:
    """One release of each model that stands and was judged by older rules or scanners than those of now. Raises NotTrusted."""
    is_stale, found = scanner.staleness(), dict[Digest, ReleaseEvidence]()
    for evidence in registry.refresh().releases():
        if evidence.state in STANDING and is_stale(evidence.scan):
            found.setdefault(evidence.model, evidence)
    return tuple(found.values())


def rescan(desk: Desk, ref: ReleaseRef, *, actor: str) -> Judged:
    """Open the sealed model of ``ref`` in memory, judge it, and say so of its digest in the log.

    What is not clean is put into quarantine, every release of the same model. When the only thing against it is that another
    scanner failed, nothing is logged and nothing is changed: the model is as it was, and remains to be judged.
    Raises Missing, Conflict (its model was collected), NotTrusted (damaged), Denied (keys), Unavailable.
    """
    evidence = desk.registry.release(ref)
    if evidence.state is ReleaseState.COLLECTED:
        raise Conflict(f"the sealed model of {ref} was collected: there is nothing to scan")
    opened = desk.registry.open_body(evidence.body, evidence.model, MODEL)
    opened.check_model_digest()
    source = opened.read_source()
    verdict = desk.scanner.judge(source, evidence.filename)
    if undecided(verdict):
        return Judged(evidence, verdict, -1, ())
    quarantined = () if verdict.clean else _put_away(desk, evidence.model, verdict, actor)
    model, now = Resource(evidence.filename, evidence.model), desk.clock.now_ns()
    (index,) = desk.log_statements([scan_statement(model, verdict, size=source.nbytes, actor=actor, at=now)])
    desk.registry.refresh()
    return Judged(evidence, verdict, index, quarantined)


def _put_away(desk: Desk, model: Digest, verdict: ScanVerdict, actor: str) -> tuple[ReleaseRef, ...]:
    first = verdict.findings[0]
    more = f" (and {len(verdict.findings) - 1} more)" if len(verdict.findings) > 1 else ""
    reason = f"scan by rules {verdict.rules_version}: {first.message} [{first.rule} at {first.where}]{more}"[:2000]
    done = []
    for evidence in tuple(desk.registry.refresh().releases()):
        if evidence.model == model and evidence.state in _AT_LARGE:
            try:
                change_state(desk, evidence.ref, QUARANTINE, actor=actor, reason=reason)
            except Conflict:
                if desk.registry.release(evidence.ref).state in _AT_LARGE:
                    raise
                continue  # somebody else took it away meanwhile
            done.append(evidence.ref)
    return tuple(done)
