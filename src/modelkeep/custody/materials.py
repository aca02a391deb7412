"""What stands in the log about how a release came to be, put together from its statements.

Of several statements of one kind about the same thing the last one stands; approvals stand each for the person who gave it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from modelkeep.core.values import Digest, ReleaseRef, Statement
from modelkeep.errors import Invalid, Missing
from modelkeep.ledger.attestations import (
    Approval,
    Dataset,
    Evaluation,
    Hardening,
    Privacy,
    TrainingRun,
    Vulnerabilities,
    Watermark,
)
from modelkeep.ledger.predicates import Metadata, Predicate, Release, Scan
from modelkeep.ledger.statements import predicate_of, statement_id

P = TypeVar("P", bound=Predicate)
KINDS: dict[str, type[Predicate]] = {
    kind.TYPE: kind
    for kind in (
        Release,
        Scan,
        Metadata,
        TrainingRun,
        Dataset,
        Evaluation,
        Hardening,
        Privacy,
        Watermark,
        Approval,
        Vulnerabilities,
    )
}
"""What a dossier is made of. A ``Bom`` is made from the others and says nothing new."""


@dataclass(frozen=True)
class Told(Generic[P]):
    """A statement that counts: ``index`` in the log, ``id`` = SHA-256 of its payload, ``signer``: name of the identity.

    ``about``: digest of its first subject.
    """

    index: int
    id: Digest
    signer: str
    about: Digest
    said: P


@dataclass(frozen=True)
class Attested:
    """A statement at its place in the log, with the name of the identity that signed it."""

    index: int
    statement: Statement
    signer: str


@dataclass(frozen=True)
class Dossier:
    """Everything about one release. ``datasets`` by salted digest; ``evaluations`` one for each suite, data set and attack."""

    ref: ReleaseRef
    release: Told[Release]
    scan: Told[Scan] | None
    metadata: Told[Metadata] | None
    run: Told[TrainingRun] | None
    datasets: dict[Digest, Told[Dataset]]
    evaluations: tuple[Told[Evaluation], ...]
    hardening: Told[Hardening] | None
    privacy: Told[Privacy] | None
    watermark: Told[Watermark] | None
    approvals: tuple[Told[Approval], ...]
    vulnerabilities: Told[Vulnerabilities] | None

    def everything(self) -> list[Told[Predicate]]:
        """Every statement that stands, in the order of the log."""
        single = (self.release, self.scan, self.metadata, self.run, self.hardening, self.privacy, self.watermark)
        found = [one for one in (*single, self.vulnerabilities) if one is not None]
        several = (*self.datasets.values(), *self.evaluations, *self.approvals)
        return sorted([*found, *several], key=lambda one: one.index)  # type: ignore[list-item]  # Told is read only


def dossier(ref: ReleaseRef, statements: Iterable[Attested]) -> Dossier:
    """Put together what ``statements``, in the order of the log and each proven to count, say about ``ref``.

    A statement whose predicate is malformed says nothing. Raises Missing (no release statement among them).
    """
    found: dict[type[Predicate], dict[object, Told[Predicate]]] = {kind: {} for kind in KINDS.values()}
    for one in statements:
        statement = one.statement
        kind = KINDS.get(statement.predicate_type)
        if kind is None:
            continue
        try:
            said = predicate_of(statement, kind)
        except Invalid:
            continue
        told = Told(one.index, statement_id(statement), one.signer, statement.subject[0].digest, said)
        found[kind][_thing(said, told.about)] = told
    releases = _of(found, Release)
    if not releases:
        raise Missing(f"the releases log has no release {ref}")
    return Dossier(
        ref=ref,
        release=releases[-1],
        scan=_last(found, Scan),
        metadata=_last(found, Metadata),
        run=_last(found, TrainingRun),
        datasets={told.about: told for told in _of(found, Dataset)},
        evaluations=_of(found, Evaluation),
        hardening=_last(found, Hardening),
        privacy=_last(found, Privacy),
        watermark=_last(found, Watermark),
        approvals=tuple(told for told in _of(found, Approval) if told.said.release == str(ref)),
        vulnerabilities=_last(found, Vulnerabilities),
    )


def _thing(said: Predicate, about: Digest) -> object:
    """What a later statement about the same takes the place of."""
    if isinstance(said, Dataset):
        return about
    if isinstance(said, Evaluation):
        return said.suite, said.dataset, said.attack
    return (said.actor, said.release) if isinstance(said, Approval) else None


def _of(found: dict[type[Predicate], dict[object, Told[Predicate]]], kind: type[P]) -> tuple[Told[P], ...]:
    told = sorted(found[kind].values(), key=lambda one: one.index)
    return tuple(told)  # type: ignore[arg-type]  # dossier() files each under its own type


def _last(found: dict[type[Predicate], dict[object, Told[Predicate]]], kind: type[P]) -> Told[P] | None:
    told = _of(found, kind)
    return told[-1] if told else None
