"""The integrity pass names what is damaged, and does not take an unreadable store for a damaged one."""

import pytest

from modelkeep.core.values import ReleaseRef
from modelkeep.errors import NotTrusted, Unavailable
from modelkeep.operations.integrity import Finding, examine

SOUND, BAD = ReleaseRef("sound", 1), ReleaseRef("bad", 2)


def test_damage_is_a_finding_and_the_pass_goes_on():
    def check(ref):
        if ref == BAD:
            raise NotTrusted("altered")

    assert list(examine([SOUND, BAD, SOUND], check)) == [Finding(BAD, "altered")]


def test_an_unreadable_store_is_no_verdict():
    def check(_):
        raise Unavailable("disk on fire")

    with pytest.raises(Unavailable):
        list(examine([SOUND], check))
