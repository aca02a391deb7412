"""Archives that readers disagree about, that lead out of themselves, or that hold what models do not need."""

import io
import json
import lzma
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
from pickle_attacks import ECHO, call, text

VECTORS = Path(__file__).parents[1] / "vectors" / "scan"
EVIL = call("os", "system", text(ECHO))


def zipped(members: dict[str, bytes] | list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items() if isinstance(members, dict) else members:
            archive.writestr(name, data)
    return out.getvalue()


def unzipped(data: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def vector(name: str) -> bytes:
    return (VECTORS / name).read_bytes()


def saved(save, *args, **named) -> bytes:
    out = io.BytesIO()
    save(out, *args, **named)
    return out.getvalue()


def _patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """A field of the first header with this signature, written over."""
    at = data.index(signature) + offset
    return data[:at] + value + data[at + len(value) :]


def _zip() -> dict[str, bytes]:
    good = saved(np.savez, a=np.arange(4.0))
    packed = saved(np.savez_compressed, a=np.arange(64.0))
    local, central = b"PK\x03\x04", b"PK\x01\x02"
    npy = saved(np.save, np.arange(3.0))
    doubled = io.BytesIO()
    with zipfile.ZipFile(doubled, "w") as archive:
        archive.writestr("a.npy", npy)
        archive.writestr("b.npy", npy)
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        entry = zipfile.ZipInfo("a.npy")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    bomb = zipped({"a.npy": saved(np.save, np.zeros(66 << 20, np.uint8))}, zipfile.ZIP_DEFLATED)
    return {
        "zip member marked as encrypted": _patched(_patched(good, local, 6, b"\x01\x00"), central, 8, b"\x01\x00"),
        "zip member encrypted in the directory only": _patched(good, central, 8, b"\x01\x00"),
        "zip member encrypted in the local header only": _patched(good, local, 6, b"\x01\x00"),
        "zip headers disagree about the name": _patched(good, local, 30, b"b.npy"),
        "zip headers disagree about the method": _patched(packed, local, 8, b"\x00\x00"),
        "zip headers disagree about the size": _patched(zipped({"a.npy": npy}), local, 22, b"\x07\x00\x00\x00"),
        "zip with a bad checksum": _patched(_patched(zipped({"a.npy": npy}), local, 14, b"AAAA"), central, 16, b"AAAA"),
        "zip with a byte of the data changed": good.replace(np.arange(4.0).tobytes(), np.arange(1.0, 5.0).tobytes()),
        "zip with two members of one name": doubled.getvalue().replace(b"b.npy", b"a.npy"),
        "zip with a prefix": b"#!/bin/sh\necho scanned\n" + good,
        "zip with bytes after it": good + b"x",
        "zip with a comment": good[:-2] + b"\x05\x00hello",
        "zip with a second directory after it": good + good,
        "zip cut off": good[:-9],
        "zip with a method of its own": _patched(_patched(good, local, 8, b"\x63\x00"), central, 10, b"\x63\x00"),
        "zip that leads out of itself": zipped({"../a.npy": npy}),
        "zip with an absolute path": zipped({"/tmp/a.npy": npy}),
        "zip with a backslash": zipped({"..\\a.npy": npy}),
        "zip with a link": link.getvalue(),
        "zip with a folder": zipped({"a.npy": npy, "x/": b""}),
        "zip bomb": bomb,
        "zip member that claims a terabyte": _patched(packed, central, 24, b"\xf0\xff\xff\xff"),
        "zip members that overlap": _overlapping(npy),
        "zip that is empty": zipped({}),
        "zip with bytes between members": _gapped(npy),
        "zip of nothing known": zipped({"readme.txt": b"hello"}),
    }


def _overlapping(npy: bytes) -> bytes:
    """Two directory entries for one local header."""
    data = zipped({"a.npy": npy})
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    entry, tail = data[at:end], bytearray(data[end:])
    struct.pack_into("<2H2I", tail, 8, 2, 2, 2 * len(entry), at)
    return data[:at] + entry + entry + bytes(tail)


def _gapped(npy: bytes) -> bytes:
    """A whole member that only readers of local headers see."""
    data = zipped({"a.npy": npy, "evil.npy": npy, "z.npy": npy})
    at = data.index(b"PK\x01\x02")
    entries = data[at : data.index(b"PK\x05\x06")].split(b"PK\x01\x02")[1:]
    kept = b"".join(b"PK\x01\x02" + entry for entry in entries if b"evil" not in entry)
    tail = bytearray(data[data.index(b"PK\x05\x06") :])
    struct.pack_into("<2H2I", tail, 8, 2, 2, len(kept), at)
    return data[:at] + kept + bytes(tail)


def _torch() -> dict[str, bytes]:
    state = unzipped(vector("state_dict.pt"))
    prefix = "state_dict/"
    legacy = vector("state_dict_legacy.pt")
    pickled = state[prefix + "data.pkl"]

    def changed(**members: bytes | None) -> bytes:
        found = {**state, **{prefix + name: data for name, data in members.items()}}
        return zipped({name: data for name, data in found.items() if data is not None})

    return {
        "torch whose pickle calls": changed(**{"data.pkl": EVIL}),
        "torch whose pickle has another name": zipped({f"{prefix}model.pkl": EVIL, f"{prefix}version": b"3\n"}),
        "torch whose pickle is at the top": zipped({"x/version": b"3\n", "data.pkl": EVIL}),
        "torch with a second pickle": changed(**{"other.pkl": EVIL}),
        "torch with data.pkl in capitals too": changed(**{"DATA.PKL": EVIL}),
        "torch with code": changed(**{"code/__torch__.py": b"def f(): pass"}),
        "torch with constants.pkl": changed(**{"constants.pkl": pickled}),
        "torch with a storage too short": changed(**{"data/0": b"1234"}),
        "torch without a storage": changed(**{"data/0": None}),
        "torch with a storage too many": changed(**{"data/99": b"hidden"}),
        "torch with bytes after the pickle": changed(**{"data.pkl": pickled + b"x"}),
        "torch in big-endian": changed(byteorder=b"big"),
        "torch tensor outside of its storage": changed(**{"data.pkl": pickled.replace(b"K\x04K\x03\x86", b"K\xffK\x03\x86")}),
        "torch whole module": changed(**{"data.pkl": b"\x80\x02c__main__\nNet\n)\x81."}),
        "torch storage by a path": changed(**{"data.pkl": pickled.replace(b"X\x01\x00\x00\x000", b"X\x01\x00\x00\x00/")}),
        "torch cut off": vector("state_dict.pt")[:-100],
        "torch after a script": b"#!/bin/sh\n" + vector("state_dict.pt"),
        "torch legacy whose pickle calls": legacy[: legacy.index(b"ccollections")] + b"cos\nsystem\n" + text(ECHO) + b"\x85R.",
        "torch legacy cut off": legacy[:-3],
        "torch legacy with bytes after it": legacy + EVIL,
        "torch in an archive of the old kind": _tarred({"pickle": EVIL, "storages": b""}),
    }  # fmt: skip


def _tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _wrapped() -> dict[str, bytes]:
    """A model within a container that a hub serves and a scanner does not open."""
    return {
        "tar with a pickle": _tarred({"model.pkl": EVIL}),
        "tar in xz with a pickle": lzma.compress(_tarred({"model.pkl": EVIL})),
        "7z with a pickle": b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24) + EVIL,
        "rar with a pickle": b"Rar!\x1a\x07\x01\x00" + EVIL,
        "zip with a pickle": zipped({"model.pkl": EVIL}),
        "elf": b"\x7fELF\x02\x01\x01" + bytes(57),
        "shell script": b"#!/bin/sh\necho scanned\n",
        "html": b"<html><script>alert(1)</script></html>",
        "nothing": b"",
    }


def _arrays() -> dict[str, bytes]:
    good = saved(np.save, np.arange(6.0))
    objects = saved(np.save, np.array([{"a": 1}], dtype=object))

    def header(text: str, data: bytes = bytes(24)) -> bytes:
        raw = text.encode()
        return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw) + 1) + raw + b"\n" + data

    return {
        "npy of objects": objects,
        "npy of objects within a record": header("{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (3,), }"),
        "npy whose header calls": header("{'descr': __import__('os').getcwd(), 'fortran_order': False, 'shape': (3,), }"),
        "npy whose header is a lambda": header("(lambda: {'descr': '<f8', 'fortran_order': False, 'shape': (3,), })()"),
        "npy with a key twice": header("{'descr': '|O', 'fortran_order': False, 'shape': (3,), 'descr': '<f8', }"),
        "npy nested without end": header("(" * 5000),
        "npy with a header of a gigabyte": b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 30) + b"{",
        "npy that claims a petabyte": header("{'descr': '<f8', 'fortran_order': False, 'shape': (140737488355328,), }"),
        "npy of version 9": b"\x93NUMPY\x09" + good[7:],
        "npy cut off": good[:-1],
        "npy with bytes after it": good + b"x",
        "npy that ends as a zip": good + zipped({"model.pkl": EVIL}),
        "npz with objects": saved(np.savez, a=np.array([{"a": 1}], dtype=object)),
        "npz with a pickle": zipped({"a.npy": good, "b.pkl": EVIL}),
        "npz with a pickle named as an array": zipped({"a.npy": EVIL}),
        "npz cut off": saved(np.savez, a=np.ones(4))[:-30],
    }


def _keras() -> dict[str, bytes]:
    members = unzipped(vector("sequential.keras"))
    config = json.loads(members["config.json"])

    def changed(change, **others: bytes) -> bytes:
        mine = json.loads(members["config.json"])
        change(mine, mine["config"]["layers"][1])
        return zipped({**members, "config.json": json.dumps(mine).encode(), **others})

    def layer(**values):
        return lambda _config, found: found.update(values)

    def inner(**values):
        return lambda _config, found: found["config"].update(values)

    def compiled(config, _):
        config["compile_config"] = {"optimizer": {"module": "x", "class_name": "Adam", "config": {}}}

    doubled = json.dumps(config).replace('"class_name": "Sequential"', '"class_name": "Sequential", "class_name": "Model"', 1)
    weights = members["model.weights.h5"]
    code = {"class_name": "__lambda__", "config": {"code": "4wEA", "defaults": None, "closure": None}}
    getter = {"module": "builtins", "class_name": "function", "config": "eval", "registered_name": "function"}
    return {
        "keras Lambda": changed(layer(class_name="Lambda", config={"name": "l", "function": code})),
        "keras Lambda deep in the configuration": changed(inner(kernel_regularizer={"a": [[code]]})),
        "keras layer of a module": changed(layer(module="os", class_name="system")),
        "keras layer of the author": changed(layer(module="mylib.layers", class_name="Dense")),
        "keras class that nobody knows": changed(layer(class_name="MyDense")),
        "keras registered class": changed(layer(registered_name="Custom>Dense")),
        "keras get_file": changed(layer(module="keras.utils", class_name="get_file", config={"origin": "http://localhost"})),
        "keras load_model": changed(layer(module="keras.models", class_name="load_model")),
        "keras function of builtins": changed(inner(activation=getter)),
        "keras function that is a table": changed(inner(activation=getter | {"config": {}})),
        "keras class that is a list": changed(layer(class_name=["Dense"])),
        "keras TorchModuleWrapper": changed(layer(class_name="TorchModuleWrapper", config={"module": "x"})),
        "keras TFSMLayer": changed(layer(class_name="TFSMLayer", config={"filepath": "/tmp/x"})),
        "keras StringLookup that reads a file": changed(layer(class_name="StringLookup", config={"vocabulary": "/etc/passwd"})),
        "keras optimizer of the author": changed(compiled),
        "keras with a key twice": zipped({**members, "config.json": doubled.encode()}),
        "keras whose configuration is no JSON": zipped({**members, "config.json": b"{'class_name': 1}"}),
        "keras whose configuration nests without end": zipped({**members, "config.json": b"[" * 100_000}),
        "keras with assets": zipped({**members, "assets/run.py": b"print(1)"}),
        "keras with a pickle": zipped({**members, "extra.pkl": EVIL}),
        "keras without weights": zipped({k: v for k, v in members.items() if not k.endswith("h5")}),
        "keras whose weights are a pickle": zipped({**members, "model.weights.h5": EVIL}),
        "keras whose weights are cut off": zipped({**members, "model.weights.h5": weights[:-40]}),
        "keras cut off": vector("sequential.keras")[:-1],
    }  # fmt: skip


def _hdf5() -> dict[str, bytes]:
    good = vector("sequential.h5")
    name = b'"class_name": "Dense"'
    start = good.index(b'{"class_name": "Sequential"')
    spaced = good.replace(name, b'"class_name":"Lambda"', 1)
    spaced = spaced[:start] + b" {" + spaced[start + 1 :].replace(b'": "', b'":"', 1)
    doubled = good.replace(b"keras_version\0", b"model_config\0\0", 1)
    assert name in good
    at = good.index(b"SNOD") + 8
    soft = good[: at + 16] + b"\x02" + good[at + 17 :]
    external = good.replace(b"\x08\x00\x18\x00", b"\x07\x00\x18\x00", 1)
    return {
        "hdf5 with a Lambda": good.replace(name, b'"class_name":"Lambda"', 1),
        "hdf5 with a Lambda after a space": spaced,
        "hdf5 with two configurations": doubled,
        "hdf5 with a class of the author": good.replace(name, b'"class_name": "Deadly"'[:22].replace(b"Deadly", b"Mine!"), 1),
        "hdf5 with a symbolic link": soft,
        "hdf5 whose data lies in another file": external,
        "hdf5 cut off": good[:-7],
        "hdf5 with bytes after it": good + b"x",
        "hdf5 with a prefix": bytes(512) + good,
        "hdf5 of a newer kind": good[:8] + b"\x03" + good[9:],
        "hdf5 that ends as a zip": good + zipped({"model.pkl": EVIL}),
        "hdf5 that is only a signature": good[:8],
    }


def rezipped() -> bytes:
    """The archive that the PyTorch attacks change, unchanged: whatever is found in those is of their change."""
    return zipped(unzipped(vector("state_dict.pt")))


def archive_attacks() -> dict[str, bytes]:
    """Every attack by its name."""
    return _zip() | _torch() | _wrapped() | _arrays() | _keras() | _hdf5()
