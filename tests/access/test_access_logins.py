import threading

import argon2
import pytest
from access_house import PASSWORD, CountingEntropy, House
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.accounts import add_account, parse_account, reset_password, set_disabled
from modelkeep.access.logins import FREE_ATTEMPTS, LONGEST_LOCK, Attempts, Logins, next_attempt
from modelkeep.access.passwords import LONGEST, Passwords, check_new, normalise, one_time_password
from modelkeep.core.values import Role
from modelkeep.errors import Denied, Invalid, NotTrusted, OverBudget, Unauthenticated, Unavailable

WRONG = "not the password at all"


class CountingHasher(argon2.PasswordHasher):
    """Counts how often Argon2id runs, and with which parameters."""

    ran = 0

    def verify(self, hash, password):
        assert "$m=8,t=1,p=1$" in hash
        type(self).ran += 1
        return super().verify(hash, password)


class CountingPasswords(Passwords):
    def __init__(self):
        super().__init__(passes=1, memory_kib=8, lanes=1)
        self._hasher = CountingHasher(time_cost=1, memory_cost=8, parallelism=1)

    @property
    def ran(self):
        return CountingHasher.ran


def refusal(logins, name, password, **options):
    with pytest.raises(Unauthenticated) as caught:
        logins.prove(name, password, **options)
    return str(caught.value)


def test_the_right_password(house):
    assert house.logins.prove("anna", PASSWORD) == house.anna


def test_a_one_time_password_must_be_replaced_at_first_use(house):
    new = house.do(add_account("bert", [Role.ANALYST], passwords=house.passwords, entropy=house.entropy, clock=house.clock))
    with pytest.raises(Denied, match="one-time password"):
        house.logins.prove("bert", new.password)
    assert refusal(house.logins, "bert", WRONG, new_password=PASSWORD)
    with pytest.raises(Invalid):
        house.logins.prove("bert", new.password, new_password="short")
    with pytest.raises(Invalid, match="choose another"):
        house.logins.prove("bert", new.password, new_password=new.password)
    assert not house.logins.prove("bert", new.password, new_password=PASSWORD).one_time
    assert refusal(house.logins, "bert", new.password)
    assert house.logins.prove("bert", PASSWORD).generation == 2


def test_nothing_tells_an_unknown_account_from_a_wrong_password(house):
    """Same message, same number of Argon2 runs, same number of calls that reach the records."""
    passwords = CountingPasswords()
    logins = Logins(house.records, passwords, entropy=house.entropy, clock=house.clock)
    house.add("gone", Role.ANALYST)
    house.do(set_disabled(house.accounts(), "gone", True))
    seen = set()
    for attempt in range(3 * FREE_ATTEMPTS):  # into the lock and beyond it
        for name in ("anna", "nobody", "gone", "Not A Name", "../x", "", "\ud800"):
            ran, calls = passwords.ran, house.records.calls
            message = refusal(logins, name, WRONG)
            # A name that cannot be an account's is not looked up, nor are its factors; its form is no secret.
            looked_up = house.records.calls - calls + 2 * (name not in ("anna", "nobody", "gone"))
            seen.add((message, passwords.ran - ran, looked_up))
        house.clock.advance(0.1 * attempt)
    assert len(seen) == 1


def test_unknown_names_cannot_fill_the_records(house):
    for number in range(300):
        refusal(house.logins, f"nobody-{number}", WRONG)
    assert len(house.records.scan("login", "unknown/")) <= 256


def test_a_locked_account_refuses_the_right_password_until_the_lock_ends(house):
    for _ in range(FREE_ATTEMPTS):
        refusal(house.logins, "anna", WRONG)
    message = refusal(house.logins, "anna", PASSWORD)
    assert message == refusal(house.logins, "nobody", PASSWORD)
    house.clock.advance(2.1)
    assert house.logins.prove("anna", PASSWORD)
    assert house.logins.prove("anna", PASSWORD)  # and the failures are forgotten


def test_locks_double(house):
    attempts, now, locks = Attempts(), 0, []
    for _ in range(20):
        attempts, locked = next_attempt(attempts, now)
        assert not locked
        locks.append(max(0, attempts.locked_until - now))
        now = max(now, attempts.locked_until)
    assert locks[:9] == [0, 0, 0, 0, 2, 4, 8, 16, 32]
    assert locks[-1] == LONGEST_LOCK


@given(st.lists(st.floats(0, 5), max_size=200))
def test_however_attempts_are_timed_few_count(gaps):
    attempts, now, counted = Attempts(), 0.0, 0
    for gap in gaps:
        now += gap
        attempts, locked = next_attempt(attempts, int(now))
        counted += not locked
    # FREE_ATTEMPTS at once; then lock k of 2^k s must pass before the next one counts.
    allowed, waited, lock = FREE_ATTEMPTS, 0, 2
    while waited + lock <= now + 1:
        waited, lock, allowed = waited + lock, min(2 * lock, LONGEST_LOCK), allowed + 1
    assert counted <= allowed


def test_setting_the_clock_back_does_not_unlock_nor_does_it_forward_prolong(house):
    for _ in range(FREE_ATTEMPTS + 1):
        refusal(house.logins, "anna", WRONG)
    house.clock.wall -= 86_400
    refusal(house.logins, "anna", PASSWORD)
    house.clock.up += 3
    assert house.logins.prove("anna", PASSWORD)  # the lock ran out by time elapsed


def test_guesses_in_parallel_do_not_outrun_the_count(house):
    tried = CountingPasswords()
    right = []

    def guess():
        logins = Logins(house.records, tried, entropy=CountingEntropy(), clock=house.clock)
        try:
            logins.prove("anna", PASSWORD)  # every guess is right: how many are believed?
            right.append(1)
        except (Unauthenticated, Unavailable, OverBudget):
            pass

    for _ in range(FREE_ATTEMPTS - 1):
        refusal(house.logins, "anna", WRONG)
    refusal(house.logins, "anna", WRONG)
    threads = [threading.Thread(target=guess) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == []


def test_a_reset_lifts_the_lock_and_ends_the_password(house):
    for _ in range(FREE_ATTEMPTS + 1):
        refusal(house.logins, "anna", WRONG)
    new = house.do(reset_password(house.accounts(), "anna", passwords=house.passwords, entropy=house.entropy))
    assert house.logins.prove("anna", new.password, new_password=PASSWORD + "!").generation == 4


def test_no_login_when_the_attempt_cannot_be_counted(house):
    house.records.down = True
    with pytest.raises(Unavailable):
        house.logins.prove("anna", PASSWORD)


def test_a_password_is_hashed_anew_when_the_parameters_rise(house):
    stronger = Passwords(passes=2, memory_kib=16, lanes=1)
    logins = Logins(house.records, stronger, entropy=house.entropy, clock=house.clock)
    assert logins.prove("anna", PASSWORD).generation == house.anna.generation
    kept = parse_account(house.records.get("account", "anna"))
    assert "m=16,t=2" in kept.password and not stronger.is_outdated(kept.password)
    assert logins.prove("anna", PASSWORD)


def test_a_damaged_hash_is_not_a_wrong_password():
    with pytest.raises(NotTrusted):
        Passwords(passes=1, memory_kib=8, lanes=1).matches("$argon2id$junk", WRONG)


def test_at_most_so_many_checks_at_once():
    passwords = Passwords(passes=1, memory_kib=8, lanes=1, at_once=1)
    with passwords._slot(), pytest.raises(OverBudget):
        passwords.matches("", WRONG)


def test_what_the_unknown_are_checked_against_is_made_at_the_first_check_whoever_is_checked():
    passwords = Passwords(passes=1, memory_kib=8, lanes=1)
    stored = passwords.hash(PASSWORD, CountingEntropy())
    assert "_nobody" not in vars(passwords)  # who only hashes does not pay for it
    assert passwords.matches(stored, PASSWORD)
    assert "_nobody" in vars(passwords)


def test_default_parameters_are_the_low_memory_choice_of_rfc_9106():
    assert Passwords().hash(PASSWORD, CountingEntropy()).startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_passwords_are_normalised():
    assert normalise("ﬁle e\u0301") == "file é".encode()
    with pytest.raises(Invalid):
        normalise("x" * (4 * LONGEST + 1))
    check_new("пароль из нескольких слов", "anna")


def test_one_time_passwords_are_long_and_their_letters_equally_likely():
    entropy = CountingEntropy()
    seen = "".join(one_time_password(entropy).replace("-", "") for _ in range(400))
    counts = {letter: seen.count(letter) for letter in set(seen)}
    assert len(counts) == 31 and max(counts.values()) < 1.35 * len(seen) / 31
    check_new(one_time_password(entropy), "anna")


def test_a_house_can_be_built_twice():
    assert House().anna == House().anna
