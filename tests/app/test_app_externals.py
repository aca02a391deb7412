"""Accounts of other issuers, as control admits them and as the verbs treat them."""

import base64
import json
import time

import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep import Keep
from modelkeep.access.externals import (
    EXTERNAL,
    NAME_TAKEN,
    NEWCOMER,
    NO_ISSUER,
    TOO_MANY,
    TURNED_AWAY,
    TURNED_AWAY_SECONDS,
    Newcomer,
    admit,
    announce,
    reason_of,
    turn_away,
)
from modelkeep.access.issuers import subject_digest
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.app.control import CONTROL
from modelkeep.app.stores import RECORDS_FILE
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted

ISSUERS = """
[[issuers]]
alias = "corp"
issuer = "https://login.example"
audiences = ["keep"]
roles = { chiefs = "admin" }
max_accounts = 2
"""


@pytest.fixture
def keep(template, tmp_path):
    folder = copy_keep(template, tmp_path / "keep")
    with (folder / "modelkeep.toml").open("a") as file:
        file.write(ISSUERS)
    found = Keep.open(folder, PASSPHRASE.encode())
    found.premises.settle_lease = lambda: None  # no gateway runs here that one would have to wait for
    return found


def comes(keep, name, sub="", digest=""):
    """What a gateway writes, and what control does then."""
    newcomer = Newcomer(name, digest or subject_digest("corp", sub or name))
    keep.premises.records.commit([announce(newcomer)])
    return keep.acting_as(CONTROL).admit_newcomers()


def row(keep, name):
    return next(one for one in keep.user_list() if one.name == name)


def log_text(keep):
    view = keep.premises.view()
    return b"".join(base64.b64decode(json.loads(e)["payload"]) for e in view.entries(0, view.checkpoint.size)).decode()


def test_who_was_announced_is_admitted_and_the_log_knows_the_pseudonym_alone(keep):
    assert comes(keep, "zenobia@corp") == ()
    found = row(keep, "zenobia@corp")
    assert found.roles == () and not found.disabled and keep.premises.records.scan(NEWCOMER) == []
    assert found.subject in log_text(keep) and "zenobia" not in log_text(keep)
    assert found.subject in keep.subjects() and keep.names()[found.subject] == "zenobia@corp"
    assert comes(keep, "zenobia@corp") == () and len(keep.premises.records.scan(EXTERNAL)) == 1


def test_who_is_not_let_in_is_told_of_and_forgotten(keep):
    comes(keep, "a@corp")
    assert "name of another" in comes(keep, "a@corp", sub="else")[0]
    assert "no issuer" in comes(keep, "a@club")[0]
    assert "no issuer" in comes(keep, "root@local")[0]
    comes(keep, "b@corp")
    assert "no more are let in" in comes(keep, "c@corp")[0]
    assert "announces nobody" in comes(keep, "x\x1b[2J@corp", digest="0" * 64)[0]
    assert keep.premises.records.scan(NEWCOMER) == [] and len(keep.premises.records.scan(EXTERNAL)) == 2
    told = {record.key: reason_of(record) for record in keep.premises.records.scan(TURNED_AWAY)}
    expected = {"else": NAME_TAKEN, "c@corp": TOO_MANY}
    assert {subject_digest("corp", sub): reason for sub, reason in expected.items()}.items() <= told.items()
    assert sorted(told.values()) == sorted([NAME_TAKEN, TOO_MANY, NO_ISSUER, NO_ISSUER])


def test_who_was_not_let_in_is_judged_anew_after_a_while(keep):
    records, sub = keep.premises.records, subject_digest("corp", "a@corp")
    records.commit(
        [turn_away(sub, TOO_MANY, int(time.time()) - TURNED_AWAY_SECONDS), turn_away("1" * 64, TOO_MANY, int(time.time()))]
    )
    assert comes(keep, "a@corp") == () and row(keep, "a@corp")
    assert [record.key for record in records.scan(TURNED_AWAY)] == ["1" * 64]


def test_verbs_about_accounts_of_others(keep):
    comes(keep, "a@corp")
    assert keep.user_disable(name="a@corp").disabled and row(keep, "a@corp").disabled
    assert not keep.user_enable(name="a@corp").disabled
    with pytest.raises(Invalid, match="come with its tokens"):
        keep.user_role(name="a@corp", roles=(Role.ADMIN,))
    with pytest.raises(Missing):
        keep.user_disable(name="b@corp")
    with pytest.raises(Missing):
        keep.key_issue(account="a@corp")
    assert keep.review(account="a@corp", outcome="confirmed", reason="a copy").outcome == "confirmed"
    assert row(keep, "a@corp").disabled
    with pytest.raises(Missing):
        keep.review(account="b@corp", outcome="cleared", reason="nobody")


def test_an_at_sign_makes_nobody_an_operator(keep):
    """``operator@local`` is judged by the policy that ships; who comes from elsewhere, by the one in force."""
    policy = '@id("nobody") @says("nobody may do anything") forbid (principal, action, resource);'
    keep.policy_set(kind="access", text=policy.encode(), reason="a test")
    stranger = keep.acting_as(Principal("chief@corp", "sub_0123456789abcdef", (Role.ADMIN,), "token:x"))
    with pytest.raises(Denied):
        stranger.user_list()
    assert keep.user_list()


def test_an_at_sign_stands_for_no_second_factor(keep):
    stranger = keep.acting_as(Principal("chief@corp", "sub_0123456789abcdef", (Role.ADMIN,), "token:x"))
    with pytest.raises(Denied, match="another issuer"):
        stranger.step_up_approve(account="alice")
    assert keep.step_up_approve(account="alice").account == "alice"


def test_approvals_of_others_count_as_persons(keep):
    stranger = keep.acting_as(Principal("chief@corp", "sub_0123456789abcdef", (Role.ADMIN,), "token:x"))
    assert stranger.approve(ref="risk@1").verdict == "approve"
    with pytest.raises(Denied, match="nobody in particular"):
        keep.approve(ref="risk@1")


def test_erasing_one(keep):
    comes(keep, "zenobia@corp")
    before = row(keep, "zenobia@corp").subject
    assert keep.log_erase(subject="zenobia@corp", forget=True)
    assert "zenobia@corp" not in {one.name for one in keep.user_list()}
    raw = (keep.premises.directory / RECORDS_FILE).read_bytes()
    assert b"zenobia" not in raw and subject_digest("corp", "zenobia@corp").encode() not in raw
    comes(keep, "zenobia@corp")
    assert row(keep, "zenobia@corp").subject != before


def test_whoever_writes_the_database_admits_and_unblocks_nobody(keep):
    bare = SqliteRecords(keep.premises.directory / RECORDS_FILE)
    _, changes = admit([], Newcomer("a@corp", subject_digest("corp", "a")), 9, entropy=SystemEntropy(), clock=SystemClock())
    bare.commit(changes)
    with pytest.raises(NotTrusted, match="was not written by this keep"):
        keep.user_list()


def test_certificates_have_their_verbs(keep):
    made = keep.cert_add(account="alice", certificate="uri:spiffe://a/b", models=("risk",))
    assert [one.name for one in keep.cert_list()] == ["uri:spiffe://a/b"] and made.models == ("risk",)
    with pytest.raises(Conflict, match="already"):
        keep.cert_add(account="alice", certificate="uri:spiffe://a/b")
    with pytest.raises(Missing):
        keep.cert_add(account="nobody", certificate="dns:a")
    keep.user_disable(name="alice")
    with pytest.raises(Conflict, match="disabled"):
        keep.cert_add(account="alice", certificate="dns:a")
    keep.cert_remove(certificate="uri:spiffe://a/b")
    assert keep.cert_list() == ()
    with pytest.raises(Missing):
        keep.cert_remove(certificate="uri:spiffe://a/b")


def test_forgetting_an_account_takes_its_certificates_along(keep):
    keep.cert_add(account="alice", certificate="uri:spiffe://a/alice")
    keep.log_erase(subject="alice", forget=True)
    assert keep.cert_list() == ()
