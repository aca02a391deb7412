"""The systemd unit: systemd's own judgement of it, and a keep that serves with what the unit takes from it."""

import contextlib
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from e2e_house import House, wait_for

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "systemd" / "modelkeep.service"
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
MOST_EXPOSED = 2.0
"""On systemd's scale from 0 to 10; "OK" ends at 4, and most units of a distribution stand at 9."""


def directives(name):
    return re.findall(rf"^{name}=(.*)$", UNIT.read_text(), re.MULTILINE)


@pytest.fixture
def installed(tmp_path):
    """The unit with a program that is there."""
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    unit = tmp_path / "modelkeep.service"
    unit.write_text(UNIT.read_text().replace("/opt/modelkeep/bin/modelkeep", "/bin/true"))
    return unit


def test_systemd_understands_every_line_of_it(installed):
    ran = subprocess.run(["systemd-analyze", "verify", str(installed)], capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stdout + ran.stderr) == (0, "")


def test_systemd_finds_it_little_exposed(installed):
    ran = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=20", str(installed)],
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.search(r"Overall exposure level for modelkeep.service: ([0-9.]+)", ran.stdout)
    assert found, ran.stdout + ran.stderr
    assert ran.returncode == 0 and float(found[1]) <= MOST_EXPOSED


def test_it_says_what_the_documents_promise():
    assert directives("Type") == ["notify"] and directives("NoNewPrivileges") == ["yes"]
    assert directives("LimitCORE") == ["0"] and directives("ProtectSystem") == ["strict"]
    assert directives("MemoryDenyWriteExecute") == ["yes"] and directives("CapabilityBoundingSet") == [""]


def expand(word):
    if not word.startswith("@"):
        return {word}
    said = subprocess.run(["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True).stdout
    parts = re.findall(r"^    (@?[a-z0-9_-]+)$", said, re.MULTILINE)
    return set().union(*(expand(part) for part in parts))


def allowed():
    """The system calls that the unit's filter lets through."""
    names = expand("@default")
    for line in directives("SystemCallFilter"):
        words = line.lstrip("~").split()
        found = set().union(*map(expand, words))
        names = names - found if line.startswith("~") else names | found
    return names


class Unit(House):
    """``up`` as systemd would start it, as far as a test may."""

    def start(self, verb="up", *arguments):
        names, numbers = allowed(), dict(re.findall(r"#define __NR_(\w+) (\d+)", HEADER.read_text()))
        calls = self.folder / "calls.json"
        calls.write_text(json.dumps(sorted(int(numbers[name]) for name in names & numbers.keys())))
        with self.output.open("ab") as output:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name("as_in_unit.py")),
                    str(calls),
                    sys.executable,
                    "-m",
                    "modelkeep",
                    verb,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return self


def listen(told, heard):
    """Hear as systemd does, whatever comes and when."""
    with contextlib.suppress(OSError):
        while True:
            heard.append(told.recv(4096))


@pytest.mark.skipif(
    platform.machine() != "x86_64" or not HEADER.exists(), reason="the numbers of system calls are not known here"
)
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_a_keep_serves_with_what_the_unit_takes_from_it_and_tells_systemd_so(cli, tmp_path, subject):
    """No memory that is written and run, and no system call outside the filter; READY, a pulse and STOPPING come."""
    told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    told.bind(f"\0modelkeep-test-{os.getpid()}")
    heard = []
    threading.Thread(target=listen, args=(told, heard), daemon=True).start()
    token = cli("--json", "key", "issue", "alice", code=0).json["token"]
    house = Unit(
        cli, tmp_path, NOTIFY_SOCKET=f"@modelkeep-test-{os.getpid()}", WATCHDOG_USEC="400000", MODELKEEP_SCAN_OPINIONS="off"
    ).start()
    try:
        wait_for(lambda: b"READY=1\nSTATUS=serving" in heard, 60, house.text)
        assert house.ask(token, subject.fresh[:1]).status_code == 200  # at once: it is ready when it says so
        wait_for(lambda: heard[-3:] == [b"WATCHDOG=1"] * 3, 60, house.text)
        cli("unseal", "--status", code=0)
    finally:
        code = house.stop()
    assert code == 0, house.text()
    wait_for(lambda: any(one.startswith(b"STOPPING=1") for one in list(heard)), 60, house.text)
    assert heard.count(b"READY=1\nSTATUS=serving") == 1
    told.close()
    assert "Operation not permitted" not in house.text() and "Traceback" not in house.text(), house.text()
