"""Two organisations, each with a keep and a witness in a process of its own: they witness each other, and a fork is caught."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from commandline import Cli, copy_keep

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key
from modelkeep.app.keep import Keep
from modelkeep.errors import Missing, NotTrusted
from modelkeep.ledger.cosigned import cosigners
from modelkeep.ledger.proofs import Proof
from modelkeep.ledger.quorum import parse_policy

SECONDS = 60


class Process:
    """One process of ours, its output in a file."""

    def __init__(self, output: Path, *arguments: str, **environment: str) -> None:
        self.output = output
        with output.open("ab") as stream:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "modelkeep", *arguments],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )

    def said(self, words: str) -> str:
        """The last line that begins with ``words``, plain or as the message of an event, once it is there."""
        until(lambda: any(line.startswith(words) for line in self._lines()), self.output.read_text)
        return next(line for line in self._lines()[::-1] if line.startswith(words))

    def _lines(self) -> list[str]:
        lines = self.output.read_text().splitlines()
        return [json.loads(line)["message"] if line.startswith("{") else line for line in lines]

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SECONDS)


def until(happened, told):
    """Wait for ``happened``."""
    end = time.monotonic() + SECONDS
    while not happened():
        assert time.monotonic() < end, told()
        time.sleep(0.02)


class Organisation:
    """A keep and a witness. ``run`` starts the witness on the log of somebody else."""

    def __init__(self, cli: Cli, folder: Path, name: str) -> None:
        self.cli, self.folder, self.name = cli, folder, name
        self.vkey = cli("--json", "witness", "status", code=0).json["vkey"]
        self.state = folder / f"witness-{name}"
        made = cli("--json", "witness", "init", str(self.state), "--name", f"{name}.example/witness", code=0).json
        self.keys = made["vkeys"]
        self.port = "0"
        self.witness: Process | None = None
        self.tls: tuple[str, ...] = ()
        self.authority = b""

    def speak_https(self) -> None:
        """Give the witness a certificate of an authority of its own."""
        key, now = make_authority_key(), time.time_ns()
        self.authority = authority_certificate(key, self.name, now)
        chain, secret = self.folder / f"{self.name}.chain", self.folder / f"{self.name}.tls"
        made = issue(key, self.authority, ["127.0.0.1"], now)
        chain.write_bytes(made.chain)
        secret.write_bytes(made.key)
        self.tls = ("--tls-chain", str(chain), "--tls-key", str(secret))

    def run(self, *logs: str) -> None:
        listen = [part for log in logs for part in ("--log", log)]
        output = self.folder / f"{self.name}.log"
        output.unlink(missing_ok=True)
        address = f"127.0.0.1:{self.port}"
        self.witness = Process(output, "witness", "run", str(self.state), *listen, "--listen", address, *self.tls)
        self.url = self.witness.said("witness: http").split()[1]
        self.port = self.url.rpartition(":")[2]

    def ask_of(self, *others: "Organisation", quorum: str = "all", kind: int = 0) -> None:
        """Have the keep's log witnessed by these."""
        lines = [f"witness {other.name} {other.keys[kind]} {other.url}" for other in others]
        names = " ".join(other.name for other in others)
        text = "\n".join([f"log {self.vkey}", *lines, f"group g {quorum} {names}", "quorum g", ""])
        (self.cli.keep / "witness.policy").write_text(text)
        (self.cli.keep / "witness.policy").chmod(0o600)
        with (self.cli.keep / "modelkeep.toml").open("a") as stream:
            stream.write('\n[witness]\npolicy = "witness.policy"\nseconds = 0.2\n')
            if authorities := b"".join(other.authority for other in others):
                (self.cli.keep / "witnesses.pem").write_bytes(authorities)
                (self.cli.keep / "witnesses.pem").chmod(0o600)
                stream.write('ca = "witnesses.pem"\n')


def report(cli: Cli) -> dict:
    """What ``witness status`` says of a keep."""
    return cli("--json", "witness", "status", code=0).json


@pytest.fixture
def two(cli, desk, tmp_path):
    """acme and bolt: each with a witness that knows the other's log, and a policy that asks for it."""
    other = Cli(tmp_path / "bolt", desk / "pass")
    other("init", str(other.keep), code=0)
    acme, bolt = Organisation(cli, tmp_path, "acme"), Organisation(other, tmp_path, "bolt")
    try:
        acme.run(bolt.vkey)
        bolt.speak_https()
        bolt.run(acme.vkey)
        acme.ask_of(bolt)
        bolt.ask_of(acme, kind=1)  # the post-quantum key
        yield acme, bolt
    finally:
        for one in (acme, bolt):
            if one.witness is not None:
                one.witness.process.kill()
                one.witness.process.wait()


def test_two_keeps_witness_each_other_and_a_fork_is_caught(two, tmp_path):
    acme, bolt = two
    for one, other in ((acme, bolt), (bolt, acme)):
        one.cli("user", "add", "zoe", "--role", "analyst", code=0)
        found = report(one.cli)
        assert found["witnessed"] == found["log_size"] > 1
        assert found["names"] == [other.name]
        assert one.cli("--json", "status", code=0).json["witnessed"] == found["log_size"]
    old = copy_keep(acme.cli.keep, tmp_path / "old")  # a backup, or what a thief of the keys has
    before = report(acme.cli)["witnessed"]
    acme.cli("user", "add", "ann", "--role", "analyst", code=0)
    size = report(acme.cli)["witnessed"]

    thief = Cli(old, acme.cli.passphrase_file)
    ran = thief("witness", "ask", code=1)  # before anything was added: only the witness can know
    assert f"the witness cosigned {size} entries of this log, which has {before}" in ran.out
    for name in ("eve", "eva"):
        ran = thief("user", "add", name, "--role", "admin", code=0)
        assert "logged, and waiting for witnesses (bolt: witness refuses: fork or rollback" in ran.err
    assert report(thief)["witnessed"] == before < size < report(thief)["log_size"]
    (incident,) = thief("--json", "incident", "list", code=0).json
    assert incident["id"] == "witness:bolt" and incident["state"] == "open"
    assert "witness refuses: fork or rollback" in incident["detail"]
    assert "witness:bolt" in thief("status", code=0).out
    registry = Keep.open(old, lambda: acme.cli.passphrase_file.read_bytes().strip()).premises.registry()
    assert registry.witnessed() == (before, ("bolt",))

    assert "another process holds" in acme.cli("witness", "run", str(bolt.state), "--log", acme.vkey, code=1).line()
    # the witness keeps what contradicts it, signed by the log's own key, and has forgotten nothing after kill -9
    (shown,) = acme.cli("--json", "witness", "show", str(bolt.state), code=0).json["logs"]
    assert (shown["size"], shown["refused"], shown["problem"]) == (size, True, "")
    bolt.witness.end(signal.SIGKILL)
    bolt.run(acme.vkey)
    thief("witness", "ask", code=1)
    acme.cli("witness", "ask", code=0)
    assert acme.cli("--json", "incident", "list", code=0).json == []
    # who sets the rewritten log beside what witnesses saw of the true one is refused
    shutil.copy(acme.cli.keep / "log" / "releases" / "checkpoint.witnessed", old / "log" / "releases" / "checkpoint.witnessed")
    assert "rewritten: its first" in thief("status", code=1).line()


def test_a_late_witness_is_asked_again_by_control(two):
    acme, bolt = two
    port = bolt.port
    bolt.witness.end()
    ran = acme.cli("user", "add", "ann", "--role", "analyst", code=0)
    assert "waiting for witnesses (bolt: " in ran.err and "cannot be reached" in ran.err
    assert report(acme.cli)["witnessed"] == 0
    assert acme.cli("incident", "list", code=0).out.strip() == "There is no incident."
    control = Process(
        acme.folder / "control.log",
        "control",
        MODELKEEP_DIR=str(acme.cli.keep),
        MODELKEEP_PASSPHRASE_FILE=str(acme.cli.passphrase_file),
        MODELKEEP_CONTROL_PORT="0",
    )
    try:
        control.said("control: https")
        bolt.run(acme.vkey)
        assert bolt.port == port
        until((acme.cli.keep / "log" / "releases" / "checkpoint.witnessed").exists, control.output.read_text)

        def all_witnessed():
            found = report(acme.cli)
            return found["witnessed"] == found["log_size"]

        until(all_witnessed, control.output.read_text)
        assert control.end() == 0
    finally:
        control.process.kill()


@contextmanager
def settings(keep: Path, text: str):
    before = (keep / "modelkeep.toml").read_text()
    (keep / "modelkeep.toml").write_text(before + text)
    yield
    (keep / "modelkeep.toml").write_text(before)


def test_a_policy_that_is_gone_open_or_wrong_is_no_policy_less(cli):
    asked = '\n[witness]\npolicy = "witness.policy"\n'
    policy = cli.keep / "witness.policy"
    with settings(cli.keep, asked):
        assert "witness.policy is missing" in cli("status", code=2).line()
        policy.write_text("quorum none\n")
        policy.chmod(0o644)
        assert "is open to others" in cli("status", code=1).line()
        policy.chmod(0o600)
        found = cli("--json", "status", code=0).json
        assert found["witnessed"] == found["log_size"]
        policy.write_text("quorum none")
        assert "ends in a newline" in cli("status", code=2).line()
        policy.write_text("log sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8\nquorum none\n")
        assert "for other logs" in cli("status", code=2).line()
        keep = Keep.open(cli.keep, lambda: b"")
        policy.unlink()
        with pytest.raises(Missing):
            keep.premises.registry().witnessed()
    with settings(cli.keep, '\n[witness]\npolicy = "../witness.policy"\n'):
        assert "name a file in the keep's folder" in cli("status", code=2).line()
    assert cli("--json", "status", code=0).json["witnessed"] is None
    assert "No witness is asked for" in cli("witness", "status", code=0).out


def test_a_registry_says_what_is_witnessed(cli, tmp_path):
    """The reading side: what admission asks."""
    org = Organisation(cli, tmp_path, "w")
    try:
        org.run(org.vkey)
        org.ask_of(org)
        registry = Keep.open(cli.keep, lambda: b"").premises.registry()
        assert registry.witnessed() == (0, ())
        cli("witness", "ask", code=0)
        assert registry.witnessed() == (registry.refresh().size, ("w",))
        size = registry.book.size
        assert "proven to be in the log, cosigned by w" in cli("verify", "risk@1", code=0).out
        org.witness.end()
        cli("user", "add", "ann", "--role", "analyst", code=0)
        assert registry.refresh().size > size
        assert registry.witnessed() == (size, ("w",))
        # what is witnessed is proven under what the witnesses signed, also when the newest checkpoint has no cosignature yet
        policy = parse_policy((cli.keep / "witness.policy").read_bytes())
        proof = tmp_path / "proof"
        cli("log", "prove", "risk@1", "--out", str(proof), code=0)
        assert cosigners(Proof.parse(proof.read_bytes()).checkpoint, policy) == ("w",)
        cli("log", "check", str(proof), "--trust", str(cli.keep / "trust.toml"), code=0)
        assert cosigners(registry.prove(registry.book.size - 1).checkpoint, policy) == ()
        note = cli.keep / "log" / "releases" / "checkpoint.witnessed"
        note.write_bytes(note.read_bytes()[:-30])
        with pytest.raises(NotTrusted):
            registry.witnessed()
    finally:
        org.witness.process.kill()


def test_witness_folders_and_arguments_that_are_none(bare, tmp_path):
    state, vkey = tmp_path / "w", "sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8"
    assert "there is no witness" in bare("witness", "run", str(state), "--log", vkey, code=2).line()
    assert "cannot name a note key" in bare("witness", "init", str(state), "--name", "a b", code=2).line()
    assert "at most 255 bytes" in bare("witness", "init", str(state), "--name", "\u00e9" * 200, code=2).line()
    bare("witness", "init", str(state), "--name", "w.example/1", code=0)
    assert "is not empty" in bare("witness", "init", str(state), "--name", "w.example/1", code=1).line()
    assert "name the verifier key" in bare("witness", "run", str(state), code=2).line()
    assert "not a verifier key" in bare("witness", "run", str(state), "--log", "x", code=2).line()
    for listen in ("8450", ":8450", "127.0.0.1:", "127.0.0.1:65536", "127.0.0.1:x", "127.0.0.1:-1"):
        assert "is not HOST:PORT" in bare("witness", "run", str(state), "--log", vkey, "--listen", listen, code=2).line()
    assert "come together" in bare("witness", "run", str(state), "--log", vkey, "--tls-key", "k", code=2).line()
    assert "nothing yet" in bare("witness", "show", str(state), code=0).out
    key = state / "witness.key"
    text = key.read_text()
    key.chmod(0o640)
    assert "is open to others" in bare("witness", "show", str(state), code=1).line()
    key.chmod(0o600)
    for wrong in ("", "x\n", text.replace("w.example", "v.example"), text + text.replace("w.example/1", "w.example/2")):
        key.write_text(wrong)
        ran = bare("witness", "show", str(state), code=2)
        assert "PRIVATE" not in ran.err.replace("expected PRIVATE+KEY+name", "") and "PRIVATE" not in ran.out
    key.write_text(text)
    memory = state / "logs" / ("0" * 64)
    memory.mkdir(parents=True)
    (memory / "checkpoint").write_text("nonsense")
    assert json.loads(bare("--json", "witness", "show", str(state), code=0).out)["logs"][0]["problem"]
