"""THREAT-MODEL.md speaks of tests that exist, for every promise; README makes no promise of its own."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THREATS = (ROOT / "docs" / "THREAT-MODEL.md").read_text("utf-8")
NAMED = sorted(set(re.findall(r"`(test_\w+)`", THREATS)))
PROMISES = re.split(r"^### ", THREATS, flags=re.MULTILINE)[1:]


@cache
def existing():
    """Every test function in the tree."""
    found = set()
    for path in (ROOT / "tests").rglob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
                found.add(node.name)
    return found


@pytest.mark.parametrize("name", NAMED)
def test_every_test_named_exists(name):
    assert name in existing()


def test_every_promise_is_there_with_tests():
    titles = [text.split(".", 1)[0] for text in PROMISES[:8]]
    assert titles == [f"P{number}" for number in range(1, 9)]
    for text in PROMISES:
        assert len(re.findall(r"`test_\w+`", text)) >= 3, text.splitlines()[0]


@pytest.mark.parametrize("text", PROMISES[:8], ids=lambda text: text.split(".", 1)[0])
def test_every_promise_says_how_firmly_it_is_held(text):
    assert re.search(r"^(Held|Partly)\b", text, re.MULTILINE)
