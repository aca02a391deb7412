"""Ledgers of privacy in the log: who reserves first, what is given back, and whose word counts."""

import math
import threading

import msgspec
import pytest
from trust_house import Office
from workflow_house import ORIGIN

from modelkeep.core.values import Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.signatories import Signatories
from modelkeep.errors import Conflict, Denied, Invalid, Missing, Unavailable
from modelkeep.ledger.attestations import Privacy, Salted
from modelkeep.ledger.predicates import Act
from modelkeep.ledger.statements import keep_resource, make_statement, sign_statement
from modelkeep.training.accountant import Promise, Steps, epsilon_of
from modelkeep.training.budgets import Budget, PrivacySpent, ledger_name, plan_run
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.attest import attest
from modelkeep.workflows.budgets import BUDGET, SETTLE, Ledgers, Spent, record, reserve, set_budget, settle

PLAN = plan_run(5000, epsilon=1.0, delta=1e-5)
DATA = Salted("loans@3", digest_of(b"salted"))
MODEL = Resource("loans.onnx", digest_of(b"model"))


@pytest.fixture
def bounded(house):
    """A keep where all runs on loans may cost what two like PLAN do, and not three."""
    both = epsilon_of([PLAN.spend, PLAN.spend], 1e-5)
    set_budget(house.desk(), ORIGIN, "loans", Budget(both + 0.01, 1e-5), actor="ada")
    return house


def ledger(house, name="loans"):
    registry = house.registry()
    registry.refresh()
    return Ledgers.of(registry.view, house.trust).ledger(name)


def take(house, actor="ada", plan=PLAN, data=DATA):
    return reserve(house.desk(), house.trust, data, plan, actor=actor)


def test_runs_are_charged_when_they_are_reserved(bounded):
    assert [take(bounded).ledger.total(1e-5), take(bounded).ledger.total(1e-5)] == [
        pytest.approx(epsilon_of([PLAN.spend] * count, 1e-5)) for count in (1, 2)
    ]
    with pytest.raises(Denied, match=r"loans to epsilon 1\.\d+ of .* 2 runs have spent .* nothing more fits|would fit"):
        take(bounded)
    assert len(ledger(bounded).charges) == 2  # what is refused leaves nothing
    other = Salted("wages", DATA.digest)
    assert take(bounded, data=other).ledger.budget is None  # nobody set one: counted, and not bounded
    assert ledger_name("loans/a.csv") == ledger_name("loans@9") == "loans"


def test_of_two_who_reserve_at_once_the_first_in_the_log_stands(bounded):
    take(bounded)
    desk = bounded.desk()
    append, raced = desk.log.append, []

    def racing(entries, **more):
        if not raced:
            raced.append(take(bounded, "first").charge.run)
        return append(entries, **more)

    desk.log.append = racing
    with pytest.raises(Denied):
        reserve(desk, bounded.trust, DATA, PLAN, actor="second")
    found = ledger(bounded)
    assert [(one.actor, one.spend.steps) for one in found.charges] == [
        ("ada", PLAN.steps), ("first", PLAN.steps), ("second", 0)
    ]  # fmt: skip
    assert found.total(1e-5) <= found.budget.epsilon


def test_a_run_that_was_cut_off_stays_charged_until_somebody_says_what_it_did(bounded):
    run = take(bounded).charge.run
    assert not ledger(bounded).charges[0].settled and ledger(bounded).charges[0].spend == PLAN.spend
    with pytest.raises(Invalid, match="did not reserve"):
        settle(bounded.desk(), bounded.trust, run, PLAN.steps + 1, actor="ada")
    half = PLAN.steps // 2
    assert settle(bounded.desk(), bounded.trust, run, half, actor="ada").epsilon < 1.0
    with pytest.raises(Conflict, match="settled"):
        settle(bounded.desk(), bounded.trust, run, 0, actor="ada")
    log_act(bounded.desk(), ORIGIN, SETTLE, run, actor="ada", detail={"run": run, "steps": "0"})  # of two at once, the first
    assert ledger(bounded).charges[0].spend.steps == half
    with pytest.raises(Missing):
        settle(bounded.desk(), bounded.trust, "0" * 32, 0, actor="ada")
    unused = take(bounded).charge.run
    settle(bounded.desk(), bounded.trust, unused, 0, actor="ada")
    assert ledger(bounded).total(1e-5) == pytest.approx(
        epsilon_of([Steps(PLAN.noise_multiplier, PLAN.sample_rate, half)], 1e-5)
    )
    with pytest.raises(Conflict, match="given back"):
        record(bounded.desk(), bounded.trust, unused, MODEL, actor="ada")


def test_what_came_out_is_said_in_the_numbers_that_were_reserved(bounded):
    run = take(bounded).charge.run
    record(bounded.desk(), bounded.trust, run, MODEL, actor="ada")
    (charge,) = ledger(bounded).charges  # charged once: the statement is about the run that was reserved
    assert charge.settled and charge.models == (MODEL.digest,)
    (told,) = bounded.registry().refresh().attestations.about(MODEL.digest, "any")
    said = told.said
    assert (said.epsilon, said.steps, said.dataset, said.run) == (PLAN.epsilon, PLAN.steps, DATA, run)
    assert said.dataset_epsilon == pytest.approx(PLAN.epsilon)
    with pytest.raises(Conflict):
        settle(bounded.desk(), bounded.trust, run, 0, actor="ada")  # nothing can be given back any more


def privacy(**more):
    return Privacy(actor="ada", at=1, epsilon=2.0, delta=1e-6, accountant="rdp", dataset=DATA, **more)


def test_statements_of_others_are_charged_as_what_they_say(bounded):
    attest(bounded.desk(), MODEL, privacy())
    attest(bounded.desk(), MODEL, privacy(noise_multiplier=2.0, sample_rate=0.1, steps=10))
    attest(bounded.desk(), MODEL, Privacy(actor="ada", at=1, epsilon=2.0, delta=1e-6, accountant="rdp"))  # of no data set
    assert [one.spend for one in ledger(bounded).charges] == [Promise(2.0, 1e-6), Steps(2.0, 0.1, 10)]
    run = take(bounded, plan=plan_run(5000, epsilon=0.001, delta=1e-5), data=Salted("wages", DATA.digest)).charge.run
    attest(bounded.desk(), MODEL, privacy(run=run))  # names a run of another data set: charged for itself
    assert len(ledger(bounded).charges) == 3 and not ledger(bounded, "wages").charges[0].settled


def test_strangers_and_copies_set_no_budget_and_give_nothing_back(bounded):
    run, stranger = take(bounded).charge.run, StatementSigner("stranger", bytes(32), bytes(32))
    before = ledger(bounded)
    for verb, about, detail in (
        (BUDGET, "loans", {"epsilon": "99", "delta": "1e-5"}),
        (SETTLE, run, {"run": run, "steps": "0"}),
    ):
        said = Act(actor="mallory", at=2, verb=verb, about=about, detail=detail)
        bounded.desk().log.append([sign_statement(make_statement(said, keep_resource(ORIGIN)), stranger)])
        elsewhere = sign_statement(make_statement(said, keep_resource("other.example")), bounded.ring.statement_signer())
        bounded.desk().log.append([elsewhere])
    assert ledger(bounded) == before
    for wrong in ({"epsilon": "nan", "delta": "1e-5"}, {"epsilon": "-1", "delta": "1e-5"}, {"epsilon": "9"}):
        log_act(bounded.desk(), ORIGIN, BUDGET, "loans", actor="ada", detail=wrong)
    assert ledger(bounded).budget == before.budget
    with pytest.raises(Invalid):
        set_budget(bounded.desk(), ORIGIN, "loans", Budget(float("inf"), 1e-5), actor="ada")


def test_what_a_stolen_key_allowed_does_not_count_and_what_it_charged_does(tmp_path):
    office = Office(tmp_path)
    house = office.house
    set_budget(house.desk(), ORIGIN, "loans", Budget(8.0, 1e-5), actor="ada")
    first, since = take(house).charge.run, office.size
    second = take(house).charge.run
    settle(house.desk(), house.trust, first, 0, actor="thief")
    set_budget(house.desk(), ORIGIN, "loans", Budget(99.0, 1e-5), actor="thief")
    assert ledger(house).budget.epsilon == 99.0 and ledger(house).charges[0].spend.steps == 0
    office.compromise(1, since)
    office.check_agrees()
    found = ledger(house)
    assert found.budget.epsilon == 8.0 and [one.run for one in found.charges] == [first, second]
    assert [one.spend for one in found.charges] == [PLAN.spend] * 2


def test_a_smaller_budget_refuses_from_then_on(bounded):
    take(bounded)
    set_budget(bounded.desk(), ORIGIN, "loans", Budget(0.5, 1e-5), actor="ada")
    registry = bounded.registry()
    registry.refresh()
    bounded.desk().log.append(registry.view.entries(0, 1))  # a copy of the larger budget
    assert ledger(bounded).budget.epsilon == 0.5
    small = PrivacySpent(0.01, 1e-5, 100.0, 0.01, 1, 0.1)
    with pytest.raises(Denied, match="nothing more fits"):
        take(bounded, plan=small)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"steps": -3}, {"noise_multiplier": float("nan")}, {"sample_rate": 2.0},
                                   {"delta": 0.0}, {"max_grad_norm": float("inf")}])  # fmt: skip
def test_what_is_no_plan_is_not_logged(house, wrong):
    with pytest.raises(Invalid):
        take(house, plan=msgspec.structs.replace(PLAN, **wrong))
    assert house.registry().refresh().size == 0


def test_an_act_with_numbers_that_are_none_is_passed_over(bounded):
    run = take(bounded).charge.run
    for steps in ("inf", "1e400", "many", ""):
        log_act(bounded.desk(), ORIGIN, SETTLE, run, actor="ada", detail={"run": run, "steps": steps})
    assert not ledger(bounded).charges[0].settled


def test_a_reservation_pays_for_one_model_and_for_nobody_elses(bounded):
    run, other = take(bounded).charge.run, Resource("other.onnx", digest_of(b"another model"))
    numbers = {"noise_multiplier": PLAN.noise_multiplier, "sample_rate": PLAN.sample_rate, "steps": PLAN.steps, "run": run}
    theirs = msgspec.structs.replace(privacy(**numbers), actor="mallory")
    attest(bounded.desk(), other, theirs)  # names the run of another: charged for itself, and settles nothing
    assert [(one.settled, one.models) for one in ledger(bounded).charges] == [(False, ()), (True, (other.digest,))]
    with pytest.raises(Conflict, match="reserved by somebody else"):
        record(bounded.desk(), bounded.trust, run, MODEL, actor="mallory")
    record(bounded.desk(), bounded.trust, run, MODEL, actor="ada")
    attest(bounded.desk(), MODEL, privacy(**numbers))  # said again, it is the same model
    assert len(ledger(bounded).charges) == 2
    with pytest.raises(Conflict, match="another model came out of it"):
        record(bounded.desk(), bounded.trust, run, other, actor="ada")
    attest(bounded.desk(), other, msgspec.structs.replace(privacy(**numbers), at=2))
    assert len(ledger(bounded).charges) == 3  # whoever says so nevertheless is charged


def test_a_plan_that_promises_nothing_is_not_reserved(house):
    with pytest.raises(Invalid, match="no finite epsilon"):
        take(house, plan=msgspec.structs.replace(PLAN, noise_multiplier=1e-4, sample_rate=1.0))
    assert house.registry().refresh().size == 0


def test_what_has_no_finite_sum_is_told_as_unknown(house):
    attest(house.desk(), MODEL, Privacy(actor="ada", at=1, epsilon=1e6, delta=1e-6, accountant="rdp", dataset=DATA))
    run = take(house).charge.run
    record(house.desk(), house.trust, run, MODEL, actor="ada")
    said = [told.said for told in house.registry().refresh().attestations.about(MODEL.digest, "any")]
    assert [one.dataset_epsilon for one in said if one.run] == [0.0]  # admission takes that for very large


def spent(house, **more):
    registry = house.registry()
    registry.refresh()
    return Spent(registry.view, lambda: house.trust, clock=house.clock, **more).look()


def said_of(house, model=MODEL):
    return house.registry().refresh().attestations.about(model.digest, "any")[-1].said


def test_what_was_spent_is_told_as_it_is_now_and_not_as_it_was_when_a_model_was_logged(bounded):
    record(bounded.desk(), bounded.trust, take(bounded).charge.run, MODEL, actor="ada")
    said = said_of(bounded)
    whole = spent(bounded)
    assert whole(said) == pytest.approx(PLAN.epsilon)
    run = take(bounded).charge.run  # the next run on the same data, of whoever
    assert whole(said) == pytest.approx(PLAN.epsilon)  # it has not looked
    both = epsilon_of([PLAN.spend, PLAN.spend], 1e-5)
    assert spent(bounded)(said) == pytest.approx(both) and said.dataset_epsilon == pytest.approx(PLAN.epsilon)
    settle(bounded.desk(), bounded.trust, run, 0, actor="ada")
    assert spent(bounded)(said) == pytest.approx(PLAN.epsilon)


def test_one_that_looks_again_follows_the_log(bounded):
    registry = bounded.registry()
    whole = Spent(registry.view, lambda: bounded.trust, clock=bounded.clock)
    record(bounded.desk(), bounded.trust, take(bounded).charge.run, MODEL, actor="ada")
    said = said_of(bounded)
    registry.refresh()
    assert whole.look()(said) == pytest.approx(PLAN.epsilon)
    take(bounded)
    registry.refresh()
    assert whole.look()(said) == pytest.approx(epsilon_of([PLAN.spend, PLAN.spend], 1e-5))


def test_what_nobody_counted_is_infinite_and_what_is_being_counted_is_not_known_yet(bounded):
    whole = spent(bounded)
    for said in (privacy(), msgspec.structs.replace(privacy(dataset_epsilon=0.1), dataset=None)):
        assert whole(said) == math.inf
    said = privacy(dataset_epsilon=0.1)
    assert whole(said) == math.inf  # it has a ledger without a run
    attest(bounded.desk(), MODEL, privacy())
    attest(bounded.desk(), MODEL, msgspec.structs.replace(privacy(), dataset=Salted("wages", DATA.digest)))
    assert spent(bounded)(said) == pytest.approx(epsilon_of([Promise(2.0, 1e-6)], 1e-6))
    small = msgspec.structs.replace(said, dataset=Salted("wages", DATA.digest), delta=0.0)
    assert spent(bounded)(small) == math.inf  # at a delta of which no accountant speaks
    counted = threading.Event()
    counting = spent(bounded, wait=0.0, count=lambda _spends, _delta: float(counted.wait(60)))
    with pytest.raises(Unavailable, match="is being counted"):
        counting(said)
    counted.set()


def test_all_answers_between_two_looks_wait_no_longer_together_than_one_may(bounded):
    """A gateway asks about every release in one look: were each to wait, its lease would end for all models."""
    attest(bounded.desk(), MODEL, privacy())
    attest(bounded.desk(), MODEL, msgspec.structs.replace(privacy(), dataset=Salted("wages", DATA.digest)))
    let = threading.Event()
    whole = spent(bounded, wait=60.0, count=lambda _spends, _delta: float(let.wait(10)))
    first, second = (
        msgspec.structs.replace(privacy(dataset_epsilon=0.1), dataset=Salted(name, DATA.digest)) for name in ("loans", "wages")
    )
    bounded.clock.sleep(60.0)  # an answer took all there was
    for said in (first, second):
        with pytest.raises(Unavailable, match="is being counted"):
            whole(said)
    let.set()
    assert [whole.look()(said) for said in (first, second)] == [1.0, 1.0]


def test_of_acts_that_cost_no_privacy_no_signature_is_checked(bounded):
    class Counting(Signatories):
        checked = 0

        def check(self, envelope, index):
            self.checked += 1
            return super().check(envelope, index)

    for number in range(5):
        log_act(bounded.desk(), ORIGIN, "data.open", f"loans@{number}", actor="ada")
    run = take(bounded).charge.run
    settle(bounded.desk(), bounded.trust, run, 1, actor="ada")
    registry = bounded.registry()
    ledgers = Ledgers(bounded.trust)
    ledgers._signatories = Counting(bounded.trust)
    ledgers.catch_up(registry.view, registry.refresh().size)
    assert ledgers._signatories.checked == 3  # the budget, the run, and how it ended
    assert ledgers.ledger("loans").charges[0].settled


def test_a_budget_of_a_large_delta_makes_little_of_nothing(bounded):
    record(bounded.desk(), bounded.trust, take(bounded).charge.run, MODEL, actor="ada")
    set_budget(bounded.desk(), ORIGIN, "loans", Budget(5.0, 0.5), actor="ada")
    assert spent(bounded)(said_of(bounded)) == pytest.approx(PLAN.epsilon)
    set_budget(bounded.desk(), ORIGIN, "loans", Budget(5.0, 1e-6), actor="ada")
    assert spent(bounded)(said_of(bounded)) == pytest.approx(epsilon_of([PLAN.spend], 1e-6))
