"""Verbs about keys that meet what others do: cut off between two steps and run again, or beside a publisher."""

import pytest

from modelkeep.app.keep import Keep
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict
from modelkeep.workflows import key_rotation
from modelkeep.workflows.bodies import seal_anew
from modelkeep.workflows.registry import CARD
from modelkeep.workflows.staging import stage


class Cut(BaseException):
    """The power fails."""


def root_of(cli):
    return TrustRoot.parse((cli.keep / "trust.toml").read_bytes())


def opened(cli):
    return Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())


def cut_off():
    raise Cut


def begun(cli, monkeypatch, act):
    """The token key is rotated, and the power fails before anything is signed with the new one."""
    keep = opened(cli)
    monkeypatch.setattr(keep.premises, "sign_records_again", cut_off)
    with pytest.raises(Cut):
        act(keep)


def test_a_stolen_token_key_ends_although_its_compromise_was_cut_off(cli, monkeypatch):
    stolen = root_of(cli).token_key
    begun(cli, monkeypatch, lambda keep: keep.keys_compromise(family="token-signing", version="1", reason="stolen"))
    assert stolen in root_of(cli).token_keys
    cli("keys", "compromise", "token-signing", "1", "--reason", "stolen", code=0)
    assert stolen not in root_of(cli).token_keys
    cli("user", "list", code=0)


def test_a_token_key_stolen_while_it_was_being_taken_into_use_ends(cli, monkeypatch):
    begun(cli, monkeypatch, lambda keep: keep.keys_rotate(family="token-signing"))
    stolen = root_of(cli).token_key
    cli("keys", "compromise", "token-signing", "2", "--reason", "stolen", code=0)
    assert stolen not in root_of(cli).token_keys
    states = {k["key_id"]: k["state"] for row in cli("--json", "keys", "list", code=0).json for k in row["versions"]}
    assert (states["file:token-signing/2"], states["file:token-signing/3"]) == ("compromised", "primary")
    cli("user", "disable", "alice", code=0)


def test_a_stolen_authority_ends_although_its_compromise_was_cut_off(cli, monkeypatch):
    path = cli.keep / "tls" / "ca.pem"
    stolen = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("modelkeep.app.trustverbs.authority_certificate", lambda *_: cut_off())
        with pytest.raises(Cut):
            opened(cli).keys_compromise(family="tls-ca", version="1", reason="stolen")
    assert path.read_bytes() == stolen
    cli("keys", "compromise", "tls-ca", "1", "--reason", "stolen", code=0)
    assert stolen not in path.read_bytes()
    keep = opened(cli)
    assert keep.premises.issue_leaf(keep.keyring(["tls-ca"])).chain


def test_an_authority_stolen_while_it_was_being_taken_into_use_ends(cli, monkeypatch):
    path = cli.keep / "tls" / "ca.pem"
    with monkeypatch.context() as patch:
        patch.setattr("modelkeep.app.trustverbs.authority_certificate", lambda *_: cut_off())
        with pytest.raises(Cut):
            opened(cli).keys_rotate(family="tls-ca")
    cli("keys", "compromise", "tls-ca", "2", "--reason", "stolen", code=0)
    keep = opened(cli)
    assert keep.premises.issue_leaf(keep.keyring(["tls-ca"])).chain.count(b"BEGIN CERTIFICATE") == 2
    states = {k["key_id"]: k["state"] for row in cli("--json", "keys", "list", code=0).json for k in row["versions"]}
    assert (states["file:tls-ca/2"], states["file:tls-ca/3"], path.read_bytes().count(b"BEGIN")) == (
        "compromised",
        "primary",
        1,
    )


def test_a_key_that_a_publisher_may_still_wrap_under_is_not_disabled(cli, monkeypatch):
    """What it wraps is in no record yet: disabled and destroyed, the key would take the body with it."""
    monkeypatch.setattr(key_rotation, "QUIET_SECONDS", 0.0)
    desk, keep = opened(cli).premises.desk(), opened(cli)
    with stage(desk):
        made = seal_anew(desk, b"a card", CARD)
        keep.keys_new(family="model-kek")
        keep.keys_rotate(family="model-kek", rewrap_only=True)
        with pytest.raises(Conflict, match="still being published"):
            keep.keys_disable(family="model-kek", version="1")
        desk.registry.records.commit([made.change])
    with pytest.raises(Conflict, match="wrapped under"):
        keep.keys_disable(family="model-kek", version="1")
