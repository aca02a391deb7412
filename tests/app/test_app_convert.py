"""Models made ONNX: live ones in their own process, pickles where they reach nothing, and each held to its own answers."""

import io
import pickle
import textwrap
import warnings

import joblib
import numpy as np
import pandas
import pytest
import torch
from sklearn.compose import make_column_transformer
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.semi_supervised import LabelPropagation

import modelkeep
from modelkeep.adapters.confine import Limits
from modelkeep.adapters.converting import convert
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.fidelity import compare
from modelkeep.core.values import digest_of
from modelkeep.custody.scan import scan
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.serving.runtime import plan_outputs, probability_rows

RNG = np.random.default_rng(11)
X = RNG.normal(size=(300, 5)).astype(np.float32)
Y = (X @ np.array([1, -2, 0.5, 0, 1]) + RNG.normal(size=300) > 0).astype(int) + (X[:, 3] > 1)
SMALL = Limits(memory=2 << 30, seconds=60.0, output=4 << 20)


def pickled(model):
    return memoryview(pickle.dumps(model))


# -- live objects --


@pytest.mark.parametrize(
    "model",
    [
        LogisticRegression(),
        make_pipeline(StandardScaler(), MLPClassifier((8,), max_iter=30, random_state=0)),
        RandomForestClassifier(20, random_state=0),
        GradientBoostingClassifier(n_estimators=10),
    ],
    ids=["logistic", "mlp", "forest", "boosting"],
)
def test_a_classifier_becomes_a_file_that_can_be_served(model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx = modelkeep.convert.from_sklearn(model.fit(X, Y), X[:50])
    verdict = scan(onnx, "m.onnx")
    assert verdict.clean, verdict.findings
    found = OnnxRuntime(onnx).run({"X": X})
    plan = plan_outputs(verdict.signature, OnnxRuntime(onnx).run({"X": X[:1]}))
    assert (plan.label, plan.probabilities) == ("label", "probabilities")
    assert np.allclose(probability_rows(found["probabilities"], 300), model.predict_proba(X), atol=1e-4)


def test_a_regressor():
    model = LinearRegression().fit(X, X[:, 0] * 3 + 1)
    found = OnnxRuntime(modelkeep.convert.from_sklearn(model, X[:5])).run({"X": X})
    assert np.allclose(found["variable"].ravel(), model.predict(X), atol=1e-3)


TOWNS = np.array(["Bonn", "Köln", "Ulm"], object)[np.arange(300) % 3]


def test_columns_of_a_data_frame_are_inputs_of_their_own():
    frame = pandas.DataFrame({"age": X[:, 0], "children": np.arange(300) % 4, "town": TOWNS})
    columns = make_column_transformer((StandardScaler(), ["age", "children"]), (OneHotEncoder(), ["town"]))
    model = make_pipeline(columns, LogisticRegression()).fit(frame, TOWNS)
    onnx = modelkeep.convert.from_sklearn(model, frame)
    verdict = scan(onnx, "m.onnx")
    assert verdict.clean
    assert [(spec.name, spec.datatype, spec.shape) for spec in verdict.signature.inputs] == [
        ("age", "FP32", (-1, 1)), ("children", "INT64", (-1, 1)), ("town", "BYTES", (-1, 1)),
    ]  # fmt: skip
    row = {"age": X[:1, :1], "children": np.array([[1]]), "town": np.array([["Ulm"]], object)}
    assert OnnxRuntime(onnx).run(row)["label"].tolist() == ["Ulm"]


def test_rows_of_text_are_one_input():
    rows = np.stack([TOWNS, TOWNS[::-1]], axis=1)
    model = make_pipeline(OneHotEncoder(), LogisticRegression()).fit(rows, np.arange(300) % 2)
    assert OnnxRuntime(modelkeep.convert.from_sklearn(model, rows)).run({"X": rows})["label"].shape == (300,)


@pytest.mark.parametrize(
    ("model", "example", "why"),
    [
        (KNeighborsClassifier(metric=lambda a, b: float(abs(a - b).sum())), X, "cannot be converted"),
        (LogisticRegression(), X.ravel(), "rows of numbers or of texts"),
        (object(), X, "object cannot be converted"),
    ],
    ids=["own-metric", "flat-example", "no-estimator"],
)
def test_what_cannot_be_converted_is_said_in_a_line(model, example, why):
    if hasattr(model, "fit"):
        model.fit(X, Y)
    with pytest.raises(Invalid, match=why):
        modelkeep.convert.from_sklearn(model, example)


def test_a_file_that_answers_otherwise_is_refused():
    model = LogisticRegression().fit(X, Y)
    onnx = modelkeep.convert.from_sklearn(model, X)
    probabilities, labels = model.predict_proba(X), [str(one) for one in model.predict(X)]
    assert compare(onnx, {"X": X}, probabilities, labels) < 1e-5
    with pytest.raises(NotTrusted, match="another label to 1 of 300"):
        compare(onnx, {"X": X}, probabilities, ["9", *labels[1:]])
    with pytest.raises(NotTrusted, match="differs by"):
        compare(onnx, {"X": X}, probabilities + 2e-4, labels)
    with pytest.raises(NotTrusted, match="shape"):
        compare(onnx, {"X": X}, probabilities[:, :2], labels)


# -- pickles, in a confined interpreter --


def test_a_pickle_is_converted_there():
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    made = convert(pickled(model), X.astype(np.float64), limits=SMALL)
    assert made.values.shape == (300, 3) and made.labels == [str(one) for one in model.predict(X)]
    assert compare(made.onnx, {"X": X}, made.values, made.labels) < 1e-5
    assert {"python", "scikit-learn", "skl2onnx"} <= set(made.versions)


class Runs:
    """A pickle that runs ``code`` when it is loaded."""

    def __init__(self, code):
        self._code = code

    def __reduce__(self):
        return exec, (textwrap.dedent(self._code),)


def says(what):
    """Code that writes to every descriptor that it finds, and ends."""
    return f"""
    import os
    for fd in range(1, 64):
        try:
            os.write(fd, {what})
        except OSError:
            pass
    os._exit(0)
    """


@pytest.mark.parametrize(
    ("held", "why"),
    [
        (LabelPropagation().fit(X, Y), "Unable to find a shape calculator for type .*LabelPropagation"),
        ({"model": 1}, "TypeError: it holds a dict, and no model of scikit-learn: pickle the fitted model alone$"),
    ],
    ids=["unknown estimator", "no estimator"],
)
def test_why_a_pickle_is_not_converted_is_what_went_wrong_and_no_advice(held, why):
    with pytest.raises(Invalid, match=f"could not be converted: .*{why}"):
        convert(pickled(held), X.astype(np.float64), limits=SMALL)


def test_an_interpreter_that_is_not_there_is_named_with_its_setting(tmp_path):
    with pytest.raises(Invalid, match=r"none is not there, or cannot be run: mend the setting convert\.python"):
        convert(pickled(LogisticRegression().fit(X, Y)), X, python=str(tmp_path / "none"), limits=SMALL)


HOSTILE = {
    "network": ("import socket; socket.socket()", "Permission denied"),
    "disk": ("open('/tmp/was-here', 'w')", "Read-only file system|No such file"),
    "keep": ("open(KEEP + '/secret').read()", "No such file"),
    "memory": ("x = bytearray(8 << 30)", "MemoryError"),
    "shell": ("import os; os._exit(7)", "status 7"),
    "processes": ("import os, signal; os.kill(1, 9); os.kill(os.getpid(), 9)", "status 137"),
    "silence": ("import os; os._exit(0)", "no answer that can be read"),
    "chatter": (says("b'x' * (9 << 20)"), "said more than 4 MiB"),
    "lie": (says("(2).to_bytes(8, 'little') + b'{}'"), "no answer that can be read"),
    "long-lie": (says("b'\\xff' * 4096"), "no answer that can be read"),
    "nothing": ("pass", "cannot be converted|could not be converted"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_pickle_that_does_something_else_reaches_nothing(name, tmp_path):
    code, why = HOSTILE[name]
    (tmp_path / "secret").write_text("the keep's")
    data = pickled(Runs(code.replace("KEEP", repr(str(tmp_path)))))
    with pytest.raises((Invalid, NotTrusted), match=why) as caught:
        convert(data, X.astype(np.float64), limits=SMALL, hidden=[str(tmp_path)])
    assert "the keep's" not in str(caught.value)


def test_one_that_never_ends_is_stopped():
    with pytest.raises(Invalid, match="did not end within 2 seconds"):
        convert(pickled(Runs("while True: pass")), X.astype(np.float64), limits=SMALL._replace(seconds=2.0))


# -- at publish --


@pytest.fixture
def files(tmp_path):
    """A pickle and a compressed joblib file of a classifier, and reference rows."""
    model = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(model))
    joblib.dump(model, tmp_path / "m.joblib", compress=3)
    np.savez(tmp_path / "ref.npz", x=X)
    (tmp_path / "evil.pkl").write_bytes(pickled(Runs("import os")))
    return tmp_path


def test_publish_converts_says_so_and_keeps_the_link(cli, files):
    asked = ("--name", "made", "--reference", str(files / "ref.npz"), "--convert")
    done = cli("--json", "publish", str(files / "m.joblib"), *asked, code=0).json
    assert done["ref"] == "made@1" and not done["signature"]
    again = cli("publish", str(files / "m.joblib"), *asked, code=0)
    assert "signed  in the keep; 'modelkeep export' writes it" in again.out
    cli("verify", "made@1", code=0)
    shown = cli("--json", "show", "made@1", code=0).json
    assert shown["release"]["format"] == "onnx" and shown["release"]["custody"] == "sealed"
    said = next(one for one in shown["statements"] if one["type"] == "conversion")
    source = digest_of((files / "m.joblib").read_bytes())
    assert said["summary"] == f"from m.joblib (joblib) {source[:19]}"
    cli("export", "made@1", "--out", str(files / "out.onnx"), code=0)
    assert digest_of((files / "out.onnx").read_bytes()) == done["model_digest"]
    predicate = _statement(cli, said["index"])
    assert predicate["source"] == source and predicate["rows"] == 300 and predicate["difference"] < 1e-4
    assert predicate["scanner"].startswith("modelkeep/") and predicate["versions"]["skl2onnx"]
    cli("promote", "made@1", code=0)


def _statement(cli, index):
    from modelkeep.app.keep import Keep
    from modelkeep.crypto.dsse import parse_envelope
    from modelkeep.ledger.statements import parse_statement

    view = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip()).premises.view()
    return parse_statement(parse_envelope(view.entries(index, index + 1)[0]).unverified_payload()).predicate


def test_what_is_not_clean_is_not_run_and_what_is_no_pickle_not_either(cli, files, desk):
    asked = ("--name", "made", "--reference", str(files / "ref.npz"), "--convert")
    assert "not run to convert it" in cli("publish", str(files / "evil.pkl"), *asked, code=1).line()
    assert "a plain ONNX model" in cli("publish", str(desk / "model.onnx"), *asked, code=2).line()
    buffer = io.BytesIO()
    torch.save({"w": torch.zeros(2)}, buffer)
    (files / "m.pt").write_bytes(buffer.getvalue())
    assert "modelkeep.torch.to_onnx" in cli("publish", str(files / "m.pt"), *asked, code=2).line()
    assert "--reference" in cli("publish", str(files / "m.pkl"), "--name", "made", "--convert", code=2).line()
    refused = cli("publish", str(files / "m.pkl"), "--name", "made", "--reference", str(files / "ref.npz"), code=1)
    assert "is not accepted" in refused.line()  # it is never converted without being told to
    assert [row["ref"] for row in cli("--json", "list", code=0).json] == ["risk@1"]


# -- PyTorch --


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(5, 8), torch.nn.ReLU(), torch.nn.Dropout(0.5), torch.nn.Linear(8, 3))

    def forward(self, x):
        return self.layers(x)


def test_a_module_becomes_a_file_that_can_be_served():
    module = Net().train()
    onnx = modelkeep.torch.to_onnx(module, torch.from_numpy(X[:1]), logits=True)
    assert module.training  # it is left as it was
    verdict = scan(onnx, "m.onnx")
    assert verdict.clean, verdict.findings
    assert [(spec.name, spec.shape) for spec in verdict.signature.outputs] == [("label", (-1,)), ("probabilities", (-1, 3))]
    found = OnnxRuntime(onnx).run({"x": X})
    wanted = torch.softmax(module.eval()(torch.from_numpy(X)), dim=1).detach().numpy()
    assert np.allclose(found["probabilities"], wanted, atol=1e-5)


def test_a_module_that_makes_a_constant_of_the_number_of_rows_is_not_exported():
    class Counts(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, torch.zeros_like(x.reshape(len(x), 5))], dim=1)

    with pytest.raises(Invalid, match="takes 2 rows and no other number"):
        modelkeep.torch.to_onnx(Counts(), torch.ones(2, 5))


def test_a_module_that_cannot_be_exported_is_said_in_a_line():
    class Odd(torch.nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else x.sum()

    with pytest.raises(Invalid, match="Odd cannot be exported") as caught:
        modelkeep.torch.to_onnx(Odd(), torch.ones(2, 5))
    assert "\n" not in str(caught.value)
