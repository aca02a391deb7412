"""Break-glass: what the setting may say, how long it holds, and that it takes a signed act in the log."""

import pytest

from modelkeep.errors import Invalid
from modelkeep.workflows.breakglass import LONGEST_SECONDS, BreakGlass, Glass, parse_break_glass

HOUR = 3600 * 10**9
NOON = 1_796_126_400 * 10**9
"""2026-12-01T12:00Z."""


def test_the_setting_is_read():
    assert parse_break_glass("") is None
    found = parse_break_glass("until 2026-12-01T12:00Z: the operator, the disk is: away")
    assert found == BreakGlass(NOON, "2026-12-01T12:00Z", "the operator, the disk is: away")
    assert parse_break_glass("until 2026-12-01T13:00+01:00: why").until == NOON


BAD = (
    "yes",
    "until tomorrow: why",
    "2026-12-01T12:00Z: why",
    "until 2026-12-01T12:00: why",
    "until 2026-12-01T12:00Z",
    "until 2026-12-01T12:00Z: ",
    "until 2026-12-01T12:00Z: " + "x" * 301,
    "until 2026-12-01T12:00Z: two\nlines",
    "until 99999-12-01T12:00Z: why",
)


@pytest.mark.parametrize("text", BAD)
def test_a_setting_that_says_too_little_is_refused(text):
    with pytest.raises(Invalid, match="break_glass"):
        parse_break_glass(text)


class Wall:
    def __init__(self, now):
        self.now = now

    def __call__(self):
        return self.now


def test_nothing_is_in_force_before_the_act_and_after_the_end():
    wall = Wall(NOON - HOUR)
    glass = Glass(parse_break_glass("until 2026-12-01T12:00Z: why"), wall)
    assert glass() == "" and not glass.allowed
    glass.allow(NOON - HOUR)
    assert glass() == "until 2026-12-01T12:00Z: why"
    wall.now = NOON
    assert glass() == ""
    wall.now = NOON - HOUR
    assert glass() == "", "a clock that is put back does not bring it back"


def test_it_ends_24_hours_after_the_act_whatever_the_setting_says():
    wall = Wall(NOON)
    glass = Glass(parse_break_glass("until 2027-12-01T12:00Z: why"), wall)
    glass.allow(NOON)
    glass.allow(NOON + HOUR)  # a second act does not prolong it
    assert glass()
    wall.now = NOON + LONGEST_SECONDS * 10**9
    assert glass() == ""


def test_a_clock_that_is_put_back_does_not_prolong_it():
    wall, seconds = Wall(NOON - HOUR), Wall(50.0)
    glass = Glass(parse_break_glass("until 2026-12-01T12:00Z: why"), wall, seconds)
    glass.allow(NOON - HOUR)
    wall.now, seconds.now = NOON - 24 * HOUR, 50.0 + 3599
    assert glass()
    seconds.now = 50.0 + 3601
    assert glass() == ""
    behind = Glass(parse_break_glass("until 2026-12-03T12:00Z: why"), Wall(NOON - 99 * HOUR), seconds)
    behind.allow(NOON)  # by control's clock, which is right
    seconds.now += LONGEST_SECONDS + 1
    assert behind() == ""


def test_without_a_setting_nothing_is_ever_in_force():
    glass = Glass(None, Wall(NOON))
    glass.allow(NOON)
    assert glass() == ""
