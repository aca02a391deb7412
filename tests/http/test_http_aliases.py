"""Aliases at the gateway: they answer, they move while requests run, and they never reach what is not served."""

import itertools
import threading

import numpy as np
import pytest
from gateway_support import live, make_keep, question

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.core.values import digest_of
from modelkeep.extraction.fitting import fit_profile
from modelkeep.workflows.publish import Calibration, ModelFile, publish

CHAMPION = "/v2/models/iris/versions/champion"


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    """iris@1 is promoted and the champion."""
    made = make_keep(tmp_path_factory.mktemp("aliases") / "keep", trained)
    made.alias_set(name="iris", alias="champion", version=1)
    return made


@pytest.fixture(scope="module")
def alice(keep):
    return keep.key_issue(account="alice", quota=100_000).token


@pytest.fixture(scope="module")
def gateway(keep, alice):
    with live(keep) as running:
        yield running
    assert running.errors == []


def publish_next(keep, trained):
    """The same model as the next version of iris, which shares its body."""
    rows = trained.reference.astype(np.float64)
    profile = fit_profile(rows, lambda x: OnnxRuntime(trained.onnx).run({"X": x.astype(np.float32)})["probabilities"], seed=1)
    calibration = Calibration(lambda _model, _interface: profile.to_arrays(), len(rows), digest_of(b"reference"))
    return publish(keep.premises.desk(), ModelFile(trained.onnx, "m.onnx"), "iris", actor="test", calibration=calibration)


class Asking:
    """A client that asks without a pause, in a thread, and notes what it was answered."""

    def __init__(self, gateway, alice, row):
        self._client, self._body = gateway.client(alice), question(row)
        self._stop, self.answers = threading.Event(), []
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        while not self._stop.is_set():
            answer = self._client.post(f"{CHAMPION}/infer", content=self._body)
            self.answers.append((answer.status_code, answer.json().get("model_version")))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self._client.close()


def test_a_new_champion_takes_over_and_no_request_is_lost(gateway, keep, alice, trained):
    with gateway.client(alice) as client, Asking(gateway, alice, trained.fresh[:1]) as asking:
        assert client.post(f"{CHAMPION}/infer", content=question(trained.fresh[:1])).json()["model_version"] == "1"
        made = publish_next(keep, trained)
        keep.promote(ref=str(made.ref))
        keep.alias_set(name="iris", alias="champion", version=made.ref.version, expect=1)  # it may still be loading
        wait_for(lambda: asking.answers and asking.answers[-1][1] == "2")
        keep.alias_set(name="iris", alias="champion", version=1, expect=2)
        after = client.post(f"{CHAMPION}/infer", content=question(trained.fresh[:1]))
        assert after.json()["model_version"] == "1"  # both are loaded, and the verb waited out the lease
        assert client.get(CHAMPION).json()["versions"] == ["1", "2"]
        assert client.get(f"{CHAMPION}/ready").json()["name"] == "iris@1"
    assert {status for status, _ in asking.answers} == {200}
    versions = [version for _, version in asking.answers]
    changes = [(a, b) for a, b in itertools.pairwise(versions) if a != b]
    assert changes[0] == ("1", "2") and len(changes) <= 2  # each move happens once, and never flickers


def wait_for(condition):
    for _ in range(1200):
        if condition():
            return
        threading.Event().wait(0.05)
    raise AssertionError("it did not happen")


def test_an_alias_of_what_is_not_served_is_not_found(gateway, keep, alice, trained):
    made = publish_next(keep, trained)
    with gateway.client(alice) as client:

        def ask(alias="champion"):
            answer = client.post(f"/v2/models/iris/versions/{alias}/infer", content=question(trained.fresh[:1]))
            return answer.status_code, answer.json().get("detail", "")

        assert ask()[0] == 200
        for alias in ("nobody", "latest", "v1", "champion.old", "a" * 64):
            assert ask(alias)[0] == 404
        for path in ("Champion", "0", "-1", "a" * 65, "champion%2f", "champion/x"):
            assert ask(path)[0] == 404
        keep.alias_set(name="iris", alias="champion", version=made.ref.version)
        status, why = ask()
        assert status == 404 and "promote it before serving it" in why
        keep.promote(ref=f"iris@{made.ref.version}")
        wait_for(lambda: ask()[0] == 200)
        keep.quarantine(ref="iris@champion", reason="odd answers")
        status, why = ask()
        assert status == 404 and "in quarantine" in why
        keep.alias_remove(name="iris", alias="champion")
        assert ask()[0] == 404
        assert client.post("/v2/models/iris/versions/1/infer", content=question(trained.fresh[:1])).status_code == 200
