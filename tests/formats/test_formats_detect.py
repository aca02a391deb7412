import bz2
import gzip
import io
import lzma
import pickle
import zipfile
import zlib

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_models import sklearn_model

from modelkeep.formats import safetensors
from modelkeep.formats.detect import Format, detect


def zipped(*names: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return out.getvalue()


def saved(save, *args) -> bytes:
    out = io.BytesIO()
    save(out, *args)
    return out.getvalue()


def joblib_bytes(compress) -> bytes:
    out = io.BytesIO()
    joblib.dump({"a": np.ones(100)}, out, compress=compress)
    return out.getvalue()


CASES = {
    "safetensors": (lambda: safetensors.dump({"a": np.ones(2)}), Format.SAFETENSORS),
    "onnx": (sklearn_model, Format.ONNX),
    **{f"pickle {p}": (lambda p=p: pickle.dumps({"a": [1]}, protocol=p), Format.PICKLE) for p in (0, 2, 3, 4, 5)},
    "os.system pickle": (lambda: b"cos\nsystem\n(S'id'\ntR.", Format.PICKLE),
    "joblib": (lambda: joblib_bytes(0), Format.PICKLE),
    **{f"joblib {c}": (lambda c=c: joblib_bytes((c, 3)), Format.JOBLIB) for c in ("zlib", "gzip", "bz2", "xz", "lzma")},
    "zlib": (lambda: zlib.compress(b"x"), Format.JOBLIB),
    "gzip": (lambda: gzip.compress(b"x"), Format.JOBLIB),
    "bz2": (lambda: bz2.compress(b"x"), Format.JOBLIB),
    "xz": (lambda: lzma.compress(b"x"), Format.JOBLIB),
    "torch": (lambda: zipped("archive/data.pkl", "archive/version"), Format.TORCH_ZIP),
    "torch legacy": (lambda: pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2), Format.TORCH_LEGACY),
    "keras": (lambda: zipped("metadata.json", "config.json", "model.weights.h5"), Format.KERAS_ZIP),
    "npz": (lambda: saved(lambda out: np.savez(out, a=np.ones(2))), Format.NPZ),
    "npy": (lambda: saved(np.save, np.ones(2)), Format.NPY),
    "other zip": (lambda: zipped("readme.txt"), Format.ZIP),
    "empty zip": (zipped, Format.ZIP),
    "hdf5": (lambda: b"\x89HDF\r\n\x1a\n" + bytes(9), Format.HDF5),
    "gguf": (lambda: b"GGUF\x03\x00\x00\x00", Format.GGUF),
    "tflite": (lambda: b"\x1c\x00\x00\x00TFL3", Format.TFLITE),
    "keep": (lambda: b"\x89KEEP\r\n\x1a\x01\x01", Format.KEEP),
    "nothing": (lambda: b"", Format.UNKNOWN),
    "text": (lambda: b"hello world", Format.UNKNOWN),
    "elf": (lambda: b"\x7fELF\x02\x01\x01", Format.UNKNOWN),
}


@pytest.mark.parametrize(("make", "wanted"), CASES.values(), ids=CASES)
def test_formats_are_told_apart(make, wanted):
    data = make()
    assert detect(data) is wanted
    assert detect(memoryview(data)[:4096]) is wanted


def test_every_refused_format_says_how_to_convert():
    for each in Format:
        assert bool(each.convert) == (each not in (Format.SAFETENSORS, Format.ONNX, Format.UPSTREAM))
        assert each.article
    assert len({each.id for each in Format}) == len(Format)


@settings(max_examples=200)
@given(st.binary(max_size=100))
def test_anything_is_something(data):
    assert isinstance(detect(data), Format)
