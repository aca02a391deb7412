"""Which records share a sync: seen in the frames of the real journal, a frame being one group commit."""

import asyncio
import time

import pytest

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog
from modelkeep.serving.journal import JournalReader, journal_key
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.recorder import GROUP, TURNS, Delivery, Recorder

ORIGIN = "keep.example/audit/one"
PATIENT = AuditLimits(hang=600.0)  # else what waits is committed by itself, on a machine that is slow to have it committed


@pytest.fixture
def house(tmp_path):
    return House(tmp_path)


class House:
    def __init__(self, folder):
        self.files, self.signer = FolderLogFiles(folder), NoteSigner(ORIGIN, bytes(32))
        self.delivery = Delivery()
        self.log = AuditLog(self.files, self.signer, ORIGIN, SystemClock(), deliver=self.delivery, limits=PATIENT)
        self.recorder = Recorder(AuditSeries(lambda: ("one", self.log), SystemClock()), SystemClock())

    def run(self, story):
        async def told():
            self.delivery.loop = asyncio.get_running_loop()
            await story(lambda: self.recorder.write(AuditEntry("predict", "ada", outcome="ok"), b"sealed"))

        asyncio.run(told())
        self.delivery.loop = None
        self.log.stop()
        frames = list(JournalReader(self.files, journal_key(self.signer), ORIGIN).frames())
        return [len(frame.records) for frame in frames[1:-1]]  # without the opening and the closing entry


def test_records_of_one_turn_share_a_sync(house):
    async def story(write):
        await asyncio.gather(*(write() for _ in range(8)))

    assert house.run(story) == [8]


def test_records_that_come_turn_after_turn_share_a_sync(house):
    async def story(write):
        tasks = []
        for _ in range(TURNS):
            tasks += [asyncio.create_task(write()) for _ in range(2)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    assert house.run(story) == [2 * TURNS]


def test_a_group_is_committed_though_more_keep_coming(house, monkeypatch):
    wake = house.log.wake

    def wake_and_see_it_taken():
        wake()
        while house.log._waiting:
            time.sleep(0.001)

    monkeypatch.setattr(house.log, "wake", wake_and_see_it_taken)

    async def story(write):
        tasks = []
        for _ in range(40):
            tasks += [asyncio.create_task(write()) for _ in range(4)]
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    sizes = house.run(story)
    assert sum(sizes) == 160 and sizes[0] <= GROUP + 4 and len(sizes) >= 2


def test_who_asks_alone_waits_for_nobody(house):
    async def story(write):
        for _ in range(20):
            first = asyncio.create_task(write())
            await asyncio.sleep(0)  # it is handed over
            for _ in range(2):  # the next turn has it committed
                await asyncio.sleep(0)
            assert house.recorder._group == house.recorder._turns == 0 and not house.recorder._turning
            await first

    assert house.run(story) == [1] * 20
