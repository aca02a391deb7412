"""Codes and refresh tokens shown to several processes at once, on the database server that replicas share."""

import threading
from contextlib import closing

import pytest
from access_house import PASSWORD, House

from modelkeep.access.accounts import ACCOUNT, LOGIN, set_codes
from modelkeep.access.factors import NONE, begin_codes, confirm_codes, write_factors
from modelkeep.access.totp import code_of, step_at
from modelkeep.adapters.records.postgres import PostgresRecords
from modelkeep.core.ports import Change
from modelkeep.errors import ModelkeepError, Unauthenticated

AT_ONCE = 4  # fewer than the failures that lock an account


def at_once(work):
    """What ``work`` returns in each of several threads that begin together; None where it was refused."""
    start, found = threading.Barrier(AT_ONCE), []

    def one(number):
        start.wait()
        try:
            found.append(work(number))
        except ModelkeepError:
            found.append(None)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.fixture
def houses(postgres):
    """One keep, as each of several processes has it: with a connection of its own."""
    url = postgres.database()
    with closing(PostgresRecords.create(url, "keep.example/races")) as records:
        others = [PostgresRecords(url, "keep.example/races") for _ in range(AT_ONCE - 1)]
        first = House(records=records)
        logins = [first.logins]
        for other in others:
            first.records = other
            logins.append(first.new_logins())
        first.records = records
        yield first, logins
        for other in others:
            other.close()
    postgres.take_back(url)


def test_a_code_that_is_shown_to_several_processes_at_once_is_good_in_one(houses):
    house, logins = houses
    now = house.clock.now_ns() // 1_000_000_000
    secret, kept = begin_codes(NONE, "anna", keys=house.factor_keys, entropy=house.entropy)
    code = code_of(secret, step_at(now) - 1)
    recovery, kept = confirm_codes(kept, "anna", code, now, keys=house.factor_keys, entropy=house.entropy)
    house.records.commit([write_factors("anna", kept, 0), *set_codes(house.records.scan(ACCOUNT), "anna", True)[1]])
    for given in (code_of(secret, step_at(now)), recovery[0]):
        let_in = at_once(lambda number, given=given: logins[number].prove_how("anna", PASSWORD, code=given))
        assert len([one for one in let_in if one is not None]) == 1
        with pytest.raises(Unauthenticated):
            logins[0].prove("anna", PASSWORD, code=given)
        house.records.commit([Change(LOGIN, "account/anna", None)])
