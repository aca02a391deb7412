"""Work: which solutions are taken, and which are not; of which account, release, body and time."""

import hashlib
import hmac
import pickle

import pytest
from access_house import NOW

from modelkeep.access.quotas import Quotas
from modelkeep.access.stepup import StepUp, StepUpTerms
from modelkeep.access.view import Grant
from modelkeep.access.work import CLOCK_SKEW, LIFETIME, Question, Solution, Work
from modelkeep.core.values import Principal, Role
from modelkeep.crypto.puzzle import solve
from modelkeep.errors import WorkRequired

KEY, BITS = bytes(32), 8


def grant(subject="sub_1", kind="key", mfa_at=0):
    return Grant(Principal("anna", subject, (Role.ANALYST,), f"{kind}:1"), kind, NOW + 10_000, 100, f"{kind}:1", mfa_at)


def question(**changed):
    return Question(**{"action": "predict", "release": "iris@1", "body": b"a question", "rows": 1} | changed)


@pytest.fixture
def gate(house):
    step_up = StepUp(StepUpTerms(keys=False), Quotas(house.records, house.clock.monotonic), house.clock)
    return Work(KEY, step_up, house.clock)


def asked(gate, who, what, bits=BITS, **more):
    """The refusal, or None when the question may be answered."""
    try:
        gate.check(who, what, bits, **more)
    except WorkRequired as refusal:
        return refusal
    return None


def solved(refusal, what):
    """The same question with the solution of what was set for it."""
    nonce = solve(refusal.challenge, what.body, refusal.hashes, 40 * refusal.hashes)
    return question(action=what.action, release=what.release, body=what.body, rows=what.rows,
                    solution=Solution(refusal.challenge, nonce))  # fmt: skip


def test_a_challenge_is_a_time_and_a_mac_that_every_gateway_makes_alike(gate):
    refusal = asked(gate, grant(), question())
    said = b"modelkeep/work-challenge/1" + (NOW + 60).to_bytes(8, "big") + b"predict\0sub_1\0iris@1"
    assert refusal.challenge == (NOW + 60).to_bytes(8, "big") + hmac.new(KEY, said, hashlib.sha256).digest()[:24]
    assert (refusal.hashes, refusal.seconds, refusal.factor) == (256, 60, None)
    assert "256 hashes" in str(refusal) and "second factor" not in str(refusal)


def test_work_is_taken_as_often_as_it_is_shown_and_for_each_body_anew(gate):
    first = solved(asked(gate, grant(), question()), question())
    assert asked(gate, grant(), first) is None
    assert asked(gate, grant(), first) is None, "an exact repeat teaches nothing"
    other = question(body=b"another", solution=first.solution)
    refusal = asked(gate, grant(), other)
    assert "none for this body" in str(refusal)
    assert asked(gate, grant(), solved(refusal, other)) is None
    nonce = solve(first.solution.challenge, b"a third", 256, 10_000)
    third = question(body=b"a third", solution=Solution(first.solution.challenge, nonce))
    assert asked(gate, grant(), third) is None, "a challenge is good for many questions, each with work of its own"


@pytest.mark.parametrize(
    ("who", "changed"),
    [
        (grant("sub_2"), {}),
        (grant(), {"release": "iris@2"}),
        (grant(), {"release": "iris@11"}),
        (grant(), {"action": "explain"}),
    ],
)
def test_a_puzzle_of_somebody_else_or_something_else_is_none(gate, who, changed):
    first = solved(asked(gate, grant(), question()), question())
    refusal = asked(gate, who, question(solution=first.solution, **changed))
    assert "was not set for this account and release here" in str(refusal)
    assert refusal.challenge != first.solution.challenge
    assert asked(gate, who, solved(refusal, question(**changed))) is None


@pytest.mark.parametrize("place", [0, 7, 8, 31])
def test_a_challenge_of_ones_own_is_none(gate, place):
    mine = bytearray(asked(gate, grant(), question()).challenge)
    mine[place] ^= 1
    nonce = solve(bytes(mine), b"a question", 256, 10_000)
    assert "was not set" in str(asked(gate, grant(), question(solution=Solution(bytes(mine), nonce))))


def test_one_of_another_keep_is_none(gate, house):
    first = solved(asked(gate, grant(), question()), question())
    other = Work(bytes(31) + b"\1", gate._step_up, house.clock)
    assert "was not set" in str(asked(other, grant(), first))


@pytest.mark.parametrize(("seconds", "good"), [(0, True), (LIFETIME - 1, True), (LIFETIME, False), (10 * LIFETIME, False)])
def test_it_is_over_after_a_while(gate, house, seconds, good):
    first = solved(asked(gate, grant(), question()), question())
    house.clock.advance(seconds)
    refusal = asked(gate, grant(), first)
    assert (refusal is None) is good
    if refusal is not None:
        assert "is over" in str(refusal) and asked(gate, grant(), solved(refusal, question())) is None


@pytest.mark.parametrize(("ahead", "good"), [(CLOCK_SKEW, True), (CLOCK_SKEW + 1, False)])
def test_a_gateway_whose_clock_is_far_ahead_sets_nothing_that_is_good_for_long(gate, house, ahead, good):
    clock = type(house.clock)()
    clock.wall += ahead
    first = solved(asked(Work(KEY, gate._step_up, clock), grant(), question()), question())
    assert (asked(gate, grant(), first) is None) is good


def test_a_batch_of_n_rows_costs_n_times_the_work(gate):
    for rows in (1, 3, 8, 1024):
        refusal = asked(gate, grant(), question(rows=rows), bits=8)
        assert refusal.hashes == 256 * rows
    three = solved(asked(gate, grant(), question(rows=3)), question(rows=3))
    assert asked(gate, grant(), three) is None
    digest = hashlib.sha256(three.solution.challenge + hashlib.sha256(b"a question").digest() + three.solution.nonce).digest()
    most = ((1 << 64) - 1) // int.from_bytes(digest[:8]) // 256  # rows that this nonce is work for, as luck has it
    assert most >= 3 and asked(gate, grant(), question(rows=most, solution=three.solution)) is None
    assert asked(gate, grant(), question(rows=most + 1, solution=three.solution)) is not None


def test_a_bit_too_few_is_refused(gate):
    first = solved(asked(gate, grant(), question()), question())
    digest = hashlib.sha256(first.solution.challenge + hashlib.sha256(b"a question").digest() + first.solution.nonce).digest()
    bits = 64 - int.from_bytes(digest[:8]).bit_length()
    assert asked(gate, grant(), first, bits=bits) is None
    assert "less work" in str(asked(gate, grant(), first, bits=bits + 1))


def test_either_does_where_both_are_asked_for(gate, house):
    refusal = asked(gate, grant(), question(), or_factor=True)
    assert "or show a second factor" in str(refusal) and refusal.factor.code == "step-up-required"
    assert asked(gate, grant(), solved(refusal, question()), or_factor=True) is None
    fresh, old = grant(kind="session", mfa_at=NOW - 899), grant(kind="session", mfa_at=NOW - 900)
    assert asked(gate, fresh, question(), or_factor=True) is None
    assert asked(gate, old, question(), or_factor=True) is not None
    assert asked(gate, fresh, question()) is not None, "where work alone is asked for, a factor does nothing"
    house.clock.advance(1)
    assert asked(gate, fresh, question(), or_factor=True) is not None


def test_the_key_stays_here(gate):
    with pytest.raises(TypeError):
        pickle.dumps(gate)
