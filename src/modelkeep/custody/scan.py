"""The built-in scanner: reads a model file without running it, and calls it clean only if everything in it was understood.

Whatever a format allows beyond what models need is a finding: a false alarm costs a question, a miss costs the house.
Clean is not servable: a harmless pickle is clean, and a gateway still serves no pickles.
"""

import re
from collections.abc import Callable, Mapping

import msgspec

from modelkeep.core.values import ModelSignature, Opinion
from modelkeep.custody.scanning.arrays import scan_npy, scan_npz
from modelkeep.custody.scanning.joblib import scan_joblib, scan_pickled
from modelkeep.custody.scanning.keras import scan_hdf5, scan_keras_zip
from modelkeep.custody.scanning.onnx import scan_onnx
from modelkeep.custody.scanning.pickles import loads_as_pickle
from modelkeep.custody.scanning.rules import RULES, RULES_VERSION, Report
from modelkeep.custody.scanning.torch import scan_torch_legacy, scan_torch_zip
from modelkeep.custody.scanning.upstream import scan_upstream
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.detect import Format, begins_as_tar, detect, hides_hdf5
from modelkeep.formats.safetensors import head_length, parse_head
from modelkeep.formats.zip import ends_as_zip
from modelkeep.ledger.predicates import Finding

__all__ = ["RULES", "RULES_VERSION", "SCANNED_FORMATS", "SCANNER", "SERVED_FORMATS", "ScanVerdict", "refusal", "scan"]

SCANNER = "modelkeep"
MAX_KEYS = 200_000
"""Keys of a safetensors header, four a tensor: its values take far more memory than its text."""
SERVED_FORMATS = frozenset({Format.ONNX.id, Format.SAFETENSORS.id, Format.UPSTREAM.id})
"""Stable names of the formats that can be published; others are only scanned."""

_PLAIN_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]{1,255}\Z")


class ScanVerdict(msgspec.Struct, frozen=True):
    """What the scanner says of one file.

    ``format``: stable name; ``signature``: what an ONNX model takes and gives, None when an end of it is not a plain tensor.
    ``opinions``: what other scanners said (custody/opinions.py).
    """

    clean: bool
    format: str
    findings: tuple[Finding, ...]
    scanner: str = SCANNER
    rules_version: str = RULES_VERSION
    signature: ModelSignature | None = None
    opinions: tuple[Opinion, ...] = ()


def scan(data: bytes | bytearray | memoryview, filename: str) -> ScanVerdict:
    """Scan a whole file called ``filename``. Malformed input is a finding, never an error."""
    view = memoryview(data).cast("B").toreadonly()
    found, report = detect(view), Report()
    if not _PLAIN_NAME.match(filename) or filename in {".", ".."}:
        report.add("file-name", filename, "the file name is not a plain name: give it without folders and control characters")
    _find_others(view, found, filename, report)
    judge = _JUDGES.get(found)
    signature = None
    try:
        if judge is None:
            report.add("format", filename, f"{found.article} is not understood: {found.convert}")
        else:
            signature = judge(view, report)
    except TooLarge as cause:
        report.add("too-large", filename, str(cause))
    except Invalid as cause:
        report.add("malformed", filename, str(cause))
    return ScanVerdict(not report.findings, found.id, report.findings, signature=signature)


def refusal(verdict: ScanVerdict, filename: str) -> Finding | None:
    """Why a file with this verdict is not served: its format, or the first finding. None when it may be."""
    if verdict.format not in SERVED_FORMATS:
        found = next(each for each in Format if each.id == verdict.format)
        return Finding("format", filename[:255], f"{found.article} is not accepted: {found.convert}")
    return verdict.findings[0] if verdict.findings else None


def _find_others(data: memoryview, found: Format, filename: str, report: Report) -> None:
    """Report what else the file can be read as: its name decides that elsewhere, or whoever opens it."""
    if found not in _ZIPS and ends_as_zip(data):
        report.add("polyglot", filename, "the file ends as a zip archive, and readers of those would find one in it")
    if begins_as_tar(data):
        report.add("polyglot", filename, "the file begins as a tar archive, which PyTorch looks for in any file")
    if found not in _PICKLES and loads_as_pickle(data):
        report.add("polyglot", filename, "the file is a pickle, too: PyTorch and others load any file as one")
    at = hides_hdf5(data) if found is not Format.HDF5 else -1
    if at >= 0 and not (
        found is Format.KERAS_ZIP and at == _first(b"\x89HDF\r\n\x1a\n", data)
    ):  # its weights, which are judged
        report.add("polyglot", filename, f"the file is HDF5 behind a user block, too: h5py finds it at byte {at}")


def _first(what: bytes, data: memoryview) -> int:
    found = re.search(re.escape(what), data)
    return found.start() if found else -1


_PICKLES = frozenset({Format.PICKLE, Format.TORCH_LEGACY})
_ZIPS = frozenset({Format.TORCH_ZIP, Format.KERAS_ZIP, Format.NPZ, Format.ZIP})


def _scan_safetensors(data: memoryview, _report: Report) -> None:
    head = bytes(data[: head_length(data[:8], data.nbytes)])
    if head.count(b":") > MAX_KEYS or head.count(b",") + head.count(b"[") + head.count(b"{") > 4 * MAX_KEYS:
        raise TooLarge(f"the safetensors header names more than about {MAX_KEYS // 4} tensors")
    parse_head(head, data.nbytes)


def _scan_gguf(data: memoryview, report: Report) -> None:
    from modelkeep.custody.scanning.gguf import scan_gguf  # Jinja comes in with it, which no other verb needs

    scan_gguf(data, report)


_JUDGES: Mapping[Format, Callable[[memoryview, Report], ModelSignature | None]] = {
    Format.ONNX: scan_onnx,
    Format.SAFETENSORS: _scan_safetensors,
    Format.PICKLE: scan_pickled,
    Format.JOBLIB: scan_joblib,
    Format.TORCH_ZIP: scan_torch_zip,
    Format.TORCH_LEGACY: scan_torch_legacy,
    Format.NPY: scan_npy,
    Format.NPZ: scan_npz,
    Format.GGUF: _scan_gguf,
    Format.KERAS_ZIP: scan_keras_zip,
    Format.HDF5: scan_hdf5,
    Format.UPSTREAM: scan_upstream,
}

SCANNED_FORMATS = tuple(sorted(found.id for found in _JUDGES))
"""Stable names of the formats that are understood; a file of any other is not clean."""
