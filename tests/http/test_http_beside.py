"""A server does not go on without one of its parts."""

import asyncio
import threading

import msgspec
import pytest
from gateway_support import Live, make_keep, make_service
from http_support import echo

from modelkeep.errors import Unavailable
from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import Server
from modelkeep.http.serve import beside, listening
from modelkeep.workflows.service import Listen


async def broken():
    await asyncio.sleep(0)
    raise KeyError("the secret")


def test_work_that_dies_cuts_off_what_is_done_beside_it_and_says_where():
    cleaned = []

    async def main():
        async with beside("the work", broken()):
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)  # whoever is cut off may still clean up
                cleaned.append(True)

    with pytest.raises(Unavailable, match=r"^the work died of KeyError in .*broken:\d+$"):
        asyncio.run(main())
    assert cleaned


def test_work_that_ends_is_missed_too():
    async def main():
        async with beside("the work", asyncio.sleep(0)):
            await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="the work has ended"):
        asyncio.run(main())


def test_work_ends_with_what_is_done_beside_it():
    async def main():
        async with beside("the work", asyncio.Event().wait()):
            await asyncio.sleep(0)
        raise LookupError("whatever comes later")

    with pytest.raises(LookupError):
        asyncio.run(main())


def test_a_server_that_takes_no_connection_any_more_ends():
    class Deaf:
        def __init__(self, loop):
            self.loop = loop

        def __getattr__(self, name):
            return getattr(self.loop, name)

        async def sock_accept(self, _bound):
            raise ZeroDivisionError

    async def main():
        server = Server(echo, bad_request, Listen(port=0), asyncio.get_running_loop())
        server.loop = Deaf(server.loop)
        async with listening(server), asyncio.timeout(30):
            await asyncio.Event().wait()

    with pytest.raises(Unavailable, match="the taking of connections died of ZeroDivisionError"):
        asyncio.run(main())


def test_a_gateway_whose_handing_over_dies_ends_and_still_signs_its_last_checkpoint(tmp_path, trained):
    notes, dead = [], threading.Event()

    def hand_over(note):
        notes.append(note)
        if not dead.is_set():
            dead.set()
            raise ZeroDivisionError

    service = make_service(make_keep(tmp_path / "keep", trained))
    running = Live(msgspec.structs.replace(service, handover=hand_over), tmp_path / "keep")
    running._thread.join(60)
    assert not running._thread.is_alive() and dead.is_set()
    assert isinstance(running._failed, Unavailable) and "died of ZeroDivisionError" in str(running._failed)
    assert len(notes) == 2, "the one that it died of, and the last one"
