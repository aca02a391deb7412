"""The dossier of a release: what was attested about its file by those who may speak about its name.

Attestations are about bytes. They are folded in as they come, before or after the release; that their signer may speak about
the name is asked when the dossier of a release of that name is opened. Of each type the last one counts, of evaluations the
last of each suite and attack; approvals are the last word of each person, but of the publisher and of the keep itself.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, Statement
from modelkeep.custody.evidence import Found, ReleaseEvidence
from modelkeep.errors import Conflict, Invalid, NotTrusted
from modelkeep.ledger.attestations import (
    ATTESTATIONS,
    Approval,
    Attestation,
    Bom,
    Evaluation,
    Hardening,
    Measure,
    Privacy,
    TrainingRun,
    Vulnerabilities,
    Watermark,
)
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.statements import predicate_of

A = TypeVar("A", bound=Attestation)
APPROVE, REJECT, WITHDRAW = "approve", "reject", "withdraw"
VERDICTS = (APPROVE, REJECT, WITHDRAW)
MAX_ATTESTATIONS = 10_000
"""About one file; more count for nothing, so that nobody fills the memory of every reader."""
_NOBODY = re.compile(r"@local\Z")
"""Who acts with the folder and the passphrase, and the keep's own processes, are no persons: their word is no approval."""
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_ID = re.compile(r"[0-9a-f]{32}\Z")
_SEVERITIES = ("critical", "high", "medium", "low", "unknown")


class Attested(msgspec.Struct, frozen=True):
    """One attestation at its place in the log, and the identity that signed it."""

    index: int
    signer: str
    said: Attestation


class Dossier(msgspec.Struct, frozen=True):
    """What counts about one release. ``evaluations``, ``approvals``: oldest first; ``entries``: log index by short type."""

    training: TrainingRun | None = None
    evaluations: tuple[Evaluation, ...] = ()
    hardening: Hardening | None = None
    privacy: Privacy | None = None
    watermark: Watermark | None = None
    vulnerabilities: Vulnerabilities | None = None
    bom: Bom | None = None
    approvals: tuple[Approval, ...] = ()
    indexes: tuple[int, ...] = ()

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Persons whose last word is an approval."""
        return tuple(each.actor for each in self.approvals if each.verdict == APPROVE)

    @property
    def rejected_by(self) -> tuple[str, ...]:
        """Persons whose last word is a rejection."""
        return tuple(each.actor for each in self.approvals if each.verdict == REJECT)

    @property
    def robust_accuracy(self) -> float:
        """The lowest lower bound of any accuracy under attack that stands; 0 when none was measured."""
        measured = [self.hardening.robust.low] if self.hardening else []
        measured += [each.metrics["accuracy"].low for each in self.evaluations if each.attack and "accuracy" in each.metrics]
        return min(measured, default=0.0)

    @property
    def accuracy(self) -> float:
        """The lowest lower bound of any accuracy without an attack that stands; 0 when none was measured."""
        measured = [each.metrics["accuracy"].low for each in self.evaluations if not each.attack and "accuracy" in each.metrics]
        return min(measured, default=0.0)


class Attestations:
    """Every attestation of a log, by the digest of what it is about. Not safe for two writers; readers get frozen values."""

    def __init__(
        self, release: Callable[[ReleaseRef], ReleaseEvidence], may_speak: Callable[[str, int, str, str], None]
    ) -> None:
        """``release``: what the log says of one so far, raises Missing; ``may_speak``: an identity, at a log index, in a type,
        about a model name; raises NotTrusted, Conflict."""
        self._release, self._may_speak = release, may_speak
        self._about: dict[Digest, list[Attested]] = {}

    def fold(self, found: Found, statement: Statement) -> None:
        """Take one in. Raises Invalid (malformed, or beyond a bound), NotTrusted (about another model), Missing, Conflict."""
        said = predicate_of(statement, ATTESTATIONS[statement.predicate_type])
        check_attestation(said)
        if isinstance(said, Approval | Bom):
            known = self._release(ReleaseRef.parse(said.release))
            if known.model != found.model:
                raise NotTrusted(f"a {short_type(said.TYPE)} statement names {known.ref} and another model")
            self._may_speak(found.signer, found.index, short_type(said.TYPE), known.ref.name)
        pool = self._about.setdefault(found.model, [])
        if len(pool) >= MAX_ATTESTATIONS:
            raise Invalid(f"there are {MAX_ATTESTATIONS:,} attestations of this file already: this one does not count")
        pool.append(Attested(found.index, found.signer, said))

    def about(self, digest: Digest, name: str) -> list[Attested]:
        """Those about a file, oldest first, whose signer may speak about the model name ``name``."""
        return [each for each in tuple(self._about.get(digest, ())) if self._counts(each, name)]

    def of(self, evidence: ReleaseEvidence) -> Dossier:
        """The dossier of a release."""
        mine = [each for each in self.about(evidence.model, evidence.ref.name) if _meant(each.said, evidence.ref)]
        evaluations = {(said.suite, said.attack): said for said in _all(mine, Evaluation)}
        approvals = {said.actor: said for said in _all(mine, Approval) if _may_approve(said.actor, evidence)}
        return Dossier(
            training=_last(mine, TrainingRun),
            evaluations=tuple(evaluations.values()),
            hardening=_last(mine, Hardening),
            privacy=_last(mine, Privacy),
            watermark=_last(mine, Watermark),
            vulnerabilities=_last(mine, Vulnerabilities),
            bom=_last(mine, Bom),
            approvals=tuple(each for each in approvals.values() if each.verdict != WITHDRAW),
            indexes=tuple(each.index for each in mine),
        )

    def _counts(self, each: Attested, name: str) -> bool:
        try:
            self._may_speak(each.signer, each.index, short_type(each.said.TYPE), name)
        except (NotTrusted, Conflict):
            return False
        return True


def check_attestation(said: Attestation) -> None:
    """Check the values of an attestation, beyond their types. Raises Invalid, naming the field."""
    for measure in _measures(said):
        if not (0.0 <= measure.low <= measure.value <= measure.high <= 1.0 and measure.examples > 0):
            raise Invalid("a measure has 0 <= low <= value <= high <= 1 and examples above 0")
        if not 0.0 < measure.confidence < 1.0:
            raise Invalid("the confidence of a measure lies between 0 and 1, such as 0.95")
    attack = getattr(said, "attack", None)
    if attack is not None and not (math.isfinite(attack.epsilon) and attack.epsilon >= 0.0 and attack.name):
        raise Invalid("an attack has a name and an epsilon that is not negative")
    if isinstance(said, Privacy):
        _check_privacy(said)
    elif isinstance(said, Approval):
        _check_approval(said)
    elif isinstance(said, Watermark) and not (_HEX64.match(said.commitment) and said.scheme):
        raise Invalid("a watermark names its scheme, and its commitment has 64 hex digits")
    elif isinstance(said, Vulnerabilities):
        _check_vulnerabilities(said)


def _check_privacy(said: Privacy) -> None:
    if not (math.isfinite(said.epsilon) and said.epsilon >= 0.0 and 0.0 <= said.delta < 1.0 and said.accountant):
        raise Invalid("a privacy statement has a finite epsilon of at least 0, 0 <= delta < 1, and names its accountant")


def _check_approval(said: Approval) -> None:
    if said.verdict not in VERDICTS or not _ID.match(said.id):
        raise Invalid(f"an approval says {', '.join(VERDICTS)} and has an id of 32 hex digits")


def _check_vulnerabilities(said: Vulnerabilities) -> None:
    if said.audited < 0 or said.snapshot_at < 0 or any(each.severity not in _SEVERITIES for each in said.advisories):
        raise Invalid(f"the severity of an advisory is one of {', '.join(_SEVERITIES)}, and counts are not negative")


def _measures(said: Attestation) -> Iterable[Measure]:
    if isinstance(said, Evaluation):
        return said.metrics.values()
    return (said.robust, said.clean) if isinstance(said, Hardening) else ()


def _meant(said: Attestation, ref: ReleaseRef) -> bool:
    """Whether what names a release names this one; the same file may be released twice."""
    return not isinstance(said, Approval | Bom) or said.release == str(ref)


def _may_approve(actor: str, evidence: ReleaseEvidence) -> bool:
    return not _NOBODY.search(actor) and actor != evidence.history[0].actor


def _all(mine: Iterable[Attested], kind: type[A]) -> list[A]:
    return [each.said for each in mine if isinstance(each.said, kind)]


def _last(mine: Iterable[Attested], kind: type[A]) -> A | None:
    found = _all(mine, kind)
    return found[-1] if found else None
