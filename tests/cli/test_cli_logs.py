"""log verify DIR|URL, prove and check from the command line: what a stranger with only the public keys can do."""

import shutil
import sys
from pathlib import Path

import pytest
from commandline import Cli

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.custody.trust import TrustRoot
from modelkeep.ledger.log import ReleasesLog
from modelkeep.serving.audit import AuditEntry
from modelkeep.workflows.breakglass import Glass

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from static_server import static

VECTORS = Path(__file__).parents[1] / "vectors" / "log"
RELEASES, AUDIT = (VECTORS / "vkeys.txt").read_text().split()


@pytest.fixture
def here(cli):
    """The keep's own words for its trust root, and where its releases log lies."""
    return cli, str(cli.keep / "trust.toml"), cli.keep / "log" / "releases"


def stranger(desk) -> Cli:
    """Somebody with neither keep nor passphrase."""
    return Cli(Path("/nonexistent"), desk / "nothing")


def test_a_folder_may_be_a_keep_its_logs_or_one_log(here, desk):
    cli, trust, releases = here
    ask = stranger(desk)
    whole = cli("log", "verify", "--json", code=0).json
    for source in (cli.keep, cli.keep / "log", releases):
        found = ask("log", "verify", str(source), "--json", code=0).json
        assert [(row["origin"], row["root"]) for row in found] == [(row["origin"], row["root"]) for row in whole]
    assert ask("log", "verify", "--offline", str(cli.keep), code=0).out == ask("log", "verify", str(cli.keep), code=0).out
    vkey = TrustRoot.parse(Path(trust).read_bytes()).releases_log
    assert "signatures, entries, tiles" in ask("log", "verify", str(releases), "--vkey", vkey, code=0).out


def test_a_web_server_with_a_copy_of_a_keep_its_logs_or_one_log(here, desk):
    cli, trust, _ = here
    ask = stranger(desk)
    whole = cli("log", "verify", "--json", code=0).json
    with static(cli.keep.parent) as address:
        for path in ("keep", "keep/", "keep/log", "keep/log/releases/"):
            found = ask("log", "verify", f"{address}/{path}", "--trust", trust, "--json", code=0).json
            assert [(row["origin"], row["root"]) for row in found] == [(row["origin"], row["root"]) for row in whole]
        assert "whom to believe" in ask("log", "verify", f"{address}/keep", code=2).err
        assert "there is no log" in ask("log", "verify", f"{address}/elsewhere", "--trust", trust, code=2).err
        tile = cli.keep / "log" / "releases" / "tile" / "0"
        shutil.rmtree(tile)
        assert "missing tile/0" in ask("log", "verify", f"{address}/keep", "--trust", trust, code=1).err


@pytest.mark.parametrize("over", ["folder", "web"])
def test_one_audit_log_and_the_log_of_somebody_else(over, desk):
    ask = stranger(desk)
    with static(VECTORS) as address:
        base = str(VECTORS) if over == "folder" else address
        found = ask("log", "verify", f"{base}/audit", "--vkey", AUDIT, "--json", code=0).json
        assert [(row["origin"], row["size"]) for row in found] == [("keep.example/audit/gw-1", 5)]
        found = ask("log", "verify", f"{base}/releases", "--vkey", RELEASES, "--json", code=0).json
        assert [(row["origin"], row["size"]) for row in found] == [("keep.example/releases", 300)]
        assert "not signed by" in ask("log", "verify", f"{base}/releases", "--vkey", AUDIT, code=1).err


def test_what_was_seen_must_stay(here, desk, tmp_path):
    """A rolled-back log and a rewritten one, both signed with the real key, are refused; what grew is taken and remembered."""
    cli, trust, releases = here
    ask, kept = stranger(desk), tmp_path / "seen"
    arguments = ("log", "verify", str(releases), "--trust", trust, "--kept", str(kept))
    ask(*arguments, code=0)
    first = kept.read_bytes()
    assert first == (releases / "checkpoint").read_bytes()
    old = shutil.copytree(releases, tmp_path / "old")
    cli("hold", "add", "risk@1", "--reason", "a case", code=0)
    ask(*arguments, code=0)
    assert kept.read_bytes() == (releases / "checkpoint").read_bytes() != first
    refused = ask("log", "verify", str(old), "--trust", trust, "--kept", str(kept), code=1)
    assert "rolled back" in refused.err
    kept.write_bytes(b"something else\n")
    assert "does not hold a checkpoint" in ask(*arguments, code=1).err
    assert kept.read_bytes() == b"something else\n"


def test_a_rewrite_with_the_real_key_is_refused_if_one_checkpoint_was_kept(desk, tmp_path):
    signer = NoteSigner("keep.example/releases", b"\x07" * 32)
    for name, entries in (("one", [b"a", b"b"]), ("two", [b"a", b"c", b"d"])):
        log = ReleasesLog(FolderLogFiles(tmp_path / name), signer, signer.name)
        log.create()
        log.append(entries)
    kept, ask = tmp_path / "seen", stranger(desk)
    with static(tmp_path) as address:
        ask("log", "verify", f"{address}/one", "--vkey", signer.vkey, "--kept", str(kept), code=0)
        before = kept.read_bytes()
        refused = ask("log", "verify", f"{address}/two", "--vkey", signer.vkey, "--kept", str(kept), code=1)
        ask("log", "verify", f"{address}/two", "--vkey", signer.vkey, code=0)
    assert "rewritten" in refused.err and kept.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--kept", "seen"), "for a DIR or URL"),
        (("--token-file", "t"), "for a DIR or URL"),
        ((".", "--trust", "a", "--vkey", "b"), "--trust or --vkey"),
        ((".", "--vkey", "nonsense"), "not a verifier key"),
        ((".", "--vkey", RELEASES, "--ca", "x"), "is a folder"),
        (("http://127.0.0.1:1/?x", "--vkey", RELEASES), "not the address of a log"),
        (("https://127.0.0.1:1/", "--vkey", RELEASES, "--ca", __file__), "not a certificate"),
    ],
)
def test_what_makes_no_sense_is_said(arguments, words, desk):
    assert words in stranger(desk)("log", "verify", *arguments, code=2).err


def test_a_proof_goes_through_a_pipe_and_is_believed_by_a_stranger(here, desk, tmp_path):
    cli, trust, _ = here
    ask, proof = stranger(desk), tmp_path / "proof.json"
    printed = cli("log", "prove", "risk@1", code=0).out
    cli("log", "prove", "risk@1", "--out", str(proof), code=0)
    assert proof.read_text() == printed
    found = ask("log", "check", str(proof), "--trust", trust, "--json", code=0).json
    assert (found["type"], found["about"]) == ("release", "risk@1")
    vkey = TrustRoot.parse(Path(trust).read_bytes()).releases_log
    assert ask("log", "check", str(proof), "--vkey", vkey, "--json", code=0).json["index"] == found["index"]
    by_entry = cli("log", "prove", "--entry", str(found["index"]), code=0).out
    assert by_entry == printed
    proof.write_text(printed.replace("extra ", "extra A", 1))
    for whom in (("--trust", trust), ("--vkey", vkey)):
        assert ask("log", "check", str(proof), *whom).code == 1
    assert "no entry 4000" in cli("log", "prove", "--entry", "4000", code=2).err


def test_the_log_only_grew(here, desk, tmp_path):
    cli, trust, releases = here
    ask = stranger(desk)
    old = tmp_path / "old"
    shutil.copy(releases / "checkpoint", old)
    size = int(old.read_text().split("\n")[1])
    cli("hold", "add", "risk@1", "--reason", "a case", code=0)
    proof = tmp_path / "proof"
    proof.write_text(cli("log", "prove", "--consistency", str(size), code=0).out)
    assert proof.read_text().startswith(f"old {size}\n")
    found = ask("log", "check", str(proof), "--trust", trust, "--kept", str(old), "--json", code=0).json
    assert found["size"] > size and found["detail"] == f"continues its first {size} entries"
    assert "--kept" in ask("log", "check", str(proof), "--trust", trust, code=2).err
    assert "begins at" in ask("log", "check", str(proof), "--trust", trust, "--kept", str(releases / "checkpoint"), code=1).err
    whole = proof.read_text()
    for bad in (whole.replace("old ", "old 1"), whole.replace("\n\n", "\nAAAA\n\n", 1), whole[:-9], "old x\n\n"):
        proof.write_text(bad)
        assert ask("log", "check", str(proof), "--trust", trust, "--kept", str(old)).code == 1
    assert "entries, not" in cli("log", "prove", "--consistency", "4000", code=2).err


@pytest.mark.parametrize("arguments", [(), ("risk@1", "--entry", "0"), ("--entry", "0", "--consistency", "1")])
def test_one_thing_is_proven_at_a_time(cli, arguments):
    assert "name one thing" in cli("log", "prove", *arguments, code=2).err


def test_an_audit_record_is_proven_by_its_receipt(cli, desk, tmp_path):
    from modelkeep.app.audits import new_audit
    from modelkeep.app.keep import Keep
    from modelkeep.crypto.notes import open_checkpoint
    from modelkeep.custody.keys import AUDIT_LOG
    from modelkeep.workflows.acts import log_audit_checkpoint

    premises = Keep.open(cli.keep, lambda: (desk / "pass").read_bytes().rstrip()).premises
    instance, audit = new_audit(premises, premises.keyring([AUDIT_LOG]), "gateway", Glass(None, premises.clock.now_ns))
    told = []
    audit.submit(AuditEntry("predict", "sub_1", "risk@1", "r", "ok"), b"sealed", told.append)
    note = audit.stop()
    assert told == [1]
    ask, trust, proof = stranger(desk), str(cli.keep / "trust.toml"), tmp_path / "proof"
    proof.write_text(cli("log", "prove", "--record", f"{instance}/1", code=0).out)
    found = ask("log", "check", str(proof), "--trust", trust, "--json", code=0).json
    assert (found["type"], found["actor"], found["about"], found["index"]) == ("audit predict", "sub_1", "risk@1", 1)
    for receipt, words in ((f"{instance}/7", "no record 7"), ("other/1", "no audit log"), ("nonsense", "not a receipt")):
        assert words in cli("log", "prove", "--record", receipt, code=2).err
    both = ask("log", "verify", str(cli.keep), "--json", code=0).json
    one = ask("log", "verify", str(cli.keep / "log" / "audit" / instance), "--json", code=0).json
    assert one[0]["root"] == both[1]["root"] and "1 bodies; closed" in one[0]["detail"]
    with static(cli.keep) as address:
        over_web = ask("log", "verify", address, "--trust", trust, "--json", code=0).json
        assert [row["root"] for row in over_web] == [both[0]["root"]], "an audit log that no statement names is not known there"
        found = open_checkpoint(note, audit.vkey, audit.origin)
        log_audit_checkpoint(premises.desk(), note, found, actor="test", phase="final")
        over_web = ask("log", "verify", address, "--trust", trust, "--json", code=0).json
        assert [row["root"] for row in over_web][1:] == [both[1]["root"]]
        assert "0 bodies, 1 checkpoints kept; closed" in over_web[1]["detail"]
        shutil.rmtree(cli.keep / "log" / "audit" / instance)
        for source in ((address, "--trust", trust), (str(cli.keep),)):
            assert "is gone" in ask("log", "verify", *source, code=1).err
