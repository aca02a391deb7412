"""Evidence: what the releases log says about every release, folded entry by entry.

The log is the only authority. Records, blobs and files are never asked for a state. The fold is monotone in trust: a
statement that is unsigned, signed by someone unknown, out of order or repeated is remembered as a problem and counts for
nothing, so nobody gains anything by adding entries that the trust root's identities did not sign.
"""

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, ReleaseState, Statement, digest_of
from modelkeep.crypto.dsse import Envelope, parse_envelope
from modelkeep.custody.catalogue import Catalogue
from modelkeep.custody.dossier import REJECT, Attestations, Dossier, Told, compile_dossier, told_at
from modelkeep.custody.evidence import Committed, Event, Found, Problem, ReleaseEvidence, sealed_body
from modelkeep.custody.policies import Policies
from modelkeep.custody.releases import COLLECT, PUBLISH, QUARANTINE, RETIRE, SealedBody, next_state
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted
from modelkeep.ledger.attestations import ATTESTATIONS, Approval, Vulnerabilities
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.predicates import (
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
    TraceCommitments,
    Trust,
)
from modelkeep.ledger.statements import check_statement, encode_statement, keep_resource, peek_type, predicate_of

S = TypeVar("S")
CATCH_UP_BATCH = 256
MAX_PROBLEMS = 1000


_WARNINGS: dict[str, type[Scan | Approval | Vulnerabilities]] = {
    Scan.TYPE: Scan,
    Approval.TYPE: Approval,
    Vulnerabilities.TYPE: Vulnerabilities,
}
"""What speaks against a release, at times."""


def _warned(said: Scan | Approval | Vulnerabilities) -> str:
    """What a statement says against a release; "" when nothing that would keep it from being served."""
    if isinstance(said, Scan):
        return "" if said.clean and not said.findings else "its scan was not clean"
    if isinstance(said, Approval):
        return f"reject {said.reason}" if said.verdict == REJECT else ""
    return "a critical vulnerability" if any(each.severity == "critical" for each in said.advisories) else ""


def _compiled(ref: ReleaseRef, told: list[Told[Predicate]], until: int | None) -> Dossier:
    kept = [one for one in told if until is None or one.index < until]
    return compile_dossier(ref, sorted(kept, key=lambda one: one.index))


class Entries(Protocol):
    """What the book reads: ``ledger.log.LogView`` has it. Entries come proven against the current checkpoint."""

    def entries(self, start: int, end: int) -> list[bytes]:
        """Entries ``start`` <= i < ``end``."""
        ...


class EvidenceBook:
    """The fold of a releases log under a trust root. Not safe for two writers; readers get frozen values.

    Cost: an entry that says something about a release is verified once (two signatures); any other entry is only peeked at.
    """

    def __init__(self, trust: TrustRoot) -> None:
        self.begin(trust)

    def begin(self, trust: TrustRoot) -> None:
        """Forget everything and begin the fold anew under ``trust``."""
        self.signatories = Signatories(trust)
        self._size = 0
        self._releases: dict[ReleaseRef, ReleaseEvidence] = {}
        self._scans: dict[Digest, tuple[Found, Scan]] = {}
        self._scans_of: dict[Digest, list[tuple[Found, Scan]]] = {}  # by model, in the order of the log
        self._told: dict[ReleaseRef, list[Told[Predicate]]] = {}  # what was said of a release, and not of its file alone
        self._sealings: dict[Digest, tuple[Found, Sealing]] = {}
        self._profiles: dict[Digest, tuple[Found, Profile]] = {}
        self._audits: dict[str, AuditCheckpoint] = {}
        self._first_profile: dict[ReleaseRef, int] = {}  # of those whose profile was sealed anew
        self._committed: dict[tuple[str, ReleaseRef], tuple[Committed, ...]] = {}
        self._marked: set[ReleaseRef] = set()
        self._calibrations: dict[ReleaseRef, tuple[tuple[int, Calibration], ...]] = {}
        self._seen: set[Digest] = set()
        self._problems: list[Problem] = []
        self._problem_count = 0
        self._suspicious: Problem | None = None
        self._bodies: dict[Digest, SealedBody] = {}
        self._owners: dict[Digest, str] = {}  # by body, the model name that had it first
        self.catalogue = Catalogue(self.release)
        self.policies = Policies(keep_resource(trust.origin))
        self.attestations = Attestations(self.release, self.signatories.check_about)
        self._folds: dict[str, Callable[[Found, Statement], None]] = {
            Scan.TYPE: self._fold_scan,
            Sealing.TYPE: self._fold_sealing,
            Profile.TYPE: self._fold_profile,
            Calibration.TYPE: self._fold_calibration,
            Release.TYPE: self._fold_release,
            State.TYPE: self._fold_state,
            TraceCommitments.TYPE: self._fold_commitments,
            AuditCheckpoint.TYPE: self._fold_audit,
            Alias.TYPE: self.catalogue.fold_alias,
            Metadata.TYPE: self._fold_metadata,
            Hold.TYPE: self.catalogue.fold_hold,
            Policy.TYPE: self.policies.fold,
            **dict.fromkeys(ATTESTATIONS, self.attestations.fold),
        }

    @property
    def size(self) -> int:
        """How many entries were applied; the next index expected."""
        return self._size

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Entries that did not count, oldest first; at most the first 1,000 (``problem_count`` has them all)."""
        return tuple(self._problems)

    @property
    def problem_count(self) -> int:
        """How many entries did not count."""
        return self._problem_count

    @property
    def suspicious(self) -> Problem | None:
        """The first entry that no honest writer would have logged; None when there is none."""
        return self._suspicious

    def apply(self, index: int, entry: bytes) -> None:
        """Fold in one log entry that is already proven to stand at ``index``.

        An entry that cannot be trusted becomes a problem and raises nothing. Raises Conflict unless ``index`` is the next one.
        """
        if index != self._size:
            raise Conflict(f"log entry {index} cannot be applied: the next one expected is {self._size}")
        try:
            self._apply(index, entry)
        except ModelkeepError as cause:
            problem = Problem(index, str(cause), honest=isinstance(cause, Conflict))  # Conflict comes after the signatures
            self._problem_count += 1
            if len(self._problems) < MAX_PROBLEMS:
                self._problems.append(problem)
            if not problem.honest and self._suspicious is None:
                self._suspicious = problem
        self._size = index + 1

    def catch_up(self, view: Entries, size: int) -> int:
        """Apply every entry of ``view`` up to ``size`` (its checkpoint's), and return how many were new.

        Raises NotTrusted when the log is shorter than what was applied before, and whatever ``view`` raises.
        """
        if size < self._size:
            raise NotTrusted(f"the releases log shrank from {self._size} to {size} entries")
        start = self._size
        while self._size < size:
            for entry in view.entries(self._size, min(size, self._size + CATCH_UP_BATCH)):
                self.apply(self._size, entry)
        return size - start

    def release(self, ref: ReleaseRef) -> ReleaseEvidence:
        """The evidence of one release. Raises Missing when no trusted statement released it."""
        try:
            return self._releases[ref]
        except KeyError:
            raise Missing(f"the releases log has no release {ref}") from None

    def releases(self) -> Iterator[ReleaseEvidence]:
        """Every release, by name and version."""
        return (self._releases[ref] for ref in sorted(self._releases))

    def bodies(self) -> dict[Digest, SealedBody]:
        """Every sealed body that a release in the log ever referred to (models, profiles, cards), by its sealed digest."""
        return dict(self._bodies)

    def last_version(self, name: str) -> int:
        """The highest released version of a model name; 0 when there is none."""
        return max((ref.version for ref in tuple(self._releases) if ref.name == name), default=0)

    def committed(self, subject: str, ref: ReleaseRef) -> tuple[Committed, ...]:
        """What the log says of the watermark keys of ``subject`` for ``ref``, by epoch; the last one marks from there on."""
        return self._committed.get((subject, ref), ())

    def accounts_marked(self, ref: ReleaseRef) -> int:
        """How many accounts the log says a watermark key of, for ``ref``."""
        return sum(known == ref for _, known in tuple(self._committed))

    def profiled_at(self, ref: ReleaseRef) -> int | None:
        """Index of the log entry that said first what the extraction profile of ``ref`` is; None when it has none."""
        return self._first_profile.get(ref, self.release(ref).entries.get("profile"))

    def calibrations(self, ref: ReleaseRef) -> tuple[tuple[int, Calibration], ...]:
        """Every calibration of a release with its log index, oldest first; the last one is in force."""
        return self._calibrations.get(ref, ())

    def audits(self) -> dict[str, AuditCheckpoint]:
        """The furthest checkpoint that the log has of every audit log, by origin."""
        return dict(self._audits)

    def _apply(self, index: int, entry: bytes) -> None:
        envelope = parse_envelope(entry)
        kind = peek_type(envelope)
        if kind == Trust.TYPE:
            self.signatories.follow(index, envelope, self.signatories.check(envelope, index)[0])
            return
        fold = self._folds.get(kind)
        if fold is None:
            return
        try:
            statement, signer = self.signatories.check(envelope, index)
        except Conflict:
            self._keep_away(index, envelope)
            raise
        if len(statement.subject) > 2:
            raise Invalid(f"a {short_type(kind)} statement has one or two subjects, not {len(statement.subject)}")
        first, *rest = (resource.digest for resource in statement.subject)
        identifier = digest_of(encode_statement(statement))
        if identifier in self._seen:
            raise Conflict(f"this {short_type(kind)} statement was logged before: a copy does not count")
        self._seen.add(identifier)
        fold(Found(index, identifier, first, rest[0] if rest else None, signer.name), statement)

    def _keep_away(self, index: int, envelope: Envelope) -> None:
        """What an identity took away after its key was compromised stays away, until somebody who is trusted gives it back.

        Otherwise a quarantine that its rightful holder logged would end on the day on which the theft is found out. So it is
        with a hold, without which the next collection removes what somebody must keep; and a rejection, a scan that was not
        clean and a critical vulnerability, which may have kept a release from being served, become a quarantine.
        """
        kind = peek_type(envelope)
        if kind not in (State.TYPE, Hold.TYPE, *_WARNINGS):
            return
        statement, public = check_statement(envelope, self.signatories.identities)
        identifier = digest_of(encode_statement(statement))
        if identifier in self._seen:
            return
        self._seen.add(identifier)
        found = Found(index, identifier, statement.subject[0].digest, None, public.name)
        if kind == Hold.TYPE:
            hold = predicate_of(statement, Hold)
            if self.signatories.ever_spoke(public.name, short_type(kind), ReleaseRef.parse(hold.release).name):
                self.catalogue.keep_hold(index, hold)
        elif kind == State.TYPE:
            said = predicate_of(statement, State)
            if said.verb in (QUARANTINE, RETIRE):
                self._take_away(found, said, f"{said.verb} {said.reason}", ReleaseRef.parse(said.release))
        else:
            warning = predicate_of(statement, _WARNINGS[kind])
            if words := _warned(warning):
                about = ReleaseRef.parse(warning.release) if isinstance(warning, Approval) else None
                self._take_away(found, warning, words, about)

    def _take_away(self, found: Found, said: Predicate, words: str, about: ReleaseRef | None) -> None:
        """Quarantine what may be served of a model: the release ``about``, or every one that its signer once spoke about."""
        for known in tuple(self._releases.values()):
            if known.model != found.model or about not in (None, known.ref):
                continue
            if not self.signatories.ever_spoke(found.signer, short_type(said.TYPE), known.ref.name):
                continue
            if known.state in (ReleaseState.PUBLISHED, ReleaseState.PROMOTED):
                why = f"by a compromised key: {words}".rstrip()
                event = Event(found.index, QUARANTINE, said.actor, why, said.at)
                self._releases[known.ref] = msgspec.structs.replace(
                    known, state=ReleaseState.QUARANTINED, history=(*known.history, event)
                )

    def dossier(self, ref: ReleaseRef, until: int | None = None) -> Dossier:
        """What counts about a release; ``until``: of the first so many entries. Raises Missing (no such release, by then)."""
        evidence = self.release(ref)
        told: list[Told[Predicate]] = [*self._told[ref], *self.attestations.about(evidence.model, ref.name)]
        told += [told_at(*each) for each in self._scans_of.get(evidence.model, ()) if self._may_scan(each[0], ref.name)]
        found = _compiled(ref, told, until)
        data = [one for digest in found.data() for one in self.attestations.about(digest, ref.name)]
        return _compiled(ref, [*told, *data], until) if data else found

    def clean_since(self, ref: ReleaseRef) -> int | None:
        """Since which log entry nothing was found in a release's file; None when something is, or it was never scanned.

        What one scanner found, another does not take back: only a later clean scan of the same by the same signer does, or any
        once that signer's stretch of the log has ended. Raises Missing.
        """
        since: int | None = None
        found_by: set[tuple[str, str]] = set()
        evidence = self.release(ref)
        for found, said in self._scans_of.get(evidence.model, ()) if evidence.scan else ():
            if not self._may_scan(found, ref.name):
                continue
            if not said.clean or said.findings:
                found_by.add((found.signer, said.scanner))
                since = None
                continue
            found_by = {one for one in found_by if one != (found.signer, said.scanner) and self._signs(one[0], found.index)}
            since = None if found_by else found.index if since is None else since
        return since

    def _signs(self, name: str, index: int) -> bool:
        """Whether ``name`` signs anything at ``index``."""
        return any(each.holds_at(index) for each in self.signatories.stretches(name))

    def marked(self, ref: ReleaseRef) -> bool:
        """Whether the watermark key of any account is committed for ``ref``."""
        return ref in self._marked

    def _fold_scan(self, found: Found, statement: Statement) -> None:
        """A scan counts for every release of the file whose name its signer may speak about, in place of an earlier one."""
        said = predicate_of(statement, Scan)
        self._scans[found.id] = found, said
        self._scans_of.setdefault(found.model, []).append((found, said))
        for known in [each for each in self._releases.values() if each.model == found.model]:
            if self._may_scan(found, known.ref.name):
                entries = {**known.entries, "scan": found.index}
                self._releases[known.ref] = msgspec.structs.replace(known, scan=said, entries=entries)

    def _may_scan(self, found: Found, name: str) -> bool:
        try:
            self.signatories.check_about(found.signer, found.index, "scan", name)
        except (NotTrusted, Conflict):
            return False
        return True

    def _fold_profile(self, found: Found, statement: Statement) -> None:
        profile = predicate_of(statement, Profile)
        known = self._releases.get(ReleaseRef.parse(profile.release))
        if known is None or not profile.replaces:
            self._profiles[found.id] = found, profile
            return
        if (found.model, found.second) != (known.model, known.profile_digest):
            raise NotTrusted(f"a later sealing of the profile of {known.ref} is of another profile")
        if known.profile is None or profile.replaces != known.profile.sealed:
            raise Conflict(f"a later sealing of the profile of {known.ref} does not name the body that it replaces")
        self._take(found, known.ref, sealed_body(profile))
        self._first_profile.setdefault(known.ref, known.entries["profile"])
        self._releases[known.ref] = msgspec.structs.replace(
            known, profile=profile, entries={**known.entries, "profile": found.index}
        )

    def _fold_sealing(self, found: Found, statement: Statement) -> None:
        sealing = predicate_of(statement, Sealing)
        ref = ReleaseRef.parse(sealing.release)
        known = self._releases.get(ref)
        if known is None:
            self._sealings[found.id] = found, sealing
            return
        if found.model != known.model:  # the root may be another: a later cipher suite hashes what is inside in another way
            raise NotTrusted(f"a later sealing of {ref} is of another model")
        if sealing.replaces != known.body.sealed:
            raise Conflict(f"a later sealing of {ref} does not name the body that it replaces")
        self._take(found, ref, sealed_body(sealing))
        self._releases[ref] = msgspec.structs.replace(
            known, body=sealed_body(sealing), entries={**known.entries, "sealing": found.index}
        )

    def _fold_release(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, Release)
        ref = ReleaseRef.parse(f"{said.name}@{said.version}")
        if ref in self._releases:
            raise Conflict(f"{ref} was released before, by log entry {self._releases[ref].index}: a version is never reused")
        sealed, sealing = self._named(self._sealings, "sealing", said, found)
        if sealing.release != str(ref):
            raise NotTrusted(f"the sealing that {ref} names is of {sealing.release[:80]}")
        scanned = self._named(self._scans, "scan", said, found) if "scan" in said.evidence else None
        if scanned is not None:  # a scan names no model: whether its signer may speak about this one is seen here
            self.signatories.check_about(scanned[0].signer, scanned[0].index, "scan", said.name)
            scanned = [each for each in self._scans_of[found.model] if self._may_scan(each[0], said.name)][-1]
        profiled = self._named(self._profiles, "profile", said, found) if "profile" in said.evidence else None
        if profiled is not None and profiled[1].release != str(ref):
            raise NotTrusted(f"the profile that {ref} names is of {profiled[1].release[:80]}")
        entries = {"sealing": sealed.index, "release": found.index}
        entries |= {"scan": scanned[0].index} if scanned else {}
        entries |= {"profile": profiled[0].index} if profiled else {}
        self._take(found, ref, *(sealed_body(each) for each in (sealing, profiled[1] if profiled else None) if each))
        self._told[ref] = [told_at(found, said)]
        self._releases[ref] = ReleaseEvidence(
            ref=ref,
            state=next_state(ReleaseState.PENDING, PUBLISH),
            model=found.model,
            filename=said.filename,
            format=said.format,
            interface=said.interface,
            size=said.size,
            body=sealed_body(sealing),
            scan=scanned[1] if scanned else None,
            profile=profiled[1] if profiled else None,
            profile_digest=profiled[0].second if profiled else None,
            signer=found.signer,
            entries=entries,
            history=(Event(found.index, PUBLISH, said.actor, "", said.at),),
            bundle=said.bundle,
        )

    def _named(self, pool: dict[Digest, tuple[Found, S]], kind: str, said: Release, found: Found) -> tuple[Found, S]:
        ref = f"{said.name}@{said.version}"
        named = pool.get(said.evidence.get(kind, Digest("")))
        if named is None:
            raise NotTrusted(f"{ref} names a {kind} statement that does not stand earlier in the log")
        if named[0].model != found.model:
            raise NotTrusted(f"the {kind} statement that {ref} names is about another model")
        return named

    def _fold_state(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, State)
        known = self.release(ReleaseRef.parse(said.release))
        if found.model != known.model:
            raise NotTrusted(f"a {said.verb[:40]} statement names {known.ref} and another model")
        state = next_state(known.state, said.verb)
        if said.verb == COLLECT:
            self.catalogue.check_free(known.ref)
        event = Event(found.index, said.verb, said.actor, said.reason, said.at)
        self._releases[known.ref] = msgspec.structs.replace(known, state=state, history=(*known.history, event))

    def _fold_metadata(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, Metadata)
        if said.card is not None:
            self._check_own(found, said.card.sealed)
        card = self.catalogue.fold_metadata(found, statement).card
        self._told[ReleaseRef.parse(said.release)].append(told_at(found, said))
        if card is not None:
            self._take(found, ReleaseRef.parse(said.release), card)

    def _take(self, found: Found, ref: ReleaseRef, *bodies: SealedBody) -> None:
        """Note the bodies of a release; the first word on each stands. Raises NotTrusted as ``_check_own``."""
        for body in bodies:
            self._check_own(found, body.sealed)
        for body in bodies:
            self._owners.setdefault(body.sealed, ref.name)
            self._bodies.setdefault(body.sealed, body)

    def _check_own(self, found: Found, sealed: Digest) -> None:
        """A body of another model is shared by those alone who may speak about that model, too.

        What the log says of a body is public: whoever may sign for one name could else give it to that name, and take it out.
        """
        owner = self._owners.get(sealed)
        if owner is not None:
            self.signatories.check_about(found.signer, found.index, "sealing", owner)

    def _fold_commitments(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, TraceCommitments)
        known = self.release(ReleaseRef.parse(said.release))
        if found.model != known.model:
            raise NotTrusted(f"commitments name {known.ref} and another model")
        if said.entries:
            self._marked.add(known.ref)
        for entry in said.entries:
            earlier = self.committed(entry.subject, known.ref)
            if entry.epoch > len(earlier):
                raise Conflict(f"epoch {entry.epoch} of a watermark key of {entry.subject[:80]} comes before the one before it")
            if entry.epoch == len(earlier):  # else the first one stands
                commit = Committed(entry.commitment, found.index, said.at)
                self._committed[entry.subject, known.ref] = (*earlier, commit)

    def _fold_calibration(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, Calibration)
        known = self.release(ReleaseRef.parse(said.release))
        if (found.model, found.second) != (known.model, known.profile_digest):
            raise NotTrusted(f"a calibration names {known.ref} and another extraction profile")
        earlier = self.calibrations(known.ref)
        if said.replaces != (earlier[-1][0] if earlier else -1):
            raise Conflict(f"a calibration of {known.ref} does not name the one that it replaces")
        if not all(0.0 < bound < 1.0 for bound in said.kappa):
            raise Invalid(f"a calibration of {known.ref} has bounds outside (0, 1)")
        self._calibrations[known.ref] = (*earlier, (found.index, said))

    def _fold_audit(self, found: Found, statement: Statement) -> None:
        said = predicate_of(statement, AuditCheckpoint)
        known = self._audits.get(said.origin)
        if known is not None and (said.size < known.size or (said.size == known.size and said.root != known.root)):
            raise NotTrusted(f"the audit log {said.origin[:120]} was rolled back or rewritten by log entry {found.index}")
        self._audits[said.origin] = said
