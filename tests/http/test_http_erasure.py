"""Erasing a person while a gateway serves: the key is out of memory and off the disk, and every proof still verifies."""

import contextlib

import httpx
import pytest
from commandline import PASSPHRASE, copy_keep
from gateway_support import live, make_keep, question, recorded, soon

from modelkeep.access.accounts import parse_account
from modelkeep.access.directory import Directory
from modelkeep.access.presented import Presented
from modelkeep.access.sessions import SessionIssuer
from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role, to_json
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT, TOKEN_SIGNING
from modelkeep.errors import Conflict, Denied, Invalid, Missing, Unauthenticated
from modelkeep.extraction.ladder import SHIPPED, Rung
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SUBJECT_KEY, SubjectKeys
from modelkeep.workflows.cautions import CAUTION, Caution, load_indicators
from modelkeep.workflows.moves import RUNG

INFER = "/v2/models/iris/infer"


@pytest.fixture
def served(tmp_path, trained):
    return make_keep(tmp_path / "keep", trained)


@pytest.fixture
def keep(tmp_path, template):
    return Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())


def ask(running, key, rows, times=3):
    with running.client(key) as client:
        for row in rows[:times]:
            assert client.post(INFER, content=question(row)).status_code == 200


def bodies_of(keep, subject):
    """How many of the recorded questions of ``subject`` can be read, and how many cannot, by whoever has every key."""
    here, readable, erased = keep.premises, 0, 0
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, here.decisions().epochs())
    for instance in here.audit_instances():
        origin = here.audit_origin(instance)
        for _, entry, sealed in read_bodies(here.audit_files(instance), encode_vkey(origin, here.trust.audit_key), origin):
            if entry.kind == "predict" and entry.subject == subject:
                try:
                    keys.open(sealed, subject, entry.release)
                    readable += 1
                except Missing:
                    erased += 1
    return readable, erased


def everything_in(folder):
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the temporary name of a checkpoint, say
            found += [path.read_bytes()] if path.is_file() else []
    return b"".join(found)


def test_a_person_is_erased_under_a_running_gateway(served, trained):
    keep = served
    here = keep.premises
    eve = keep.user_add(name="mallory-doe", roles=(Role.ANALYST,)) and keep.key_issue(account="mallory-doe").token
    alice = keep.key_issue(account="alice").token
    subjects = {account.name: account.subject for account in keep.user_list()}
    subject = subjects["mallory-doe"]
    with live(keep) as running:
        ask(running, eve, trained.fresh)
        ask(running, alice, trained.fresh)
        watch = next(iter(running.service.loader.watches()))
        watch.work()
        wrapped = here.records.get(SUBJECT_KEY, subject).body[-112:]
        assert wrapped in everything_in(here.directory)
        done = keep.log_erase(subject="mallory-doe", reason="asked for it on paper")
        assert (done.name, done.what, done.copies) == (subject, "subject", ())
        assert wrapped not in everything_in(here.directory)  # neither in the file, nor in its free pages, nor in its log
        assert subject not in watch.subjects() and subjects["alice"] in watch.subjects()
        ask(running, eve, trained.fresh[5:])  # the account goes on, under another key
        assert watch.verdict(subject).queries <= 3
        with running.client(eve) as client:
            assert client.post("/v2/models/mallory-doe/infer", content=b"{}").status_code == 404
    assert bodies_of(keep, subject) == (3, 3)
    assert bodies_of(keep, subjects["alice"]) == (3, 0)
    assert len(keep.log_verify()) >= 2
    assert here.records.get(SUBJECT_KEY, subject + f"\x1f{done.log_index + 1}")
    with live(keep) as running:  # evidence is rebuilt from what can be read
        assert next(iter(running.service.loader.watches())).verdict(subject).queries == 3
        forgot = keep.log_erase(subject="mallory-doe", forget=True)
        assert forgot.forgotten
        with running.client(eve) as client, pytest.raises((AssertionError, httpx.HTTPError)):
            assert client.post(INFER, content=question(trained.fresh[0])).status_code == 200
    assert bodies_of(keep, subject) == (0, 6)
    assert b"mallory-doe" not in everything_in(here.directory)
    keep.log_verify()
    with pytest.raises(Missing):
        keep.log_erase(subject="mallory-doe")
    assert keep.log_erase(subject=subject).log_index == forgot.log_index  # by the pseudonym, and nothing is left to do
    assert [row.what for row in keep.log_erasures()] == ["subject", "subject", "account"]


def test_the_rung_and_the_matches_of_an_account_are_erased_with_or_without_a_gateway(served, trained):
    keep, records = served, served.premises.records
    token = keep.key_issue(account="alice", quota=100_000).token
    subject = next(row.subject for row in keep.user_list() if row.name == "alice")
    keep.intel_indicate(data=b"kind,value\naddress,127.0.0.0/8\n", source="feed")
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 10").encode())

    def held():
        return {kind for kind in (RUNG, CAUTION) for record in records.scan(kind) if subject in record.key}

    def rungs():
        """What auditors still see: that a rung changed, and when; and what opens of it."""
        entries = [entry.outcome for entry, _ in recorded(keep) if entry.kind == RUNG and entry.subject == subject]
        return entries, [move.after for one in keep.account_explain(account="alice").standings for move in one.history]

    with live(keep) as running:
        watch = next(iter(running.service.loader.watches()))
        ask(running, token, trained.fresh, times=12)
        soon(lambda: held() == {RUNG, CAUTION})
        keep.log_erase(subject="alice", reason="asked for it")
        assert held() == set() and watch.rung(subject) is Rung.MARK and watch.verdict(subject).queries == 0
        assert keep.account_list() == ()
        ask(running, token, trained.fresh, times=12)  # from the same address: the account goes on, and is seen anew
        soon(lambda: held() == {RUNG, CAUTION})
        [row] = keep.account_list()
        assert row.account == "alice" and len(row.cautions) == 1
    before = rungs()
    assert len(before[0]) > len(before[1]) > 0
    keep.log_erase(subject="alice", reason="asked for it again")
    assert held() == set() and keep.account_list() == () and rungs() == (before[0], [])
    with live(keep) as running:
        watch = next(iter(running.service.loader.watches()))
        assert watch.rung(subject) is Rung.MARK and watch.verdict(subject).budget.limit == 10
        ask(running, token, trained.fresh, times=1)
    assert rungs()[0] == before[0], "a restart has nothing to say about what is gone"
    assert keep.sweep_erased() == 0
    keep.log_verify()


def test_a_stored_rung_or_match_of_before_an_erasure_counts_for_nothing(served):
    keep, records = served, served.premises.records
    subject = next(row.subject for row in keep.user_list() if row.name == "alice")
    keep.intel_indicate(data=b"kind,value\naddress,127.0.0.0/8\n", source="feed")
    [indicator] = load_indicators(records, keep.premises.decisions().indicators)
    back = [
        Change(RUNG, f"iris@1/{subject}", b"alarm"),
        Change(CAUTION, f"{subject}/feed/address", to_json(Caution(indicator, 1))),
    ]
    records.commit(back)
    assert [row.rung for row in keep.account_list()] == ["alarm"]
    keep.log_erase(subject="alice", reason="asked for it")
    records.commit(back)  # a backup brings them back
    assert keep.account_list() == ()
    assert keep.sweep_erased() == 2 and not [*records.scan(RUNG), *records.scan(CAUTION)]


def test_a_name_may_be_given_again_and_old_sessions_do_not_come_with_it(keep):
    here = keep.premises
    old = here.records.get("account", "alice")
    key, origin = here.keyring([TOKEN_SIGNING]).token_key(), here.trust.origin
    token, _ = SessionIssuer(key, origin, entropy=here.entropy, clock=here.clock).issue(parse_account(old))
    directory = Directory(here.records, here.clock, here.trust.token_keys, origin)
    directory.refresh()
    assert directory.authenticate(Presented(token)).principal.account == "alice"
    keep.log_erase(subject="alice", forget=True)
    keep.user_add(name="alice", roles=(Role.ADMIN,))
    for view in (directory, Directory(here.records, here.clock, here.trust.token_keys, origin)):
        view.refresh()
        with pytest.raises(Unauthenticated):
            view.authenticate(Presented(token))
    subject = {account.name: account.subject for account in keep.user_list()}["alice"]
    assert subject.encode() not in old.body
    assert keep.log_erasures()[-1].name.encode() in old.body


def test_no_name_of_a_certificate_is_left(keep):
    """Those of people are names, too: of one that still speaks for her, and of one that was removed long before."""
    folder = keep.premises.directory
    keep.cert_add(account="alice", certificate="uri:mailto:alice.doe@acme.eu")
    keep.cert_add(account="alice", certificate="dns:alice-laptop.acme.eu")
    keep.cert_remove(certificate="dns:alice-laptop.acme.eu")
    assert b"alice-laptop" in everything_in(folder)
    keep.log_erase(subject="alice", forget=True)
    assert not [name for name in (b"alice.doe", b"alice-laptop") if name in everything_in(folder)]
    assert keep.cert_list() == ()


def test_an_old_row_put_back_is_deleted_by_the_next_pass_and_told(keep):
    here = keep.premises
    subject = next(a.subject for a in keep.user_list() if a.name == "alice")
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, here.decisions().epochs())
    keys.key(subject)
    rows = here.records.get(SUBJECT_KEY, subject), here.records.get("account", "alice")
    keep.log_erase(subject="alice", forget=True)
    here.records.commit([Change(row.kind, row.key, row.body) for row in rows])
    reopened = Keep.open(here.directory, PASSPHRASE.encode())
    assert reopened.sweep_erased() == 2
    assert [row.name for row in reopened.user_list()] == ["admin", "bob"]
    assert any("erased" in one.detail for one in reopened.incidents())


def test_what_is_refused(keep):
    with pytest.raises(Invalid, match="either"):
        keep.log_erase()
    with pytest.raises(Invalid, match="either"):
        keep.log_erase(subject="alice", dataset="loans")
    with pytest.raises(Missing):
        keep.log_erase(subject="nobody")
    for named in ("Alice asked for it", "asked by alice.", "(alice)", "alice_at_acme", "for:alice"):
        with pytest.raises(Invalid, match="name out of it"):
            keep.log_erase(subject="alice", reason=named)
    with pytest.raises(Invalid, match="at most"):
        keep.log_erase(subject="alice", reason="x" * 501)
    with pytest.raises(Conflict, match="last enabled admin"):
        keep.log_erase(subject="admin", forget=True)
    subject = next(a.subject for a in keep.user_list() if a.name == "alice")
    keep.raise_incident("extraction", f"{subject} on risk@1", "extraction alarm")
    with pytest.raises(Conflict, match="review"):
        keep.log_erase(subject="alice")
    assert keep.log_erasures() == ()
    actor = keep.premises.records.get("account", "admin")
    account = parse_account(actor)
    with pytest.raises(Denied, match="ask another"):
        keep.acting_as(Principal("admin", account.subject, account.roles, "session:x")).log_erase(subject="admin", forget=True)
    analyst = Principal("alice", subject, (Role.ANALYST,), "session:x")
    with pytest.raises(Denied):
        keep.acting_as(analyst).log_erase(subject="alice")
