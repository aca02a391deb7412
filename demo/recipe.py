"""The training of step 3, as a data scientist writes it: a CSV file in, an ONNX file out. modelkeep is not imported.

``python recipe.py DATA OUT [KEEP PORT]``: where they are named, it first looks for the keep's folder and the gateway's port,
which must be out of reach.
"""

import csv
import socket
import sys
from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier

REACHED = 9
"""Exit code: something was within reach that should not be."""


def reaches(keep: str, port: int) -> bool:
    """Whether the folder or the port is within reach."""
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return Path(keep).exists()
    return True


def main(data: str, out: str, keep: str = "", port: str = "") -> int:
    """Train, and write the model."""
    if keep and reaches(keep, int(port)):
        return REACHED
    with Path(data).open(newline="") as file:
        table = np.array(list(csv.reader(file))[1:], np.float32)
    x, y = table[:, :-1], table[:, -1].astype(np.int64)
    model = MLPClassifier((64,), alpha=0.3, max_iter=2_000, random_state=7).fit(x, y)
    exported = to_onnx(model, x[:1], options={id(model): {"zipmap": False}}, target_opset=18)
    Path(out).write_bytes(exported.SerializeToString())
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
