"""GGUF, ONNX and safetensors that claim too much, reach outside, or can be read in two ways."""

import io
import json
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
from archive_attacks import EVIL, vector, zipped
from onnx import TensorProto, helper

from modelkeep.core.values import TensorSpec
from modelkeep.formats import safetensors
from modelkeep.formats.upstream import Upstream

sys.path.insert(0, str(Path(__file__).parents[1] / "formats"))
from onnx_models import constant_shape, model, nested, sklearn_model

SSTI = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ ''['__cla' ~ 'ss__'] }}",
    "{{ messages|attr('__class__') }}",
    "{{ messages|map(attribute='__class__')|list }}",
    "{{ messages|map('attr', 'x')|list }}",
    "{{ self._TemplateReference__context }}",
    "{{ cycler.__init__.__globals__.os.popen('true') }}",
    "{{ lipsum.__globals__['os'].popen('true').read() }}",
    "{{ joiner['__init__'] }}",
    "{% include '/etc/passwd' %}",
    "{% import 'x' as y %}",
    "{{ messages['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "{{ ('%c%cclass' % (95, 95)) }}",
    "{% for i in range(99999999999) %}{% endfor %}",
    "{{ messages.pop.__func__ }}",
    "{{ messages[0]['content'].format(x) }}",
    "{% set u = '_'~'_' %}{% set g = u~'globals'~u %}{% set p = raise_exception[g]['os']['popen'] %}{{ p('true') }}",
    "{% for f in [raise_exception] %}{{ f('true') }}{% endfor %}",
    "{% macro m(f) %}{{ f('true') }}{% endmacro %}{{ m(raise_exception) }}",
    "{% set ns = namespace(x=1) %}{% set ns.get = raise_exception %}{{ ns.get('true') }}",
    "{{ namespace(get=raise_exception).get('true') }}",
    "{{ namespace({'get': raise_exception}).get('true') }}",
    "{{ unfinished",
    "(" * 3000 + "{{ " + "(" * 3000,
]


def gguf_text(value: str) -> bytes:
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def gguf(entries: list[bytes], tensors: list[bytes] | None = None, data: bytes = b"", version: int = 3) -> bytes:
    tensors = tensors or []
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join(entries) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + data if tensors else head


def entry(key: str, value: str) -> bytes:
    return gguf_text(key) + struct.pack("<I", 8) + gguf_text(value)


def tensor(name: str, shape: list[int], kind: int, offset: int) -> bytes:
    return gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def _gguf() -> dict[str, bytes]:
    good = vector("tiny.gguf")
    floats = tensor("a", [8], 0, 0)
    attacks = {
        "gguf that claims tensors without end": b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0),
        "gguf that claims entries without end": b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        "gguf with a key of a terabyte": b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 40),
        "gguf with a text of a terabyte": gguf([gguf_text("a") + struct.pack("<IQ", 8, 1 << 40)]),
        "gguf with an array without end": gguf([gguf_text("a") + struct.pack("<IIQ", 9, 4, 1 << 62)]),
        "gguf with texts without end": gguf([gguf_text("a") + struct.pack("<IIQ", 9, 8, 1 << 62)]),
        "gguf with arrays in arrays": gguf([gguf_text("a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50]),
        "gguf with a key twice": gguf([entry("a", "x"), entry("a", "y")]),
        "gguf with a value of an unknown type": gguf([gguf_text("a") + struct.pack("<I", 77)]),
        "gguf of version 99": gguf([], version=99),
        "gguf with a tensor that claims a petabyte": gguf([], [tensor("a", [1 << 50], 0, 0)], bytes(32)),
        "gguf with a shape that overflows": gguf([], [tensor("a", [1 << 32, 1 << 32, 2], 0, 0)], bytes(32)),
        "gguf with tensors that overlap": gguf([], [floats, tensor("b", [8], 0, 0)], bytes(64)),
        "gguf with a tensor out of line": gguf([], [tensor("a", [8], 0, 4)], bytes(64)),
        "gguf with two tensors of one name": gguf([], [floats, tensor("a", [8], 0, 32)], bytes(64)),
        "gguf with a tensor of an unknown type": gguf([], [tensor("a", [8], 200, 0)], bytes(32)),
        "gguf with something in its padding": gguf([], [tensor("a", [7], 0, 0)], bytes(28) + b"evil"),
        "gguf with bytes after it": good + EVIL,
        "gguf that ends as a zip": good + zipped({"model.pkl": EVIL}),
        "gguf cut off": good[: len(good) // 2],
        "gguf cut off in its tensors": good[:-64],
    }  # fmt: skip
    for number, template in enumerate(SSTI):
        attacks[f"gguf template {number}: {template[:24]}"] = gguf([entry("tokenizer.chat_template", template)])
    attacks["gguf second template"] = gguf([entry("tokenizer.chat_template.tool_use", SSTI[0])])
    return attacks


def _onnx() -> dict[str, bytes]:
    def external(location: str):
        found = TensorProto(data_type=1, dims=[2], name="t", data_location=TensorProto.EXTERNAL)
        found.external_data.add(key="location", value=location)
        return model([], [found])

    function = model()
    function.functions.append(helper.make_function("d", "F", ["a"], ["b"], [helper.make_node("Neg", ["a"], ["b"])], []))
    training = model()
    training.training_info.add()
    custom = model([helper.make_node("Evil", ["x"], ["z"], domain="com.evil")])
    python = model([helper.make_node("PyOp", ["x"], ["z"], domain="ai.onnx.contrib")])
    body = helper.make_graph([helper.make_node("Evil", ["x"], ["q"], domain="com.evil")], "b", [],
                             [helper.make_tensor_value_info("q", 1, None)])  # fmt: skip
    hidden = model([helper.make_node("If", ["x"], ["z"], then_branch=body, else_branch=body)])
    unbacked = TensorProto(data_type=1, dims=[1 << 40], name="t", raw_data=b"1234")
    unknown = model([helper.make_node("Evil", ["x"], ["z"])])
    good = sklearn_model()
    return {
        "onnx operator that the standard lacks, in its domain": unknown.SerializeToString(),
        "onnx custom operator": custom.SerializeToString(),
        "onnx Python operator": python.SerializeToString(),
        "onnx custom operator in a branch": hidden.SerializeToString(),
        "onnx data in another file": external("weights.bin").SerializeToString(),
        "onnx data at another path": external("../../etc/passwd").SerializeToString(),
        "onnx data at an absolute path": external("/etc/passwd").SerializeToString(),
        "onnx with a function": function.SerializeToString(),
        "onnx with training": training.SerializeToString(),
        "onnx that asks for a terabyte": constant_shape([1 << 40], raw=True, as_node=False).SerializeToString(),
        "onnx tensor without its bytes": model([], [unbacked]).SerializeToString(),
        "onnx nested without end": nested(20).SerializeToString(),
        "onnx with hidden bytes": good + b"\xfa\x3f\x05hello",
        "onnx with a field twice": good + b"\x08\x0a",
        "onnx cut off": good[:-3],
        "onnx that ends as a zip": good + zipped({"model.pkl": EVIL}),
    }  # fmt: skip


def _safetensors() -> dict[str, bytes]:
    good = safetensors.dump({"a": np.ones(4, np.float32), "b": np.ones(2, np.float32)})

    def raw(header: object, data: bytes = bytes(24)) -> bytes:
        text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + data

    def one(dtype="F32", shape=(4,), begin=0, end=16):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}

    pair = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"a":{"dtype":"F32","shape":[2],"data_offsets":[16,24]}}'
    return {
        "safetensors whose tensors overlap": raw({"a": one(), "b": one(begin=8, end=24)}),
        "safetensors with a gap": raw({"a": one(), "b": one(shape=(1,), begin=20, end=24)}),
        "safetensors with a key twice": raw(pair),
        "safetensors with bytes after it": good + b"x",
        "safetensors that ends as a zip": good + zipped({"model.pkl": EVIL}),
        "safetensors with a pickle after it": good + EVIL,
        "safetensors that begins as a tar": _as_tar(),
        "safetensors cut off": good[:-1],
        "safetensors with a header of a petabyte": struct.pack("<Q", 1 << 50) + b"{}",
        "safetensors with a shape that overflows": raw({"a": one(shape=(1 << 62, 1 << 62))}),
        "safetensors with an unknown dtype": raw({"a": one(dtype="O")}),
        "safetensors with a fraction": raw('{"a":{"dtype":"F32","shape":[4.0],"data_offsets":[0,16]}}', bytes(16)),
        "safetensors with an extra field": raw({"a": one() | {"code": "x"}}, bytes(16)),
        "safetensors with metadata that is no text": raw({"__metadata__": {"a": {"b": 1}}, "a": one()}, bytes(16)),
        "safetensors nested without end": raw("{" + '"a":[' * 3000),
    }


def _as_tar(form: str = "{:08o}") -> bytes:
    """Valid safetensors whose first 512 bytes are a tar header, as PyTorch's oldest loader looks for in any file."""
    text = b'{"__metadata__":{"x":"' + b"0" * (504 - 22 - 3) + b'"}}'
    raw = bytearray(struct.pack("<Q", len(text)) + text)
    total = sum(raw) - sum(raw[148:156]) + 8 * 0x20
    raw[148:156] = form.format(total).ljust(8).encode()
    assert scan_as_tar(bytes(raw))
    return bytes(raw)


def scan_as_tar(data: bytes) -> bool:
    return tarfile.is_tarfile(io.BytesIO(data))


def _plain(tensor: bytes, name: str = "a", length: int = 0) -> bytes:
    """Safetensors with one tensor of those bytes, its header as long as that."""
    text = json.dumps({name: {"dtype": "U8", "shape": [len(tensor)], "data_offsets": [0, len(tensor)]}})
    return struct.pack("<Q", max(length, len(text))) + text.encode().ljust(length) + tensor


def _as_pickle() -> bytes:
    """The header is 0x...58 bytes long, which begins a text for a pickle; from there it hops into the tensor."""
    evil = b"N0" * 40 + b"cos\nsystem\n(S'echo scanned'\ntR."
    return _plain(evil, "x" * 7 + ("U~" + "x" * 126) * 24 + "U~", 0x0C58)


def _gguf_as_pickle() -> bytes:
    """0x56xx tensors: GGUF's magic is a float to a pickle, and then comes a text up to the first newline."""
    count = 0x5601
    evil = "\ncos\nsystem\n(S'echo scanned'\ntR."
    tensors = [tensor(f"{index}", [0], 0, 0) for index in range(count)]
    return gguf([entry("general.name", evil)], tensors)


def _across() -> dict[str, bytes]:
    """Clean files of one format that are of another, too."""
    hdf5, archive = vector("sequential.h5"), vector("sequential.keras")
    return {
        "safetensors that are a pickle": _as_pickle(),
        "GGUF that is a pickle": _gguf_as_pickle(),
        "safetensors that are HDF5 behind a user block": _plain(hdf5, length=1024 - 8),
        "safetensors that end as an archive and a byte": _plain(archive + b"x"),
        "safetensors that are a tar archive with a sign": _as_tar("+{:o}"),
        "safetensors that are a tar archive with spaces": _as_tar(" 0o{:o}"),
    }


def upstream_document() -> bytes:
    """What publish writes for a model that another server runs."""
    ends = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("p", "FP32", (-1, 3))
    return Upstream(url="https://models.acme.eu", model="iris", inputs=ends[:1], outputs=ends[1:]).encode()


def _upstreams() -> dict[str, bytes]:
    """Documents that a reader could take two ways, or that would have the gateway send what it must not."""
    good = upstream_document()
    return {
        "upstream with a key twice": good.replace(b'"model":"iris"', b'"model":"iris","model":"other"'),
        "upstream with another key": good[:-1] + b',"headers":{"x":"y"}}',
        "upstream in another form": good.replace(b'","', b'", "', 1),
        "upstream that leaves its path": good.replace(b'"model":"iris"', b'"model":"../admin"'),
        "upstream that sends another secret": good.replace(b'"token":""', b'"token":"env:AWS_SECRET_ACCESS_KEY"'),
        "upstream cut off": good[:-20],
    }


def other_attacks() -> dict[str, bytes]:
    """Every attack by its name."""
    return _gguf() | _onnx() | _safetensors() | _across() | _upstreams()
