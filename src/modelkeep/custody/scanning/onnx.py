"""What an ONNX model may have: operators of the standard, everything in the one file, ends that can be served."""

from modelkeep.core.values import ModelSignature
from modelkeep.custody.scanning import onnx_names
from modelkeep.custody.scanning.rules import Report
from modelkeep.formats.onnx import OnnxModel, parse_onnx

STANDARD = frozenset(
    (row.split(":")[0], name) for row in onnx_names.NAMES.split("\n") if row for name in row.split(":")[1].split()
)
"""Domain and name of the operators of the ONNX standard; ``ai.onnx`` is read as the empty domain."""
MAX_IR_VERSION = 14
UNBOUNDED = frozenset({"Loop"})
"""Standard operators whose number of rounds the file or the input decides without a bound (Scan's is the input's length)."""


def scan_onnx(data: memoryview, report: Report) -> ModelSignature | None:
    """Judge a whole file; its signature when every end is a plain tensor. Raises Invalid, TooLarge."""
    model = parse_onnx(data)
    if not 1 <= model.ir_version <= MAX_IR_VERSION:
        report.add("ir-version", "model", f"IR version {model.ir_version} is not known: export for {MAX_IR_VERSION} or below")
    _operators(model, report)
    for where, rule, message in _NAMED:
        for what in getattr(model, where):
            report.add(rule, what, message)
    if not model.inputs or not model.outputs:
        report.add("interface", "graph", "the model has no tensor input, or no tensor output: it cannot be served")
    if model.sparse:
        report.add("sparse-tensor", "graph", "sparse tensors are not understood: export the model with dense ones")
    if model.training:
        report.add("training-info", "model", "the file holds training graphs: export it for inference")
    return None if model.untyped else model.signature()


_NAMED = (
    ("external", "external-data", "tensor data lies outside the file: save the model as one file"),
    ("functions", "local-function", "the model brings its own functions: inline them (onnx.inliner.inline_local_functions)"),
    ("oversized", "size", "the model claims more memory than the file backs, or the claims contradict each other"),
    ("untyped", "interface", "it is no tensor of a known type: export with tensor ends (skl2onnx: options={'zipmap': False})"),
    ("unknown", "unknown-field", "onnx.proto has no such field: hidden data, trailing bytes, or a newer format"),
    ("doubled", "ambiguous", "the field occurs twice where one belongs: readers would disagree about the model"),
)  # fmt: skip


def _operators(model: OnnxModel, report: Report) -> None:
    for operator in model.operators:
        if (operator.domain, operator.op_type) not in STANDARD:
            name = f"{operator.domain}:{operator.op_type}"[:160]
            report.add("custom-operator", name, "the operator is not of the ONNX standard, and may run any code")
        elif operator.op_type in UNBOUNDED:
            report.add("unbounded", operator.op_type, "it may run for ever on one request: unroll it, or export without it")
