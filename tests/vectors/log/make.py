"""Makes the frozen logs beside this file. They are final: run it again only to add to them, never to change them.

python tests/vectors/log/make.py [FOLDER]
"""

import sys
from pathlib import Path

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import Checkpoint, NoteSigner
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.tiles import Growth
from modelkeep.serving.audit import AuditEntry, recover_audit
from modelkeep.serving.journal import JournalWriter, Stamps, journal_key, split_frames

RELEASES = NoteSigner("keep.example/releases", bytes(range(32)))
AUDIT = NoteSigner("keep.example/audit/gw-1", bytes(range(32, 64)))


class Clock(SystemClock):
    """Always the first second of 2027."""

    def now_ns(self) -> int:
        """Unix time in nanoseconds."""
        return 1_798_761_600_000_000_000


def make(folder: Path) -> None:
    """Write ``releases`` (300 entries), ``releases.tlog-proof`` (of entry 256) and ``audit`` (a log finished by recovery)."""
    files = FolderLogFiles(folder / "releases")
    log = ReleasesLog(files, RELEASES, RELEASES.name)
    log.create()
    log.append([b"entry %d" % number for number in range(300)])
    view = LogView(files, RELEASES.vkey, RELEASES.name)
    view.refresh()
    (folder / "releases.tlog-proof").write_bytes(view.inclusion(256).encode())
    _audit(FolderLogFiles(folder / "audit"))
    (folder / "vkeys.txt").write_text(f"{RELEASES.vkey}\n{AUDIT.vkey}\n")
    for lock in folder.rglob(".lock"):
        lock.unlink()


def _audit(files: FolderLogFiles) -> None:
    writer, stamps = JournalWriter(files, journal_key(AUDIT), AUDIT.name), Stamps()
    writer.begin()
    frames = (["open"], ["predict", "predict"], ["deny"])
    for number, kinds in enumerate(frames):
        records = []
        for kind in kinds:
            index = writer.index + len(records)
            body = b"encrypted body %d" % index if kind == "predict" else b""
            entry = AuditEntry(kind, "" if kind == "open" else "sub_0123456789abcdef", "credit-risk@1", f"r{index}", "ok")
            records.append((stamps.encode(entry, body, index, Clock().now_ns() - 5_000 + number * 1_000), body))
        writer.commit(records)
    writer.close()
    # a frame that the process did not finish writing
    torn = files.journal("journal/000000")
    torn.append(b"\x00\x00\x00\x99")
    torn.close()
    _first_checkpoint(files)
    recover_audit(files, AUDIT, AUDIT.name, Clock())


def _first_checkpoint(files: FolderLogFiles) -> None:
    """The checkpoint over the opening entry, which a log has before it takes anything else."""
    frames, _ = split_frames(files.read("journal/000000"), AUDIT.name, 0)
    growth = Growth()
    growth.grow([frames[1].records[0][0]], files.write)
    files.write("checkpoint", Checkpoint(AUDIT.name, 1, growth.root()).sign(AUDIT))


if __name__ == "__main__":
    make(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
