"""Ask a gateway with Triton's own clients, HTTP and gRPC, unchanged; print what they understood."""

import json
import ssl
import sys
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

told = json.load(sys.stdin)


def headers() -> dict:
    """A new one for each call: the client writes into it."""
    return {"authorization": f"Bearer {told['key']}"}


def array(datatype: str, values: list) -> np.ndarray:
    return np.array(values, object if datatype == "BYTES" else triton_to_np_dtype(datatype))


def plain(result, name: str):
    found = result.as_numpy(name)
    return [one.decode() if isinstance(one, bytes) else one for one in found.ravel().tolist()], list(found.shape)


def failed(call) -> list[str]:
    try:
        call()
    except InferenceServerException as error:
        return [error.status(), error.message()]
    return ["it did not fail", ""]


def inputs_of(kind, model: dict, **how) -> list:
    made = []
    for name, (datatype, values) in model.items():
        data = array(datatype, values)
        one = kind.InferInput(name, list(data.shape), datatype)
        one.set_data_from_numpy(data, **how)
        made.append(one)
    return made


def ask(client, kind, model: str, binary: bool | None, wanted: list[str], **more):
    how = {} if binary is None else {"binary_data": binary}
    outputs = [kind.InferRequestedOutput(name, **how) for name in wanted] or None
    result = client.infer(model, inputs_of(kind, told["models"][model], **how), outputs=outputs, headers=headers(), **more)
    return {name: plain(result, name) for name in told["outputs"][model]}, result


def main() -> dict:
    tls = lambda: ssl.create_default_context(cafile=told["ca"])  # noqa: E731
    http = over_http.InferenceServerClient(told["url"].partition("//")[2], ssl=True, ssl_context_factory=tls)
    credentials = grpc.ssl_channel_credentials(Path(told["ca"]).read_bytes())
    rpc = over_grpc.InferenceServerClient(told["grpc"], creds=credentials)
    said = {"http": {}, "grpc": {}, "answers": {}}
    for name, client, more in (("http", http, {}), ("grpc", rpc, {"as_json": True})):
        said[name] = {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "server": client.get_server_metadata(**more),
            "model_ready": [client.is_model_ready(model, headers=headers()) for model in ("same", "nothing")],
            "version_ready": [client.is_model_ready("same", version, headers=headers()) for version in ("1", "champion", "2")],
            "metadata": client.get_model_metadata("same", headers=headers(), **more),
        }
    for model, wanted in told["outputs"].items():
        said["answers"][model] = {
            "json": ask(http, over_http, model, False, wanted)[0],
            "binary": ask(http, over_http, model, True, wanted)[0],
            "all binary": ask(http, over_http, model, True, [])[0],
            "json to binary": ask(http, over_http, model, False, [])[0],
            "grpc": ask(rpc, over_grpc, model, None, [])[0],
        }
    usual = {"request_id": "q7", "sequence_id": 5, "sequence_start": True, "priority": 3, "timeout": 1_000_000}
    said["ids"] = [
        ask(http, over_http, "same", True, [], **usual)[1].get_response()["id"],
        ask(rpc, over_grpc, "same", None, [], parameters={"colour": "red", "n": 1, "x": 0.5, "yes": True}, **usual)[1]
        .get_response()
        .id,
    ]
    one = told["models"]["iris"]
    top = [over_http.InferRequestedOutput("probabilities", class_count=2)]
    shared = over_http.InferInput("X", [1, 6], "FP32")
    shared.set_shared_memory("region", 24)
    said["failures"] = {
        "http none": failed(lambda: http.infer("iris", inputs_of(over_http, one))),
        "http forged": failed(lambda: http.infer("iris", inputs_of(over_http, one), headers={"authorization": "Bearer x"})),
        "http version": failed(lambda: http.infer("iris", inputs_of(over_http, one), "9", headers=headers())),
        "http top": failed(lambda: http.infer("iris", inputs_of(over_http, one), outputs=top, headers=headers())),
        "http shared": failed(lambda: http.infer("iris", [shared], headers=headers())),
        "http gzip": failed(
            lambda: http.infer("iris", inputs_of(over_http, one), request_compression_algorithm="gzip", headers=headers())
        ),
        "http config": failed(lambda: http.get_model_config("iris", headers=headers())),
        "http statistics": failed(lambda: http.get_inference_statistics("iris", headers=headers())),
        "http index": failed(lambda: http.get_model_repository_index(headers=headers())),
        "grpc none": failed(lambda: rpc.infer("iris", inputs_of(over_grpc, one))),
        "grpc forged": failed(lambda: rpc.infer("iris", inputs_of(over_grpc, one), headers={"authorization": "Bearer x"})),
        "grpc version": failed(lambda: rpc.infer("iris", inputs_of(over_grpc, one), "9", headers=headers())),
        "grpc gzip": failed(
            lambda: rpc.infer("iris", inputs_of(over_grpc, one), headers=headers(), compression_algorithm="gzip")
        ),
        "grpc config": failed(lambda: rpc.get_model_config("iris", headers=headers())),
        "grpc statistics": failed(lambda: rpc.get_inference_statistics("iris", headers=headers())),
        "grpc index": failed(lambda: rpc.get_model_repository_index(headers=headers())),
    }
    http.close()
    rpc.close()
    return said


print(json.dumps(main()))
