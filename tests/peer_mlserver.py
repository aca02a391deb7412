"""MLServer, from its own environment beside ours, with a model of a test in it: a peer that is really another program."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
from free_ports import free_port

PEERS = Path(sys.prefix) / "peers"
"""Made by tools/setup.sh."""

IMPLEMENTATION = """
import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse


class OnnxModel(MLModel):
    async def load(self):
        self._session = onnxruntime.InferenceSession(self.settings.parameters.uri, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload):
        feeds = {one.name: NumpyCodec.decode_input(one) for one in payload.inputs}
        names = [one.name for one in self._session.get_outputs()]
        found = zip(names, self._session.run(names, feeds))
        outputs = [NumpyCodec.encode_output(name, np.asarray(value)) for name, value in found]
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=outputs)
"""


class MlServer:
    """``mlserver start`` on one ONNX model called ``risk``, which takes x and gives label and probabilities."""

    def __init__(self, folder: Path, model: bytes, features: int = 30) -> None:
        self.folder, self.port, self.grpc_port = folder, free_port(), free_port()
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(exist_ok=True)
        (folder / "model.onnx").write_bytes(model)
        (folder / "onnx_model.py").write_text(IMPLEMENTATION)
        ports = {"http_port": self.port, "grpc_port": self.grpc_port, "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "parallel_workers": 0, "debug": False, **ports}
        (folder / "settings.json").write_text(json.dumps(settings))
        described = {
            "name": "risk",
            "implementation": "onnx_model.OnnxModel",
            "platform": "onnx",
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, features]}],
            "outputs": [
                {"name": "label", "datatype": "INT64", "shape": [-1]},
                {"name": "probabilities", "datatype": "FP32", "shape": [-1, 2]},
            ],
            "parameters": {"uri": "./model.onnx"},
        }
        (folder / "model-settings.json").write_text(json.dumps(described))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://127.0.0.1:{self.grpc_port}"

    def start(self) -> "MlServer":
        """Start it and wait until its model is ready."""
        with (self.folder / "mlserver.log").open("ab") as output:
            self.process = subprocess.Popen(
                [PEERS / "bin" / "python", "-c", "from mlserver.cli import main; main()", "start", "."],
                cwd=self.folder,
                env={**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        end = time.monotonic() + 60
        while not self._ready():
            assert self.process.poll() is None and time.monotonic() < end, (self.folder / "mlserver.log").read_text()
            time.sleep(0.1)
        return self

    def _ready(self) -> bool:
        try:
            return httpx.get(f"{self.url}/v2/models/risk/ready", trust_env=False).is_success
        except httpx.HTTPError:
            return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to it."""
        assert self.process is not None
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """kill -9, and wait until it is gone."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.process.wait()
            self.process = None
