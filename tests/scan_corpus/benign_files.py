"""Files as people have them: written by scikit-learn, joblib, numpy, ONNX and safetensors here, and by others beforehand."""

import collections
import io
import pickle
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import safetensors.numpy
from archive_attacks import VECTORS, saved
from other_attacks import entry, gguf, upstream_document
from sklearn.ensemble import GradientBoostingClassifier, HistGradientBoostingClassifier, IsolationForest, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from onnx_models import model, sklearn_model

TEMPLATE = """{%- set ns = namespace(first=true) -%}
{%- for message in messages if message.role != 'tool' -%}
{%- if ns.first and message['role'] == 'system' -%}[INST] {{ message['content'].strip() }}{%- set ns.first = false -%}
{%- elif message.tool_calls is defined -%}{{ message.tool_calls | tojson(indent=2) }}
{%- else -%}{{ bos_token + message['content'] | trim if loop.index0 % 2 == 0 else message['content'] ~ eos_token }}{%- endif -%}
{%- endfor -%}
{%- macro render(x) -%}<|{{ x | upper }}|>{%- endmacro -%}{{ render('end') }}"""


def _data():
    rng = np.random.RandomState(0)
    x = rng.randn(120, 4)
    return x, (x[:, 0] + x[:, 1] > 0).astype(int)


def _estimators() -> dict[str, object]:
    x, y = _data()
    made = {
        "logistic regression": LogisticRegression(),
        "pipeline": make_pipeline(StandardScaler(), Ridge()),
        "random forest": RandomForestClassifier(5, random_state=0),
        "gradient boosting": GradientBoostingClassifier(n_estimators=5, random_state=0),
        "histogram boosting": HistGradientBoostingClassifier(max_iter=5, random_state=0),
        "perceptron": MLPClassifier((8,), max_iter=5, random_state=0),
        "support vectors": SVC(),
        "isolation forest": IsolationForest(n_estimators=5, random_state=0),
        "neighbours": KNeighborsClassifier(algorithm="brute"),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fitted = {name: estimator.fit(x, y) for name, estimator in made.items()}
        fitted["named classes"] = LogisticRegression().fit(x, np.array(["no", "yes"], object)[y])
    return fitted


def _dumped(value: object, compress=0) -> bytes:
    out = io.BytesIO()
    joblib.dump(value, out, compress=compress)
    return out.getvalue()


def _onnx() -> dict[str, bytes]:
    from onnx import helper

    return {
        "onnx of scikit-learn": sklearn_model(),
        "onnx by hand": model([helper.make_node("Relu", ["x"], ["z"])]).SerializeToString(),
    }


def benign_files() -> dict[str, bytes]:
    """Every file by its name."""
    fitted = _estimators()
    arrays = {"a": np.ones((3, 3), np.float32), "b": np.arange(4), "c": np.array([], np.float64)}
    record = np.zeros(3, [("id", "<i4"), ("at", "<f8", (2,)), ("tag", "S4")])
    plain = {"weights": [1.0, 2.0], "names": ("a", "b"), "on": True, "set": {1, 2}, "raw": b"\x00\x01", "big": 10**30}
    counted = collections.OrderedDict(a=collections.Counter("abca"), b=collections.defaultdict(list, {"x": [1]}))
    return {
        **{f"pickle of {name}": pickle.dumps(value) for name, value in fitted.items()},
        "pickle of a forest, protocol 2": pickle.dumps(fitted["random forest"], 2),
        "pickle of a pipeline, protocol 0": pickle.dumps(fitted["pipeline"], 0),
        **{f"joblib of {name}": _dumped(fitted[name]) for name in ("random forest", "pipeline", "named classes")},
        **{f"joblib in {how}": _dumped(fitted["gradient boosting"], (how, 3)) for how in ("zlib", "gzip", "bz2", "xz", "lzma")},
        **{f"pickle of plain data, protocol {protocol}": pickle.dumps(plain, protocol) for protocol in range(6)},
        "pickle of collections": pickle.dumps(counted),
        "pickle of arrays": pickle.dumps(arrays | {"record": record, "objects": np.array(["a", None], object)}, 5),
        "npy": saved(np.save, np.arange(6.0).reshape(2, 3)),
        "npy in columns": saved(np.save, np.asfortranarray(np.ones((3, 2), np.float16))),
        "npy of records": saved(np.save, record),
        "npy of texts": saved(np.save, np.array(["a", "\u00e9\u00e8"])),
        "npz": saved(np.savez, **arrays),
        "npz, compressed": saved(np.savez_compressed, **arrays, zeros=np.zeros(10_000)),
        "safetensors": safetensors.numpy.save(arrays),
        "safetensors with metadata": safetensors.numpy.save({"w": np.ones((2, 2), np.float16)}, metadata={"format": "np"}),
        **_onnx(),
        "gguf of metadata and a template": gguf([entry("general.name", "m"), entry("tokenizer.chat_template", TEMPLATE)]),
        "upstream": upstream_document(),
        **{path.name: path.read_bytes() for path in sorted(VECTORS.iterdir()) if path.suffix != ".py"},
    }
