"""What a GGUF file may hold: tensors and plain metadata, and chat templates that only lay out messages.

A chat template is a Jinja program that comes with the model and that some readers run without a sandbox. It is parsed, not
run, and each part must be one that templates need.
"""

import jinja2
from jinja2 import nodes

from modelkeep.custody.scanning.rules import Report
from modelkeep.errors import TooLarge
from modelkeep.formats.gguf import read_gguf

MAX_TEMPLATE = 1 << 16
MAX_NUMBER = 1_000_000

_ALLOWED = (
    nodes.Template, nodes.Output, nodes.TemplateData, nodes.If, nodes.For, nodes.Assign, nodes.AssignBlock, nodes.Macro,
    nodes.Name, nodes.NSRef, nodes.Const, nodes.List, nodes.Tuple, nodes.Dict, nodes.Pair, nodes.Keyword, nodes.Getattr,
    nodes.Getitem, nodes.Slice, nodes.Call, nodes.Filter, nodes.Test, nodes.Compare, nodes.Operand, nodes.And, nodes.Or,
    nodes.Not, nodes.Add, nodes.Sub, nodes.Mul, nodes.Mod, nodes.FloorDiv, nodes.Div, nodes.Neg, nodes.Pos, nodes.Concat,
    nodes.CondExpr, nodes.Break, nodes.Continue, nodes.ExprStmt,
)  # fmt: skip
_FILTERS = frozenset(
    [
        "abs",
        "capitalize",
        "count",
        "default",
        "d",
        "dictsort",
        "first",
        "float",
        "int",
        "items",
        "join",
        "keys",
        "last",
        "length",
        "list",
        "lower",
        "map",
        "max",
        "min",
        "reject",
        "rejectattr",
        "replace",
        "reverse",
        "round",
        "safe",
        "select",
        "selectattr",
        "sort",
        "string",
        "sum",
        "title",
        "tojson",
        "trim",
        "truncate",
        "unique",
        "upper",
        "values",
        "indent",
    ]
)
_NAMES = frozenset(
    {"self", "lipsum", "cycler", "joiner", "request", "config", "url_for", "get_flashed_messages", "varargs", "caller"}
)
_METHODS = frozenset(
    [
        "get",
        "items",
        "keys",
        "values",
        "append",
        "extend",
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "rsplit",
        "splitlines",
        "startswith",
        "endswith",
        "replace",
        "upper",
        "lower",
        "title",
        "capitalize",
        "join",
        "find",
        "count",
        "index",
        "pop",
        "update",
        "insert",
        "removeprefix",
        "removesuffix",
        "isdigit",
        "isspace",
    ]
)


def scan_gguf(data: memoryview, report: Report) -> None:
    """Judge a whole file. Raises Invalid, TooLarge."""
    model = read_gguf(data)
    templates = {key: text for key, text in model.texts.items() if "template" in key}
    if sum(map(len, templates.values())) > MAX_TEMPLATE:
        raise TooLarge(f"the chat templates are longer than {MAX_TEMPLATE} characters")
    for key, text in templates.items():
        judge_template(key, text, report)


def judge_template(key: str, text: str, report: Report) -> None:
    """Report every part of a Jinja template that no chat template needs."""
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do"]).parse(text)  # noqa: S701 - not rendered
        own = _named(tree)
        for node in tree.find_all(nodes.Node):
            _judge(key, node, own, report)
    except (jinja2.TemplateError, RecursionError, ValueError, OverflowError, SyntaxError) as cause:
        report.add("malformed", key, f"the chat template is not understood ({str(cause)[:80]})")


def _judge(key: str, node: nodes.Node, own: set[str], report: Report) -> None:
    """``own``: names that the template gives a value, which may be a function that it came upon somewhere."""
    why = _calls_own(node, own) or _objection(node)
    if why:
        report.add("template-code", f"{key} line {node.lineno}", why)


def _objection(node: nodes.Node) -> str:
    """What a chat template has no need of in this node; empty when nothing."""
    if not isinstance(node, _ALLOWED):
        return f"the template uses {type(node).__name__}"
    if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
        return f"the template reaches for the internal attribute {node.attr[:40]}"
    if isinstance(node, nodes.Const):
        return _constant(node.value)
    if isinstance(node, nodes.Name) and (node.name.startswith("_") or node.name in _NAMES):
        return f"the template uses the name {node.name[:40]}"
    if isinstance(node, nodes.Filter) and node.name not in _FILTERS:
        return f"the template uses the filter {node.name[:40]}"
    if isinstance(node, nodes.Filter | nodes.Call) and (node.dyn_args or node.dyn_kwargs):
        return "the template calls with computed arguments"
    if isinstance(node, nodes.Filter) and node.name in ("map", "select", "reject"):
        return _by_name(node)
    if isinstance(node, nodes.Call):
        return _call(node)
    if isinstance(node, nodes.Mod) and isinstance(node.left, nodes.Const) and isinstance(node.left.value, str):
        return "the template builds text from a pattern"
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Concat | nodes.Add) and _has_text(node.arg):
        return "the template looks up a name that it puts together"
    return ""


def _named(tree: nodes.Template) -> set[str]:
    """Names that the template gives a value; with a dot before them those of a namespace."""
    plain = {each.name for each in tree.find_all(nodes.Name) if each.ctx != "load"}
    return (
        plain
        | {f".{each.attr}" for each in tree.find_all(nodes.NSRef)}
        | {f".{each.key}" for each in tree.find_all(nodes.Keyword)}
    )


def _calls_own(node: nodes.Node, own: set[str]) -> str:
    """A function that a template comes upon can be called once it has a name, or the name of a method."""
    if not isinstance(node, nodes.Call):
        return ""
    called = node.node
    name = called.name if isinstance(called, nodes.Name) else f".{called.attr}" if isinstance(called, nodes.Getattr) else ""
    if name in own:
        return f"the template calls {name[:40]}, to which it gave a value itself"
    return "the template makes a namespace of something unnamed" if name == "namespace" and node.args else ""


def _constant(value: object) -> str:
    if isinstance(value, str) and ("__" in value or (value.startswith("_") and value.strip("_").isidentifier())):
        return f"the template has the internal name {value[:40]!r} as text"
    if isinstance(value, int | float) and abs(value) > MAX_NUMBER:
        return f"the template has the number {str(value)[:20]}"
    return ""


def _by_name(node: nodes.Filter) -> str:
    """``map('attr', …)`` is the filter that it names."""
    for arg in node.args[:1]:
        if not isinstance(arg, nodes.Const):
            return "the template calls a filter whose name it computes"
        if node.name == "map" and arg.value not in _FILTERS:
            return f"the template uses the filter {str(arg.value)[:40]}"
    return ""


def _call(node: nodes.Call) -> str:
    """Plain functions by name, and methods of texts, lists and dicts."""
    if isinstance(node.node, nodes.Name):
        return ""
    if isinstance(node.node, nodes.Getattr) and node.node.attr in _METHODS:
        return ""
    return "the template calls something that is no function of templates"


def _has_text(node: nodes.Node) -> bool:
    return any(isinstance(each.value, str) for each in node.find_all(nodes.Const))
