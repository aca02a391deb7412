"""``modelkeep attack`` from the command line to a real gateway over TLS, and what its report says."""

import msgspec
import numpy as np
import pytest
from commandline import Cli
from gateway_support import live, make_keep

from modelkeep.adapters.targets import HttpTarget, OnnxTarget
from modelkeep.cli.redteam import _tell
from modelkeep.core.values import ReleaseRef, Role, digest_of
from modelkeep.extraction.attacks import ATTACKS, parts
from modelkeep.extraction.fitting import fit_profile
from modelkeep.workflows.attack import AttackReport
from modelkeep.workflows.publish import Calibration, ModelFile, publish
from modelkeep.workflows.reference import learn_reference

ACCOUNTS = ("alice", "carol", "dave", "frank", "grace")


@pytest.fixture(scope="module")
def pair():
    """A model of two classes as ONNX."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows = np.random.default_rng(8).normal(size=(200, 6)).astype(np.float32)
    model = LogisticRegression().fit(rows, rows @ np.array([2.0, -1.0, 0.5, 0.0, 0.0, 1.0]) > 0.3)
    return to_onnx(model, rows[:1], options={id(model): {"zipmap": False}}, target_opset=18).SerializeToString(), rows


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained, pair):
    keep = make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)
    onnx, rows = pair
    benign = rows.astype(np.float64)
    profile = fit_profile(benign, OnnxTarget(onnx).predict, seed=1)
    arrays = {**profile.to_arrays(), **learn_reference(benign, 1)}
    calibration = Calibration(lambda _model, _interface: arrays, len(rows), digest_of(b"reference"))
    publish(keep.premises.desk(), ModelFile(onnx, "m.onnx"), "pair", actor="test", calibration=calibration)
    keep.promote(ref="pair@1")
    return keep


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


def test_a_thief_who_is_asked_for_work_pays_it_and_reports_what_it_took(attack, keep):
    keep.policy_set(kind="ladder", text=b"[mark]\nwork = 8\n[alarm]\nanswer = 'refuse'\n")
    try:
        report = attack("in-distribution", "--budget", "6", "--batch", "2", keys=("alice", "carol")).json
    finally:
        keep.policy_set(kind="ladder", profile="default")
    assert (report["queries"], report["stopped"]) == (6, "budget") and 6 <= report["hashes"] < 6 * 256 * 20
    assert f"Proof of work: {report['hashes']:,} hashes\n" in _tell(msgspec.convert(report, AttackReport))
    free = attack("in-distribution", "--budget", "2").json
    assert free["hashes"] == 0 and "Proof of work" not in _tell(msgspec.convert(free, AttackReport))


def test_a_thief_who_looks_at_labels_only(attack, tmp_path):
    attack("knockoff", "--budget", "6", "--labels-only", "--save", str(tmp_path / "loot.npz"), keys=("alice",))
    assert set(np.load(tmp_path / "loot.npz")["probs"].ravel()) == {0.0, 1.0}


def test_explanations_are_asked_for_and_make_a_copy(attack):
    report = attack("explanations", "--budget", "5", "--batch", "2").json
    assert (report["queries"], report["own"]) == (5, 5)
    assert report["fidelity"] > report["majority"] + 0.3


@pytest.mark.parametrize("name", ["iris", "pair"])
def test_wide_answers_are_the_models_own_probabilities_and_what_moved_them(keep, gateway, desk, trained, pair, name):
    onnx, rows = (trained.onnx, trained.fresh) if name == "iris" else pair
    key, ca = (desk / "dave.key").read_text(), keep.premises.directory / "tls" / "ca.pem"
    with HttpTarget(gateway.url, ReleaseRef(name, 1), key, ca=ca) as target:
        probs, base, moved = parts(target.explain(rows[:3]), 6)
    np.testing.assert_allclose(probs, OnnxTarget(onnx).predict(rows[:3]), atol=6e-4)
    np.testing.assert_allclose(moved.sum(axis=2), probs - base, atol=1e-9)
    np.testing.assert_allclose(moved.sum(axis=1), 0.0, atol=2e-3, err_msg="what one class gains others lose")
    assert np.abs(moved).max() > 0.05


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
