"""Asking witnesses: real ones in this process, late ones, lying ones, and a log that went back."""

import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.ports import Change
from modelkeep.crypto.cosignatures import Cosigner
from modelkeep.crypto.notes import NoteSigner, NoteVerifier, split_note
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.http.witness import refusal_response
from modelkeep.ledger.cosigned import Cosigned, cosigners
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.quorum import parse_policy
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.ledger.witness import Witness
from modelkeep.workflows.cosign import Cosigning, Told, read_told

ORIGIN = "keep.example/releases"
LOG = NoteSigner(ORIGIN, b"l" * 32)
NAMES = ("w1", "w2", "w3")
KEYS = {name: Cosigner(f"{name}.example", name.encode() * 16) for name in NAMES}


class Net:
    """Witnesses by address. ``down``: who does not answer; ``lies``: answers in place of true ones; ``before``: run first."""

    def __init__(self):
        known = {ORIGIN: [NoteVerifier.parse(LOG.vkey)]}
        self.witnesses = {name: Witness(MemoryLogFiles(), [key], known, SystemClock()) for name, key in KEYS.items()}
        self.down, self.lies, self.asked = set(), {}, []
        self.before = lambda: None

    def add_checkpoint(self, url, body):
        name = url.rpartition("/")[2]
        self.asked.append(name)
        self.before()
        if name in self.down:
            raise Unavailable(f"{url} cannot be reached")
        if name in self.lies:
            return self.lies[name]
        answer = self.witnesses[name].add_checkpoint(body)
        if isinstance(answer, bytes):
            return 200, "text/plain", answer
        response = refusal_response(answer)
        return response.status, response.content_type.decode(), response.body


class Clock(SystemClock):
    """Monotonic time that a test turns."""

    at = 0.0

    def monotonic(self):
        return self.at


class House:
    """A keep's log and what asks its witnesses."""

    def __init__(self):
        self.files, self.net, self.clock = MemoryLogFiles(), Net(), Clock()
        self.log = ReleasesLog(self.files, LOG, ORIGIN)
        self.log.create()
        self.records = MemoryRecords()
        lines = "".join(f"witness {n} {k.verifier.vkey} https://w.example/{n}\n" for n, k in KEYS.items())
        self.policy = parse_policy(f"log {LOG.vkey}\n{lines}group two 2 {' '.join(NAMES)}\nquorum two\n".encode())
        self.cosigning = self.fresh()

    def fresh(self):
        return Cosigning(self.files, LOG.vkey, self.records, self.net, self.clock)

    def view(self):
        return LogView(self.files, LOG.vkey, ORIGIN)

    def round(self):
        return self.cosigning.round(self.view(), self.policy)

    def witnessed(self):
        view = self.view()
        view.refresh()
        return Cosigned(self.files, LOG.vkey, lambda: self.policy).look(view)


@pytest.fixture
def house():
    return House()


def test_all_cosign_and_are_not_asked_again(house):
    house.log.append([b"a", b"b"])
    told = house.round()
    assert {name: (one.size, one.problem) for name, one in told.items()} == dict.fromkeys(NAMES, (2, ""))
    assert house.witnessed() == (2, NAMES)
    assert house.round() == told
    assert sorted(house.net.asked) == sorted([*NAMES])
    assert read_told(house.records, "w1") == told["w1"]


def test_the_next_round_proves_from_where_each_witness_stands(house):
    house.log.append([b"a"])
    house.round()
    house.net.down = {"w3"}
    for number in range(5):
        house.log.append([b"%d" % number])
        house.round()
    house.net.down = set()
    house.clock.at += 1000
    told = house.round()
    assert {one.size for one in told.values()} == {6}
    assert house.witnessed() == (6, NAMES)


def test_who_lost_the_hint_is_told_by_the_witness(house):
    house.log.append([b"a"])
    house.round()
    house.log.append([b"b"])
    house.records = MemoryRecords()
    house.cosigning = house.fresh()
    assert {one.size for one in house.round().values()} == {2}
    assert sorted(house.net.asked[3:]) == sorted([*NAMES, *NAMES])  # one 409 each


def test_laggards_catch_up_and_the_quorum_does_not_wait(house):
    house.log.append([b"a"])
    house.net.down = {"w2"}
    told = house.round()
    assert house.witnessed() == (1, ("w1", "w3"))
    assert told["w2"].problem == "https://w.example/w2 cannot be reached"
    assert house.round()["w2"] == told["w2"]
    assert house.net.asked.count("w2") == 1  # left alone for a moment
    house.net.down = set()
    house.clock.at += 2
    house.round()
    assert house.witnessed() == (1, NAMES)
    assert cosigners(house.files.read(CHECKPOINT), house.policy) == NAMES


def test_below_the_quorum_nothing_counts(house):
    house.log.append([b"a"])
    house.net.down = {"w1", "w2"}
    house.round()
    assert house.witnessed() == (0, ())
    assert cosigners(house.files.read(CHECKPOINT), house.policy) == ("w3",)


def test_an_append_meanwhile_loses_no_cosignature(house):
    house.log.append([b"a"])
    turn = threading.Lock()

    def meanwhile():
        with turn:
            house.net.before = lambda: None
            house.log.append([b"b"])

    house.net.before = meanwhile
    house.round()
    assert house.witnessed() == (1, NAMES)
    assert len(split_note(house.files.read(CHECKPOINT))[1]) == 1
    house.round()
    assert house.witnessed() == (2, NAMES)


def test_a_faster_writer_is_no_rollback(house):
    house.log.append([b"a"])
    turn = threading.Lock()

    def faster():
        with turn:
            if house.net.before is faster:
                house.net.before = lambda: None
                house.log.append([b"b"])
                house.fresh().round(house.view(), house.policy)

    house.net.before = faster
    told = house.round()
    assert not any(one.contradicts for one in told.values())
    house.clock.at += 1000
    assert not any(one.problem for one in house.round().values())
    assert house.witnessed() == (2, NAMES)


def test_two_at_once_agree(house):
    house.log.append([b"a"])
    rounds = [threading.Thread(target=house.fresh().round, args=(house.view(), house.policy)) for _ in range(4)]
    for thread in rounds:
        thread.start()
    for thread in rounds:
        thread.join()
    assert house.witnessed() == (1, NAMES)
    assert len(split_note(house.files.read(CHECKPOINT))[1]) == 4


def restored(house, *then):
    """The folder as an old copy has it, which then goes on with the real key."""
    old = house.files.copy()
    house.log.append([b"b"])
    house.round()
    house.files = old
    house.log = ReleasesLog(old, LOG, ORIGIN)
    for entry in then:
        house.log.append([entry])
    house.cosigning = house.fresh()


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ((), "the witness cosigned 2 entries of this log, which has 1"),
        ((b"x",), "this log does not continue what the witness cosigned"),
        ((b"x", b"y"), "this log does not continue what the witness cosigned"),
    ],
)
def test_a_log_that_went_back_is_contradicted(house, then, why):
    house.log.append([b"a"])
    house.round()
    restored(house, *then)
    for _ in range(2):
        told = house.round()
        assert all(one.contradicts and why in one.problem for one in told.values())
        assert house.witnessed().size == 1
        house.clock.at += 1000


def test_the_true_log_goes_on_after_a_fork_was_refused(house):
    house.log.append([b"a"])
    house.round()
    restored(house, b"x")
    true = house.files.copy()
    assert all(one.contradicts for one in house.round().values())
    house.files = true
    house.files.files.clear()
    honest = ReleasesLog(house.files, LOG, ORIGIN)
    honest.create()
    honest.append([b"a"])
    honest.append([b"b"])
    house.cosigning = house.fresh()
    assert not any(one.problem for one in house.round().values())


FORGED = Cosigner("w1.example", b"f" * 32)


@pytest.mark.parametrize(
    ("lie", "why"),
    [
        ((200, "text/plain", b""), "newline"),
        ((200, "text/plain", b"hello\n"), "malformed"),
        ((200, "text/plain", FORGED.cosign("o\n1\n" + "A" * 43 + "=\n", 1).encode()), "another key"),
        ((200, "text/plain", KEYS["w1"].cosign("o\n1\n" + "A" * 43 + "=\n", 1).encode()), "does not hold"),
        ((200, "text/plain", KEYS["w2"].cosign("o\n1\n" + "A" * 43 + "=\n", 1).encode()), "another key"),
        ((409, "text/x.tlog.size", b"0\n"), "changing its mind"),
        ((409, "text/x.tlog.size", b"x"), "says no size"),
        ((404, "text/plain", b""), "does not know this log"),
        ((403, "text/plain", b""), "another key of this log"),
        ((500, "text/plain", b""), "status 500"),
        ((301, "text/plain", b""), "status 301"),
    ],
)
def test_a_witness_that_lies_or_errs_gives_nothing(house, lie, why):
    house.log.append([b"a"])
    house.net.lies["w1"] = lie
    told = house.round()
    assert why in told["w1"].problem
    assert not told["w1"].contradicts
    assert cosigners(house.files.read(CHECKPOINT), house.policy) == ("w2", "w3")


def test_a_witness_without_an_address(house):
    house.policy = parse_policy(f"witness w1 {KEYS['w1'].verifier.vkey}\nquorum w1\n".encode())
    house.log.append([b"a"])
    assert house.round()["w1"].problem == "the policy names no address for it"


def test_a_policy_for_another_log_asks_nobody(house):
    other = NoteSigner(ORIGIN, b"o" * 32).vkey
    house.policy = parse_policy(f"log {other}\nquorum none\n".encode())
    with pytest.raises(Invalid, match="other logs"):
        house.round()


def test_a_damaged_record_is_said_so(house):
    house.records.commit([Change("witness", "w1", b"{", 0)])
    with pytest.raises(NotTrusted, match="record of the witness w1"):
        house.round()
    assert read_told(house.records, "w2") == Told(problem="it was not asked yet")
