"""Where processes say that they listen, and the supervisor."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from modelkeep.app import processes
from modelkeep.app.processes import (
    FIRST_PAUSE,
    STOP_SECONDS,
    Child,
    address_file,
    announce,
    find,
    stop_at_once,
    supervise,
    withdraw,
)
from modelkeep.errors import Unavailable

SERVER = """
import json, os, sys, time, signal
path, secret = sys.argv[1], os.read(int(sys.argv[3]), 100)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with open(path + ".starts", "a") as starts:
    starts.write(secret.decode() + "\\n")
with open(path + ".new", "w") as said:
    json.dump({"url": "https://here", "pid": os.getpid()}, said)
os.replace(path + ".new", path)
time.sleep(60)
"""


def test_announce_and_withdraw(tmp_path):
    announce(tmp_path, "gateway", "https://here")
    assert find(tmp_path, "gateway").url == "https://here" and find(tmp_path, "gateway").pid == os.getpid()
    assert address_file(tmp_path, "gateway").parent.stat().st_mode & 0o777 == 0o700
    withdraw(tmp_path, "gateway")
    assert find(tmp_path, "gateway") is None
    withdraw(tmp_path, "gateway")


def test_another_process_keeps_its_address(tmp_path):
    (tmp_path / "run").mkdir()
    address_file(tmp_path, "gateway").write_text('{"url": "https://there", "pid": 1}')
    withdraw(tmp_path, "gateway")
    assert find(tmp_path, "gateway").url == "https://there"


@pytest.mark.parametrize("said", ["", "{", '{"url": 7}', "[]"])
def test_a_damaged_address_is_none(tmp_path, said):
    (tmp_path / "run").mkdir()
    address_file(tmp_path, "control").write_text(said)
    assert find(tmp_path, "control") is None


def child(tmp_path, program=SERVER):
    path = tmp_path / "address.json"
    return Child("server", [sys.executable, "-c", program, str(path)], b"the secret", path), path


def test_what_dies_is_started_again_with_its_secret_and_at_once_if_it_had_come_up(tmp_path):
    one, path = child(tmp_path)
    told: list[str] = []

    def breaks() -> None:
        for number in (1, 2, 3):
            wait(lambda n=number: one.address() is not None and starts(path) == n)
            os.kill(one.process.pid, signal.SIGKILL)
        wait(lambda: one.address() is not None and starts(path) == 4)
        os.kill(os.getpid(), signal.SIGTERM)

    breaker = threading.Thread(target=breaks)
    breaker.start()
    supervise([one], told.append)
    breaker.join()
    assert one.process.returncode == 0
    again = [line for line in told if "starting it again" in line]
    assert len(again) == 3 and all(f"in {FIRST_PAUSE:.1f} s" in line for line in again)
    assert path.with_name("address.json.starts").read_text() == "the secret\n" * 4


def test_one_that_never_comes_up_is_unavailable(tmp_path):
    one, _ = child(tmp_path, "raise SystemExit(3)")
    with pytest.raises(Unavailable, match="server did not start"):
        supervise([one], lambda _text: None)
    assert one.process.returncode == 3


STUBBORN = SERVER.replace("sys.exit(0)", "None")
PARENT = """
import os, sys
from pathlib import Path
from modelkeep.app.processes import Child, supervise
child = Child("server", [sys.executable, "-c", sys.argv[1], sys.argv[2]], b"the secret", Path(sys.argv[2]))
def up():
    print(child.process.pid, flush=True)
supervise([child], lambda _text: None, up=up)
"""


def test_a_second_sigterm_kills_what_has_not_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "STOP_SECONDS", 600.0)
    one, _ = child(tmp_path, STUBBORN)
    heard = threading.Event()

    def asks() -> None:
        wait(lambda: one.address() is not None)
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard.wait(60)  # two at once are one
        os.kill(os.getpid(), signal.SIGTERM)

    asker = threading.Thread(target=asks)
    asker.start()
    supervise([one], lambda _text: None, stop=heard.set)
    asker.join()
    assert one.process.returncode == -signal.SIGKILL


def test_a_supervisor_that_has_to_stop_at_once_kills_its_own_before_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "ASKED_SECONDS", 2.0)  # two requests at once would be one
    monkeypatch.setattr(processes, "HURRIED_SECONDS", STOP_SECONDS * 0.75)  # less than one that is not in a hurry takes
    path = tmp_path / "address.json"
    below = Child("crew", [sys.executable, "-c", PARENT, STUBBORN, str(path)], b"", tmp_path / "none.json")
    below.start()
    wait(path.exists)
    pid = find_pid(path)
    stop_at_once([below])
    assert not below.runs() and not Path(f"/proc/{pid}").exists()


def find_pid(path):
    return json.loads(path.read_bytes())["pid"]


def starts(path):
    counted = path.with_name("address.json.starts")
    return counted.read_text().count("\n") if counted.exists() else 0


def wait(what):
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.01)
