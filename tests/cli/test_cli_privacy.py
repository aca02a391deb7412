"""Private training from the command line: the budget of a data set, runs that are charged to it, and audits."""

import datetime
import json

import numpy as np
import pytest
import torch
from commandline import PASSPHRASE

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.arrays import load_labelled
from modelkeep.app.keep import Keep
from modelkeep.core.values import Principal, Role, digest_of
from modelkeep.errors import Denied, Invalid
from modelkeep.training.budgets import plan_run


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """train.npz, test.npz and renamed.npz (the bytes of train.npz) of three clusters of people."""
    folder, generator = tmp_path_factory.mktemp("shelf"), np.random.default_rng(0)
    centres = generator.normal(size=(3, 5)) * 2.0
    for name, count in (("train", 300), ("test", 200)):
        y = generator.integers(0, 3, count)
        np.savez(folder / f"{name}.npz", x=centres[y] + generator.normal(size=(count, 5)), y=y)
    (folder / "renamed.npz").write_bytes((folder / "train.npz").read_bytes())
    return folder


def train(cli, shelf, out, *more, dataset="people@1", epsilon="2", code=0):
    named = ("--data", str(shelf / "train.npz"), "--out", str(out), "--bounds", "-8:8", "--epochs", "3")
    charged = ("--dataset", dataset) if dataset else ()
    return cli(
        "--json", "privacy", "train", "mlp:4", *named, *charged, "--epsilon", epsilon, "--delta", "1e-5", *more, code=code
    )


def test_runs_are_charged_and_the_one_too_many_is_refused_before_it_begins(cli, shelf, tmp_path):
    cli("privacy", "budget", "people", "--epsilon", "2.8", "--delta", "1e-5", "--reason", "review 3", code=0)
    page = tmp_path / "page.html"
    done = train(cli, shelf, tmp_path / "a.onnx", "--test", str(shelf / "test.npz"), "--report", str(page)).json
    assert done["digest"] == digest_of((tmp_path / "a.onnx").read_bytes())
    assert 1.98 < done["epsilon"] <= 2.0 and done["ledger"]["epsilon"] == pytest.approx(done["epsilon"], rel=1e-9)
    assert "fresh weights" in done["repairs"] and "key from the system" in done["noise"]
    x, y, _ = load_labelled((shelf / "test.npz").read_bytes(), "test.npz")
    labels = OnnxRuntime((tmp_path / "a.onnx").read_bytes()).run({"x": x.astype(np.float32)})["label"]
    assert done["accuracy"]["value"] == (labels == y).mean() > done["accuracy"]["low"]
    assert "Ledger of people" in page.read_text() and " of 2.8 at delta 1e-05" in page.read_text()
    assert "<td>spent</td>" in page.read_text() and done["ledger"]["runs"][0]["models"] == [done["digest"]]
    assert datetime.datetime.now(datetime.UTC).strftime("<td>%Y-") in page.read_text()
    assert cli("--json", "log", "show", "--last", "1", code=0).json[0]["type"] == done["logged"]["type"] == "privacy"

    refused = train(cli, shelf, tmp_path / "b.onnx", dataset="people@2", code=1)
    told = json.loads(refused.err)
    assert told["code"] == "denied" and "1 run has spent" in told["message"] and "would fit" in told["message"]
    assert "data set people to epsilon" in told["message"]
    assert not (tmp_path / "b.onnx").exists()
    fits = told["message"].partition("one of epsilon ")[2].split()[0]
    assert 1.5 < float(fits) < 2.0
    assert train(cli, shelf, tmp_path / "b.onnx", dataset="people@2", epsilon=fits).json["ledger"]["epsilon"] <= 2.8
    assert "of 2.8" in json.loads(train(cli, shelf, tmp_path / "c.onnx", epsilon="0.5", code=1).err)["message"]
    (ledger,) = cli("--json", "privacy", "ledger", code=0).json
    assert [run["state"] for run in ledger["runs"]] == ["spent", "spent"] and ledger["budget"] == 2.8
    assert "of 2.8" in cli("privacy", "ledger", "people@7", code=0).out


def reserve(cli, shelf, dataset):
    """Reserve a run as 'privacy train' does before it begins."""
    keep = Keep.open(cli.keep, PASSPHRASE.encode)
    digest = digest_of((shelf / "train.npz").read_bytes())
    return keep.privacy_reserve(dataset=dataset, digest=str(digest), plan=plan_run(300, epsilon=2.0, delta=1e-5))


def test_the_same_data_under_another_name_is_the_same_budget(cli, shelf, tmp_path):
    reserve(cli, shelf, "people@1")
    again = train(cli, shelf, tmp_path / "b.onnx", "--data", str(shelf / "renamed.npz"), dataset="strangers", code=1)
    assert "charged to people before" in json.loads(again.err)["message"]
    assert reserve(cli, shelf, "people@2").ledger.epsilon > 2.0


def test_a_run_that_fails_is_charged_for_the_steps_that_it_made(cli, shelf, tmp_path):
    far = ("--learning-rate", "1e30", "--clip", "1e30")
    lost = train(cli, shelf, tmp_path / "a.onnx", *far, dataset="people", epsilon="1", code=2)
    assert "weights that are no numbers" in json.loads(lost.err.splitlines()[-1])["message"]
    ((run,),) = [one["runs"] for one in cli("--json", "privacy", "ledger", code=0).json]
    assert (run["state"], run["steps"]) == ("spent", 3) and 0.9 < run["epsilon"] <= 1.0
    assert "settled" in cli("privacy", "return", run["run"], code=1).line()
    unbegun = reserve(cli, shelf, "people").run
    assert cli("--json", "privacy", "return", unbegun, code=0).json["state"] == "returned"
    assert "no run" in cli("privacy", "return", "0" * 32, code=2).line()


def test_what_is_charged_to_nothing_says_so(cli, shelf, tmp_path):
    done = train(cli, shelf, tmp_path / "a.onnx", "--canaries", "40", "--seed", "3", dataset="")
    assert done.line().startswith("no data set was named: this run is charged to no budget") and done.json["ledger"] is None
    assert done.json["audit"]["canaries"] == 40 and "no privacy from whoever knows it" in done.json["noise"]
    assert cli("--json", "privacy", "ledger", code=0).json == []
    cli("privacy", "ledger", "nobody", code=2)
    foretold = train(cli, shelf, tmp_path / "b.onnx", "--seed", "3", code=2)
    assert "can be foretold" in json.loads(foretold.err)["message"]


def test_attested_runs_count_too(cli, shelf, tmp_path):
    reserve(cli, shelf, "people")
    data = {"name": "people@9", "digest": str(digest_of(b"data")), "files": 0}
    (tmp_path / "dp.json").write_text(json.dumps({"epsilon": 1.0, "delta": 1e-6, "accountant": "rdp", "dataset": data}))
    cli("attest", str(shelf / "test.npz"), "--type", "privacy", str(tmp_path / "dp.json"), code=0)
    ledger = cli("--json", "privacy", "ledger", "people", code=0).json
    assert [(run["run"] != "", run["steps"] > 0) for run in ledger["runs"]] == [(True, True), (False, False)]
    assert 2.4 < ledger["epsilon"] <= 3.0
    (told,) = (
        Keep.open(cli.keep, PASSPHRASE.encode)
        .premises.registry()
        .book.attestations.about(digest_of((shelf / "test.npz").read_bytes()), "any")
    )
    assert told.said.dataset.name == "people@9" and told.said.dataset.digest != digest_of(b"data")  # salted


@pytest.mark.parametrize("field", [{"run": "0" * 32}, {"dataset_epsilon": 0.1}])
def test_what_the_ledger_says_is_not_attested_by_hand(cli, shelf, tmp_path, field):
    (tmp_path / "dp.json").write_text(json.dumps({"epsilon": 1.0, "delta": 1e-6, "accountant": "rdp", **field}))
    refused = cli("attest", str(shelf / "test.npz"), "--type", "privacy", str(tmp_path / "dp.json"), code=2)
    assert "said by 'modelkeep privacy train' alone" in refused.line()


def test_data_that_lie_sealed_are_charged_to_the_name_that_was_first(cli, shelf):
    keep, data = Keep.open(cli.keep, PASSPHRASE.encode), shelf / "train.npz"
    keep.data_add_from(data, "people")
    with pytest.raises(Denied, match="charged to people before, or sealed so"):
        reserve(cli, shelf, "strangers")
    keep.data_add_from(data, "copied")  # whoever adds the same bytes elsewhere bars nobody from the first name
    assert reserve(cli, shelf, "people@1").run
    with pytest.raises(Invalid, match="names no data set"):
        reserve(cli, shelf, "@1")


def test_of_two_names_reserved_at_once_the_first_in_the_log_is_charged(cli, shelf):
    keep = Keep.open(cli.keep, PASSPHRASE.encode)
    salts, raced = keep.premises.data_salts, []

    def racing():
        if len(raced) == 1:
            raced.append(reserve(cli, shelf, "people"))
        raced.append(None)
        return salts()

    keep.premises.data_salts = racing
    plan = plan_run(300, epsilon=1.0, delta=1e-5)
    with pytest.raises(Denied, match="charged to people before"):
        keep.privacy_reserve(dataset="strangers", digest=str(digest_of((shelf / "train.npz").read_bytes())), plan=plan)
    assert [(one.name, one.runs[0].state) for one in keep.privacy_ledger()] == [
        ("people", "reserved"),
        ("strangers", "returned"),
    ]


def test_who_trains_settles_his_own_runs_alone(cli, shelf):
    keep, run = Keep.open(cli.keep, PASSPHRASE.encode), reserve(cli, shelf, "people").run
    ada, bea = (keep.acting_as(Principal(name, f"sub_{name}", (Role.DATA_SCIENTIST,), "local")) for name in ("ada", "bea"))
    data, plan = str(digest_of(b"more")), plan_run(300, epsilon=1.0, delta=1e-5)
    own = ada.privacy_reserve(dataset="people", digest=data, plan=plan).run
    for refused in (
        lambda: bea.privacy_settle(run=own, steps=0),
        lambda: ada.privacy_settle(run=run, steps=0),
        lambda: bea.privacy_record(run=own, filename="a.onnx", digest=data),
        lambda: ada.privacy_budget(dataset="people", epsilon=99.0, delta=1e-5),
    ):
        with pytest.raises(Denied):
            refused()
    assert ada.privacy_settle(run=own, steps=0).state == "returned"
    assert keep.privacy_settle(run=run, steps=1).state == "spent"
    with pytest.raises(Invalid, match="whole data set"):
        keep.privacy_budget(dataset="people@1", epsilon=9.0, delta=1e-5)


def test_an_overfitted_model_is_caught_and_bounds_epsilon(cli, shelf, tmp_path):
    from modelkeep.torch import to_onnx
    from modelkeep.training.lab.architectures import by_word
    from modelkeep.training.lab.shadows import train_plain

    x, y, _ = load_labelled((shelf / "test.npz").read_bytes(), "test.npz")
    y = np.random.default_rng(1).integers(0, 3, len(y))  # nothing to learn but the rows themselves
    inside = np.random.default_rng(2).random(len(x)) < 0.5
    torch.manual_seed(0)
    module = train_plain(by_word("mlp:64", (5,), 3), x[inside], y[inside], epochs=300)
    (tmp_path / "model.onnx").write_bytes(to_onnx(module, torch.zeros(4, 5), logits=True))
    for name, chosen in (("in", inside), ("out", ~inside)):
        np.savez(tmp_path / f"{name}.npz", x=x[chosen], y=y[chosen])
    named = (str(tmp_path / "model.onnx"), "--members", str(tmp_path / "in.npz"), "--others", str(tmp_path / "out.npz"))
    loss = cli("--json", "privacy", "audit", *named, "--coin", code=0).json
    assert loss["area"]["low"] > 0.6 and loss["one_run"]["epsilon"] > 0.3 and set(loss["caught"]) == {"0.01"}
    lira = cli(
        "--json", "privacy", "audit", *named, "--attack", "lira", "--shadows", "4", "--architecture", "mlp:8", code=0
    ).json
    assert lira["shadows"] == 4 and lira["area"]["low"] > 0.5
    assert "guessing" in cli("privacy", "audit", *named, code=0).out
    same = ("privacy", "audit", named[0], "--members", named[2], "--others", named[2])
    assert "are the very same data" in cli(*same, code=2).err


def test_a_run_that_cannot_begin_is_not_charged(cli, shelf, tmp_path):
    before = cli("privacy", "ledger").out
    out = ("--out", str(tmp_path / "out.onnx"), "--epsilon", "2", "--delta", "1e-5", "--dataset", "unbegun")
    data = ("--data", str(shelf / "train.npz"))
    np.savez(tmp_path / "far.npz", x=np.full((300, 5), 1e300), y=np.arange(300) % 3)
    np.savez(tmp_path / "many.npz", x=np.zeros((300, 5)), y=np.arange(300) * 10**10)
    np.savez(tmp_path / "one.npz", x=np.zeros((300, 5)), y=np.zeros(300, np.int64))
    for given, said in (
        (("mpl:4", *data), "'mpl:4' is no architecture"),
        (("mlp:4", *data, "--canaries", "299"), "an audit has 20 to 150 canaries of 300 rows, not 299"),
        (("mlp:4", *data, "--learning-rate", "1e38"), "none above 1e+30"),
        (("mlp:4", *data, "--classes", "2"), "labels go from 0 to 2: classes are numbered from 0, and there are 2"),
        (("mlp:4", "--data", str(tmp_path / "far.npz")), "far.npz: some numbers are beyond the range of float32"),
        (("mlp:4", "--data", str(tmp_path / "many.npz")), "and there are 2 to 65,536 of them"),
        (("mlp:4", "--data", str(tmp_path / "one.npz")), "and there are 2 to 65,536 of them"),
    ):
        assert said in cli("privacy", "train", *given, *out, code=2).line()
    assert cli("privacy", "ledger").out == before
    assert not list(tmp_path.glob("*out.onnx*"))


def test_a_file_that_is_no_model_is_called_by_its_name(bare, shelf, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"not a model")
    data = ("--members", str(shelf / "train.npz"), "--others", str(shelf / "test.npz"))
    assert "refused: x.onnx is not run" in bare("privacy", "audit", str(tmp_path / "x.onnx"), *data, code=1).line()
