"""A sealed source as a ``Reader`` that is read in any order: only the streams that a read touches are decrypted.

Every stream is checked to its end before a byte of it is handed out. Made for kind PIECES, whose streams have 1 MiB. Streams
that a read takes whole are decrypted where they are wanted, by several threads; one of which it takes a part is kept, for the
next read. Where reads go on in order, in one place or in several in turns, the streams that come next are decrypted ahead in
threads of their own, farther the longer it goes on, while the caller works on what came before.
"""

import os
import threading
from bisect import bisect_right
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple
from weakref import WeakSet

import numpy as np

from modelkeep.container.layout import Entry
from modelkeep.container.open import SealedFile
from modelkeep.errors import NotTrusted

KEPT = 16
"""Decrypted streams that are kept, unless so many places are read in turns that more are needed."""
MOST_KEPT = 256
_EACH = 3
"""A read may end in the stream after the one that it begins in, and one is decrypted ahead."""
_ROOM = 1 << 20
"""Bytes of a stream for which that holds; of larger ones fewer are kept, but never fewer than two."""
_MAX_THREADS = 4


class _Kept(NamedTuple):
    """A stream that is kept, once ``done``; its plaintext is at the beginning of ``buffer``."""

    done: Future[None]
    buffer: memoryview


class _Part(NamedTuple):
    """What a read takes of one stream: bytes from ``at`` on, as many as ``into`` has."""

    number: int
    at: int
    into: memoryview


class RangeReader:
    """Safe for threads and forked children. ``read_into`` raises NotTrusted (altered, or past the end), Unavailable, Missing.

    ``places``: in how many places it will be read in turns. It keeps ``_EACH`` streams for each, as long as ``MOST_KEPT`` are
    enough: with fewer than places, every read would decrypt its stream again.
    """

    def __init__(self, sealed: SealedFile, *, places: int = 1) -> None:
        self._sealed, self._entries = sealed, sealed.entries
        self._starts = [entry.offset for entry in self._entries]
        self._largest = max((entry.length for entry in self._entries), default=1)
        self._room = max(2, min(max(KEPT, _EACH * places), MOST_KEPT) * _ROOM // max(_ROOM, self._largest))
        self._threads = min(_MAX_THREADS, len(os.sched_getaffinity(0)))
        self._begin()
        _READERS.add(self)

    def _begin(self) -> None:
        """Keep nothing, and have new threads: a forked child would wait for ever for those of its parent."""
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._free: list[memoryview] = []
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._threads, "modelkeep-ahead")
        self._runs: OrderedDict[int, int] = OrderedDict()  # where reads may go on: last stream, and how many to go ahead

    @property
    def size(self) -> int:
        """Bytes of the source."""
        return self._sealed.source_size

    def read_into(self, offset: int, into: memoryview) -> None:
        """Fill ``into`` from ``offset``."""
        if offset < 0 or offset + into.nbytes > self.size:
            raise NotTrusted(f"{self.size} bytes end before {offset} + {into.nbytes}: the data is truncated")
        if offset < len(self._sealed.head):
            head = self._sealed.head[offset : offset + into.nbytes]
            into[: len(head)] = head
            into, offset = into[len(head) :], offset + len(head)
        if not into.nbytes or self._at_hand(offset, into):
            return
        parts = self._parts(offset, into)
        with self._lock:
            kept, direct = dict[int, _Kept](), deque[_Part]()
            for part in parts:
                if part.number in self._kept or part.into.nbytes < self._entries[part.number].length:
                    kept[part.number] = self._ask(part.number)
                else:
                    direct.append(part)
            self._go_ahead(parts[0].number, parts[-1].number)
            for number in kept:  # what is wanted now is let go last
                self._kept.move_to_end(number)
            self._let_go()
        self._decrypt_all(direct)
        for part in parts:
            if part.number in kept:
                self._copy(kept[part.number], part)

    def _at_hand(self, offset: int, into: memoryview) -> bool:
        """Fill ``into``, if it goes on in a stream that is kept: many reads are small, and this is half the work of one."""
        number = bisect_right(self._starts, offset) - 1
        at = offset - self._starts[number]
        if at + into.nbytes > self._entries[number].length:
            return False
        with self._lock:
            kept = self._kept.get(number)
            if kept is None or number not in self._runs or not kept.done.done() or kept.done.exception():
                return False
            self._kept.move_to_end(number)
            into[:] = kept.buffer[at : at + into.nbytes]
        return True

    def _parts(self, offset: int, into: memoryview) -> list[_Part]:
        """What a read takes of each stream, in order."""
        found, number = list[_Part](), bisect_right(self._starts, offset) - 1
        while into.nbytes:
            at = offset - self._starts[number]
            size = min(into.nbytes, self._entries[number].length - at)
            if size:  # a stream may have no bytes
                found.append(_Part(number, at, into[:size]))
            into, offset, number = into[size:], offset + size, number + 1
        return found

    def _go_ahead(self, first: int, last: int) -> None:
        """Have decrypted what follows a read of streams ``first`` to ``last``, if it goes on where another one ended."""
        before = first if first in self._runs else first - 1
        ahead = self._runs.pop(before, 0)
        if ahead and last > before:
            ahead = 2 * ahead
        self._runs[last] = ahead = min(max(1, ahead), max(1, self._room // 2))
        while len(self._runs) > self._room:
            self._runs.popitem(last=False)
        if ahead == 1 or last - first >= self._room // 2:  # it goes nowhere yet; it keeps all threads busy by itself
            return
        places = sum(other > 1 for other in self._runs.values())
        ahead = min(ahead, self._room // places - _EACH + 1)
        for later in range(last + 1, min(last + 1 + ahead, len(self._entries))):
            self._ask(later)
            self._kept.move_to_end(later)

    def _ask(self, number: int) -> _Kept:
        """Have a stream decrypted, unless it is already; one that failed again, as the store may answer by now.

        Buffers are used again: fresh memory costs as much as to decrypt into it.
        """
        kept = self._kept.get(number)
        if kept is None or (kept.done.done() and kept.done.exception()):
            entry = self._entries[number]
            buffer = self._free.pop() if self._free else np.empty(self._largest, np.uint8).data
            self._kept[number] = kept = _Kept(self._pool.submit(self._decrypt, entry, buffer[: entry.length]), buffer)
        return kept

    def _let_go(self) -> None:
        while len(self._kept) > self._room:
            _, old = self._kept.popitem(last=False)
            if old.done.done():  # nobody writes to it any more
                self._free.append(old.buffer)

    def _copy(self, kept: _Kept, part: _Part) -> None:
        end = part.at + part.into.nbytes
        kept.done.result()
        with self._lock:
            if self._kept.get(part.number) is kept:  # else its buffer may hold another stream by now
                part.into[:] = kept.buffer[part.at : end]
                return
        entry = self._entries[part.number]
        plain = np.empty(entry.length, np.uint8).data
        self._decrypt(entry, plain)
        part.into[:] = plain[part.at : end]

    def _decrypt_all(self, work: deque[_Part]) -> None:
        """Decrypt whole streams to where they are wanted: this thread, and as many others as have the time."""
        helpers = [self._pool.submit(self._drain, work) for _ in range(min(self._threads - 1, len(work) - 1))]
        try:
            self._drain(work)
        finally:
            work.clear()
            for helper in helpers:  # whoever has begun writes to the caller's buffer, so it is waited for
                if not helper.cancel():
                    helper.exception()
        for helper in helpers:
            if not helper.cancelled():
                helper.result()

    def _drain(self, work: deque[_Part]) -> None:
        while True:
            try:
                part = work.popleft()
            except IndexError:
                return
            self._decrypt(self._entries[part.number], part.into)

    def _decrypt(self, entry: Entry, into: memoryview) -> None:
        self._sealed.read_streams([entry], into, threads=1)


def _begin_all() -> None:
    for reader in tuple(_READERS):
        reader._begin()


_READERS: WeakSet[RangeReader] = WeakSet()
os.register_at_fork(after_in_child=_begin_all)  # workers of torch's DataLoader are forked from whoever opened the data
