"""Records that somebody or something damaged: every reader says so, and none breaks on them."""

import pytest

from modelkeep.access.accounts import parse_account
from modelkeep.access.certificates import parse_certificate
from modelkeep.access.challenges import parse_challenge
from modelkeep.access.credentials import parse_key_record
from modelkeep.access.externals import forget_turned_away, parse_external, parse_newcomer, reason_of
from modelkeep.access.factors import parse_factors
from modelkeep.access.quotas import parse_granted
from modelkeep.access.refresh import parse_family
from modelkeep.access.sessions import parse_issued, parse_revocation
from modelkeep.core.ports import Record
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.operations.cases import parse_case
from modelkeep.operations.incidents import parse_incident
from modelkeep.workflows.cautions import parse_caution
from modelkeep.workflows.spendings import parse_spending

PARSERS = (
    parse_account,
    parse_case,
    parse_caution,
    parse_certificate,
    parse_challenge,
    parse_external,
    parse_factors,
    parse_family,
    parse_granted,
    parse_incident,
    parse_issued,
    parse_key_record,
    parse_revocation,
    parse_spending,
)
NAMES = (b"reason", b"account", b"name", b"kind", b"id", b"at", b"granted", b"measure")
DAMAGED = {
    "gone": None,
    "empty": b"",
    "cut": b'{"account":"anna","exp',
    "of another kind": b"[]",
    "no UTF-8": b'{%s,"recovery":["\xff"]}' % b",".join(b'"%s":"\xff"' % name for name in NAMES),
    "nested without end": b'{"x":' + b"[" * 100_000,
}


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize("parse", PARSERS, ids=lambda parse: parse.__name__)
def test_every_reader_of_a_damaged_record_says_so(parse, body):
    with pytest.raises(NotTrusted, match="is damaged"):
        parse(Record("kind", "key", body, 1))


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_whatever_a_gateway_announces_ends_nobody(body):
    with pytest.raises(Invalid, match="announces no newcomer"):
        parse_newcomer(Record("kind", "key", body, 1))


@pytest.mark.parametrize("body", DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_refusal_tells_nobody_anything_and_goes(body):
    record = Record("kind", "key", body, 1)
    assert not reason_of(record)
    assert [change.key for change in forget_turned_away([record], 1)] == ["key"]
