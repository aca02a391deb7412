"""Verbs about what the extraction defence holds about accounts: who is on which rung, why, and larger budgets."""

from modelkeep.access.accounts import Account
from modelkeep.access.factors import FACTOR, parse_factors
from modelkeep.app.accountresults import AccountExplained, AccountRow, BudgetAllowed, BudgetRow
from modelkeep.app.acting import Acts
from modelkeep.app.budgets import HALF, budget_rows, named
from modelkeep.app.standing import Judge
from modelkeep.app.verbs import verb
from modelkeep.custody.book import EvidenceBook
from modelkeep.errors import Denied, Invalid, Missing
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.verdicts import Terms
from modelkeep.operations.cases import KIND, CaseState, parse_case
from modelkeep.workflows.cautions import load_indicators, standing
from modelkeep.workflows.covariates import is_case
from modelkeep.workflows.decisions import ALLOW, MOST_FACTOR, Decisions
from modelkeep.workflows.moves import RUNG, whose_rung
from modelkeep.workflows.spendings import spendings

MOST_DAYS = 366
_DAY = 86_400_000_000_000


class AccountVerbs(Acts):
    """account list/explain/allow."""

    @verb("review")
    def account_list(self) -> tuple[AccountRow, ...]:
        """Accounts that are not on the lowest rung, as gateways last wrote it down, those that match threat intelligence, and
        accounts and clusters that have spent half of a budget: the highest rungs first, on each rung those that match, then
        those who have spent most."""
        names, book = self.names(), self.premises.registry().book
        ladder = self.premises.ladder.of(book)
        known, cautions = {rung.text: rung for rung in Rung}, self._cautions()
        budgets = {(row.name, row.release): row for row in budget_rows(self.premises, book)}
        rungs: dict[tuple[str, str], Rung] = {}
        epochs = self.premises.decisions().epochs()
        for record in self.premises.records.scan(RUNG):
            release, subject, epoch = whose_rung(record.key)
            rung = known.get((record.body or b"").decode("ascii", "replace"))
            if rung is not None and epoch == epochs(subject):
                rungs[subject, release] = rung
        for key, row in budgets.items():
            if row.learnt >= HALF * row.limit and key not in rungs:
                alone = Rung.MARK  # what a budget of its own leads to stands in the records of rungs
                rungs[key] = ladder.rung(0.0, row.learnt / row.limit, alarmed=False) if row.accounts else alone
        seen = {subject for subject, _ in rungs}
        rungs |= {(subject, ""): Rung.MARK for subject in cautions if subject not in seen}

        def strictest(one: tuple[str, str]) -> tuple[object, ...]:
            row = budgets.get(one)
            share = row.learnt / row.limit if row else 0.0
            return -rungs[one], one[0] not in cautions, -share, names.get(one[0], one[0]), one

        return tuple(
            AccountRow(
                account=names.get(who, who),
                release=release,
                rung=rungs[who, release].text,
                told=ladder.steps[rungs[who, release]].told,
                cautions=cautions.get(who, ()),
                budget=named(budgets.get((who, release)), names),
            )
            for who, release in sorted(rungs, key=strictest)
        )

    @verb("review")
    def account_explain(self, *, account: str, release: str = "") -> AccountExplained:
        """How an account stands with a release, or with each that it asked, and how it got there; from the audit logs.

        Raises Missing, NotTrusted, Unavailable.
        """
        subject, decisions = self.owner(account).subject, self.premises.decisions()
        judge, book = Judge(self.premises), self.premises.registry().book
        refs = [self.ref(release)] if release else [evidence.ref for evidence in book.releases()]
        cautions = self._cautions().get(subject, ())
        cased, ladder = self._cased(subject), self.premises.ladder.of(book)
        terms = self._terms(decisions, subject, ladder.caution if cautions else 1.0)
        found = (judge.standing(each, subject, terms, cased.get(str(each), ())) for each in refs)
        allowed = decisions.allowed.get(subject)
        return AccountExplained(
            account=account,
            factor=terms.budget,
            until=allowed.until if allowed is not None else 0,
            reviews=tuple(f"{review.text}: {review.reason}" for review in decisions.reviews.get(subject, ())),
            standings=tuple(one for one in found if one is not None),
            cautions=cautions,
            shared=self._shared(subject, book, {str(each) for each in refs}),
        )

    @verb("review")
    def account_allow(self, *, account: str, times: float, days: int, reason: str) -> BudgetAllowed:
        """Let an account learn ``times`` what others may for so many ``days``; recording and evidence go on as they are. Or let
        the accounts of a cluster learn together ``times`` what those of others may.

        Only an account with a second factor; one of another issuer shows it there. Raises Missing, Invalid, Denied (it has
        none; one's own account, or a cluster that it is in).
        """
        if not 0.0 < times <= MOST_FACTOR or not 1 <= days <= MOST_DAYS:
            raise Invalid(f"a budget can be more than 0 and at most {MOST_FACTOR:g} times the usual, for 1 to {MOST_DAYS} days")
        subject = self._vouched_cluster(account) if is_case(account) else self._vouched(account)
        until = self.premises.clock.now_ns() + days * _DAY
        index = self.act(ALLOW, subject, factor=repr(float(times)), until=str(until), reason=reason)
        self.premises.settle_lease()
        return BudgetAllowed(account, float(times), until, index)

    def _vouched(self, account: str) -> str:
        owner = self.owner(account)
        if owner.name == self.actor.account:
            raise Denied("nobody raises the budget of their own account: ask another administrator")
        if isinstance(owner, Account) and not self._has_factor(account):
            raise Denied(f"{account} has no second factor: only who logs in with one gets a larger budget")
        return owner.subject

    def _vouched_cluster(self, cluster: str) -> str:
        found, names = [one for one in spendings(self.premises.records) if one.name == cluster], self.names()
        if not found:
            raise Missing(f"a tenth of the budget of {cluster} was never spent: 'account list' shows the budgets that are")
        if any(names.get(subject) == self.actor.account for one in found for subject in one.spending.accounts):
            raise Denied("nobody raises a budget that their own account shares: ask another administrator")
        return cluster

    def _shared(self, subject: str, book: EvidenceBook, releases: set[str]) -> tuple[BudgetRow, ...]:
        names = self.names()
        rows = (row for row in budget_rows(self.premises, book) if subject in row.accounts and row.release in releases)
        return tuple(found for row in rows if (found := named(row, names)) is not None)

    def _has_factor(self, account: str) -> bool:
        try:
            return bool(parse_factors(self.record(FACTOR, account)).kinds)
        except Missing:
            return False

    def _cased(self, subject: str) -> dict[str, tuple[str, ...]]:
        """By release the cases that name the account and that nobody cleared."""
        found: dict[str, tuple[str, ...]] = {}
        for case in (parse_case(record) for record in self.premises.records.scan(KIND)):
            for one in case.accused if case.state is not CaseState.CLEARED else ():
                if any(member.subject == subject for member in one.members):
                    found[one.release] = (*found.get(one.release, ()), case.id)
        return found

    def _cautions(self) -> dict[str, tuple[str, ...]]:
        """What each subject matches of the indicators in force, in words."""
        records, decisions = self.premises.records, self.premises.decisions()
        indicators = load_indicators(records, decisions.indicators)
        found = standing(records, indicators, self.premises.clock.now_ns(), decisions.epochs())
        return {subject: tuple(one.text for one in matched) for subject, matched in found.items()}

    def _terms(self, decisions: Decisions, subject: str, caution: float) -> Terms:
        allowed = decisions.allowed.get(subject)
        running = allowed is not None and self.premises.clock.now_ns() < allowed.until
        factor = allowed.factor if allowed is not None and running else 1.0
        return Terms(factor * caution, subject in decisions.sanctioned)
