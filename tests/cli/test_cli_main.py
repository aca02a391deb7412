"""The command line as a user meets it: help, exit codes, --json, and one clear line when something is refused."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import click
import numpy as np
import pytest

from modelkeep import errors
from modelkeep.cli.main import cli as root
from modelkeep.cli.output import Output, exit_code
from modelkeep.errors import OverBudget


def commands(group=root, path=()):
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


def kinds(base=errors.ModelkeepError):
    """Every class of the error tree; parsers have subclasses of their own, which are told as their base is."""
    if base.__module__ == errors.__name__:
        yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_verb_explains_itself_with_an_example(bare, path):
    for flag in ("--help", "-h"):
        ran = bare(*path, flag, code=0)
        assert f"Usage: modelkeep {' '.join(path)}" in ran.out and "Example: modelkeep" in ran.out and not ran.err


@pytest.mark.parametrize("words", [("--help",), ("scan", "."), ("--json", "scan", ".")], ids=" ".join)
def test_an_answer_that_cannot_be_printed_is_one_line(words, tmp_path):
    (tmp_path / "some.file").write_text("x")
    with Path("/dev/full").open("wb") as full:
        command = [Path(sys.executable).with_name("modelkeep"), *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 3 and done.stderr == b"modelkeep: error: cannot print the answer: No space left on device\n"


def test_groups_and_version(bare):
    assert "publish" in bare("--help", code=0).out
    assert bare("--version", code=0).out.startswith("modelkeep, version ")
    assert "issue" in bare("key", "--help", code=0).out


EXIT = {
    errors.ModelkeepError: 1, errors.Refused: 1, errors.Unauthenticated: 1, errors.StepUpRequired: 1, errors.Denied: 1,
    errors.ReviewRequired: 1, errors.NotTrusted: 1, errors.NotAdmitted: 1, errors.Quarantined: 1, errors.Conflict: 1,
    errors.Invalid: 2, errors.TooLarge: 2, errors.Missing: 2, errors.OverBudget: 3, errors.Unavailable: 3, errors.Sealed: 3,
    errors.WorkRequired: 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", list(kinds()), ids=lambda kind: kind.code)
def test_every_error_has_an_exit_code_and_one_line(capsys, kind):
    error = OverBudget("why and what to do", 1.0) if kind is OverBudget else kind("why and what to do")
    assert exit_code(error) == EXIT[kind]
    assert Output(json=False).fail(error) == EXIT[kind]
    out, err = capsys.readouterr()
    assert not out and err.endswith("why and what to do\n") and err.count("\n") == 1
    Output(json=True).fail(error)
    out, err = capsys.readouterr()
    assert not out and json.loads(err) == {"code": kind.code, "message": "why and what to do"}


USAGE = [
    ((), "Usage"),
    (("no-such-verb",), "No such command"),
    (("publish",), "Missing option"),
    (("publish", "m.onnx"), "--name"),
    (("quarantine", "risk@1"), "--reason"),
    (("key", "issue", "alice", "--quota", "0"), "0"),
    (("key", "issue", "alice", "--quota", "many"), "many"),
    (("review", "alice", "--outcome", "maybe", "--reason", "x"), "maybe"),
    (("log", "show", "--last", "0"), "0"),
    (("list", "--no-such-option"), "--no-such-option"),
]


@pytest.mark.parametrize(
    ("arguments", "words"), USAGE[1:], ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_usage_errors_are_2_and_say_what_is_wrong(bare, arguments, words):
    ran = bare(*arguments, code=2)
    assert words in ran.err and not ran.out
    told = bare(*arguments, "--json", code=2)
    document = json.loads(told.err)
    assert document["code"] == "invalid" and words in document["message"] and not told.out


def test_no_verb_shows_the_help(bare):
    ran = bare(code=2)
    assert "Usage: modelkeep" in ran.out + ran.err


REFUSALS = [
    (("show", "risk@9"), 2, "no release risk@9"),
    (("show", "risk"), 2, "expected name@version"),
    (("show", "risk@0"), 2, "expected name@version"),
    (("show", "../risk@1"), 2, "not a model name"),
    (("promote", "risk@1"), 1, "promoted"),
    (("reinstate", "risk@1", "--reason", "x"), 1, "promoted"),
    (("user", "add", "alice", "--role", "analyst"), 1, "alice"),
    (("user", "add", "../eve", "--role", "analyst"), 2, "not a"),
    (("user", "disable", "nobody"), 2, "nobody"),
    (("user", "disable", "admin"), 1, "admin"),
    (("user", "role", "admin", "--role", "analyst"), 1, "admin"),
    (("key", "issue", "nobody"), 2, "nobody"),
    (("key", "issue", "alice", "--model", "../x"), 2, "not a model name"),
    (("key", "revoke", "nothing"), 2, "nothing"),
    (("key", "rotate", "nothing"), 2, "nothing"),
    (("review", "nobody", "--outcome", "cleared", "--reason", "x"), 2, "nobody"),
    (("incident", "resolve", "nothing", "--note", "x"), 2, "nothing"),
    (("log", "prove", "risk@9"), 2, "risk@9"),
    (("export", "risk@9", "--out", "x"), 2, "risk@9"),
    (("up", "--model", "risk"), 2, "expected name@version"),
    (("--server", "https://127.0.0.1:1", "list"), 1, "not logged in"),
    (("--server", "http://127.0.0.1:1", "login", "--user", "x", "--password-file", "PASS"), 2, "https://"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x", "--password-file", "PASS"), 3, "cannot reach"),
    (("--server", "https://[::1", "login", "--user", "x", "--password-file", "PASS"), 2, "address"),
    (("--server", "https://h:port", "login", "--user", "x", "--password-file", "PASS"), 2, "address"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x", "--password-file", "BINARY"), 2, "UTF-8"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x", "--password-file", "PASS", "--ca", "PASS"), 2, "PEM"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x", "--password-file", "PASS", "--ca", "EMPTY"), 2, "PEM"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x", "--password-file", "NONE"), 2, "no file"),
    (("--server", "https://127.0.0.1:1", "login", "--user", "x"), 2, "--password-file"),
    (("--server", "https://127.0.0.1:1", "logout"), 2, "not logged in"),
    (("--server", "https://127.0.0.1:1", "up"), 2, "leave out --server"),
    (("--server", "https://127.0.0.1:1", "keys", "passwd"), 2, "leave out --server"),
    (("login", "--user", "x"), 2, "--server"),
    (("logout",), 2, "--server"),
    (("--passphrase-file", "NONE", "keys", "list"), 2, "no file"),
    (("--passphrase-file", ".", "keys", "list"), 2, "is a folder"),
    (("--passphrase-file", "WRONG", "keys", "list"), 1, "wrong passphrase"),
    (("--passphrase-file", "EMPTY", "keys", "list"), 2, "passphrase is empty"),
    (("--passphrase-file", "BINARY", "keys", "list"), 1, "wrong passphrase"),
    (("--passphrase-file", "", "keys", "list"), 2, "--passphrase-file"),
    (("keys", "recover", "--identity-file", "PASS", "--new-passphrase-file", "PASS"), 2, "recovery identity"),
    (("keys", "recover", "--identity-file", "BINARY", "--new-passphrase-file", "PASS"), 2, "recovery identity"),
    (("keys", "recover", "--identity-file", "PASS", "--new-passphrase-file", "EMPTY"), 2, "8 characters"),
    (("keys", "passwd", "--new-passphrase-file", "EMPTY"), 2, "8 characters"),
    (("log", "check", "PASS", "--trust", "PASS"), 2, "trust"),
    (("log", "check", "PASS", "--trust", "BINARY"), 2, "trust"),
    (("log", "verify", "--offline", "/nonexistent"), 2, "trust.toml"),
    (("trace", "PASS", "--model", "risk@1", "--probes", "PASS"), 2, "not an npz"),
    (("calibrate", "risk@1"), 2, "say over what"),
    (("calibrate", "risk@9", "--afresh"), 2, "no release risk@9"),
    (("calibrate", "risk@1", "--account", "nobody"), 2, "no account"),
    (("calibrate", "risk@1", "--tool", "PASS"), 2, "not an npz"),
    (("init", "KEEP"), 1, "nothing was touched"),
    (("init", "PASS/below"), 3, "cannot make a keep"),
    (("init", "FRESH", "--admin", "../x"), 2, "not a"),
    (("publish", "NONE", "--name", "m", "--reference", "REF"), 2, "no file"),
    (("publish", ".", "--name", "m", "--reference", "REF"), 2, "is a folder"),
    (("publish", "MODEL", "--name", "../../etc/m", "--reference", "REF"), 2, "not a model name"),
    (("publish", "MODEL", "--name", "A", "--reference", "REF"), 2, "not a model name"),
    (("publish", "MODEL", "--name", "m", "--reference", "PASS"), 2, "not an npz"),
]  # fmt: skip


@pytest.fixture
def words(cli, desk, tmp_path):
    (tmp_path / "binary").write_bytes(bytes(range(128, 256)))
    (tmp_path / "empty").write_bytes(b"")
    places = {
        "PASS": desk / "pass", "WRONG": desk / "wrong", "MODEL": desk / "model.onnx", "REF": desk / "ref.npz",
        "NONE": tmp_path / "none", "BINARY": tmp_path / "binary", "EMPTY": tmp_path / "empty", "KEEP": cli.keep,
        "FRESH": tmp_path / "fresh", "PASS/below": desk / "pass" / "below",
    }  # fmt: skip
    return lambda arguments: [str(places.get(word, word)) for word in arguments]


@pytest.mark.parametrize(
    ("arguments", "code", "said"), REFUSALS, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_refusals_are_one_clear_line_with_the_right_exit_code(cli, words, tmp_path, arguments, code, said):
    cli = cli.with_environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    ran = cli(*words(arguments))
    assert ran.code == code, ran.out + ran.err
    assert said in ran.line() and not ran.out
    assert not (tmp_path / "fresh").exists(), "nothing half-written"


def test_json_stands_anywhere_and_errors_are_json_too(cli):
    before, after, inside = cli("--json", "list"), cli("list", "--json"), cli("user", "--json", "list")
    assert before.json == after.json and before.json[0]["ref"] == "risk@1"
    assert {row["name"] for row in inside.json} == {"admin", "alice", "bob"}
    failed = cli("show", "risk@9", "--json", code=2)
    assert json.loads(failed.err)["code"] == "missing" and not failed.out


@pytest.mark.parametrize(
    "arguments",
    [
        ("list",), ("show", "risk@1"), ("verify", "risk@1"), ("status",), ("integrity",), ("user", "list"), ("key", "list"),
        ("keys", "list"), ("incident", "list"), ("log", "show"), ("log", "verify"), ("log", "prove", "risk@1"), ("upgrade",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_verbs_that_look_print_text_and_json(cli, arguments):
    text = cli(*arguments, code=0)
    assert text.out.strip() and not text.err and "Traceback" not in text.out
    if arguments[:2] != ("log", "prove"):  # a proof is a document of its own, whatever --json says
        assert cli(*arguments, "--json", code=0).json is not None


def test_what_a_tool_would_cost_is_told_before_it_is_logged(cli, desk):
    size = len(cli("log", "show", "--json", code=0).json)
    told = cli("calibrate", "risk@1", "--tool", str(desk / "ref.npz"), "--dry-run", code=0)
    rows = len(np.load(desk / "ref.npz")["x"])
    assert told.out.startswith(f"risk@1: calibrated over the tool {desk / 'ref.npz'} ({rows} rows) (nothing was logged)\n")
    assert "found within 500" in told.out and "synthetic+far" in told.out
    assert len(cli("log", "show", "--json", code=0).json) == size
    done = cli("calibrate", "risk@1", "--tool", str(desk / "ref.npz"), "--reason", "a test", "--json", code=0).json
    assert (
        done["log_index"] >= size
        and [row["score"] for row in done["scores"]][-3:] == ["trees", "step", "beside"]
        and len(done["costs"]) == 5
    )
    assert done["tools"] == [{"digest": f"sha256:{hashlib.sha256((desk / 'ref.npz').read_bytes()).hexdigest()}", "rows": rows}]
    shown = cli("show", "risk@1", code=0)
    assert "bounds over 1 tools and 0 accounts: a test" in shown.out
    none = cli("calibrate", "risk@1", "--everyone", "--since", "2026-01-01", "--until", "2026-01-02", "--dry-run", code=0)
    assert "over 0 accounts with 0 recorded queries" in none.out


def test_the_way_of_a_release_and_of_a_key(cli, desk, subject, tmp_path):
    out = tmp_path / "again.onnx"
    cli("export", "risk@1", "--out", str(out), code=0)
    assert out.read_bytes() == subject.onnx and out.stat().st_mode & 0o777 == 0o600
    assert "exists" in cli("export", "risk@1", "--out", str(out), code=2).line()
    assert cli("quarantine", "risk@1", "--reason", "test", "--json", code=0).json["state"] == "quarantined"
    assert "quarantine" in cli("export", "risk@1", "--out", str(tmp_path / "no"), code=1).line()
    assert not (tmp_path / "no").exists()
    cli("reinstate", "risk@1", "--reason", "test", code=0)
    cli("promote", "risk@1", code=0)
    cli("retire", "risk@1", "--reason", "test", code=0)
    assert "retired" in cli("promote", "risk@1", code=1).line()
    key = cli("key", "issue", "alice", "--json", code=0).json
    file = tmp_path / "key"
    cli("key", "rotate", key["id"], "--overlap", "0", "--out", str(file), code=0)
    assert file.read_text().startswith("mk_") and file.stat().st_mode & 0o777 == 0o600
    states = {row["id"]: row["state"] for row in cli("key", "list", "--json").json}
    assert sorted(states.values()) == ["active", "expired"] or sorted(states.values()) == ["active", "replaced"]
    proof = tmp_path / "proof"
    cli("log", "prove", "risk@1", "--out", str(proof), code=0)
    assert "proven" in cli("log", "check", str(proof), "--trust", str(cli.keep / "trust.toml"), code=0).out
    bent = proof.read_bytes().replace(b"\n", b"\n ", 1)
    proof.write_bytes(bent)
    assert cli("log", "check", str(proof), "--trust", str(cli.keep / "trust.toml")).code in (1, 2)


def test_a_new_passphrase_and_recovery(cli, template, tmp_path, desk):
    made = json.loads((template.parent / "init.json").read_bytes())
    (tmp_path / "new").write_text("another passphrase of words")
    cli("keys", "passwd", "--new-passphrase-file", str(tmp_path / "new"), code=0)
    assert "wrong passphrase" in cli("keys", "list", code=1).line()
    cli("--passphrase-file", str(tmp_path / "new"), "keys", "list", code=0)
    (tmp_path / "identity").write_text(made["recovery"] + "\n")
    cli("keys", "recover", "--identity-file", str(tmp_path / "identity"), "--new-passphrase-file", str(desk / "pass"), code=0)
    cli("keys", "list", code=0)
    assert "wrong passphrase" in cli("--passphrase-file", str(tmp_path / "new"), "keys", "list", code=1).line()
    cli("verify", "risk@1", code=0)


def test_a_reader_that_leaves_is_no_error(cli):
    import subprocess
    import sys

    environment = {**os.environ, "MODELKEEP_DIR": str(cli.keep), "MODELKEEP_PASSPHRASE_FILE": str(cli.passphrase_file)}
    running = subprocess.Popen(
        [sys.executable, "-m", "modelkeep", "log", "show"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    running.stdout.close()
    err = running.stderr.read()
    running.stderr.close()
    assert running.wait(60) == 0 and err == b""
