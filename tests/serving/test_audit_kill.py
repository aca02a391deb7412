"""P1 with a real process, a real disk and a real kill -9: every answer that left is in the recovered log."""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Conflict, NotTrusted
from modelkeep.serving.audit import read_bodies, recover_audit, verify_audit

ORIGIN = "keep.example/audit/gw-1"
SIGNER = NoteSigner(ORIGIN, b"\x05" * 32)

GATEWAY = """
import os, resource, sys, threading
from pathlib import Path
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Unavailable
from modelkeep.serving.audit import AuditEntry, AuditLimits, AuditLog

folder, limit = sys.argv[1], int(sys.argv[2])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

def deliver(results):  # an answer leaves: one write to the client each
    os.write(1, b"".join(b"%d " % done.request + str(r).encode() + b"\\n" for done, r in results if isinstance(r, int)))

class Done:
    def __init__(self, request): self.request = request
    def __call__(self, result): raise AssertionError

log = AuditLog(FolderLogFiles(Path(folder)), NoteSigner("keep.example/audit/gw-1", b"\\x05" * 32), "keep.example/audit/gw-1",
               SystemClock(), deliver=deliver, limits=AuditLimits(records=64, publish=0.01))
os.write(1, b"ready\\n")
request = 0
while True:
    try:
        log.submit(AuditEntry("predict", request=str(request)), b"body of %d" % request, Done(request))
        request += 1
    except Unavailable as error:
        if "has failed" in str(error):
            os.write(1, b"failed\\n")
            break
"""


def answers(lines):
    """Request → index, of whole lines only: half a line is an answer that did not arrive."""
    return {int(line.split()[0]): int(line.split()[1]) for line in lines if line.endswith(b"\n") and line[:1].isdigit()}


def check(folder, told):
    files = FolderLogFiles(folder)
    report = recover_audit(files, SIGNER, ORIGIN, SystemClock())
    assert report.closed
    recorded = {}
    for index, entry, body in read_bodies(files, SIGNER.vkey, ORIGIN):
        if entry.kind == "predict":
            assert body == b"body of %d" % int(entry.request)
            recorded[int(entry.request)] = index
    assert told.items() <= recorded.items()
    assert verify_audit(files, SIGNER.vkey, ORIGIN) == report
    return report, recorded


def run(folder, limit=0):
    return subprocess.Popen([sys.executable, "-c", GATEWAY, str(folder), str(limit)], stdout=subprocess.PIPE)


@pytest.mark.parametrize("attempt", range(12))
def test_kill_minus_nine_at_a_random_moment(tmp_path, attempt):
    random.seed(attempt)
    with run(tmp_path) as gateway:
        assert gateway.stdout.readline() == b"ready\n"
        os.set_blocking(gateway.stdout.fileno(), False)
        end, data = time.monotonic() + random.uniform(0.0, 0.25), b""
        while time.monotonic() < end:
            data += gateway.stdout.read() or b""
        with pytest.raises(Conflict):
            recover_audit(FolderLogFiles(tmp_path), SIGNER, ORIGIN, SystemClock())
        gateway.send_signal(signal.SIGKILL)
        gateway.wait()
        os.set_blocking(gateway.stdout.fileno(), True)
        data += gateway.stdout.read()
    told = answers(data.splitlines(keepends=True))
    _, recorded = check(tmp_path, told)
    assert len(recorded) >= len(told)


def test_a_disk_that_fills_up_while_serving(tmp_path):
    with run(tmp_path, limit=300_000) as gateway:
        out, _ = gateway.communicate(timeout=120)
    lines = out.splitlines(keepends=True)
    assert lines[-1] == b"failed\n"
    told = answers(lines)
    assert len(told) > 100
    report, _ = check(tmp_path, told)
    assert report.size <= 300_000 // 150


def test_the_killed_log_altered_before_recovery_is_refused(tmp_path):
    with run(tmp_path) as gateway:
        lines = [gateway.stdout.readline() for _ in range(50)]
        gateway.kill()
    journal = tmp_path / "journal" / "000000"
    raw = bytearray(journal.read_bytes())
    at = raw.rindex(b"body of 30")
    raw[at + 9 : at + 10] = b"9"
    journal.write_bytes(raw)
    assert answers(lines)
    with pytest.raises(NotTrusted, match="altered"):
        recover_audit(FolderLogFiles(tmp_path), SIGNER, ORIGIN, SystemClock())
