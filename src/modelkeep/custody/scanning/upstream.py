"""What an upstream document may say: exactly what is read, in the one form that has one digest."""

from modelkeep.core.values import ModelSignature
from modelkeep.custody.scanning.rules import Report
from modelkeep.formats.upstream import parse_upstream


def scan_upstream(data: memoryview, report: Report) -> ModelSignature:  # noqa: ARG001  # a judge's form; what is wrong is raised
    """Judge a whole document; what the model behind it takes and gives. Raises Invalid."""
    return parse_upstream(data).signature
