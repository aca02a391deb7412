"""The budget that accounts of one cluster share: it holds many small accounts as one large one, and accuses nobody."""

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction import budget
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT, Rung, parse_ladder
from modelkeep.extraction.verdicts import Terms
from modelkeep.workflows.sharing import Standing, encode, for_worker
from modelkeep.workflows.watch import Observation, Today, Watch, explained

NETWORK = "net-00000000000000aa"
SMALL = DEFAULT._replace(questions=40.0, cluster=5.0)


def deal(guard, case, rows, accounts, names="a", shared=(NETWORK,), first=0):
    """Ask ``rows`` in turn from so many accounts, ten at a time; ``first``: whose turn it is."""
    for begin in range(0, len(rows), 10):
        part = rows[begin : begin + 10]
        who = [f"{names}{(first + begin + i) % accounts}" for i in range(len(part))]
        guard.observe_many(who, part, case.predict(part), [shared] * len(part))


def test_a_batch_costs_what_its_questions_cost_one_after_the_other():
    rng = np.random.default_rng(0)
    phi, w = rng.normal(size=(200, budget.DIMENSIONS)).astype(np.float32), rng.uniform(0.1, 1, 200)
    inverse, single, together = np.eye(budget.DIMENSIONS), 0.0, budget.Together()
    for i in range(200):
        single += budget.spend(inverse, phi[i].astype(np.float64), float(w[i]))
    for begin, end in ((0, 64), (64, 65), (65, 200)):
        together.spend(phi[begin:end], w[begin:end])
    assert together.spent == pytest.approx(single, rel=1e-5)
    assert np.allclose(together.inverse, inverse, atol=1e-5)
    together.renew()
    assert together.spent == 0.0 and np.array_equal(together.inverse, np.eye(budget.DIMENSIONS))


def test_twenty_accounts_that_divide_a_natural_set_learn_as_much_as_five_may(digits):
    guard, rows = Guard(digits.profile, ladder=SMALL), digits.unseen
    held = 0
    for begin in range(0, len(rows), 10):
        deal(guard, digits, rows[begin : begin + 10], 20, first=begin)
        held = held or (guard.verdict("a0").rung >= Rung.QUANTISED) * (begin + 10)
    shared = guard.verdict("a0").shared
    assert (shared.id, shared.accounts, shared.budget.limit) == (NETWORK, 20, 200.0)
    assert 200 <= held <= 300, "natural questions, some of which teach less than others"
    verdicts = [guard.verdict(f"a{i}") for i in range(20)]
    assert {verdict.rung for verdict in verdicts} == {Rung.LABELS}
    assert all(verdict.alarmed_at is None and verdict.odds == "none" and not verdict.cases for verdict in verdicts)
    assert guard.alarmed() == [] and guard.cases() == []
    alone = Guard(digits.profile, ladder=SMALL)
    deal(alone, digits, rows[:200], 20, shared=())
    assert {alone.verdict(f"a{i}").rung for i in range(20)} == {Rung.MARK}, "what nothing links is charged to each alone"


def test_a_member_that_does_not_ask_is_told_when_the_rung_changes(digits):
    guard = Guard(digits.profile, ladder=SMALL)
    deal(guard, digits, digits.unseen[:2], 2, names="quiet")
    guard.moved(), guard.touched()
    deal(guard, digits, digits.unseen[2:400], 18)
    assert guard.verdict("quiet0").rung is guard.verdict("a0").rung >= Rung.QUANTISED
    assert {"quiet0", "quiet1"} <= set(guard.moved()) & guard.touched()
    assert {NETWORK, "quiet0", "a0"} <= set(guard.learning()) and guard.learning() == []


def test_what_a_colleague_asked_teaches_the_cluster_nothing_again(digits):
    guard, rows = Guard(digits.profile, ladder=SMALL), digits.unseen[:30]
    deal(guard, digits, rows, 3)
    deal(guard, digits, rows[:1], 1, names="w")  # the first of all was asked before there was a cluster
    once = guard.shared(NETWORK).budget.spent
    for name in "xyz":
        deal(guard, digits, rows, 1, names=name)
    assert guard.shared(NETWORK).budget.spent == once > 0.0
    assert guard.verdict("x0").budget.spent > guard.verdict("a0").budget.spent, "x asked all thirty"


def test_explanations_are_charged_to_the_cluster_too(digits):
    guard = Guard(digits.profile, ladder=SMALL)
    deal(guard, digits, digits.unseen[:4], 2)
    before = guard.shared(NETWORK).budget.equivalent
    guard.charge("a0", 65.0)
    assert guard.shared(NETWORK).budget.equivalent == pytest.approx(before + 65.0)
    guard.charge("a0", 200.0)
    assert guard.verdict("a1").rung is Rung.QUANTISED and guard.verdict("a1").budget.share < 0.2


def test_what_people_allow_on_top_the_cluster_may_learn_on_top(digits):
    guard = Guard(digits.profile, ladder=SMALL)
    deal(guard, digits, digits.unseen[:400], 20)
    strict = guard.verdict("a1").rung
    assert strict >= Rung.QUANTISED
    guard.agree("a0", Terms(budget=3.0))
    assert guard.verdict("a0").rung is Rung.MARK and guard.verdict("a0").shared is None, "held by its own budget alone"
    assert guard.shared(NETWORK).budget.limit == 40.0 * (5.0 + 2.0)
    guard.agree(NETWORK, Terms(budget=20.0))
    assert guard.shared(NETWORK).budget.limit == 40.0 * (100.0 + 2.0)
    assert guard.verdict("a1").rung is Rung.MARK
    guard.agree("a0", Terms())
    guard.agree(NETWORK, Terms())
    assert guard.verdict("a1").rung is guard.verdict("a0").rung is strict
    guard.agree("a2", Terms(budget=0.5))
    assert guard.shared(NETWORK).budget.limit == 200.0, "a caution lowers the budget of its account"


def test_a_period_a_ladder_and_an_erasure_begin_it_anew(digits):
    guard = Guard(digits.profile, ladder=SMALL)
    deal(guard, digits, digits.unseen[:400], 20)
    spent = guard.shared(NETWORK).budget.spent
    guard.adopt(SMALL._replace(cluster=float("inf")))
    assert guard.shared(NETWORK) is None and guard.verdict("a1").rung is Rung.MARK and guard.verdict("a1").shared is None
    guard.adopt(SMALL)
    assert guard.shared(NETWORK).budget.spent == spent and guard.verdict("a1").rung >= Rung.QUANTISED
    guard.begin(SMALL.days)
    assert guard.shared(NETWORK).budget.spent == 0.0 and guard.verdict("a1").rung is Rung.MARK
    deal(guard, digits, digits.unseen[400:], 20)
    assert guard.verdict("a1").rung >= Rung.QUANTISED
    guard.forget("a0")
    assert guard.shared(NETWORK).budget.spent == 0.0 and guard.verdict("a1").rung is Rung.MARK


def test_a_replay_of_the_log_gives_the_same_verdicts(digits):
    """However the answers were cut into batches, explanations and a new day among them."""
    rng, told = np.random.default_rng(3), []
    for at in range(300):
        who = f"a{rng.integers(8)}"
        if at == 150:
            told.append(Today(SMALL.days))
        if at % 40 == 7:
            told.append(explained(at, who, 2, "one"))
        else:
            x = digits.unseen[at : at + 1]
            told.append(Observation(at, who, x, digits.predict(x), "one", 0.0, (NETWORK,)))
    live, replayed = Watch(Guard(digits.profile, ladder=SMALL)), Watch(Guard(digits.profile, ladder=SMALL))
    for one in told:
        if isinstance(one, Today):
            live.take(one)
            continue
        live.offer(one)
        if rng.random() < 0.3:
            live.work()
    live.work()
    replayed.replay(told)
    for i in range(8):
        mine, theirs = live.verdict(f"a{i}"), replayed.verdict(f"a{i}")
        assert mine.rung is theirs.rung and mine.shared.id == theirs.shared.id
    spent, same = (watch._guard.shared(NETWORK).budget for watch in (live, replayed))
    assert spent.equivalent == pytest.approx(same.equivalent, rel=1e-4) and spent.share > 0.1


def test_what_was_explained_before_an_account_joined_is_not_its_clusters(digits):
    """As with questions; and in one batch as one after the other."""
    one = [
        Observation(at, f"a{at}", x[None], digits.predict(x[None]), "one", 0.0, (NETWORK,))
        for at, x in enumerate(digits.unseen[:2])
    ]
    told = [*one, explained(2, "late", 99, "one")]
    told += [Observation(3, "late", digits.unseen[2:3], digits.predict(digits.unseen[2:3]), "one", 0.0, (NETWORK,))]
    together, apart = Watch(Guard(digits.profile, ladder=SMALL)), Watch(Guard(digits.profile, ladder=SMALL))
    for each in told:
        together.offer(each)
        apart.offer(each)
        apart.work()
    together.work()
    found = [watch.learnt(NETWORK).budget.equivalent for watch in (together, apart)]
    assert found[0] == pytest.approx(found[1]) and found[1] < 10.0
    assert together.verdict("late").budget.equivalent > 100.0


def test_a_worker_is_told_of_it(digits):
    guard = Guard(digits.profile, ladder=SMALL)
    deal(guard, digits, digits.unseen[:60], 6)
    said = Standing("m@1", {"a0": guard.verdict("a0")}, [])
    assert for_worker(encode(said)).verdicts["a0"] == guard.verdict("a0")
    assert guard.verdict("a0").spent == guard.verdict("a0").shared.budget.share > guard.verdict("a0").budget.share


def test_the_table_says_how_much():
    alarm = '[alarm]\nanswer = "refuse"\n'
    assert DEFAULT.cluster == 5.0
    for text in (alarm, "[budget]\ncluster = 0\n" + alarm):
        assert parse_ladder(text).cluster == float("inf"), "a table of before has none"
    with pytest.raises(Invalid, match="less than one account alone"):
        parse_ladder("[budget]\ncluster = 0.5\n" + alarm)
