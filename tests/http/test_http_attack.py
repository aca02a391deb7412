"""``modelkeep attack`` from the command line to a real gateway over TLS, and what its report says."""

import numpy as np
import pytest
from commandline import Cli
from gateway_support import live, make_keep, train

from modelkeep.core.values import Role
from modelkeep.extraction.attacks import ATTACKS

ACCOUNTS = ("alice", "carol", "dave", "frank", "grace")


@pytest.fixture(scope="module")
def trained():
    return train()


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)


@pytest.fixture(scope="module")
def desk(tmp_path_factory, trained, keep):
    """What a thief has: the model (to be measured against), rows, a key of each account."""
    folder = tmp_path_factory.mktemp("thief")
    (folder / "model.onnx").write_bytes(trained.onnx)
    np.savez(folder / "seeds.npz", x=trained.fresh[:60])
    np.savez(folder / "honest.npz", x=trained.fresh[60:100])
    np.savez(folder / "exam.npz", x=trained.fresh[100:])
    for name in ACCOUNTS[1:]:
        keep.user_add(name=name, roles=(Role.ANALYST,))
    for name in (*ACCOUNTS, "eve"):
        (folder / f"{name}.key").write_text(keep.key_issue(account=name, quota=100_000).token)
    return folder


@pytest.fixture(scope="module")
def gateway(keep, desk):
    with live(keep) as running:
        yield running
    assert running.errors == []


@pytest.fixture(scope="module")
def cli(keep):
    return Cli(keep.premises.directory, keep.premises.directory / "no-passphrase-is-needed")


@pytest.fixture(scope="module")
def attack(cli, gateway, keep, desk):
    def run(name, *more, keys=("alice",), code=0):
        files = [part for key in keys for part in ("--key-file", str(desk / f"{key}.key"))]
        return cli(
            "--json", "attack", gateway.url, "--as", name, "--model", "iris@1", *files,
            "--ca", str(keep.premises.directory / "tls" / "ca.pem"), "--seed-data", str(desk / "seeds.npz"),
            "--victim", str(desk / "model.onnx"), "--eval-data", str(desk / "exam.npz"), *more, code=code,
        )  # fmt: skip

    return run


def test_attacks_are_listed_with_what_they_need(cli):
    listed = cli("--json", "attack", "--list", code=0).json
    assert [row["name"] for row in listed] == list(ATTACKS)
    assert all(row["does"] and row["needs"] and row["source"] for row in listed)
    table, text = cli("attack", "--list", code=0).out, cli("attack", "--help", code=0).out
    for name, one in ATTACKS.items():
        assert f"\n{name} " in table
        assert f"  {name:<20} {one.does}\n" in text, "each on a line of its own"


def test_seven_marked_answers_make_a_copy_of_a_linear_model_of_six_columns(attack):
    report = attack("equation-solving", "--budget", "7").json
    assert (report["queries"], report["own"], report["stopped"], report["guise"]) == (7, 7, "budget", [])
    assert report["fidelity"] > report["majority"] + 0.15


def test_a_disguised_thief_with_three_accounts(attack, desk, tmp_path):
    report = attack(
        "line-search", "--budget", "66", "--batch", "5", "--sleep", "6", "--interleave", "30", "--recover",
        "--honest-data", str(desk / "honest.npz"), "--save", str(tmp_path / "loot.npz"), keys=ACCOUNTS[1:4],
    ).json  # fmt: skip
    assert (report["queries"], report["own"], report["accounts"]) == (66, 18, [22, 22, 22])
    assert report["guise"] == ["30% attack", "6 honest questions first", "answers recovered"]
    loot = np.load(tmp_path / "loot.npz")
    honest = {tuple(row) for row in np.load(desk / "honest.npz")["x"].astype(np.float64)}
    hidden = [tuple(row) in honest for row in loot["x"]]
    assert all(hidden[:6])
    assert sum(hidden) == 66 - 18
    assert loot["probs"].shape == (66, 3)


def test_a_thief_who_looks_at_labels_only(attack, tmp_path):
    attack("knockoff", "--budget", "6", "--labels-only", "--save", str(tmp_path / "loot.npz"), keys=("alice",))
    assert set(np.load(tmp_path / "loot.npz")["probs"].ravel()) == {0.0, 1.0}


def test_explanations_are_asked_for_and_make_a_copy(attack):
    report = attack("explanations", "--budget", "5", "--batch", "2").json
    assert (report["queries"], report["own"]) == (5, 5)
    assert report["fidelity"] > report["majority"] + 0.3


def test_who_may_not_ask_for_explanations_is_told_so(attack):
    assert "eve" in attack("explanations", keys=("eve",), code=1).err


@pytest.mark.parametrize("option", [("--labels-only",), ("--decimals", "2"), ("--recover",)])
def test_explanations_without_numbers_are_refused(attack, option):
    assert "explanation without its numbers" in attack("explanations", *option, code=2).err


def test_a_thief_who_is_accused_is_stopped_and_his_other_account_goes_on(attack):
    report = attack("uniform", "--budget", "300", keys=("frank", "grace")).json
    assert report["stopped"] in {"review-required", "over-budget"}
    assert report["queries"] == sum(report["accounts"]) < 300
    assert all(report["accounts"]), "both were asked"
