"""What Keras files may hold: a configuration of classes that Keras itself brings, and weights in plain HDF5.

Source: ``keras.saving.serialization_lib`` and ``keras.src.saving.saving_lib``. Keras imports the module and class of
a configuration, so each must be one of a list; those that hold code, or read a file that the configuration names, are not.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from modelkeep.custody.scanning import keras_names
from modelkeep.custody.scanning.archives import Opened, open_archive
from modelkeep.custody.scanning.rules import Report
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.hdf5 import read_hdf5
from modelkeep.formats.zip import Member

MAX_CONFIG = 2 << 20
MAX_VALUES = 300_000
MAX_WEIGHTS = 32 << 20

CLASSES = frozenset(
    name
    for row in keras_names.NAMES.split("\n")
    if row and not row.startswith("activations")
    for name in row.split(": ")[1].split()
) | {
    "Sequential", "Functional", "Model", "DTypePolicy", "QuantizedDTypePolicy", "DTypePolicyMap", "SeedGenerator",
    "KerasTensor", "__keras_tensor__", "__tuple__", "__ellipsis__", "__slice__", "__numpy__", "__tensor__",
}  # fmt: skip
"""``class_name`` values that name nothing of the file's own."""
ACTIVATIONS = frozenset(keras_names.NAMES[keras_names.NAMES.index("activations:") :].replace("activations:", "").split())
_CODE = frozenset({"Lambda", "__lambda__", "TorchModuleWrapper", "TFSMLayer", "JaxLayer", "FlaxLayer"})
_MODULE = re.compile(r"keras(\.[a-z_0-9]+){0,8}\Z")
_MEMBERS = frozenset({"metadata.json", "config.json", "model.weights.h5"})


def scan_keras_zip(data: memoryview, report: Report) -> None:
    """Judge a ``.keras`` archive. Raises Invalid, TooLarge."""
    opened = open_archive(data, report)
    names = {member.name for member in opened.members}
    for missing in sorted(_MEMBERS - names):
        report.add("malformed", missing, "the Keras archive lacks this member")
    for member in opened.members:
        if member.name == "model.weights.h5":
            _weights(opened, member, report)
        elif member.name in _MEMBERS:
            raw = opened.unpack(member, MAX_CONFIG)
            if raw is not None:
                judge_config(raw, member.size, member.name, report)
        else:
            report.add("zip-member", member.name, "Keras writes no such member, or one that is not understood")


def _weights(opened: Opened, member: Member, report: Report) -> None:
    if opened.unpack(member, 0) is None:
        return
    if member.method == 0:
        held = opened.archive.data[member.begin : member.begin + member.packed]
    elif member.size <= MAX_WEIGHTS:
        held = memoryview(opened.unpack(member, member.size) or b"")
    else:
        raise TooLarge("the weights are compressed, and larger than is unpacked")
    try:
        _judge_hdf5(held, member.name, report)
    except TooLarge as cause:
        report.add("too-large", member.name, str(cause))
    except Invalid as cause:
        report.add("malformed", member.name, str(cause))


def scan_hdf5(data: memoryview, report: Report) -> None:
    """Judge an ``.h5`` file: weights, or a whole model of old Keras with its configuration in attributes. Raises Invalid."""
    _judge_hdf5(data, "", report)


def _judge_hdf5(data: memoryview, where: str, report: Report) -> None:
    found = read_hdf5(data)
    for odd in found.odd:
        rule = {"external": "hdf5-external", "feature": "hdf5-feature", "size": "size"}[odd.kind]
        report.add(rule, f"{where}{odd.where}", odd.why)
    for (path, name), text in found.texts.items():
        if text.lstrip()[:1] in ("{", "[") or name.endswith("_config"):
            raw = text.encode("utf-8", "replace")
            judge_config(raw, len(raw), f"{where}{path}@{name}", report)


def judge_config(raw: bytes, size: int, where: str, report: Report) -> None:
    """Report what a JSON configuration names that Keras does not bring."""
    if size > MAX_CONFIG or sum(raw.count(mark) for mark in (b"[", b"{", b",")) > MAX_VALUES:
        report.add(
            "too-large", where, f"the configuration is longer than {MAX_CONFIG} bytes, or has more than {MAX_VALUES} values"
        )
        return
    try:
        config = json.loads(raw, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError, Invalid) as cause:
        report.add("malformed", where, f"the configuration is not JSON that every reader understands ({str(cause)[:80]})")
        return
    for node in _tables(config):
        if "class_name" in node or "module" in node:
            _judge_class(node, where, report)


def _judge_class(node: dict[str, Any], where: str, report: Report) -> None:
    name, module, registered = node.get("class_name"), node.get("module"), node.get("registered_name")
    what = f"{where} {module}.{name}" if module else f"{where} {name}"
    inner = node.get("config")
    if isinstance(name, str) and name in _CODE:
        report.add("keras-lambda", what, "the layer holds code, or a model of another kind")
    elif name == "function" and _is_activation(inner) and module in (None, "builtins", "keras.activations"):
        return
    elif not isinstance(name, str) or name not in CLASSES:
        report.add("keras-custom", what, "Keras brings no such class, or it may run or read something")
    elif module is not None and not (isinstance(module, str) and _MODULE.match(module)):
        report.add("keras-custom", what, "the class is taken from a module that is not of Keras")
    elif registered not in (None, name):
        report.add("keras-custom", what, "the class is registered under a name of the file's own")


def _is_activation(name: object) -> bool:
    return isinstance(name, str) and name in ACTIVATIONS


def _tables(config: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object, however deep, without recursion; strings that hold JSON are left to their readers."""
    todo = [config]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            yield value
            todo.extend(value.values())
        elif isinstance(value, list):
            todo.extend(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise Invalid("the same key twice")
    return table


def _no_number(text: str) -> NoReturn:
    raise Invalid(f"the number {text}")
