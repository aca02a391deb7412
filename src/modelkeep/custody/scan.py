"""The built-in scanner: reads a model file without running it, and calls it clean only if everything in it was understood.

Whatever a format allows beyond what a gateway serves is a finding: a false alarm costs a question, a miss costs the house.
"""

import re
from collections.abc import Iterator

import msgspec

from modelkeep.core.values import ModelSignature, Opinion
from modelkeep.errors import Invalid, TooLarge
from modelkeep.formats.detect import Format, detect
from modelkeep.formats.onnx import OnnxModel, parse_onnx
from modelkeep.formats.safetensors import head_length, parse_head
from modelkeep.ledger.predicates import Finding

SCANNER = "modelkeep"
RULES_VERSION = "2"
DOMAINS = frozenset({"", "ai.onnx.ml"})
"""Operator domains of the ONNX standard; ``ai.onnx`` is read as the empty one."""
MAX_IR_VERSION = 14
UNBOUNDED = frozenset({"Loop"})
"""Standard operators whose number of rounds the file or the input decides without a bound (Scan's is the input's length)."""

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
    found = detect(data)
    findings = list(_check_name(filename))
    signature = None
    try:
        if found is Format.ONNX:
            model = parse_onnx(data)
            findings += _judge(model)
            signature = None if model.untyped else model.signature()
        elif found is Format.SAFETENSORS:
            view = memoryview(data).cast("B")
            parse_head(bytes(view[: head_length(view[:8], view.nbytes)]), view.nbytes)
        else:
            findings.append(Finding("format", filename[:255], f"{found.article} is not accepted: {found.convert}"))
    except TooLarge as cause:
        findings.append(Finding("too-large", filename[:255], str(cause)))
    except Invalid as cause:
        findings.append(Finding("malformed", filename[:255], str(cause)))
    return ScanVerdict(not findings, found.id, tuple(findings), signature=signature)


def _check_name(filename: str) -> Iterator[Finding]:
    if not _PLAIN_NAME.match(filename) or filename in {".", ".."}:
        yield Finding(
            "file-name", filename[:255], "the file name is not a plain name: give it without folders and control characters"
        )


def _judge_operators(model: OnnxModel) -> Iterator[Finding]:
    for operator in model.operators:
        if operator.domain not in DOMAINS or not operator.op_type.isidentifier():
            name = f"{operator.domain}:{operator.op_type}"[:160]
            yield Finding("custom-operator", name, "the operator is not of the ONNX standard, and may run any code")
        elif operator.op_type in UNBOUNDED:
            yield Finding("unbounded", operator.op_type, "it may run for ever on one request: unroll it, or export without it")


def _judge(model: OnnxModel) -> Iterator[Finding]:
    """Everything in a well-formed ONNX model that is not allowed."""
    if not 1 <= model.ir_version <= MAX_IR_VERSION:
        yield Finding(
            "ir-version", "model", f"IR version {model.ir_version} is not known: export it for {MAX_IR_VERSION} or below"
        )
    yield from _judge_operators(model)
    for location in model.external:
        yield Finding("external-data", location[:255], "tensor data lies outside the file: save the model as one file")
    for function in model.functions:
        yield Finding(
            "local-function", function, "the model brings its own functions: inline them (onnx.inliner.inline_local_functions)"
        )
    for what in model.oversized:
        yield Finding(
            "size", what[:255], "the model claims more memory than the file backs, or the claims contradict each other"
        )
    for what in model.untyped:
        yield Finding(
            "interface",
            what[:255],
            "it is not a tensor of a known type: export with tensor ends (skl2onnx: options={'zipmap': False})",
        )
    if not model.inputs or not model.outputs:
        yield Finding("interface", "graph", "the model has no tensor input, or no tensor output: it cannot be served")
    if model.sparse:
        yield Finding("sparse-tensor", "graph", "sparse tensors are not understood: export the model with dense ones")
    if model.training:
        yield Finding("training-info", "model", "the file holds training graphs: export it for inference")
    for what in model.unknown:
        yield Finding(
            "unknown-field", what[:255], "onnx.proto has no such field: hidden data, trailing bytes, or a newer format"
        )
    for what in model.doubled:
        yield Finding(
            "ambiguous", what[:255], "the field occurs twice where one belongs: readers would disagree about the model"
        )
