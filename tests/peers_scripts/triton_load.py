"""Ask over gRPC without a pause, with Triton's client, until the standard input ends; print every answer as a line of JSON.

A line: seconds (monotonic) of start and end, status ("ok" or the gRPC code), receipt, version that answered, stable code.
"""

import json
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import tritonclient.grpc as over_grpc

told = json.loads(sys.stdin.readline())
stop = threading.Event()


def watch() -> None:
    sys.stdin.read()
    stop.set()


def main() -> None:
    threading.Thread(target=watch, daemon=True).start()
    credentials = grpc.ssl_channel_credentials(Path(told["ca"]).read_bytes())
    rows = np.array(told["rows"], np.float32)
    one = over_grpc.InferInput("x", [1, rows.shape[1]], "FP32")
    stub_request = over_grpc._utils._get_inference_request
    with grpc.secure_channel(told["grpc"], credentials) as channel:
        stub = over_grpc.service_pb2_grpc.GRPCInferenceServiceStub(channel)
        at = 0
        while not stop.is_set():
            at += 1
            one.set_data_from_numpy(rows[at % len(rows)][None])
            version = told["versions"][at % len(told["versions"])]
            asked = stub_request("risk", [one], version, "", None, 0, False, False, 0, None, None)
            start = time.monotonic()
            try:
                answer, call = stub.ModelInfer.with_call(
                    asked, metadata=[("authorization", f"Bearer {told['key']}")], timeout=20
                )
                said = ["ok", dict(call.trailing_metadata())["modelkeep-record"], answer.model_version, ""]
            except grpc.RpcError as error:
                said = [error.code().name, "", "", dict(error.trailing_metadata() or ()).get("modelkeep-code", "")]
            print(json.dumps([start, time.monotonic(), *said, version]), flush=True)


main()
