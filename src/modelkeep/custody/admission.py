"""The decision to serve a release: the log says promoted, and the admission policy accepts its evidence."""

import math
from collections.abc import Callable, Mapping

import msgspec

from modelkeep.core.values import ReleaseRef
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.dossier import Dossier
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import PROMOTE
from modelkeep.ledger.attestations import Advisory, Privacy
from modelkeep.ledger.cosigned import Witnessed

NANOSECONDS_A_DAY = 86_400 * 10**9
_LARGEST = 922_337_203_685_477.0
"""Of Cedar's decimals."""


class Admission(msgspec.Struct, frozen=True):
    """The decision that a release may be served, on this evidence; ``reasons`` are the policies that permit it."""

    evidence: ReleaseEvidence
    reasons: tuple[str, ...]


def attributes(
    book: EvidenceBook, ref: ReleaseRef, witnessed: Witnessed | None = None, spent: Callable[[Privacy], float] | None = None
) -> dict[str, object]:
    """What the admission policy sees of a release: plain values, each of them signed and logged.

    ``witnessed``: None = this keep asks for no witnesses; ``spent``: the epsilon that all private runs on the data of a
    statement cost together by now, infinite = not known, which is what None says of all. Decimals are text with four digits,
    rounded to the side on which less is admitted. Raises Missing (no such release), and what ``spent`` raises.
    """
    evidence = book.release(ref)
    described = book.catalogue.described(ref)
    scan, clean_since = evidence.scan, book.clean_since(ref)
    rests_on = last_index(evidence, clean_since)
    return {
        "name": ref.name,
        "version": ref.version,
        "state": str(evidence.state),
        "format": evidence.format,
        "signer": evidence.signer,
        "custody": evidence.custody,
        "logged": witnessed is None or rests_on < witnessed.size,
        "witnesses": len(witnessed.names) if witnessed and rests_on < witnessed.size else 0,
        "scanned": scan is not None,
        "scan_clean": clean_since is not None,
        "scanner": f"{scan.scanner}/{scan.rules_version}" if scan else "",
        "profile": evidence.profile is not None,
        "size": evidence.size,
        "classification": described.said.classification if described else "",
        "owner": described.said.owner if described else "",
        "tags": list(described.said.tags) if described else [],
        **_attested(book.dossier(ref), spent),
        "marked": book.marked(ref),
    }


def last_index(evidence: ReleaseEvidence, clean_since: int | None) -> int:
    """The last log entry that serving the release rests on: its release statement, its promotion, and that its scan is clean.

    ``clean_since``: of the scans in a row, up to the last one, that left nothing found, the first. So a scan that confirms it,
    or a body that is sealed anew (what is inside is held to the digest that was released), takes nothing away until it is
    witnessed.
    """
    promoted = [event.index for event in evidence.history if event.verb == PROMOTE]
    return max(evidence.index, *promoted[-1:], evidence.entries.get("scan", -1) if clean_since is None else clean_since)


def _attested(dossier: Dossier, spent: Callable[[Privacy], float] | None) -> dict[str, object]:
    training = dossier.run.said if dossier.run else None
    privacy = dossier.privacy.said if dossier.privacy else None
    audit = dossier.vulnerabilities.said if dossier.vulnerabilities else None
    return {
        "approvals": len(set(dossier.approved_by)),
        "rejections": len(set(dossier.rejected_by)),
        "trained": training is not None,
        "code_commit": training.code.commit if training else "",
        "code_clean": training is not None and bool(training.code.commit) and not training.code.dirty,
        "code_signed": training is not None and training.code.signature == "good",
        "isolated": training is not None and training.isolation is not None and training.isolation.network == "none",
        "accuracy": at_most(dossier.accuracy),
        "hardened": dossier.hardening is not None,
        "robust_accuracy": at_most(dossier.robust_accuracy),
        "robust_linf": at_most(dossier.radius("linf")),
        "robust_l2": at_most(dossier.radius("l2")),
        "robust_white_box": any(attack.knowledge == "white-box" for attack in dossier.attacks),
        "robust_alarms": dossier.alarms,
        "private": privacy is not None,
        "epsilon": at_least(privacy.epsilon) if privacy else at_least(_LARGEST),
        "delta_ppb": math.ceil(privacy.delta * 1e9) if privacy else 10**9,
        "dataset_epsilon": at_least(spent(privacy) if privacy and spent else _LARGEST),
        "watermark": dossier.watermark is not None,
        "bom": bool(dossier.bills),
        "audited": audit is not None and audit.audited > 0,
        "unaudited": len(audit.unaudited) if audit else 0,
        "critical": _severe(audit.advisories, "critical") if audit else 0,
        "high": _severe(audit.advisories, "high") if audit else 0,
        "ungraded": _severe(audit.advisories, "unknown") if audit else 0,
        "snapshot_age_days": _days(audit.at - audit.snapshot_at) if audit else 0,
    }


def _days(nanoseconds: int) -> int:
    """Days begun, up to a million; a time that lies ahead is as far from now as one that is past."""
    return min(-(-abs(nanoseconds) // NANOSECONDS_A_DAY), 1_000_000)


def _severe(advisories: tuple[Advisory, ...], severity: str) -> int:
    return sum(each.severity == severity for each in advisories)


def at_most(value: float) -> str:
    """A Cedar decimal that is not above ``value``."""
    return f"{math.floor(min(value, _LARGEST) * 1e4) / 1e4:.4f}"


def at_least(value: float) -> str:
    """A Cedar decimal that is not below ``value``, up to the largest."""
    return f"{math.ceil(min(value, _LARGEST) * 1e4) / 1e4:.4f}" if value < _LARGEST else f"{_LARGEST:.4f}"


def admit(
    book: EvidenceBook,
    ref: ReleaseRef,
    decide: Callable[[Mapping[str, object]], tuple[str, ...]],
    witnessed: Witnessed | None = None,
    spent: Callable[[Privacy], float] | None = None,
) -> Admission:
    """Decide that a release may be served: the log says promoted, and the policy accepts its evidence.

    ``decide``: the admission policy over ``attributes``; returns what permits it, or raises NotAdmitted.
    Raises Quarantined, NotAdmitted, Missing, and what ``spent`` raises.
    """
    evidence = book.release(ref)
    evidence.check_served()
    return Admission(evidence, decide(attributes(book, ref, witnessed, spent)))
