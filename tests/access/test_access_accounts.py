import pytest

from modelkeep.access.accounts import (
    OPERATOR,
    add_account,
    parse_account,
    reset_password,
    set_disabled,
    set_password,
    set_roles,
)
from modelkeep.core.ports import Record
from modelkeep.core.values import Role, parse_name
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted


def test_a_new_account(house):
    anna = parse_account(house.records.get("account", "anna"))
    assert anna == house.anna
    assert anna.roles == (Role.ANALYST,) and not anna.one_time and not anna.disabled and anna.generation == 2
    assert anna.subject.startswith("sub_") and len(anna.subject) == 20
    assert anna.password.startswith("$argon2id$v=19$")


def test_secrets_are_in_no_repr(house):
    new, changes = reset_password(house.accounts(), "anna", passwords=house.passwords, entropy=house.entropy)
    for shown in (repr(new), str(new), repr(new.account), repr(house.anna)):
        assert "argon2" not in shown and new.password not in shown
    assert all(new.password.encode() not in (change.body or b"") for change in changes)


@pytest.mark.parametrize("name", ["", "Anna", "a/b", "operator@local", "../x", "a" * 65, "a b", "a\n"])
def test_a_bad_name_is_refused(house, name):
    with pytest.raises(Invalid):
        add_account(name, [Role.ADMIN], passwords=house.passwords, entropy=house.entropy, clock=house.clock)


@pytest.mark.parametrize("roles", [[], ["Root"], [""], ["a b"], ["analyst\n"], ["a" * 41]])
def test_a_bad_role_is_refused(house, roles):
    with pytest.raises(Invalid, match="role"):
        set_roles(house.accounts(), "anna", roles)


def test_a_name_is_given_once(house):
    with pytest.raises(Conflict):
        house.add("anna", Role.ADMIN)


def test_an_unknown_account_is_missing(house):
    with pytest.raises(Missing, match="nobody"):
        set_disabled(house.accounts(), "nobody", True)


def test_roles_are_set_whole_and_sorted(house):
    changed = house.do(set_roles(house.accounts(), "anna", [Role.ML_ENGINEER, Role.ANALYST, Role.ANALYST]))
    assert changed.roles == (Role.ANALYST, Role.ML_ENGINEER)
    assert changed.generation == house.anna.generation + 1


def test_two_changes_at_once_cannot_both_win(house):
    accounts = house.accounts()
    _, first = set_roles(accounts, "anna", [Role.ADMIN])
    _, second = set_disabled(accounts, "anna", True)
    house.records.commit(first)
    with pytest.raises(Conflict):
        house.records.commit(second)


def test_the_last_admin_stays(house):
    house.add("root", Role.ADMIN)
    for command in (
        lambda: set_disabled(house.accounts(), "root", True),
        lambda: set_roles(house.accounts(), "root", [Role.ANALYST]),
    ):
        with pytest.raises(Conflict, match="last enabled admin"):
            command()
    house.add("second", Role.ADMIN)
    assert house.do(set_disabled(house.accounts(), "root", True)).disabled
    with pytest.raises(Conflict, match="last enabled admin"):
        set_disabled(house.accounts(), "second", True)  # the disabled one does not count


def test_two_admins_cannot_demote_each_other_at_once(house):
    house.add("root", Role.ADMIN)
    house.add("second", Role.ADMIN)
    accounts = house.accounts()
    _, first = set_disabled(accounts, "root", True)
    _, second = set_disabled(accounts, "second", True)
    house.records.commit(first)
    with pytest.raises(Conflict):
        house.records.commit(second)


def test_a_new_password_is_checked(house):
    record = house.records.get("account", "anna")
    for bad in ("short", "x" * 300, "aaaaaaaaaaaaaaaaaaaa", "the very same old password"):
        with pytest.raises(Invalid):
            set_password(record, bad, "the very same old password", passwords=house.passwords, entropy=house.entropy)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b'{"name":1}'])
def test_a_damaged_record_is_not_trusted(body):
    with pytest.raises(NotTrusted, match="anna"):
        parse_account(Record("account", "anna", body, 1))


def test_a_record_under_another_name_is_not_trusted(house):
    body = house.records.get("account", "anna").body
    with pytest.raises(NotTrusted):
        parse_account(Record("account", "root", body, 1))


def test_no_account_can_be_the_operator():
    with pytest.raises(Invalid):
        parse_name(OPERATOR.account)
