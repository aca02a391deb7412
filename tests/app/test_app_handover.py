"""What control is told of audit logs: the last checkpoint of each, whenever it can be reached again."""

import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.app.gateway import Handover
from modelkeep.app.handover import CONTROL_NAME
from modelkeep.app.premises import CA_FILE
from modelkeep.app.processes import announce
from modelkeep.errors import Unavailable


@pytest.fixture
def folder(tmp_path):
    now, key = time.time_ns(), make_authority_key()
    authority = authority_certificate(key, "keep.example", now)
    (tmp_path / CA_FILE).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / CA_FILE).write_bytes(authority)
    return tmp_path, issue(key, authority, (CONTROL_NAME,), now)


@contextmanager
def control(folder, statuses=()):
    """A server in control's place, and the checkpoints that it took; ``statuses``: its first answers, then 200."""
    directory, leaf = folder
    answers, taken = list(statuses), []

    class Taking(BaseHTTPRequestHandler):
        def do_POST(self):
            note = self.rfile.read(int(self.headers["content-length"]))
            status = answers.pop(0) if answers else 200
            if status == 200:
                taken.append(note)
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_args):
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Taking)
    server.socket = server_context(leaf).wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    announce(directory, "control", f"https://127.0.0.1:{server.server_port}")
    try:
        yield taken
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def note(log, size):
    return f"keep.example/audit/{log}\n{size}\n".encode()


def test_the_end_of_a_period_that_control_did_not_hear_of_waits_for_it(folder):
    """It was told once: a log whose period ended while control was down could be cut back to an earlier checkpoint."""
    handover = Handover(folder[0])
    for told in (note("first", 7), note("second", 1), note("second", 3)):
        with pytest.raises(Unavailable, match="not running"):
            handover(told)
    with control(folder, statuses=(503,)) as taken:
        with pytest.raises(Unavailable, match="503"):
            handover(note("second", 4))
        handover.waiting()
        handover.waiting()
    assert taken == [note("second", 4), note("first", 7)]  # the last of each log, once; the one refused kept back no other


def test_what_dead_gateways_left_goes_first(folder):
    handover = Handover(folder[0])
    handover.later(note("dead", 9))
    with control(folder) as taken:
        handover(note("mine", 2))
    assert taken == [note("dead", 9), note("mine", 2)]
