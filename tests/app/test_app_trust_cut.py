"""A compromise of a signing key that is cut off between any two of its steps: run again, it leaves the stolen key nothing."""

import pytest

from modelkeep.app.keep import Keep
from modelkeep.app.trustverbs import TrustVerbs
from modelkeep.custody.trust import TrustRoot


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
    assert TrustVerbs is not None and path.read_bytes() == stolen
    cli("keys", "compromise", "tls-ca", "1", "--reason", "stolen", code=0)
    assert stolen not in path.read_bytes()
    keep = opened(cli)
    assert keep.premises.issue_leaf(keep.keyring(["tls-ca"])).chain
