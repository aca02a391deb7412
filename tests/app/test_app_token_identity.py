"""A statement identity whose Ed25519 half lives in a token (SoftHSM2): published with, verified without."""

import pytest
from softhsm import Token

from modelkeep.app.keep import Keep
from modelkeep.app.offline import verify_source
from modelkeep.crypto.signatures import SOFTWARE
from modelkeep.custody.keys import STATEMENT_SIGNING


@pytest.fixture(scope="module")
def token():
    return Token()


@pytest.fixture
def held(cli, token, request):
    """A keep whose statement identity was rotated into the token."""
    uri = token.uri(f"sign-{request.node.name[-20:]}".replace("_", "-"))
    made = cli.with_environment(MODELKEEP_KEYS_STATEMENT_SIGNING=uri)
    made("keys", "rotate", "statement-signing", code=0)
    return made, uri


def opened(cli, monkeypatch, uri):
    monkeypatch.setenv("MODELKEEP_KEYS_STATEMENT_SIGNING", uri)
    return Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())


def test_publish_and_verify_with_half_an_identity_in_a_token(held, desk, token, monkeypatch):
    cli, uri = held
    cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    cli("promote", "risk@2", code=0)
    verified = cli("--json", "verify", "risk@2", code=0).json
    assert verified["signer"].endswith("/statement-signing/2")
    verify_source(str(cli.keep), trust=str(cli.keep / "trust.toml"))  # whoever verifies needs no token
    rows = {row["name"][-1]: row for row in cli("--json", "trust", "show", code=0).json}
    assert (rows["1"]["ed25519"], rows["1"]["mldsa65"]) == (SOFTWARE, SOFTWARE)
    assert rows["2"]["ed25519"] == f"{uri.partition('?')[0]}/1"
    assert rows["2"]["mldsa65"] == "software, wrapped by the token"
    ring = opened(cli, monkeypatch, uri).keyring([STATEMENT_SIGNING])
    material = ring._compartments[STATEMENT_SIGNING].primary().material
    assert set(material) == {"token", "ed25519-public", "mldsa65-public", "mldsa65-wrapped"}
    assert token.pin.encode() not in b"".join(material.values())


def test_without_its_token_nothing_is_signed_and_all_is_read(held, token):
    cli, _ = held
    with token.pulled():
        ran = cli("quarantine", "risk@1", "--reason", "x")
        assert ran.code in (2, 3) and token.pin not in ran.err
        cli("verify", "risk@1", code=0)
        cli("list", code=0)
        cli("log", "verify", code=0)
    cli("quarantine", "risk@1", "--reason", "x", code=0)


def test_the_halves_do_not_fit_another_version(held, monkeypatch):
    """A wrapped seed put in another version's place does not open."""
    from modelkeep.custody.identities import seed_context
    from modelkeep.errors import NotTrusted

    cli, uri = held
    keep = opened(cli, monkeypatch, uri)
    material = keep.keyring([STATEMENT_SIGNING])._compartments[STATEMENT_SIGNING].primary().material
    _, wrapper = keep.premises.token_halves(material["token"].decode())
    assert len(wrapper.unwrap(material["mldsa65-wrapped"], seed_context(keep.premises.trust.origin, 2))) == 32
    with pytest.raises(NotTrusted):
        wrapper.unwrap(material["mldsa65-wrapped"], seed_context(keep.premises.trust.origin, 3))


def test_a_token_identity_is_rotated_in_the_token_and_back_to_software(held, desk):
    cli, uri = held
    cli("keys", "rotate", "statement-signing", code=0)
    rows = {row["name"][-1]: row for row in cli("--json", "trust", "show", code=0).json}
    assert rows["3"]["ed25519"] == f"{uri.partition('?')[0]}/2"
    cli("keys", "compromise", "statement-signing", "3", "--since", "9999", "--reason", "x", code=2)
    back = cli.with_environment(MODELKEEP_KEYS_STATEMENT_SIGNING="")
    ran = back("keys", "rotate", "statement-signing")
    assert ran.code != 0, "the identity that announces its successor must be reachable"
    cli("quarantine", "risk@1", "--reason", "x", code=0)
    back = cli.with_environment(MODELKEEP_KEYS_STATEMENT_SIGNING=f"pkcs11:?{uri.partition('?')[2]}")
    back("keys", "rotate", "statement-signing", code=0)
    cli.with_environment(MODELKEEP_KEYS_STATEMENT_SIGNING="")("reinstate", "risk@1", "--reason", "x", code=0)
    listed = {key["key_id"] for row in cli("--json", "keys", "list", code=0).json for key in row["versions"]}
    place = uri.partition("?")[0]
    assert {f"file:statement-signing/3 + {place}/2", "file:statement-signing/4"} <= listed


def test_another_scheme_is_refused(cli):
    ran = cli.with_environment(MODELKEEP_KEYS_STATEMENT_SIGNING="vault:transit/x")(
        "keys", "rotate", "statement-signing", code=2
    )
    assert "pkcs11:" in ran.line()
