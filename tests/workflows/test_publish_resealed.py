"""A publisher that died right after its log entry, whose release is then sealed anew by somebody who dies as well."""

import contextlib

import pytest
from workflow_house import Cut

from modelkeep.custody.releases import RELEASE, Release
from modelkeep.workflows.publish import publish, settle
from modelkeep.workflows.reencrypt import reencrypt
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
