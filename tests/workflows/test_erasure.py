"""Erasure, cut off before and after every durable step and run again: the key is gone, and so is the name."""

import itertools

import pytest
from workflow_house import ORIGIN, Cut

from modelkeep.access.accounts import ACCOUNT, LOGIN, add_account, parse_account
from modelkeep.access.credentials import KEY, KeyTerms, issue_key
from modelkeep.access.forgetting import FORGOTTEN
from modelkeep.access.passwords import Passwords
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.custody import keys
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.custody.salting import DATA_SALT, DataSalts
from modelkeep.errors import Missing
from modelkeep.serving.bodies import SUBJECT_KEY, SubjectKeys
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.decisions import ERASE, ERASE_DATA, FORGET
from modelkeep.workflows.erasure import decisions, erase, sweep


@pytest.fixture(scope="module")
def passwords():
    return Passwords()


@pytest.fixture
def people(house, passwords):
    """Admin ada and analyst alice, who has an API key, a failed login and an audit key."""
    entropy, clock = SystemEntropy(), SystemClock()
    found = {}
    for name, role in (("ada", Role.ADMIN), ("alice", Role.ANALYST)):
        made, changes = add_account(name, [role], passwords=passwords, entropy=entropy, clock=clock)
        house.records.commit(changes)
        found[name] = made.account.subject
    house.records.commit(issue_key("alice", KeyTerms(models=(), quota=9, lifetime=99), entropy=entropy, clock=clock)[1])
    house.records.commit([Change(LOGIN, "account/alice", b"{}")])
    subject_keys(house).key(found["alice"])
    return found


def wrapping(house):
    return RingKeys(keys.AUDIT_SUBJECT, lambda: house.ring)


def subject_keys(house):
    return SubjectKeys(house.records, wrapping(house), SystemEntropy(), decisions(house.desk()).epochs())


def all_of_it(house, subject, *, forget):
    desk = house.desk()
    desk.registry.records._steps = (*desk.registry.records._steps, "expunge")
    erase(desk, ORIGIN, ERASE, subject, actor="ada")
    if forget:
        erase(desk, ORIGIN, FORGET, subject, actor="ada")
    sweep(desk, lambda: None, wipe=True)


def left_of(house, text):
    return [(r.kind, r.key) for r in house.records.since(0) if text in r.key or text.encode() in (r.body or b"")]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_cut_off_anywhere_and_run_again_nothing_is_left(house, people, after):
    subject, before = people["alice"], subject_keys(house).existing(people["alice"])
    for step in itertools.count(1):
        house.faults.arm(step, after=after)
        try:
            all_of_it(house, subject, forget=True)
        except Cut:
            house.faults.arm(0)
            if decisions(house.desk()).epochs()(subject):  # from here on, whatever lies in the records
                with pytest.raises(Missing):
                    subject_keys(house).existing(subject)
            continue
        break
    assert step > 3  # what was done is not done again, so fewer steps are left each time
    assert left_of(house, "alice") == []
    assert house.records.scan(SUBJECT_KEY) == []
    assert house.records.get(FORGOTTEN, subject)
    assert [parse_account(record).name for record in house.records.scan(ACCOUNT)] == ["ada"]
    assert [act.verb for _, act in decisions(house.desk()).erasures] == [ERASE, FORGET]
    assert subject_keys(house).key(subject) != before


def test_what_a_sweep_finds_again_it_deletes_again(house, people):
    subject = people["alice"]
    old = [r for r in house.records.since(0) if r.kind in (SUBJECT_KEY, ACCOUNT, KEY) and "ada" not in r.key]
    all_of_it(house, subject, forget=True)
    assert sweep(house.desk(), lambda: None, wipe=False) == 0
    house.records.commit([Change(r.kind, r.key, r.body) for r in old])
    with pytest.raises(Missing):
        subject_keys(house).existing(subject)
    assert sweep(house.desk(), lambda: None, wipe=False) == 2
    assert left_of(house, "alice") == []


def test_a_copy_of_an_erasure_and_one_of_another_keep_erase_nothing(house, people):
    subject = people["alice"]
    all_of_it(house, subject, forget=False)
    second = subject_keys(house).key(subject)
    view = house.desk().registry.view
    copy = list(view.entries(0, view.refresh().size))[-1]
    log_act(house.desk(), "another.example/keep", ERASE, subject, actor="eve")
    house.desk().log.append([copy])  # by whoever has the key of the log, and none of those that sign statements
    assert len(decisions(house.desk()).erasures) == 1
    assert subject_keys(house).existing(subject) == second


def test_an_account_that_goes_on_has_a_key_of_its_own_that_a_second_erasure_takes(house, people):
    subject = people["alice"]
    all_of_it(house, subject, forget=False)
    entry = erase(house.desk(), ORIGIN, ERASE, subject, actor="ada")
    assert entry == decisions(house.desk()).erasures[0][0]  # nothing new to erase, so nothing new is logged
    second = subject_keys(house).key(subject)
    sweep(house.desk(), lambda: None, wipe=True)
    assert subject_keys(house).existing(subject) == second
    house.clock.sleep(1)
    all_of_it(house, subject, forget=False)
    assert [act.verb for _, act in decisions(house.desk()).erasures] == [ERASE, ERASE]
    with pytest.raises(Missing):
        subject_keys(house).existing(subject)
    assert left_of(house, "alice") != []  # the account stays


def test_the_last_admin_stays_whatever_the_log_says_and_control_starts(house, people, passwords):
    erase(house.desk(), ORIGIN, FORGET, people["ada"], actor="ada")
    assert sweep(house.desk(), lambda: None, wipe=False) == 0
    assert house.records.get(ACCOUNT, "ada")
    _, changes = add_account("eve", [Role.ADMIN], passwords=passwords, entropy=SystemEntropy(), clock=SystemClock())
    house.records.commit(changes)
    assert sweep(house.desk(), lambda: None, wipe=False) == 1
    with pytest.raises(Missing):
        house.records.get(ACCOUNT, "ada")


def test_a_data_set_is_erased_and_its_neighbours_are_not(house):
    def salts():
        return DataSalts(house.records, wrapping(house), SystemEntropy(), decisions(house.desk()).epochs(ERASE_DATA))

    one, other = salts().salt("loans"), salts().salt("loans@2")
    erase(house.desk(), ORIGIN, ERASE_DATA, "loans", actor="ada")
    with pytest.raises(Missing):
        salts().existing("loans")
    sweep(house.desk(), lambda: None, wipe=False)
    assert [record.key for record in house.records.scan(DATA_SALT)] == ["loans@2"]
    assert salts().existing("loans@2") == other
    assert salts().salt("loans") != one


def test_a_data_set_that_never_was_is_not_said_to_be_erased(house):
    DataSalts(house.records, wrapping(house), SystemEntropy()).salt("loans")
    with pytest.raises(Missing, match="no data set 'loan' has a salt here"):
        erase(house.desk(), ORIGIN, ERASE_DATA, "loan", actor="ada")
    assert not decisions(house.desk()).erased(ERASE_DATA)
    index = erase(house.desk(), ORIGIN, ERASE_DATA, "loans", actor="ada")
    sweep(house.desk(), lambda: None, wipe=False)
    assert erase(house.desk(), ORIGIN, ERASE_DATA, "loans", actor="ada") == index, "run again after a crash, it is that erasure"
