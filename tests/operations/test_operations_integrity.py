"""The integrity pass names what is damaged, and does not take an unreadable store for a damaged one."""

import pytest

from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.errors import Missing, NotTrusted, Unavailable
from modelkeep.operations.integrity import Expected, Finding, examine

REF = ReleaseRef("m", 1)


def test_damage_and_absence_are_findings():
    bodies = {digest_of(b"sound"): None, digest_of(b"bad"): NotTrusted("altered"), digest_of(b"gone"): Missing("no blob")}

    def check(digest):
        if bodies[digest]:
            raise bodies[digest]

    found = list(examine([Expected(REF, str(i), d) for i, d in enumerate(bodies)], check))
    assert found == [None, Finding("m@1", "1", "altered"), Finding("m@1", "2", "no blob")]


def test_an_unreadable_store_is_no_verdict():
    def check(_):
        raise Unavailable("disk on fire")

    with pytest.raises(Unavailable):
        list(examine([Expected(REF, "model", digest_of(b""))], check))
