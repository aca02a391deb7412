"""A keep on real adapters in a temporary folder, whose every durable step can be the last one."""

import itertools
import json
import struct

import numpy as np

from modelkeep.adapters.blobs.memory import MemoryBlobs
from modelkeep.adapters.claims import FolderClaims
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.custody import keys
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.keyring import releases_origin
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.workflows.registry import Desk, KeysOpener, Registry

ORIGIN = "keep.example"


class Cut(BaseException):
    """The process ends here: nothing in modelkeep may catch it."""


class Faults:
    """Counts durable steps; at step ``at`` it raises ``error``, before or (``after``) once the step has happened."""

    def __init__(self):
        self.count, self.at, self.after, self.error = 0, 0, False, Cut

    def arm(self, at, *, after=False, error=Cut):
        self.count, self.at, self.after, self.error = 0, at, after, error

    def step(self, act):
        self.count += 1
        if self.count == self.at and not self.after:
            raise self.error("the disk is full")
        result = act()
        if self.count == self.at:
            raise self.error("the disk is full")
        return result


class Faulty:
    """Any port, whose methods named in ``steps`` are counted."""

    def __init__(self, port, faults, *steps):
        self._port, self._faults, self._steps = port, faults, steps

    def __getattr__(self, name):
        method = getattr(self._port, name)
        return (lambda *a, **k: self._faults.step(lambda: method(*a, **k))) if name in self._steps else method


class StillClock:
    """A clock that moves when it is told to sleep."""

    def __init__(self):
        self.seconds = 1_800_000_000.0

    def now_ns(self):
        return int(self.seconds * 1e9)

    def monotonic(self):
        return self.seconds

    def sleep(self, seconds):
        self.seconds += seconds


class CountingEntropy:
    """Tokens that differ; each instance counts from a place of its own."""

    _starts = itertools.count(1)

    def __init__(self):
        self._numbers = itertools.count(next(self._starts) << 32)

    def token(self, size):
        return next(self._numbers).to_bytes(size)


class House:
    """One keep. ``desk()`` is a fresh process's view of it; ``faults`` strike all of its ports."""

    def __init__(self, root, ring):
        self.root, self.ring, self.faults = root, ring, Faults()
        self.records, self.blobs, self.clock = MemoryRecords(), MemoryBlobs(), StillClock()
        self.files = FolderLogFiles(root / "log")
        self.signer = ring.note_signer(keys.LOG_SIGNING, releases_origin(ORIGIN))
        ReleasesLog(self.files, self.signer, releases_origin(ORIGIN)).create()

    @property
    def trust(self):
        return self.ring.trust

    def registry(self, *, keyless=False):
        files = Faulty(self.files, self.faults, "write", "write_all", "delete")
        view = LogView(files, self.trust.releases_log, releases_origin(ORIGIN))
        records, blobs = Faulty(self.records, self.faults, "commit"), Faulty(self.blobs, self.faults, "put", "delete")
        return Registry(records, blobs, view, EvidenceBook(self.trust), () if keyless else [KeysOpener(lambda: [self.keys])])

    @property
    def keys(self):
        return RingKeys(keys.MODEL_KEK, lambda: self.ring)

    def desk(self):
        registry = self.registry()
        log = ReleasesLog(registry.view._files, self.signer, releases_origin(ORIGIN))
        claims = FolderClaims(self.root / "claims")
        return Desk(registry, log, self.ring.statement_signer(), self.keys, claims, self.clock, CountingEntropy())


def safetensors(seed=0):
    data = np.random.default_rng(seed).normal(size=(8, 4)).astype("<f4").tobytes()
    head = json.dumps({"w": {"dtype": "F32", "shape": [8, 4], "data_offsets": [0, len(data)]}}).encode()
    return struct.pack("<Q", len(head)) + head + data
