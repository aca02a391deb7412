"""A corrupted corpus: what Go's ``sumdb/note`` and ``sumdb/tlog`` refuse, modelkeep refuses, and the other way round.

Where they differ, modelkeep is the stricter one and the reason stands beside the item; Go never refuses what modelkeep takes.
"""

import base64
import random

import pytest
from golang import signer_key
from memorylogfiles import MemoryLogFiles

from modelkeep.crypto.merkle import check_consistency, check_inclusion, consistency_path, inclusion_path, leaf_hash, root_of
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.ledger.proofs import check_proof
from modelkeep.ledger.tiles import tiles_of
from modelkeep.ledger.verify import verify_log

ORIGIN = "keep.example/releases"
SIGNER = NoteSigner(ORIGIN, bytes(range(32)))
STRANGER = NoteSigner("witness.example/w1", b"w" * 32)
IMPOSTOR = NoteSigner(ORIGIN, b"i" * 32)
SIZE = 300
ENTRIES = [b"entry %d" % number for number in range(SIZE)]
LEAVES = [leaf_hash(entry) for entry in ENTRIES]
UNUSED_BITS = (
    "Go's base64 decoder ignores the bits that the last character does not need; RFC 4648, section 3.5, lets us refuse them"
)
NEWLINES = "Go's base64 decoder skips newlines"
REPEATED = "Go looks at the first signature of a key only; we refuse a note in which any signature of the key does not hold"
BLANK = "C2SP tlog-checkpoint forbids empty extension lines; sumdb/tlog ignores whatever follows the third line"


def refused(call) -> bool:
    try:
        call()
    except (NotTrusted, Invalid):
        return True
    return False


def flips(data: bytes, count: int = 0):
    """``data`` with one bit turned over: each bit, or ``count`` of them."""
    where = range(len(data) * 8)
    for at in random.Random(len(data)).sample(where, count) if count else where:
        yield at, data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


def same_value(note: bytes, original: bytes) -> bool:
    """Whether ``note`` is ``original`` but for unused bits at the end of its signature's base64."""
    if note[: note.rfind(b" ")] != original[: original.rfind(b" ")] or not note.endswith(b"\n"):
        return False
    try:
        return base64.b64decode(note[note.rfind(b" ") + 1 : -1]) == base64.b64decode(original[original.rfind(b" ") + 1 : -1])
    except ValueError:
        return False


def signed(text: str) -> bytes:
    return SIGNER.sign(text)


def line_of(signer: NoteSigner, text: str) -> bytes:
    return signer.sign(text).rpartition(b"\n\n")[2]


ROOT = base64.b64encode(root_of(LEAVES)).decode()
TEXT = f"{ORIGIN}\n{SIZE}\n{ROOT}\n"
NOTE = signed(TEXT)
LINE = line_of(SIGNER, TEXT)
B64 = LINE.split(b" ")[2][:-1]
NON_CANONICAL_ROOT = ROOT[:-2] + chr(ord(ROOT[-2]) + 1) + "="

# name: (note, why modelkeep alone refuses it; "both" or "neither" refuse it)
NOTES = {
    "as it is": (NOTE, "neither"),
    "with a stranger's signature": (NOTE + line_of(STRANGER, TEXT), "neither"),
    "a stranger's signature first": (TEXT.encode() + b"\n" + line_of(STRANGER, TEXT) + LINE, "neither"),
    "with the same signature twice": (NOTE + LINE, "neither"),
    "with an extension line": (signed(TEXT + "an extension\n"), "neither"),
    "with a signature of the same key over something else": (NOTE + line_of(SIGNER, TEXT + "x\n"), REPEATED),
    "with a blank extension line": (signed(TEXT + "\nx\n"), BLANK),
    "a root with unused bits set": (signed(f"{ORIGIN}\n{SIZE}\n{NON_CANONICAL_ROOT}\n"), UNUSED_BITS),
    "signed by a stranger": (STRANGER.sign(TEXT), "both"),
    "signed by another key of this name": (IMPOSTOR.sign(TEXT), "both"),
    "of another log": (signed(TEXT.replace("keep", "other")), "both"),
    "of a log whose name goes on": (signed(TEXT.replace("\n", "2\n", 1)), "both"),
    "no root": (signed(f"{ORIGIN}\n{SIZE}\n"), "both"),
    "an empty root": (signed(f"{ORIGIN}\n{SIZE}\n\n"), "both"),
    "a short root": (signed(f"{ORIGIN}\n{SIZE}\n{base64.b64encode(bytes(31)).decode()}\n"), "both"),
    "a long root": (signed(f"{ORIGIN}\n{SIZE}\n{base64.b64encode(bytes(33)).decode()}\n"), "both"),
    "a root without padding": (signed(TEXT.replace("=", "")), "both"),
    "a root in URL-safe base64": (
        signed(f"{ORIGIN}\n{SIZE}\n{base64.urlsafe_b64encode(bytes([255] * 32)).decode()}\n"),
        "both",
    ),
    "a root with a space": (signed(TEXT.replace("=\n", "= \n")), "both"),
    "no signature line": (TEXT.encode() + b"\n", "both"),
    "no empty line": (TEXT.encode() + LINE, "both"),
    "no newline at the end": (NOTE[:-1], "both"),
    "one more newline at the end": (NOTE + b"\n", "both"),
    "a line behind the signature": (NOTE + b"more\n", "both"),
    "text before": (b"more\n" + NOTE, "both"),
    "carriage returns": (NOTE.replace(b"\n", b"\r\n"), "both"),
    "a carriage return in the signature": (NOTE.replace(B64, B64[:9] + b"\r" + B64[9:]), "both"),
    "a newline in the signature": (NOTE.replace(B64, B64[:9] + b"\n" + B64[9:]), "both"),
    "a tab": (NOTE.replace(b"\n300\n", b"\n300\t\n"), "both"),
    "a NUL": (NOTE + b"\0", "both"),
    "not UTF-8": (NOTE.replace(b"keep", b"ke\xffp"), "both"),
    "a surrogate": (NOTE.replace(b"keep", b"\xed\xa0\x80"), "both"),
    "a hyphen for the dash": (NOTE.replace("\u2014".encode(), b"-"), "both"),
    "a signature without its key id": (NOTE.replace(B64, base64.b64encode(base64.b64decode(B64)[4:])), "both"),
    "a signature cut short": (NOTE.replace(B64, base64.b64encode(base64.b64decode(B64)[:-1])), "both"),
    "a signature of nothing": (NOTE.replace(B64, base64.b64encode(base64.b64decode(B64)[:4])), "both"),
    "a signature with a byte more": (NOTE.replace(B64, base64.b64encode(base64.b64decode(B64) + b"x")), "both"),
    "a signature without padding": (NOTE.replace(b"=\n", b"\n"), "both"),
    "101 signatures": (NOTE + b"".join(line_of(NoteSigner(f"w{n}", b"w" * 32), TEXT) for n in range(100)), "both"),
    "a plus in a stranger's name": (NOTE + "\u2014 a+b AAAAAAA=\n".encode(), "both"),
    "a no-break space in a stranger's name": (NOTE + "\u2014 a\u00a0b AAAAAAA=\n".encode(), "both"),
    "empty": (b"", "both"),
    **{
        f"size {size!r}": (signed(f"{ORIGIN}\n{size}\n{ROOT}\n"), "both")
        for size in ("", "-1", "+300", "0300", "00", "3e2", "0x12c", " 300", "300 ", "\u0663", "9223372036854775808", "1" * 20)
    },
    "the largest size": (signed(f"{ORIGIN}\n9223372036854775807\n{ROOT}\n"), "neither"),
}


@pytest.fixture(scope="module")
def log():
    files = MemoryLogFiles()
    writer = ReleasesLog(files, SIGNER, ORIGIN)
    writer.create()
    writer.append(ENTRIES)
    return files


@pytest.fixture(scope="module")
def view(log):
    found = LogView(log, SIGNER.vkey, ORIGIN)
    found.refresh()
    return found


@pytest.mark.parametrize(("note", "who"), NOTES.values(), ids=NOTES.keys())
def test_notes(go, note, who):
    ours = refused(lambda: open_checkpoint(note, SIGNER.vkey, ORIGIN))
    theirs = go("checkpoint", Note=note, Key=SIGNER.vkey, Name=ORIGIN).error != ""
    assert (ours, theirs) == {"neither": (False, False), "both": (True, True)}.get(who, (True, False))


def test_a_checkpoint_with_one_bit_turned_or_its_end_cut_off(go):
    for at, note in [*flips(NOTE), *((cut, NOTE[:cut]) for cut in range(len(NOTE)))]:
        assert refused(lambda note=note: open_checkpoint(note, SIGNER.vkey, ORIGIN)), at
        taken = go("checkpoint", Note=note, Key=SIGNER.vkey, Name=ORIGIN).error == ""
        assert taken == (len(note) == len(NOTE) and same_value(note, NOTE)), (at, UNUSED_BITS)


def test_keys(go):
    vkey = SIGNER.vkey
    name, key_id, key = vkey.split("+", 2)
    public = base64.b64decode(key)
    bad = [vkey[:cut] for cut in range(len(vkey))]
    bad += [flipped.decode("latin-1") for _, flipped in flips(vkey.encode())]
    bad += [f"{name}+{key_id}+{base64.b64encode(other).decode()}" for other in (public + b"x", b"\x02" + public[1:], b"")]
    bad += [vkey + "=", vkey + "\n", " " + vkey, f"{name}+0x{key_id[2:]}+{key}", f"{name}++{key}", f"{name}+{key_id}"]
    for other in bad:
        taken = not refused(lambda other=other: open_checkpoint(NOTE, other, ORIGIN))
        by_go = go("checkpoint", Note=NOTE, Key=other, Name=ORIGIN).error == ""
        assert taken == (_key_id_in_lower_case(other) == vkey), other
        assert by_go == (_key_id_in_lower_case(other.rstrip("\n")) == vkey), (other, NEWLINES)


def _key_id_in_lower_case(vkey: str) -> str:
    name, plus, rest = vkey.partition("+")
    key_id, more, key = rest.partition("+")
    return name + plus + key_id.lower() + more + key


@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 300])
def test_inclusion(go, size):
    tree = _tree(size)
    root = tree.root_at(size)
    chance = random.Random(size)
    for index in sorted({0, 1 % size, size // 2, size - 1}):
        path = inclusion_path(index, size, tree.node)
        leaf = LEAVES[index]
        bad = [(path[:cut], size, root, index, leaf) for cut in range(len(path))]
        bad += [([*path, other], size, root, index, leaf) for other in (leaf, root)]
        bad += [(_swapped(path, a, b), size, root, index, leaf) for a in range(len(path)) for b in range(a)]
        bad += [(_split(flipped), size, root, index, leaf) for _, flipped in flips(b"".join(path), min(24, 256 * len(path)))]
        bad += [(path, other, root, index, leaf) for other in (0, -1, size - 1, size + 1, 2 * size)]
        bad += [(path, size, root, other, leaf) for other in (-1, size, index + 1, index - 1, index ^ 1)]
        bad += [(path, size, leaf_hash(b"!"), index, leaf), (path, size, root, index, leaf_hash(b"!"))]
        bad += [(path, size, root[:31], index, leaf), (path, size, root, index, leaf[:31]), (path, size, root, index, b"")]
        for case in [(path, size, root, index, leaf), *chance.sample(bad, len(bad))]:
            ours = refused(lambda case=case: check_inclusion(case[4], case[3], case[1], case[0], case[2]))
            said = go("record", Path=b"".join(case[0]), Size=case[1], Root=case[2], Index=case[3], Leaf=case[4])
            assert ours == (said.error != ""), case
            assert ours or _still_true(case, (path, size, root, index, leaf)), case


def _still_true(case, good):
    """A tree's size is not part of its root: a path can hold for another size, or (with the same path) another index."""
    return case == good or case[1] != good[1]


@pytest.mark.parametrize("size", [1, 2, 7, 255, 256, 257, 300])
def test_consistency(go, size):
    tree = _tree(size)
    root = tree.root_at(size)
    for old in sorted({1, max(1, size // 2), max(1, size - 1), 1 << (size.bit_length() - 1)}):
        path, before = consistency_path(old, size, tree.node), tree.root_at(old)
        bad = [(path[:cut], size, root, old, before) for cut in range(len(path))]
        bad += [([*path, other], size, root, old, before) for other in (before, root)]
        bad += [(_swapped(path, a, b), size, root, old, before) for a in range(len(path)) for b in range(a)]
        bad += [(_split(flipped), size, root, old, before) for _, flipped in flips(b"".join(path), min(24, 256 * len(path)))]
        bad += [(path, other, root, old, before) for other in (-1, old - 1, size + 1, 2 * size)]
        bad += [(path, size, root, other, before) for other in (-1, size + 1, old - 1, old + 1) if other]
        bad += [(path, size, leaf_hash(b"!"), old, before), (path, size, root, old, leaf_hash(b"!"))]
        for case in [(path, size, root, old, before), *bad]:
            ours = refused(lambda case=case: check_consistency(case[3], case[4], case[1], case[2], case[0]))
            said = go("tree", Path=b"".join(case[0]), Size=case[1], Root=case[2], Old=case[3], OldRoot=case[4])
            assert ours == (said.error != ""), case
            assert ours or case[0] == path, case


def test_folders(go, log):
    """A log's static files: each of them altered, cut, swapped, missing; checkpoints over another tree, by the real key."""
    good = {path: log.read(path) for path in ["checkpoint", *(tile.path for tile in tiles_of(SIZE))]}
    bad = []
    for path, data in good.items():
        bad += [(path, good | {path: flipped}) for _, flipped in flips(data, 40)]
        bad += [(path, good | {path: data[:cut]}) for cut in {0, 1, 31, 32, len(data) - 32, len(data) - 1} - {len(data)}]
        bad += [(path, good | {path: data + more}) for more in (b"\0", bytes(2), bytes(32))]
        bad += [(path, good | {path: other}) for name, other in good.items() if name != path]
        bad += [(path, {name: other for name, other in good.items() if name != path})]
    for path in ("tile/0/000", "tile/0/001.p/44"):
        bad += [(path, good | {path: b"".join(_swapped(_split(good[path]), a, b))}) for a, b in ((0, 1), (3, 40))]
    bundle = b"".join(len(entry).to_bytes(2, "big") + entry for entry in [ENTRIES[1], ENTRIES[0], *ENTRIES[2:256]])
    bad += [("two entries swapped", good | {"tile/entries/000": bundle})]
    for size in (0, 1, 44, 256, 299, 301, 556, 1 << 40):
        checkpoint = Checkpoint(ORIGIN, size, root_of(LEAVES)).sign(SIGNER)
        bad += [(f"said to have {size} entries", good | {"checkpoint": checkpoint})]
    bad += [("signed by an impostor", good | {"checkpoint": Checkpoint(ORIGIN, SIZE, root_of(LEAVES)).sign(IMPOSTOR)})]
    assert go("folder", Files=good, Key=SIGNER.vkey, Name=ORIGIN).error == ""
    verify_log(MemoryLogFiles(good), SIGNER.vkey, ORIGIN)
    for what, files in bad:
        assert refused(lambda files=files: verify_log(MemoryLogFiles(files), SIGNER.vkey, ORIGIN)), what
        taken = go("folder", Files=files, Key=SIGNER.vkey, Name=ORIGIN).error == ""
        assert taken == (same_value(files.get("checkpoint", b""), NOTE) and files["checkpoint"] != NOTE), (what, UNUSED_BITS)


def test_proof_files(go, view):
    """Every bit and every cut of a proof that travels, a proof of another entry, and lines moved about."""
    good = view.inclusion(257).encode()
    other = view.inclusion(3).encode()
    lines = good.split(b"\n")
    bad = [*(data for _, data in flips(good)), *(good[:cut] for cut in range(len(good)))]
    bad += [b"\n".join([*lines[:a], *lines[a + 1 :]]) for a in range(len(lines))]
    bad += [b"\n".join(_swapped(lines, a, b)) for a in range(len(lines)) for b in range(a) if lines[a] != lines[b]]
    bad += [b"\n".join([*lines[:a], lines[a], *lines[a:]]) for a in range(len(lines) - 2)]
    bad += [good.replace(lines[1], other.split(b"\n")[1]), good.replace(b"index 257", b"index 0257"), good + good]
    for data in bad:
        assert refused(lambda data=data: check_proof(data, SIGNER.vkey)), data
        if go("proof", Proof=data, Key=SIGNER.vkey, Name=ORIGIN).error == "":
            assert _lenient(data) == _lenient(good), (data, UNUSED_BITS)


def _lenient(proof: bytes) -> list[bytes]:
    """The values of a proof's lines, as a decoder sees them that ignores unused bits of base64."""
    head, _, note = proof.partition(b"\n\n")
    first, extra, index, *path = head.split(b"\n")
    text, _, line = note.rpartition(b"\n\n")
    decoded = [base64.b64decode(step) for step in (extra.split(b" ")[1], *path, line.split(b" ")[2])]
    return [first, index, text, *decoded, *dict.fromkeys(line.split(b" ")[:2])]


class _Tree:
    """The tree over the first leaves, by definition."""

    def __init__(self, size: int) -> None:
        self.leaves = LEAVES[:size]

    def node(self, level: int, index: int) -> bytes:
        return root_of(self.leaves[index << level : (index + 1) << level])

    def root_at(self, size: int) -> bytes:
        return root_of(self.leaves[:size])


def _tree(size: int) -> _Tree:
    return _Tree(size)


def _swapped(items, a, b):
    changed = list(items)
    changed[a], changed[b] = changed[b], changed[a]
    return changed


def _split(data: bytes) -> list[bytes]:
    return [data[at : at + 32] for at in range(0, len(data), 32)]


def test_the_signer_key_of_these_tests_is_gos(go):
    """A guard for the corpus itself: what Go signs with the same seed is what we sign."""
    written = go("write", Entries=ENTRIES, Key=signer_key(SIGNER.vkey, bytes(range(32))), Name=ORIGIN).files
    assert written["checkpoint"] == NOTE
