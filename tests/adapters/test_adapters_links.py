"""Frames over socket pairs: whole, bounded, and never waited for by the server."""

import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.adapters import links
from modelkeep.adapters.links import Frames, LinkClient, LinkServer, framed
from modelkeep.errors import Invalid, Unavailable

MOST = 1 << 20


def test_known_answers():
    assert framed(b"abc") == b"\0\0\0\3abc" and framed(b"") == b"\0\0\0\0"
    assert Frames(3).feed(b"\0\0\0\3abc\0\0\0\0\0\0") == [b"abc", b""]


@given(st.lists(st.binary(max_size=40), max_size=8), st.lists(st.integers(1, 30), min_size=1))
def test_however_a_stream_is_cut_its_frames_are_whole(frames, cuts):
    stream, reader, out, at = b"".join(map(framed, frames)), Frames(40), [], 0
    while at < len(stream):
        size = cuts[len(out) % len(cuts)]
        out += reader.feed(stream[at : at + size])
        at += size
    assert out == frames


@pytest.mark.parametrize("length", [41, 1 << 31, (1 << 32) - 1])
def test_a_frame_that_is_too_large_is_refused_before_it_is_read(length):
    with pytest.raises(Invalid, match="larger than 40"):
        Frames(40).feed(struct.pack(">I", length))


class Serving:
    """A server in a thread, which answers every frame with itself."""

    def __init__(self):
        self.joined, self.left, self.reports, self.got = [], [], [], []
        self.server = LinkServer(
            MOST, joined=self._join, received=self._receive, left=self.left.append, report=self.reports.append
        )
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _join(self, link):
        self.joined.append(link)
        link.send(b"hello")

    def _receive(self, link, frame):
        if frame == b"bad":
            raise Invalid("that was bad")
        self.got.append(frame)
        link.send(frame)

    def _run(self):
        while not self._stop.is_set():
            self.server.turn(0.05)

    def stop(self):
        self._stop.set()
        self.server.wake()
        self._thread.join()
        self.server.close()


@pytest.fixture
def serving():
    made = Serving()
    yield made
    made.stop()


def pair(serving):
    ours, theirs = socket.socketpair()
    ours.settimeout(60)
    serving.server.add(theirs)
    assert receive(ours, len(framed(b"hello"))) == framed(b"hello")
    return ours


def receive(end, size):
    data = b""
    while len(data) < size and (more := end.recv(size - len(data))):
        data += more
    return data


def soon(what, seconds=60.0):
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.002)


def test_many_links_are_served_at_once(serving):
    ends = [pair(serving) for _ in range(5)]
    for number, end in enumerate(ends):
        end.sendall(framed(b"from %d" % number) * 3)
    for number, end in enumerate(ends):
        assert receive(end, 10 * 3) == framed(b"from %d" % number) * 3
        end.close()
    soon(lambda: len(serving.left) == 5)
    assert serving.reports == []


@pytest.mark.parametrize("junk", [b"\xff" * 8, struct.pack(">I", MOST + 1), framed(b"bad"), framed(b"ok") + framed(b"bad")])
def test_who_sends_junk_is_cut_off_and_the_others_go_on(serving, junk):
    good, evil = pair(serving), pair(serving)
    evil.sendall(junk)
    soon(lambda: len(serving.left) == 1)
    while evil.recv(100):
        pass
    good.sendall(framed(b"still here"))
    assert receive(good, 14) == framed(b"still here")
    assert len(serving.reports) == 1 and "cut off" in serving.reports[0]
    good.close()
    evil.close()


def test_half_a_frame_and_the_end_is_the_end(serving):
    end = pair(serving)
    end.sendall(framed(b"whole") + framed(b"cut off")[:5])
    end.close()
    soon(lambda: serving.left == serving.joined)
    assert serving.got == [b"whole"] and serving.reports == []


def test_a_slow_reader_is_cut_off_and_holds_nobody_up(serving, monkeypatch):
    monkeypatch.setattr(links, "MAX_WAITING", 4 * MOST)
    slow, good = pair(serving), pair(serving)
    slow.settimeout(60)
    sent = 0
    with pytest.raises(OSError):  # it reads nothing, so what it asks for piles up, and at last it is gone
        while sent < 100:
            slow.sendall(framed(bytes(MOST // 2)))
            sent += 1
            good.sendall(framed(b"ping"))
            assert receive(good, 8) == framed(b"ping")
    soon(lambda: len(serving.left) == 1)
    good.close()
    slow.close()


class Worker:
    """A client that keeps what it heard."""

    def __init__(self, offer):
        self.events, self.send = [], None
        self.client = LinkClient(
            offer, MOST, connected=self._connected, received=self._received, lost=self._lost, report=self.events.append
        )

    def _connected(self, send):
        self.events.append("connected")
        self.send = send

    def _received(self, frame):
        if frame == b"nonsense":
            raise Invalid("nonsense")
        self.events.append(frame)

    def _lost(self):
        self.events.append("lost")


def test_a_client_links_itself_again(serving):
    offered = []

    def offer(end):
        if len(offered) == 1:
            offered.append(None)
            raise BrokenPipeError
        offered.append(end)
        serving.server.add(socket.socket(fileno=os.dup(end.fileno())))

    worker = Worker(offer)
    worker.client.start()
    soon(lambda: worker.send is not None)
    assert worker.events[:2] == [b"hello", "connected"]
    worker.send(b"one")
    soon(lambda: b"one" in worker.events)
    old = worker.send
    worker.send(b"bad")  # the server cuts it off
    soon(lambda: worker.events.count("connected") == 2)
    assert len(offered) >= 3 and worker.events.count("lost") >= 2
    with pytest.raises(Unavailable):
        old(b"two")
    worker.send(b"nonsense")
    soon(lambda: worker.events.count("connected") == 3)
    worker.client.stop()
    assert worker.events[-1] == "lost" and len(serving.left) >= 2


def test_a_link_that_nobody_answers_is_not_taken_for_one():
    worker = Worker(lambda _end: None)
    worker.client.start()
    soon(lambda: worker.events.count("lost") >= 2)
    worker.client.stop()
    assert "connected" not in worker.events


def test_a_server_that_does_not_read_fails_a_send_in_bounded_time():
    held = []

    def offer(end):
        mine = socket.socket(fileno=os.dup(end.fileno()))
        held.append(mine)
        mine.sendall(framed(b"hello"))

    worker = Worker(offer)
    worker.client.start()
    soon(lambda: worker.send is not None)
    with pytest.raises(Unavailable):
        while True:
            worker.send(bytes(MOST))
    worker.client.stop()
    for one in held:
        one.close()


def test_a_killed_server_is_noticed_at_once():
    program = (
        "import socket, sys, time\n"
        "end = socket.socket(fileno=int(sys.argv[1]))\n"
        "end.sendall(bytes([0, 0, 0, 5]) + b'hello')\n"
        "time.sleep(60)\n"
    )
    children = []

    def offer(end):
        if not children:
            os.set_inheritable(end.fileno(), True)
            command = [sys.executable, "-c", program, str(end.fileno())]
            children.append(subprocess.Popen(command, pass_fds=[end.fileno()]))

    worker = Worker(offer)
    worker.client.start()
    soon(lambda: worker.send is not None)
    os.kill(children[0].pid, signal.SIGKILL)
    soon(lambda: "lost" in worker.events)
    children[0].wait()
    worker.client.stop()
