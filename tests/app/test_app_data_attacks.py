"""What people try who may add data sets, but may not read those of others."""

import pytest
from commandline import PASSPHRASE, copy_keep

from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, digest_of
from modelkeep.custody.datasets import DATA_COUNTER, DATA_RECIPIENTS, DATASET, NOTHING_SAID, About
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
