"""Adding a data set: the whole road once; then cut off and starved at every durable step, raced, and swapped."""

import contextlib
import threading

import pytest
from workflow_house import Cut

from modelkeep.container.reader import BytesReader
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef
from modelkeep.custody import keys
from modelkeep.custody.datasets import (
    ADDED,
    DATA_RECIPIENTS,
    DATASET,
    NOTHING_SAID,
    About,
    DatasetRecord,
    fits,
    is_granted,
    parse_data_ref,
)
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.custody.salting import DataSalts
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.attestations import Step
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.collect import collect
from modelkeep.workflows.datasets import Content, add_dataset, all_datasets, find_dataset, open_dataset, remove_dataset
from modelkeep.workflows.publish import ModelFile, publish, settle
from modelkeep.workflows.registry import KeysOpener

ROWS = b"who,income\n" + b"".join(b"CANARY-%06d,%d\n" % (n, n) for n in range(90_000))
FIRST = ReleaseRef("loans", 1)


def add(house, desk, name="loans", about=NOTHING_SAID, data=ROWS, actor="ada", reader=None):
    data_keys = RingKeys(keys.DATA_KEK, lambda: house.ring)
    salts = DataSalts(desk.registry.records, RingKeys(keys.AUDIT_SUBJECT, lambda: house.ring), desk.entropy)
    source = reader or BytesReader(data)
    content = Content(source, "csv", "loans.csv", 90_000, (("who", "text"), ("income", "int64")), lambda: None)
    return add_dataset(desk, data_keys, salts, content, name, about, actor=actor)


def read(house, ref=FIRST):
    registry = house.registry()
    opener = KeysOpener(lambda: [RingKeys(keys.DATA_KEK, lambda: house.ring)])
    return bytes(open_dataset(registry, [opener], find_dataset(registry, ref), None).read_source())


def left(house):
    kinds = (DATASET, DATA_RECIPIENTS)
    return [record.key for kind in kinds for record in house.records.scan(kind)], list(house.blobs.stored)


def test_the_whole_road(house):
    done = add(house, house.desk())
    assert (done.ref, done.state, done.claim, done.entry) == (FIRST, ADDED, "", 0)
    assert read(house) == ROWS
    assert list(house.blobs.stored) == [done.body.sealed]
    stored = [*house.blobs.stored.values(), *(record.body for record in house.records.since(0) if record.body)]
    stored += [path.read_bytes() for path in house.root.rglob("*") if path.is_file()]
    assert all(b"CANARY" not in data for data in stored)
    assert settle(house.desk()).bodies == 0
    assert collect(house.desk(), "keep.example", actor="ada", retired_for=0).bodies == ()
    assert add(house, house.desk()).ref == ReleaseRef("loans", 2)
    assert [each.ref.version for each in all_datasets(house.registry())] == [1, 2]


def steps_of(house):
    house.faults.arm(0)
    add(house, house.desk())
    return house.faults.count


@pytest.mark.parametrize("after", [False, True])
def test_cut_off_at_any_step_it_is_there_or_nothing_is(house, after):
    steps = steps_of(house)
    assert steps >= 5
    for number in range(1, steps + 1):
        name = f"cut{number}"
        before = left(house)
        house.faults.arm(number, after=after)
        with contextlib.suppress(Cut):
            add(house, house.desk(), name)
        house.faults.arm(0)
        settle(house.desk())
        try:
            assert read(house, ReleaseRef(name, 1)) == ROWS
        except Missing:
            assert left(house) == before
        assert add(house, house.desk(), name).ref.name == name
        assert settle(house.desk()).underway == ()


@pytest.mark.parametrize("after", [False, True])
def test_a_disk_that_fails_at_any_step_leaves_nothing_that_settling_does_not_clear(house, after):
    for number in range(1, steps_of(house) + 1):
        name, before = f"full{number}", left(house)
        house.faults.arm(number, after=after, error=Unavailable)
        with contextlib.suppress(Unavailable):
            add(house, house.desk(), name)
        house.faults.arm(0)
        settle(house.desk())
        try:
            assert read(house, ReleaseRef(name, 1)) == ROWS
        except Missing:
            assert left(house) == before


def test_beside_a_live_adder_nothing_of_it_is_removed(house):
    begun, go_on = threading.Event(), threading.Event()

    class Slow(BytesReader):
        def read_into(self, offset, into):
            begun.set()
            assert go_on.wait(30)
            super().read_into(offset, into)

    desk, found = house.desk(), []
    content = Content(Slow(ROWS), "csv", "loans.csv", 1, (("who", "text"),), lambda: None)
    salts = DataSalts(desk.registry.records, RingKeys(keys.AUDIT_SUBJECT, lambda: house.ring), desk.entropy)
    data_keys = RingKeys(keys.DATA_KEK, lambda: house.ring)
    adder = threading.Thread(
        target=lambda: found.append(add_dataset(desk, data_keys, salts, content, "loans", About(), actor="ada"))
    )
    adder.start()
    assert begun.wait(30)
    assert settle(house.desk()).underway == ("data set loans@1",)
    with pytest.raises(Conflict, match="somebody else is adding the first version of loans"):
        add(house, house.desk(), actor="bob")  # whose the name becomes, the log does not say yet
    assert add(house, house.desk()).ref == ReleaseRef("loans", 2)
    go_on.set()
    adder.join()
    assert found[0].ref == FIRST
    assert read(house) == ROWS


FEW = b"who,income\nann,1\n"


@pytest.mark.parametrize("after", [False, True])
def test_one_who_died_over_the_first_version_keeps_the_name_from_nobody(house, after):
    for number in range(1, steps_of(house) + 1):
        name = f"cut{number}"
        house.faults.arm(number, after=after)
        with contextlib.suppress(Cut):
            add(house, house.desk(), name, data=FEW)
        house.faults.arm(0)
        assert add(house, house.desk(), name, data=FEW, actor="bob").state == ADDED  # nobody settled before


class Held(BytesReader):
    """Bytes whose reading waits until ``go_on`` is set."""

    def __init__(self, data):
        super().__init__(data)
        self.begun, self.go_on = threading.Event(), threading.Event()

    def read_into(self, offset, into):
        self.begun.set()
        assert self.go_on.wait(30)
        super().read_into(offset, into)


def add_held(house, name, reader, found):
    found.append(add(house, house.desk(), name, reader=reader))


@pytest.mark.parametrize("after", [False, True])
def test_a_collector_that_is_killed_at_any_step_beside_a_live_adder_harms_nothing(house, after):
    for number in range(1, 40):
        house.faults.arm(5)  # its body is stored and named, and the log says nothing
        with contextlib.suppress(Cut):
            add(house, house.desk(), f"dead{number}", data=FEW)
        house.faults.arm(0)
        reader, found = Held(FEW), []
        adder = threading.Thread(target=add_held, args=(house, f"live{number}", reader, found))
        adder.start()
        assert reader.begun.wait(30)
        house.faults.arm(number, after=after)
        ended = False
        with contextlib.suppress(Cut):
            collect(house.desk(), "keep.example", actor="ada", retired_for=0)
            ended = True
        house.faults.arm(-1)  # not 0: the adder is in the middle of a step
        reader.go_on.set()
        adder.join()
        assert read(house, found[0].ref) == FEW
        collect(house.desk(), "keep.example", actor="ada", retired_for=0)
        versions = [str(each.ref) for each in all_datasets(house.registry())]
        assert versions == sorted(f"live{one}@1" for one in range(1, number + 1))
        assert sorted(house.blobs.stored) == sorted(each.body.sealed for each in all_datasets(house.registry()))
        if ended:
            break
    assert number > 2  # it was cut off, and then it was not


@pytest.mark.parametrize("after", [False, True])
def test_a_removal_that_is_cut_off_at_any_step_is_there_or_is_made_again(house, after):
    for number in range(1, 10):
        record, desk, before = add(house, house.desk(), f"cut{number}", data=FEW), house.desk(), left(house)

        def say(desk=desk, about=str(record.ref)):
            return log_act(desk, "keep.example", "data.remove", about, actor="ada")

        house.faults.arm(number, after=after)
        ended = False
        with contextlib.suppress(Cut):
            remove_dataset(desk, record, say)
            ended = True
        house.faults.arm(0)
        with contextlib.suppress(Missing):
            remove_dataset(house.desk(), find_dataset(house.registry(), record.ref), say)
        settle(house.desk())
        with pytest.raises(Missing):
            find_dataset(house.registry(), record.ref)
        assert left(house) == ([key for key in before[0] if key not in (str(record.ref), record.body.sealed)], [])
        if ended:
            break
    assert number > 2


def test_a_file_that_changed_while_it_was_sealed_is_not_added(house):
    desk = house.desk()

    def changed():
        raise Conflict("it changed")

    salts = DataSalts(desk.registry.records, RingKeys(keys.AUDIT_SUBJECT, lambda: house.ring), desk.entropy)
    content = Content(BytesReader(ROWS), "csv", "loans.csv", 1, (("who", "text"),), changed)
    with pytest.raises(Conflict, match="it changed"):
        add_dataset(desk, RingKeys(keys.DATA_KEK, lambda: house.ring), salts, content, "loans", About(), actor="ada")
    settle(house.desk())
    assert left(house) == ([], [])


def test_keys_and_bodies_of_other_data_sets_and_of_models_open_nothing(house, model):
    first, second = add(house, house.desk()), add(house, house.desk(), data=b"a\n1\n")
    records = house.records
    one, two = (records.get(DATA_RECIPIENTS, each.body.sealed) for each in (first, second))
    records.commit([Change(DATA_RECIPIENTS, one.key, two.body)])
    with pytest.raises(NotTrusted):
        read(house)
    records.commit([Change(DATA_RECIPIENTS, one.key, one.body)])
    house.blobs.stored[first.body.sealed] = house.blobs.stored[second.body.sealed]
    with pytest.raises(NotTrusted):
        read(house)
    released = publish(house.desk(), ModelFile(model.data, model.filename), "credit", actor="ada")
    registry = house.registry()
    with pytest.raises(NotTrusted):  # the key family of models does not open data
        open_dataset(registry, registry.openers, find_dataset(registry, ReleaseRef("loans", 2)), None)
    assert released.body.sealed in house.blobs.stored


def test_a_record_of_data_that_the_log_does_not_know_is_no_data_set(house):
    add(house, house.desk())
    record = house.records.get(DATASET, "loans@1")
    forged = DatasetRecord.parse(record)
    body = forged.encode().replace(b"loans", b"bonds")
    house.records.commit([Change(DATASET, "bonds@1", body, 0)])
    assert [each.ref.name for each in all_datasets(house.registry())] == ["loans"]
    with pytest.raises(Missing, match="does not know the data set bonds@1"):
        find_dataset(house.registry(), ReleaseRef("bonds", 1))


@pytest.mark.parametrize(
    ("about", "why"),
    [
        (About(purposes=("Credit Scoring",)), "not a purpose"),
        (About(licence="a\nb"), "one line"),
        (About(steps=(Step("a.py", "sha256:" + "0" * 64),)), "name both"),
        (About(parents=("loans",)), "name both"),
        (About(parents=("loans",), steps=(Step("a.py", "sha256:" + "0" * 64),)), "no version of a data set"),
    ],
)
def test_what_cannot_be_said_of_data_is_refused_before_anything_is_sealed(house, about, why):
    with pytest.raises(Invalid, match=why):
        add(house, house.desk(), about=about)
    assert left(house) == ([], [])


def test_what_is_made_of_data_has_their_purposes_or_fewer(house):
    add(house, house.desk(), about=About(purposes=("a", "b")))
    step = (Step("clean.py", "sha256:" + "0" * 64),)
    made = add(house, house.desk(), about=About(parents=("loans@1",), steps=step))
    assert made.about.purposes == ("a", "b")
    assert add(house, house.desk(), about=About(("b",), parents=("loans@2",), steps=step)).about.purposes == ("b",)
    with pytest.raises(Invalid, match="not for c"):
        add(house, house.desk(), about=About(("a", "c"), parents=("loans@1",), steps=step))
    add(house, house.desk(), "other", about=About(("c",)))
    with pytest.raises(Invalid, match="other@1 may be read for c"):  # for nothing that both may be read for
        add(house, house.desk(), about=About(parents=("loans@1", "other@1"), steps=step))


def test_names_purposes_and_grants():
    assert parse_data_ref("loans@12") == ReleaseRef("loans", 12)
    for text in ("loans", "loans@0", "Loans@1", "loans@latest", "@1"):
        with pytest.raises(Invalid):
            parse_data_ref(text)
    assert fits((), "anything")
    assert fits(("a", "b"), "b")
    assert not fits(("a",), "")
    grants = {("sub1", "a"): 3, ("role:analyst", "b"): 4}
    assert is_granted(grants, "sub1", (), "a")
    assert is_granted(grants, "sub2", ("analyst",), "b")
    assert not is_granted(grants, "sub2", ("analyst",), "a")
    assert not is_granted(grants, "role:analyst", (), "a")
