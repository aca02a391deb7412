"""Verbs about evidence and what it is judged by: attest, approve, policy show/set/history/check/explain."""

import msgspec

from modelkeep.app.acting import Acts
from modelkeep.app.results import Approved, Attested, PolicyJudged, PolicyRow, PolicyShown, RuleRow
from modelkeep.app.verbs import verb
from modelkeep.core.values import Digest, ReleaseState, Resource, parse_digest
from modelkeep.custody.admission import attributes
from modelkeep.custody.policies import ACCESS, ADMISSION, CUSTOM, DEFAULT, EXTENDED, KINDS, PolicyInForce
from modelkeep.custody.salting import salted
from modelkeep.errors import Denied, Invalid
from modelkeep.ledger.attestations import Dataset, Evaluation, Hardening, Privacy
from modelkeep.ledger.kinds import short_type
from modelkeep.policy.admission import AdmissionPolicy
from modelkeep.workflows.attest import approve, attest, parse_predicate, subject_of
from modelkeep.workflows.policies import Chosen, admission_policy, policy_text, set_policy


class PolicyVerbs(Acts):
    """What is said about models, and by which rules it is judged."""

    @verb("attest")
    def attest(self, *, ref: str, kind: str, predicate: bytes) -> Attested:
        """Log what was found out about the file of a release. ``predicate``: JSON, without actor and time.

        A digest of data in it is plain, and logged salted. Raises Invalid (it does not fit its type), Missing, TooLarge,
        Unavailable.
        """
        if kind == short_type(Dataset.TYPE):
            raise Invalid("a release is no data set: name the file with the data by its path")
        release = self.premises.registry().release(self.ref(ref))
        return self._attest(Resource(release.filename, release.model), kind, predicate)

    @verb("attest")
    def attest_file(self, *, filename: str, digest: str, kind: str, predicate: bytes) -> Attested:
        """The same about a file that need not be released yet, by its SHA-256; a data set is logged by its salted digest.

        Raises as ``attest``.
        """
        return self._attest(subject_of(filename, parse_digest(digest)), kind, predicate)

    def _attest(self, subject: Resource, kind: str, predicate: bytes) -> Attested:
        said = parse_predicate(kind, predicate, actor=self.actor.subject, at=self.premises.clock.now_ns())
        if isinstance(said, Dataset):
            subject = Resource(subject.name, self._hidden(said.name, subject.digest))
        elif isinstance(said, Evaluation | Hardening | Privacy) and said.dataset is not None:
            hidden = self._hidden(said.dataset.name, said.dataset.digest)
            said = msgspec.structs.replace(said, dataset=msgspec.structs.replace(said.dataset, digest=hidden))
        index = attest(self.premises.desk(), subject, said)
        return Attested(kind, subject.name, subject.digest, index)

    def _hidden(self, name: str, digest: Digest) -> Digest:
        """The salted digest of data that is called ``name``. Raises Invalid, NotTrusted, Denied, Unavailable."""
        return salted(self.premises.data_salts().salt(name.partition("/")[0]), parse_digest(digest))

    @verb("approve")
    def approve(self, *, ref: str, verdict: str = "approve", reason: str = "") -> Approved:
        """Say that a release may, or may not, be served: ``approve``, ``reject`` or ``withdraw``; the last word counts.

        Raises Missing, Invalid, Denied (one's own release, or nobody's account: neither would count), Conflict.
        """
        parsed = self.ref(ref)
        publisher = self.premises.registry().release(parsed).history[0].actor
        if self.actor.account.endswith("@local"):
            raise Denied(
                f"{self.actor.account} is nobody in particular, so its approval would not count: use 'modelkeep login'"
            )
        if verdict == "approve" and publisher == self.actor.subject:
            raise Denied(f"{self.actor.account} published {parsed}: somebody else must approve it")
        index = approve(self.premises.desk(), parsed, verdict, actor=self.actor.subject, reason=reason)
        dossier = self.premises.registry().book.dossier(parsed)
        names = self.names()
        by, against = ([names.get(who, who) for who in each] for each in (dossier.approved_by, dossier.rejected_by))
        return Approved(str(parsed), verdict, tuple(by), tuple(against), index)

    @verb("policy.read")
    def policy_show(self, *, kind: str = ADMISSION) -> PolicyShown:
        """The policy in force, whole. Raises Invalid."""
        found = self._history(kind)[-1:]
        row = self._policy_row(kind, found[0] if found else None)
        chosen = Chosen(found[0].said.name, found[0].said.text) if found else Chosen(row.name)
        return PolicyShown(row, policy_text(kind, chosen))

    @verb("policy.read")
    def policy_history(self, *, kind: str = ADMISSION) -> tuple[PolicyRow, ...]:
        """Every policy of a kind that was set, oldest first. Raises Invalid."""
        return tuple(self._policy_row(kind, found) for found in self._history(kind))

    @verb("policy.set")
    def policy_set(
        self, *, kind: str, profile: str = "", text: bytes = b"", extend: bool = False, reason: str = ""
    ) -> PolicyRow:
        """Put a policy in force: a ``profile`` that ships, or a ``text``; gateways follow before this returns.

        ``extend``: the text is added to the access policy that ships. Raises Invalid, Conflict, Unavailable.
        """
        if extend and kind != ACCESS:
            raise Invalid("only the access policy is extended: an admission policy is given whole")
        chosen = _chosen(profile, text, EXTENDED if extend else CUSTOM)
        desk, origin = self.premises.desk(), self.premises.trust.origin
        return self._policy_row(kind, set_policy(desk, origin, kind, chosen, actor=self.actor.subject, reason=reason))

    @verb("policy.read")
    def policy_explain(self, *, ref: str, profile: str = "", text: bytes = b"", as_promoted: bool = False) -> PolicyJudged:
        """Judge a release by the admission policy in force, or by another: every rule, what it asks, and whether it holds.

        ``as_promoted``: as if it were promoted already. Raises Missing, Invalid, Unavailable.
        """
        parsed, registry = self.ref(ref), self.premises.registry()
        policy = (
            admission_policy(_chosen(profile, text, CUSTOM)) if profile or text else self.premises.admission.of(registry.book)
        )
        facts = attributes(registry.book, parsed, registry.witnessed(), self.premises.spent())
        if as_promoted and facts["state"] == ReleaseState.PUBLISHED:
            facts["state"] = str(ReleaseState.PROMOTED)
        return _judged(policy, facts, str(parsed))

    def _history(self, kind: str) -> tuple[PolicyInForce, ...]:
        if kind not in KINDS:
            raise Invalid(f"{kind[:40]!r} is no kind of policy: use {' or '.join(KINDS)}")
        return self.premises.registry().book.policies.history(kind)

    def _policy_row(self, kind: str, found: PolicyInForce | None) -> PolicyRow:
        if found is None:
            return PolicyRow(kind, self.premises.settings.keep.admission if kind == ADMISSION else DEFAULT, 0, "", "", -1)
        said = found.said
        return PolicyRow(kind, said.name, said.at, self.names().get(said.actor, said.actor), said.reason, found.index)


def _chosen(profile: str, text: bytes, name: str) -> Chosen:
    if bool(profile) == bool(text):
        raise Invalid("name either a policy that ships or a file with one")
    try:
        return Chosen(name, text.decode()) if text else Chosen(profile)
    except UnicodeDecodeError as cause:
        raise Invalid(f"the policy is not UTF-8 text: {cause}") from cause


def _judged(policy: AdmissionPolicy, facts: dict[str, object], ref: str) -> PolicyJudged:
    rules = tuple(
        RuleRow(held.rule.id, held.rule.effect, held.satisfied, held.rule.says, held.rule.mend, held.rule.needs)
        for held in policy.review(facts)
    )
    return PolicyJudged(ref, policy.name, policy.judge(facts).admitted, policy.explain(facts), rules, facts)
