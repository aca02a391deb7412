"""Accounts that share a covariate are one to the pooled test, and an honest cluster is not accused."""

import itertools

import numpy as np
import pytest

from modelkeep.extraction import budget
from modelkeep.extraction import clusters as rooms
from modelkeep.extraction.attacks.base import Knowledge, Planned
from modelkeep.extraction.attacks.jacobian import jacobian
from modelkeep.extraction.attacks.knockoff import knockoff
from modelkeep.extraction.attacks.line_search import line_search
from modelkeep.extraction.attacks.uniform import uniform
from modelkeep.extraction.clusters import JOINS, MEMBERS, Asked, Clusters
from modelkeep.extraction.eprocess import make_bets, restart_weight
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT, Rung

ALPHA = 1e-3


class Ridge:
    """The thief's copy: a linear fit, quick and good enough to point somewhere."""

    def fit(self, x, answers):
        self.mean, self.scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        lifted = self._lift(x)
        self.weights = np.linalg.solve(lifted.T @ lifted + np.eye(lifted.shape[1]), lifted.T @ answers)

    def _lift(self, x):
        return np.concatenate([np.ones((len(x), 1)), (x - self.mean) / self.scale], axis=1)

    def predict(self, x):
        return self._lift(x) @ self.weights


def _plans(known, rng):
    return {
        "uniform": lambda: uniform(known, rng),
        "knockoff": lambda: knockoff(known, rng),
        "line search": lambda: line_search(known, rng),
        "jacobian": lambda: jacobian(known, rng, Ridge),
    }


def _queries_until(found, guard, case, attack, accounts, seed, shared):
    """How many questions an attack asks, dealt round over so many accounts, until ``found``."""
    known = Knowledge.of(case.unseen)
    thief = Planned(_plans(known, np.random.default_rng(seed))[attack]())
    for n in range(500):
        x = thief.propose(1)
        probs = case.predict(x)
        guard.observe_many([f"thief-{n % accounts}"], x, probs, [shared])
        thief.feed(x, probs)
        if found(guard):
            return n + 1
    return 501


@pytest.mark.parametrize("attack", ["uniform", "knockoff", "line search", "jacobian"])
@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_a_thief_with_twenty_accounts_is_found_within_twice_the_queries(name, attack, request):
    case = request.getfixturevalue(name)
    for seed in range(2):
        alone = _queries_until(Guard.alarmed, Guard(case.profile), case, attack, 1, seed, [])
        for accounts in (2, 20):
            guard = Guard(case.profile)
            together = _queries_until(Guard.cases, guard, case, attack, accounts, seed, ["network"])
            assert together <= 2 * alone <= 500, (accounts, alone, together)
            assert {member.subject for member in guard.cases()[0].members} == {
                f"thief-{i}" for i in range(min(accounts, together))
            }
            assert guard.alarmed() == [] or accounts == 2


def test_without_a_shared_covariate_nobody_is_pooled(digits):
    guard = Guard(digits.profile)
    known = Knowledge.of(digits.unseen)
    x = next(uniform(known, np.random.default_rng(0)))
    guard.observe_many([f"a{i % 20}" for i in range(64)], x, digits.predict(x), [[f"network-{i % 20}"] for i in range(64)])
    assert guard.cases() == []


@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_no_cluster_of_honest_accounts_is_accused(name, request):
    """30 clusters of 12 accounts, each with its own mix of classes, colleagues asking the same rows now and then."""
    case, rng = request.getfixturevalue(name), np.random.default_rng(4)
    answers = case.predict(case.unseen)
    labels, guard = answers.argmax(axis=1), Guard(case.profile)
    for number in range(30):
        mixes = rng.dirichlet(np.full(answers.shape[1], 0.5), size=12)[:, labels] + 1e-3
        who = rng.integers(12, size=200)
        rows = np.array([rng.choice(len(labels), p=mixes[i] / mixes[i].sum()) for i in who])
        guard.observe_many([f"{number}-{i}" for i in who], case.unseen[rows], answers[rows], [[f"company-{number}"]] * 200)
    evidence = [guard._clusters.show(f"company-{number}").evidence for number in range(30)]
    assert guard.cases() == []
    assert max(evidence) < 30.0


def test_an_accusation_lowers_budgets_and_suspends_nobody(digits):
    guard = Guard(digits.profile, budget_limit=400.0)
    honest = digits.unseen[:1]
    guard.observe_many(["bystander"], honest, digits.predict(honest), [["network"]])
    assert guard.verdict("bystander").budget.limit == 400.0
    _queries_until(Guard.cases, guard, digits, "uniform", 20, 0, ["network"])
    found = guard.verdict("bystander")
    assert (found.rung, found.cases, found.budget.limit) == (Rung.MARK, ("network",), 400.0 * DEFAULT.case)
    assert guard.alarmed() == []
    assert "bystander" in guard.touched()
    guard.clear("network")
    assert guard.cases() == []
    assert guard.verdict("bystander").budget.limit == 400.0
    assert guard.touched() == {"bystander", *(f"thief-{i}" for i in range(20) if guard.verdict(f"thief-{i}").queries)}


def test_what_was_asked_before_an_account_joined_counts_in_no_cluster(digits):
    guard, rng = Guard(digits.profile), np.random.default_rng(0)
    x = next(uniform(Knowledge.of(digits.unseen), rng))
    guard.observe("early", x, digits.predict(x))
    assert guard.verdict("early").log_m > np.log(1 / ALPHA)
    honest = digits.unseen[:20]
    guard.observe_many(["late", "early"] * 10, honest, digits.predict(honest), [["network"]] * 20)
    pool = guard._clusters.show("network")
    assert pool.evidence < 2.0
    assert sum(member.queries for member in pool.members) == 19  # all but the first, which founded nothing yet


def test_cutting_the_stream_into_batches_changes_nothing(digits):
    rng = np.random.default_rng(8)
    x = np.concatenate([digits.unseen[:60], next(uniform(Knowledge.of(digits.unseen), rng))[:6], digits.unseen[:30]])
    who = [f"a{i}" for i in rng.integers(5, size=len(x))]
    shared = [["one"] if name < "a3" else ["two", "one"] for name in who]
    whole, single = Guard(digits.profile), Guard(digits.profile)
    answers = digits.predict(x)
    whole.observe_many(who, x, answers, shared)
    for i in range(len(x)):
        single.observe_many(who[i : i + 1], x[i : i + 1], answers[i : i + 1], shared[i : i + 1])
    for name in ("one", "two"):
        a, b = whole._clusters.show(name), single._clusters.show(name)
        assert (a.members, a.effective, a.accused_at) == (b.members, b.effective, b.accused_at)
        assert a.evidence == pytest.approx(b.evidence)


def _pools(**options):
    return Clusters(make_bets(np.array([0.1, 0.1])), 0.5, np.array([1.0]), alpha=ALPHA, **options)


def _ask(pools, covariate, subject, rng, event=True):
    name = rng.integers(1, 2**62, size=1, dtype=np.uint64)
    return covariate in pools.take({covariate: _asked([subject], name, 50 * rng.normal(size=(1, 32)), np.array([[event]]))})


def _asked(subjects, names, own, events):
    return Asked(subjects, names, own, events, np.ones((len(names), budget.DIMENSIONS), dtype=np.float32), np.ones(len(names)))


def test_a_query_counts_once_whoever_of_the_cluster_asks_it():
    pools, rng = _pools(), np.random.default_rng(0)
    for subject in "abc":
        pools.join(subject, ["x"])
    names, own = np.array([3, 3, 5], dtype=np.uint64), 50 * rng.normal(size=(3, 32))
    own[2] = own[0] + 0.01  # another row within measurement noise
    pools.take({"x": _asked(list("abc"), names, own, np.ones((3, 1), dtype=bool))})
    assert pools.show("x").effective == 1
    pools.take({"x": _asked(["b"], names[:1], 50 * rng.normal(size=(1, 32)), np.ones((1, 1), dtype=bool))})
    assert pools.show("x").effective == 1


def test_the_thresholds_of_all_clusters_together_spend_no_more_than_alpha():
    pools = _pools()
    for number in range(200):
        pools.join(f"a{number}", [f"c{number}"])
        pools.join(f"b{number}", [f"c{number}"])
    spent = [1.0 / pools.show(f"c{number}").threshold for number in range(200)]
    assert spent == pytest.approx([ALPHA * float(restart_weight(number)) for number in range(200)])
    assert ALPHA * float(restart_weight(np.arange(10**6)).sum()) < ALPHA


def test_under_the_null_clusters_are_accused_no_more_often_than_said():
    """Events at exactly the bound, four clusters in each of 150 worlds, an alpha loose enough to be reached."""
    rng, worlds, accused = np.random.default_rng(1), 150, 0
    for _ in range(worlds):
        pools = Clusters(make_bets(np.array([0.1])), -1.0, np.array([]), alpha=0.2)
        for number in range(4):
            for subject in "ab":
                pools.join(f"{subject}{number}", [f"c{number}"])
            own, names = 50 * rng.normal(size=(150, 32)), rng.integers(1, 2**62, size=150, dtype=np.uint64)
            who = [f"{'ab'[i % 2]}{number}" for i in range(150)]
            pools.take({f"c{number}": _asked(who, names, own, rng.random((150, 1)) < 0.1)})
        accused += bool(pools.all_accused())
    assert accused / worlds <= 0.2


def test_a_review_doubles_the_threshold_and_begins_anew():
    pools, rng = _pools(), np.random.default_rng(0)
    pools.join("a", ["x"])
    pools.join("b", ["x"])
    before = pools.show("x").threshold
    for subject in itertools.cycle("ab"):
        if _ask(pools, "x", subject, rng):
            break
    assert pools.accused("b") == ("x",)
    pools.clear("x")
    after = pools.show("x")
    assert (after.accused_at, after.evidence, after.threshold) == (None, 0.5, 2 * before)
    assert pools.accused("b") == ()


def test_who_is_forgotten_takes_what_the_pool_knows_along():
    pools, rng = _pools(), np.random.default_rng(0)
    for subject in "abc":
        pools.join(subject, ["x"])
        _ = subject != "a" and _ask(pools, "x", subject, rng)
    pools.forget("b")
    assert [member.subject for member in pools.show("x").members] == ["a", "c"]
    assert pools.show("x").evidence == 0.5
    assert not pools._pools["x"].names.any()
    assert (pools._pools["x"].own == rooms.FAR).all()
    pools.join("lonely", ["y"])
    pools.forget("lonely")
    pools.join("other", ["y"])
    assert pools.of("other") == ()  # nobody is there to share it with


def test_what_is_kept_is_bounded(monkeypatch):
    pools, rng = _pools(most=3), np.random.default_rng(0)
    for covariate in "wxyz":
        pools.join(f"a-{covariate}", [covariate])
        pools.join(f"b-{covariate}", [covariate])
        if covariate == "w":
            for subject in itertools.cycle(("a-w", "b-w")):
                if _ask(pools, "w", subject, rng):
                    break
    assert len(pools) == 3
    assert pools.show("x") is None  # the one that asked least recently, and is not accused
    assert [case.id for case in pools.all_accused()] == ["w"]
    assert pools.of("a-x") == ()
    pools.join("a-x", ["x"])
    pools.join("b-x", ["x"])
    assert pools.show("x").number == 4  # it pays for a new one
    pools.join("much", [f"n{i}" for i in range(10)])
    assert len(pools._of["much"]) == JOINS
    monkeypatch.setattr(rooms, "LONE", 2)
    for i in range(5):
        pools.join(f"l{i}", [f"lone-{i}"])
    assert len(pools._lone) == 2


def test_a_cluster_has_no_more_members_than_its_bound():
    pools = _pools()
    for i in range(MEMBERS + 3):
        pools.join(f"a{i}", ["x"])
    assert len(pools.members("x")) == MEMBERS
    assert pools.of(f"a{MEMBERS}") == ()


def test_a_calibration_restarts_the_pools_with_the_accounting_of_accounts(digits):
    """The j-th calibration makes the threshold (j + 1)^2 times as high; a case waits for its review."""
    guard, rng = Guard(digits.profile), np.random.default_rng(4)
    x = rng.uniform(0.0, 16.0, (60, 64))
    subjects = [f"account-{i % 6}" for i in range(60)]
    guard.observe_many(subjects, x, digits.predict(x), [("network",)] * 60)
    (before,) = guard.cases()
    assert "account-0" in guard.moved() or guard.verdict("account-0").cases == ("network",)
    for j in (1, 2):
        guard.recalibrate(np.minimum(digits.profile.kappa * (1.0 + j / 10.0), 0.99))
        (after,) = guard.cases()
        assert after.threshold == pytest.approx((j + 1) ** 2 * before.threshold) and after.evidence == 0.5
        assert after.accused_at == before.accused_at and guard.verdict("account-0").cases == ("network",)
    guard.clear("network")
    assert guard.cases() == [] and guard.verdict("account-0").cases == ()
    more = rng.uniform(0.0, 16.0, (60, 64))
    guard.observe_many(subjects, more, digits.predict(more), [("network",)] * 60)
    (again,) = guard.cases()
    assert again.threshold == pytest.approx(18.0 * before.threshold)


def test_a_lone_thief_among_colleagues_makes_no_case(tumour):
    guard, rng = Guard(tumour.profile), np.random.default_rng(5)
    low, high = tumour.unseen.min(axis=0), tumour.unseen.max(axis=0)
    for n in range(40):
        alone = n % 10  # nine of ten questions
        x = rng.uniform(low, high, (1, len(low))) if alone else tumour.unseen[n : n + 1]
        subject = "thief" if alone else f"colleague-{n % 3}"
        guard.observe_many([subject], x, tumour.predict(x), [["net-0"]])
    assert guard.alarmed() == ["thief"]
    assert guard.cases() == []
    assert guard.verdict("colleague-0").budget.limit == DEFAULT.questions
