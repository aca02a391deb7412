"""Verbs about cases: accounts that are accused of acting as one, and the search for accounts that ask alike."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from msgspec.structs import replace

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.externals import EXTERNAL, parse_external
from modelkeep.app.budgets import budget_rows, named
from modelkeep.app.caseresults import AlikeRow, CaseAccount, CaseFile, CaseRelease, CaseRow
from modelkeep.app.oversight import EXTRACTION, REVIEW, OversightVerbs
from modelkeep.app.premises import Premises
from modelkeep.app.recorded import recorded_questions
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT, MODEL_KEK
from modelkeep.errors import Conflict, Denied, Invalid, Missing
from modelkeep.extraction.clusters import Cluster
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.places import Places
from modelkeep.extraction.sketch import find_alike
from modelkeep.extraction.verdicts import Verdict, odds_text
from modelkeep.operations import cases
from modelkeep.operations.cases import Accused, Case, CaseMember, CaseState, parse_case
from modelkeep.serving.audit import read_bodies
from modelkeep.workflows.covariates import KINDS
from modelkeep.workflows.evidence import TOLD
from modelkeep.workflows.follow import open_profile

GROWN = 1.25
"""A case is written again when the pool has this many times the questions that it had."""
MOST_COMPARED = 2000
"""Accounts that a search compares with each other: those that asked most."""
SEED = 20
DECIDED = (CaseState.CLEARED, CaseState.CONFIRMED)
_HOUR = 3600


@dataclass(frozen=True, slots=True)
class Standing:
    """What was written about a cluster last."""

    accused_at: int
    members: int
    distinct: int

    def tells_more_than(self, told: "Standing") -> bool:
        """Whether it is worth another record."""
        moved = (self.accused_at, self.members) != (told.accused_at, told.members)
        return moved or self.distinct >= GROWN * told.distinct


def accused_of(release: str, cluster: Cluster, verdict: Callable[[str], Verdict]) -> Accused:
    """What a case says of an accused cluster. ``verdict``: of each account on that release."""
    members = []
    for member in cluster.members:
        alone = verdict(member.subject)
        members.append(CaseMember(member.subject, member.queries, member.effective, alone.odds, alone.rung is Rung.ALARM))
    return Accused(
        release, odds_text(cluster.evidence), cluster.threshold, cluster.effective, cluster.accused_at or 0, tuple(members)
    )


class CaseVerbs(OversightVerbs):
    """cases, case, case_review, alike."""

    @verb(REVIEW)
    def cases(self) -> tuple[CaseRow, ...]:
        """Every case, open ones first, then the latest. Raises NotTrusted, Unavailable."""
        found = [parse_case(record) for record in self.premises.records.scan(cases.KIND)]
        return tuple(_row(one) for one in sorted(found, key=lambda one: (one.state is not CaseState.OPEN, -one.opened)))

    @verb(REVIEW)
    def case(self, *, case_id: str, similar: bool = False) -> CaseFile:
        """The file of one case; that somebody read it is logged. ``similar``: also search all recorded questions of its
        releases for accounts that ask alike. Raises Missing, NotTrusted, Unavailable.
        """
        found = self._case(case_id)
        self.act("case.read", found.id)
        alike: list[AlikeRow] = []
        for accused in found.accused if similar else ():
            members = {member.subject for member in accused.members}
            groups = _search(self.premises, ReleaseRef.parse(accused.release))
            alike += [group for group in groups if len(members.intersection(group.accounts)) > 1]
        names = self.names()
        budgets = {
            row.release: row for row in budget_rows(self.premises, self.premises.registry().book) if row.name == found.id
        }
        releases = tuple(
            replace(self._release(one, names), budget=named(budgets.get(one.release), names)) for one in found.accused
        )
        return CaseFile(_row(found), releases, tuple(_named(one, names) for one in alike), _steps(found, names))

    @verb(REVIEW)
    def case_review(self, *, case_id: str, outcome: str, reason: str) -> CaseRow:
        """Decide about a case: ``cleared`` forgets the group's evidence and gives its members their budgets back; ``confirmed``
        leaves these lowered and disables nobody: each account is reviewed by itself.

        Raises Missing, Invalid, Conflict (it is decided), Denied (the actor is in the group).
        """
        if outcome not in DECIDED:
            raise Invalid(
                f"{outcome[:40]!r} is no outcome of a case: use {' or '.join(DECIDED)}; accounts are reviewed one by one"
            )
        found, names = self._case(case_id), self.names()
        if found.state is not CaseState.OPEN:
            raise Conflict(f"{found.id} is {found.state} already")
        if self.actor.account in {names.get(subject) for subject in _subjects(found)}:
            raise Denied("nobody reviews the evidence against their own account: ask another administrator")
        self.act(REVIEW, found.id, outcome=outcome, reason=reason)
        at = self.premises.clock.now_ns()
        decided = self.change(lambda: cases.decide(self.record(cases.KIND, found.id), CaseState(outcome), note=reason, at=at))
        for one in self._open_incidents():
            if one.kind == EXTRACTION and one.about.startswith(f"{found.id} on "):
                self._resolve(one.id, f"{outcome}: {reason}")
        self.premises.settle_lease()
        return _row(decided)

    @verb(REVIEW)
    def alike(self, *, ref: str) -> tuple[AlikeRow, ...]:
        """Groups of accounts that asked ``ref`` alike, the most certain first: for investigation, no accusation.

        Raises Missing (no such release, or it has no profile), NotTrusted, Unavailable.
        """
        asked = self.ref(ref)
        self.act("case.search", str(asked))
        names = self.names()
        return tuple(_named(one, names) for one in _search(self.premises, asked))

    def open_case(self, case_id: str, found: Accused) -> Case:
        """Note what a gateway found. Raises Unavailable."""
        at = self.premises.clock.now_ns()

        def decide() -> tuple[Case, Sequence[Change]]:
            try:
                existing = self.record(cases.KIND, case_id)
            except Missing:
                return cases.accuse(None, case_id, found, at=at)
            return cases.accuse(existing, case_id, found, at=at, reviewed=self._reviewed(parse_case(existing)))

        try:
            return self.change(decide)
        except Conflict:
            return self.change(decide)  # another gateway opened it at this moment

    def _reviewed(self, case: Case) -> bool:
        """Whether the log has the review that a case says it had: whoever writes the database could close it, too."""
        if case.state is CaseState.OPEN:
            return True
        decisions = self.premises.decisions()
        return bool(decisions.cleared_at(case.id)) if case.state is CaseState.CLEARED else case.id in decisions.confirmed()

    def _case(self, case_id: str) -> Case:
        try:
            return parse_case(self.record(cases.KIND, case_id))
        except Missing:
            raise Missing(f"there is no case {case_id[:64]!r}: 'modelkeep cases' lists them") from None

    def _release(self, accused: Accused, names: dict[str, str]) -> CaseRelease:
        seen, hours = _timeline(self.premises, accused)
        origins = _origins(self.premises)
        accounts = []
        for member in accused.members:
            issuer, created = origins.get(member.subject, ("", 0))
            first, last = seen.get(member.subject, (0, 0))
            accounts.append(
                CaseAccount(
                    account=names.get(member.subject, member.subject),
                    subject=member.subject,
                    queries=member.queries,
                    distinct=member.distinct,
                    odds=member.odds,
                    alone=member.alarmed,
                    issuer=issuer,
                    created=created,
                    first=first,
                    last=last,
                )
            )
        return CaseRelease(
            accused.release, accused.odds, accused.needed, accused.distinct, accused.accused_at, tuple(accounts), hours
        )


def _subjects(case: Case) -> set[str]:
    return {member.subject for accused in case.accused for member in accused.members}


def _row(case: Case) -> CaseRow:
    shared = KINDS.get(case.id.partition("-")[0], "share something")
    releases = tuple(one.release for one in case.accused)
    return CaseRow(case.id, str(case.state), shared, len(_subjects(case)), releases, case.opened, case.note)


def _named(row: AlikeRow, names: dict[str, str]) -> AlikeRow:
    accounts = tuple(names.get(subject, subject) for subject in row.accounts)
    return AlikeRow(row.release, row.how, accounts, row.similarity, row.usual, row.p, row.corrected)


def _steps(case: Case, names: dict[str, str]) -> tuple[str, ...]:
    if case.state is not CaseState.OPEN:
        return ()
    subjects = {member.subject for accused in case.accused for member in accused.members if member.alarmed}
    alone = sorted(names.get(subject, subject) for subject in subjects)
    by_themselves = "each is accused by itself" if len(alone) > 1 else "it is accused by itself"
    return (
        *([f"review first, with 'modelkeep review': {', '.join(alone)} ({by_themselves})"] if alone else []),
        "ask the customer: may these accounts share a tool, an office or a test?",
        f"'modelkeep case {case.id} --similar' compares what they asked, with everybody else's questions",
        f"all is well: 'modelkeep case {case.id} --outcome cleared --reason WHY' gives the budgets back",
        "it is one thief: '--outcome confirmed', then 'modelkeep review ACCOUNT --outcome confirmed' for each; "
        "'modelkeep trace' if a copy turns up",
    )


def _origins(premises: Premises) -> dict[str, tuple[str, int]]:
    """Issuer and Unix second of the first visit of every account, by pseudonym."""
    records = premises.records
    own = {found.subject: ("", found.created) for found in map(parse_account, records.scan(ACCOUNT))}
    external = map(parse_external, records.scan(EXTERNAL))
    return own | {found.subject: (found.name.rpartition("@")[2], found.created) for found in external}


def _timeline(premises: Premises, accused: Accused) -> tuple[dict[str, tuple[int, int]], tuple[tuple[int, int, int], ...]]:
    """First and last answer of each member, Unix nanoseconds, and (Unix second, answers, accounts) of each hour, from the
    audit logs alone: nothing that was asked is opened."""
    members = {member.subject for member in accused.members}
    seen: dict[str, tuple[int, int]] = {}
    hours: dict[int, tuple[int, set[str]]] = {}
    for instance in premises.audit_instances():
        origin = premises.audit_origin(instance)
        try:
            premises.audit_files(instance).read("checkpoint")
        except Missing:
            continue
        vkey = encode_vkey(origin, premises.trust.audit_key)
        for _, entry, _ in read_bodies(premises.audit_files(instance), vkey, origin):
            if entry.kind not in TOLD or entry.release != accused.release or entry.subject not in members:
                continue
            first, last = seen.get(entry.subject, (entry.t, entry.t))
            seen[entry.subject] = min(first, entry.t), max(last, entry.t)
            hour = entry.t // 1_000_000_000 // _HOUR * _HOUR
            count, who = hours.get(hour, (0, set()))
            hours[hour] = count + 1, who | {entry.subject}
    return seen, tuple((hour, count, len(who)) for hour, (count, who) in sorted(hours.items()))


def _search(premises: Premises, ref: ReleaseRef) -> list[AlikeRow]:
    """Groups of accounts, by pseudonym, whose recorded questions are alike."""
    premises.keyring([MODEL_KEK, AUDIT_SUBJECT])
    registry = premises.registry(premises.openers())
    profile = open_profile(registry, registry.release(ref))
    if profile is None:
        raise Missing(f"{ref} has no extraction profile: what was asked cannot be compared")
    places = Places(profile.embedding)
    asked = {}
    for subject, x in recorded_questions(premises, registry, ref).items():
        _, first = np.unique(fingerprints(x), return_index=True)
        asked[subject] = places.of(x[np.sort(first)])
    most = sorted(asked, key=lambda subject: (-len(asked[subject]), subject))[:MOST_COMPARED]
    radii = {"copies": profile.near, "steps": float(profile.step_limits[0])}
    found = find_alike({subject: asked[subject] for subject in most}, radii, SEED)
    return [AlikeRow(str(ref), one.how, one.accounts, one.similarity, one.usual, one.p, one.corrected) for one in found]
