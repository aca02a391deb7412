"""Who may sign, through the command line: identities of others, rotation and compromise of the signing keys, their files."""

import json

import pytest

from modelkeep.app.keep import Keep
from modelkeep.app.offline import verify_source
from modelkeep.app.premises import Premises
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import GATEWAY_FAMILIES
from modelkeep.custody.trust import TrustRoot, encode_identity
from modelkeep.errors import NotTrusted
from modelkeep.ledger.statements import peek_type

TEAM = StatementSigner("team-b", bytes([7]) * 32, bytes([8]) * 32)


@pytest.fixture
def team(tmp_path):
    path = tmp_path / "team-b.toml"
    path.write_bytes(encode_identity(TEAM.public))
    return str(path)


def shown(cli):
    return {(row["name"].rpartition("/")[2], row["first"]): row for row in cli("--json", "trust", "show", code=0).json}


def root_of(cli):
    return TrustRoot.parse((cli.keep / "trust.toml").read_bytes())


def test_identities_of_others_come_are_limited_and_go(cli, team):
    (own,) = shown(cli).values()
    assert (own["state"], own["may_sign"], own["releases"], own["ed25519"], own["mldsa65"]) == (
        "in force", ["*"], ["*"], "software", "software",
    )  # fmt: skip
    done = cli("--json", "trust", "add", team, "--releases", "fraud-*", "--may-sign", "scan", code=0).json
    assert (done["name"], done["may_sign"], done["releases"], done["in_force"]) == ("team-b", ["scan"], ["fraud-*"], True)
    first = done["log_index"] + 1
    assert shown(cli)["team-b", first]["ed25519"] == "elsewhere"
    limited = cli("--json", "trust", "limit", "team-b", "--releases", "fraud-cards", code=0).json
    assert (limited["may_sign"], limited["releases"]) == (["scan"], ["fraud-cards"])
    cli("trust", "remove", "team-b", "--reason", "dissolved", code=0)
    rows = shown(cli)
    assert rows["team-b", first]["until"] == limited["log_index"] + 1
    assert rows["team-b", limited["log_index"] + 1]["state"] == "ended"
    lines = [row["summary"] for row in cli("--json", "log", "show", code=0).json if row["type"] == "trust"]
    assert lines == ["add", "limit", "remove"]
    cli("log", "verify", code=0)
    cli("trust", "show", code=0)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("trust", "add", "{team}", "--releases", "Fraud"), 2, "pattern"),
        (("trust", "add", "{team}", "--name", "other"), 2, "names no identity"),
        (("trust", "add", "{keep}/modelkeep.toml"), 2, "identity"),
        (("trust", "add", "{keep}/trust.toml"), 1, "already"),
        (("trust", "limit", "team-b", "--releases", "x"), 2, "team-b"),
        (("trust", "limit", "{own}"), 2, "own"),
        (("trust", "remove", "{own}"), 2, "rotate"),
        (("trust", "remove", "nobody"), 2, "nobody"),
        (("trust", "resign", "risk@1"), 1, "stand"),
        (("trust", "resign", "risk@9"), 2, "risk@9"),
        (("keys", "compromise", "statement-signing", "1", "--reason", "x"), 2, "--since"),
        (("keys", "compromise", "statement-signing", "1", "--reason", "x", "--since", "9999"), 2, "9999"),
        (("keys", "compromise", "statement-signing", "7", "--reason", "x", "--since", "0"), 2, "version"),
        (("keys", "compromise", "statement-signing", "1", "--reason", "x", "--since", "soon"), 2, "soon"),
        (("keys", "compromise", "token-signing", "1", "--reason", "x", "--since", "1"), 2, "--since"),
        (("keys", "rotate", "log-signing"), 2, "log-signing"),
        (("keys", "rotate", "audit-log"), 2, "audit-log"),
    ],
)
def test_refusals_are_one_clear_line_and_change_nothing(cli, team, arguments, code, says):
    before = root_of(cli)
    own = before.identities[0].name
    ran = cli(*(part.format(team=team, keep=cli.keep, own=own) for part in arguments))
    assert ran.code == code, ran.err
    assert says in ran.line()
    assert root_of(cli) == before


def test_statement_signing_is_rotated_and_old_readers_follow(cli, tmp_path):
    old = tmp_path / "old-trust.toml"
    old.write_bytes((cli.keep / "trust.toml").read_bytes())
    for version in (2, 3):
        done = cli("--json", "keys", "rotate", "statement-signing", code=0).json
        assert done["primary"].endswith(f"/statement-signing/{version}")
    cli("quarantine", "risk@1", "--reason", "look", code=0)
    cli("log", "verify", code=0)
    releases, *_ = verify_source(str(cli.keep), trust=str(old))
    assert releases.detail == "signatures, entries, tiles, statements"
    cli("verify", "risk@1", code=0)
    assert [each.name.rpartition("/")[2] for each in root_of(cli).identities] == ["1", "2", "3"]
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    assert keep.premises.trust == root_of(cli)
    view = keep.premises.view()
    kinds = [peek_type(parse_envelope(entry)) for entry in view.entries(0, view.checkpoint.size)]
    assert kinds.count("urn:x-modelkeep:trust:v1") == 2


def test_a_process_that_was_handed_its_keys_before_a_rotation_starts_again(cli):
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    handed = Keyring.receive(keep.keyring(GATEWAY_FAMILIES).hand_over(GATEWAY_FAMILIES))
    cli("keys", "rotate", "statement-signing", code=0)
    cli("quarantine", "risk@1", "--reason", "x", code=0)
    again = Premises.open(cli.keep, lambda: b"", handed)
    assert str(next(again.registry().book.releases()).state) == "quarantined"
    cli("keys", "compromise", "statement-signing", "2", "--since", "0", "--reason", "laptop lost", code=0)
    with pytest.raises(NotTrusted, match="start it again"):
        Premises.open(cli.keep, lambda: b"", handed)


def test_a_compromise_from_the_command_line(cli, subject):
    before = cli("--json", "log", "show", "--last", "1", code=0).json[0]["index"] + 1
    done = cli("--json", "keys", "compromise", "statement-signing", "1", "--since", "0", "--reason", "laptop lost", code=0).json
    assert (done["gone"], done["held"]) == (["risk@1"], [])
    assert done["primary"].endswith("/2")
    assert cli("--json", "list", code=0).json == []
    assert "laptop lost" in json.dumps(cli("--json", "incident", "list", code=0).json)
    cli("promote", "risk@1", code=2)
    again = cli("--json", "trust", "resign", "risk@1", code=0).json
    assert (again["state"], again["log_index"] > before) == ("published", True)
    cli("promote", "risk@1", code=0)
    cli("verify", "risk@1", code=0)
    cli("log", "verify", code=0)
    rows = shown(cli)
    assert (rows["1", 0]["state"], rows["1", 0]["until"], rows["2", 0]["state"]) == ("compromised", 0, "in force")
    states = {key["key_id"]: key["state"] for row in cli("--json", "keys", "list", code=0).json for key in row["versions"]}
    assert (states["file:statement-signing/1"], states["file:statement-signing/2"]) == ("compromised", "primary")


def test_a_compromise_since_a_time(cli):
    for since, gone in (("2100-01-01T00:00:00Z", []), ("2000-01-01", ["risk@1"])):
        verb = ("keys", "compromise", "statement-signing", "1", "--reason", "x")
        assert cli("--json", *verb, "--since", since, code=0).json["gone"] == gone


def test_token_signing_is_rotated_and_every_record_signed_again(cli):
    key = cli("--json", "key", "issue", "alice", code=0).json
    before = root_of(cli)
    done = cli("--json", "keys", "rotate", "token-signing", code=0).json
    assert (done["primary"], done["changed"] >= 4) == ("token-signing/2", True)
    after = root_of(cli)
    assert (after.token_key != before.token_key, after.token_key_before) == (True, b"")
    assert key["id"] in {row["id"] for row in cli("--json", "key", "list", code=0).json}
    cli("user", "disable", "alice", code=0)
    cli("keys", "compromise", "token-signing", "2", "--reason", "seen in a log", code=0)
    cli("keys", "compromise", "token-signing", "2", "--reason", "seen in a log", code=0)
    states = {k["key_id"]: k["state"] for row in cli("--json", "keys", "list", code=0).json for k in row["versions"]}
    assert (states["file:token-signing/2"], states["file:token-signing/3"]) == ("compromised", "primary")


def test_the_certificate_authority_is_rotated_and_clients_may_change_over(cli):
    path = cli.keep / "tls" / "ca.pem"
    first = path.read_bytes()
    cli("keys", "rotate", "tls-ca", code=0)
    second = path.read_bytes()
    assert second.endswith(first) and second.count(b"BEGIN CERTIFICATE") == 2
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    leaf = keep.premises.issue_leaf(keep.keyring(["tls-ca"]))
    assert leaf.chain.count(b"BEGIN CERTIFICATE") == 2
    path.write_bytes(first)  # as if cut off between key and certificate
    with pytest.raises(NotTrusted, match="certificate authority"):
        keep.premises.issue_leaf(keep.keyring(["tls-ca"]))
    cli("keys", "rotate", "tls-ca", code=0)
    assert path.read_bytes() != second and path.read_bytes().endswith(first)
    cli("keys", "compromise", "tls-ca", "2", "--reason", "copied", code=0)
    assert path.read_bytes().count(b"BEGIN CERTIFICATE") == 1
