"""Servers of others that answer with the same ONNX model, undefended, over plain HTTP: what a user of each would write first.

Each is installed into ``.venv-peers/NAME`` on first use and runs with one worker, on the core that the bench gives it.
"""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks._peers import INSTALL_SECONDS, ROOT, NoPeer

HOST = "127.0.0.1"
PORT = 18080


class Server(NamedTuple):
    """How to install, start and ask one: ``write`` puts its files beside ``model.onnx`` in a folder and returns the command
    (without the environment's ``bin/``); ``body`` is its form of one question; ``ready`` the address that answers once it is
    up."""

    name: str
    packages: tuple[str, ...]
    write: Callable[[Path], list[str]]
    path: str
    ready: str
    body: Callable[[np.ndarray], bytes]


def bin_of(server: Server) -> Path:
    """The folder with the server's programs, installed when it is missing. Raises NoPeer."""
    place = ROOT / ".venv-peers" / server.name.lower()
    done = place / "installed"
    wanted = " ".join(server.packages)
    if done.exists() and done.read_text() == wanted:
        return place / "bin"
    print(f"installing {wanted}", file=sys.stderr)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True, timeout=INSTALL_SECONDS)
        command = [place / "bin" / "pip", "install", "-q", *server.packages]
        subprocess.run(command, check=True, timeout=INSTALL_SECONDS, stderr=subprocess.DEVNULL)
    except (subprocess.SubprocessError, OSError) as cause:
        raise NoPeer(f"{server.name} could not be installed: {cause}") from cause
    done.write_text(wanted)
    return place / "bin"


def open_inference(row: np.ndarray, tensor: str = "X") -> bytes:
    """One question in the Open Inference Protocol."""
    data = {"name": tensor, "datatype": "FP32", "shape": [1, len(row)], "data": [float(v) for v in row]}
    return _dense({"inputs": [data]})


def _dense(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


_SESSION = """
import numpy as np, onnxruntime

def session():
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
"""

_MLSERVER = """
import numpy as np
from bench_session import session
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class Onnx(MLModel):
    async def load(self):
        self._session = session()
        self._names = [output.name for output in self._session.get_outputs()]
        return True

    async def predict(self, payload):
        x = self.decode(payload.inputs[0], default_codec=NumpyCodec).astype(np.float32)
        found = self._session.run(None, {"X": x})
        outputs = [NumpyCodec.encode_output(name, array) for name, array in zip(self._names, found)]
        return InferenceResponse(model_name=self.name, outputs=outputs)
"""


def _mlserver(folder: Path) -> list[str]:
    (folder / "bench_session.py").write_text(_SESSION)
    (folder / "bench_runtime.py").write_text(_MLSERVER)
    ports = {"http_port": PORT, "grpc_port": PORT + 1, "metrics_port": PORT + 2}
    (folder / "settings.json").write_text(json.dumps({"debug": False, "parallel_workers": 0, "host": HOST, **ports}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "digits", "implementation": "bench_runtime.Onnx"}))
    return ["mlserver", "start", "."]


_LITSERVE = """
import litserve as ls
import numpy as np
from bench_session import session


class Digits(ls.LitAPI):
    def setup(self, device):
        self._session = session()

    def decode_request(self, request):
        return np.array(request["data"], dtype=np.float32)[None]

    def predict(self, x):
        return self._session.run(None, {"X": x})

    def encode_response(self, found):
        return {"label": found[0].tolist(), "probabilities": found[1].tolist()}


if __name__ == "__main__":
    server = ls.LitServer(Digits(), accelerator="cpu", workers_per_device=1)
    server.run(host="HOST", port=PORT, num_api_servers=1, generate_client_file=False, log_level="error", access_log=False)
"""


def _litserve(folder: Path) -> list[str]:
    (folder / "bench_session.py").write_text(_SESSION)
    (folder / "serve.py").write_text(_LITSERVE.replace("HOST", HOST).replace("PORT", str(PORT)))
    return ["python", "serve.py"]


_BENTOML = """
import bentoml
import numpy as np
from bench_session import session


@bentoml.service(workers=1, traffic={"timeout": 30})
class Digits:
    def __init__(self):
        self._session = session()

    @bentoml.api
    async def infer(self, data: list[float]) -> dict:
        found = self._session.run(None, {"X": np.array(data, dtype=np.float32)[None]})
        return {"label": found[0].tolist(), "probabilities": found[1].tolist()}
"""


def _bentoml(folder: Path) -> list[str]:
    (folder / "bench_session.py").write_text(_SESSION)
    (folder / "service.py").write_text(_BENTOML)
    return ["bentoml", "serve", "service:Digits", "--host", HOST, "--port", str(PORT)]


_MLFLOW = """
import mlflow, onnx
mlflow.onnx.save_model(onnx.load("model.onnx"), "saved")
"""


def _mlflow(folder: Path) -> list[str]:
    (folder / "save.py").write_text(_MLFLOW)
    start = f"python save.py && exec mlflow models serve -m saved --env-manager local -h {HOST} -p {PORT} --workers 1"
    return ["sh", "-c", start]


SERVERS = (
    Server(
        "MLServer",
        ("mlserver==1.7.1", "uvloop==0.21.0", "onnxruntime==1.23.2"),
        _mlserver,
        "/v2/models/digits/infer",
        "/v2/models/digits/ready",
        open_inference,
    ),
    Server(
        "LitServe",
        ("litserve==0.2.19", "onnxruntime==1.23.2"),
        _litserve,
        "/predict",
        "/health",
        lambda row: _dense({"data": [float(v) for v in row]}),
    ),
    Server(
        "BentoML",
        ("bentoml==1.4.39", "onnxruntime==1.23.2"),
        _bentoml,
        "/infer",
        "/readyz",
        lambda row: _dense({"data": [float(v) for v in row]}),
    ),
    Server(
        "mlflow",
        ("mlflow==3.17.0", "onnx", "onnxruntime==1.23.2"),
        _mlflow,
        "/invocations",
        "/ping",
        lambda row: _dense({"inputs": {"X": [[float(v) for v in row]]}}),
    ),
)
