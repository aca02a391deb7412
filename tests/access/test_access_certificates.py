"""Client certificates: which names they carry, and whom they speak for."""

from datetime import UTC, datetime, timedelta
from hashlib import sha256

import pytest
from certificates import Authority
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.access.accounts import set_disabled
from modelkeep.access.certificates import (
    CERTIFICATE,
    add_certificate,
    certificate_digest,
    certificate_name,
    client_certificate,
    parse_certificate,
    remove_certificate,
)
from modelkeep.access.credentials import KEY, KeyTerms, issue_key, rotate_key
from modelkeep.access.limits import Limiter
from modelkeep.access.presented import Certificate, Presented
from modelkeep.core.ports import Record
from modelkeep.core.values import Role
from modelkeep.errors import Conflict, Invalid, NotTrusted, OverBudget, Unauthenticated

URI = "uri:spiffe://acme.eu/scoring"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def shown(house, *names, digest=b"\7" * 32, lives=900):
    return Certificate(digest, names, int(house.clock.wall) + lives)


def ask(directory, certificate, address="192.0.2.1"):
    return directory.authenticate(Presented("", address, certificate))


def add(house, name, account="anna", **terms):
    return house.do(add_certificate(account, name, KeyTerms(**terms), entropy=house.entropy, clock=house.clock))


def test_what_counts_of_a_certificate(authority):
    ends = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    issued = authority.issue(uri="spiffe://acme.eu/scoring", dns="Client.Acme.eu", ends=ends)
    found = client_certificate(issued.der)
    assert found == Certificate(sha256(issued.der).digest(), (URI, "dns:client.acme.eu"), int(ends.timestamp()))
    assert client_certificate(authority.issue().der).names == ()


@given(st.binary(max_size=300))
def test_what_is_no_certificate(data):
    with pytest.raises(Invalid):
        client_certificate(data)


def test_a_certificate_is_named_by_its_digest_or_a_name_of_its_own(authority):
    issued = authority.issue()
    name = certificate_name(issued.certificate.public_bytes(Encoding.PEM).decode())
    assert name == f"sha256:{sha256(issued.der).hexdigest()}" == certificate_name(name)
    assert certificate_name(URI) == URI and certificate_name("dns:a.b") == "dns:a.b"
    for wrong in ("", "sha256:AB", "uri:", "uri:a b", "dns:A", "email:x", "x" * 400, "-----BEGIN CERTIFICATE-----\n"):
        with pytest.raises(Invalid):
            certificate_name(wrong)


@pytest.mark.parametrize("name", ["sha256:" + "07" * 32, URI, "dns:client.acme.eu"])
def test_a_certificate_speaks_for_an_account(house, name):
    made = add(house, name, quota=7, models=("risk",))
    directory = house.directory()
    grant = ask(directory, shown(house, URI, "dns:client.acme.eu"))
    assert grant.principal.account == "anna" and grant.principal.models == ("risk",) and grant.kind == "certificate"
    assert (grant.quota, grant.quota_id) == (7, made.quota_id)
    assert ask(directory, shown(house, URI, "dns:client.acme.eu")) is grant
    with pytest.raises(Unauthenticated):
        ask(directory, shown(house, "uri:spiffe://acme.eu/other", digest=b"\1" * 32))


def test_without_a_certificate_nobody_speaks(house):
    add(house, URI)
    with pytest.raises(Unauthenticated):
        house.directory().authenticate(Presented("", "192.0.2.1"))


def test_the_certificate_itself_comes_before_its_names_and_two_names_of_two_accounts_are_nobodys(house):
    house.add("bela", Role.ANALYST)
    add(house, URI)
    add(house, "dns:a.b", account="bela")
    directory = house.directory()
    with pytest.raises(Unauthenticated, match="more than one account"):
        ask(directory, shown(house, URI, "dns:a.b"))
    assert ask(directory, shown(house, "dns:a.b")).principal.account == "bela"
    add(house, "sha256:" + "07" * 32)
    directory.refresh()
    assert ask(directory, shown(house, "dns:a.b")).principal.account == "anna"


def test_a_name_speaks_for_one_account(house):
    add(house, URI)
    with pytest.raises(Conflict):
        add(house, URI)


def test_it_ends_with_its_entry_with_the_certificate_and_with_the_account(house):
    add(house, URI, lifetime=600)
    directory = house.directory()
    old = shown(house, URI, lives=300)
    assert ask(directory, old)
    house.clock.advance(300)
    directory.refresh()
    with pytest.raises(Unauthenticated, match="expired"):
        ask(directory, old)
    assert ask(directory, shown(house, URI, digest=b"\2" * 32))
    house.clock.advance(300)
    directory.refresh()
    with pytest.raises(Unauthenticated, match="expired"):
        ask(directory, shown(house, URI, digest=b"\3" * 32))
    add(house, "dns:a.b")
    directory.refresh()
    assert ask(directory, shown(house, "dns:a.b"))
    house.do(set_disabled(house.accounts(), "anna", True))
    directory.refresh()
    with pytest.raises(Unauthenticated, match="disabled"):
        ask(directory, shown(house, "dns:a.b"))


def test_removing_it_ends_it(house):
    add(house, URI)
    directory = house.directory()
    mine = shown(house, URI)
    assert ask(directory, mine)
    house.do(remove_certificate(house.records.get(CERTIFICATE, URI)))
    directory.refresh()
    with pytest.raises(Unauthenticated, match="speaks for nobody"):
        ask(directory, mine)


def test_a_process_that_missed_a_removal_drops_the_certificate_all_the_same(house):
    """An erasure leaves no name of a certificate, so what a process reads that slept meanwhile does not name it, either."""
    add(house, URI)
    asleep, mine = house.directory(), shown(house, URI)
    house.do(remove_certificate(house.records.get(CERTIFICATE, URI)))
    house.records.expunge([CERTIFICATE])
    assert not any(URI in record.key for record in house.records.since(0))
    asleep.refresh()
    with pytest.raises(Unauthenticated, match="speaks for nobody"):
        ask(asleep, mine)
    again = add(house, URI)
    asleep.refresh()
    assert ask(asleep, mine).quota_id == again.quota_id


def test_what_is_logged_of_a_certificate_says_nothing_of_its_name(house):
    assert sha256(URI.encode()).hexdigest()[:16] not in add(house, URI).quota_id


def test_strange_certificates_cost_their_address(house):
    add(house, URI)
    failures = Limiter(house.clock.monotonic, rate=1.0, burst=3, what="bad credentials from this address")
    directory = house.directory(failures=failures)
    mine = shown(house, URI)
    assert ask(directory, mine)
    for n in range(3):
        with pytest.raises(Unauthenticated):
            ask(directory, shown(house, digest=bytes([n]) * 32))
    with pytest.raises(OverBudget):
        ask(directory, shown(house, digest=rb"\9" * 32))
    assert ask(directory, mine)


def test_an_api_key_bound_to_a_certificate_is_nothing_without_it(house):
    mine, other = shown(house), shown(house, digest=b"\1" * 32)
    terms = KeyTerms(certificate=mine.digest.hex())
    key = house.do(issue_key("anna", terms, entropy=house.entropy, clock=house.clock))
    directory = house.directory()
    for _ in range(2):
        assert directory.authenticate(Presented(key.text, "192.0.2.1", mine)).principal.account == "anna"
        for wrong in (other, None):
            with pytest.raises(Unauthenticated):
                directory.authenticate(Presented(key.text, "192.0.2.1", wrong))
    new = house.do(rotate_key(house.records.get(KEY, key.key.id), overlap=0, entropy=house.entropy, clock=house.clock))
    assert new.key.certificate == key.key.certificate


def test_a_key_is_bound_to_one_certificate_and_not_to_a_name():
    assert certificate_digest("sha256:" + "07" * 32) == "07" * 32
    with pytest.raises(Invalid, match="one certificate"):
        certificate_digest(URI)


@pytest.mark.parametrize("terms", [{"quota": 0}, {"lifetime": 0}, {"models": ("No Name",)}, {"lifetime": 10**10}])
def test_terms_that_make_no_sense(house, terms):
    with pytest.raises(Invalid):
        add_certificate("anna", URI, KeyTerms(**terms), entropy=house.entropy, clock=house.clock)


def test_a_damaged_record_is_noticed(house):
    add(house, URI)
    body = house.records.get(CERTIFICATE, URI).body
    for record in (Record(CERTIFICATE, URI, b"{", 1), Record(CERTIFICATE, "dns:x", body, 1)):
        with pytest.raises(NotTrusted):
            parse_certificate(record)
