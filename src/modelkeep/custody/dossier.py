"""The dossier of a release: what was attested about its file by those who may speak about its name.

Attestations are about bytes. They are folded in as they come, before or after the release; that their signer may speak about
the name is asked when the dossier of a release of that name is opened. Of each type the last one counts, of evaluations the
last of each suite, data set and attack; approvals are the last word of each person, but for the publisher's own approval and
what the keep itself says.
"""

import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelkeep.core.values import Digest, ReleaseRef, Statement
from modelkeep.custody.evidence import Found, ReleaseEvidence
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.attestations import (
    ATTESTATIONS,
    Approval,
    Attack,
    Attestation,
    Bom,
    Conversion,
    Dataset,
    Evaluation,
    Fingerprint,
    Hardening,
    Measure,
    Privacy,
    TrainingRun,
    Vulnerabilities,
    Watermark,
)
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.predicates import Metadata, Predicate, Release, Scan
from modelkeep.ledger.statements import predicate_of

P = TypeVar("P", bound=Predicate)
A = TypeVar("A", bound=Attestation)
P_co = TypeVar("P_co", bound=Predicate, covariant=True)
APPROVE, REJECT, WITHDRAW = "approve", "reject", "withdraw"
VERDICTS = (APPROVE, REJECT, WITHDRAW)
MAX_ATTESTATIONS = 10_000
"""Of one type, one signer and one file: as many that stand, and as many of the latest that they took the place of."""
_NOBODY = re.compile(r"@local\Z")
"""Who acts with the folder and the passphrase, and the keep's own processes, are no persons: their word is no approval."""
_HEX64 = re.compile(r"[0-9a-f]{64}\Z")
_ID = re.compile(r"[0-9a-f]{32}\Z")
_SEVERITIES = ("critical", "high", "medium", "low", "unknown")


@dataclass(frozen=True)
class Told(Generic[P_co]):
    """A statement that counts: ``index`` in the log, ``id`` = SHA-256 of its payload, ``signer``: name of the identity.

    ``about``: digest of its first subject; ``second``: of the other one, None when there is none.
    """

    index: int
    id: Digest
    signer: str
    about: Digest
    second: Digest | None
    said: P_co


def told_at(found: Found, said: P) -> Told[P]:
    """What was ``said`` at its place in the log."""
    return Told(found.index, found.id, found.signer, found.model, found.second, said)


@dataclass(frozen=True)
class Dossier:
    """Everything that counts about one release. ``datasets`` by salted digest; ``bills``: bills of materials, oldest first.

    ``approvals``: the last word of each person who may have one, unless it was withdrawn.
    """

    ref: ReleaseRef
    release: Told[Release]
    scan: Told[Scan] | None
    metadata: Told[Metadata] | None
    run: Told[TrainingRun] | None
    conversion: Told[Conversion] | None
    datasets: dict[Digest, Told[Dataset]]
    evaluations: tuple[Told[Evaluation], ...]
    hardening: Told[Hardening] | None
    privacy: Told[Privacy] | None
    watermark: Told[Watermark] | None
    approvals: tuple[Told[Approval], ...]
    vulnerabilities: Told[Vulnerabilities] | None
    bills: tuple[Told[Bom], ...]

    def data(self) -> list[Digest]:
        """The salted digests of the data that the training run, the evaluations and the privacy statement name."""
        inputs = self.run.said.inputs if self.run else ()
        measured = (one.said.dataset for one in self.evaluations)
        private = self.privacy.said.dataset if self.privacy else None
        return sorted({each.digest for each in (*inputs, *measured, private) if each is not None})

    def everything(self) -> list[Told[Predicate]]:
        """Every statement that stands, in the order of the log. A bill of materials says nothing new, and is not among them."""
        single = (
            self.release,
            self.scan,
            self.metadata,
            self.run,
            self.conversion,
            self.hardening,
            self.privacy,
            self.watermark,
        )
        found: list[Told[Predicate]] = [one for one in (*single, self.vulnerabilities) if one is not None]
        several = (*self.datasets.values(), *self.evaluations, *self.approvals)
        return sorted([*found, *several], key=lambda one: one.index)

    @property
    def approved_by(self) -> tuple[str, ...]:
        """Persons whose last word is an approval."""
        return tuple(one.said.actor for one in self.approvals if one.said.verdict == APPROVE)

    @property
    def rejected_by(self) -> tuple[str, ...]:
        """Persons whose last word is a rejection."""
        return tuple(one.said.actor for one in self.approvals if one.said.verdict == REJECT)

    @property
    def robust_accuracy(self) -> float:
        """The lowest lower bound of any accuracy under attack that stands; 0 when none was measured, or one under an alarm."""
        measured = [self.hardening.said.robust.low] if self.hardening else []
        return min((*measured, *self._accuracies(attacked=True)), default=0.0)

    @property
    def attacks(self) -> tuple[Attack, ...]:
        """What ``robust_accuracy`` was measured under."""
        hardened = [self.hardening.said.attack] if self.hardening else []
        measured = (one.said.attack for one in self.evaluations if "accuracy" in one.said.metrics)
        return (*hardened, *(attack for attack in measured if attack is not None))

    def radius(self, norm: str) -> float:
        """The smallest radius in a norm, in units of the input, of the attacks; 0: there is none, or rules held one back."""
        if self.hardening and "rules" in self.hardening.said.parameters:
            return 0.0
        return min((attack.epsilon for attack in self.attacks if attack.norm == norm), default=0.0)

    @property
    def alarms(self) -> int:
        """Signs in evaluations that stand that an attack failed, and not the model withstood it."""
        return sum(len(one.said.alarms) for one in self.evaluations)

    @property
    def accuracy(self) -> float:
        """The lowest lower bound of any accuracy without an attack that stands; 0 when none was measured."""
        return min(self._accuracies(attacked=False), default=0.0)

    def _accuracies(self, *, attacked: bool) -> Iterator[float]:
        for one in self.evaluations:
            if (one.said.attack is not None) is attacked and "accuracy" in one.said.metrics:
                yield 0.0 if one.said.alarms else one.said.metrics["accuracy"].low


def compile_dossier(ref: ReleaseRef, told: Iterable[Told[Predicate]]) -> Dossier:
    """Put together what ``told``, in the order of the log and each of it proven to count, says about a release.

    Raises Missing (no release statement among it).
    """
    found: dict[type[Predicate], dict[object, Told[Predicate]]] = {}
    for one in told:
        found.setdefault(type(one.said), {})[_thing(one)] = one
    releases = _of(found, Release)
    if not releases:
        raise Missing(f"the releases log has no release {ref}")
    return Dossier(
        ref=ref,
        release=releases[-1],
        scan=_last(found, Scan),
        metadata=_last(found, Metadata),
        run=_last(found, TrainingRun),
        conversion=_last(found, Conversion),
        datasets={one.about: one for one in _of(found, Dataset)},
        evaluations=_of(found, Evaluation),
        hardening=_last(found, Hardening),
        privacy=_last(found, Privacy),
        watermark=_last(found, Watermark),
        approvals=tuple(one for one in _of(found, Approval) if _counts(one.said, releases[-1].said)),
        vulnerabilities=_last(found, Vulnerabilities),
        bills=tuple(one for one in _of(found, Bom) if one.said.release == str(ref)),
    )


def _thing(one: Told[Predicate]) -> object:
    """What a later statement about the same takes the place of."""
    said = one.said
    if isinstance(said, Dataset):
        return one.about
    if isinstance(said, Evaluation):
        return said.suite, said.dataset, said.attack
    if isinstance(said, Bom):
        return one.index
    return (said.actor, said.release) if isinstance(said, Approval) else None


def _of(found: dict[type[Predicate], dict[object, Told[Predicate]]], kind: type[P]) -> tuple[Told[P], ...]:
    told = sorted(found.get(kind, {}).values(), key=lambda one: one.index)
    return tuple(told)  # type: ignore[arg-type]  # each is filed under its own type


def _last(found: dict[type[Predicate], dict[object, Told[Predicate]]], kind: type[P]) -> Told[P] | None:
    told = _of(found, kind)
    return told[-1] if told else None


def _counts(said: Approval, released: Release) -> bool:
    """Whether a word on a release is one on this release, by a person who may have one, and was not withdrawn."""
    his_own = said.actor == released.actor and said.verdict == APPROVE  # the publisher may well say that it must not be served
    somebody = not _NOBODY.search(said.actor) and not his_own
    return said.release == f"{released.name}@{released.version}" and said.verdict != WITHDRAW and somebody


class _Pool:
    """Attestations of one type by one signer about one file. What is said again takes the place of what was said before, and
    of very many different things the oldest is forgotten: nobody fills the memory of every reader, and the last word counts.
    """

    def __init__(self) -> None:
        self._last: dict[object, Told[Attestation]] = {}
        self._before: deque[Told[Attestation]] = deque(maxlen=MAX_ATTESTATIONS)

    def add(self, told: Told[Attestation]) -> None:
        """Take one in."""
        thing = _thing(told)
        former = self._last.pop(thing, None)
        if former is None and len(self._last) >= MAX_ATTESTATIONS:
            former = self._last.pop(next(iter(self._last)))
        if former is not None:
            self._before.append(former)
        self._last[thing] = told

    def all(self) -> tuple[Told[Attestation], ...]:
        """All of them, in no order."""
        return *tuple(self._before), *tuple(self._last.values())


class Attestations:
    """Every attestation of a log, by the digest of what it is about. Not safe for two writers; readers get frozen values."""

    def __init__(
        self, release: Callable[[ReleaseRef], ReleaseEvidence], may_speak: Callable[[str, int, str, str], None]
    ) -> None:
        """``release``: what the log says of one so far, raises Missing; ``may_speak``: an identity, at a log index, in a type,
        about a model name; raises NotTrusted, Conflict."""
        self._release, self._may_speak = release, may_speak
        self._about: dict[Digest, dict[tuple[str, str], _Pool]] = {}

    def fold(self, found: Found, statement: Statement) -> None:
        """Take one in. Raises Invalid (malformed), NotTrusted (about another model), Missing, Conflict."""
        said = predicate_of(statement, ATTESTATIONS[statement.predicate_type])
        check_attestation(said)
        if isinstance(said, Approval | Bom):
            known = self._release(ReleaseRef.parse(said.release))
            if known.model != found.model:
                raise NotTrusted(f"a {short_type(said.TYPE)} statement names {known.ref} and another model")
            self._may_speak(found.signer, found.index, short_type(said.TYPE), known.ref.name)
        self._about.setdefault(found.model, {}).setdefault((said.TYPE, found.signer), _Pool()).add(told_at(found, said))

    def about(self, digest: Digest, name: str) -> list[Told[Attestation]]:
        """Those about a file, oldest first, whose signer may speak about the model name ``name``."""
        told = [one for pool in tuple(self._about.get(digest, {}).values()) for one in pool.all()]
        return sorted((one for one in told if self._counts(one, name)), key=lambda one: one.index)

    def committing(self, commitment: str) -> Told[Attestation]:
        """The first watermark or fingerprint that is committed to so, of whichever file. Raises Missing (there is none)."""
        kinds = (Watermark, Fingerprint)
        pools = [pool for about in tuple(self._about.values()) for pool in tuple(about.values())]
        told = [
            one for pool in pools for one in pool.all() if isinstance(one.said, kinds) and one.said.commitment == commitment
        ]
        if not told:
            raise Missing(f"nothing in the log commits to {commitment[:80]}")
        return min(told, key=lambda one: one.index)

    def every(self, kind: type[A]) -> list[Told[A]]:
        """All of one type, whatever they are about, the oldest first; each was signed by somebody who may sign here."""
        pools = [pool for held in tuple(self._about.values()) for (name, _), pool in tuple(held.items()) if name == kind.TYPE]
        found = [one for pool in pools for one in pool.all()]
        return sorted(found, key=lambda one: one.index)  # type: ignore[arg-type]  # each is filed under its own type

    def count(self, kind: type[Attestation], until: int) -> int:
        """How many of one type stand before the log index ``until``, whoever signed them."""
        pools = [pool for held in tuple(self._about.values()) for (name, _), pool in tuple(held.items()) if name == kind.TYPE]
        return sum(one.index < until for pool in pools for one in pool.all())

    def _counts(self, one: Told[Attestation], name: str) -> bool:
        try:
            self._may_speak(one.signer, one.index, short_type(one.said.TYPE), name)
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
    amounts = (said.epsilon, said.noise_multiplier, said.max_grad_norm, said.dataset_epsilon)
    if not (all(map(math.isfinite, amounts)) and said.epsilon >= 0.0 and 0.0 <= said.delta < 1.0 and said.accountant):
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
