"""Fixtures of the HTTP tests."""

import time
from collections.abc import Iterator

import pytest
from gateway_support import Live, Trained, train
from http_support import PATIENT, QUICK, Running

from modelkeep.access import directory
from modelkeep.adapters.clock import SystemClock
from modelkeep.app.premises import LEASE_SECONDS
from modelkeep.workflows import follow

LATE = 60.0
"""Seconds for which one look allows serving here."""


@pytest.fixture(scope="module", autouse=True)
def looks_may_be_late() -> Iterator[None]:
    """A look may be a second late on a loaded machine: gateways here are patient; who waits their lease out waits for looks.

    So nothing is refused, and nothing old is answered, because a thread got no turn. What a lease of a second does is for
    ``short_lease``, tests/workflows and tests/e2e.
    """

    def sleep(_clock: SystemClock, seconds: float) -> None:
        if seconds < LEASE_SECONDS or not Live.all:
            time.sleep(seconds)
            return
        for running in list(Live.all):
            for _ in range(2):  # the second acts on what the first has read
                running.look()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(follow, "LEASE", LATE)
        patch.setattr(directory, "LEASE", LATE)
        patch.setattr(SystemClock, "sleep", sleep)
        yield


@pytest.fixture
def short_lease(monkeypatch) -> None:
    """A look allows serving for a second, as it does in use."""
    for room in (follow, directory):
        monkeypatch.setattr(room, "LEASE", 1.0)


@pytest.fixture
def server() -> Iterator[Running]:
    """A server that says what it understood."""
    running = Running(**PATIENT)
    yield running
    running.stop()


@pytest.fixture
def hasty() -> Iterator[Running]:
    """The same with short deadlines."""
    running = Running(**QUICK)
    yield running
    running.stop()


@pytest.fixture(scope="session")
def trained() -> Trained:
    """A small three-class model."""
    return train()
