"""Accounts of one issuer and one hour share a covariate; no question waits for the records."""

from modelkeep.access.accounts import ACCOUNT, Account
from modelkeep.access.externals import EXTERNAL, External
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.app.signups import Signups
from modelkeep.core.ports import Change
from modelkeep.core.values import to_json
from modelkeep.workflows.covariates import is_case, network_covariate

HOUR = 3600


def own(name, created):
    made = Account(name=name, subject=f"sub_{name}", roles=("analyst",), password="", one_time=False, created=created)
    return Change(ACCOUNT, name, to_json(made), 0)


def external(name, created):
    made = External(name=name, subject=f"sub_{name}", digest=f"digest {name}", created=created)
    return Change(EXTERNAL, made.digest, to_json(made), 0)


def test_accounts_of_one_issuer_and_hour_share_a_covariate():
    records = MemoryRecords()
    records.commit([own("ann", HOUR + 1), own("ben", 2 * HOUR - 1), own("cem", 2 * HOUR)])
    records.commit([external("dee@corp", HOUR + 5), external("eva@corp", HOUR + 9), external("fay@other", HOUR + 9)])
    signups = Signups(records)
    assert signups.of("sub_ann") == ()
    signups.look()
    found = {name: signups.of(f"sub_{name}") for name in ("ann", "ben", "cem", "dee@corp", "eva@corp", "fay@other")}
    assert found["ann"] == found["ben"]
    assert found["dee@corp"] == found["eva@corp"]
    assert len(set(found.values())) == 4
    assert all(is_case(one) for (one,) in found.values())
    records.commit([own("gil", HOUR)])
    records.commit([Change(ACCOUNT, "ann", None, records.get(ACCOUNT, "ann").revision)])
    assert signups.of("sub_gil") == (), "nothing is read for a question"
    signups.look()
    assert signups.of("sub_gil") == found["ann"]
    assert signups.of("sub_ann") == found["ann"], "what it asked is still its cluster's"
    assert signups.of("sub_nobody") == ()


def test_names_of_covariates_are_no_names_of_accounts():
    assert network_covariate(b"\x00\xab" * 4) == ("net-00ab00ab00ab00ab",)
    assert network_covariate(b"") == network_covariate(b"short") == ()
    assert is_case("net-00ab00ab00ab00ab")
    for other in ("sub_0123456789abcdef", "alice", "net-00ab", "net-00ab00ab00ab00ab\n", "operator@local"):
        assert not is_case(other)
