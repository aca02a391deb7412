import pytest
from access_house import ORIGIN, House
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.access import view as room
from modelkeep.access.accounts import reset_password, set_disabled, set_roles
from modelkeep.access.credentials import KeyTerms, issue_key, revoke_key, rotate_key
from modelkeep.access.directory import LEASE, Directory
from modelkeep.access.limits import Limiter
from modelkeep.access.presented import Presented
from modelkeep.access.sessions import SessionIssuer, SessionTerms, revoke_session
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.errors import NotTrusted, OverBudget, Unauthenticated, Unavailable


def key_for(house, account="anna", **terms):
    return house.do(issue_key(account, KeyTerms(**terms), entropy=house.entropy, clock=house.clock))


def refused(directory, token, address=""):
    with pytest.raises(Unauthenticated) as caught:
        directory.authenticate(Presented(token, address))
    return str(caught.value)


def test_an_api_key_speaks_for_its_account(house):
    new = key_for(house, models=("credit-risk",), quota=7, lifetime=100)
    directory = house.directory()
    for _ in range(2):  # examined, then remembered
        grant = directory.authenticate(Presented(new.text))
        assert grant.principal.account == "anna" and grant.principal.subject == house.anna.subject
        assert grant.principal.roles == (Role.ANALYST,) and grant.principal.models == ("credit-risk",)
        assert grant.principal.credential == grant.quota_id == f"key:{new.key.id}"
        assert (grant.kind, grant.quota, grant.expires) == ("key", 7, new.key.expires)


def test_a_session_speaks_for_its_account(house):
    token, session = house.issuer.issue(house.anna, SessionTerms(max_requests=5, models=("a",)))
    directory = house.directory()
    for _ in range(2):
        grant = directory.authenticate(Presented(token))
        assert grant.principal.account == "anna" and grant.principal.models == ("a",)
        assert (grant.kind, grant.quota, grant.quota_id) == ("session", 5, f"session:{session.jti}")


def test_nobody_is_let_in_before_the_first_refresh(house):
    new = key_for(house)
    with pytest.raises(Unavailable):
        Directory(house.records, house.clock, [house.public], ORIGIN).authenticate(Presented(new.text))


def test_when_the_records_cannot_be_read_the_lease_runs_out(house):
    new = key_for(house)
    directory = house.directory()
    house.records.down = True
    house.clock.advance(LEASE)
    assert directory.authenticate(Presented(new.text))
    with pytest.raises(Unavailable):
        directory.refresh()
    house.clock.advance(0.01)
    for token in (new.text, "junk"):  # remembered or not
        with pytest.raises(Unavailable):
            directory.authenticate(Presented(token))
    house.records.down = False
    directory.refresh()
    assert directory.authenticate(Presented(new.text))


def test_the_lease_counts_from_before_the_records_were_read(house):
    new = key_for(house)
    directory = house.directory()
    read = house.records.revision

    def slow_read():
        house.clock.advance(5)
        return read()

    house.records.revision = slow_read
    directory.refresh()
    with pytest.raises(Unavailable):
        directory.authenticate(Presented(new.text))


def test_the_lease_is_of_monotonic_time(house):
    new = key_for(house)
    directory = house.directory()
    house.clock.wall -= 3600
    house.clock.up += LEASE + 0.01
    with pytest.raises(Unavailable):
        directory.authenticate(Presented(new.text))


@pytest.mark.parametrize("warm", [True, False], ids=["remembered", "new"])
@pytest.mark.parametrize("end", ["revoke", "expire", "rotate out", "disable", "delete"])
def test_the_end_of_an_api_key(house, warm, end):
    new = key_for(house, lifetime=100)
    directory = house.directory()
    if warm:
        directory.authenticate(Presented(new.text))
    record = house.records.get("key", new.key.id)
    if end == "revoke":
        house.do(revoke_key(record))
    elif end == "expire":
        house.clock.advance(100)
    elif end == "rotate out":
        house.do(rotate_key(record, overlap=5, entropy=house.entropy, clock=house.clock))
        directory.refresh()
        assert directory.authenticate(Presented(new.text))
        house.clock.advance(5)
    elif end == "disable":
        house.do(set_disabled(house.accounts(), "anna", True))
    else:
        house.records.commit([Change("key", new.key.id, None, record.revision)])
    directory.refresh()
    refused(directory, new.text)


@pytest.mark.parametrize("warm", [True, False], ids=["remembered", "new"])
@pytest.mark.parametrize("end", ["revoke", "expire", "disable", "new role", "new password", "other keep's key", "delete"])
def test_the_end_of_a_session(house, warm, end):
    token, session = house.issuer.issue(house.anna)
    directory = house.directory()
    if warm:
        directory.authenticate(Presented(token))
    if end == "revoke":
        house.records.commit(revoke_session(session))
    elif end == "expire":
        house.clock.advance(3600)
    elif end == "disable":
        house.do(set_disabled(house.accounts(), "anna", True))
    elif end == "new role":
        house.do(set_roles(house.accounts(), "anna", [Role.ADMIN]))
    elif end == "new password":
        house.do(reset_password(house.accounts(), "anna", passwords=house.passwords, entropy=house.entropy))
    elif end == "delete":
        house.records.commit([Change("account", "anna", None)])
    else:
        stranger = Ed25519PrivateKey.from_private_bytes(b"s" * 32)
        token, _ = SessionIssuer(stranger, ORIGIN, entropy=house.entropy, clock=house.clock).issue(house.anna)
    directory.refresh()
    refused(directory, token)
    refused(directory, token)


def test_a_session_of_before_the_account_was_enabled_again_stays_dead(house):
    token, _ = house.issuer.issue(house.anna)
    house.do(set_disabled(house.accounts(), "anna", True))
    house.do(set_disabled(house.accounts(), "anna", False))
    refused(house.directory(), token)


def test_a_role_given_reaches_an_api_key(house):
    new = key_for(house)
    directory = house.directory()
    assert directory.authenticate(Presented(new.text)).principal.roles == (Role.ANALYST,)
    house.do(set_roles(house.accounts(), "anna", [Role.ML_ENGINEER]))
    directory.refresh()
    assert directory.authenticate(Presented(new.text)).principal.roles == (Role.ML_ENGINEER,)


def test_a_key_refused_as_unknown_is_accepted_once_it_is_there(house):
    directory = house.directory()
    (new, changes) = issue_key("anna", KeyTerms(), entropy=house.entropy, clock=house.clock)
    refused(directory, new.text)
    house.records.commit(changes)
    directory.refresh()
    assert directory.authenticate(Presented(new.text))


def test_the_clock_going_back_prolongs_nothing(house):
    new = key_for(house, lifetime=100)
    token, _ = house.issuer.issue(house.anna, SessionTerms(lifetime=100))
    remembered, fresh = house.directory(), house.directory()
    assert remembered.authenticate(Presented(new.text)) and remembered.authenticate(Presented(token))
    house.clock.wall -= 86_400  # set back by a day
    house.clock.up += 99
    for directory in (remembered, fresh):
        directory.refresh()
        assert directory.authenticate(Presented(new.text)) and directory.authenticate(Presented(token))
    house.clock.up += 1.001
    for directory in (remembered, fresh):
        directory.refresh()
        refused(directory, new.text)
        refused(directory, token)
    assert remembered.clock_ahead() > 86_000


def test_the_clock_going_forward_ends_what_was_remembered(house):
    new = key_for(house, lifetime=100)
    directory = house.directory()
    directory.authenticate(Presented(new.text))
    house.clock.wall += 101
    directory.refresh()
    refused(directory, new.text)


def test_a_session_from_the_future_is_refused_and_accepted_later(house):
    directory = house.directory()
    ahead = House()
    ahead.clock.wall += 31
    token, _ = ahead.issuer.issue(house.anna)
    assert "clocks" in refused(directory, token)
    house.clock.advance(1)
    directory.refresh()
    assert directory.authenticate(Presented(token))


def test_records_that_went_back_are_not_trusted(house):
    directory = house.directory()
    directory._records = MemoryRecords()  # as after restoring an old backup under a running gateway
    with pytest.raises(NotTrusted, match="went back"):
        directory.refresh()
    house.clock.advance(LEASE + 1)
    with pytest.raises(Unavailable):
        directory.authenticate(Presented("junk"))


def test_a_damaged_record_stops_the_refresh(house):
    directory = house.directory()
    house.records.commit([Change("account", "anna", b"{")])
    with pytest.raises(NotTrusted, match="anna"):
        directory.refresh()


def test_other_records_do_not_empty_the_cache(house):
    new = key_for(house)
    directory = house.directory()
    grant = directory.authenticate(Presented(new.text))
    house.records.commit([Change("quota", "key:x", b'{"granted":1}')])
    directory.refresh()
    assert directory.authenticate(Presented(new.text)) is grant


def test_a_failure_costs_the_address_before_any_signature_is_looked_at(house, monkeypatch):
    token, _ = house.issuer.issue(house.anna)
    new = key_for(house)
    limiter = Limiter(house.clock.monotonic, rate=1, burst=3, what="bad credentials from this address")
    directory = house.directory(failures=limiter)
    assert directory.authenticate(Presented(new.text, "192.0.2.1"))
    for bad in ("junk", token[:-6] + "AAAAAA", "mk_" + "a" * 58):
        refused(directory, bad, "192.0.2.1")
    looked = []
    monkeypatch.setattr(directory._verifier, "verify", looked.append)
    with pytest.raises(OverBudget) as caught:
        directory.authenticate(Presented(token, "192.0.2.1"))
    assert not looked and 0 < caught.value.retry_after <= 1
    assert directory.authenticate(Presented(new.text, "192.0.2.1"))  # whoever is known already is not locked out by neighbours
    refused(directory, "junk", "192.0.2.2")  # another address
    refused(directory, "junk")  # no address: the caller limits by other means


@pytest.mark.parametrize(
    "junk", ["", " ", "Bearer", "mk_", "x" * 5000, "é", "\ud800", "a.b.c", "mk_abcdefgh_" + "A" * 49, "\x00"]
)
def test_junk(house, junk):
    refused(house.directory(), junk)


def test_the_tables_are_bounded(house, monkeypatch):
    monkeypatch.setattr(room, "CACHE_SIZE", 4)
    directory = house.directory()
    for _ in range(10):
        token, _ = house.issuer.issue(house.anna)
        directory.authenticate(Presented(token))
        refused(directory, token[:-6] + "AAAAAA")
    assert len(directory._view.accepted) == len(directory._view.refused) == 4


def test_no_token_is_held(house):
    new = key_for(house)
    directory = house.directory()
    directory.authenticate(Presented(new.text))
    assert new.text not in repr(directory._view.accepted) + repr(directory._view.keys)
