"""Frames between the processes of one gateway, over pairs of Unix sockets that no path leads to.

A frame is its length in four bytes, big-endian, and that many bytes. A pair is made by who wants to talk; its other end is
handed on through the process that started both. So nobody else can connect, and there is no file to guard.
"""

import contextlib
import selectors
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable

from modelkeep.errors import Invalid, ModelkeepError, Unavailable

_LENGTH = struct.Struct(">I")
_CHUNK = 256 << 10
MAX_WAITING = 64 << 20
"""Bytes that may wait for the other side to read them; with more it is cut off."""
_WRITE_SECONDS = 1
_AGAIN_SECONDS = 0.1
_GONE = "the process that keeps the extraction evidence is gone"


class Frames:
    """Cuts a stream of bytes into frames of at most ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The frames that ``data`` completes. Raises Invalid: a frame is said to be larger than may be."""
        held = self._held
        held += data
        out, at = [], 0
        while len(held) - at >= _LENGTH.size:
            length = _LENGTH.unpack_from(held, at)[0]
            if length > self._most:
                raise Invalid(f"a frame of {length} bytes is larger than {self._most}")
            end = at + _LENGTH.size + length
            if len(held) < end:
                break
            out.append(bytes(memoryview(held)[at + _LENGTH.size : end]))
            at = end
        if at:
            self._held = held[at:]
        return out


def framed(frame: bytes) -> bytes:
    """A frame as it goes over the wire."""
    return _LENGTH.pack(len(frame)) + frame


class ServedLink:
    """The server's end of one pair. Its methods are for the thread of its ``LinkServer``."""

    def __init__(self, end: socket.socket, most: int) -> None:
        self.end, self.frames = end, Frames(most)
        self._out: deque[bytes] = deque()
        self._waiting = 0
        self.closed = False

    def send(self, frame: bytes) -> None:
        """Send a frame when the other side reads; who does not read is cut off."""
        self._out.append(framed(frame))
        self._waiting += len(frame)
        if self._waiting > MAX_WAITING:
            self.closed = True
        self.flush()

    def flush(self) -> None:
        """Write what can be written now."""
        try:
            while self._out and not self.closed:
                sent = self.end.send(self._out[0])
                self._waiting -= sent
                if sent < len(self._out[0]):
                    self._out[0] = self._out[0][sent:]
                else:
                    self._out.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    @property
    def events(self) -> int:
        """What to wait for."""
        return selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)


class LinkServer:
    """Serves any number of links in one thread. ``add`` and ``wake`` may be called from others."""

    def __init__(
        self,
        most: int,
        *,
        joined: Callable[[ServedLink], None],
        received: Callable[[ServedLink, bytes], None],
        left: Callable[[ServedLink], None],
        report: Callable[[str], None],
    ) -> None:
        """``most``: bytes of a frame; ``received``: may raise, and its link is cut off then; ``left``: told once of each."""
        self._most, self._joined, self._received, self._left, self._report = most, joined, received, left, report
        self._selector = selectors.DefaultSelector()
        self._links: set[ServedLink] = set()
        self._new: deque[socket.socket] = deque()
        self._bell, self._button = socket.socketpair()
        self._bell.setblocking(False)
        self._button.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ)

    def add(self, end: socket.socket) -> None:
        """Serve one more."""
        self._new.append(end)
        self.wake()

    def wake(self) -> None:
        """End the wait of ``turn``."""
        with contextlib.suppress(BlockingIOError):  # it is awake already
            self._button.send(b"!")

    def turn(self, seconds: float) -> None:
        """Wait at most ``seconds`` for something to happen, and deal with it."""
        for link in list(self._links):
            if link.closed:
                self._drop(link)
            else:
                self._selector.modify(link.end, link.events, link)
        for key, events in self._selector.select(seconds):
            if key.data is None:
                self._bell.recv(_CHUNK)
                continue
            if events & selectors.EVENT_WRITE:
                key.data.flush()
            if events & selectors.EVENT_READ:
                self._read(key.data)
        while self._new:
            self._take(self._new.popleft())

    def close(self) -> None:
        """Cut everybody off, without telling."""
        for link in self._links:
            link.end.close()
        self._links.clear()
        self._selector.close()
        self._bell.close()
        self._button.close()

    def _take(self, end: socket.socket) -> None:
        end.setblocking(False)
        link = ServedLink(end, self._most)
        self._links.add(link)
        self._selector.register(end, selectors.EVENT_READ, link)
        self._joined(link)

    def _read(self, link: ServedLink) -> None:
        try:
            data = link.end.recv(_CHUNK)
            if not data:
                link.closed = True
            for frame in link.frames.feed(data):
                self._received(link, frame)
        except BlockingIOError:
            return
        except OSError:
            link.closed = True
        except ModelkeepError as cause:
            self._report(f"a worker was cut off: {cause}")
            link.closed = True

    def _drop(self, link: ServedLink) -> None:
        self._selector.unregister(link.end)
        link.end.close()
        self._links.discard(link)
        self._left(link)


class LinkClient:
    """Keeps one link to the server up, in a thread of its own: makes a pair, hands an end on, and again when it breaks."""

    def __init__(
        self,
        offer: Callable[[socket.socket], None],
        most: int,
        *,
        connected: Callable[[Callable[[bytes], None]], None],
        received: Callable[[bytes], None],
        lost: Callable[[], None],
        report: Callable[[str], None],
    ) -> None:
        """``offer``: brings an end of a pair to the server, raising OSError; ``connected``: told once the server has said
        something, with what sends a frame (from any thread; it raises Unavailable); it and ``received`` may raise, which
        ends the link."""
        self._offer, self._most, self._connected = offer, most, connected
        self._received, self._lost, self._report = received, lost, report
        self._told = ""
        self._stop = threading.Event()
        self._end: socket.socket | None = None
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="evidence-link", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the link and the thread."""
        self._stop.set()
        self._cut(self._end)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            ours, theirs = socket.socketpair()
            with ours:
                try:
                    with theirs:
                        self._offer(theirs)
                    self._serve(ours)
                except OSError:
                    pass  # gone: another try
                except ModelkeepError as cause:
                    if str(cause) != self._told:
                        self._told = str(cause)
                        self._report(f"the link to the owner of the extraction evidence was cut: {cause}")
                finally:
                    self._end = None
                    self._lost()
            self._stop.wait(_AGAIN_SECONDS)

    def _serve(self, ours: socket.socket) -> None:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _WRITE_SECONDS, 0))
        frames, greeted = Frames(self._most), False
        self._end = ours
        while not self._stop.is_set():
            data = ours.recv(_CHUNK)
            if not data:
                return
            for frame in frames.feed(data):
                self._received(frame)
                if not greeted:
                    greeted = True
                    self._connected(lambda frame: self._send(ours, frame))

    def _send(self, ours: socket.socket, frame: bytes) -> None:
        try:
            with self._writing:
                ours.sendall(framed(frame))
        except OSError:  # also after a second without room: what was written is no whole frame
            self._cut(ours)
            raise Unavailable(_GONE) from None

    @staticmethod
    def _cut(end: socket.socket | None) -> None:
        if end is not None:
            with contextlib.suppress(OSError):  # closed already
                end.shutdown(socket.SHUT_RDWR)
