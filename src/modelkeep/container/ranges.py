"""A sealed source as a ``Reader`` that is read in any order: only the streams that a read touches are decrypted.

Every stream is checked to its end before a byte of it is handed out. Made for kind PIECES, whose streams have 1 MiB; what is
read in order is decrypted ahead in threads of their own, farther the longer it goes on, while the caller works on what came
before.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from modelkeep.container.layout import Entry
from modelkeep.container.open import SealedFile
from modelkeep.errors import NotTrusted

KEPT = 32
"""Decrypted streams that are kept: half of them for as many places that are read in turns, half for what is read ahead."""
_FARTHEST = KEPT // 2
_MAX_THREADS = 4


class RangeReader:
    """Thread-safe. ``read_into`` raises NotTrusted (altered, or past the end), Unavailable, Missing (the store)."""

    def __init__(self, sealed: SealedFile) -> None:
        self._sealed, self._entries = sealed, sealed.entries
        self._starts = [entry.offset for entry in self._entries]
        self._kept: OrderedDict[int, Future[memoryview]] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(min(_MAX_THREADS, len(os.sched_getaffinity(0))), "modelkeep-ahead")
        self._last, self._ahead = -2, 1

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return self._sealed.source_size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``."""
        if offset < 0 or offset + into.nbytes > self.size:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        if offset < len(self._sealed.head):
            part = self._sealed.head[offset : offset + into.nbytes]
            into[: len(part)] = part
            into, offset = into[len(part) :], offset + len(part)
        while into.nbytes:
            number = bisect_right(self._starts, offset) - 1
            entry = self._entries[number]
            whole = self._covered(number, offset, into.nbytes)
            if whole:
                size = whole[-1].offset + whole[-1].length - offset
                self._sealed.read_streams(whole, into[:size])
                self._last = number + len(whole) - 1
            else:
                at = offset - entry.offset
                size = min(into.nbytes, entry.length - at)
                into[:size] = self._stream(number)[at : at + size]
            into, offset = into[size:], offset + size

    def _covered(self, number: int, offset: int, size: int) -> list[Entry]:
        """The streams from ``number`` on that a read of ``size`` bytes at ``offset`` takes whole, and that nobody has yet."""
        found: list[Entry] = []
        if offset != self._starts[number] or number in self._kept:
            return found
        for entry in self._entries[number : number + size // max(1, self._entries[number].length) + 1]:
            if entry.offset + entry.length > offset + size or entry.id - 1 in self._kept:
                break
            found.append(entry)
        return found

    def _stream(self, number: int) -> memoryview:
        with self._lock:
            found = self._ask(number)
            self._kept.move_to_end(number)
            if number == self._last + 1:  # in order: the next ones will be asked for, too
                self._ahead = min(2 * self._ahead, _FARTHEST)
                for later in range(number + 1, min(number + 1 + self._ahead, len(self._entries))):
                    self._ask(later)
            elif number != self._last:
                self._ahead = 1
            self._last = number
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return found.result()

    def _ask(self, number: int) -> "Future[memoryview]":
        if number not in self._kept:
            self._kept[number] = self._pool.submit(self._decrypted, self._entries[number])
        return self._kept[number]

    def _decrypted(self, entry: Entry) -> memoryview:
        plain = np.empty(entry.length, np.uint8).data
        self._sealed.read_streams([entry], plain, threads=1)
        return plain.toreadonly()
