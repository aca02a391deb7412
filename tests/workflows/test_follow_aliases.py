"""What answers to an alias: its release, the former one while the new one is loaded, and nothing that is not admitted."""

import threading
import time
from types import SimpleNamespace

import pytest

from modelkeep.adapters.clock import SystemClock
from modelkeep.core.values import ReleaseRef, ReleaseState
from modelkeep.errors import Missing, NotAdmitted, Unavailable
from modelkeep.workflows import follow as module
from modelkeep.workflows.aliases import remove_alias, set_alias
from modelkeep.workflows.follow import AdmissionFollower
from modelkeep.workflows.publish import publish
from modelkeep.workflows.release_state import change_state

FIRST, SECOND = ReleaseRef("credit", 1), ReleaseRef("credit", 2)


class Follow:
    """A follower whose loading this test holds up, on the log of a house. Admitted is what is promoted."""

    def __init__(self, house):
        self.registry, self.gate, self.seen = house.registry(), threading.Event(), []
        self.gate.set()
        self.follower = AdmissionFollower(self, self, house.clock, publish=self.seen.append)

    def refresh(self):
        return self.registry.refresh()

    def hand_over(self, take):
        """Nothing was decided."""

    def take(self, decision):
        raise AssertionError(f"nothing was decided, and not {decision}")

    def witnessed(self):
        return None

    def judge(self, found):
        if found.state is not ReleaseState.PROMOTED:
            raise NotAdmitted(f"{found.ref} is {found.state}")

    def load(self, found):
        assert self.gate.wait(30)
        return SimpleNamespace(ref=found.ref)

    def watches(self):
        return []

    def ask(self, alias="champion"):
        self.follower.look()
        return self.seen[-1].find("credit", alias, 0.0).ref


@pytest.fixture
def follow(house, another):
    for seed in (1, 2):
        publish(house.desk(), another(seed), "credit", actor="ada")
    made = Follow(house)
    yield made
    made.gate.set()
    made.follower.stop()


def move(house, ref):
    set_alias(house.desk(), ref, "champion", actor="mel")


def loaded(follow):
    follow.gate.set()
    follow.follower.settle(30)


def test_the_former_release_answers_until_the_new_one_is_loaded(house, follow):
    change_state(house.desk(), FIRST, "promote", actor="mel")
    move(house, FIRST)
    loaded(follow)
    assert follow.ask() == FIRST
    follow.gate.clear()
    change_state(house.desk(), SECOND, "promote", actor="mel")
    move(house, SECOND)
    assert [follow.ask() for _ in range(3)] == [FIRST] * 3
    loaded(follow)
    assert follow.ask() == SECOND
    move(house, FIRST)
    assert follow.ask() == FIRST  # it is loaded: at once
    remove_alias(house.desk(), "credit", "champion", actor="mel")
    with pytest.raises(Missing):
        follow.ask()


def test_releases_that_fail_slowly_hold_no_start_up(house, follow, monkeypatch):
    """Such as models of two servers that hang: the second fails when the first is being tried again."""
    monkeypatch.setattr(module, "RETRY", 0.05)

    def load(found):
        time.sleep(0.1)
        raise Unavailable(f"{found.ref} does not answer")

    follow.load = load
    for ref in (FIRST, SECOND):
        change_state(house.desk(), ref, "promote", actor="mel")
    follower = AdmissionFollower(follow, follow, SystemClock(), publish=follow.seen.append)
    follower.settle(3)
    follower.stop()
    assert len(follow.seen[-1].refused) == 2


def test_what_could_not_be_judged_yet_is_judged_again_with_the_next_look(house, follow):
    change_state(house.desk(), FIRST, "promote", actor="mel")
    move(house, FIRST)
    judge, waits = follow.judge, ["is being counted"]

    def counting(found):
        if waits and found.ref == FIRST:
            raise Unavailable(waits.pop())
        judge(found)

    follow.judge = counting
    with pytest.raises(Unavailable, match="is being counted"):
        follow.ask()
    loaded(follow)
    assert follow.ask() == FIRST  # nothing was logged in between


def test_the_former_release_does_not_stand_in_once_it_is_not_admitted(house, follow):
    change_state(house.desk(), FIRST, "promote", actor="mel")
    move(house, FIRST)
    loaded(follow)
    assert follow.ask() == FIRST
    follow.gate.clear()
    change_state(house.desk(), SECOND, "promote", actor="mel")
    move(house, SECOND)
    change_state(house.desk(), FIRST, "quarantine", actor="mel")
    with pytest.raises(Unavailable, match="is being loaded"):
        follow.ask()
    loaded(follow)
    assert follow.ask() == SECOND


def test_nothing_stands_in_for_what_is_not_admitted(house, follow):
    change_state(house.desk(), FIRST, "promote", actor="mel")
    move(house, FIRST)
    loaded(follow)
    move(house, SECOND)
    with pytest.raises(Missing, match="credit@2 is published"):
        follow.ask()
    with pytest.raises(Missing, match="names no release"):
        follow.ask("nobody")
