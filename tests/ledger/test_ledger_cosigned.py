"""How much of a log is witnessed: what its writer keeps, what a reader believes, and what a forger of either file gets."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.cosignatures import Cosigner
from modelkeep.crypto.notes import Checkpoint, split_note
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.cosigned import WITNESSED, Cosigned, Witnessed, keep_cosignatures
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.quorum import parse_policy
from modelkeep.ledger.tiles import CHECKPOINT

ORIGIN = "keep.example/releases"
W = {name: Cosigner(f"{name}.example/w", name.encode() * 16) for name in ("w1", "w2", "w3")}
POLICY = parse_policy(
    "".join(f"witness {n} {w.verifier.vkey}\n" for n, w in W.items()).encode() + b"group two 2 w1 w2 w3\nquorum two\n"
)


class House:
    """A log, its writer and a reader."""

    def __init__(self, signer):
        self.files = MemoryLogFiles()
        self.signer = signer
        self.log = ReleasesLog(self.files, signer, ORIGIN)
        self.log.create()
        self.policy = POLICY
        self.view, self.cosigned = self.reader()

    def reader(self):
        return LogView(self.files, self.signer.vkey, ORIGIN), Cosigned(self.files, self.signer.vkey, lambda: self.policy)

    def look(self):
        self.view.refresh()
        return self.cosigned.look(self.view)

    def note(self):
        return self.files.read(CHECKPOINT)

    def keep(self, *names, note=None):
        note = note or self.note()
        lines = [W[name].cosign(split_note(note)[0], 1_700_000_000) for name in names]
        return keep_cosignatures(self.files, self.signer.vkey, self.policy, note, lines)


@pytest.fixture
def house(log_signer):
    return House(log_signer)


def test_a_quorum_covers_what_the_checkpoint_covers(house):
    house.log.append([b"a", b"b"])
    assert house.look() == Witnessed(0, ())
    house.keep("w2")
    assert house.look() == Witnessed(0, ())
    house.keep("w1")
    assert house.look() == Witnessed(2, ("w1", "w2"))
    house.keep("w3")
    assert house.look() == Witnessed(2, ("w1", "w2", "w3"))


def test_an_append_takes_nothing_back(house):
    house.log.append([b"a"])
    house.keep("w1", "w2")
    house.log.append([b"b"])
    assert house.look() == Witnessed(1, ("w1", "w2"))
    assert house.reader()[1].look(house.view) == Witnessed(1, ("w1", "w2"))  # a reader that starts now
    house.keep("w3", "w2")
    assert house.look() == Witnessed(2, ("w2", "w3"))


def test_cosignatures_that_come_after_the_next_append(house):
    house.log.append([b"a"])
    asked = house.note()
    house.log.append([b"b"])
    house.keep("w1", "w2", note=asked)
    assert len(split_note(house.note())[1]) == 1
    assert house.look() == Witnessed(1, ("w1", "w2"))
    newest = house.note()
    house.keep("w2", "w3")
    house.keep("w1", "w3", note=asked)  # a laggard of the old checkpoint takes nothing away
    assert house.note() != newest
    assert house.look() == Witnessed(2, ("w2", "w3"))


def test_no_policy_and_no_quorum(house):
    house.log.append([b"a"])
    house.policy = None
    assert house.look() is None
    house.policy = parse_policy(b"quorum none\n")
    assert house.look() == Witnessed(1, ())


def test_another_policy_counts_anew(house):
    house.log.append([b"a"])
    house.keep("w1", "w2")
    assert house.look().size == 1
    house.policy = parse_policy(f"witness w3 {W['w3'].verifier.vkey}\nquorum w3\n".encode())
    assert house.look() == Witnessed(0, ())
    house.keep("w3")
    assert house.look() == Witnessed(1, ("w3",))


def test_a_policy_for_another_log_says_so(house):
    house.policy = parse_policy(b"log sum.golang.org+033de0ae+Ac4zctda0e5eza+HJyk9SxEdh+s3Ux18htTTAD8OuAn8\nquorum none\n")
    with pytest.raises(Invalid, match="other logs"):
        house.look()


def test_the_file_may_be_lost_while_a_reader_lives(house):
    house.log.append([b"a"])
    house.keep("w1", "w2")
    assert house.look().size == 1
    house.log.append([b"b"])
    house.files.delete(WITNESSED)
    assert house.look().size == 1
    assert house.reader()[1].look(house.view) == Witnessed(0, ())


def test_a_rollback_behind_what_witnesses_saw_is_refused(house):
    house.log.append([b"a"])
    old = {path: house.files.read(path) for path in house.files.paths()}
    house.log.append([b"b"])
    house.keep("w1", "w2")
    for path, data in old.items():
        house.files.write(path, data)
    view, cosigned = house.reader()
    view.refresh()
    with pytest.raises(NotTrusted, match="rolled back: it has 1 entries and witnesses saw 2"):
        cosigned.look(view)


def test_a_rewrite_with_the_real_key_is_refused(house, log_signer):
    house.log.append([b"a", b"b"])
    house.keep("w1", "w2")
    kept = house.files.read(WITNESSED)
    forked = House(log_signer)
    forked.log.append([b"a", b"B"])
    forked.files.write(WITNESSED, kept)
    with pytest.raises(NotTrusted, match="rewritten: its first 2 entries are not those that witnesses saw"):
        forked.look()


@pytest.mark.parametrize("forge", ["size", "cosignature", "log signature", "garbage", "another origin"])
def test_a_forged_file_is_refused(house, forge):
    house.log.append([b"a", b"b"])
    house.keep("w1", "w2")
    note = house.files.read(WITNESSED)
    house.log.append([b"c"])
    forged = {
        "size": note.replace(b"\n2\n", b"\n3\n"),
        "cosignature": note[:-9] + (b"A" if note[-9:-8] != b"A" else b"B") + note[-8:],
        "log signature": b"\n".join(line for line in note.split(b"\n") if b"keep.example/releases " not in line),
        "garbage": b"\xff" * 10,
        "another origin": note.replace(b"keep.example/releases\n2", b"beep.example/releases\n2"),
    }[forge]
    assert forged != note
    house.files.write(WITNESSED, forged)
    with pytest.raises(NotTrusted):
        house.look()


def test_what_witnesses_saw_of_another_key_is_not_ours(house, log_signer):
    house.log.append([b"a"])
    note = Checkpoint(ORIGIN, 1, b"x" * 32).sign(log_signer)  # signed by the log, never the log
    for name in ("w1", "w2"):
        note += W[name].cosign(split_note(note)[0], 1).encode()
    house.files.write(WITNESSED, note)
    with pytest.raises(NotTrusted, match="rewritten"):
        house.look()


def test_nothing_is_verified_twice(house):
    house.log.append([b"a"])
    house.keep("w1", "w2")
    assert house.look() is house.look()
