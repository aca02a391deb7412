"""A control process of its own, and somebody who opens as many connections to it as he can."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest
from e2e_house import wait_for

from modelkeep.app.processes import find

ROOM, EACH = 40, 8
"""Connections that control holds in all, and from one address."""


@pytest.fixture
def control(cli, tmp_path):
    """Host, port and trust of a control process that has room for few."""
    environment = {
        **os.environ,
        "MODELKEEP_DIR": str(cli.keep),
        "MODELKEEP_PASSPHRASE_FILE": str(cli.passphrase_file),
        "MODELKEEP_CONTROL_PORT": "0",
        "MODELKEEP_CONTROL_MAX_CONNECTIONS": str(ROOM),
        "MODELKEEP_CONTROL_MAX_PER_ADDRESS": str(EACH),
    }
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-m", "modelkeep", "control"], env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: find(cli.keep, "control") is not None, 60, (tmp_path / "log").read_text)
        at = urlsplit(find(cli.keep, "control").url)
        yield at.hostname, at.port, ssl.create_default_context(cafile=str(cli.keep / "tls" / "ca.pem"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0 and "Traceback" not in (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()


class Flood:
    """Holds as many connections as it gets from 127.0.0.1: silent ones, and ones that agreed on TLS and say no more."""

    def __init__(self, host: str, port: int, trust: ssl.SSLContext) -> None:
        self._place, self._trust = (host, port), trust
        self._ended = threading.Event()
        self.held = [0, 0]
        self.turned_away = 0
        self._threads = [threading.Thread(target=self._run, args=(tls,)) for tls in (False, True)]

    def __enter__(self) -> "Flood":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _run(self, tls: bool) -> None:
        held: list[socket.socket] = []
        with contextlib.ExitStack() as at_end:
            while not self._ended.is_set():
                held = [each for each in held if not _closed(each)]
                self.held[tls] = len(held)
                if len(held) >= 2 * ROOM:
                    continue
                try:
                    one = socket.create_connection(self._place, 10)
                    at_end.callback(one.close)
                    if tls:
                        one = self._trust.wrap_socket(one, server_hostname="localhost")
                        at_end.callback(one.close)
                    else:
                        one.sendall(b"\x16\x03\x01\x02")  # a ClientHello begins so, and does not go on
                except OSError:
                    self.turned_away += 1
                else:
                    one.setblocking(False)
                    held.append(one)


def _closed(one: socket.socket) -> bool:
    try:
        return one.recv(4096) == b""
    except (BlockingIOError, ssl.SSLWantReadError):
        return False
    except OSError:
        return True


def test_a_flood_from_one_address_leaves_a_login_from_another(control):
    host, port, trust = control
    credentials = msgspec.msgpack.encode({"account": "alice", "password": "not hers"})

    def login(address):
        transport = httpx.HTTPTransport(verify=trust, local_address=address)
        with httpx.Client(transport=transport, timeout=60) as client:
            return client.post(f"https://{host}:{port}/admin/v1/login", content=credentials).status_code

    with Flood(host, port, trust) as flood:
        wait_for(lambda: flood.turned_away > 5 * ROOM, 120)
        for _ in range(5):
            assert login("127.0.0.2") == 401  # it was read, and judged
        with pytest.raises(httpx.TransportError):
            for _ in range(50):  # a place may be free just when a deadline has passed
                login("127.0.0.1")


def test_a_handshake_that_does_not_go_on_is_ended(control):
    with socket.create_connection(control[:2], 20) as silent:
        assert silent.recv(1) == b"", "it is held after 20 s"
