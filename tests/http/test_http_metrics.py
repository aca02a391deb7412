"""``/metrics`` of several workers: gathered once, however many ask."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from gateway_support import Live, make_keep, make_service, train

from modelkeep.core.tallies import Series
from modelkeep.errors import Unavailable
from modelkeep.http.metrics import Metrics
from modelkeep.http.protocol import Request
from modelkeep.http.serve import application

ASKING = 30


@pytest.fixture(scope="module")
def keep(tmp_path_factory):
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", train())


class Others:
    """What gives the counts of all workers, once it may."""

    def __init__(self):
        self.asked, self.go, self.down = 0, threading.Event(), False

    def __call__(self, series):
        self.asked += 1
        assert self.go.wait(120)
        if self.down:
            raise Unavailable("the process that keeps the extraction evidence does not answer")
        return [*series, Series("modelkeep_asked", "How often.", "gauge", "sum", {"": float(self.asked)})]


@pytest.fixture
def others():
    return Others()


@pytest.fixture
def gateway(keep, others):
    running = Live(msgspec.structs.replace(make_service(keep), tallied=others), keep.premises.directory)
    yield running
    others.go.set()
    running.stop()
    assert running.errors == []


def scrape(gateway):
    with gateway.client(None) as client:
        return client.get("/metrics")


def at_once(gateway, others):
    """Many scrapes, all of them begun before the counts come."""
    others.go.clear()
    with ThreadPoolExecutor(ASKING) as pool:
        asked = [pool.submit(scrape, gateway) for _ in range(ASKING)]
        while answering(gateway) < ASKING:
            time.sleep(0.02)
        others.go.set()
        return [one.result() for one in asked]


def answering(gateway):
    """Requests that are being answered."""

    async def count():
        return sum("._handle()" in repr(task) for task in asyncio.all_tasks())

    return asyncio.run_coroutine_threadsafe(count(), gateway._loop).result(20)


def test_scrapes_at_once_share_one_gathering(gateway, others):
    said = at_once(gateway, others)
    assert others.asked == 1
    assert {(answer.status_code, answer.content) for answer in said} == {(200, said[0].content)}
    assert b"modelkeep_asked 1\n" in said[0].content
    assert b"modelkeep_asked 2\n" in scrape(gateway).content, "and the next one is of its own time"


def test_a_gathering_that_fails_fails_for_those_who_waited_for_it(gateway, others):
    others.down = True
    assert {answer.status_code for answer in at_once(gateway, others)} == {503} and others.asked == 1
    others.down = False
    assert scrape(gateway).status_code == 200 and others.asked == 2


def test_who_goes_away_takes_it_from_nobody(gateway, others):
    app = application(gateway.service, Metrics())

    async def one_goes():
        first, second = (asyncio.ensure_future(app(Request(b"GET", b"/metrics", {}, b"", ""))) for _ in range(2))
        while not others.asked:
            await asyncio.sleep(0.01)
        first.cancel()
        await asyncio.sleep(0)
        others.go.set()
        return await second

    answer = asyncio.run_coroutine_threadsafe(one_goes(), gateway._loop).result(20)
    assert answer.status == 200 and others.asked == 1
