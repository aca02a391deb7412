"""Log entries and evidence as the rows that people read."""

import contextlib
from collections.abc import Mapping
from typing import Any

import msgspec

from modelkeep.app.results import HoldRow, MetadataRow, ReleaseRow, StatementRow
from modelkeep.core.values import Statement
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.catalogue import Catalogue, Described, HoldRecord
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.signatories import Signatories
from modelkeep.errors import Conflict, Invalid, NotTrusted
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import AuditCheckpoint
from modelkeep.ledger.statements import parse_statement, predicate_of
from modelkeep.serving.journal import decode_entry
from modelkeep.workflows.trust_changes import entries_of

_SHORT = 40


def release_row(evidence: ReleaseEvidence, names: Mapping[str, str], catalogue: Catalogue) -> ReleaseRow:
    """One release in a list. ``names``: of accounts, by the pseudonym that the log has."""
    first, described = evidence.history[0], catalogue.described(evidence.ref)
    return ReleaseRow(
        str(evidence.ref),
        str(evidence.state),
        evidence.model,
        evidence.format,
        first.at,
        names.get(first.actor, first.actor),
        aliases=catalogue.aliases_of(evidence.ref),
        owner=described.said.owner if described else "",
        classification=described.said.classification if described else "",
        tags=described.said.tags if described else (),
        held=bool(catalogue.holds_on(evidence.ref)),
        custody=evidence.custody,
    )


def hold_row(hold: HoldRecord, names: Mapping[str, str]) -> HoldRow:
    """One hold, ``names`` as in ``release_row``."""
    lifted = "" if hold.lifted < 0 else f"{names.get(hold.lifted_by, hold.lifted_by)}: {hold.lifted_why}"
    return HoldRow(hold.id, str(hold.ref), names.get(hold.actor, hold.actor), hold.reason, hold.at, hold.lifted < 0, lifted)


def metadata_row(described: Described, names: Mapping[str, str]) -> MetadataRow:
    """One metadata statement, ``names`` as in ``release_row``."""
    said = described.said
    return MetadataRow(
        described.index,
        said.at,
        names.get(said.actor, said.actor),
        said.owner,
        said.classification,
        said.licence,
        said.description,
        said.tags,
        str(described.card_digest or ""),
    )


def statement_row(index: int, entry: bytes, names: Mapping[str, str]) -> StatementRow:
    """One log entry in short, ``names`` as in ``release_row``. It is shown, not judged: what is no statement says so."""
    try:
        statement = parse_statement(parse_envelope(entry).unverified_payload())
    except (Invalid, NotTrusted) as problem:
        return StatementRow(index, "unreadable", 0, "", "", str(problem))
    said = statement.predicate
    at, actor = said.get("at", 0), str(said.get("actor", ""))[:64]
    kind = short_type(statement.predicate_type)
    when, by, about = at if isinstance(at, int) else 0, names.get(actor, actor), _about(statement)
    return StatementRow(index, kind, when, by, names.get(about, about), _summary(kind, said))


def audit_row(index: int, entry: bytes) -> StatementRow:
    """One entry of an audit log, by the pseudonyms that it has. Raises NotTrusted (it is no audit entry)."""
    found = decode_entry(entry, index)
    return StatementRow(index, f"audit {found.kind}", found.t, found.subject, found.release, found.outcome)


def _about(statement: Statement) -> str:
    said = statement.predicate
    found = said.get("release") or said.get("about") or said.get("origin") or statement.subject[0].name
    if "name" in said and "version" in said:
        found = f"{said['name']}@{said['version']}"
    return str(found)[:80]


def _summary(kind: str, said: dict[str, Any]) -> str:
    if kind == "scan":
        return _verdict(said)
    if kind in ("sealing", "profile"):
        return f"sealed as {str(said.get('sealed', ''))[:19]}"
    if kind == "state":
        reason = said.get("reason")
        return f"{said.get('verb')}{f': {reason}' if reason else ''}"[:120]
    if kind == "act":
        detail = " ".join(f"{name}={str(value)[:_SHORT]}" for name, value in sorted(said.get("detail", {}).items()))
        return f"{said.get('verb')} {detail}".strip()
    if kind == "trace-commitments":
        return f"{len(said.get('entries', ()))} account marks"
    if kind == "trust":
        successor = said.get("identity")
        new = successor.get("name", "") if isinstance(successor, dict) else ""
        return f"{said.get('change')}{f' to {new}' if new and new != said.get('name') else ''}"[:120]
    if kind == "succession":
        return f"continues it after {said.get('size')} entries"
    if kind == "audit-checkpoint":
        return f"{said.get('size')} records, {said.get('phase')}"
    if kind == "alias":
        where = f"now version {said.get('version')}" if said.get("version") else "removed"
        return f"{str(said.get('alias'))[:64]}: {where}, before {said.get('replaces') or 'none'}"
    if kind == "metadata":
        return f"{said.get('classification')}, owner {str(said.get('owner'))[:_SHORT]}"
    if kind == "hold":
        return f"{said.get('verb')} {str(said.get('id'))[:8]}: {said.get('reason')}"[:120]
    if kind == "policy":
        return f"{said.get('kind')} policy: {str(said.get('name'))[:_SHORT]}"
    return "released" if kind == "release" else _attested(kind, said)


def _attested(kind: str, said: dict[str, Any]) -> str:
    """An attestation in a few words, or a calibration."""
    if kind == "calibration":
        over = f"{len(said.get('tools', ()))} tools and {said.get('accounts')} accounts"
        return f"bounds over {over}: {said.get('reason')}".rstrip(": ")[:120]
    if kind == "approval":
        return f"{said.get('verdict')}: {said.get('reason')}"[:120]
    if kind == "privacy":
        return f"epsilon {said.get('epsilon')}, delta {said.get('delta')}"[:120]
    if kind == "hardening":
        robust = said.get("robust")
        return f"{said.get('method')}: robust accuracy {robust.get('value') if isinstance(robust, dict) else '?'}"[:120]
    if kind == "vulnerabilities":
        told = f"{len(said.get('advisories', ()))} advisories, {said.get('audited')} packages audited"
        return f"{told}, {len(said.get('unaudited', ()))} not"[:120]
    if kind == "conversion":
        return f"from {said.get('filename')} ({said.get('format')}) {str(said.get('source'))[:19]}"[:120]
    if kind == "training-run":
        code = said.get("code") or {}
        return f"{len(said.get('inputs', ()))} inputs, commit {str(code.get('commit'))[:12] or 'none'}"
    words = (said.get("suite"), said.get("scheme"), said.get("name"), said.get("format"))
    return str(next((word for word in words if word), ""))[:120]


def _verdict(said: dict[str, Any]) -> str:
    findings, opinions = (found if isinstance(found := said.get(name), list) else [] for name in ("findings", "opinions"))
    if not said.get("clean"):
        return f"not clean: {len(findings)} findings"
    others = ", ".join(f"{one.get('tool')} {one.get('version')}" for one in opinions if isinstance(one, dict))
    return f"clean, as {others[:80]} says too" if others else "clean"


def all_audit_checkpoints(signatories: Signatories, view: LogView) -> list[AuditCheckpoint]:
    """Every audit checkpoint in the releases log that counts, in log order. ``signatories``: of the whole log.

    Raises NotTrusted. What a key signed after it was compromised is passed over.
    """
    found = []
    for index, entry in entries_of(view):
        if _type_of(entry) == AuditCheckpoint.TYPE:
            with contextlib.suppress(Conflict):
                statement, _ = signatories.check(parse_envelope(entry), index)
                found.append(predicate_of(statement, AuditCheckpoint))
    return found


class _Type(msgspec.Struct, rename={"predicate_type": "predicateType"}):
    predicate_type: str = ""


def _type_of(entry: bytes) -> str:
    try:
        return msgspec.json.decode(parse_envelope(entry).unverified_payload(), type=_Type).predicate_type
    except (Invalid, NotTrusted, msgspec.MsgspecError):
        return ""
