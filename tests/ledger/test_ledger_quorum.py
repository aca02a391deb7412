"""Witness policies: the rules of C2SP tlog-policy, and files that break each of them."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.crypto.cosignatures import Cosigner
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Invalid
from modelkeep.ledger.cosigned import cosigners
from modelkeep.ledger.quorum import parse_policy

VECTORS = Path(__file__).parents[1] / "vectors" / "cosignatures"
LOG = NoteSigner("keep.example/releases", b"l" * 32).vkey


def key(name):
    return Cosigner(
        name,
        name.encode().ljust(32, b"."),
    ).verifier.vkey


def lines(*names):
    return "".join(f"witness {name} {key(name)}\n" for name in names)


# the example of the specification, with keys in place of its <vkey>
SPEC = (
    f"log {LOG}\n\n{lines('X1', 'X2', 'X3')}group X-witnesses 2 X1 X2 X3\n\n"
    f"{lines('Y1', 'Y2', 'Y3')}group Y-witnesses any Y1 Y2 Y3\n\n"
    "group X-and-Y all X-witnesses Y-witnesses\nquorum X-and-Y\n"
)


@pytest.mark.parametrize(
    ("names", "reached"),
    [
        ("", False),
        ("X1 X2", False),
        ("X1 Y1", False),
        ("X1 X3 Y2", True),
        ("X1 X2 X3 Y1 Y2 Y3", True),
        ("Y1 Y2 Y3 X2", False),
        ("X-witnesses Y-witnesses", False),  # only witnesses cosign
        ("X-and-Y", False),
    ],
)
def test_the_example_of_the_specification(names, reached):
    assert parse_policy(SPEC.encode()).reached(names.split()) is reached


@pytest.mark.parametrize("name", ["ed25519", "ml-dsa-44"])
def test_policies_of_public_witnesses(name):
    policy = parse_policy((VECTORS / f"{name}.policy").read_bytes())
    assert policy.reached(cosigners((VECTORS / f"{name}.checkpoint").read_bytes(), policy))
    assert not policy.reached(cosigners((VECTORS / f"{name}.checkpoint").read_bytes(), policy)[1:])


def test_spaces_tabs_comments_and_urls():
    text = f"\t # a comment\n\n  witness\tw1  {key('w1')}\thttps://w.example/ \n \nquorum w1 \n"
    policy = parse_policy(text.encode())
    assert policy.witnesses[0].url == "https://w.example/"
    assert policy.reached(["w1"])
    assert not policy.reached([])


def test_no_quorum_asked_for():
    assert parse_policy(b"quorum none\n").reached([])


def test_names_are_bytes():
    policy = parse_policy(
        b"witness \xff " + key("a").encode() + b"\nwitness \xe2\x84\xaa " + key("b").encode() + b"\nquorum \xff\n"
    )
    assert policy.reached([policy.witnesses[0].name])
    assert not policy.reached([policy.witnesses[1].name])


def test_which_logs_it_is_for():
    policy = parse_policy(SPEC.encode())
    policy.check_for(LOG)
    parse_policy(b"quorum none\n").check_for(LOG)
    with pytest.raises(Invalid, match="other logs"):
        policy.check_for(NoteSigner("keep.example/releases", b"m" * 32).vkey)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "newline"),
        ("quorum none", "newline"),
        ("# nothing\n", "no quorum line"),
        ("quorum none\nquorum none\n", "quorum line already"),
        ("quorum w1\n", "neither"),
        ("quorum w1\n" + lines("w1"), "line 1.*neither"),
        (lines("w1", "w1") + "quorum w1\n", "line 2.*taken"),
        (f"witness none {key('n')}\nquorum none\n", "taken"),
        (f"witness a {key('w')}\nwitness b {key('w')}\nquorum a\n", "twice"),
        (f"log {LOG}\nlog {LOG}\nquorum none\n", "twice"),
        (f"log {key('w')}\nquorum none\n", "line 1"),
        (f"witness a {LOG}\nquorum a\n", "not a witness's"),
        ("witness a\nquorum none\n", "expected"),
        (f"witness a {key('a')} https://x y\nquorum a\n", "expected"),
        (lines("a", "b") + "group g 3 a b\nquorum g\n", "asks for '3'"),
        (lines("a", "b") + "group g 0 a b\nquorum g\n", "asks for '0'"),
        (lines("a", "b") + "group g 01 a b\nquorum g\n", "asks for '01'"),
        (lines("a", "b") + "group g most a b\nquorum g\n", "asks for 'most'"),
        (lines("a") + "group g any\nquorum g\n", "expected"),
        (lines("a") + "group g any a a\nquorum g\n", "twice"),
        (lines("a") + "group g any a\ngroup h any a g\nquorum h\n", "twice"),
        (lines("a") + "group g any g\nquorum g\n", "neither"),
        (lines("a") + "group g any none\nquorum g\n", "neither"),
        (lines("a") + "group a any a\nquorum a\n", "taken"),
        ("quorum none\r\n", "control"),
        ("quorum\x0bnone\n", "control"),
        ("quorum none\n\x7f", "control"),
        ("quorums none\n", "expected"),
        (lines(*(f"w{number}" for number in range(65))) + "quorum w0\n", "line 65.*at most 64"),
        ("#\n" * 1001 + "quorum none\n", "lines"),
        ("#" * (257 << 10) + "\nquorum none\n", "bytes"),
    ],
)
def test_policies_that_are_none(text, why):
    with pytest.raises(Invalid, match=why):
        parse_policy(text.encode())


@settings(max_examples=40, deadline=None)
@given(st.data(), st.integers(1, 6), st.integers(1, 6))
def test_k_of_n_counts(data, n, k):
    names = [f"w{i}" for i in range(n)]
    policy = parse_policy((lines(*names) + f"group g {min(k, n)} {' '.join(names)}\nquorum g\n").encode())
    some = data.draw(st.sets(st.sampled_from(names)))
    assert policy.reached(some) is (len(some) >= min(k, n))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200))
def test_anything_is_a_policy_or_invalid(data):
    with contextlib.suppress(Invalid):
        parse_policy(data + b"\n")
