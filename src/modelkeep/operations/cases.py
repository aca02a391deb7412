"""Cases: groups of accounts that are accused of acting as one, from the accusation to the decision of a person.

Records of kind ``case``; the key is the covariate that the accounts share (workflows/covariates). A case says what was found
on each release; the gateways write it, and whoever may review decides.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from modelkeep.core.ports import Change, Record
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict

KIND = "case"


class CaseState(StrEnum):
    """Where a case stands. ``open`` waits for a person; an accusation after the decision opens it again."""

    OPEN = "open"
    CLEARED = "cleared"
    CONFIRMED = "confirmed"


class CaseMember(msgspec.Struct, frozen=True):
    """One account of a case. ``queries``: since it joined; ``distinct``: those that were new to the group; ``odds``: of its own
    evidence, in words; ``alarmed``: whether it stands out alone."""

    subject: str
    queries: int
    distinct: int
    odds: str
    alarmed: bool


class Accused(msgspec.Struct, frozen=True):
    """What was found on one release. ``odds``: of the pooled evidence, in words; ``needed``: odds that accuse this group;
    ``distinct``: queries of the pool; ``accused_at``: how many it had when it was accused."""

    release: str
    odds: str
    needed: float
    distinct: int
    accused_at: int
    members: tuple[CaseMember, ...]


class Case(msgspec.Struct, frozen=True):
    """One case. ``opened`` and ``changed``: Unix nanoseconds; ``note``: why it was decided so."""

    id: str
    state: CaseState
    opened: int
    changed: int
    accused: tuple[Accused, ...]
    note: str = ""

    def accuses(self, subject: str) -> bool:
        """Whether it waits for a person, and ``subject`` is in it."""
        return self.state is CaseState.OPEN and subject in {member.subject for one in self.accused for member in one.members}


def parse_case(record: Record) -> Case:
    """The case in a record. Raises NotTrusted when it is not one."""
    return parse_record(record, Case, f"case {record.key[:64]!r}")


def accuse(
    existing: Record | None, case_id: str, found: Accused, *, at: int, reviewed: bool = True
) -> tuple[Case, Sequence[Change]]:
    """Note what was ``found`` on a release. A case that was cleared opens again on an accusation that it does not hold yet,
    and one that nobody ``reviewed`` as it says on any."""
    before = None if existing is None or existing.body is None else parse_case(existing)
    if before is None:
        case = Case(case_id, CaseState.OPEN, at, at, (found,))
    else:
        same = [one for one in before.accused if one.release == found.release]
        others = [one for one in before.accused if one.release != found.release]
        known = bool(same) and same[0].accused_at == found.accused_at
        again = not reviewed or (before.state is CaseState.CLEARED and not known)
        if known and found.needed > same[0].needed:
            found = _with_odds_of(same[0], found)
        accused = tuple(sorted([*others, found], key=lambda one: one.release))
        case = Case(
            case_id, CaseState.OPEN if again else before.state, before.opened, at, accused, "" if again else before.note
        )
    revision = 0 if existing is None else existing.revision
    return case, [Change(KIND, case_id, to_json(case), revision)]


def _with_odds_of(accused: Accused, found: Accused) -> Accused:
    """``found`` with the odds on which it was ``accused``: since then a calibration restarted all evidence, at a higher bar,
    and a person who decides about the case must see what it rests on."""
    odds = {member.subject: member.odds for member in accused.members if member.alarmed}
    members = tuple(
        msgspec.structs.replace(member, odds=odds[member.subject]) if member.alarmed and member.subject in odds else member
        for member in found.members
    )
    return msgspec.structs.replace(found, odds=accused.odds, needed=accused.needed, members=members)


def decide(record: Record, outcome: CaseState, *, note: str, at: int) -> tuple[Case, Sequence[Change]]:
    """Close a case. Raises Conflict (it is closed)."""
    case = parse_case(record)
    if case.state is not CaseState.OPEN:
        raise Conflict(f"{case.id} is {case.state} already")
    closed = msgspec.structs.replace(case, state=outcome, note=note, changed=at)
    return closed, [Change(KIND, case.id, to_json(closed), record.revision)]
