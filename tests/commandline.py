"""A small real model whose weights are canaries, copies of a keep, and the command line in this process."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

PASSPHRASE = "a passphrase of several words"


@dataclass(frozen=True)
class Subject:
    """A model to protect. ``windows``: pieces of its weights that must never stand in a file of ours."""

    onnx: bytes
    reference: bytes
    fresh: np.ndarray
    top1: np.ndarray
    windows: tuple[bytes, ...]


@dataclass(frozen=True)
class Ran:
    """What one command did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed with --json."""
        return json.loads(self.out)

    def line(self) -> str:
        """The one line that a refused or failed command says on standard error."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        assert "Traceback" not in self.err + self.out
        return lines[0]


@dataclass(frozen=True)
class Cli:
    """``modelkeep`` in this process, on one keep."""

    keep: Path
    passphrase_file: Path
    environment: tuple[tuple[str, str], ...] = ()

    def __call__(self, *arguments: str, code: int | None = None, stdin: str = "") -> Ran:
        """Run one command; ``code``: the exit code it must have."""
        from modelkeep.cli.main import main

        place = {"MODELKEEP_DIR": str(self.keep), "MODELKEEP_PASSPHRASE_FILE": str(self.passphrase_file)}
        out, err = io.StringIO(), io.StringIO()
        mask = os.umask(0o022)
        with (
            patch.dict(os.environ, {**place, **dict(self.environment)}),
            patch("sys.stdin", io.StringIO(stdin)),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            found = main(list(arguments))
        os.umask(mask)  # servers set their own
        ran = Ran(found, out.getvalue(), err.getvalue())
        assert code is None or ran.code == code, f"{arguments} gave {ran.code}: {ran.out}{ran.err}"
        return ran

    def with_environment(self, **more: str) -> "Cli":
        """The same with more environment variables."""
        return replace(self, environment=(*self.environment, *more.items()))


@dataclass(frozen=True)
class Outside:
    """A keep whose stores are outside its folder: the command line on it, the bucket, the database's URL."""

    cli: Cli
    bucket: str
    database: str

    def copy(self, postgres: Any, s3: Any, folder: Path) -> "Outside":
        """A copy of the keep, below ``folder``, and of its stores."""
        bucket, database = s3.copy(self.bucket), postgres.copy(self.database)
        shutil.copytree(self.cli.keep, folder / "keep")
        settings = folder / "keep" / "modelkeep.toml"
        settings.write_text(settings.read_text().replace(f"/{self.bucket}/", f"/{bucket}/").replace(self.database, database))
        return Outside(replace(self.cli, keep=folder / "keep"), bucket, database)


def tabular() -> Subject:
    """A two-class model of scikit-learn's breast cancer data, with 64 KiB of weights that nothing else resembles."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper
    from sklearn.datasets import load_breast_cancer
    from sklearn.linear_model import LogisticRegression

    data = load_breast_cancer()
    x = data.data.astype(np.float32)
    mean, scale = x[:200].mean(axis=0), x[:200].std(axis=0)
    fitted = LogisticRegression(C=0.05, max_iter=500).fit((x[:200] - mean) / scale, data.target[:200])
    half = (fitted.coef_[0] / scale / 2).astype(np.float32)
    shift = np.float32((fitted.intercept_[0] - float(fitted.coef_[0] @ (mean / scale))) / 2)
    weights = np.stack([-half, half], axis=1)
    # 16,384 numbers that the answer takes times zero: weights like any other, long enough to be found again anywhere
    ballast = np.random.default_rng(20_261).uniform(0.5, 1.0, (1, 16_384)).astype(np.float32)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["plain"]),
        helper.make_node("MatMul", ["ballast", "ones"], ["heavy"]),
        helper.make_node("Mul", ["heavy", "zero"], ["nothing"]),
        helper.make_node("Add", ["plain", "nothing"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
        helper.make_node("ArgMax", ["probabilities"], ["label"], axis=1, keepdims=0),
    ]
    constants = {
        "w": weights,
        "b": np.array([-shift, shift], np.float32),
        "ballast": ballast,
        "ones": np.ones((16_384, 2), np.float32),
        "zero": np.zeros((1, 1), np.float32),
    }
    graph = helper.make_graph(
        nodes,
        "risk",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 30])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, [None]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [None, 2]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    reference = io.BytesIO()
    np.savez(reference, x=x[200:400].astype(np.float64))
    raw = ballast.tobytes()
    windows = (weights.tobytes()[:32], *(raw[at : at + 32] for at in range(0, len(raw), 4096)))
    fresh = x[400:]
    scores = fresh @ weights + constants["b"]
    return Subject(model.SerializeToString(), reference.getvalue(), fresh, scores.argmax(axis=1), windows)


def copy_keep(template: Path, to: Path) -> Path:
    """A copy of a keep that nobody changes meanwhile. What SQLite left beside the records goes into them first."""
    with contextlib.closing(sqlite3.connect(template / "records.db")) as records:
        records.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    shutil.copytree(
        template, to, copy_function=shutil.copy2, ignore=shutil.ignore_patterns("*-wal", "*-shm", "*.sock"), dirs_exist_ok=True
    )
    return to
