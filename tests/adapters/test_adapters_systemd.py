"""What systemd is told, also when it does not listen."""

import socket

import pytest

from modelkeep.adapters.systemd import Notifier


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(str(tmp_path / "notify"))
        end.setblocking(False)
        yield end, str(tmp_path / "notify")


def heard(end):
    found = []
    try:
        while True:
            found.append(end.recv(4096))
    except BlockingIOError:
        return found


def test_one_that_does_not_read_holds_nobody_up_and_hears_later_that_it_is_ready(systemd):
    end, address = systemd
    now = iter(range(1000))
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "1000000"}, lambda: float(next(now)))
    for _ in range(300):  # a socket holds some hundred datagrams at most (net.unix.max_dgram_qlen)
        notifier.beat()
    notifier.ready("serving")
    assert set(heard(end)) == {b"WATCHDOG=1"}
    notifier.ready("serving")
    notifier.ready("serving")
    assert heard(end) == [b"READY=1\nSTATUS=serving"]


def test_without_systemd_nothing_is_said():
    notifier = Notifier({})
    notifier.ready("serving")
    notifier.beat()
    notifier.stopping()
