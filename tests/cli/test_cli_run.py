"""``modelkeep run`` from the command line, on a keep: the statement in the log, signed code, and what is said when it fails."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import pytest
from isolating import where_possible
from repositories import Repository, SshKey

from modelkeep.app.keep import Keep
from modelkeep.app.runresults import RunRecorded
from modelkeep.app.verbs import call, table
from modelkeep.core.values import Principal, Role, digest_hex, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.provenance import CodeReport, OutputReport, RunReport
from modelkeep.custody.salting import salted
from modelkeep.errors import Denied, Invalid, NotTrusted
from modelkeep.ledger.attestations import TrainingRun
from modelkeep.ledger.statements import parse_statement, predicate_of

SHELL = ("--data", "data", "--output", "model.bin", "--", "sh", "-c", "cat data/a.csv > model.bin")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A committed project, and the current folder."""
    repository = Repository.new(tmp_path / "project", **{".gitignore": "data\n", "train.py": "train\n"})
    repository.write("data/a.csv", "a")
    monkeypatch.chdir(repository.folder)
    return repository


def entries(cli):
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().rstrip())
    view = keep.premises.view()
    return [parse_statement(parse_envelope(entry).unverified_payload()) for entry in view.entries(0, view.checkpoint.size)]


def runs(cli):
    return [predicate_of(one, TrainingRun) for one in entries(cli) if one.predicate_type == TrainingRun.TYPE]


def settings(cli, **values):
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    path = cli.keep / "modelkeep.toml"
    path.write_text(path.read_text() + f"\n[provenance]\n{lines}")


TRAINING = """
import sys
import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

x, y = np.load("data/x.npy"), np.load("data/y.npy")
w, b = np.zeros(x.shape[1]), 0.0
for _ in range(200):
    p = 1 / (1 + np.exp(-(x @ w + b)))
    w, b = w - 0.5 * x.T @ (p - y) / len(y), b - 0.5 * float(np.mean(p - y))
weights = np.stack([-w / 2, w / 2], axis=1).astype(np.float32)
graph = helper.make_graph(
    [helper.make_node("Gemm", ["x", "w", "b"], ["scores"]), helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1)],
    "risk",
    [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, x.shape[1]])],
    [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2])],
    [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.array([-b / 2, b / 2], np.float32), "b")],
)
save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), sys.argv[1])
"""


def test_a_model_is_trained_recorded_and_published_under_one_digest(cli, project, tmp_path):
    rng = np.random.default_rng(7)
    rows = rng.normal(size=(500, 4))
    np.save("data/x.npy", rows[:200])
    np.save("data/y.npy", (rows[:200].sum(axis=1) > 0).astype(float))
    np.save("data/unused.npy", rows)
    np.savez(tmp_path / "ref.npz", x=rows[200:])
    project.write("train.py", TRAINING)
    project("remote", "add", "origin", "https://ada:secret@git.acme.eu/risk.git")
    commit = project.commit()
    envelope = tmp_path / "run.jsonl"
    command = (sys.executable, "train.py", "model.onnx", "--token", "s3cr3t")
    options = ("--data", "loans@3=data", "--output", "model.onnx", "--param", "lr=0.5", "--out", str(envelope))
    said = cli("run", *options, "--", *command, code=0)
    assert "loans@3/x.npy, loans@3/y.npy" in said.out
    assert commit[:12] in said.out

    cli("publish", "model.onnx", "--name", "trained", "--reference", str(tmp_path / "ref.npz"), code=0)
    digest = digest_of(Path("model.onnx").read_bytes())
    about = {one.predicate_type.split(":")[2] for one in entries(cli) if one.subject[0].digest == digest}
    assert {"training-run", "release", "scan"} <= about
    shown = cli("log", "show", code=0).out
    assert f"2 inputs, commit {commit[:12]}" in shown
    assert "trained@1" in shown
    cli("log", "verify", code=0)

    (run,) = runs(cli)
    assert run.command == (*command[:4], "***")
    assert (run.code.commit, run.code.dirty, run.code.repository) == (commit, False, "https://git.acme.eu/risk.git")
    assert run.parameters == {"lr": "0.5"}
    assert run.environment.python == ".".join(map(str, sys.version_info[:3]))
    assert {"numpy", "onnx", "modelkeep"} <= set(run.environment.packages)
    assert run.outputs == {"model.onnx": digest}
    salt = Keep.open(cli.keep, cli.passphrase_file.read_bytes().rstrip()).premises.data_salts().existing("loans@3")
    assert {one.name: one.digest for one in run.inputs} == {
        f"loans@3/{name}.npy": salted(salt, digest_of(Path(f"data/{name}.npy").read_bytes())) for name in "xy"
    }
    raw = b"".join(path.read_bytes() for path in (cli.keep / "log").rglob("*") if path.is_file())
    assert digest_hex(digest_of(Path("data/x.npy").read_bytes())).encode() not in raw
    (line,) = envelope.read_bytes().splitlines()
    assert parse_statement(parse_envelope(line).unverified_payload()).subject[0].digest == digest


def test_json(cli, project):
    done = cli("run", "--json", *SHELL, code=0)
    assert done.json["inputs"] == ["data/a.csv"]
    assert [(one["name"], one["digest"]) for one in done.json["models"]] == [("model.bin", digest_of(b"a"))]
    assert done.json["command"] == ["sh", "-c", "cat data/a.csv > model.bin"]


def test_json_after_the_dashes_is_the_commands(cli, project):
    done = cli("run", "--output", "model.bin", "--", "sh", "-c", 'echo "$1" > model.bin', "sh", "--json", code=0)
    assert Path("model.bin").read_text() == "--json\n"
    assert "log entry" in done.out


def test_a_failed_command_gives_its_own_exit_code(cli, project):
    done = cli("run", "--output", "model.bin", "--", "sh", "-c", "exit 42", code=42)
    assert done.line() == "modelkeep: refused: the command ended with 42: nothing was recorded"
    done = cli("--json", "run", "--output", "model.bin", "--", "sh", "-c", "kill $$", code=143)
    assert json.loads(done.err) == {"code": "refused", "message": "SIGTERM ended the command: nothing was recorded"}
    assert runs(cli) == []


BAD = {
    "nothing to run": (2, (), "no command"),
    "no output": (2, ("--", "true"), "--output"),
    "no such input": (2, ("--input", "nothing", "--output", "m", "--", "true"), "there is no file or folder nothing"),
    "an input whose name is too long": (2, ("--input", "x=" + "a" * 300, "--output", "m", "--", "true"), "or folder aaa"),
    "data whose name is too long": (2, ("--data", "a" * 5000, "--output", "m", "--", "true"), "no file or folder aaa"),
    "an output folder whose name is too long": (3, ("--output-dir", "a" * 300, "--", "true"), "cannot look at aaa"),
    "no such command": (2, ("--output", "m", "--", "no-such-command"), "no program"),
    "a parameter without a value": (2, ("--param", "lr", "--output", "m", "--", "true"), "NAME=VALUE"),
    "a parameter twice": (2, ("--param", "a=1", "--param", "a=2", "--output", "m", "--", "true"), "NAME=VALUE"),
    "a missing output": (1, ("--output", "m", "--", "true"), "did not write m"),
    "an output that is there": (2, ("--out", "train.py", "--output", "m", "--", "true"), "exists"),
    "a report that is not there": (2, ("--from", "nothing"), "no file"),
    "a report that is none": (2, ("--from", "train.py"), "no report"),
    "a report and a command": (2, ("--from", "train.py", "--", "true"), "leave out the command"),
}


@pytest.mark.parametrize(("code", "arguments", "said"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_line(cli, project, code, arguments, said):
    assert said in cli("run", *arguments, code=code).line()


def test_a_wrong_passphrase_is_found_before_the_command(cli, project, desk):
    refused = cli("--passphrase-file", str(desk / "wrong"), "run", "--output", "m", "--", "touch", "it-ran", code=1)
    assert "passphrase" in refused.line()
    assert not Path("it-ran").exists()


def test_a_run_that_the_keep_could_not_take_is_kept_and_recorded_later(cli, project):
    """The log is away when the command ends; hours of training are not lost."""
    log = cli.keep / "log" / "releases"
    script = f"cat data/a.csv > model.bin; mv {log} {log}-away"
    failed = cli("run", "--data", "data", "--output", "model.bin", "--", "sh", "-c", script)
    assert failed.code in (1, 2, 3)
    Path(f"{log}-away").rename(log)
    (kept,) = Path().glob("modelkeep-run-*.json")
    assert f"modelkeep run --from {kept}" in failed.err
    assert kept.stat().st_mode & 0o777 == 0o600
    assert runs(cli) == []
    cli("run", "--from", str(kept), code=0)
    (run,) = runs(cli)
    assert run.outputs == {"model.bin": digest_of(b"a")}


# -- signed code --


@pytest.fixture
def ada(tmp_path):
    return SshKey.new(tmp_path / "ada", "ada@acme.eu")


def test_who_signed_the_code_is_recorded(cli, project, ada):
    settings(cli, allowed_signers=str(ada.signers))
    ada.sign(project)
    assert "signed by ada@acme.eu" in cli("run", *SHELL, code=0).out
    (run,) = runs(cli)
    assert (run.code.signature, run.code.signer) == ("good", "ada@acme.eu")


def test_a_keep_may_require_signed_code(cli, project, ada, tmp_path):
    (cli.keep / "signers").write_text(ada.signers.read_text())
    settings(cli, allowed_signers="signers", require_signed_code=True)
    assert "is not a signed commit" in cli("run", *SHELL, code=1).line()
    assert not Path("model.bin").exists()
    SshKey.new(tmp_path / "eve", "ada@acme.eu").sign(project)
    assert "nobody whose key" in cli("run", *SHELL, code=1).line()
    ada.sign(project)
    cli("run", *SHELL, code=0)
    project.write("train.py", "changed\n")
    assert "not committed" in cli("run", "--allow-dirty", *SHELL, code=1).line()
    assert "not a signed commit" in cli("run", "--no-code", *SHELL, code=1).line()
    assert len(runs(cli)) == 1


def test_a_commit_that_is_not_the_one_named_is_refused(cli, project, ada, template, tmp_path):
    """Somebody who reports a run himself, without this command, cannot lend it another commit's signature."""
    settings(cli, allowed_signers=str(ada.signers), require_signed_code=True)
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().rstrip())
    commit = ada.sign(project)
    keep.run_check(code=CodeReport("", commit, project.raw()))
    with pytest.raises(Invalid, match="another object"):
        keep.run_check(code=CodeReport("", "0" * 40, project.raw()))
    with pytest.raises(Invalid, match="another object"):
        keep.run_check(code=CodeReport("", commit, project.raw() + b"x"))
    with pytest.raises(NotTrusted, match="does not hold"):
        changed = project.raw().replace(b"work", b"play")
        keep.run_check(code=CodeReport("", name_of(changed), changed))


def test_who_may_record_runs_and_in_which_form(cli, project):
    """The form is that of the admin API: one MessagePack map."""
    cli("run", *SHELL, code=0)
    (kept,) = runs(cli)
    report = RunReport(
        kept.command, CodeReport(), kept.environment, kept.machine, 5, 9, outputs=(OutputReport("m", digest_of(b"m")),)
    )
    keep, verbs = Keep.open(cli.keep, cli.passphrase_file.read_bytes().rstrip()), table(Keep)
    body = msgspec.msgpack.encode({"report": report})
    for role in Role:
        actor = keep.acting_as(Principal("carol", "sub_carol", (role,), "session:1"))
        if role in (Role.DATA_SCIENTIST, Role.ADMIN):
            done = msgspec.msgpack.decode(call(verbs, actor, "run_record", body), type=RunRecorded)
            assert [model.name for model in done.models] == ["m"]
        else:
            with pytest.raises(Denied):
                call(verbs, actor, "run_record", body)
    assert [run.actor for run in runs(cli)] == ["operator@local", "sub_carol", "sub_carol"]
    assert len({run.run for run in runs(cli)}) == 3
    for wrong in (b"\x81\xa6report\x80", msgspec.msgpack.encode({"report": {**msgspec.to_builtins(report), "started": "x"}})):
        with pytest.raises(Invalid):
            call(verbs, keep, "run_record", wrong)
    with pytest.raises(Invalid, match="future"):
        keep.run_record(report=msgspec.structs.replace(report, ended=1 << 62))


def name_of(raw):
    done = subprocess.run(["git", "hash-object", "-t", "commit", "--stdin"], input=raw, capture_output=True, check=True)
    return done.stdout.decode().strip()


# -- isolated --

ISOLATED = ("--isolate", "--memory", "1G", "--time", "10m", *SHELL)


@where_possible
def test_an_isolated_run_says_so_in_its_statement(cli, project):
    done = cli("run", "--cpus", "1", "--disk", "1G", *ISOLATED, code=0)
    assert "no network; at most 1,073,741,824 bytes of memory, 1,073,741,824 bytes to write, 1 processors, 600 s" in done.out
    (run,) = runs(cli)
    assert run.isolation.engine.startswith("bubblewrap 0.")
    said = run.isolation
    assert (said.network, said.memory, said.seconds, said.processes) == ("none", 1 << 30, 600, 4096)
    assert Path("model.bin").read_text() == "a"


@where_possible
def test_a_sealed_data_set_goes_into_an_isolated_run_and_is_on_its_lineage(cli, project, tmp_path):
    rows = tmp_path / "loans.csv"
    rows.write_text("age,paid\n31,1\n64,0\n")
    cli("data", "add", "loans", str(rows), "--purpose", "scoring", code=0)
    training = ("--output", "model.bin", "--", "sh", "-c", "cat /data/loans@1/loans.csv > model.bin")
    for refused in (("--isolate", "--sealed", "loans@1"), ("--isolate", "--sealed", "loans@1", "--purpose", "marketing")):
        assert "'data.read' on dataset loans" in cli("run", *refused, *training, code=1).line()
    assert "say --isolate" in cli("run", "--sealed", "loans@1", "--purpose", "scoring", *training, code=2).line()
    assert not Path("model.bin").exists()
    cli("run", "--isolate", "--sealed", "loans@1", "--purpose", "scoring", *training, code=0)
    assert Path("model.bin").read_bytes() == rows.read_bytes()
    (run,) = runs(cli)
    assert [one.name for one in run.inputs] == ["loans@1/loans.csv"]
    shown = cli("data", "lineage", "loans@1", code=0).out
    assert f"run {run.run[:12]}" in shown and digest_of(rows.read_bytes())[:19] in shown  # what it wrote is what it read


@where_possible
def test_json_of_an_isolated_run_has_standard_output_to_itself(cli, project):
    command = ("--output", "model.bin", "--", "sh", "-c", "echo printed; echo x > model.bin")
    done = cli("--json", "run", "--isolate", *command, code=0)
    assert json.loads(done.out)["models"][0]["name"] == "model.bin"


@where_possible
def test_a_command_that_takes_too_long_is_stopped_and_not_recorded(cli, project):
    command = ("--output", "model.bin", "--", "sh", "-c", "echo x > model.bin; sleep 600")
    assert "it ran longer than 1 s: nothing was recorded" in cli("run", "--isolate", "--time", "1s", *command, code=137).line()
    assert not Path("model.bin").exists()
    assert runs(cli) == []


@where_possible
def test_a_keep_may_require_isolated_runs(cli, project):
    settings(cli, require_isolated=True)
    assert "say --isolate" in cli("run", *SHELL, code=1).line()
    assert "say --isolate" in cli("run", "--network", *ISOLATED, code=1).line()
    assert not Path("model.bin").exists()
    cli("run", *ISOLATED, code=0)
    said = runs(cli)[0]
    outputs = (OutputReport("m", digest_of(b"m")),)
    report = RunReport(said.command, CodeReport(), said.environment, said.machine, 5, 9, outputs=outputs)
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().rstrip())
    for isolation in (None, msgspec.structs.replace(said.isolation, network="host")):
        with pytest.raises(NotTrusted, match="isolated"):
            keep.run_record(report=msgspec.structs.replace(report, isolation=isolation))


def test_where_nothing_can_be_isolated_nothing_is_run(cli, project, tmp_path):
    (tmp_path / "bin").mkdir()
    for name in ("git", "sh", "cat"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name))
    refused = cli.with_environment(PATH=str(tmp_path / "bin"))("run", *ISOLATED, code=3)
    assert "install bubblewrap" in refused.line()
    assert not Path("model.bin").exists()


def test_code_that_nobody_known_signed_is_not_run_when_that_is_asked_for(cli, project, ada):
    (cli.keep / "signers").write_text(ada.signers.read_text())
    settings(cli, allowed_signers="signers")
    assert "its signature is none" in cli("run", "--require-signed-code", *SHELL, code=1).line()
    ada.sign(project)
    project.write("train.py", "changed\n")
    assert "its signature is good, with changes" in cli("run", "--require-signed-code", "--allow-dirty", *SHELL, code=1).line()
    assert not Path("model.bin").exists()
    project("checkout", "-q", "train.py")
    cli("run", "--require-signed-code", *SHELL, code=0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--memory", "8G"), "--memory limits an isolated run: say --isolate"),
        (("--network",), "--network limits an isolated run"),
        (("--env", "A"), "--env limits an isolated run"),
        (("--isolate", "--memory", "8 GB"), "is no size"),
        (("--isolate", "--time", "1.5h"), "is no duration"),
        (("--isolate", "--env", "A=B"), "is no name of a variable"),
        (("--isolate", "--env", "LD_PRELOAD"), "is for the linker"),
    ],
)
def test_what_cannot_limit_a_run_is_one_line(cli, project, arguments, said):
    assert said in cli("run", *arguments, *SHELL, code=2).line()
