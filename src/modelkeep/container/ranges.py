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
from typing import NamedTuple

import numpy as np

from modelkeep.container.layout import Entry
from modelkeep.container.open import SealedFile
from modelkeep.errors import NotTrusted

KEPT = 16
"""Decrypted streams that are kept: half of them for as many places that are read in turns, half for what is read ahead."""
_ROOM = 16 << 20
"""Bytes that they have together; two are kept however large they are."""
_MAX_THREADS = 4


class _Kept(NamedTuple):
    """A stream that is kept, once ``done``; its plaintext is at the begin of ``buffer``."""

    done: Future[None]
    buffer: memoryview


class RangeReader:
    """Thread-safe. ``read_into`` raises NotTrusted (altered, or past the end), Unavailable, Missing (the store)."""

    def __init__(self, sealed: SealedFile) -> None:
        self._sealed, self._entries = sealed, sealed.entries
        self._starts = [entry.offset for entry in self._entries]
        self._largest = max((entry.length for entry in self._entries), default=1)
        self._room = max(2, min(KEPT, _ROOM // self._largest))
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._free: list[memoryview] = []
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
                self._copy(number, at, into[:size])
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

    def _copy(self, number: int, at: int, into: memoryview) -> None:
        """Fill ``into`` from byte ``at`` of one stream."""
        with self._lock:
            kept = self._ask(number)
            self._kept.move_to_end(number)
            if number == self._last + 1:  # in order: the next ones will be asked for, too
                self._ahead = min(2 * self._ahead, self._room // 2)
                for later in range(number + 1, min(number + 1 + self._ahead, len(self._entries))):
                    self._ask(later)
            elif number != self._last:
                self._ahead = 1
            self._last = number
            self._let_go()
        kept.done.result()
        with self._lock:
            if self._kept.get(number) is kept:  # else its buffer may hold another stream by now
                into[:] = kept.buffer[at : at + into.nbytes]
                return
        entry = self._entries[number]
        plain = np.empty(entry.length, np.uint8).data
        self._sealed.read_streams([entry], plain, threads=1)
        into[:] = plain[at : at + into.nbytes]

    def _ask(self, number: int) -> _Kept:
        """Buffers are used again: fresh memory costs as much as to decrypt into it."""
        if number not in self._kept:
            entry = self._entries[number]
            buffer = self._free.pop() if self._free else np.empty(self._largest, np.uint8).data
            self._kept[number] = _Kept(self._pool.submit(self._decrypt, entry, buffer[: entry.length]), buffer)
        return self._kept[number]

    def _let_go(self) -> None:
        while len(self._kept) > self._room:
            _, old = self._kept.popitem(last=False)
            if old.done.done():  # nobody writes to it any more
                self._free.append(old.buffer)

    def _decrypt(self, entry: Entry, into: memoryview) -> None:
        self._sealed.read_streams([entry], into, threads=1)
