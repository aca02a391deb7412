"""A model that answers with numbers, end to end: published, served, watched, slowed, refused, and stolen by the red team."""

import io
import re

import numpy as np
import pytest
from commandline import Cli
from gateway_support import live, make_keep, question

from modelkeep.app.keep import Keep
from modelkeep.cli.standing import _standing
from modelkeep.core.values import Role
from modelkeep.errors import Invalid
from modelkeep.extraction.ladder import SHIPPED

INFER = "/v2/models/line/infer"
NAMES = ("honest", "heavy", "uniform", "solver")


def linear(rows: np.ndarray, outputs: int = 1) -> bytes:
    """A linear regression of ``rows`` as ONNX."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LinearRegression

    weights = np.random.default_rng(2).normal(size=(rows.shape[1], outputs))
    return to_onnx(LinearRegression().fit(rows, rows @ weights + 7), rows[:1], target_opset=18).SerializeToString()


def packed(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=rows)
    return file.getvalue()


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("keeps") / "keep"
    keep = make_keep(folder, trained)
    with (folder / "modelkeep.toml").open("a") as file:
        file.write('[extraction]\ncontact = "security@acme.example"\n')
    keep = type(keep).open(folder, keep.premises.passphrase())
    for name, outputs in (("line", 1), ("pair", 2)):
        done = keep.publish(
            name=name, filename="m.onnx", model=linear(trained.reference, outputs), reference=packed(trained.reference)
        )
        keep.promote(ref=done.ref)
    for name in NAMES:
        keep.user_add(name=name, roles=(Role.ANALYST,))
    return keep


@pytest.fixture(scope="module")
def keys(keep):
    return {name: keep.key_issue(account=name, quota=100_000).token for name in NAMES}


@pytest.fixture
def gateway(keep):
    with live(keep) as running:
        yield running
    assert running.errors == []


def standing(gateway, keep: Keep, name: str):
    gateway.service.audit.publish()  # what is durable, also under a checkpoint
    (found,) = keep.account_explain(account=name, release="line@1").standings
    return found


def watched(gateway, keep: Keep, name: str):
    """The verdict in force once everything that was asked is examined."""
    (watch,) = (watch for ref, watch in gateway.service.loader.by_release().items() if str(ref) == "line@1")
    watch.work()
    return watch.verdict(next(row.subject for row in keep.user_list() if row.name == name))


def test_an_honest_account_is_answered_and_its_budget_quoted_as_r_squared(gateway, keep, keys, trained):
    with gateway.client(keys["honest"]) as client:
        answers = [client.post(INFER, content=question(row)) for row in trained.fresh[:120]]
    assert {answer.status_code for answer in answers} == {200}
    assert not any("modelkeep-notice" in answer.headers for answer in answers)
    live_verdict, found = watched(gateway, keep, "honest"), standing(gateway, keep, "honest")
    assert (found.rung, found.odds, found.queries, found.effective) == ("mark", live_verdict.odds, 120, live_verdict.effective)
    assert found.learnt == pytest.approx(live_verdict.budget.equivalent) and 40 < found.learnt < 400
    assert found.measure == "R²" and 0.9 < found.fidelity < 1.0, "120 natural answers all but make a linear model"
    assert re.search(
        r"a simple copy that explains about (9\d|100)% of the variance of the answers \(R²\)$", _standing(found)[3]
    )


def test_the_budget_slows_an_account_and_tells_it_no_more_than_that(gateway, keep, keys, trained):
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 20").encode())
    try:
        with gateway.client(keys["heavy"]) as client:
            exact = client.post(INFER, content=question(trained.fresh[0])).json()["outputs"][0]["data"]
            assert client.post(INFER, content=question(trained.fresh[1:40])).status_code == 200
            answer = client.post(INFER, content=question(trained.fresh[0]))
            assert answer.json()["outputs"][0]["data"] == exact, "there are no confidences to coarsen"
        told = r"answers come at 0.1 of the usual rate; the information budget begins anew on \S+; ask security@acme.example"
        assert re.fullmatch(told, answer.headers["modelkeep-notice"])
        assert watched(gateway, keep, "heavy").budget.share > 1.0
        assert standing(gateway, keep, "heavy").told == "answers come at 0.1 of the usual rate"
    finally:
        keep.policy_set(kind="ladder", profile="default")


def test_made_up_rows_are_accused_refused_and_accused_again_after_a_restart(keep, keys, trained):
    rows = np.random.default_rng(3).uniform(trained.reference.min(axis=0), trained.reference.max(axis=0), size=(200, 6))
    answers = []
    with live(keep) as gateway, gateway.client(keys["uniform"]) as client:
        for row in rows.astype(np.float32):
            answers.append(client.post(INFER, content=question(row)))
            watched(gateway, keep, "uniform")
            if not answers[-1].is_success:
                break
        verdict = watched(gateway, keep, "uniform")
    refused = [answer for answer in answers if answer.status_code == 403]
    assert refused and refused[0].json()["code"] == "review-required"
    assert verdict.alarmed_at is not None and verdict.alarmed_at <= len(answers) - 1
    with live(keep) as again, again.client(keys["uniform"]) as client:
        assert client.post(INFER, content=question(trained.fresh[0])).status_code == 403, "from the audit log alone"
        replayed = watched(again, keep, "uniform")
    for what in ("rung", "log_m", "odds", "queries", "effective", "alarmed_at"):
        assert getattr(replayed, what) == getattr(verdict, what), what


def attack(keep, gateway, folder, trained, key, *more, model="line@1", code=0):
    (folder / "thief.key").write_text(key)
    (folder / "model.onnx").write_bytes(linear(trained.reference, 2 if model == "pair@1" else 1))
    np.savez(folder / "seeds.npz", x=trained.fresh[:60])
    np.savez(folder / "exam.npz", x=trained.fresh[100:])
    return Cli(keep.premises.directory, keep.premises.directory / "no-passphrase-is-needed")(
        "attack", gateway.url, "--model", model, "--key-file", str(folder / "thief.key"),
        "--ca", str(keep.premises.directory / "tls" / "ca.pem"), "--seed-data", str(folder / "seeds.npz"),
        "--victim", str(folder / "model.onnx"), "--eval-data", str(folder / "exam.npz"), *more, code=code,
    )  # fmt: skip


def test_the_red_team_solves_a_linear_regression_from_seven_answers(gateway, keep, keys, trained, tmp_path):
    told = attack(keep, gateway, tmp_path, trained, keys["solver"], "--as", "equation-solving", "--budget", "7").out
    assert re.search(
        r"Fidelity on held-out rows \(R²\) \(a constant answer has 0.000\):\n(.*\n)* +7 queries +fidelity 1.000", told
    )


def test_several_numbers_a_row_are_stolen_when_they_are_said_to_be_numbers(gateway, keep, keys, trained, tmp_path):
    given = ("--as", "in-distribution", "--budget", "60", "--copy", "trees", "--numbers")
    report = attack(
        keep, gateway, tmp_path, trained, keys["solver"], *given, "--save", str(tmp_path / "loot.npz"), model="pair@1"
    )
    assert "(R²)" in report.out and np.load(tmp_path / "loot.npz")["probs"].shape == (60, 2)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (("--as", "line-search"), "line-search needs classes, and the model answers with numbers: choose one of uniform"),
        (("--as", "uniform", "--labels-only"), "numbers have neither labels nor marks"),
        (("--as", "uniform", "--recover"), "numbers have neither labels nor marks"),
    ],
)
def test_what_makes_sense_of_classes_only_is_refused(gateway, keep, keys, trained, tmp_path, asked, why):
    assert why in attack(keep, gateway, tmp_path, trained, keys["solver"], *asked, code=2).err


def test_a_model_whose_answers_to_benign_rows_are_no_numbers_is_not_published(keep, trained):
    from skl2onnx import to_onnx
    from sklearn.linear_model import LinearRegression

    model = LinearRegression().fit(trained.reference, trained.reference @ np.ones(6))
    model.coef_ = np.full(6, np.inf)
    data = to_onnx(model, trained.reference[:1], target_opset=18).SerializeToString()
    with pytest.raises(Invalid, match="no finite number"):
        keep.publish(name="broken", filename="m.onnx", model=data, reference=packed(trained.reference))
