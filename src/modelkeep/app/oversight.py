"""Verbs that look at the keep or after it: status, logs, integrity, incidents, review, trace, key families."""

from collections.abc import Callable, Sequence

from modelkeep.access.accounts import ACCOUNT, set_disabled
from modelkeep.access.externals import EXTERNAL, External, set_blocked
from modelkeep.app.acting import Acts
from modelkeep.app.budgets import HALF, budget_rows
from modelkeep.app.offline import check_logs
from modelkeep.app.probing import Asked, parse_pool
from modelkeep.app.receipts import prove_record
from modelkeep.app.results import GatewayRow, IncidentRow, LogChecked, Reviewed, StatementRow, Status
from modelkeep.app.rows import release_row, statement_row
from modelkeep.app.shelf import keep_shelf
from modelkeep.app.suspects import Suspect, Traces, onnx_suspect
from modelkeep.app.traceresults import Accusation, AccusedTogether, MarkRenewed, ProbesLogged, Traced
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change
from modelkeep.core.records import parse_record
from modelkeep.core.values import ReleaseState, to_json
from modelkeep.custody.releases import QUARANTINE
from modelkeep.custody.trust import origin_of
from modelkeep.errors import Conflict, Denied, Invalid, Missing
from modelkeep.extraction.flips import LEAST_SHARE, MOST_SHARE
from modelkeep.extraction.ladder import Rung
from modelkeep.operations import incidents
from modelkeep.operations.incidents import Incident, IncidentState, open_incident, parse_incident
from modelkeep.operations.integrity import KIND, LATEST, IntegrityPass, examine
from modelkeep.workflows.decisions import POOL, TRACE
from modelkeep.workflows.registry import kept_head
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.tracepage import PAGE, render
from modelkeep.workflows.tracereport import make_report
from modelkeep.workflows.verify import check_stored

OUTCOMES = ("cleared", "confirmed", "deceived")
REVIEW = "review"
INTEGRITY = "integrity"
EXTRACTION = "extraction"
DRIFT = "drift"
MARK_RENEW = "mark.renew"
DAY_NS = 86_400 * 1_000_000_000
MOST_BUDGETS = 20
"""Budgets that a status shows, by pseudonym as incidents are: who may see a status need not know who asks."""
LONGEST_NOTE = 2000
MOST_POOLED = 200_000
"""Rows of a pool of probes that are handed in."""


class OversightVerbs(Acts):
    """status, log verify/show/prove, integrity, incident list/resolve, review, trace, renew-mark."""

    @verb("status")
    def status(self) -> Status:
        """What is sealed, served and quarantined; the last integrity pass; open incidents; the gateways heard from."""
        registry = self.premises.registry()
        book, witnessed = registry.book, registry.witnessed()
        names = self.names()
        return Status(
            origin=self.premises.trust.origin,
            releases=tuple(release_row(evidence, names, book.catalogue) for evidence in book.releases()),
            log_size=book.size,
            integrity=self._last_pass(),
            incidents=tuple(
                _incident(found) for found in self._incidents() if found.state is not incidents.IncidentState.RESOLVED
            ),
            gateways=tuple(
                GatewayRow(origin.rpartition("/")[2], said.size, said.phase != "final")
                for origin, said in book.audits().items()
            ),
            witnessed=None if witnessed is None else witnessed.size,
            budgets=tuple(row for row in budget_rows(self.premises, book) if row.learnt >= HALF * row.limit)[:MOST_BUDGETS],
        )

    @verb("log.read")
    def log_verify(self) -> tuple[LogChecked, ...]:
        """Check every log of this keep whole, from its static files. Raises NotTrusted, Missing, Unavailable."""
        here = self.premises
        logs = (here.trust.releases_origin, *map(origin_of, here.trust.releases_before))
        heads = [kept_head(here.records, origin) for origin in logs]  # read before the log is: the log is never behind it
        return check_logs(keep_shelf(here.directory / "log"), here.trust, [head for head in heads if head], own=True)

    @verb("log.read")
    def log_show(self, *, last: int = 20) -> tuple[StatementRow, ...]:
        """The latest entries of the releases log, oldest first."""
        view = self.premises.view()
        size = view.checkpoint.size
        start = max(0, size - max(1, min(last, 10_000)))
        names = self.names()
        return tuple(statement_row(index, entry, names) for index, entry in enumerate(view.entries(start, size), start))

    @verb("log.read")
    def log_prove(self, *, ref: str) -> bytes:
        """A proof that the release statement of ``ref`` is in the log, in the tlog-proof format. Raises Missing."""
        registry = self.premises.registry()
        return registry.prove(registry.release(self.ref(ref)).index).encode()

    @verb("log.read")
    def log_prove_entry(self, *, entry: int) -> bytes:
        """A proof that entry ``entry`` of the releases log is in it, whatever it says. Raises Missing."""
        view = self.premises.view()
        if not 0 <= entry < view.checkpoint.size:
            raise Missing(f"the releases log has entries 0 to {view.checkpoint.size - 1}, and no entry {entry}")
        return view.inclusion(entry).encode()

    @verb("audit.read")
    def log_prove_record(self, *, record: str) -> bytes:
        """A proof that an audit record is in its log, by its receipt ``INSTANCE/INDEX`` from the header modelkeep-record.

        Raises Missing, Invalid, Unavailable (it is in the journal, and not under a checkpoint yet).
        """
        return prove_record(self.premises, record)

    @verb("log.read")
    def log_prove_consistency(self, *, old: int) -> bytes:
        """A proof that the releases log continues its first ``old`` entries, as C2SP tlog-witness has it. Raises Invalid."""
        return self.premises.view().continuation(old).encode()

    @verb("quarantine")
    def integrity(self) -> IntegrityPass:
        """Check what is stored of every release; quarantine what is damaged and open an incident for it."""
        registry = self.premises.registry()
        ended = (ReleaseState.RETIRED, ReleaseState.COLLECTED)
        standing = {evidence.ref: evidence for evidence in registry.refresh().releases() if evidence.state not in ended}
        findings = list(examine(standing, lambda ref: check_stored(registry, standing[ref])))
        quarantined = []
        for found in findings:
            if standing[found.release].state is not ReleaseState.QUARANTINED:
                reason = f"integrity pass: {found.problem}"
                change_state(self.premises.desk(), found.release, QUARANTINE, actor=self.actor.subject, reason=reason)
                quarantined.append(str(found.release))
            self.raise_incident(INTEGRITY, str(found.release), found.problem)
        said = tuple(f"{found.release}: {found.problem}" for found in findings)
        report = IntegrityPass(self.premises.clock.now_ns(), len(standing), said, tuple(quarantined))
        self.premises.records.commit([Change(KIND, LATEST, to_json(report))])
        return report

    @verb("incident.read")
    def incidents(self) -> tuple[IncidentRow, ...]:
        """Every incident, open ones first, then the latest."""
        found = sorted(self._incidents(), key=lambda one: (one.state is IncidentState.RESOLVED, -one.changed))
        return tuple(_incident(one) for one in found)

    @verb("incident.close")
    def incident_resolve(self, *, incident_id: str, note: str) -> IncidentRow:
        """Close an incident. Raises Missing, Conflict (it is closed)."""
        if len(note) > LONGEST_NOTE:
            raise Invalid(f"a note has at most {LONGEST_NOTE:,} characters")
        done = self._resolve(incident_id, note)
        self.act("incident.resolve", done.id, note=note)
        return _incident(done)

    @verb("review")
    def review(self, *, account: str, outcome: str, reason: str, false_alarm: bool = False, flips: float = 0.0) -> Reviewed:
        """Decide about an accused account: ``cleared`` forgets its evidence, ``confirmed`` disables it, ``deceived`` puts it on
        the last rung of the ladder; another review takes that back.

        ``false_alarm``: the account was accused wrongly, which the next calibration must know; ``flips``: of a deceived one,
        the share of its answers whose labels are flipped, 0.001 to 0.1, in place of the regions that the ladder says. Raises
        Missing, Invalid, Denied (one's own account).
        """
        if outcome not in OUTCOMES:
            raise Invalid(f"{outcome[:40]!r} is no outcome of a review: use {' or '.join(OUTCOMES)}")
        if false_alarm and outcome != "cleared":
            raise Invalid("a false alarm is cleared: no other outcome fits it")
        if flips and (outcome != "deceived" or not LEAST_SHARE <= flips <= MOST_SHARE):
            raise Invalid(f"labels are flipped for a deceived account, {LEAST_SHARE:.1%} to {MOST_SHARE:.0%} of them")
        if not reason.strip():
            raise Invalid("say why: a review is logged with its reason")
        if outcome == "deceived" and self.premises.ladder.of(self.premises.registry().book).steps[Rung.SANCTION].refuse:
            raise Invalid("the ladder in force has no [sanction]: set one that has with 'modelkeep policy set ladder'")
        owner = self.owner(account)
        if owner.name == self.actor.account:
            raise Denied("nobody reviews the evidence against their own account: ask another administrator")
        feedback = {"false_alarm": "true"} if false_alarm else {}
        feedback |= {"flips": repr(float(flips))} if flips else {}
        index = self.act(REVIEW, owner.subject, outcome=outcome, reason=reason, **feedback)
        if outcome == "confirmed" and not owner.disabled:
            scan = self.premises.records.scan
            if isinstance(owner, External):
                self.change(lambda: set_blocked(scan(EXTERNAL), account, True))
            else:
                self.change(lambda: set_disabled(scan(ACCOUNT), account, True))
        for found in self._open_incidents():
            if found.kind == EXTRACTION and found.about.startswith(owner.subject):
                self._resolve(found.id, f"{outcome}: {reason}")
        self.premises.settle_lease()
        return Reviewed(account, outcome, index)

    @verb("trace")
    def trace(
        self,
        *,
        ref: str,
        suspect: bytes,
        probes: bytes = b"",
        beacon: bytes = b"",
        significance: float = 1e-3,
        report: bool = False,
        seen: int = 0,
        theirs: bool = False,
    ) -> Traced:
        """Rank the accounts that ``suspect`` (ONNX) may have been trained through; the rest as ``Asked`` has it.

        Raises Invalid, Missing, NotTrusted.
        """
        return self._trace(ref, lambda: onnx_suspect(suspect), Asked(probes, beacon, significance, report, seen, theirs))

    def trace_by(self, *, ref: str, suspect: Suspect, asked: Asked) -> Traced:
        """``trace`` of a suspect that is not a file: whatever can be asked. Where the keep is, and not over a server."""
        self.authorize("trace", {"ref": ref})
        return self._trace(ref, lambda: suspect, asked)

    def _trace(self, named: str, opened: Callable[[], Suspect], asked: Asked) -> Traced:
        asked.check(self.premises.clock.now_ns())
        significance, ref, probing = asked.significance, self.ref(named), asked.probing()
        traces, suspect = Traces(self.premises, ref), opened()
        if asked.report:
            traces.check_reportable(probing)
        done = traces.run(suspect, probing, asked.seen)
        found, groups = done.accusations(self.names()), done.groups(self.names())
        claim = traces.claim(done, asked.probes, significance, self.actor.subject) if asked.report else None
        accused = [one.subject for one in found if one.p <= significance and not one.late]
        grouped = [subject for one in done.together if one.p <= significance for subject in one.members]
        subjects = list(dict.fromkeys([*accused, *grouped]))
        said = {"verdict": "accused" if subjects else "nobody", "accounts": ",".join(subjects)}
        if claim is not None:
            self.renew_marks(ref, claim.newest)  # first: no report leaves while a key that it opens marks answers
            said["opened"] = ",".join(f"{one.subject}:{one.epoch}" for one in claim.accused)
        self.act(TRACE, str(ref), suspect=suspect.digest, probes=probing.how, significance=f"{significance:g}", **said)
        files: dict[str, bytes] = {}
        if claim is not None:
            page = render(claim, {one.subject: one.p for one in found}, self.premises.trust.origin)
            files = make_report(claim, self.premises.desk().signer, {PAGE: page})
        verdict = " ".join([_verdict(found, groups, significance), *done.cautions])
        return Traced(str(ref), verdict, significance, found, files, groups)

    @verb("trace")
    def probes_log(self, *, ref: str, probes: bytes) -> ProbesLogged:
        """Log the Merkle root of rows that probes for suspects of ``ref`` may be drawn of: by keys that the log commits to from
        here on, a trace may claim something with them. ``probes``: an npz file of natural rows. Raises Missing, Invalid,
        Conflict (they were logged before)."""
        registry, parsed = self.premises.registry(), self.ref(ref)
        registry.release(parsed)
        pool, logged = parse_pool(parsed, probes, MOST_POOLED), self.premises.decisions().pools
        if (before := logged.get((str(parsed), pool.root))) is not None:
            raise Conflict(f"these rows stand in entry {before.index} of the releases log, as a pool of probes for {parsed}")
        index = self.act(POOL, str(parsed), pool=pool.root, rows=str(len(pool)))
        known = [bool(registry.book.committed(subject, parsed)) for subject in self.subjects()]
        return ProbesLogged(str(parsed), pool.root, len(pool), index, sum(known))

    @verb("trace")
    def mark_renew(self, *, ref: str, account: str, reason: str) -> MarkRenewed:
        """Give an account a new key for the marks on its answers by ``ref``: a new epoch, from the gateways' next look on.

        Raises Missing (no such account, or it has no key there yet), Invalid (no reason).
        """
        parsed, subject = self.ref(ref), self.owner(account).subject
        if not 0 < len(reason.strip()) <= LONGEST_NOTE:
            raise Invalid(f"a reason has 1 to {LONGEST_NOTE:,} characters")
        if not self.renew_marks(parsed, [subject]):
            raise Missing(f"{account} has no key for marks on {parsed}: promote that release first")
        index = self.act(MARK_RENEW, subject, release=str(parsed), reason=reason)
        epoch = len(self.premises.registry().book.committed(subject, parsed)) - 1
        return MarkRenewed(account, str(parsed), epoch, index)

    def marks_due(self) -> int:
        """Begin a new epoch of every account key for a promoted release that is as old as the settings let one be; how many."""
        days, begun = self.premises.settings.extraction.mark_epoch_days, 0
        before = self.premises.clock.now_ns() - round(days * DAY_NS)
        for evidence in self.premises.registry().book.releases() if days else ():
            if evidence.state is ReleaseState.PROMOTED:
                begun += self.renew_marks(evidence.ref, self.subjects(), before=before)
        return begun

    def raise_incident(self, kind: str, about: str, detail: str, *, again: bool = True) -> Incident:
        """Open an incident, unless one for the same cause is open.

        ``again``: a resolved one with the same words is opened again; otherwise it stays resolved.
        """
        at = self.premises.clock.now_ns()

        def decide() -> tuple[Incident, Sequence[Change]]:
            try:
                existing = self.record(incidents.KIND, f"{kind}:{about}")
            except Missing:
                existing = None
            if existing is not None and not again and parse_incident(existing).detail == detail:
                return parse_incident(existing), ()
            return open_incident(existing, kind=kind, about=about, detail=detail, at=at)

        try:
            return self.change(decide)
        except Conflict:
            return self.change(decide)  # another process opened it at this moment

    def _resolve(self, incident_id: str, note: str) -> Incident:
        at = self.premises.clock.now_ns()
        return self.change(lambda: incidents.step(self.record(incidents.KIND, incident_id), "resolve", note=note, at=at))

    def _last_pass(self) -> IntegrityPass | None:
        try:
            return parse_record(self.record(KIND, LATEST), IntegrityPass, "the last integrity pass", "the next one replaces it")
        except Missing:
            return None

    def _incidents(self) -> list[Incident]:
        return [parse_incident(record) for record in self.premises.records.scan(incidents.KIND)]

    def _open_incidents(self) -> list[Incident]:
        return [found for found in self._incidents() if found.state is not IncidentState.RESOLVED]


def _verdict(found: Sequence[Accusation], groups: Sequence[AccusedTogether], significance: float) -> str:
    """What a trace found, in words."""
    strong = [one for one in found if one.p <= significance]
    names, late = (
        ", ".join(f"{one.account} (p = {one.p:.1e})" for one in strong if one.late is wanted) for wanted in (False, True)
    )
    parts = [f"Traced to {names}." if names else f"No account: none is significant at {significance:g} after Bonferroni."]
    parts += [f"Together: {', '.join(one.accounts)} (p = {one.p:.1e})." for one in groups if one.p <= significance]
    if late:
        parts.append(
            f"Nothing is claimed of {late}: the key was committed to after the suspect was seen, opened before, or is older "
            "than the pool of probes."
        )
    elif spent := ", ".join(one.account for one in found if one.spent):
        parts.append(f"Keys of {spent} that an earlier report opened were left out: --seen says that the suspect is older.")
    return " ".join(parts)


def _incident(found: Incident) -> IncidentRow:
    return IncidentRow(found.id, str(found.state), found.opened, found.detail, found.note)
