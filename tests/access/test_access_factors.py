"""Second factors: enrolment, use once, lockout, recovery, and what the records hold."""

import contextlib
import threading

import pytest
from access_house import PASSWORD, House
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.factors import (
    FACTOR,
    MAX_PASSKEYS,
    NONE,
    RECOVERY_CODES,
    Passkey,
    add_passkey,
    begin_codes,
    confirm_codes,
    factor_key_ids,
    hash_recovery,
    parse_factors,
    passkey_at,
    passkey_used,
    rewrapped_factor,
    secret_of,
    use_code,
)
from modelkeep.access.logins import FREE_ATTEMPTS
from modelkeep.access.sessions import Proof
from modelkeep.access.totp import code_of, step_at, text_of
from modelkeep.core.ports import Change
from modelkeep.errors import Denied, Invalid, Missing, NotTrusted, Unauthenticated

WRONG = "not the password at all"


@pytest.fixture
def enrolled(house):
    secret, recovery = house.enrol("anna")
    house.clock.advance(30)
    return secret, recovery


def refusal(house, password, code, logins=None):
    with pytest.raises(Unauthenticated) as caught:
        (logins or house.logins).prove("anna", password, code=code)
    return str(caught.value)


def test_a_login_needs_the_code(house, enrolled):
    secret, _ = enrolled
    proven = house.logins.prove_how("anna", PASSWORD, code=house.code(secret))
    assert proven.proof == Proof(int(house.clock.wall), ("pwd", "otp", "mfa"), True)
    assert house.anna.generation + 1 == proven.account.generation, "enrolment ends the sessions of before"


def test_no_answer_tells_which_factor_was_wrong(house, enrolled):
    secret, _ = enrolled
    right = house.code(secret)
    said = {refusal(house, PASSWORD, ""), refusal(house, PASSWORD, "000000"), refusal(house, WRONG, right)}
    with pytest.raises(Unauthenticated) as nobody:
        house.logins.prove("nobody", PASSWORD, code=right)
    assert said == {str(nobody.value)}
    assert house.logins.prove("anna", PASSWORD, code=right), "a wrong password does not use the code up"


def test_a_time_step_is_taken_once_and_none_before_it(house, enrolled):
    secret, _ = enrolled
    now = int(house.clock.wall)
    house.logins.prove("anna", PASSWORD, code=house.code(secret))
    for step in (step_at(now), step_at(now) - 1):
        assert refusal(house, PASSWORD, code_of(secret, step))
    house.logins.prove("anna", PASSWORD, code=code_of(secret, step_at(now) + 1))
    assert refusal(house, PASSWORD, code_of(secret, step_at(now) + 1))


def test_the_step_that_confirmed_an_enrolment_is_used(house):
    secret, _ = house.enrol("anna")
    assert refusal(house, PASSWORD, house.code(secret))


def test_of_processes_that_are_shown_one_code_at_once_one_lets_in(house, enrolled):
    code, let_in, start = house.code(enrolled[0]), [], threading.Barrier(4)

    def try_it():
        start.wait()
        with contextlib.suppress(Unauthenticated):
            let_in.append(house.new_logins().prove("anna", PASSWORD, code=code))

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 1


def test_a_process_that_read_before_another_used_the_code_is_refused(house, enrolled):
    """The compare-and-set itself: both have seen the code unused."""
    first, code = house.logins, house.code(enrolled[0])
    kept, revision, used = first._look("anna", code)
    assert kept.secret and used is not None
    house.new_logins().prove("anna", PASSWORD, code=code)
    with pytest.raises(Unauthenticated):
        first._spend("anna", used, revision, Proof(0))


def test_wrong_codes_lock_like_wrong_passwords(house, enrolled):
    for _ in range(FREE_ATTEMPTS):
        refusal(house, PASSWORD, "000000")
    house.clock.advance(1)
    right = house.code(enrolled[0])
    assert refusal(house, PASSWORD, right)
    account = parse_account(house.records.get(ACCOUNT, "anna"))
    with pytest.raises(Unauthenticated):
        house.logins.prove_factor(account, right, Proof(0))
    house.clock.advance(30)
    assert house.logins.prove("anna", PASSWORD, code=house.code(enrolled[0]))


def test_codes_shown_for_step_up_count_as_attempts(house, enrolled):
    account = parse_account(house.records.get(ACCOUNT, "anna"))
    assert house.logins.prove_factor(account, house.code(enrolled[0]), Proof(7)).multi
    for _ in range(FREE_ATTEMPTS):
        with pytest.raises(Unauthenticated):
            house.logins.prove_factor(account, "000000", Proof(0))
    house.clock.advance(1)
    assert refusal(house, PASSWORD, house.code(enrolled[0]))


def test_a_recovery_code_works_once(house, enrolled):
    _, recovery = enrolled
    assert len(set(recovery)) == RECOVERY_CODES
    assert house.logins.prove("anna", PASSWORD, code=recovery[3].lower())
    assert refusal(house, PASSWORD, recovery[3])
    assert house.logins.prove("anna", PASSWORD, code=recovery[4].replace("-", ""))
    assert len(parse_factors(house.records.get(FACTOR, "anna")).recovery) == RECOVERY_CODES - 2


def test_an_account_with_codes_and_no_record_of_them_is_not_let_in(house, enrolled):
    """Whoever writes the database takes no second factor away by deleting it."""
    secret, recovery = enrolled
    house.records.commit([Change(FACTOR, "anna", None)])
    for code in ("", house.code(secret), recovery[0]):
        assert refusal(house, PASSWORD, code)


def test_the_one_time_password_of_a_reset_does_not_use_the_code_up(house, enrolled):
    from modelkeep.access.accounts import reset_password

    new = house.do(reset_password(house.accounts(), "anna", passwords=house.passwords, entropy=house.entropy))
    code = house.code(enrolled[0])
    assert refusal(house, new.password, "")
    with pytest.raises(Denied):
        house.logins.prove("anna", new.password, code=code)
    assert house.logins.prove("anna", new.password, new_password=PASSWORD + "!", code=code)


def test_the_records_hold_neither_secret_nor_recovery_code(house, enrolled):
    secret, recovery = enrolled
    body = house.records.get(FACTOR, "anna").body
    for hidden in (
        secret,
        text_of(secret).encode(),
        *(code.encode() for code in recovery),
        recovery[0].replace("-", "").encode(),
    ):
        assert hidden not in body
    assert "GEZ" not in repr(parse_factors(house.records.get(FACTOR, "anna")))
    assert len(secret) * 8 >= 160


def test_a_secret_belongs_to_its_account(house, enrolled):
    kept = parse_factors(house.records.get(FACTOR, "anna"))
    with pytest.raises(NotTrusted):
        secret_of(kept, "bert", house.factor_keys)


def test_until_a_new_secret_is_confirmed_the_old_one_counts(house, enrolled):
    old, _ = enrolled
    kept = parse_factors(house.records.get(FACTOR, "anna"))
    new, begun = begin_codes(kept, "anna", keys=house.factor_keys, entropy=house.entropy)
    now = int(house.clock.wall)
    assert use_code(begun, "anna", code_of(old, step_at(now)), now, house.factor_keys)
    assert use_code(begun, "anna", code_of(new, step_at(now)), now, house.factor_keys) is None
    with pytest.raises(Invalid):
        confirm_codes(begun, "anna", "000000", now, keys=house.factor_keys, entropy=house.entropy)
    _, after = confirm_codes(begun, "anna", code_of(new, step_at(now)), now, keys=house.factor_keys, entropy=house.entropy)
    assert use_code(after, "anna", code_of(old, step_at(now)), now, house.factor_keys) is None
    with pytest.raises(Invalid):
        confirm_codes(after, "anna", code_of(new, step_at(now)), now, keys=house.factor_keys, entropy=house.entropy)


def test_the_key_of_the_secrets_can_be_turned(house, enrolled):
    record = house.records.get(FACTOR, "anna")
    assert factor_key_ids(record) == ("file:second-factor/1",)
    house.factor_keys.turn()
    again = rewrapped_factor(record, house.factor_keys, house.factor_keys.wrapper())
    house.records.commit([Change(FACTOR, "anna", again, record.revision)])
    assert factor_key_ids(house.records.get(FACTOR, "anna")) == ("file:second-factor/2",)
    assert house.logins.prove("anna", PASSWORD, code=house.code(enrolled[0]))


@given(st.lists(st.integers(-2, 40), max_size=30))
@settings(max_examples=40, deadline=None)
def test_however_codes_are_shown_each_step_lets_in_once_and_in_order(gaps):
    house = House()
    secret, _ = house.enrol("anna")
    kept, taken = parse_factors(house.records.get(FACTOR, "anna")), []
    start = step_at(int(house.clock.wall))
    now = int(house.clock.wall)
    for gap in gaps:
        now += max(gap, 0)
        step = step_at(now) + (gap % 3 - 1)
        found = use_code(kept, "anna", code_of(secret, step), now, house.factor_keys)
        if found is not None:
            kept = found[1]
            taken.append(step)
    assert taken == sorted(set(taken)) and all(step > start for step in taken)


def test_passkeys_are_bounded_and_their_counter_is_kept():
    kept = NONE
    for number in range(MAX_PASSKEYS):
        kept = add_passkey(kept, Passkey(id=b"%d" % number, public=b"p", signed=0, created=0))
    with pytest.raises(Invalid):
        add_passkey(kept, Passkey(id=b"more", public=b"p", signed=0, created=0))
    with pytest.raises(Invalid):
        add_passkey(NONE.__class__(passkeys=kept.passkeys[:1]), kept.passkeys[0])
    after = passkey_used(kept, passkey_at(kept, b"3"), 9)
    assert [each.signed for each in after.passkeys] == [0, 0, 0, 9, *[0] * 6]
    with pytest.raises(Missing):
        passkey_at(kept, b"unknown")


def test_recovery_codes_are_kept_as_a_hash_with_a_label_of_its_own():
    assert hash_recovery("ABCD-EFGH-2345-6723") == hash_recovery("abcdefgh23456723")
    assert hash_recovery("ABCD-EFGH-2345-6723") != hash_recovery("ABCD-EFGH-2345-6722")
