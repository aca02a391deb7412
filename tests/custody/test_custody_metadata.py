"""The schema of card.toml: what is taken, and that everything else is refused with one clear line."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.custody.metadata import (
    MAX_ABOUT,
    MAX_CARD,
    MAX_NESTED,
    About,
    Classification,
    check_card,
    check_licence,
    parse_about,
)
from modelkeep.errors import Invalid

FULL = b"""
owner = "risk-team"
classification = "restricted"
licence = "Apache-2.0 WITH LLVM-exception OR (MIT AND LicenseRef-acme)"
description = "Probability of default."
tags = ["retail", "basel:pd", "2031/q1"]
card = "card.md"
"""


def test_everything_and_the_least():
    assert parse_about(FULL) == About(
        "risk-team", Classification.RESTRICTED, "Apache-2.0 WITH LLVM-exception OR (MIT AND LicenseRef-acme)",
        "Probability of default.", ("retail", "basel:pd", "2031/q1"), "card.md",
    )  # fmt: skip
    assert parse_about(b'owner = "a"\nclassification = "public"\n') == About("a", Classification.PUBLIC)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (b'licenses = "MIT"', "licenses"),
        (b'owner = ""', "duplicate|overwrite|owner"),
        (b'tags = "retail"', "overwrite|array"),
        (b"\xff", "malformed"),
        (b"[nested]\nx = 1", "nested"),
    ],
)
def test_what_is_unknown_or_malformed_is_refused(change, words):
    with pytest.raises(Invalid, match=words):
        parse_about(FULL + change)


@pytest.mark.parametrize(
    "line",
    [
        'owner = ""', 'owner = " "', "owner = 7", 'owner = "two\\nlines"', f'owner = "{"x" * 201}"',
        'classification = "secret"', 'classification = "Public"', f'description = "{"x" * 4001}"',
        'tags = ["Upper"]', 'tags = ["a", "a"]', 'tags = [""]',
        'tags = ["a b"]', f"tags = {[f't{n}' for n in range(33)]}", 'licence = "MIT OR"', "card = 1",
    ],
)  # fmt: skip
def test_bounds(line):
    field = line.partition(" ")[0]
    kept = [known for known in FULL.decode().splitlines() if not known.startswith(field)]
    with pytest.raises(Invalid) as refusal:
        parse_about("\n".join([*kept, line.replace("'", '"')]).encode())
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "MIT", "GPL-2.0-or-later", "GPL-2.0+", "(MIT)", "((MIT))", "MIT AND Apache-2.0 OR BSD-3-Clause", "LicenseRef-23",
        "DocumentRef-spdx-tool-1.2:LicenseRef-MIT-Style-2", "GPL-2.0-only WITH Classpath-exception-2.0", " MIT ",
        "LGPL-2.1-only OR (MIT AND (BSD-3-Clause OR Apache-2.0))", "ANDROID-x", "ORACLE",
    ],
)  # fmt: skip
def test_licence_expressions_of_spdx(text):
    check_licence(text)


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "AND", "MIT AND", "OR MIT", "MIT MIT", "(MIT", "MIT)", "()", "MIT WITH", "WITH x", "MIT WITH (x)", "MIT/X11",
        "MIT, BSD", "MIT AND OR BSD", "x" * 501, "(" * 248 + "MIT" + ")" * 248,
        "MIT\nOR MIT", "MIT\x85OR MIT", "(MIT) WITH x", "MIT WITH a WITH b", "<b>", "a;b",
    ],
)  # fmt: skip
def test_what_is_no_licence_expression(text):
    with pytest.raises(Invalid, match="SPDX"):
        check_licence(text)


names = st.from_regex(r"[A-Za-z0-9.-]{1,12}\+?", fullmatch=True).filter(lambda word: word not in ("AND", "OR", "WITH"))
expressions = st.recursive(
    names,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(" ".join), inner.map(lambda text: f"({text})")
    ),
    max_leaves=8,
)


@given(expressions)
def test_every_expression_of_the_grammar_is_taken(text):
    if len(text) <= 490 and text.count("(") < MAX_NESTED:
        check_licence(text)
        for bad in (f"{text} AND", f"({text}", f"{text})", f"{text} {text}"):
            with pytest.raises(Invalid):
                check_licence(bad)


@given(st.text(max_size=60))
def test_any_text_is_taken_or_refused(text):
    try:
        check_licence(text)
    except Invalid:
        return
    assert text.strip()


@given(st.binary(max_size=200))
def test_any_bytes_are_metadata_or_invalid(data):
    try:
        found = parse_about(data)
    except Invalid:
        return
    assert msgspec.convert(msgspec.to_builtins(found), About) == found


def test_cards_are_text_of_a_bounded_size():
    assert check_card("# Kärtchen".encode()) == "# Kärtchen".encode()
    check_card(b"x" * MAX_CARD)
    for bad in (b"x" * (MAX_CARD + 1), b"\xff\xfe", b"a\0b"):
        with pytest.raises(Invalid):
            check_card(bad)


def test_metadata_do_not_steer_a_terminal_nor_exhaust_the_reader():
    head = b'owner = "a"\nclassification = "public"\n'
    assert parse_about(head + b'description = "two\\nlines"').description == "two\nlines"
    for bad in (rb"x\u001b]0;pwn\u0007", rb"a\rb", rb"\u009b31m", rb"\u202eabc"):
        with pytest.raises(Invalid, match="control character"):
            parse_about(head + b'description = "' + bad + b'"')
    for bad in (b"tags = " + b"[" * 20_000, b"#" * (MAX_ABOUT + 1)):
        with pytest.raises(Invalid):
            parse_about(head + bad)
