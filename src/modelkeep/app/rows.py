"""Log entries and evidence as the rows that people read."""

from collections.abc import Mapping
from typing import Any

import msgspec

from modelkeep.app.results import ReleaseRow, StatementRow
from modelkeep.core.values import Statement
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.admission import ReleaseEvidence
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.log import LogView
from modelkeep.ledger.statements import AuditCheckpoint, open_statement, parse_statement, predicate_of, short_type

_SHORT = 40


def release_row(evidence: ReleaseEvidence, names: Mapping[str, str]) -> ReleaseRow:
    """One release in a list. ``names``: of accounts, by the pseudonym that the log has."""
    first = evidence.history[0]
    by = names.get(first.actor, first.actor)
    return ReleaseRow(str(evidence.ref), str(evidence.state), evidence.model, evidence.format, first.at, by)


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


def _about(statement: Statement) -> str:
    said = statement.predicate
    found = said.get("release") or said.get("about") or said.get("origin") or statement.subject[0].name
    if "name" in said and "version" in said:
        found = f"{said['name']}@{said['version']}"
    return str(found)[:80]


def _summary(kind: str, said: dict[str, Any]) -> str:
    if kind == "scan":
        return "clean" if said.get("clean") else f"not clean: {len(said.get('findings', ()))} findings"
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
    if kind == "audit-checkpoint":
        return f"{said.get('size')} records, {said.get('phase')}"
    return "released" if kind == "release" else ""


def all_audit_checkpoints(trust: TrustRoot, view: LogView) -> list[AuditCheckpoint]:
    """Every audit checkpoint in the releases log under a trusted signature, in log order."""
    identities = [trusted.public for trusted in trust.identities]
    found = []
    for entry in view.entries(0, view.checkpoint.size):
        envelope_type = _type_of(entry)
        if envelope_type == AuditCheckpoint.TYPE:
            statement, _ = open_statement(entry, *identities)
            found.append(predicate_of(statement, AuditCheckpoint))
    return found


class _Type(msgspec.Struct, rename={"predicate_type": "predicateType"}):
    predicate_type: str = ""


def _type_of(entry: bytes) -> str:
    try:
        return msgspec.json.decode(parse_envelope(entry).unverified_payload(), type=_Type).predicate_type
    except (Invalid, NotTrusted, msgspec.MsgspecError):
        return ""
