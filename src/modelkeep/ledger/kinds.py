"""Every type of statement that modelkeep knows, by its predicate type."""

from modelkeep.ledger.attestations import ATTESTATIONS
from modelkeep.ledger.predicates import (
    Act,
    Alias,
    AuditCheckpoint,
    Calibration,
    Hold,
    Metadata,
    Policy,
    Predicate,
    Profile,
    Release,
    Scan,
    Sealing,
    State,
    Succession,
    TraceCommitments,
    Trust,
)

PREDICATES: dict[str, type[Predicate]] = {
    kind.TYPE: kind
    for kind in (
        *(Scan, Sealing, Profile, Calibration, Release, State, TraceCommitments, Alias, Metadata, Hold),
        *(Act, AuditCheckpoint, Policy, Succession, Trust),
    )
}
PREDICATES.update(ATTESTATIONS)


def short_type(predicate_type: str) -> str:
    """``scan`` for ``urn:x-modelkeep:scan:v1``; a foreign type stays as it is."""
    return (
        predicate_type.removeprefix("urn:x-modelkeep:").removesuffix(":v1") if predicate_type in PREDICATES else predicate_type
    )
