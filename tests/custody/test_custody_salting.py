"""Salted digests: a known answer, and salts that are made once, survive a rotation, and stay erased."""

import hashlib
import os

import pytest

from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.epochs import epoch_key, split_epoch
from modelkeep.core.ports import Change
from modelkeep.core.values import digest_of
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.custody.salting import DATA_SALT, DataSalts, rewrapped_salt, salt_key_id, salted
from modelkeep.errors import Invalid, Missing, NotTrusted


class Wrapper:
    def __init__(self, key_id):
        self.key_id, self._key = key_id, os.urandom(32)

    def wrap(self, key, context):
        return wrap_key(self._key, key, context)

    def unwrap(self, wrapped, context):
        return unwrap_key(self._key, wrapped, context)


class Ring:
    """Two versions of one wrapping key; the last is the primary."""

    def __init__(self):
        self.versions = [Wrapper("file:audit-subject/1")]

    def wrapper(self):
        return self.versions[-1]

    def opens(self, key_id):
        return next((each for each in self.versions if each.key_id == key_id), None)


class Entropy:
    def token(self, size):
        return os.urandom(size)


@pytest.fixture
def records():
    return MemoryRecords()


def test_the_digest_is_the_sha_256_of_salt_and_digest():
    salt, data = bytes(range(32)), b"abc"
    expected = hashlib.sha256(salt + hashlib.sha256(data).digest()).hexdigest()
    assert salted(salt, digest_of(data)) == f"sha256:{expected}"
    with pytest.raises(Invalid):
        salted(salt[:-1], digest_of(data))


def test_a_salt_is_made_once_and_is_of_one_name(records):
    ring = Ring()
    one, other = (DataSalts(records, ring, Entropy()) for _ in range(2))
    with pytest.raises(Missing):
        one.existing("loans@3")
    made = one.salt("loans@3")
    assert len(made) == 32
    assert made == one.salt("loans@3") == other.existing("loans@3")
    assert made != one.salt("loans@4")
    assert made not in records.get(DATA_SALT, "loans@3").body  # wrapped
    records.commit([Change(DATA_SALT, "loans@5", records.get(DATA_SALT, "loans@3").body)])
    with pytest.raises(NotTrusted):
        one.salt("loans@5")


@pytest.mark.parametrize("name", ["", " a", "a ", "a\x1f3", "a\n", "x" * 201])
def test_names_that_could_be_another_record_are_refused(records, name):
    with pytest.raises(Invalid):
        DataSalts(records, Ring(), Entropy()).salt(name)


def test_an_erased_salt_does_not_come_back_with_its_record(records):
    epochs = {}
    salts = DataSalts(records, Ring(), Entropy(), lambda name: epochs.get(name, 0))
    made, near = salts.salt("loans"), salts.salt("loans/2024")
    kept = records.get(DATA_SALT, "loans").body
    epochs["loans"] = 17
    salts.erase("loans")
    with pytest.raises(Missing):
        salts.existing("loans")
    assert salts.existing("loans/2024") == near
    records.commit([Change(DATA_SALT, "loans", kept), Change(DATA_SALT, epoch_key("loans", 17), kept)])
    with pytest.raises(NotTrusted):  # moved to where it would be looked for
        salts.existing("loans")
    salts.erase("loans")
    assert salts.salt("loans") not in (made, near)


def test_a_salt_is_wrapped_anew_with_the_same_value(records):
    ring = Ring()
    salts = DataSalts(records, ring, Entropy())
    made = salts.salt("loans")
    ring.versions.append(Wrapper("file:audit-subject/2"))
    record = records.get(DATA_SALT, "loans")
    records.commit([Change(DATA_SALT, "loans", rewrapped_salt(record, ring, ring.wrapper()), record.revision)])
    assert salt_key_id(records.get(DATA_SALT, "loans")) == "file:audit-subject/2"
    assert salts.existing("loans") == made
    for damage in (b"", b"\0", b"\xff\xff\xff", b"\0\1\xff" + bytes(112)):
        records.commit([Change(DATA_SALT, "loans", damage)])
        with pytest.raises(NotTrusted):
            salts.existing("loans")


def test_names_of_epochs_go_both_ways():
    for name, epoch in (("sub_1", 0), ("sub_1", 3), ("a/2", 0), ("a/2", 9)):
        assert split_epoch(epoch_key(name, epoch)) == (name, epoch)
    for forged in ("a\x1f0", "a\x1f03", "a\x1f", "a\x1fx", "a\x1f" + "1" * 5000):
        with pytest.raises(NotTrusted):
            split_epoch(forged)
