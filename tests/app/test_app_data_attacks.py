"""What people try who may add data sets, but may not read those of others."""

import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, digest_of
from modelkeep.custody.datasets import ADDING, DATA_COUNTER, DATA_RECIPIENTS, DATASET, NOTHING_SAID, About
from modelkeep.errors import Denied, Invalid, Missing
from modelkeep.ledger.attestations import Step

CREDIT = "credit-scoring"
ROWS = b"who,income\n" + b"".join(b"p%d,%d\n" % (n, n) for n in range(50))


@pytest.fixture
def keep(template, tmp_path) -> Keep:
    return Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())


def scientist(keep: Keep, name: str) -> Keep:
    return keep.acting_as(Principal(name, keep.owner(name).subject, ("data_scientist",), "key:1"))


def add(keep: Keep, about: About = NOTHING_SAID, data: bytes = ROWS) -> str:
    return keep.data_add(name="loans", filename="loans.csv", data=data, about=about).ref


def test_a_new_version_of_a_data_set_does_not_let_its_adder_grant_himself_the_others(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    assert add(alice, About(purposes=(CREDIT,))) == "loans@1"
    alice.data_grant(dataset="loans", to="bob", add=True)
    assert add(bob) == "loans@2"
    for named in ("loans", "loans@1", "loans@2"):
        with pytest.raises(Denied):
            bob.data_grant(dataset=named, to="bob", purpose=CREDIT)
    with pytest.raises(Denied):
        bob.data("loans@1", purpose=CREDIT)
    alice.data_remove(dataset="loans@1", reason="to see whose the name is then")
    with pytest.raises(Denied):
        bob.data_grant(dataset="loans", to="bob", purpose=CREDIT)
    alice.data_grant(dataset="loans", to="bob", purpose=CREDIT)  # the name stays hers


def test_versions_are_added_by_whoever_began_the_name_and_whom_he_lets(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    assert add(alice) == "loans@1"
    with pytest.raises(
        Denied, match=r"'data.extend' on dataset loans.*use another name, or ask for 'modelkeep data grant loans"
    ):
        add(bob)
    denied = keep.log_show()[-1]
    assert (denied.actor, denied.about) == ("bob", "loans")
    assert denied.summary.startswith("data.denied how=add")
    alice.data_grant(dataset="loans", to="bob", purpose=CREDIT)  # to read it, which is something else
    with pytest.raises(Denied):
        add(bob)
    granted = alice.data_grant(dataset="loans", to="bob", add=True)
    assert (granted.to, granted.purpose, granted.add) == ("bob", "", True)
    assert {(one.to, one.purpose, one.add) for one in keep.data_show(dataset="loans").grants} == {
        ("bob", CREDIT, False),
        ("bob", "", True),
    }
    assert add(bob) == "loans@2"
    with pytest.raises(Denied):  # what he was let add to is not his to give
        bob.data_grant(dataset="loans", to="role:data_scientist", add=True)
    with pytest.raises(Denied, match="that takes data_scientist or admin"):  # a grant gives nobody the role
        add(keep.acting_as(Principal("bob", bob.actor.subject, ("analyst",), "key:1")))
    alice.data_revoke(dataset="loans", to="bob", add=True)
    with pytest.raises(Denied):
        add(bob)
    with pytest.raises(Missing, match="not granted to bob to add versions"):
        alice.data_revoke(dataset="loans", to="bob", add=True)
    alice.data_grant(dataset="loans", to="role:data_scientist", add=True)
    assert add(bob) == "loans@3"
    assert add(keep) == "loans@4"  # an administrator


def test_grants_of_a_name_whose_versions_were_all_removed_can_be_taken_back(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    add(alice, About(purposes=(CREDIT,)))
    for right in ({"add": True}, {"purpose": CREDIT}):
        alice.data_grant(dataset="loans", to="bob", **right)
    alice.data_remove(dataset="loans@1", reason="the contract ended")
    with pytest.raises(Denied):
        bob.data_revoke(dataset="loans", to="bob", add=True)
    for right in ({"add": True}, {"purpose": CREDIT}):
        assert alice.data_revoke(dataset="loans", to="bob", **right).dataset == "loans"
    with pytest.raises(Denied):
        add(bob)
    with pytest.raises(Invalid, match="no version of loans may be read"):
        alice.data_grant(dataset="loans", to="bob", purpose=CREDIT)
    for none in ("loans@1", "wages", "loans@"):
        with pytest.raises((Missing, Invalid)):
            alice.data_revoke(dataset=none, to="bob", add=True)
    assert add(alice) == "loans@2"
    with pytest.raises(Denied):
        bob.data("loans@2", purpose=CREDIT)


def test_a_grant_to_add_lets_nobody_read(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    add(alice)
    alice.data_grant(dataset="loans", to="bob", add=True)
    for purpose in ("", "add", CREDIT):
        with pytest.raises(Denied):
            bob.data("loans@1", purpose=purpose)
    with pytest.raises(Invalid, match="not a purpose"):
        bob.data("loans@1", purpose=ADDING)
    for said in ({}, {"purpose": CREDIT, "add": True}):
        with pytest.raises(Invalid, match="say one of --purpose and --add"):
            alice.data_grant(dataset="loans", to="bob", **said)


def test_a_name_that_became_somebody_elses_while_permission_was_asked_is_denied(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    ask, raced = bob.authorize, []

    def racing(action, arguments):
        ask(action, arguments)
        if not raced:
            raced.append(add(alice))

    bob.authorize = racing
    with pytest.raises(Denied, match="somebody else began loans"):
        add(bob)
    assert [(row.ref, row.owner) for row in keep.data_list()] == [("loans@1", "alice")]


def test_a_version_that_came_since_permission_was_asked_is_asked_for_again(keep):
    alice, bob = scientist(keep, "alice"), scientist(keep, "bob")
    add(alice, About(purposes=(CREDIT,)))
    alice.data_grant(dataset="loans", to="bob", purpose=CREDIT)
    ask, raced = bob.authorize, []

    def racing(action, arguments):
        ask(action, arguments)
        if not raced:
            raced.append(add(alice, About(purposes=("audit",)), ROWS + b"secret,1\n"))

    bob.authorize = racing
    with pytest.raises(Denied):
        bob.data_fetch(dataset="loans", purpose=CREDIT)
    assert raced == ["loans@2"]
    assert bob.data_fetch(dataset="loans@1", purpose=CREDIT).data == ROWS


def test_what_was_removed_is_not_read_when_its_records_and_body_come_back(keep):
    add(keep)
    here = keep.premises
    sealed = keep.data_show(dataset="loans@1").sealed
    kept = [here.records.get(kind, key) for kind, key in ((DATASET, "loans@1"), (DATA_RECIPIENTS, sealed))]
    body = here.blobs.read(sealed, 0, here.blobs.size(sealed))
    counter = here.records.get(DATA_COUNTER, "loans")
    keep.data_remove(dataset="loans@1", reason="the contract ended")
    here.blobs.put([body])
    here.records.commit([Change(one.kind, one.key, one.body, 0) for one in kept])
    with pytest.raises(Missing, match="was removed"):
        keep.data("loans@1")
    here.records.commit([Change(one.kind, one.key, None) for one in kept])
    here.records.commit([Change(DATA_COUNTER, "loans", None, counter.revision)])
    assert add(keep) == "loans@2"  # its number is not given again, whatever records say


def test_a_purpose_is_one_word_and_no_place_to_write_into_the_log(keep):
    add(keep)
    before = len(keep.log_show())
    with pytest.raises(Invalid, match="not a purpose"):
        keep.data("loans@1", purpose="for Ann Smith, born 1970-01-01\n" * 99)
    assert len(keep.log_show()) == before


@pytest.mark.parametrize("column", ["income\x1b[2J", "a\nb", "c" * 256, "\u202eemocni"])
def test_a_column_is_named_in_words_that_a_terminal_does_not_act_upon(keep, column):
    with pytest.raises(Invalid, match="cannot name a column"):
        add(keep, data=f'"{column}",n\n1,2\n'.encode())
    assert keep.data_list() == ()


@pytest.mark.parametrize(
    "step",
    [
        Step("clean.py", "\x1b[2J" * 9),
        Step("clean.py", digest_of(b""), {"least": "\x1b[2J"}),
        Step("clean.py", digest_of(b""), {"a\nb": "1"}),
        Step("clean.py", digest_of(b""), {"least": "1" * 2001}),
    ],
)
def test_so_is_what_was_done_to_it(keep, step):
    add(keep)
    with pytest.raises(Invalid):
        add(keep, About(parents=("loans@1",), steps=(step,)))
    assert len(keep.data_list()) == 1
