"""Print the message descriptors of the gRPC clients that are installed, each as hex: Triton's, MLServer's."""

import json
import subprocess
import sys

ONE = "import sys; from {0} import {1} as m; print(m.DESCRIPTOR.serialized_pb.hex())"
WHICH = {"tritonclient": ("tritonclient.grpc", "service_pb2"), "mlserver": ("mlserver.grpc", "dataplane_pb2")}

if __name__ == "__main__":  # each in a process of its own: both call their messages inference.…
    found = {}
    for name, (package, module) in WHICH.items():
        ran = subprocess.run([sys.executable, "-c", ONE.format(package, module)], capture_output=True, check=True, text=True)
        found[name] = ran.stdout.splitlines()[-1]
    print(json.dumps(found))
