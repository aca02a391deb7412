"""An inner layer that the evidence looks at, end to end: published, served, recorded, replayed, calibrated; and refused."""

import io

import msgspec
import numpy as np
import pytest
from commandline import Cli
from gateway_support import live, make_keep, question

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.core.values import ReleaseRef, Role
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.errors import Invalid
from modelkeep.formats.onnx_inner import with_output
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys, open_body
from modelkeep.workflows.follow import open_profile

INFER, REF = "/v2/models/deep/infer", ReleaseRef("deep", 1)


@pytest.fixture(scope="module")
def network(trained):
    """A perceptron with one hidden layer as ONNX."""
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPClassifier

    labels = OnnxRuntime(trained.onnx).run({"X": trained.reference})["label"]
    model = MLPClassifier((16,), max_iter=2000, tol=1e-3, random_state=1).fit(trained.reference, labels)
    proto = to_onnx(model, trained.reference[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    return proto.SerializeToString()


def packed(rows: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.savez(file, x=rows)
    return file.getvalue()


def crowd() -> bytes:
    """A classifier of which two inner tensors depend on the rows that are asked together: ``likeness``, of each row to each,
    by its shape (rows, rows) too, and ``apart``, how far each is from their mean, by its values alone."""
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Transpose", ["X"], ["turned"]),
        helper.make_node("MatMul", ["X", "turned"], ["likeness"]),
        helper.make_node("ReduceMean", ["X"], ["mean"], axes=[0], keepdims=1),
        helper.make_node("Sub", ["X", "mean"], ["apart"]),
        helper.make_node("MatMul", ["X", "w"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    w = numpy_helper.from_array(np.random.default_rng(1).normal(size=(6, 3)).astype(np.float32), "w")
    inputs = [helper.make_tensor_value_info("X", TensorProto.FLOAT, [None, 6])]
    outputs = [
        helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
        helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 3]),
    ]
    graph = helper.make_graph(nodes, "crowd", inputs, outputs, [w])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained, network):
    keep = make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)
    done = keep.publish(name="deep", filename="m.onnx", model=network, reference=packed(trained.reference), embedding="auto")
    assert done.layer
    keep.promote(ref=done.ref)
    for name in ("thief", "tool"):
        keep.user_add(name=name, roles=(Role.ANALYST,))
    return keep


@pytest.fixture(scope="module")
def profile(keep):
    registry = keep.premises.registry(keep.premises.openers())
    return open_profile(registry, registry.release(REF))


def subject_of(keep, name):
    return next(row.subject for row in keep.user_list() if row.name == name)


def verdict(running, keep, name):
    (watch,) = (watch for ref, watch in running.service.loader.by_release().items() if ref == REF)
    watch.work()
    return watch.verdict(subject_of(keep, name))


def bodies(keep, name):
    """The plain bodies of what ``name`` was answered by the model, in order."""
    here, subject = keep.premises, subject_of(keep, name)
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy)
    for instance in here.audit_instances():
        origin = here.audit_origin(instance)
        for _, entry, sealed in read_bodies(here.audit_files(instance), encode_vkey(origin, here.trust.audit_key), origin):
            if (entry.kind, entry.subject, entry.release) == ("predict", subject, str(REF)):
                yield open_body(keys.existing(subject), sealed, subject, str(REF))


def test_the_sealed_model_is_the_file_that_was_given(keep, network):
    assert keep.export(ref="deep@1").model == network


def test_answers_stay_as_they_are_and_their_records_hold_what_the_layer_saw(keep, trained, network, profile):
    key = keep.key_issue(account="alice", quota=100_000).token
    rows = trained.fresh[:20]
    with live(keep) as running, running.client(key) as client:
        answers = [client.post(INFER, content=question(rows[:1])), client.post(INFER, content=question(rows[1:]))]
        refused = client.post(INFER, content=question(rows[0], outputs=[{"name": profile.layer.tensor}]))
        metadata = client.get("/v2/models/deep").json()
        found = verdict(running, keep, "alice")
    assert [answer.status_code for answer in answers] == [200, 200]
    assert refused.status_code == 400 and "does not exist" in refused.text, "the layer itself never leaves"
    assert {one["name"] for one in metadata["outputs"]} == {"label", "probabilities"}
    given = {output["name"]: output["data"] for output in answers[1].json()["outputs"]}
    truth = OnnxRuntime(with_output(network, profile.layer.tensor)).run({"X": rows})
    assert given["label"] == truth["label"][1:].tolist()
    seen = np.concatenate([body.coordinates() for body in bodies(keep, "alice")])
    assert seen.dtype == np.float32 and seen.shape == (20, profile.layer.directions)
    np.testing.assert_allclose(seen, profile.layer.project(truth[profile.layer.tensor]), rtol=1e-4, atol=1e-5)
    assert (found.queries, found.alarmed_at) == (20, None)


def test_a_thief_is_accused_and_accused_again_from_the_records_alone(keep, trained):
    key = keep.key_issue(account="thief", quota=100_000).token
    rows = np.random.default_rng(3).uniform(trained.reference.min(axis=0), trained.reference.max(axis=0), size=(60, 6))
    with live(keep) as running, running.client(key) as client:
        for row in rows.astype(np.float32):
            if client.post(INFER, content=question(row)).status_code == 403:
                break
            found = verdict(running, keep, "thief")
    assert found.alarmed_at is not None
    with live(keep) as again:
        replayed = verdict(again, keep, "thief")
    for what in ("rung", "log_m", "odds", "queries", "effective", "alarmed_at"):
        assert getattr(replayed, what) == getattr(found, what), what
    (told,) = keep.account_explain(account="thief", release="deep@1").standings
    assert (told.rung, told.odds) == ("alarm", found.odds)


def test_a_tool_and_an_account_calibrate_it(keep, trained):
    key = keep.key_issue(account="tool", quota=100_000).token
    rows = np.round(trained.fresh[:200])
    with live(keep) as running, running.client(key) as client:
        for at in range(0, 200, 8):
            assert client.post(INFER, content=question(rows[at : at + 8])).status_code in (200, 403, 429)
    declared = keep.calibrate(ref="deep@1", tools=(packed(rows),), dry_run=True)
    vouched = keep.calibrate(ref="deep@1", accounts=("tool",), dry_run=True)
    for done in (declared, vouched):
        assert any(row.after > row.before for row in done.scores), done
        assert "layer" in {row.score for row in done.scores}
    assert keep.calibrate(ref="deep@1", tools=(packed(rows),), reason="declared").log_index > 0


def test_profiles_with_a_layer_are_read_as_they_were_written(profile):
    arrays = profile.to_arrays()
    again = type(profile).from_arrays(arrays)
    assert again.layer.tensor == profile.layer.tensor
    assert all(np.array_equal(again.to_arrays()[name], array) for name, array in arrays.items())
    for name, wrong in (
        ("layer.origin", arrays["layer.origin"][:-1]),
        ("layer.basis_of_layer", np.ones((len(arrays["layer.origin"]), 17))),
        ("layer.tensor", np.array([300.0, 255.0])),
        ("layer.memory", np.full_like(arrays["layer.memory"], np.nan)),
    ):
        with pytest.raises(Invalid, match="publish the model again"):
            type(profile).from_arrays({**arrays, name: wrong})
    without = {name: array for name, array in arrays.items() if not name.startswith("layer.")}
    with pytest.raises(Invalid, match="do not fit together"):
        type(profile).from_arrays(without)


@pytest.mark.parametrize(
    ("model", "embedding", "why"),
    [
        ("network", "no such tensor", "no node of the graph makes a tensor called 'no such tensor'"),
        ("network", "label", "does not hold floating numbers for each row"),
        ("crowd", "likeness", "the inner tensor 'likeness' holds other numbers for a row that is asked alone"),
        ("crowd", "apart", "the inner tensor 'apart' holds other numbers for a row that is asked alone"),
        ("linear", "auto", "no Gemm or MatMul behind another node"),
        ("weights", "auto", "only an ONNX model has a graph with inner layers"),
    ],
)
def test_what_has_no_such_layer_is_refused(keep, trained, network, model, embedding, why):
    from safetensors.numpy import save

    data = {"network": network, "crowd": crowd(), "linear": trained.onnx, "weights": save({"w": np.zeros(3)})}[model]
    with pytest.raises(Invalid, match=why):
        keep.publish(name="other", filename="m", model=data, reference=packed(trained.reference), embedding=embedding)


def test_layers_of_an_upstream_are_not_seen(keep, trained, tmp_path):
    (tmp_path / "ref.npz").write_bytes(packed(trained.reference))
    cli = Cli(keep.premises.directory, keep.premises.directory / "no-passphrase-is-needed")
    given = ("--upstream", "https://models.example", "--reference", str(tmp_path / "ref.npz"), "--embedding", "auto")
    assert "a model that another server runs" in cli("publish", "--name", "far", *given, code=2).err


def test_the_body_of_a_record_without_a_layer_says_nothing_of_one(keep, trained):
    key = keep.key_issue(account="alice", quota=100_000).token
    with live(keep) as running, running.client(key) as client:
        client.post("/v2/models/iris/infer", content=question(trained.fresh[0]))
    here, subject = keep.premises, subject_of(keep, "alice")
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy)
    instance = here.audit_instances()[-1]
    origin = here.audit_origin(instance)
    last = [
        open_body(keys.existing(subject), sealed, subject, entry.release)
        for _, entry, sealed in read_bodies(here.audit_files(instance), encode_vkey(origin, here.trust.audit_key), origin)
        if entry.release == "iris@1"
    ]
    assert last[-1].coordinates() is None and msgspec.structs.asdict(last[-1])["hidden"] == b""
