import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.notes import NoteSigner
from modelkeep.ledger.log import ReleasesLog

ORIGIN = "keep.example/releases"


@pytest.fixture(scope="session")
def log_signer():
    return NoteSigner(ORIGIN, b"\x07" * 32)


@pytest.fixture
def make_log(log_signer):
    """A log in memory with entries of the given batches; returns its files."""

    def make(*batches):
        files = MemoryLogFiles()
        log = ReleasesLog(files, log_signer, ORIGIN)
        log.create()
        for batch in batches:
            log.append(batch)
        return files

    return make
