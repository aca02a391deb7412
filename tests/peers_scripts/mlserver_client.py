"""Ask a gateway with the types and codecs of MLServer, over HTTP and over gRPC; print what they understood."""

import json
import ssl
import sys
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pandas as pd
from mlserver.codecs import NumpyCodec, NumpyRequestCodec, PandasCodec, StringCodec
from mlserver.grpc import dataplane_pb2_grpc
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.types import InferenceRequest, InferenceResponse, Parameters, RequestOutput

told = json.load(sys.stdin)
TLS = ssl.create_default_context(cafile=told["ca"])


def over_http(model: str, request: InferenceRequest) -> InferenceResponse:
    asked = urllib.request.Request(
        f"{told['url']}/v2/models/{model}/infer",
        data=request.model_dump_json().encode(),
        headers={"authorization": f"Bearer {told['key']}", "content-type": "application/json"},
    )
    with urllib.request.urlopen(asked, context=TLS) as answer:
        return InferenceResponse.model_validate_json(answer.read())


def over_grpc(model: str, request: InferenceRequest) -> tuple[InferenceResponse, dict]:
    credentials = grpc.ssl_channel_credentials(Path(told["ca"]).read_bytes())
    with grpc.secure_channel(told["grpc"], credentials) as channel:
        stub = dataplane_pb2_grpc.GRPCInferenceServiceStub(channel)
        found, call = stub.ModelInfer.with_call(
            ModelInferRequestConverter.from_types(request, model_name=model, model_version=None),
            metadata=[("authorization", f"Bearer {told['key']}")],
            timeout=20,
        )
        return ModelInferResponseConverter.to_types(found), dict(call.trailing_metadata())


def show(response: InferenceResponse) -> dict:
    texts = {one.name: one for one in response.outputs}
    return {
        "id": response.id,
        "model": [response.model_name, response.model_version],
        "outputs": {
            name: [
                list(one.shape),
                StringCodec.decode_output(one) if one.datatype == "BYTES" else NumpyCodec.decode_output(one).ravel().tolist(),
            ]
            for name, one in texts.items()
        },
    }


def main() -> dict:
    rows = np.array(told["rows"], np.float32)
    frame = pd.DataFrame(told["frame"]).astype({"age": np.float32})
    asked = {
        "numpy": ("iris", NumpyRequestCodec.encode_request(rows)),
        "outputs": ("iris", InferenceRequest(
            id="m-1",
            parameters=Parameters(content_type="np"),
            inputs=[NumpyCodec.encode_input("X", rows)],
            outputs=[RequestOutput(name="probabilities", parameters=Parameters(content_type="np"))],
        )),
        "pandas": ("towns", PandasCodec.encode_request(frame)),
        "strings": ("towns", InferenceRequest(inputs=[
            StringCodec.encode_input("town", told["frame"]["town"]),
            NumpyCodec.encode_input("age", np.array(told["frame"]["age"], np.float32).reshape(-1, 1)),
        ])),
    }  # fmt: skip
    asked["numpy"][1].inputs[0].name = "X"
    said = {}
    for name, (model, request) in asked.items():
        response, trailers = over_grpc(model, request)
        said[name] = {"http": show(over_http(model, request)), "grpc": show(response), "receipt": trailers["modelkeep-record"]}
    labels = PandasCodec.encode_request(frame)
    labels.outputs = [RequestOutput(name="label")]
    said["frame"] = PandasCodec.decode_response(over_http("towns", labels)).to_dict("list")
    return said


print(json.dumps(main()))
