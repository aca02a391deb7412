"""The witness protocol: the requests and rules of the specification, and a log that forks while its witness crashes."""

import base64
import contextlib
import sys
import threading
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import Killed, MemoryLogFiles

from modelkeep.crypto.cosignatures import KINDS, Cosigner, cosignatures
from modelkeep.crypto.merkle import EMPTY_ROOT, check_consistency, consistency_path, leaf_hash, range_root, root_of
from modelkeep.crypto.notes import Checkpoint, NoteSigner, NoteVerifier, split_note
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.ledger.proofs import Continuation
from modelkeep.ledger.witness import (
    Objection,
    Refusal,
    Witness,
    checkpoint_path,
    origin_folder,
    parse_answer,
    refused_path,
)

ORIGIN = "keep.example/releases"
LOG = NoteSigner(ORIGIN, b"l" * 32)
KEYS = [Cosigner("witness.example/w", bytes([number]) * 32, kind) for number, kind in enumerate(KINDS.values())]
KNOWN = {ORIGIN: [NoteVerifier.parse(LOG.vkey)]}
EXAMPLE = (
    "old 20852014\nPlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\njrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
    "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n\n"
    "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n\n"
    "\u2014 example.com/behind-the-sofa "
    "Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
)


class Clock:
    """A clock that a test turns."""

    def __init__(self):
        self.at = 1_700_000_000

    def now_ns(self):
        return self.at * 10**9


class Tree:
    """A log's leaves, from which any honest or forked request is made."""

    def __init__(self, entries):
        self.leaves = [leaf_hash(entry) for entry in entries]

    def node(self, level, index):
        return root_of(self.leaves[index << level : (index + 1) << level])

    def root(self, size):
        return range_root(0, size, self.node)

    def note(self, size, signer=LOG):
        return Checkpoint(ORIGIN, size, self.root(size)).sign(signer)

    def ask(self, old, size, note=None):
        proof = consistency_path(old, size, self.node) if 0 < old < size else []
        return Continuation(old, tuple(proof), note or self.note(size)).encode()


TREE = Tree([b"%d" % number for number in range(40)])
FORK = Tree([b"%d" % number if number < 5 else b"!%d" % number for number in range(40)])


@pytest.fixture
def files():
    return MemoryLogFiles()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def witness(files, clock):
    return Witness(files, KEYS, KNOWN, clock)


def lines(answer):
    assert isinstance(answer, bytes), answer
    return parse_answer(200, "text/plain", answer)


def test_the_request_of_the_specification():
    asked = Continuation.parse(EXAMPLE.encode())
    assert (asked.old, len(asked.path)) == (20852014, 4)
    assert asked.checkpoint.startswith(b"example.com/behind-the-sofa\n20852163\n")
    assert asked.encode() == EXAMPLE.encode()


@pytest.mark.parametrize(
    "body",
    [
        "",
        "old 1",
        "old 1\n",
        "old 01\n\nx",
        "old -1\n\nx",
        "old  1\n\nx",
        "Old 1\n\nx",
        "old 1 \n\nx",
        "old 1\r\n\r\nx",
        "old \u0661\n\nx",
        "old 9223372036854775808\n\nx",
        "\nold 1\n\nx",
        "old 1\nAAAA\n\nx",
        "old 1\n" + base64.b64encode(b"r" * 33).decode() + "\n\nx",
        "old 1\n" + base64.b64encode(b"r" * 32).decode()[:-2] + "B=\n\nx",  # not canonical
        "old 1\n" + (base64.b64encode(b"r" * 32).decode() + "\n") * 64 + "\nx",
    ],
)
def test_requests_that_are_none(body, witness):
    with pytest.raises(Invalid):
        Continuation.parse(body.encode())
    assert witness.add_checkpoint(body.encode()).objection is Objection.MALFORMED


def test_it_cosigns_what_continues(witness, files):
    for old, size in pairwise([0, 1, 1, 7, 8, 40, 40]):
        found = lines(witness.add_checkpoint(TREE.ask(old, size)))
        note = TREE.note(size) + b"".join(line.encode() for line in found)
        assert len(cosignatures(note, [key.verifier for key in KEYS])) == len(KEYS)
        assert files.read(checkpoint_path(ORIGIN)) == note == witness.latest(origin_folder(ORIGIN))


def test_an_empty_log(witness):
    assert lines(witness.add_checkpoint(TREE.ask(0, 0)))
    assert lines(witness.add_checkpoint(TREE.ask(0, 3)))
    note = Checkpoint(ORIGIN, 0, b"x" * 32).sign(LOG)
    assert Witness(MemoryLogFiles(), KEYS, KNOWN, Clock()).add_checkpoint(TREE.ask(0, 0, note)).objection is Objection.FORK


@pytest.mark.parametrize(
    ("make", "objection"),
    [
        (lambda: TREE.ask(3, 8), Objection.STALE),
        (lambda: TREE.ask(0, 8), Objection.STALE),
        (lambda: TREE.ask(8, 9), Objection.STALE),
        (lambda: TREE.ask(8, 7), Objection.MALFORMED),
        (lambda: TREE.ask(7, 6), Objection.MALFORMED),
        (lambda: FORK.ask(7, 7), Objection.FORK),
        (lambda: FORK.ask(7, 9), Objection.BAD_PROOF),
        (lambda: Continuation(7, (), TREE.note(9)).encode(), Objection.BAD_PROOF),
        (lambda: Continuation(7, (b"x" * 32,), TREE.note(7)).encode(), Objection.BAD_PROOF),
        (lambda: TREE.ask(7, 9, TREE.note(9, NoteSigner(ORIGIN, b"m" * 32))), Objection.NOT_SIGNED),
        (lambda: TREE.ask(7, 9, TREE.note(9).replace(b"\n9\n", b"\n8\n")), Objection.NOT_SIGNED),
        (lambda: TREE.ask(7, 9, TREE.note(9).replace(b"keep.", b"beep.")), Objection.UNKNOWN_LOG),
        (lambda: TREE.ask(7, 9, LOG.sign("not a checkpoint\n")), Objection.MALFORMED),
        (lambda: TREE.ask(7, 9, TREE.note(9)[:-2]), Objection.MALFORMED),
    ],
)
def test_what_it_does_not_cosign(witness, files, make, objection):
    lines(witness.add_checkpoint(TREE.ask(0, 7)))
    before = files.read(checkpoint_path(ORIGIN))
    refusal = witness.add_checkpoint(make())
    assert refusal.objection is objection
    assert files.read(checkpoint_path(ORIGIN)) == before
    assert refusal.size == (7 if objection is Objection.STALE else 0)
    evidence = refusal.objection in (Objection.FORK, Objection.BAD_PROOF)
    assert (refused_path(ORIGIN) in files.files) == evidence
    if evidence:
        assert files.read(refused_path(ORIGIN)) == make()


def test_signatures_of_strangers_do_not_matter(witness):
    stranger = NoteSigner("stranger.example/x", b"s" * 32).sign(split_note(TREE.note(4))[0])
    note = TREE.note(4) + stranger.rpartition(b"\n\n")[2]
    assert lines(witness.add_checkpoint(TREE.ask(0, 4, note)))
    assert b"stranger" not in witness.latest(origin_folder(ORIGIN))


def test_a_log_may_have_two_keys(files, clock):
    other = NoteSigner(ORIGIN, b"m" * 32)
    witness = Witness(files, KEYS, {ORIGIN: [NoteVerifier.parse(other.vkey), *KNOWN[ORIGIN]]}, clock)
    assert lines(witness.add_checkpoint(TREE.ask(0, 4)))
    assert lines(witness.add_checkpoint(TREE.ask(4, 5, TREE.note(5, other))))


def test_extension_lines_are_cosigned_as_they_are(witness):
    note = LOG.sign(Checkpoint(ORIGIN, 4, TREE.root(4)).text() + "an extension\n")
    answer = witness.add_checkpoint(TREE.ask(0, 4, note))
    assert cosignatures(note + answer, [key.verifier for key in KEYS])


def test_the_time_never_goes_backwards(witness, clock):
    lines(witness.add_checkpoint(TREE.ask(0, 4)))
    clock.at -= 1000
    answer = witness.add_checkpoint(TREE.ask(4, 5))
    assert set(cosignatures(TREE.note(5) + answer, [key.verifier for key in KEYS]).values()) == {1_700_000_000}


@pytest.mark.parametrize("damage", ["cut", "flip", "stranger", "log only"])
def test_a_damaged_memory_is_never_taken_for_an_empty_one(witness, files, damage):
    lines(witness.add_checkpoint(TREE.ask(0, 7)))
    note = files.read(checkpoint_path(ORIGIN))
    text = split_note(note)[0]
    stranger = Cosigner("witness.example/w", b"s" * 32).cosign(text, 1)
    files.files[checkpoint_path(ORIGIN)] = {
        "cut": note[:-20],
        "flip": note.replace(b"\n7\n", b"\n6\n"),
        "stranger": TREE.note(7) + stranger.encode(),
        "log only": TREE.note(7),
    }[damage]
    for ask in (TREE.ask(0, 7), TREE.ask(7, 8), FORK.ask(0, 9)):
        with pytest.raises(NotTrusted, match="remembers"):
            witness.add_checkpoint(ask)


def test_no_cosignature_leaves_before_it_is_durable(witness, files):
    files.fail_from = 0
    with pytest.raises(Unavailable):
        witness.add_checkpoint(TREE.ask(0, 7))
    files.fail_from = -1
    assert lines(witness.add_checkpoint(FORK.ask(0, 7)))


class Meeting(MemoryLogFiles):
    """Files whose readers wait a moment for a second reader: whoever decides on what he read alone is found out."""

    def __init__(self):
        super().__init__()
        self.meet = threading.Barrier(2)

    def read(self, path):
        try:
            return super().read(path)
        finally:
            with contextlib.suppress(threading.BrokenBarrierError):
                self.meet.wait(0.3)


def test_two_forks_at_once(clock):
    witness = Witness(Meeting(), KEYS[:1], KNOWN, clock)
    answers = []
    threads = [
        threading.Thread(target=lambda tree: answers.append(witness.add_checkpoint(tree.ask(0, 9))), args=(tree,))
        for tree in (TREE, FORK)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(answer, bytes) for answer in answers) == [False, True]
    assert next(answer for answer in answers if not isinstance(answer, bytes)).objection is Objection.STALE


STEPS = st.lists(
    st.tuples(st.sampled_from(["ask", "crash before", "crash after"]), st.sampled_from([TREE, FORK]), st.integers(0, 12)),
    max_size=14,
)


@settings(max_examples=60, deadline=None)
@given(STEPS)
def test_one_history_whatever_a_log_with_its_real_key_asks_and_whenever_the_witness_dies(steps):
    """Everything that ever left the witness lies on one history: each cosigned tree continues the one before."""
    files, clock = MemoryLogFiles(), Clock()
    left: list[tuple[Tree, int]] = []
    for fate, tree, size in steps:
        witness = Witness(files, KEYS[:1], KNOWN, clock)  # a process that starts now
        for old in range(size + 1):
            files.kill_at = files.steps if fate != "ask" else -1
            files.torn = 1 if fate == "crash after" else 0
            try:
                answer = witness.add_checkpoint(tree.ask(old, size))
            except Killed:
                files = files.copy()
                break
            files.kill_at = -1
            if isinstance(answer, bytes):
                left.append((tree, size))
                break
    roots: dict[int, bytes] = {}
    for tree, size in left:
        assert roots.setdefault(size, tree.root(size)) == tree.root(size)
    for (_, old), (tree, size) in pairwise(left):
        proof = consistency_path(old, size, tree.node) if 0 < old < size else []
        check_consistency(old, roots[old] if old else EMPTY_ROOT, size, tree.root(size), proof)


@pytest.mark.parametrize(
    ("status", "kind", "body", "found"),
    [
        (409, "text/x.tlog.size", b"12\n", Refusal(Objection.STALE, "it has seen another size", 12)),
        (409, "text/x.tlog.size", b"0\n", Refusal(Objection.STALE, "it has seen another size", 0)),
        (409, "text/plain", b"fork", Refusal(Objection.FORK, Objection.FORK.value)),
        (422, "", b"", Refusal(Objection.BAD_PROOF, Objection.BAD_PROOF.value)),
        (403, "", b"", Refusal(Objection.NOT_SIGNED, Objection.NOT_SIGNED.value)),
        (404, "", b"", Refusal(Objection.UNKNOWN_LOG, Objection.UNKNOWN_LOG.value)),
        (400, "", b"", Refusal(Objection.MALFORMED, Objection.MALFORMED.value)),
    ],
)
def test_answers(status, kind, body, found):
    assert parse_answer(status, kind, body) == found


@pytest.mark.parametrize(
    ("status", "kind", "body"),
    [
        (409, "text/x.tlog.size", b""),
        (409, "text/x.tlog.size", b"50"),
        (409, "text/x.tlog.size", b"050\n"),
        (409, "text/x.tlog.size", b"-1\n"),
        (409, "text/x.tlog.size", b"9223372036854775808\n"),
        (200, "", b""),
        (200, "", b"\xff\n"),
        (200, "", b"hello\n"),
        (200, "", "\u2014 w AAAAAAAA".encode()),
        (500, "", b""),
        (302, "", b""),
    ],
)
def test_answers_that_are_none(status, kind, body):
    with pytest.raises(NotTrusted):
        parse_answer(status, kind, body)
