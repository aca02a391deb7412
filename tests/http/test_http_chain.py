"""A gateway as the upstream of another: TLS, a token, every datatype as bytes and over gRPC, against our other half."""

import numpy as np
import pytest
from gateway_support import PASSPHRASE, live
from same_models import identity

from modelkeep.app.keep import Keep
from modelkeep.app.sections import UpstreamSettings
from modelkeep.app.upstreams import UpstreamPlace, Upstreams
from modelkeep.core.values import Role
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.serving.oip import dtype_of
from modelkeep.workflows.publish import ModelFile, publish

VALUES = {
    "FP32": [[1.5, -2.25], [3e8, 1e-3]], "FP64": [[1.5, 1e30], [-1e-30, 0.0]], "FP16": [[0.5, 1024.0], [-1.0, 0.25]],
    "BOOL": [[True, False], [False, True]], "BYTES": [["Zürich", ""], ["a,b", "日本"]], "INT8": [[-128, 127], [0, 1]],
    "INT64": [[-(2**63), 2**63 - 1], [0, -300]], "UINT64": [[0, 2**64 - 1], [1, 2]], "INT32": [[-(2**31), 2**31 - 1], [0, 1]],
}  # fmt: skip
TOKEN = "MODELKEEP_UPSTREAM_TOKEN_FAR"


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    """A gateway that gives back what it is asked; its key; its authority's certificate."""
    folder = tmp_path_factory.mktemp("far") / "keep"
    Keep.init(folder, PASSPHRASE)
    settings = (folder / "modelkeep.toml").read_text().replace('admission = "standard"', 'admission = "open"')
    (folder / "modelkeep.toml").write_text(settings + "[gateway]\nport = 0\ngrpc_port = 0\n")
    keep = Keep.open(folder, PASSPHRASE)
    keep.user_add(name="alice", roles=(Role.ANALYST,))
    model = identity(sorted(VALUES))
    keep.promote(ref=str(publish(keep.premises.desk(), ModelFile(model, "m.onnx"), "same", actor="test").ref))
    key = keep.key_issue(account="alice", quota=100_000).token
    with live(keep) as running:
        yield running, key, (folder / "tls" / "ca.pem").read_text()
    assert running.errors == []


def near(far, folder, speaks, **more):
    running, key, authority = far
    url = running.url if speaks == "https" else f"grpcs://{running.grpc}"
    place = UpstreamPlace(url, "same", authority=authority, token=f"env:{TOKEN}")
    settings = UpstreamSettings(origins=(url,))
    return Upstreams(settings, folder, environment={TOKEN: more.get("key", key)}), place


@pytest.mark.parametrize("speaks", ["https", "grpcs"])
def test_a_gateway_in_front_of_a_gateway(far, tmp_path, speaks):
    upstreams, place = near(far, tmp_path, speaks)
    document = upstreams.discover(place, "same")
    assert document.binary and document.platform == "onnx_onnxruntime"
    remote = upstreams.start(document)
    feeds = {f"x_{one}": np.array(values, dtype_of(one)) for one, values in VALUES.items()}
    found = remote.run(feeds)
    for one, values in VALUES.items():
        given = found[f"y_{one}"]
        assert given.shape == (2, 2) and given.dtype == dtype_of(one)
        texts = [item.decode() for item in given.ravel()] if one == "BYTES" else None
        assert texts == np.array(values).ravel().tolist() if texts else np.allclose(given, feeds[f"x_{one}"], rtol=1e-3)
    with pytest.raises(Invalid, match="does not take the input"):
        remote.run({**feeds, "x_FP32": np.zeros((1, 2), np.float32)})  # another number of rows


@pytest.mark.parametrize("speaks", ["https", "grpcs"])
def test_it_must_know_us_and_we_it(far, tmp_path, speaks):
    upstreams, place = near(far, tmp_path, speaks, key="mk_wrong")
    with pytest.raises(Unavailable, match="does not let this gateway in"):
        upstreams.discover(place, "same")
    upstreams, place = near(far, tmp_path, speaks)
    with pytest.raises(NotTrusted, match="certificate does not hold"):
        upstreams.discover(UpstreamPlace(place.url, "same", token=place.token), "same")
