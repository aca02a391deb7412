"""Publishing in processes of their own, on the adapters of a real keep: raced, and killed with -9 at many moments."""

import itertools
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from workflow_house import ORIGIN, CountingEntropy, safetensors

from modelkeep.adapters.blobs.local import LocalBlobs
from modelkeep.adapters.claims import FolderClaims
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody import keys
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.keyring import Custodian, Keyring, releases_origin
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.releases import RELEASE, Release
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.workflows.publish import settle
from modelkeep.workflows.registry import Desk, KeysOpener, Registry
from modelkeep.workflows.verify import verify_release

CHILD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_publish_processes import desk_of
from workflow_house import safetensors
from modelkeep.workflows.publish import ModelFile, publish
root, first, count = Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
desk = desk_of(root)
print("ready", flush=True)
sys.stdin.readline()
for seed in range(first, first + count):
    made = publish(desk, ModelFile(safetensors(seed), "m.safetensors"), "credit", actor="ada")
    print(made.ref, made.model, flush=True)
"""


def desk_of(root):
    ring = Keyring.open(FileKeys(root / "keys"), keys.FAMILIES, b"word")
    files, origin = FolderLogFiles(root / "log"), releases_origin(ORIGIN)
    view = LogView(files, ring.trust.releases_log, origin)
    records, blobs = SqliteRecords(root / "records.db"), LocalBlobs(root / "blobs")
    wrapping = RingKeys(MODEL_KEK, lambda: ring)
    registry = Registry(records, blobs, view, EvidenceBook(ring.trust), [KeysOpener(lambda: [wrapping])])
    log = ReleasesLog(files, ring.note_signer(keys.LOG_SIGNING, origin), origin)
    claims = FolderClaims(root / "claims")
    return Desk(registry, log, ring.statement_signer(), wrapping, claims, SystemClock(), SystemEntropy())


@pytest.fixture
def root(tmp_path):
    for folder in ("keys", "blobs"):
        (tmp_path / folder).mkdir(mode=0o700)
    custodian = Custodian(FileKeys(tmp_path / "keys"), CountingEntropy(), Argon2Params(64, 1, 1))
    ring = custodian.create(b"word", recipient_of(generate_identity()), origin=ORIGIN, now_ns=1)
    SqliteRecords.create(tmp_path / "records.db").close()
    origin = releases_origin(ORIGIN)
    ReleasesLog(FolderLogFiles(tmp_path / "log"), ring.note_signer(keys.LOG_SIGNING, origin), origin).create()
    return tmp_path


def start(root, first, count):
    command = [sys.executable, "-c", CHILD, str(Path(__file__).parent), str(root), str(first), str(count)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def go(child):
    child.stdin.write("go\n")
    child.stdin.flush()


def test_two_processes_publish_at_once(root):
    children = [start(root, 100 * number, 6) for number in range(2)]
    for child in children:
        go(child)
    printed = [line.split() for child in children for line in child.communicate(timeout=60)[0].splitlines()]
    assert [child.returncode for child in children] == [0, 0]
    desk = desk_of(root)
    with closing(desk.registry.records):
        book = desk.registry.refresh()
        assert sorted(printed) == sorted([str(e.ref), e.model] for e in book.releases())
        assert sorted(e.ref.version for e in book.releases()) == list(range(1, 13))
        assert book.problem_count == 0
        assert settle(desk).bodies == 0


def test_two_processes_publish_the_same_files_at_once(root):
    """Every version is there and opens, and no body that a release refers to is taken for somebody else's."""
    children = [start(root, 0, 5) for _ in range(2)]
    for child in children:
        go(child)
    printed = [line.split() for child in children for line in child.communicate(timeout=60)[0].splitlines()]
    assert [child.returncode for child in children] == [0, 0]
    desk = desk_of(root)
    with closing(desk.registry.records):
        found = list(desk.registry.refresh().releases())
        assert sorted(printed) == sorted([str(e.ref), e.model] for e in found)
        assert sorted(e.ref.version for e in found) == list(range(1, 11))
        for evidence in found:
            assert verify_release(desk.registry, desk_trust(root), evidence.ref).opened
        assert settle(desk).bodies == 0
        assert {e.body.sealed for e in found} == set(desk.registry.blobs.all())


@pytest.mark.parametrize("milliseconds", [1, 3, 6, 10, 15, 25])
def test_killed_while_publishing_then_settled(root, milliseconds):
    child = start(root, 0, 1000)
    go(child)
    answered = list(itertools.islice(child.stdout, 1))
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(milliseconds / 1000)
    child.send_signal(signal.SIGKILL)
    answered += child.communicate()[0].splitlines()
    desk = desk_of(root)
    with closing(desk.registry.records):
        settle(desk)
        found = {str(e.ref): e for e in desk.registry.refresh().releases()}
        assert {line.split()[0] for line in answered if line.count("sha256:") == 1} <= set(found)
        assert {record.key for record in desk.registry.records.scan(RELEASE)} == set(found)
        for record in desk.registry.records.scan(RELEASE):
            assert Release.parse(record.body).state == "published"
        for evidence in found.values():
            assert verify_release(desk.registry, desk_trust(root), evidence.ref).opened
        assert {e.body.sealed for e in found.values()} == set(desk.registry.blobs.all())
        plain = safetensors(0)[-128:]
        assert all(plain not in path.read_bytes() for path in root.rglob("*") if path.is_file())


def desk_trust(root):
    return Keyring.open(FileKeys(root / "keys"), [keys.MODEL_KEK], b"word").trust
