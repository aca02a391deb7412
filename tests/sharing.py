"""An owner of shared evidence in a thread, and workers linked to it by queues: both are the real ones."""

import threading
import time
from collections import deque

import numpy as np

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.state.memory import MemoryAllowances
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid, Missing, Unavailable
from modelkeep.extraction.guard import Guard
from modelkeep.workflows.evidence import OwnEvidence, Position
from modelkeep.workflows.owner import Owner
from modelkeep.workflows.watch import Observation
from modelkeep.workflows.worker import SharedEvidence

ONE, TWO = ReleaseRef("risk", 1), ReleaseRef("risk", 2)
FEATURES = 4


def told(x):
    """The model: three classes by the first two features."""
    logits = np.stack([x[:, 0], x[:, 1], -x[:, 0]], axis=1)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def answer(at, subject, x, instance="1-gateway-a"):
    x = np.atleast_2d(np.asarray(x, np.float32))
    return Observation(at, subject, x, told(x.astype(np.float64)), instance)


class Log:
    """What the audit logs hold, as ``History`` tells it. ``published``: by instance, how many are under a checkpoint."""

    def __init__(self):
        self.records, self.published, self.forgotten, self.calibrated = {}, {}, [], []

    def write(self, one):
        self.records.setdefault(one.instance, []).append(one)

    def publish(self):
        self.published = {instance: records[-1].at + 1 for instance, records in self.records.items()}

    def cases(self):
        return []

    def sizes(self):
        return dict(self.published)

    def of(self, ref):
        assert ref == ONE
        for instance, size in sorted(self.published.items()):
            yield from (one for one in self.records[instance] if one.at < size)

    def later(self, ref, taken, _logs=None):
        for instance, size in sorted(self.published.items()):
            first = taken.get(instance, 0)
            if size > first:
                yield from (one for one in self.records[instance] if first <= one.at < size)
                yield Position(instance, size)

    def calibrations(self, ref):
        return [one for one in self.calibrated if one.ref == ref]

    def reviews(self, _subject):
        return []

    def forget(self, subject):
        self.forgotten.append(subject)


class Wire:
    """One link: what the owner sends reaches the worker at once unless it is held."""

    def __init__(self, house, shared):
        self.house, self.shared, self.held, self.sent, self.cut = house, shared, None, deque(), False

    def send(self, frame):
        if self.held is not None:
            self.held.append(frame)
        elif not self.cut:
            self.shared.received(frame)

    def up(self, frame):
        if self.cut:
            raise Unavailable("gone")
        self.sent.append(frame)
        self.house.inbox.append((self, frame))


class OwnersHouse:
    """An owner in a thread of its own, and workers linked to it."""

    def __init__(self, profile=None, log=None):
        self.profile, self.log = profile, log or Log()
        self.inbox, self.jobs, self.calls = deque(), deque(), deque()
        self.reports, self.finished, self.errors = [], 0, []
        self.wires = []
        self._stop = None

    def start(self, *, lost=False):
        self.evidence = OwnEvidence(self.log, Guard)
        self.owner = Owner(
            self.evidence,
            self._open,
            self._finish,
            clock=SystemClock(),
            begin=self.jobs.append,
            allowances=MemoryAllowances(lost=lost),
            report=self.reports.append,
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(self.owner, self._stop), daemon=True)
        self._thread.start()
        return self

    def _open(self, ref):
        if ref != ONE:
            raise Missing(f"{ref} has no extraction profile")
        return self.profile

    def _finish(self):
        self.finished += 1
        self.log.publish()

    def _run(self, owner, stop):
        while not stop.is_set():
            while self.calls:
                self.calls.popleft()()
            while self.inbox:
                wire, frame = self.inbox.popleft()
                try:
                    owner.received(wire, frame)
                except Invalid as cause:
                    self.errors.append(str(cause))
                    wire.cut = True
                    owner.left(wire)
                    wire.shared.lost()
            while self.jobs:
                self.jobs.popleft()()
            owner.round()
            time.sleep(0.001)

    def die(self):
        """As kill -9 of the owner."""
        self._stop.set()
        self._thread.join()
        for wire in self.wires:
            wire.cut = True
            wire.shared.lost()
        self.inbox.clear()
        self.jobs.clear()
        self.calls.clear()
        self.wires = []

    def stop(self):
        self._stop.set()
        self._thread.join()

    def worker(self, workers=3, clock=None):
        shared = SharedEvidence(clock or SystemClock(), workers=workers, publish=self.log.publish)
        self.link(shared)
        return shared

    def link(self, shared):
        wire = Wire(self, shared)
        self.wires.append(wire)
        self.calls.append(lambda: self.owner.joined(wire))
        shared.connected(wire.up)
        return wire


def soon(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)
