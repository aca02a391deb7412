"""Which policy is in force: the last statement that counts."""

import pytest
from test_custody_admission import KEEP, PLAIN, SCANNER, Log

from modelkeep.core.values import Resource, digest_of
from modelkeep.custody.policies import MAX_TEXT
from modelkeep.ledger import predicates as p
from modelkeep.ledger import statements as s

HERE = s.keep_resource("keep")


def policy(name="strict", replaces=-1, kind="admission", text="", nonce="00"):
    return p.Policy(actor="ada", at=1, kind=kind, name=name, text=text, replaces=replaces, id=nonce * 16)


def put(log, said, about=HERE, signer=KEEP):
    return log.add(s.make_statement(said, about), signer=signer)


def test_the_last_policy_of_a_kind_is_in_force():
    log = put(Log(), policy())
    put(log, policy("custom", 0, text="permit", nonce="11"))
    put(log, policy("extended", kind="access", text="permit", nonce="22"))
    book = log.book.policies
    assert [book.in_force(kind).said.name for kind in ("admission", "access")] == ["custom", "extended"]
    assert [each.index for each in book.history("admission")] == [0, 1] and book.index("access") == 2
    assert log.why == []


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (policy(replaces=3, nonce="33"), "another came first"),
        (policy(replaces=-1, nonce="33"), "another came first"),
        (policy("custom", 0, nonce="33"), "a text exactly when"),
        (policy("strict", 0, text="permit", nonce="33"), "a text exactly when"),
        (policy("strict", 0, kind="egress", nonce="33"), "is about admission or access"),
        (policy("strict", 0, nonce="zz"), "an id of 32 hex digits"),
        (policy("custom", 0, text="x" * (MAX_TEXT + 1), nonce="33"), "is about"),
    ],
)
def test_what_does_not_fit_changes_nothing(said, why):
    log = put(put(Log(), policy()), said)
    assert log.book.policies.index("admission") == 0
    assert why in log.why[0]


def test_it_is_about_this_keep_and_by_those_who_may_say_it():
    log = Log()
    put(log, policy(), about=s.keep_resource("another"))
    put(log, policy(), about=Resource("keep", digest_of(b"x")))
    put(log, policy(), about=PLAIN)
    put(log, policy(), signer=SCANNER)
    assert log.book.policies.in_force("admission") is None and len(log.why) == 4


def test_a_copy_never_counts():
    first = s.sign_statement(s.make_statement(policy(), HERE), KEEP)
    log = Log().add_raw(first)
    put(log, policy("open", 0, nonce="11"))
    log.add_raw(first)
    assert log.book.policies.in_force("admission").said.name == "open"
