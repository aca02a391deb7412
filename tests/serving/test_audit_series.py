"""A process's audit logs one after the other: no record is lost, answered twice, or answered by another log than has it."""

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.adapters.clock import SystemClock
from modelkeep.crypto.notes import NoteSigner, open_checkpoint
from modelkeep.errors import Unavailable
from modelkeep.ledger.tiles import TrustedTiles
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog, verify_audit
from modelkeep.serving.journal import decode_entry
from modelkeep.serving.series import AuditSeries


class Clock(SystemClock):
    """The clock of the series, which a test moves."""

    ahead = 0.0

    def monotonic(self):
        return super().monotonic() + self.ahead


class Shelf:
    """Where the logs of one series lie."""

    def __init__(self, period=60.0, broken=()):
        self.clock, self.logs, self.broken = Clock(), {}, set(broken)
        self.series = AuditSeries(self.begin, self.clock, period=period)

    def begin(self):
        number = len(self.logs) + 1
        if number in self.broken:
            self.broken.discard(number)
            raise Unavailable("the disk is full")
        instance, files = f"gw-{number}", MemoryLogFiles()
        origin = f"keep/audit/{instance}"
        signer = NoteSigner(origin, bytes([number]) * 32)
        log = AuditLog(files, signer, origin, SystemClock(), limits=AuditLimits(hang=30.0))
        self.logs[instance] = files, signer.vkey, origin
        return instance, log

    def after(self, seconds):
        self.clock.ahead += seconds
        return self.series.roll()

    def requests(self, instance):
        files, vkey, origin = self.logs[instance]
        checkpoint = open_checkpoint(files.read("checkpoint"), vkey, origin)
        entries = TrustedTiles(files, checkpoint).entries(0, checkpoint.size)
        return [decode_entry(data, index).request for index, data in enumerate(entries)]


def ask(series, request):
    """The instance and index that a record is answered with."""
    told, done = [], threading.Event()

    def hear(result):
        told.append(result)
        done.set()

    instance = series.submit(AuditEntry("predict", request=request), b"body", hear)
    assert done.wait(20)
    return instance, told[0]


def test_a_log_ends_with_its_period_and_the_next_goes_on():
    shelf = Shelf()
    first = ask(shelf.series, "one")
    assert shelf.after(59.0) == b"" and ask(shelf.series, "two")[0] == first[0] == "gw-1"
    final = shelf.after(2.0)
    assert final.startswith(b"keep/audit/gw-1\n") and ask(shelf.series, "three") == ("gw-2", 1)
    assert shelf.requests("gw-1") == ["", "one", "two", ""]  # between its opening and its closing entry
    assert verify_audit(*shelf.logs["gw-1"]).closed
    shelf.series.stop()
    assert verify_audit(*shelf.logs["gw-2"]).closed and shelf.after(1000.0) == b""


def test_an_idle_log_is_not_ended_and_without_a_period_none_is():
    shelf = Shelf()
    assert shelf.after(100.0) == b"" and list(shelf.logs) == ["gw-1"]
    endless = Shelf(period=0.0)
    ask(endless.series, "one")
    assert endless.after(1e9) == b"" and list(endless.logs) == ["gw-1"]
    shelf.series.stop(), endless.series.stop()


def test_when_the_next_cannot_be_begun_this_one_goes_on():
    shelf = Shelf(broken={2})
    ask(shelf.series, "one")
    with pytest.raises(Unavailable, match="full"):
        shelf.after(61.0)
    assert ask(shelf.series, "two") == ("gw-1", 2)
    assert shelf.series.roll() == b"", "it is not tried all the time"
    assert shelf.after(61.0) and ask(shelf.series, "three") == ("gw-2", 1)
    shelf.series.stop()


def test_records_keep_coming_while_logs_end():
    shelf, answered, stop = Shelf(), [], threading.Event()

    def client(name):
        number = 0
        while not stop.is_set():
            request = f"{name}-{number}"
            answered.append((*ask(shelf.series, request), request))
            number += 1

    clients = [threading.Thread(target=client, args=(name,)) for name in "abc"]
    for each in clients:
        each.start()
    for _ in range(8):
        before = len(answered)
        while len(answered) < before + 20:
            assert any(each.is_alive() for each in clients)
            threading.Event().wait(0.001)
        assert shelf.after(61.0)
    stop.set()
    for each in clients:
        each.join()
    shelf.series.stop()
    kept = {instance: shelf.requests(instance) for instance in shelf.logs}
    assert len(kept) == 9 and all(verify_audit(*log).closed for log in shelf.logs.values())
    assert all(kept[instance][index] == request for instance, index, request in answered)
    assert sum(map(len, kept.values())) == len(answered) + 2 * len(kept), "each record stands once"


def test_stopping_and_ending_a_period_at_once_close_each_log_once():
    shelf = Shelf()
    ask(shelf.series, "one")
    shelf.clock.ahead += 61.0
    ends = [threading.Thread(target=end) for end in (shelf.series.roll, shelf.series.stop, shelf.series.stop)]
    for each in ends:
        each.start()
    for each in ends:
        each.join()
    assert all(verify_audit(*log).closed for log in shelf.logs.values())
    with pytest.raises(Unavailable):
        shelf.series.submit(AuditEntry("predict"), b"", print)
