"""Aliases and metadata as workflows: raced, cut off at every step, and cards that only the keys open."""

import contextlib
import threading

import pytest
from workflow_house import Cut

from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.custody.metadata import About, Classification
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, Unavailable
from modelkeep.workflows.aliases import remove_alias, set_alias
from modelkeep.workflows.collect import collect
from modelkeep.workflows.describe import describe, prepared, read_card
from modelkeep.workflows.holdings import Bodies, wrapped_under
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.rewrap import rewrap
from modelkeep.workflows.staging import STAGE, stage
from modelkeep.workflows.verify import verify_release

FIRST, SECOND = ReleaseRef("credit", 1), ReleaseRef("credit", 2)
ABOUT = About("risk", Classification.CONFIDENTIAL)
CARDED = About("risk", Classification.CONFIDENTIAL, card="card.md")
TEXT = b"# Card\nIt is weak against the young and the old: 7f3a91c2.\n"


@pytest.fixture
def two(house, another):
    return [publish(house.desk(), another(seed), "credit", actor="ada") for seed in (1, 2)]


def move(house, ref, **more):
    return set_alias(house.desk(), ref, "champion", actor="mel", **more)


def test_setting_and_removing(house, two):
    assert (move(house, FIRST).version, move(house, SECOND).replaced) == (1, 1)
    size = house.registry().refresh().size
    assert move(house, SECOND).version == 2
    assert house.registry().refresh().size == size  # what is set already is not logged again
    assert remove_alias(house.desk(), "credit", "champion", actor="mel").version == 0
    for act in (lambda: remove_alias(house.desk(), "credit", "champion", actor="mel"),
                lambda: set_alias(house.desk(), ReleaseRef("credit", 3), "champion", actor="mel")):  # fmt: skip
        with pytest.raises(Missing):
            act()
    with pytest.raises(Invalid):
        set_alias(house.desk(), FIRST, "v1", actor="mel")
    assert house.registry().refresh().problem_count == 0


def test_a_move_waits_out_the_lease(house, two):
    start = house.clock.seconds
    move(house, FIRST)
    assert house.clock.seconds == start + 1.0


def test_compare_and_set(house, two):
    with pytest.raises(Conflict, match="means version none, not 1"):
        move(house, SECOND, expect=1)
    move(house, FIRST, expect=0)
    with pytest.raises(Conflict, match="means version 1, not 2"):
        move(house, SECOND, expect=2)
    assert move(house, SECOND, expect=1).version == 2
    with pytest.raises(Conflict):
        remove_alias(house.desk(), "credit", "champion", actor="mel", expect=1)


@pytest.mark.parametrize("expect", [None, 1])
def test_two_who_move_it_at_once(house, another, two, expect):
    """The other is logged between our look and ours: without an expectation we move it after all, with one we are refused."""
    publish(house.desk(), another(3), "credit", actor="ada")
    move(house, FIRST)
    desk = house.desk()
    append = desk.log.append

    def racing(entries, **more):
        desk.log.append = append
        move(house, SECOND)
        return append(entries, **more)

    desk.log.append = racing
    act = lambda: set_alias(desk, ReleaseRef("credit", 3), "champion", actor="bo", expect=expect)  # noqa: E731
    if expect is None:
        assert (act().version, act().replaced) == (3, 2)
    else:
        with pytest.raises(Conflict, match="means version 2, not 1"):
            act()
    history = house.registry().refresh().catalogue.alias_history("credit", "champion")
    assert [m.version for m in history] == ([1, 2, 3] if expect is None else [1, 2])
    assert house.registry().refresh().suspicious is None


def test_of_many_who_expect_the_same_only_one_succeeds(house, another):
    made = [publish(house.desk(), another(seed), "credit", actor="ada").ref for seed in range(5)]
    won, lock = [], threading.Lock()

    def work(ref):
        with contextlib.suppress(Conflict):
            moved = set_alias(house.desk(), ref, "champion", actor="mel", expect=0)
            with lock:
                won.append(moved.version)

    workers = [threading.Thread(target=work, args=(ref,)) for ref in made]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(won) == 1
    assert house.registry().refresh().catalogue.alias("credit", "champion") == won[0]


def test_metadata_and_a_card_that_lies_nowhere_in_the_clear(house, two):
    found = describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    assert (found.said.owner, found.card_digest) == ("risk", digest_of(TEXT))
    assert read_card(house.registry(), FIRST) == TEXT
    assert all(TEXT[8:40] not in blob for blob in house.blobs.stored.values())
    assert all(TEXT[8:40] not in path.read_bytes() for path in house.root.rglob("*") if path.is_file())
    assert house.records.scan(STAGE) == []
    with pytest.raises(Missing, match="has no model card"):
        read_card(house.registry(), SECOND)
    with pytest.raises(NotTrusted, match="none of the keys"):
        read_card(house.registry(keyless=True), FIRST)


def test_a_card_is_no_model_and_another_card_does_not_pass_for_it(house, two):
    first = describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    other = describe(house.desk(), SECOND, CARDED, b"# other", actor="ada")
    with pytest.raises(NotTrusted):
        house.registry().open_body(first.card, first.card_digest, MODEL)
    assert "model card" in verify_release(house.registry(), house.trust, FIRST).checks[-2]
    house.blobs.stored[first.card.sealed] = house.blobs.stored[other.card.sealed]
    house.records.commit([Change(RECIPIENTS, first.card.sealed, house.records.get(RECIPIENTS, other.card.sealed).body)])
    with pytest.raises(NotTrusted):
        read_card(house.registry(), FIRST)
    with pytest.raises(NotTrusted, match="sealed model card of credit@1 is damaged"):
        verify_release(house.registry(), house.trust, FIRST)


def test_published_with_its_metadata_in_one_step(house, model):
    desk = house.desk()
    with prepared(desk, CARDED, TEXT) as sheet:
        made = publish(desk, model, "credit", actor="ada", sheet=sheet)
    assert house.registry().refresh().catalogue.described(made.ref).index == made.index + 1
    assert read_card(house.registry(), made.ref) == TEXT
    assert settle(house.desk()).bodies == 0 and collect(house.desk(), "k", actor="ops", retired_for=None).bodies == ()


@pytest.mark.parametrize(("about", "card"), [(CARDED, b""), (ABOUT, TEXT), (CARDED, b"\xff"), (CARDED, b"x" * 300_000)])
def test_a_card_must_be_named_given_and_text(house, two, about, card):
    before = house.records.revision(), set(house.blobs.all())
    with pytest.raises(Invalid):
        describe(house.desk(), FIRST, about, card, actor="ada")
    assert before == (house.records.revision(), set(house.blobs.all()))


def test_a_card_that_was_replaced_is_collected_and_the_last_one_is_not(house, two):
    first = describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    second = describe(house.desk(), FIRST, CARDED, TEXT + b"more", actor="ada")
    done = collect(house.desk(), "k", actor="ops", retired_for=None)
    assert [body.sealed for body in done.bodies] == [first.card.sealed]
    assert read_card(house.registry(), FIRST) == TEXT + b"more"
    assert second.card.sealed in set(house.blobs.all())


def test_rotation_covers_cards(house, two):
    describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    assert sum(wrapped_under(Bodies(house.registry())).values()) == 3
    assert rewrap(Bodies(house.registry()), house.desk().wrapper).current == 3


STEPS = 10


@pytest.mark.parametrize("error", [Cut, Unavailable], ids=["cut", "full"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, STEPS))
def test_describing_cut_off_at_every_step(house, model, at, after, error):
    publish(house.desk(), model, "credit", actor="ada")
    house.faults.arm(at, after=after, error=error)
    with contextlib.suppress(Cut, Unavailable):
        describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    house.faults.arm(0)
    settle(house.desk())
    described = house.registry().refresh().catalogue.described(FIRST)
    if described is not None:
        assert read_card(house.registry(), FIRST) == TEXT
    assert len(set(house.blobs.all())) == (2 if described else 1) == len(house.records.scan(RECIPIENTS))
    assert house.records.scan(STAGE) == []
    assert describe(house.desk(), FIRST, ABOUT, b"", actor="ada").said.card is None


def test_the_steps_above_cover_all_of_it(house, model):
    publish(house.desk(), model, "credit", actor="ada")
    house.faults.arm(0)
    describe(house.desk(), FIRST, CARDED, TEXT, actor="ada")
    assert house.faults.count < STEPS


def test_nothing_unnamed_is_removed_while_somebody_stores(house):
    with stage(house.desk()):
        stray = house.blobs.put([b"not named yet"])
        assert settle(house.desk()).underway[0].startswith("stage ")
        assert collect(house.desk(), "k", actor="ops", retired_for=None).bodies == ()
    assert stray in set(house.blobs.all())
    assert settle(house.desk()).bodies == 1
