"""The releases log on a real disk: kill -9 at random moments, and every system call of an append failing once."""

import errno
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
from memorylogfiles import MemoryLogFiles

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.errors import Unavailable
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.verify import verify_log

ORIGIN = "keep.example/releases"
CALLS = ("open", "write", "fsync", "replace", "mkdir", "unlink")

WRITER = """
import os, sys
from pathlib import Path
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import NoteSigner
from modelkeep.ledger.log import ReleasesLog

signer = NoteSigner("keep.example/releases", b"\\x07" * 32)
log = ReleasesLog(FolderLogFiles(Path(sys.argv[1])), signer, signer.name)
os.write(1, b"ready\\n")
while True:
    for index in log.append([b"x%d" % number for number in range(int(sys.argv[2]))]):
        os.write(1, b"%d\\n" % index)
"""


def entries_of(files, signer):
    view = LogView(files, signer.vkey, ORIGIN)
    return view.entries(0, view.refresh().size)


@pytest.mark.parametrize("attempt", range(5))
def test_kill_minus_nine_at_a_random_moment(tmp_path, log_signer, attempt):
    files = FolderLogFiles(tmp_path)
    ReleasesLog(files, log_signer, ORIGIN).create()
    batch = (1, 7, 300)[attempt % 3]
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(batch)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"ready\n"
        os.set_blocking(writer.stdout.fileno(), False)
        end, told = time.monotonic() + random.Random(attempt).uniform(0.01, 0.2), b""
        while time.monotonic() < end:
            told += writer.stdout.read() or b""
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        os.set_blocking(writer.stdout.fileno(), True)
        told += writer.stdout.read()
    indexes = [int(line) for line in told.splitlines(keepends=True) if line.endswith(b"\n")]
    assert indexes == list(range(len(indexes)))
    report = verify_log(files, log_signer.vkey, ORIGIN)
    assert report.size >= len(indexes) and report.size % batch == 0, "what was told is there, and no append is there in part"
    ReleasesLog(files, log_signer, ORIGIN).append([b"after"])
    assert entries_of(files, log_signer)[-1] == b"after"
    verify_log(files, log_signer.vkey, ORIGIN)
    assert not [path for path in tmp_path.rglob(".new-*") if path.name == ".new-checkpoint"]


class Failing:
    """The system calls in ``CALLS``, of which number ``at`` fails, and with ``forever`` all that follow."""

    def __init__(self, monkeypatch, at: int, error: int, *, forever: bool) -> None:
        self.count = 0
        self.failed = ""
        for name in CALLS:
            monkeypatch.setattr(os, name, self._wrap(name, getattr(os, name), at, error, forever))

    def _wrap(self, name, real, at, error, forever):
        def call(*args, **kwargs):
            self.count += 1
            if self.count - 1 == at or (forever and self.count > at):
                self.failed = self.failed or name
                raise OSError(error, os.strerror(error))
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize(("error", "forever"), [(errno.EIO, False), (errno.EIO, True), (errno.ENOSPC, False)])
def test_whatever_call_fails_the_log_is_the_old_one_or_the_new_one(tmp_path, log_signer, error, forever):
    """255 entries, then three more: a bundle and two tiles become full, and partial ones go."""
    old, new = [b"entry %d" % number for number in range(255)], [b"a", b"b", b"c"]
    failed = set()
    begun = ReleasesLog(FolderLogFiles(tmp_path / "begun"), log_signer, ORIGIN)
    begun.create()
    begun.append(old)
    for at in itertools.count():
        files = FolderLogFiles(shutil.copytree(tmp_path / "begun", tmp_path / str(at)))
        log = ReleasesLog(files, log_signer, ORIGIN)
        with pytest.MonkeyPatch.context() as patch:
            failing = Failing(patch, at, error, forever=forever)
            try:
                log.append(new)
                raised = False
            except Unavailable:
                raised = True
        now = entries_of(files, log_signer)
        assert now in (old, old + new), (at, failing.failed)
        assert raised or now == old + new, (at, failing.failed)
        verify_log(files, log_signer.vkey, ORIGIN)
        log.append([b"again"])  # another file each time: a failed fsync is never tried again on the same descriptor
        assert entries_of(files, log_signer) == [*now, b"again"]
        verify_log(files, log_signer.vkey, ORIGIN)
        if not failing.failed:
            break
        failed.add(failing.failed)
    assert {"open", "write", "fsync", "replace"} <= failed and at > 20


def test_a_store_that_fails_at_every_step_logs_all_or_nothing(make_log, log_signer):
    start = make_log([b"entry %d" % number for number in range(255)])
    for step in itertools.count():
        files = start.copy()
        files.fail_from = step
        try:
            ReleasesLog(files, log_signer, ORIGIN).append([b"a", b"b"])
        except Unavailable:
            pass
        else:
            break
        left = MemoryLogFiles({path: bytes(data) for path, data in files.files.items()})
        assert len(entries_of(left, log_signer)) in (255, 257)
        verify_log(left, log_signer.vkey, ORIGIN)
    assert step > 5
