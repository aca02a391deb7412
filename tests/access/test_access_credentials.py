import re
import zlib

import msgspec
import pytest
from access_house import House
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.credentials import (
    KeyTerms,
    check_secret,
    issue_key,
    key_id_of,
    parse_key_record,
    revoke_key,
    rotate_key,
    set_quota,
)
from modelkeep.core.ports import Record
from modelkeep.errors import Conflict, Invalid, NotTrusted, Unauthenticated


def issue(house, **terms):
    return house.do(issue_key("anna", KeyTerms(**terms), entropy=house.entropy, clock=house.clock))


def test_shape_and_defaults(house):
    new = issue(house)
    assert re.fullmatch(r"mk_[0-9A-Za-z]{8}_[0-9A-Za-z]{43}[0-9A-Za-z]{6}", new.text)
    assert new.key.quota == 1000 and new.key.expires - new.key.created == 90 * 86_400
    assert key_id_of(new.text) == new.key.id
    check_secret(new.text, new.key)


def test_known_answer_of_the_checksum():
    body = "mk_abcdefgh_" + "0" * 43
    assert zlib.crc32(body.encode()) == 2290361478
    assert key_id_of(body + "2V07eA") == "abcdefgh"  # 2290361478 in base 62, digits 0-9 A-Z a-z


def test_the_text_is_kept_nowhere(house):
    new = issue(house)
    assert new.text not in repr(new)
    secret = new.text.split("_")[2]
    for record in house.records.scan("key"):
        assert secret[:20].encode() not in record.body


@given(st.integers(0, 60), st.characters(codec="ascii"))
def test_any_one_wrong_character_is_seen_without_a_look_up(position, character):
    text = issue(House()).text
    changed = text[:position] + character + text[position + 1 :]
    if changed != text:
        with pytest.raises(Unauthenticated):
            key_id_of(changed)


@given(st.text(max_size=80))
def test_junk_is_refused(text):
    with pytest.raises(Unauthenticated):
        key_id_of(text)


def test_another_secret_under_the_same_id_is_refused(house):
    new = issue(house)
    other = msgspec.structs.replace(new.key, digest="0" * 64)
    with pytest.raises(Unauthenticated):
        check_secret(new.text, other)


@pytest.mark.parametrize("terms", [{"lifetime": 0}, {"quota": 0}, {"quota": -5}, {"models": ("../x",)}])
def test_bad_terms_are_refused(house, terms):
    with pytest.raises(Invalid):
        issue(house, **terms)


def test_rotation_overlaps_and_shares_scope_and_quota(house):
    old = issue(house, models=("b", "a"), quota=50, lifetime=1000)
    house.clock.advance(100)
    record = house.records.get("key", old.key.id)
    new = house.do(rotate_key(record, overlap=60, entropy=house.entropy, clock=house.clock))
    ending = parse_key_record(house.records.get("key", old.key.id))
    assert ending.expires == old.key.created + 160 and ending.replaced_by == new.key.id
    assert new.key.expires == old.key.created + 1100
    assert (new.key.quota_id, new.key.quota, new.key.models) == (old.key.quota_id, 50, ("a", "b"))
    with pytest.raises(Invalid, match="replaced"):
        rotate_key(house.records.get("key", old.key.id), overlap=60, entropy=house.entropy, clock=house.clock)


def test_an_overlap_does_not_prolong_the_old_key(house):
    old = issue(house, lifetime=100)
    record = house.records.get("key", old.key.id)
    house.do(rotate_key(record, overlap=10_000, entropy=house.entropy, clock=house.clock))
    assert parse_key_record(house.records.get("key", old.key.id)).expires == old.key.expires


def test_two_rotations_at_once_leave_one_new_key(house):
    record = house.records.get("key", issue(house).key.id)
    _, first = rotate_key(record, overlap=0, entropy=house.entropy, clock=house.clock)
    _, second = rotate_key(record, overlap=0, entropy=house.entropy, clock=house.clock)
    house.records.commit(first)
    with pytest.raises(Conflict):
        house.records.commit(second)
    assert len(house.records.scan("key")) == 2


def test_revocation_is_for_good(house):
    new = issue(house)
    assert house.do(revoke_key(house.records.get("key", new.key.id))).revoked
    assert house.do(revoke_key(house.records.get("key", new.key.id))).revoked
    with pytest.raises(Invalid, match="revoked"):
        rotate_key(house.records.get("key", new.key.id), overlap=0, entropy=house.entropy, clock=house.clock)


def test_a_quota_can_be_changed(house):
    record = house.records.get("key", issue(house).key.id)
    assert house.do(set_quota(record, None)).quota is None
    with pytest.raises(Invalid):
        set_quota(record, 0)


@pytest.mark.parametrize("body", [b"", b"{}", b"null"])
def test_a_damaged_record_is_not_trusted(body):
    with pytest.raises(NotTrusted):
        parse_key_record(Record("key", "abcdefgh", body, 1))


def test_a_record_under_another_id_is_not_trusted(house):
    body = house.records.get("key", issue(house).key.id).body
    with pytest.raises(NotTrusted):
        parse_key_record(Record("key", "abcdefgh", body, 1))
