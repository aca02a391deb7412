"""Whoever can write the database, and nothing else, does not become an administrator."""

import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep import Keep
from modelkeep.access.accounts import add_account, set_roles
from modelkeep.access.passwords import Passwords
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.app.stores import RECORDS_FILE
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
