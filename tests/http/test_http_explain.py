"""Explanations and the ranges of inputs, end to end: a keep on disk, real models, TLS sockets, the audit log."""

import os
import re
import subprocess
from itertools import permutations
from pathlib import Path

import msgspec
import numpy as np
import pytest
from gateway_support import live, make_keep, question, soon, watch_of

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.core.values import digest_of
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.ladder import Rung
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys, open_body
from modelkeep.workflows.publish import Calibration, ModelFile, publish
from modelkeep.workflows.reference import background_of, learn_reference
from modelkeep.workflows.watch import explained

EXPLAIN, INFER = "/v2/models/iris/explain", "/v2/models/iris/infer"


def regression(trained) -> tuple[bytes, np.ndarray, float]:
    """A linear model as ONNX, its weights, its intercept."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LinearRegression

    weights = np.array([3.0, -2.0, 0.0, 0.5, 100.0, 0.001])
    model = LinearRegression().fit(trained.reference, trained.reference @ weights + 7)
    return to_onnx(model, trained.reference[:1], target_opset=18).SerializeToString(), weights, 7.0


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    keep = make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)
    rows = trained.reference.astype(np.float64)
    arrays = fit_profile(rows, None, seed=1).to_arrays()
    for name, more in (("line", learn_reference(rows, 1)), ("older", {})):  # the second as an earlier modelkeep published it
        fit = lambda _model, _interface, more=more: {**arrays, **more}  # noqa: E731
        calibration = Calibration(fit, len(rows), digest_of(b"reference"))
        found = publish(
            keep.premises.desk(), ModelFile(regression(trained)[0], "m.onnx"), name, actor="test", calibration=calibration
        )
        keep.promote(ref=str(found.ref))
    return keep


@pytest.fixture(scope="module")
def accounts(keep):
    """Keys and pseudonyms of analysts, by name."""
    found = {}
    for name in ("alice", "carol", "dave", "erin", "frank"):
        if name != "alice":
            keep.user_add(name=name, roles=("analyst",))
        found[name] = keep.key_issue(account=name, quota=100_000).token
    subjects = {row.name: row.subject for row in keep.user_list()}
    return {name: (token, subjects[name]) for name, token in found.items()}


@pytest.fixture(scope="module")
def gateway(keep, accounts):
    with live(keep) as running:
        yield running
    assert running.errors == []


def ask(gateway, key, row, address=EXPLAIN, **parameters):
    with gateway.client(key) as client:
        return client.post(address, content=question(row, parameters=parameters) if parameters else question(row))


def told(answer):
    """The attributions of input X, flat, and the parameters."""
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("X", "FP64", [1, 6])
    return np.array(output["data"]), answer.json()["parameters"]


def records(keep, gateway, kind):
    gateway.service.audit.publish()  # what is durable, also under a checkpoint
    here, instance = keep.premises, gateway.instance
    origin, files = here.audit_origin(instance), here.audit_files(instance)
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy)
    for index, entry, sealed in read_bodies(files, encode_vkey(origin, here.trust.audit_key), origin):
        if entry.kind == kind:
            body = open_body(keys.key(entry.subject), sealed, entry.subject, entry.release) if sealed else None
            yield f"{instance}/{index}", entry, body


def by_definition(predict, x, background):
    phi = np.zeros(len(x))
    orders = list(permutations(range(len(x))))
    for row in background:
        rows = []
        for order in orders:
            now = row.copy()
            rows.append(now.copy())
            for j in order:
                now[j] = x[j]
                rows.append(now.copy())
        values = predict(np.array(rows)).reshape(len(orders), len(x) + 1)
        for order, steps in zip(orders, np.diff(values, axis=1), strict=True):
            phi[list(order)] += steps
    return phi / (len(orders) * len(background))


def test_an_explanation_is_the_shapley_values_of_the_models_own_answer(gateway, accounts, trained):
    row, runtime = trained.fresh[0], OnnxRuntime(trained.onnx)
    probs = lambda rows: runtime.run({"X": rows.astype(np.float32)})["probabilities"].astype(np.float64)  # noqa: E731
    background = background_of(learn_reference(trained.reference.astype(np.float64), 1))
    for target in (None, 0, 1, 2):
        phi, said = told(ask(gateway, accounts["alice"][0], row, **({} if target is None else {"target": target})))
        column = int(probs(row[None]).argmax()) if target is None else target
        assert said["target"] == column and said["output"] == "probabilities" and said["charged"] == 7 and said["samples"] == 0
        true = by_definition(lambda rows: probs(rows)[:, column], row.astype(np.float64), background)  # noqa: B023
        assert np.abs(phi - true).max() <= 1.01e-3
        assert abs(said["value"] - probs(row[None])[0, column]) <= 5e-4
        assert abs(said["base_value"] - probs(background)[:, column].mean()) <= 5e-4
        assert phi.sum() == pytest.approx(said["value"] - said["base_value"], abs=1e-12)
        assert (np.round(phi, 3) == phi).all()


def test_a_regression_is_explained_by_its_weights(gateway, accounts, trained):
    _, weights, _ = regression(trained)
    background = background_of(learn_reference(trained.reference.astype(np.float64), 1))
    phi, said = told(ask(gateway, accounts["alice"][0], trained.fresh[3], "/v2/models/line/explain"))
    true = weights * (trained.fresh[3].astype(np.float64) - background.mean(axis=0))
    largest = max(abs(said["value"]), abs(said["base_value"]), np.abs(true).max())
    assert np.abs(phi - true).max() <= 10 ** (np.floor(np.log10(largest)) - 3) * 1.01 + 1e-3
    assert phi.sum() == pytest.approx(said["value"] - said["base_value"], abs=1e-9)


def test_the_same_question_has_the_same_answer_and_every_answer_its_record(gateway, keep, accounts, trained):
    token, subject = accounts["carol"]
    first, again = (ask(gateway, token, trained.fresh[1], target=1) for _ in range(2))
    assert first.content == again.content and first.headers["modelkeep-record"] != again.headers["modelkeep-record"]
    found = {receipt: (entry, body) for receipt, entry, body in records(keep, gateway, "explain")}
    for answer in (first, again):
        entry, body = found[answer.headers["modelkeep-record"]]
        assert (entry.subject, entry.release, entry.outcome) == (subject, "iris@1", "ok")
        assert body.outputs == answer.content and body.inputs().astype(np.float32).tolist() == trained.fresh[1:2].tolist()


@pytest.mark.parametrize(
    ("change", "words", "status"),
    [
        ({"parameters": {"target": 3}}, "has 3 numbers", 400),
        ({"parameters": {"target": -1}}, "whole number", 400),
        ({"parameters": {"target": True}}, "whole number", 400),
        ({"parameters": {"samples": 0}}, "whole number", 400),
        ({"parameters": {"samples": 1.5}}, "whole number", 400),
        ({"parameters": {"seed": 1}}, "takes target, samples, output", 400),
        ({"parameters": {"output": "label"}}, "and no other", 400),
        ({"outputs": [{"name": "probabilities"}]}, "no outputs to choose", 400),
    ],
    ids=str,
)
def test_bad_questions(gateway, accounts, trained, change, words, status):
    with gateway.client(accounts["alice"][0]) as client:
        answer = client.post(EXPLAIN, content=question(trained.fresh[0], **change))
    assert answer.status_code == status and words in answer.json()["detail"]


def test_who_may_ask_and_what_cannot_be_explained(gateway, keep, accounts, trained):
    eve = keep.key_issue(account="eve").token
    gateway.look()
    token = accounts["alice"][0]
    for key, expected in ((None, 401), ("mk_nothing", 401), (eve, 403)):
        assert ask(gateway, key, trained.fresh[0]).status_code == expected
    many = ask(gateway, token, trained.fresh[:2])
    assert many.status_code == 400 and "one row" in many.json()["detail"]
    older = ask(gateway, token, trained.fresh[0], "/v2/models/older/explain")
    assert older.status_code == 404 and "publish it again" in older.json()["detail"]
    assert ask(gateway, token, trained.fresh[0], "/v2/models/nobody/explain").status_code == 404
    with gateway.client(token) as client:
        assert client.get(EXPLAIN).status_code == 405
    assert sum(entry.outcome == "denied" for _, entry, _ in records(keep, gateway, "deny")) == 1


def test_the_budget_pays_and_nobody_is_accused(gateway, accounts, trained):
    token, subject = accounts["dave"]
    watch = watch_of(gateway)
    ask(gateway, token, trained.fresh[0])
    assert watch.verdict(subject).budget.equivalent == 7
    ask(gateway, token, trained.fresh[0], target=9)  # refused, and so not charged
    verdict = watch.verdict(subject)
    assert (verdict.budget.equivalent, verdict.queries, verdict.uncovered) == (7, 0, True)
    watch.submit(explained(10**6, subject, 779, "another"))  # and near its end
    watch.work()
    assert watch.rung(subject) is Rung.MARK
    ask(gateway, token, trained.fresh[0])
    watch.submit(explained(10**6 + 1, subject, 9, "another"))
    watch.work()
    assert watch.rung(subject) is Rung.COARSE
    phi, said = told(ask(gateway, token, trained.fresh[0]))
    assert (np.round(phi, 2) == phi).all() and round(said["value"], 2) == said["value"]
    for _ in range(40):
        answer = ask(gateway, token, trained.fresh[0])
        if answer.status_code != 200:
            break
    assert answer.status_code == 429 and "nothing is explained" in answer.json()["detail"]
    verdict = watch.verdict(subject)
    assert 1000 <= verdict.budget.equivalent <= 1007 and verdict.rung is Rung.QUANTISED
    assert (verdict.log_m, verdict.alarmed_at, verdict.effective) == (pytest.approx(np.log(0.5)), None, 0)


def test_the_quota_pays_the_price_in_rows(keep, trained):
    """One row for an explanation let a quota of so many answers through as that many explanations."""
    token = keep.key_issue(account="alice", quota=16).token  # two explanations of six numbers, and two answers
    with live(keep) as running:
        asked = [ask(running, token, trained.fresh[0]) for _ in range(3)]
        assert [answer.status_code for answer in asked] == [200, 200, 429]
        assert "quota of 16 rows" in asked[2].json()["detail"]
        assert [ask(running, token, trained.fresh[0], INFER).status_code for _ in range(3)] == [200, 200, 429]


def test_a_restart_forgives_no_charge(keep, accounts, trained):
    token, subject = accounts["erin"]
    with live(keep) as running:
        for row in trained.fresh[:5]:
            assert ask(running, token, row).status_code == 200
            assert ask(running, token, row, INFER).status_code == 200
        watch = watch_of(running)
        soon(lambda: not watch.rows_behind())
        was = watch.verdict(subject)
    with live(keep) as running:
        now = watch_of(running).verdict(subject)
    assert now == was and was.queries == 5 and was.budget.equivalent > 35


def test_an_account_whose_alarm_is_raised_is_told_nothing(keep, accounts):
    token, _ = accounts["frank"]
    rng = np.random.default_rng(1)
    with live(keep) as running:
        for _ in range(300):
            answer = ask(running, token, rng.uniform(-8, 8, (16, 6)).astype(np.float32), INFER)
            if answer.status_code == 403:
                break
        answer = ask(running, token, np.zeros(6, np.float32))
    assert answer.status_code == 403 and answer.json()["code"] == "review-required"


FAR = np.array([0, 0, 1e6, 0, 0, 0], np.float32)


def test_inputs_outside_of_the_ranges_are_answered_and_marked_in_the_record(gateway, keep, accounts, trained):
    token, _ = accounts["alice"]
    outcomes = {}
    for address, kind in ((INFER, "predict"), (EXPLAIN, "explain")):
        receipts = [ask(gateway, token, row, address).headers["modelkeep-record"] for row in (trained.fresh[0], FAR)]
        found = {receipt: entry.outcome for receipt, entry, _ in records(keep, gateway, kind)}
        outcomes[kind] = [found[receipt] for receipt in receipts]
    assert outcomes == {"predict": ["ok", "unusual"], "explain": ["ok", "unusual"]}


def test_inputs_outside_of_the_ranges_are_refused_where_the_settings_say_so(keep, accounts, trained, monkeypatch):
    monkeypatch.setenv("MODELKEEP_VALIDATION_RANGES", "refuse")
    token, _ = accounts["alice"]
    with live(keep) as running:
        for address in (INFER, EXPLAIN):
            refused = ask(running, token, FAR, address)
            assert refused.status_code == 400
            assert refused.json()["detail"] == "value 2 of input 'X' is outside of what this model's reference data cover"
            assert ask(running, token, trained.fresh[0], address).status_code == 200
        assert ask(running, token, FAR, "/v2/models/older/infer").status_code == 200  # nothing was learnt then
        assert msgspec.json.decode(ask(running, token, FAR).content)["code"] == "invalid"


def test_the_example_of_the_page_is_answered(gateway, keep, accounts):
    page = (Path(__file__).parents[2] / "docs" / "explain.md").read_text("utf-8")
    command = re.search(r"```sh\n(.*?)```", page, re.DOTALL)[1]
    assert "keep/tls/ca.pem" in command and "https://localhost:8443" in command
    command = command.replace("https://localhost:8443", gateway.url).replace("keep/", f"{keep.premises.directory}/")
    environment = os.environ | {"KEY": accounts["alice"][0]}
    done = subprocess.run(["sh", "-c", f"curl --silent {command[5:]}"], env=environment, capture_output=True, check=False)
    assert msgspec.json.decode(done.stdout)["parameters"]["target"] == 1, done
