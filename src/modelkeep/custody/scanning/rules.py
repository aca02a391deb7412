"""Every rule of the scanner: its stable id, how grave it is, and what it means. ``Report`` gathers what they find."""

from typing import Literal, NamedTuple

from modelkeep.ledger.predicates import Finding

RULES_VERSION = "3"
MAX_FINDINGS = 64

Severity = Literal["critical", "high", "medium"]


class Rule(NamedTuple):
    """``severity``: critical (made to run code or reach outside), high (hides or bombs), medium (not understood)."""

    severity: Severity
    text: str


_C: Severity = "critical"
_H: Severity = "high"
_M: Severity = "medium"

RULES: dict[str, Rule] = {
    # any file
    "file-name": Rule(_M, "The file name is a path, or has control characters."),
    "format": Rule(_M, "The file is of no format that is understood."),
    "malformed": Rule(_M, "The file is cut off, or breaks the rules of its own format."),
    "too-large": Rule(_M, "The file has more parts, deeper nesting or larger contents than are read."),
    "polyglot": Rule(_H, "The file can also be read as one of another format."),
    "trailing-data": Rule(_H, "Bytes follow the end of the contents."),
    # ONNX
    "custom-operator": Rule(_C, "An ONNX operator that is not of the standard: it may run any code."),
    "external-data": Rule(_C, "Data lies outside the file, at a path that the file names."),
    "local-function": Rule(_H, "The ONNX model brings functions of its own."),
    "unbounded": Rule(_H, "An ONNX operator may run for ever on one request."),
    "ir-version": Rule(_M, "The ONNX IR version is not known."),
    "size": Rule(_H, "A claim about sizes that the bytes of the file do not back."),
    "interface": Rule(_M, "The ONNX model has an input or output that is not a plain tensor."),
    "sparse-tensor": Rule(_M, "The ONNX model has sparse tensors."),
    "training-info": Rule(_M, "The ONNX model has training graphs."),
    "unknown-field": Rule(_M, "A field or part that the format does not define."),
    "ambiguous": Rule(_H, "The same thing is said twice, and readers would disagree about which counts."),
    # pickle, and what is made of pickles: joblib, PyTorch
    "pickle-global": Rule(_C, "The pickle names a function or class that is not on the list of harmless ones."),
    "pickle-call": Rule(_C, "The pickle calls something in a way that no library writes."),
    "pickle-state": Rule(_C, "The pickle sets attributes that no library sets this way."),
    "pickle-extension": Rule(_C, "The pickle takes objects from the extension registry or from outside the file."),
    "pickle-opcode": Rule(_H, "The pickle has an opcode, a frame or a memo entry that no library writes."),
    "torch-code": Rule(_C, "The PyTorch archive holds TorchScript code."),
    "torch-storage": Rule(_H, "A PyTorch tensor does not lie within the bytes of its storage."),
    # zip, and what is made of zips: PyTorch, Keras, npz
    "zip-encrypted": Rule(_H, "A member of the archive is encrypted."),
    "zip-mismatch": Rule(_H, "The two headers of a member disagree, or its bytes do not have their checksum or size."),
    "zip-duplicate": Rule(_H, "Two members have the same name."),
    "zip-name": Rule(_C, "A member's name leads out of the archive, or is a link."),
    "zip-gap": Rule(_H, "The archive has bytes that belong to no member, or members that overlap."),
    "zip-bomb": Rule(_H, "A member unpacks to far more than the archive's size."),
    "zip-member": Rule(_M, "A member that does not belong in such an archive."),
    # arrays
    "object-array": Rule(_C, "The array holds Python objects: reading it runs a pickle."),
    # Keras
    "keras-lambda": Rule(_C, "A Keras layer holds Python code."),
    "keras-custom": Rule(_C, "The Keras configuration names a class or function that Keras itself does not bring."),
    "hdf5-external": Rule(_C, "The HDF5 file links to another file."),
    "hdf5-feature": Rule(_M, "The HDF5 file uses a feature that is not understood."),
    # GGUF
    "template-code": Rule(_C, "The chat template reaches for Python internals, or uses what no chat template needs."),
}
"""By rule id."""


class Report:
    """Findings of one file, at most ``MAX_FINDINGS``, each of one line and once."""

    def __init__(self) -> None:
        self._found: dict[Finding, None] = {}
        self._tries = 1000

    def add(self, rule: str, where: str, message: str) -> None:
        """Note a finding of ``rule``, which must be in ``RULES``. ``where`` and ``message`` may quote the file."""
        self._tries -= 1
        if self._tries >= 0 and len(self._found) < MAX_FINDINGS:
            self._found[Finding(rule, _line(where, 255), _line(message, 500))] = None

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What was found, in the order of the file."""
        return tuple(self._found)


def _line(text: str, limit: int) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text[:limit])
