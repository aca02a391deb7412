"""The local socket: who is heard, what a broken client does, and paths longer than a socket's address."""

import os
import socket
import subprocess
import sys

import pytest

from modelkeep.adapters.localsocket import MAX_LINE, LocalSocket, ask
from modelkeep.errors import Missing

_STRANGER = """
import json, os, socket, sys
os.setgroups([]); os.setgid(65534); os.setuid(65534)
end = socket.socket(socket.AF_UNIX)
end.connect(sys.argv[1])
print(end.recv(4096).decode())
"""


@pytest.fixture
def listening(tmp_path):
    heard = []

    def hear(asked, peer):
        heard.append((asked, peer))
        return {"asked": asked, "uid": peer.uid}

    made = LocalSocket(tmp_path / "run", "up-1", hear)
    yield made, heard
    made.close()
    assert not made.path.exists()


def test_the_owner_is_heard_and_named(listening):
    made, heard = listening
    assert ask(made.path, {"do": "status"}) == {"asked": {"do": "status"}, "uid": os.geteuid()}
    assert heard[0][1].pid == os.getpid()
    assert (made.path.stat().st_mode & 0o777, made.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a stranger")
def test_a_stranger_is_not_heard_even_if_the_folder_were_open(listening, tmp_path):
    made, heard = listening
    for path in made.path.parents:
        if path.stat().st_uid == os.geteuid() and path.is_relative_to(tmp_path.parents[2]):
            path.chmod(path.stat().st_mode | 0o011)
    made.path.chmod(0o666)
    said = subprocess.run([sys.executable, "-c", _STRANGER, str(made.path)], capture_output=True, text=True, check=False)
    assert '"code":"denied"' in said.stdout, said.stderr
    assert heard == []


@pytest.mark.parametrize(
    "line", [b"\n", b"no json\n", b"[1]\n", b"\xff\xfe\n", b'{"do": ' + b"1" * MAX_LINE * 2, b"[" * 9000 + b"\n"]
)
def test_what_is_no_question_is_refused_without_being_repeated(listening, line):
    made, heard = listening
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(made.path))
        end.sendall(line)
        assert b'"code":"invalid"' in end.recv(4096)
    assert heard == []
    assert ask(made.path, {"do": "status"})["asked"] == {"do": "status"}


def test_whoever_leaves_early_stops_nobody(listening):
    made, _ = listening
    with socket.socket(socket.AF_UNIX) as end:
        end.connect(str(made.path))
    assert ask(made.path, {})["asked"] == {}


def test_a_folder_with_a_path_that_is_too_long_for_a_socket(tmp_path):
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    made = LocalSocket(deep / "run", "serve-12345", lambda asked, _: asked)
    assert ask(made.path, {"do": "status"}) == {"do": "status"}
    made.close()
    with pytest.raises(Missing, match="nobody listens"):
        ask(made.path, {})


def test_a_socket_that_a_dead_process_left_is_replaced_and_an_ended_one_says_so(tmp_path):
    first = LocalSocket(tmp_path / "run", "up-1", lambda asked, _: asked)
    second = LocalSocket(tmp_path / "run", "up-1", lambda *_: {"second": True})
    assert ask(second.path, {}) == {"second": True}
    first.close()
    second.close()
    with pytest.raises(Missing):
        ask(second.path, {})
    second._thread.join(60)
    assert not second._thread.is_alive()
