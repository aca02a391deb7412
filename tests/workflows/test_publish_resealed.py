"""A publisher that died right after its log entry, whose release is then sealed anew by somebody who dies as well."""

import contextlib

import pytest
from workflow_house import ORIGIN, Cut

from modelkeep.custody.metadata import About, Classification
from modelkeep.custody.releases import RELEASE, Release
from modelkeep.errors import Conflict
from modelkeep.workflows.collect import collect
from modelkeep.workflows.describe import describe, read_card
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.reencrypt import reencrypt
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.verify import verify_release


def logged_and_pending(house, model, calibration):
    """``credit@1`` in the log, its record still pending: the publisher died before its last step."""
    for at in range(1, 20):
        house.faults.arm(at)
        with contextlib.suppress(Cut):
            publish(house.desk(), model, "credit", actor="ada", calibration=calibration)
        house.faults.arm(0)
        if list(house.registry().refresh().releases()):
            return
        settle(house.desk())
    raise AssertionError("nothing was ever logged")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 14))
def test_settling_between_publish_and_sealing_anew_never_loses_a_logged_release(house, model, calibration, at, after):
    logged_and_pending(house, model, calibration)
    (found,) = house.registry().refresh().releases()
    old = {body.sealed for body in (found.body, found.profile_body) if body}
    house.faults.arm(at, after=after)
    with contextlib.suppress(Cut):
        reencrypt(house.desk(), lambda body: body.sealed in old, actor="ada")
    house.faults.arm(0)
    settle(house.desk())
    assert [record.key for record in house.records.scan(RELEASE)] == [str(found.ref)]
    reencrypt(house.desk(), lambda body: body.sealed in old, actor="ada")
    settle(house.desk())
    assert verify_release(house.registry(), house.trust, found.ref).opened
    (after_all,) = house.registry().refresh().releases()
    assert after_all.body.sealed not in old
    record = Release.parse(house.records.get(RELEASE, str(found.ref)).body)
    assert (record.next_body, record.next_profile, record.state) == (None, None, "published")


def test_a_release_that_shares_an_exposed_body_meanwhile_is_not_forgotten(house, model):
    """The key that gave it away is not the primary, so that the body can be shared until its recipients are gone."""
    made = publish(house.desk(), model, "credit", actor="ada")
    desk, append = house.desk(), []
    log = desk.log.append

    def late(entries, **more):
        if not append:
            append.append(publish(house.desk(), model, "fraud", actor="bo"))
        return log(entries, **more)

    desk.log.append = late
    with pytest.raises(Conflict, match="fraud@1 came meanwhile"):
        reencrypt(desk, lambda body: body.sealed == made.body.sealed, actor="ada")
    assert append[0].body == made.body
    assert reencrypt(house.desk(), lambda body: body.sealed == made.body.sealed, actor="ada") == 1
    assert made.body.sealed not in set(house.blobs.all())
    for ref in (made.ref, append[0].ref):
        assert verify_release(house.registry(), house.trust, ref).opened


def test_the_card_of_a_collected_release_is_sealed_anew(house, model):
    made = publish(house.desk(), model, "credit", actor="ada")
    about = About("risk", Classification.INTERNAL, card="card.md")
    card = describe(house.desk(), made.ref, about, b"# Card", actor="ada").card
    change_state(house.desk(), made.ref, "retire", actor="ada", reason="old")
    assert collect(house.desk(), ORIGIN, actor="ops", retired_for=0).releases == (made.ref,)
    assert reencrypt(house.desk(), lambda body: body.sealed in (card.sealed, made.body.sealed), actor="ada") == 1
    assert card.sealed not in set(house.blobs.all())
    assert read_card(house.registry(), made.ref) == b"# Card"
