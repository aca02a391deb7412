"""By what evidence is judged besides the questions: one suite for a guard of this process and for one that an owner keeps."""

import numpy as np
import pytest
from sharing import FEATURES, ONE, Log, OwnersHouse, answer, soon, told

from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import SHIPPED, Rung, parse_ladder
from modelkeep.extraction.verdicts import USUAL, Terms
from modelkeep.workflows.evidence import OwnEvidence
from modelkeep.workflows.watch import Agreed, Cleared, Erased, Today

SMALL = parse_ladder(SHIPPED.replace("questions = 1000", "questions = 5"))


@pytest.fixture(scope="module")
def profile():
    return fit_profile(np.random.default_rng(1).normal(size=(240, FEATURES)), told, seed=1)


@pytest.fixture(params=["own", "shared"])
def kept(request, profile):
    """The watch that answers queries, and what takes decisions."""
    if request.param == "own":
        evidence = OwnEvidence(Log(), Guard)
        yield evidence.watch(ONE, profile), evidence.take
        return
    house = OwnersHouse(profile).start()
    yield house.worker(workers=1).watch(ONE, profile), house.owner.decided
    house.stop()


def ask(watch, subject, first, rows=12):
    x = np.random.default_rng(first).normal(size=(rows, FEATURES))
    watch.reserve(subject, rows)
    watch.submit(answer(first, subject, x))
    watch.work()


def test_a_sanction_holds_for_an_account_that_never_asked_through_an_erasure_and_until_it_is_taken_back(kept):
    watch, decide = kept
    ask(watch, "ben", 0)
    decide(Agreed("ada", Terms(sanctioned=True)))
    soon(lambda: watch.rung("ada") is Rung.SANCTION)
    assert watch.rung("ben") is Rung.MARK and watch.moved() == ["ada"] and watch.moved() == []
    assert "ada" in watch.subjects() and watch.alarmed() == []
    ask(watch, "ada", 1)
    decide(Erased("ada"))
    soon(lambda: watch.verdict("ada").queries == 0)
    assert watch.rung("ada") is Rung.SANCTION
    decide(Cleared("ada", 5))
    assert watch.rung("ada") is Rung.SANCTION, "what lifts it is the review, which the rules know of"
    decide(Agreed("ada", USUAL))
    soon(lambda: watch.rung("ada") is Rung.MARK)
    assert watch.moved() == ["ada"]


class Looking(Log):
    """A log that looks at a rung as soon as the evidence is there to be seen."""

    def __init__(self):
        super().__init__()
        self.seen, self.evidence = [], OwnEvidence(self, Guard)

    def calibrations(self, ref):
        self.seen += [watch.rung("ada") for watch in self.evidence.by_release().values()]
        return super().calibrations(ref)


def test_nobody_sees_rebuilt_evidence_before_the_rules_are_in_force(profile):
    """Else it would be on record that an account had left the last rung and came back."""
    log = Looking()
    log.evidence.take(Agreed("ada", Terms(sanctioned=True)))
    log.evidence.watch(ONE, profile)
    assert set(log.seen) == {Rung.SANCTION}


def test_another_ladder_and_a_larger_budget_are_in_force_at_once_and_can_be_taken_back(kept):
    watch, decide = kept
    ask(watch, "ada", 0)
    ask(watch, "ben", 1)
    before = watch.verdict("ada")
    assert watch.rung("ada") is Rung.MARK
    decide(SMALL)
    soon(lambda: watch.rung("ben") is Rung.LABELS and watch.verdict("nobody").budget.limit == 5)
    assert watch.rung("ada") is Rung.LABELS and sorted(watch.moved()) == ["ada", "ben"]
    decide(Agreed("ada", Terms(budget=200)))
    soon(lambda: watch.rung("ada") is Rung.MARK)
    assert watch.verdict("ada").budget.limit == 1000 and watch.rung("ben") is Rung.LABELS
    decide(Agreed("ada", USUAL))
    decide(parse_ladder(SHIPPED))
    soon(lambda: watch.verdict("ada") == before and watch.rung("ben") is Rung.MARK)


def test_a_budget_begins_anew_with_its_period_and_the_evidence_does_not(kept):
    watch, decide = kept
    decide(Today(30 * 600))
    decide(SMALL)
    soon(lambda: watch.verdict("nobody").budget.limit == 5)
    ask(watch, "ada", 0)
    log_m, spent = watch.verdict("ada").log_m, watch.verdict("ada").budget.equivalent
    assert watch.rung("ada") is Rung.LABELS
    decide(Today(30 * 600 + 29))
    decide(Today(30 * 599))  # a clock that was set back begins no period
    assert watch.verdict("ada").budget.equivalent == spent
    decide(Today(30 * 601))
    soon(lambda: watch.rung("ada") is Rung.MARK)
    assert watch.verdict("ada").budget.equivalent == 0.0 and watch.verdict("ada").log_m == log_m
    assert watch.verdict("ada").queries == 12
    ask(watch, "ada", 1)
    assert watch.rung("ada") is Rung.LABELS and watch.verdict("ada").queries == 24


def test_only_what_was_asked_in_the_period_is_spent_though_nobody_looked_when_it_began(profile):
    first, second = Guard(profile), Guard(profile)
    x = np.random.default_rng(3).normal(size=(40, FEATURES))
    first.begin(30)
    first.observe("ada", x[:20], told(x[:20]))
    first.begin(60)
    first.observe("ada", x[20:], told(x[20:]))
    second.begin(60)
    second.observe("ada", x[20:], told(x[20:]))
    spent = [guard.verdict("ada").budget.equivalent for guard in (first, second)]
    assert spent[0] == pytest.approx(spent[1]) and first.verdict("ada").queries == 40
