"""Sealed tensors from Python: lazy, whole, with every kind of key, and refused where they must be."""

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import modelkeep
from modelkeep.app.sealed import TensorInfo
from modelkeep.container import (
    BytesReader,
    FilesReader,
    KmsRecipient,
    Passphrase,
    XWingOpener,
    XWingRecipient,
    pack_file,
    unpack_file,
)
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.formats import safetensors
from modelkeep.torch import DTYPES, as_tensor

CHEAP = Argon2Params(memory_kib=64, passes=1, lanes=1)
PASSPHRASE = b"correct horse"
ARRAYS = {
    "bias": np.arange(60, dtype=np.float16),
    "empty": np.zeros((0, 4), np.int64),
    "scalar": np.array(3.5),
    "weight": np.random.default_rng(7).normal(size=(100, 60)).astype(np.float32),
}
BY_PASSPHRASE = [Passphrase(PASSPHRASE, CHEAP)]
SOURCE = safetensors.dump(ARRAYS, {"made": "for a test"})


class Ring:
    """A ``Wrapper``, and with ``opens`` a provider with one version."""

    def __init__(self, key_id):
        self.key_id = key_id

    def wrap(self, key, context):
        return wrap_key(self.key_id.encode().ljust(32), key, context)

    def unwrap(self, wrapped, context):
        return unwrap_key(self.key_id.encode().ljust(32), wrapped, context)


class Provider:
    def opens(self, key_id):
        return Ring(key_id) if key_id.startswith("ring:") else None


@pytest.fixture
def keep(tmp_path):
    """A sealed file of some source."""

    def make(source=SOURCE, recipients=BY_PASSPHRASE, purpose="file", name="model.safetensors.keep"):
        reader = BytesReader(source) if isinstance(source, bytes) else source
        path = tmp_path / name
        path.write_bytes(b"".join(bytes(chunk) for chunk in pack_file(reader, recipients, purpose=purpose)))
        return path

    return make


def same(found, expected):
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


def test_tensors_are_lazy_and_a_mapping(keep):
    with modelkeep.open_sealed(keep(), PASSPHRASE) as sealed:
        assert (len(sealed), sealed.names(), list(sealed)) == (4, tuple(ARRAYS), list(ARRAYS))
        assert sealed.info("weight") == TensorInfo("F32", (100, 60), 24_000)
        assert "weight" in sealed
        assert "nope" not in sealed
        assert sealed.metadata() == {"made": "for a test"}
        assert sealed.size == len(SOURCE)
        assert sealed.read() == SOURCE
        assert sealed.files() == ()
        same(dict(sealed), ARRAYS)
        with pytest.raises(KeyError):
            sealed["nope"]
        with pytest.raises(Missing):
            sealed.info("nope")


def test_one_tensor_reads_its_own_streams_only(keep):
    path = keep()
    file = bytearray(path.read_bytes())
    opened = unpack_file(BytesReader(bytes(file)), [Passphrase(PASSPHRASE)], purpose="file")
    file[48 + 56 + 10] ^= 1  # in the first stream, which is the empty tensor's or the bias's
    damaged, whole = opened.entries[0].name, [name for name in ARRAYS if name != opened.entries[0].name]
    file[48 + 56 - 1] ^= 1
    path.write_bytes(file)
    with modelkeep.open_sealed(path, PASSPHRASE) as sealed:
        for name in whole[-2:]:
            assert sealed[name].tobytes() == ARRAYS[name].tobytes()
        with pytest.raises(NotTrusted):
            sealed[damaged]
        with pytest.raises(NotTrusted):
            sealed.load()


def test_loading_gives_views_of_one_buffer_that_outlive_the_file(keep):
    with modelkeep.open_sealed(keep(), PASSPHRASE) as sealed:
        arrays = sealed.load(threads=2)
    same(arrays, ARRAYS)
    places = {name: array.__array_interface__["data"][0] for name, array in arrays.items() if array.size}
    assert max(places.values()) - min(places.values()) < len(SOURCE)
    arrays["weight"][:] = 0
    assert arrays["weight"].sum() == 0


def test_load_file_is_a_drop_in(keep):
    same(modelkeep.load_file(keep(), PASSPHRASE), ARRAYS)
    same(modelkeep.load_file(str(keep()), [b"another", PASSPHRASE], threads=1), ARRAYS)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(shapes=st.lists(st.lists(st.integers(0, 30), max_size=3), max_size=8), seed=st.integers(0, 99))
def test_any_tensors_come_back(keep, shapes, seed):
    rng = np.random.default_rng(seed)
    arrays = {f"t{i}": rng.normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)}
    path = keep(safetensors.dump(arrays))
    found = modelkeep.load_file(path, PASSPHRASE)
    assert set(found) == set(arrays)
    with modelkeep.open_sealed(path, PASSPHRASE) as sealed:
        for name, array in arrays.items():
            assert np.array_equal(found[name], array)
            assert np.array_equal(sealed[name], array)


def test_every_kind_of_key(keep, tmp_path):
    identity = generate_identity()
    key_file = tmp_path / "key.txt"
    key_file.write_text(f"# mine\n{identity}\n")
    path = keep(
        recipients=[KmsRecipient(Ring("ring:a/1")), XWingRecipient(recipient_of(identity)), Passphrase(PASSPHRASE, CHEAP)]
    )
    keys = [
        PASSPHRASE,
        identity,
        f" {identity}\n",
        key_file,
        Ring("ring:a/1"),
        Provider(),
        XWingOpener(identity),
        Passphrase(PASSPHRASE),
    ]
    for key in (*keys, [b"wrong", Ring("ring:b/1"), identity], tuple(keys)):
        assert modelkeep.load_file(path, key)["scalar"] == 3.5


def test_the_wrong_key_opens_nothing(keep):
    path = keep(recipients=[KmsRecipient(Ring("ring:a/1")), Passphrase(PASSPHRASE, CHEAP)])
    for key in (b"wrong", generate_identity(), Ring("ring:a/2"), [], [b"wrong", Ring("ring:b/1")]):
        with pytest.raises(NotTrusted):
            modelkeep.open_sealed(path, key)


@pytest.mark.parametrize("key", ["hunter2", 5, None, SimpleNamespace(), ["hunter2"]], ids=repr)
def test_what_is_no_key_is_said_to_be_none_and_is_not_repeated(keep, key):
    with pytest.raises(Invalid) as caught:
        modelkeep.open_sealed(keep(), key)
    assert "hunter2" not in str(caught.value)


def test_plaintext_and_others_in_its_place_are_refused(keep, tmp_path):
    plain = tmp_path / "plain.safetensors"
    plain.write_bytes(SOURCE)
    with pytest.raises(NotTrusted, match="plain safetensors file, and not a sealed file"):
        modelkeep.load_file(plain, PASSPHRASE)
    with pytest.raises(NotTrusted, match="neither a file nor a model"):
        modelkeep.load_file(keep(purpose="keys/model-kek"), PASSPHRASE)
    assert modelkeep.load_file(keep(purpose="model"), PASSPHRASE)["scalar"] == 3.5
    with pytest.raises(Missing):
        modelkeep.load_file(tmp_path / "nope", PASSPHRASE)


def test_the_signed_root_is_asked_for(keep):
    path, other = keep(), keep(safetensors.dump({"a": np.ones(3)}), name="other.keep")
    with modelkeep.open_sealed(path, PASSPHRASE) as sealed:
        root = sealed.root
    same(modelkeep.load_file(path, PASSPHRASE, root=root), ARRAYS)
    with pytest.raises(NotTrusted, match="not the one that was signed"):
        modelkeep.load_file(other, PASSPHRASE, root=root)


def test_what_is_not_safetensors_has_no_tensors_but_bytes(keep):
    with modelkeep.open_sealed(keep(b"\x80\x04 a pickle"), PASSPHRASE) as sealed:
        assert (len(sealed), sealed.metadata(), sealed.read()) == (0, {}, b"\x80\x04 a pickle")
        with pytest.raises(Invalid, match="read\\(\\) gives its bytes"):
            sealed.load()
    files = FilesReader([("m.onnx", BytesReader(b"graph")), ("w.bin", BytesReader(b"weights"))])
    with modelkeep.open_sealed(keep(files), PASSPHRASE) as sealed:
        assert {part.name: bytes(sealed.read_file(part.name)) for part in sealed.files()} == {
            "m.onnx": b"graph",
            "w.bin": b"weights",
        }


def raw_file(dtype, shape, data):
    header = b'{"x":{"dtype":"%b","shape":[%b],"data_offsets":[0,%d]}}' % (
        dtype,
        b",".join(b"%d" % n for n in shape),
        len(data),
    )
    return len(header).to_bytes(8, "little") + header + data


def test_dtypes_that_numpy_lacks(keep, monkeypatch):
    import ml_dtypes

    values = np.array([[1.5, -2.0], [0.25, 3.0]])
    for dtype, other in (
        (b"BF16", ml_dtypes.bfloat16),
        (b"F8_E4M3", ml_dtypes.float8_e4m3fn),
        (b"F8_E5M2", ml_dtypes.float8_e5m2),
    ):
        array = values.astype(other)
        path = keep(raw_file(dtype, (2, 2), array.tobytes()))
        found = modelkeep.load_file(path, PASSPHRASE)["x"]
        assert found.dtype == other
        assert np.array_equal(found.astype(float), array.astype(float))
        with monkeypatch.context() as gone, modelkeep.open_sealed(path, PASSPHRASE) as sealed:
            gone.setitem(sys.modules, "ml_dtypes", None)
            with pytest.raises(Invalid, match="pip install ml_dtypes"):
                sealed["x"]
            with pytest.raises(Invalid, match="raw\\(\\)"):
                sealed.load()
            assert np.array_equal(sealed.raw("x"), array.view(f"u{array.itemsize}"))


def test_packed_dtypes_are_bytes_only(keep):
    with modelkeep.open_sealed(keep(raw_file(b"F4", (4, 4), bytes(range(8)))), PASSPHRASE) as sealed:
        assert sealed.raw("x").tolist() == list(range(8))
        with pytest.raises(Invalid, match="numpy has no dtype for F4"):
            sealed["x"]


def test_every_dtype_of_the_format_has_a_way_out(keep):
    for dtype, bits in safetensors.BITS.items():
        data = bytes(range(bits))  # 8 elements
        with modelkeep.open_sealed(keep(raw_file(dtype.encode(), (8,), data)), PASSPHRASE) as sealed:
            assert sealed.raw("x").tobytes() == data
            if bits % 8 == 0:
                assert sealed["x"].tobytes() == data
                assert sealed["x"].shape == (8,)


# -- PyTorch, which is not a dependency --


def test_without_pytorch_the_line_says_what_to_install(keep, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(Invalid, match="pip install torch"):
        modelkeep.torch.load_file(keep(), PASSPHRASE)


def test_importing_and_loading_arrays_never_imports_pytorch(keep):
    code = (
        f"import sys, modelkeep; modelkeep.torch; assert 'modelkeep.torch' in sys.modules\n"
        f"modelkeep.load_file({str(keep())!r}, {PASSPHRASE!r}); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tensors_of_pytorch(keep):
    import torch

    found = modelkeep.torch.load_file(keep(), PASSPHRASE)
    for name, array in ARRAYS.items():
        assert found[name].numpy().dtype == array.dtype
        assert np.array_equal(found[name].numpy(), array)
    for dtype, name in DTYPES.items():
        if hasattr(torch, name):
            data = memoryview(bytearray(safetensors.BITS[dtype]))
            assert as_tensor(torch, "x", TensorInfo(dtype, (2, 4), len(data)), data).shape == (2, 4)


def test_a_dtype_that_pytorch_lacks_is_named():
    with pytest.raises(Invalid, match="no dtype for F4"):
        as_tensor(SimpleNamespace(), "x", TensorInfo("F4", (2,), 1), memoryview(bytearray(1)))
