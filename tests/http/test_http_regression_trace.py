"""A copy of a model that answers with one number is traced to the account that paid for it."""

import io

import numpy as np
import pytest
from commandline import Cli
from gateway_support import PASSPHRASE, live, make_keep, question, soon
from skl2onnx import to_onnx
from sklearn.ensemble import ExtraTreesRegressor, RandomForestRegressor

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.core.values import Role
from modelkeep.errors import Invalid
from modelkeep.workflows.marks import Marks

EPSILON = 0.2


def exported(model, rows):
    return to_onnx(model, rows[:1].astype(np.float32), target_opset=18).SerializeToString()


def packed(**arrays):
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def ask(client, rows, name="price"):
    answer = client.post(f"/v2/models/{name}/infer", content=question(rows))
    assert answer.status_code == 200, answer.text
    (output,) = answer.json()["outputs"]
    assert output["shape"] == [len(rows), 1]
    return np.array(output["data"])


@pytest.fixture(scope="module")
def stolen(tmp_path_factory, trained):
    """The command line on a keep whose model alice copied and bob asked too, its folder, and what both were answered."""
    folder = tmp_path_factory.mktemp("numbers")
    keep = make_keep(folder / "keep", trained)
    with (folder / "keep" / "modelkeep.toml").open("a") as file:
        file.write(f"[extraction]\nregression_epsilon = {EPSILON}\n")
    keep = type(keep).open(folder / "keep", PASSPHRASE)
    keep.user_add(name="bob", roles=(Role.ANALYST,))
    rng = np.random.default_rng(4)
    x = np.concatenate([trained.reference, trained.fresh])
    y = 500 + 40 * x[:, 0] * x[:, 1] + 60 * x[:, 2] + rng.normal(size=len(x)) * 30
    model = exported(RandomForestRegressor(10, random_state=0).fit(x[300:], y[300:]), x)
    for name, reference in (("price", packed(x=x[:300], y=y[:300])), ("plain", packed(x=x[:300]))):
        keep.promote(ref=keep.publish(name=name, filename="m.onnx", model=model, reference=reference).ref)
    thief, honest = (keep.key_issue(account=name, quota=10_000).token for name in ("alice", "bob"))
    rows = (trained.fresh[rng.integers(300, size=440)] + rng.normal(size=(440, 6)) * 0.4).astype(np.float32)
    with live(keep) as gateway:
        with gateway.client(thief) as client:
            got = np.concatenate([ask(client, rows[at : at + 50]) for at in range(0, 400, 50)])
        with gateway.client(honest) as client:
            other, plain = ask(client, rows[:40]), ask(client, rows[:40], "plain")
        assert gateway.errors == []
    clean = OnnxRuntime(model).run({"X": rows})["variable"][:, 0].astype(np.float64)
    error = np.sqrt(np.mean((OnnxRuntime(model).run({"X": x[:300]})["variable"][:, 0] - y[:300]) ** 2))
    for name, answers in (("copy", got), ("rival", clean[:400] + rng.normal(size=400) * 10)):
        (folder / f"{name}.onnx").write_bytes(exported(ExtraTreesRegressor(20, random_state=1).fit(rows[:400], answers), rows))
    (folder / "pass").write_bytes(PASSPHRASE)
    return Cli(folder / "keep", folder / "pass"), folder, keep, (clean, got, other, plain, error)


def traced(stolen, suspect, *more, ref="price@1", code=0):
    return stolen[0]("trace", str(stolen[1] / suspect), "--model", ref, *more, "--json", code=code)


def test_answers_move_within_the_models_own_error_and_differently_for_each_account(stolen):
    clean, got, other, plain, error = stolen[3]
    size = EPSILON * error
    for answers in (got, other):
        moved = np.abs(answers - clean[: len(answers)])
        assert (moved <= size * (1 + 1e-6)).all() and (moved > 0.7 * size).all()
    assert 0.2 < (got[:40] == other).mean() < 0.8
    assert np.allclose(plain, clean[:40], rtol=1e-5), "without the truth, answers carry no mark"


def test_the_thief_is_named_and_nobody_else(stolen):
    found = traced(stolen, "copy.onnx").json
    assert [one["account"] for one in found["accounts"]] == ["alice", "bob"]
    assert found["accounts"][0]["p"] < 1e-9 < 0.05 < found["accounts"][1]["p"]
    assert found["verdict"].startswith("Traced to alice") and found["accounts"][0]["queries"] == 400


def test_a_model_that_learnt_without_marks_names_nobody(stolen):
    found = traced(stolen, "rival.onnx").json
    assert found["verdict"].startswith("No account") and min(one["p"] for one in found["accounts"]) > 0.05


def test_nothing_is_claimed_by_a_key_that_is_younger_than_the_suspect(stolen):
    found = traced(stolen, "copy.onnx", "--seen", "2026-01-31").json
    assert found["verdict"].startswith("No account") and found["accounts"][0]["late"]


def test_no_number_leaves_before_its_key_is_committed(stolen, trained):
    keep = stolen[2]
    token = keep.key_issue(account="bob", quota=10_000).token
    with live(keep) as gateway, gateway.client(token) as client:
        gateway.service.gateway._marks = Marks(bytes(32), lambda _subject, _ref: ())
        asked = question(trained.fresh[:1])
        refused = client.post("/v2/models/price/infer", content=asked)
        assert (refused.status_code, "watermark key" in refused.json()["detail"]) == (503, True)
        assert client.post("/v2/models/plain/infer", content=asked).status_code == 200, "its answers carry no mark"


def test_a_renewed_key_marks_otherwise(stolen, trained):
    keep = stolen[2]
    token = keep.key_issue(account="bob", quota=10_000).token
    with live(keep) as gateway, gateway.client(token) as client:
        before = ask(client, trained.fresh[:60])
        assert np.array_equal(ask(client, trained.fresh[:60]), before), "asking again teaches nothing"
        assert keep.mark_renew(ref="price@1", account="bob", reason="a test").epoch == 1
        soon(lambda: 0.2 < (ask(client, trained.fresh[:60]) == before).mean() < 0.8)
    found = traced(stolen, "copy.onnx").json
    assert found["accounts"][0]["account"] == "alice" and found["accounts"][1]["p"] > 0.05


def test_what_cannot_be_traced_is_refused_in_one_line(stolen, tmp_path):
    _, folder, keep, _ = stolen
    assert "has no report yet" in traced(stolen, "copy.onnx", "--report", str(tmp_path / "case"), code=2).line()
    assert not (tmp_path / "case").exists()
    assert "regression_epsilon" in traced(stolen, "copy.onnx", ref="plain@1", code=2).line()
    (folder / "iris.onnx").write_bytes(keep.export(ref="iris@1").model)
    assert "one finite number a row" in traced(stolen, "iris.onnx", code=2).line()
    assert "two or more classes" in traced(stolen, "copy.onnx", ref="iris@1", code=2).line()


@pytest.mark.parametrize(
    ("truth", "word"),
    [
        (np.zeros(299), "one true number for each of the 300 rows"),
        (np.zeros((300, 2)), "one true number"),
        (np.full(300, np.nan), "finite numbers"),
        (np.full(300, "dear"), "finite numbers"),
        (np.full(300, None), "Python objects"),
        (np.full(300, 1e200), "look at the array 'y'"),
    ],
)
def test_a_truth_that_is_none_is_refused(stolen, trained, truth, word):
    keep = stolen[2]
    model = keep.export(ref="price@1").model
    with pytest.raises(Invalid, match=word):
        keep.publish(name="other", filename="m.onnx", model=model, reference=packed(x=trained.reference, y=truth))
