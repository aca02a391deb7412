"""The frozen logs of tests/vectors/log: today's code reads them, and still writes the same bytes."""

import importlib.util
from pathlib import Path

import pytest

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.ledger.proofs import check_proof
from modelkeep.ledger.verify import verify_log
from modelkeep.serving.audit import read_bodies, verify_audit

VECTORS = Path(__file__).parents[1] / "vectors" / "log"
RELEASES, AUDIT = (VECTORS / "vkeys.txt").read_text().split()


def test_the_frozen_releases_log():
    report = verify_log(FolderLogFiles(VECTORS / "releases"), RELEASES, "keep.example/releases")
    assert (report.size, report.root.hex()) == (300, "ca393d0296bec5e0b8dcab983bd1fb7d1461f512e7267cb89631ad26fd66d848")


def test_the_frozen_proof():
    proof, checkpoint = check_proof((VECTORS / "releases.tlog-proof").read_bytes(), RELEASES)
    assert (proof.index, proof.entry, checkpoint.size) == (256, b"entry 256", 300)


def test_the_frozen_audit_log():
    files = FolderLogFiles(VECTORS / "audit")
    report = verify_audit(files, AUDIT, "keep.example/audit/gw-1")
    assert (report.size, report.closed, report.bodies, report.absent) == (5, True, 2, 0)
    assert report.root.hex() == "d6fa9783527b2deb2cec2b75c4f0bfd92fe48331aecf823d155cf9d067576a74"
    kinds = [entry.kind for _, entry, _ in read_bodies(files, AUDIT, "keep.example/audit/gw-1")]
    assert kinds == ["open", "predict", "predict", "deny", "close"]


def test_the_same_bytes_are_written_today(tmp_path):
    spec = importlib.util.spec_from_file_location("make_log_vectors", VECTORS / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.make(tmp_path)
    made = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    frozen = {
        path.relative_to(VECTORS): path.read_bytes()
        for path in VECTORS.rglob("*")
        if path.is_file() and path.name not in ("make.py", ".lock") and "__pycache__" not in path.parts
    }
    assert made == frozen


@pytest.mark.parametrize("name", ["releases", "audit"])
def test_checking_writes_nothing(name):
    folder = VECTORS / name
    before = sorted(folder.rglob("*"))
    verify_log(
        FolderLogFiles(folder),
        RELEASES if name == "releases" else AUDIT,
        f"keep.example/{name}" + ("/gw-1" if name == "audit" else ""),
    )
    assert sorted(folder.rglob("*")) == before
