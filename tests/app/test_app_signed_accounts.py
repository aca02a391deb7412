"""Whoever can write the database, and nothing else, does not become an administrator."""

import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep import Keep
from modelkeep.access.accounts import ACCOUNT, add_account, parse_account, set_roles
from modelkeep.access.passwords import Passwords
from modelkeep.access.refresh import REFRESH, Lifetimes, Scope, begin_family, write_family
from modelkeep.access.sessions import Proof
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.app.stores import RECORDS_FILE
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.errors import NotTrusted

CHEAP = Passwords(passes=1, memory_kib=64, lanes=1)


@pytest.fixture
def keep(template, tmp_path):
    return Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())


def test_an_account_written_past_the_keep_is_refused(keep):
    bare = SqliteRecords(keep.premises.directory / RECORDS_FILE)
    _, changes = add_account("intruder", [Role.ADMIN], passwords=CHEAP, entropy=SystemEntropy(), clock=SystemClock())
    bare.commit(changes)
    with pytest.raises(NotTrusted, match="'intruder' was not written by this keep"):
        keep.user_list()


def test_a_role_raised_past_the_keep_is_refused(keep):
    _, changes = set_roles(keep.premises.records.scan("account"), "alice", [Role.ADMIN])
    SqliteRecords(keep.premises.directory / RECORDS_FILE).commit(changes)
    with pytest.raises(NotTrusted, match="'alice'"):
        keep.user_list()


def test_the_log_names_nobody(keep):
    keep.user_add(name="zenobia", roles=(Role.ANALYST,))
    keep.key_issue(account="zenobia", quota=5)
    view = keep.premises.view()
    logged = b"".join(view.entries(0, view.checkpoint.size))
    import base64
    import json

    payloads = b"".join(base64.b64decode(json.loads(e)["payload"]) for e in view.entries(0, view.checkpoint.size))
    assert b"zenobia" not in logged + payloads
    assert "zenobia" in {row.name for row in keep.user_list()}


def logged_in(keep, count=3):
    """Families of refresh tokens, as logins leave them."""
    records, entropy = keep.premises.records, SystemEntropy()
    alice = parse_account(records.get(ACCOUNT, "alice"))
    made = [begin_family(alice, Scope(1), Proof(1), Lifetimes(9_999, 9_999), 1, entropy) for _ in range(count)]
    records.commit([write_family(each.id, each.family, 0) for each in made])
    return [each.id for each in made]


def test_records_that_change_while_all_are_signed_again_hold_nothing_up(keep, monkeypatch):
    """Each use of a refresh token changes one, and its end deletes one: under load a rotation would never end."""
    records = keep.premises.records
    used, ended, _ = logged_in(keep)
    commit, meant = records.commit, {used: lambda record: record.body, ended: lambda _record: None}

    def meddled(changes):
        if now := meant.pop(changes[0].key, None):
            record = records.get(REFRESH, changes[0].key)
            commit([Change(REFRESH, record.key, now(record))])
        return commit(changes)

    monkeypatch.setattr(records, "commit", meddled)
    assert keep.premises.sign_records_again() >= 5 and not meant
    assert len(records.scan(REFRESH)) == 2


def test_a_token_key_in_other_hands_ends_every_login(keep):
    keep.premises.settle_lease = lambda: None
    logged_in(keep)
    keep.rotate_token_signing()
    assert len(keep.premises.records.scan(REFRESH)) == 3
    keep.keys_compromise(family="token-signing", version="2", reason="stolen")
    assert keep.premises.records.scan(REFRESH) == []
