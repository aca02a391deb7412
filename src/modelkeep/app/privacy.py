"""Verbs about privacy: the budget of a data set, and the runs that are charged to it."""

from modelkeep.app.acting import Acts
from modelkeep.app.privacyresults import PrivacyBudgeted, PrivacyLedger, PrivacyReserved, PrivacyRun
from modelkeep.app.results import Attested
from modelkeep.app.verbs import verb
from modelkeep.core.values import Digest, parse_digest
from modelkeep.custody.salting import DataSalts, parse_dataset, salted
from modelkeep.errors import Denied, Invalid, Missing
from modelkeep.ledger.attestations import Salted
from modelkeep.training.accountant import Steps
from modelkeep.training.budgets import Budget, Charge, Ledger, PrivacySpent, ledger_name
from modelkeep.workflows.attest import subject_of
from modelkeep.workflows.budgets import Ledgers, record, reserve, set_budget, settle
from modelkeep.workflows.datasets import all_datasets

LONGEST_REASON = 2000
_NO_BUDGET = 1e-5
"""Delta at which a data set without a budget is told."""


class PrivacyVerbs(Acts):
    """privacy: what training with differential privacy has spent of each data set."""

    @verb("privacy.budget")
    def privacy_budget(self, *, dataset: str, epsilon: float, delta: float, reason: str = "") -> PrivacyBudgeted:
        """Set the most that all runs on a data set may cost together. Raises Invalid, Unavailable."""
        name = _whole(dataset)
        if len(reason) > LONGEST_REASON:
            raise Invalid(f"a reason has at most {LONGEST_REASON:,} characters")
        budget, here = Budget(epsilon, delta), self.premises
        index = set_budget(here.desk(), here.trust.origin, name, budget, actor=self.actor.subject, reason=reason)
        return PrivacyBudgeted(self._told(self._ledgers().ledger(name)), index)

    @verb("show")
    def privacy_ledger(self, *, dataset: str = "") -> tuple[PrivacyLedger, ...]:
        """What is spent of one data set, or of all. Raises Missing (nothing is known of it), Unavailable."""
        found = self._ledgers()
        if not dataset:
            return tuple(self._told(one) for one in found.all())
        ledger = found.ledger(ledger_name(parse_dataset(dataset)))
        if ledger.budget is None and not ledger.charges:
            raise Missing(f"no private run was charged to {dataset}, and it has no budget: 'modelkeep privacy budget' sets one")
        return (self._told(ledger),)

    @verb("run.record")
    def privacy_reserve(self, *, dataset: str, digest: str, plan: PrivacySpent) -> PrivacyReserved:
        """Charge a run to a data set before it begins. ``digest``: SHA-256 of the data, which is logged salted.

        Raises Denied (it would exceed the budget, or the same data is known by another name), Invalid, Unavailable.
        """
        name, plain, here = ledger_name(parse_dataset(dataset)), parse_digest(digest), self.premises
        if not name:
            raise Invalid(f"{dataset[:80]!r} names no data set before its version or file")
        desk = here.desk()
        self._check_name(name, plain)
        hidden = salted(here.data_salts().salt(dataset.partition("/")[0]), plain)
        made = reserve(desk, here.trust, Salted(dataset, hidden), plan, actor=self.actor.subject)
        try:
            self._check_name(name, plain)
        except Denied:  # who reserved it under another name at the same time was first
            settle(desk, here.trust, made.charge.run, 0, actor=self.actor.subject, reason="reserved under another name first")
            raise
        return PrivacyReserved(made.charge.run, self._told(made.ledger))

    @verb("run.record")
    def privacy_settle(self, *, run: str, steps: int, reason: str = "") -> PrivacyRun:
        """Say that a reserved run ended after so many steps; what it did not spend is given back. Another's run takes an
        administrator. Raises Missing, Conflict (it is settled), Denied, Invalid, Unavailable.
        """
        if len(reason) > LONGEST_REASON:
            raise Invalid(f"a reason has at most {LONGEST_REASON:,} characters")
        here = self.premises
        _, charge = self._ledgers().run(run)
        if charge.actor != self.actor.subject:
            self.authorize("privacy.return", {})
        return _run(settle(here.desk(), here.trust, run, steps, actor=self.actor.subject, reason=reason))

    @verb("run.record")
    def privacy_record(self, *, run: str, filename: str, digest: str) -> Attested:
        """Log the privacy statement of a model that came out of a reserved run, in the numbers that were reserved.

        Raises Missing, Conflict, Denied (another reserved it), Invalid, Unavailable.
        """
        here, subject = self.premises, subject_of(filename, parse_digest(digest))
        if self._ledgers().run(run)[1].actor != self.actor.subject:
            raise Denied(f"the run {run[:40]} was reserved by somebody else: who reserved it says what came out of it")
        index = record(here.desk(), here.trust, run, subject, actor=self.actor.subject)
        return Attested("privacy", subject.name, subject.digest, index)

    def _ledgers(self) -> Ledgers:
        return Ledgers.of(self.premises.view(), self.premises.trust)

    def _check_name(self, name: str, plain: Digest) -> None:
        """Raises Denied: the very same data was charged, or sealed, under another name first."""
        charged = [(each.name, one) for each in self._ledgers().all() for one in each.charges]
        found = [(one.index, first, one.dataset, one.digest) for first, one in charged]
        sealed = [(each, each.digest) for each in all_datasets(self.premises.registry())]
        found += [(each.entry, each.ref.name, str(each.ref), digest) for each, digest in sealed if digest and each.entry >= 0]
        salts = self.premises.data_salts()
        known = next((first for _, first, dataset, digest in sorted(found) if _is_salted(salts, dataset, plain, digest)), name)
        if known != name:
            raise Denied(f"this very data was charged to {known} before, or sealed so: name it so, for it is one budget")

    def _told(self, ledger: Ledger) -> PrivacyLedger:
        delta = ledger.budget.delta if ledger.budget else max([_NO_BUDGET, *(one.delta for one in ledger.charges)])
        limit = ledger.budget.epsilon if ledger.budget else -1.0
        return PrivacyLedger(ledger.name, ledger.total(delta), delta, limit, tuple(map(_run, ledger.charges)))


def _is_salted(salts: DataSalts, dataset: str, plain: Digest, digest: Digest) -> bool:
    try:
        return salted(salts.existing(dataset.partition("/")[0]), plain) == digest
    except (Missing, Invalid):
        return False


def _whole(dataset: str) -> str:
    """The name of a whole data set. Raises Invalid."""
    name = ledger_name(parse_dataset(dataset))
    if name != dataset or not name:
        raise Invalid(f"a budget is for a whole data set, all its versions and files: say {name or 'its name'}")
    return name


def _run(charge: Charge) -> PrivacyRun:
    spend = charge.spend
    steps = spend if isinstance(spend, Steps) else None
    returned = steps is not None and steps.steps == 0
    return PrivacyRun(
        log_index=charge.index,
        run=charge.run,
        state="returned" if returned else "spent" if charge.settled else "reserved",
        dataset=charge.dataset,
        epsilon=charge.epsilon,
        delta=charge.delta,
        noise_multiplier=steps.noise if steps else 0.0,
        sample_rate=steps.rate if steps else 0.0,
        steps=steps.steps if steps else 0,
        models=charge.models,
        actor=charge.actor,
        at=charge.at,
    )
