"""Stock clients, unchanged: Triton's over HTTP and gRPC, MLServer's types and codecs over both."""

import json

import numpy as np
import pytest
from gateway_support import PASSPHRASE, live, train
from peers import run_peer
from same_models import identity

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.keep import Keep
from modelkeep.core.values import Role
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys, open_body
from modelkeep.workflows.publish import ModelFile, publish

VALUES = {
    "FP32": [[1.5, -2.25], [3e38, 1e-30]], "FP64": [[1.5, 1e300], [-1e-300, 0.0]], "FP16": [[0.5, 65504.0], [-1.0, 6e-8]],
    "BOOL": [[True, False], [False, True]], "BYTES": [["Zürich", ""], ["a,b", "日本"]],
    "INT8": [[-128, 127], [0, 1]], "INT16": [[-(2**15), 2**15 - 1], [0, 1]], "INT32": [[-(2**31), 2**31 - 1], [0, 300]],
    "INT64": [[-(2**63), 2**63 - 1], [0, -300]], "UINT8": [[0, 255], [1, 2]], "UINT16": [[0, 2**16 - 1], [1, 2]],
    "UINT32": [[0, 2**32 - 1], [1, 2]], "UINT64": [[0, 2**64 - 1], [1, 2]],
}  # fmt: skip
FRAME = {"town": ["Bern", "Zürich", "Bern"], "age": [20.0, 50.0, 41.5]}


def towns() -> bytes:
    """A pipeline on a column of texts and one of numbers, as scikit-learn users have it."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from sklearn.compose import ColumnTransformer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    rng = np.random.default_rng(3)
    names, ages = np.array(["Bern", "Zürich", "Genf"], object)[rng.integers(0, 3, 300)], rng.uniform(18, 80, 300)
    columns = np.empty((300, 2), object)
    columns[:, 0], columns[:, 1] = names, ages
    split = ColumnTransformer([("town", OneHotEncoder(handle_unknown="ignore"), [0]), ("age", StandardScaler(), [1])])
    labels = np.where((names == "Bern") & (ages > 40), "old bear", "other")
    model = make_pipeline(split, LogisticRegression()).fit(columns, labels)
    kinds = [("town", StringTensorType([None, 1])), ("age", FloatTensorType([None, 1]))]
    options = {id(model): {"zipmap": False}}
    return to_onnx(model, initial_types=kinds, options=options, target_opset=18).SerializeToString()


@pytest.fixture(scope="module")
def models() -> dict[str, bytes]:
    return {"same": identity(sorted(VALUES)), "iris": train().onnx, "towns": towns()}


@pytest.fixture(scope="module")
def keep(tmp_path_factory, models) -> Keep:
    folder = tmp_path_factory.mktemp("clients") / "keep"
    Keep.init(folder, PASSPHRASE)
    settings = (folder / "modelkeep.toml").read_text().replace('admission = "standard"', 'admission = "open"')
    more = "[gateway]\nport = 0\ngrpc_port = 0\n[limits]\nrate = 100000.0\nburst = 100000\nfailures_burst = 100\n"
    (folder / "modelkeep.toml").write_text(settings + more)
    made = Keep.open(folder, PASSPHRASE)
    made.user_add(name="alice", roles=(Role.ANALYST,))
    for name, model in models.items():
        made.promote(ref=str(publish(made.premises.desk(), ModelFile(model, "m.onnx"), name, actor="test").ref))
    made.alias_set(name="same", alias="champion", version=1)
    return made


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    return train().fresh[:3]


@pytest.fixture(scope="module")
def token(keep) -> str:
    return keep.key_issue(account="alice", quota=100_000).token


@pytest.fixture(scope="module")
def gateway(keep, token):  # the key is issued before the directory is read
    with live(keep) as running:
        yield running
    assert running.errors == []


@pytest.fixture(scope="module")
def told(keep, gateway, token, rows) -> dict:
    """What the clients are told."""
    return {
        "url": gateway.url, "grpc": gateway.grpc, "ca": str(keep.premises.directory / "tls" / "ca.pem"), "key": token,
        "rows": rows.tolist(), "frame": FRAME,
        "models": {
            "same": {f"x_{one}": (one, values) for one, values in VALUES.items()},
            "iris": {"X": ("FP32", rows.tolist())},
            "towns": {"town": ("BYTES", [[one] for one in FRAME["town"]]), "age": ("FP32", [[one] for one in FRAME["age"]])},
        },
        "outputs": {
            "same": [f"y_{one}" for one in sorted(VALUES)], "iris": ["label", "probabilities"],
            "towns": ["label", "probabilities"],
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def triton(told):
    return run_peer("triton_client.py", told)


@pytest.fixture(scope="module")
def mlserver(told):
    return run_peer("mlserver_client.py", told)


def close(datatype: str, values: list) -> list:
    """What six digits leave of the values."""
    flat = np.array(values, object).ravel().tolist()
    dtype = {"FP16": np.float16, "FP32": np.float32, "FP64": np.float64}.get(datatype)
    return pytest.approx([float(dtype(v)) for v in flat], rel=2e-6, abs=0) if dtype else flat


@pytest.mark.parametrize("way", ["json", "binary", "all binary", "json to binary", "grpc"])
def test_every_datatype_comes_back_as_it_went(triton, way):
    answers = triton["answers"]["same"][way]
    assert set(answers) == {f"y_{one}" for one in VALUES}
    for datatype, values in VALUES.items():
        found, shape = answers[f"y_{datatype}"]
        assert shape == [2, 2] and found == close(datatype, values), datatype


@pytest.mark.parametrize("model", ["same", "iris", "towns"])
def test_every_way_to_ask_gets_the_same_answer(triton, model):
    answers = triton["answers"][model]
    assert len(answers) == 5 and all(found == answers["json"] for found in answers.values())


def bare(models, model, feeds):
    return OnnxRuntime(models[model]).run(feeds)


def test_the_answers_are_the_models(triton, models, rows):
    iris = bare(models, "iris", {"X": rows})
    assert triton["answers"]["iris"]["grpc"]["label"][0] == iris["label"].tolist()
    feeds = {
        "town": np.array([[one] for one in FRAME["town"]], object),
        "age": np.array([[one] for one in FRAME["age"]], np.float32),
    }
    pipeline = bare(models, "towns", feeds)
    label, shape = triton["answers"]["towns"]["binary"]["label"]
    assert label == pipeline["label"].tolist() == ["other", "other", "old bear"] and shape == [3]
    found, shape = triton["answers"]["towns"]["grpc"]["probabilities"]
    assert shape == [3, 2] and np.abs(np.array(found) - pipeline["probabilities"].ravel()).max() <= 5.1e-5


@pytest.mark.parametrize("way", ["http", "grpc"])
def test_health_and_metadata(triton, way):
    said = triton[way]
    assert said["live"] is True and said["ready"] is True
    assert said["server"]["name"] == "modelkeep" and said["server"]["extensions"] == ["binary_tensor_data"]
    assert said["model_ready"] == [True, False] and said["version_ready"] == [True, True, False]
    metadata = said["metadata"]
    assert (metadata["name"], metadata["versions"], metadata["platform"]) == ("same", ["1"], "onnx_onnxruntime")
    inputs = {one["name"]: (one["datatype"], [int(size) for size in one["shape"]]) for one in metadata["inputs"]}
    assert inputs == {f"x_{one}": (one, [-1, 2]) for one in VALUES}


def test_ids_and_parameters_of_the_clients(triton):
    assert triton["ids"] == ["q7", "q7"]


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ("http none", "401", "send an API key"), ("http forged", "401", ""), ("http version", "404", "no release iris@9"),
        ("http top", "400", "classification"), ("http shared", "400", "shared memory"),
        ("http gzip", "400", "no content-encoding"),
        ("http config", "404", "nothing at this address"), ("http statistics", "404", "nothing at this address"),
        ("http index", "404", "nothing at this address"),
        ("grpc none", "StatusCode.UNAUTHENTICATED", "send an API key"), ("grpc forged", "StatusCode.UNAUTHENTICATED", ""),
        ("grpc version", "StatusCode.NOT_FOUND", "no release iris@9"), ("grpc gzip", "StatusCode.UNIMPLEMENTED", "compressed"),
        ("grpc config", "StatusCode.UNIMPLEMENTED", "no such method"),
        ("grpc statistics", "StatusCode.UNIMPLEMENTED", "no such method"),
        ("grpc index", "StatusCode.UNIMPLEMENTED", "no such method"),
    ],
)  # fmt: skip
def test_what_is_refused_is_said_in_the_clients_words(triton, what, status, words):
    got, said = triton["failures"][what]
    assert got == status and words in said


@pytest.mark.parametrize("asked", ["numpy", "outputs", "pandas", "strings"])
def test_mlservers_codecs(mlserver, models, rows, asked):
    said = mlserver[asked]
    assert said["http"]["outputs"].keys() == said["grpc"]["outputs"].keys()
    for name, (shape, values) in said["http"]["outputs"].items():
        again, more = said["grpc"]["outputs"][name]
        assert again == shape and (more == values if name == "label" else more == pytest.approx(values, rel=1e-6))
    if asked in ("numpy", "outputs"):
        probabilities = bare(models, "iris", {"X": rows})["probabilities"]
        found = np.array(said["http"]["outputs"]["probabilities"][1]).reshape(3, 3)
        assert (found.argmax(axis=1) == probabilities.argmax(axis=1)).all()
        assert set(said["http"]["outputs"]) == ({"probabilities"} if asked == "outputs" else {"label", "probabilities"})
    else:
        assert said["http"]["outputs"]["label"][1] == ["other", "other", "old bear"]
    assert said["http"]["model"][1] == "1" and (asked != "outputs" or said["http"]["id"] == said["grpc"]["id"] == "m-1")


def test_mlservers_data_frame(mlserver):
    assert mlserver["frame"]["label"] == ["other", "other", "old bear"]


def test_the_record_is_the_same_whichever_way_an_answer_left(keep, gateway, mlserver, triton):
    """The receipt names a prediction in the audit log; its body says what left, as JSON also when that was not JSON."""
    gateway.service.audit.publish()
    here = keep.premises
    origin, files = here.audit_origin(gateway.instance), here.audit_files(gateway.instance)
    found = {
        index: (entry, body) for index, entry, body in read_bodies(files, encode_vkey(origin, here.trust.audit_key), origin)
    }
    receipts = [said["receipt"] for name, said in mlserver.items() if name != "frame"]
    assert len(set(receipts)) == len(receipts) == 4 and all(one.startswith(f"{gateway.instance}/") for one in receipts)
    for receipt in receipts:
        entry, _ = found[int(receipt.partition("/")[2])]
        assert (entry.kind, entry.outcome) == ("predict", "ok")
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy)
    said = [
        open_body(keys.key(entry.subject), body, entry.subject, entry.release).outputs
        for entry, body in found.values()
        if entry.kind == "predict" and entry.release == "same@1"
    ]
    assert len(said) >= 5 and {json.dumps(json.loads(one)["outputs"]) for one in said} == {
        json.dumps(json.loads(said[0])["outputs"])
    }
    denied = {entry.outcome for entry, _ in found.values() if entry.kind == "deny"}
    assert denied >= {"invalid", "missing"}
