"""The keys verbs as a person and as a script meet them."""

import json

import pytest
from softhsm import Token

from modelkeep.cli.progress import bar


def states(cli):
    families = cli("--json", "keys", "list", code=0).json
    return {key["key_id"]: key["state"] for family in families if family["family"] == "model-kek" for key in family["versions"]}


def test_the_life_of_a_key_on_the_command_line(cli):
    listed = cli("keys", "list", code=0).out
    assert all(word in listed for word in ("FAMILY", "model-kek", "file:model-kek/1", "primary", "statement-signing"))
    done = cli("keys", "rotate", "model-kek", code=0).out
    assert "file:model-kek/2 is the primary key of model-kek; 2 wrapped anew" in done
    assert "file:model-kek/1 is pending-destruction; it is destroyed on 20" in done
    assert "file:model-kek/2" in cli("keys", "inventory", code=0).out
    assert "is disabled." in cli("keys", "cancel", "model-kek", "1", code=0).out
    assert "is decrypt-only." in cli("keys", "enable", "model-kek", "file:model-kek/1", code=0).out
    assert "is disabled." in cli("keys", "disable", "model-kek", "1", code=0).out
    assert "it is destroyed on" in cli("keys", "destroy", "model-kek", "1", code=0).out
    gone = cli("--json", "keys", "destroy", "model-kek", "1", "--now", "--reason", "audit", code=0).json
    assert (gone["key_id"], gone["state"]) == ("file:model-kek/1", "destroyed")
    assert "0 wrapped anew, 2 were already" in cli("keys", "rotate", "model-kek", "--rewrap-only", code=0).out
    kept = cli("--json", "keys", "rotate", "model-kek", "--keep-old", code=0).json
    assert (kept["primary"], kept["retired"]) == ("file:model-kek/3", [])
    assert "file:model-kek/4 is the primary key now" in cli("keys", "new", "model-kek", code=0).out
    assert "sealed anew with fresh data keys" in cli("keys", "compromise", "model-kek", "3", "--reason", "lost", code=0).out
    cli("verify", "risk@1", code=0)


REFUSED = [
    (("keys", "rotate", "nonsense"), 2, "possible are"),
    (("keys", "rotate", "model-kek", "--rewrap-only", "--keep-old"), 2, "one of the two"),
    (("keys", "rotate", "statement-signing", "--keep-old"), 2, "wraps nothing"),
    (("keys", "disable", "model-kek", "1"), 1, "in use"),
    (("keys", "disable", "model-kek", "7"), 2, "no key 7"),
    (("keys", "enable", "model-kek", "1"), 1, "cannot enable"),
    (("keys", "destroy", "model-kek", "1", "--now"), 2, "reason"),
    (("keys", "destroy", "model-kek", "1"), 1, "disable it first"),
    (("keys", "cancel", "model-kek", "x"), 2, "neither a version nor a key id"),
    (("keys", "compromise", "model-kek", "1", "--reason", ""), 2, "say why"),
    (("keys", "compromise", "model-kek", "1", "--reason", "x", "--since", "4"), 2, "--since"),
    (("keys", "move", "nowhere"), 2, "not a key URI"),
    (("keys", "move", "ring"), 1, "already"),
    (("keys", "move", "pkcs11:object=x"), 2, ""),
    (("keys", "new", "nonsense"), 2, "possible are"),
    (("keys", "new", "vault:"), 2, ""),
    (("--server", "https://127.0.0.1:1", "keys", "move", "ring"), 2, "leave out --server"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), REFUSED, ids=lambda each: " ".join(each) if isinstance(each, tuple) else ""
)
def test_refusals_are_one_line(cli, arguments, code, words):
    assert words in cli(*arguments, code=code).line()
    assert states(cli) == {"file:model-kek/1": "primary"}


def test_a_key_in_an_hsm_made_first_and_moved_to_then(cli, bare, subject, tmp_path):
    token = Token()
    place = token.uri("models")
    made = bare("--json", "keys", "new", place, code=0).json["key_id"]
    assert bare("keys", "new", place, code=1).line()
    moved = cli("--json", "keys", "move", place, code=0)
    assert moved.json["primary"] == made and moved.json["changed"] == 2
    assert token.pin not in moved.out + moved.err + cli("log", "show", code=0).out
    assert states(cli) == {"file:model-kek/1": "pending-destruction", made: "primary"}
    cli("export", "risk@1", "--out", str(tmp_path / "risk.onnx"), code=0)
    assert (tmp_path / "risk.onnx").read_bytes() == subject.onnx
    cli("keys", "rotate", "model-kek", code=0)
    cli("keys", "move", "ring", code=0)
    with token.pulled():
        cli("verify", "risk@1", code=0)
        assert "unreachable" in cli("keys", "list", code=0).out


def test_a_keep_begins_with_its_keys_in_an_hsm(bare, desk, subject, tmp_path):
    token = Token()
    made = bare("--json", "init", str(bare.keep), "--model-kek", token.uri("models"), code=0).json
    assert made["password"]
    bare("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    held = {row["key_id"]: row["things"] for row in bare("--json", "keys", "inventory", code=0).json["keys"]}
    assert held[f"{token.uri('models').partition('?')[0]}/1"] == 2 and held["file:model-kek/1"] == 0
    other = bare.with_environment(MODELKEEP_KEYS_MODEL_KEK=token.uri("others"))
    other("init", str(tmp_path / "pinned"), code=0)
    with token.pulled():
        assert not bare("init", str(tmp_path / "never"), "--model-kek", token.uri("models"), code=3).out
    assert not (tmp_path / "never").exists()


def test_a_bar_shows_on_a_terminal_alone(capsys, monkeypatch):
    for terminal, shown in ((False, True), (True, False)):
        monkeypatch.setattr("sys.stderr.isatty", lambda terminal=terminal: terminal, raising=False)
        with bar(shown=shown) as told:
            told("rewrap", 1, 2)
        assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with bar() as told:
        told("rewrap", 1, 2)
        told("reencrypt", 0, 1)
    assert json.dumps("rewrap")
