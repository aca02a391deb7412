"""Say something about a file in the log: attestations that people or pipelines made, and approvals by persons."""

from typing import Any

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, Resource
from modelkeep.custody.dossier import VERDICTS, check_attestation
from modelkeep.errors import Conflict, Invalid
from modelkeep.ledger.attestations import (
    ATTESTATIONS,
    Approval,
    Attestation,
    Bom,
    Conversion,
    Dataset,
    Fingerprint,
    Privacy,
    TrainingRun,
    Vulnerabilities,
)
from modelkeep.ledger.statements import make_statement
from modelkeep.workflows.registry import Desk

MAX_PREDICATE = 48_000
"""Bytes of a predicate: its statement must fit a log entry."""
LONGEST_REASON = 2000
_KEEPS_OWN = (Approval, Bom, TrainingRun, Conversion, Vulnerabilities, Fingerprint)
"""Types that have a verb of their own, which finds out for itself what they say: who approved, how a commit is signed, what an
advisory database knows."""
_OWN_VERBS = dict(
    zip(
        _KEEPS_OWN,
        (
            "modelkeep approve",
            "modelkeep bom",
            "modelkeep run",
            "modelkeep publish --convert",
            "modelkeep intel check",
            "modelkeep fingerprint make",
        ),
        strict=True,
    )
)
_FILLED = ("actor", "at")


def attestable() -> dict[str, type[Attestation]]:
    """The types that may be logged from a file, by their short names."""
    return {_short(kind): kind for kind in ATTESTATIONS.values() if kind not in _KEEPS_OWN}


def parse_predicate(kind: str, data: bytes, *, actor: str, at: int) -> Attestation:
    """A predicate from a JSON file, which leaves ``actor`` and ``at`` to the keep. Raises Invalid, naming the field."""
    wanted = attestable().get(kind)
    own = next((each for each in _KEEPS_OWN if kind == _short(each)), None)
    if own is not None:
        raise Invalid(f"{kind} statements are not attested: {_OWN_VERBS[own]!r} makes them, and finds out what they say")
    if wanted is None:
        raise Invalid(f"{kind[:40]!r} is no type of attestation: use {', '.join(attestable())}")
    if len(data) > MAX_PREDICATE:
        raise Invalid(f"a predicate has at most {MAX_PREDICATE:,} bytes, this one has {len(data):,}")
    try:
        found = msgspec.json.decode(data, type=dict[str, Any])
        _check_fields(wanted, found)
        said = msgspec.convert({**found, "actor": actor, "at": at}, wanted)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Invalid(f"this is not a {kind} predicate: {cause}") from cause
    check_attestation(said)
    if isinstance(said, Dataset) and said.body is not None:
        raise Invalid("where a data set lies sealed is said by 'modelkeep data add' alone: leave out 'body'")
    if isinstance(said, Privacy) and (said.run or said.dataset_epsilon):
        raise Invalid(
            "which run was reserved, and what all runs on the data cost, is said by 'modelkeep privacy train' alone: leave out "
            "'run' and 'dataset_epsilon'"
        )
    return said


def _check_fields(wanted: type[Attestation], found: dict[str, Any]) -> None:
    known = {field.name for field in msgspec.structs.fields(wanted)}
    for name in found:
        if name in _FILLED:
            raise Invalid(f"the field {name!r} is filled in by the keep: leave it out")
        if name not in known:
            raise Invalid(f"there is no field {name[:40]!r} in it: known are {', '.join(sorted(known - set(_FILLED)))}")


def attest(desk: Desk, subject: Resource, said: Attestation) -> int:
    """Log an attestation about a file; its index. Raises TooLarge, NotTrusted, Unavailable, Conflict (it does not count)."""
    (index,) = desk.log_statements([make_statement(said, subject)])
    problem = next((each for each in desk.registry.refresh().problems if each.index == index), None)
    if problem is not None:
        raise Conflict(f"it was logged at {index} and does not count: {problem.why}")
    return index


def approve(desk: Desk, ref: ReleaseRef, verdict: str, *, actor: str, reason: str = "") -> int:
    """Log what a person decided about a release; its index.

    Raises Missing, Invalid (the verdict, or a very long reason), Conflict, NotTrusted, Unavailable.
    """
    if verdict not in VERDICTS or len(reason) > LONGEST_REASON:
        raise Invalid(f"an approval says {', '.join(VERDICTS)}, with a reason of at most {LONGEST_REASON:,} characters")
    known = desk.registry.release(ref)
    nonce = desk.entropy.token(16).hex()
    said = Approval(actor=actor, at=desk.clock.now_ns(), release=str(ref), verdict=verdict, id=nonce, reason=reason)
    return attest(desk, Resource(known.filename, known.model), said)


def subject_of(name: str, digest: Digest) -> Resource:
    """A file as the subject of statements. Raises Invalid (its name hides something)."""
    if not name.isprintable() or not 0 < len(name) <= 255:
        raise Invalid(f"{name[:80]!r} cannot name a file in the log: use 1-255 printable characters")
    return Resource(name, digest)


def _short(kind: type[Attestation]) -> str:
    return kind.TYPE.removeprefix("urn:x-modelkeep:").removesuffix(":v1")
