"""Sealed files with no keep: seal, open, inspect, rewrap, reencrypt, keygen, as people use them and as they go wrong."""

import contextlib
import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from commandline import Cli
from softhsm import Token

from modelkeep.adapters.keys.uri import open_keys
from modelkeep.adapters.tails import Journal, journal_of
from modelkeep.container import BytesReader, split_file
from modelkeep.crypto.xwing import generate_identity, recipient_of

COMMAND = Path(sys.executable).parent / "modelkeep"
WORD = "a passphrase of several words"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty folder to work in, with a file, two identities, a passphrase and a ring's passphrase."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.bin").write_bytes(os.urandom(300_000))
    for name in ("alice", "bob"):
        identity = generate_identity()
        (tmp_path / f"{name}.key").write_text(f"# {name}\n{identity}\n")
        (tmp_path / f"{name}.pub").write_text(recipient_of(identity) + "\n")
    (tmp_path / "word").write_text(WORD + "\n")
    (tmp_path / "other").write_text("quite another passphrase\n")
    (tmp_path / "ringword").write_text("the passphrase of a ring\n")
    return tmp_path


@pytest.fixture
def run(here):
    """The command line where there is no keep."""
    return Cli(here / "nothing", here / "nothing")


def sealed(run, *more, file="m.bin"):
    done = run("--json", "seal", file, *(more or ("-R", "alice.pub")), code=0).json
    return Path(done[0]["sealed"])


def body_of(path):
    raw = Path(path).read_bytes()
    return hashlib.sha256(raw[: split_file(BytesReader(raw)).body.size]).hexdigest()


def ids(run, path):
    return [row["id"] for row in run("inspect", str(path), "--json", code=0).json["recipients"]]


def id_of(run, name):
    run("seal", "word", "-R", f"{name}.pub", "-o", f"{name}.probe", code=0)
    return ids(run, f"{name}.probe")[0]


# -- keygen --


def test_keygen_writes_a_secret_once_and_prints_what_is_public(run, here):
    said = run("keygen", "-o", "me.key", code=0)
    recipient = recipient_of((here / "me.key").read_text().splitlines()[-1])
    assert recipient in said.out and "modelkeep-recovery-" not in said.out + said.err
    assert (here / "me.key").stat().st_mode & 0o777 == 0o600
    assert f"# recipient: {recipient}" in (here / "me.key").read_text()
    before = (here / "me.key").read_bytes()
    assert "exists already" in run("keygen", "-o", "me.key", code=1).line()
    assert (here / "me.key").read_bytes() == before
    assert run("keygen", "-y", "me.key", code=0).out.strip() == recipient
    made = run("keygen", "--json", code=0).json
    assert recipient_of(made["identity"]) == made["recipient"]
    assert run("keygen", code=0).out.count("modelkeep-recovery-") == 1


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("-o", "none/me.key"), 2, "no folder"),
        (("-y", "none"), 2, "no file"),
        (("-y", "alice.pub"), 2, "public recipient"),
        (("-y", "m.bin"), 2, "not text"),
        (("-y", "word"), 2, "identities"),
        (("-o", "x", "-y", "alice.key"), 2, "one of them"),
        (("--key", "gopher:x"), 2, "key URI"),
    ],
    ids=str,
)
def test_keygen_says_what_is_wrong(run, arguments, code, words):
    ran = run("keygen", *arguments, code=code)
    assert words in ran.line() and "modelkeep-recovery-" not in ran.out + ran.err


# -- seal and open --


def test_the_way_there_and_back(run, here):
    original = (here / "m.bin").read_bytes()
    told = run("seal", "m.bin", "-R", "alice.pub", code=0)
    assert "m.bin.keep" in told.out and "still there" in told.out and not told.err
    assert (here / "m.bin.keep").stat().st_mode & 0o777 == 0o600
    (here / "m.bin").unlink()
    said = run("open", "m.bin.keep", "-i", "alice.key", code=0)
    assert "m.bin" in said.out and "in the clear" in said.out
    assert (here / "m.bin").read_bytes() == original and (here / "m.bin").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in here.iterdir() if path.name.startswith(".")) == []


@pytest.mark.parametrize("content", [b"", b"x", b"KEEPFLS\n\0\0\0\1"], ids=["empty", "one byte", "looks like a list of files"])
def test_small_and_odd_contents_come_back(run, here, content):
    (here / "x").write_bytes(content)
    sealed(run, file="x")
    run("open", "x.keep", "-i", "alice.key", "-o", "back", code=0)
    assert (here / "back").read_bytes() == content


def test_a_passphrase_from_a_file_or_the_environment(run, here):
    sealed(run, "--seal-passphrase-file", "word")
    assert ids(run, "m.bin.keep") == ["passphrase"]
    there = run.with_environment(MODELKEEP_SEAL_PASSPHRASE_FILE="word")
    there("open", "m.bin.keep", "-o", "back", code=0)
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes()
    wrong = run("open", "m.bin.keep", "-o", "b2", "--seal-passphrase-file", "other", code=1)
    assert "wrong key or passphrase" in wrong.line() and not (here / "b2").exists()
    assert "--seal-passphrase-file" in run("open", "m.bin.keep", "-o", "b2", code=2).line()
    assert "--seal-passphrase-file" in run("seal", "word", code=2).line()


def test_the_keep_s_passphrase_is_not_the_file_s(run, here):
    there = run.with_environment(MODELKEEP_PASSPHRASE_FILE=str(here / "word"))
    assert "--seal-passphrase-file" in there("seal", "m.bin", code=2).line()


def test_recipients_and_a_passphrase_together(run, here):
    sealed(
        run, "-R", "alice.pub", "-r", (here / "bob.pub").read_text().strip(), "--passphrase", "--seal-passphrase-file", "word"
    )
    assert [id_.split(":")[0] for id_ in ids(run, "m.bin.keep")] == ["xwing", "xwing", "passphrase"]
    for number, how in enumerate((("-i", "alice.key"), ("-i", "bob.key"), ("--seal-passphrase-file", "word"))):
        run("open", "m.bin.keep", *how, "-o", f"back{number}", code=0)
        assert (here / f"back{number}").read_bytes() == (here / "m.bin").read_bytes()


def test_several_files_at_once(run, here):
    (here / "n.bin").write_bytes(b"n" * 1000)
    done = run("--json", "seal", "m.bin", "n.bin", "-R", "alice.pub", code=0).json
    assert [row["sealed"] for row in done] == ["m.bin.keep", "n.bin.keep"]
    assert "one output" in run("seal", "m.bin", "n.bin", "-R", "alice.pub", "-o", "x", code=2).line()


def test_duplicate_recipients_count_once(run, here):
    text = (here / "alice.pub").read_text().strip()
    (here / "team").write_text(f"# the team\n\n{text}\n   {text}\n")
    sealed(run, "-R", "team", "-r", text)
    assert len(ids(run, "m.bin.keep")) == 1


def test_a_file_of_recipients_says_not_what_to_load_here(run, here):
    (here / "team").write_text("pkcs11:token=t;object=k?module-path=/tmp/elsewhere.so&pin-source=file:/dev/null\n")
    for command in (("seal", "m.bin"), ("rewrap", "m.bin.keep")):
        assert "give that URI with -r" in run(*command, "-R", "team", code=2).line()


def test_a_passphrase_file_given_for_recipients_is_not_quoted(run, here):
    said = run("seal", "m.bin", "-R", "word", code=2).line()
    assert "not a file of recipients" in said and "several" not in said


def test_sixty_five_recipients_are_too_many_and_sixty_four_are_not(run, here):
    everyone = [recipient_of(generate_identity()) for _ in range(64)]
    (here / "all").write_text("\n".join(everyone))
    assert "at most 64" in run("seal", "m.bin", "-R", "all", "-R", "alice.pub", code=2).line()
    assert not (here / "m.bin.keep").exists()
    sealed(run, "-R", "all")
    assert len(ids(run, "m.bin.keep")) == 64
    assert "65 recipients" in run("rewrap", "m.bin.keep", "-R", "alice.pub", "-i", "alice.key", code=2).line()


def prepared(here):
    """Everything that may stand where a file is expected."""
    (here / "folder").mkdir()
    (here / "empty").write_bytes(b"")
    (here / "comments").write_text("# nobody\n\n")
    (here / "binary").write_bytes(bytes(range(128, 256)))
    (here / "taken").write_text("mine")
    (here / "unreadable").write_text("x")
    (here / "unreadable").chmod(0)
    (here / "dangling").symlink_to(here / "nowhere")
    os.mkfifo(here / "pipe")


SEAL = [
    (("none", "-R", "alice.pub"), 2, "no file none"),
    (("folder", "-R", "alice.pub"), 2, "folder"),
    (("pipe", "-R", "alice.pub"), 2, "pipe"),
    (("/dev/null", "-R", "alice.pub"), 2, "device"),
    (("dangling", "-R", "alice.pub"), 2, "no file dangling"),
    (("m.bin", "-R", "none"), 2, "no file none"),
    (("m.bin", "-R", "empty"), 2, "empty holds no recipient"),
    (("m.bin", "-R", "comments"), 2, "holds no recipient"),
    (("m.bin", "-R", "binary"), 2, "not text"),
    (("m.bin", "-R", "folder"), 2, "folder"),
    (("m.bin", "-R", "word"), 2, "not a file of recipients"),
    (("m.bin", "-R", "alice.key"), 2, "private identity"),
    (("m.bin", "-r", "alice.pub"), 2, "-R"),
    (("m.bin", "-r", "modelkeep-recipient-AAAA"), 2, "mistyped or cut"),
    (("m.bin", "-r", "gopher:x"), 2, "not a recipient"),
    (("m.bin", "-R", "alice.pub", "-o", "taken"), 1, "exists already"),
    (("m.bin", "-R", "alice.pub", "-o", "folder"), 1, "is a folder"),
    (("m.bin", "-R", "alice.pub", "-o", "folder", "--force"), 1, "is a folder"),
    (("m.bin", "-R", "alice.pub", "-o", "none/x"), 2, "no folder"),
    (("m.bin", "-R", "alice.pub", "-o", "dangling"), 1, "exists already"),
    (("m.bin", "--seal-passphrase-file", "empty"), 2, "8 characters"),
    (("m.bin", "--seal-passphrase-file", "none"), 2, "no file none"),
    (("m.bin", "-R", "alice.pub", "-o", "-", "--json"), 2, "standard output"),
    (("m.bin", "-R", "alice.pub", "-o", "-", "--remove-plaintext"), 2, "pipe"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), SEAL, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_seal_says_what_is_wrong_and_leaves_nothing(run, here, arguments, code, words):
    prepared(here)
    before = {path.name for path in here.iterdir()}
    ran = run("seal", *arguments, code=code)
    said = json.loads(ran.err)["message"] if "--json" in arguments else ran.line()
    assert words in said and "modelkeep-recovery" not in said
    assert {path.name for path in here.iterdir()} == before and (here / "taken").read_text() == "mine"


def test_sealed_files_are_not_sealed_again(run):
    sealed(run)
    assert "sealed already" in run("seal", "m.bin.keep", "-R", "alice.pub", code=2).line()


def test_force_replaces_a_file_and_nothing_less_does(run, here):
    sealed(run)
    before = (here / "m.bin.keep").read_bytes()
    assert "exists already" in run("seal", "m.bin", "-R", "bob.pub", code=1).line()
    assert (here / "m.bin.keep").read_bytes() == before
    run("seal", "m.bin", "-R", "bob.pub", "--force", code=0)
    run("open", "m.bin.keep", "-i", "bob.key", "-o", "back", code=0)


@contextlib.contextmanager
def as_nobody():
    """Without root's powers, which no permission stops."""
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_files_that_somebody_else_may_not_touch(run, here):
    sealed(run)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)
        for name in ("m.bin.keep", "alice.key", "alice.pub"):
            (folder / name).write_bytes((here / name).read_bytes())
            (folder / name).chmod(0o644)
        (folder / "secret").write_bytes(b"x")
        (folder / "secret").chmod(0)
        at = lambda name: str(folder / name)  # noqa: E731
        verbs = {
            ("seal", at("secret"), "-R", at("alice.pub"), "-o", "/tmp/never.keep"): "secret: Permission denied",
            ("seal", at("alice.pub"), "-R", at("alice.pub")): "alice.pub.keep: Permission denied",
            ("open", at("m.bin.keep"), "-i", at("secret"), "-o", "/tmp/never"): "secret: Permission denied",
            ("open", at("m.bin.keep"), "-i", at("alice.key")): "m.bin: Permission denied",
            ("rewrap", at("m.bin.keep"), "-i", at("alice.key"), "-R", at("alice.pub")): "m.bin.keep: Permission denied",
            ("reencrypt", at("m.bin.keep"), "-i", at("alice.key")): "m.bin.keep: Permission denied",
            ("inspect", at("secret")): "secret: Permission denied",
        }
        for arguments, words in verbs.items():
            with as_nobody():
                ran = run(*arguments)
            assert ran.code == 3 and words in ran.line(), (arguments, ran.err)
        with as_nobody():
            run("inspect", at("m.bin.keep"), code=0)


def test_keys_come_through_pipes(run, here):
    sealed(run)
    script = f"{COMMAND} open m.bin.keep -i <(cat alice.key) -o back && {COMMAND} seal back -R <(cat alice.pub)"
    subprocess.run(["bash", "-c", script], check=True, capture_output=True, timeout=60)
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes() and (here / "back.keep").exists()


# -- what does not open --


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


def test_a_flipped_bit_in_every_region_is_refused(run, here):
    path = sealed(run)
    raw = path.read_bytes()
    parts = split_file(BytesReader(raw))
    body, end = parts.body.size, len(raw)
    places = [*range(48), 60, 150_000, body - 100, *range(body - 24, body), *range(body, body + 60), body + 700,
              *range(end - 60, end)]  # fmt: skip
    for at in places:
        flip(path, at)
        ran = run("open", "m.bin.keep", "-i", "alice.key", "-o", "back")
        assert ran.code == 1 and "m.bin.keep" in ran.line(), (at, ran.err)
        assert not (here / "back").exists()
        path.write_bytes(raw)


def test_a_file_that_was_cut_or_grew_is_refused(run, here):
    path = sealed(run)
    raw = path.read_bytes()
    for cut in (0, 1, 7, 8, 47, 48, 100, 5000, len(raw) - 1300, len(raw) - 20, len(raw) - 1):
        path.write_bytes(raw[:cut])
        for verb in (("open", "-i", "alice.key", "-o", "back"), ("inspect",), ("rewrap", "-R", "bob.pub", "-i", "alice.key"),
                     ("reencrypt", "-i", "alice.key")):  # fmt: skip
            ran = run(verb[0], "m.bin.keep", *verb[1:])
            assert ran.code == 1 and "cut off" in ran.line(), (cut, verb, ran.err)
        assert path.read_bytes() == raw[:cut] and not (here / "back").exists()
    path.write_bytes(raw + b"\n")
    assert "bytes were added" in run("open", "m.bin.keep", "-i", "alice.key", "-o", "back", code=1).line()


OPEN = [
    (("m.bin.keep", "-i", "bob.key", "-o", "back"), 1, "other recipients"),
    (("m.bin.keep", "-o", "back"), 2, "-i"),
    (("m.bin.keep", "-i", "alice.pub", "-o", "back"), 2, "opens nothing"),
    (("m.bin.keep", "-i", "none", "-o", "back"), 2, "no file none"),
    (("m.bin.keep", "-i", "empty", "-o", "back"), 2, "no identity"),
    (("m.bin.keep", "-i", "binary", "-o", "back"), 2, "not text"),
    (("m.bin.keep", "-i", "folder", "-o", "back"), 2, "folder"),
    (("m.bin.keep", "-i", "file:none.ring", "-o", "back"), 1, "other recipients"),
    (("m.bin.keep", "-i", "alice.key", "-o", "taken"), 1, "exists already"),
    (("m.bin.keep", "-i", "alice.key"), 1, "exists already"),
    (("m.bin.keep", "-i", "alice.key", "-o", "none/x"), 2, "no folder"),
    (("m.bin.keep", "-i", "alice.key", "-o", "-", "--json"), 2, "standard output"),
    (("m.bin", "-i", "alice.key", "-o", "back"), 1, "not a modelkeep container"),
    (("m.bin", "-i", "alice.key"), 2, "name an output"),
    (("empty", "-i", "alice.key", "-o", "back"), 1, "empty"),
    (("none", "-i", "alice.key", "-o", "back"), 2, "no file none"),
    (("folder", "-i", "alice.key", "-o", "back"), 2, "folder"),
    (("pipe", "-i", "alice.key", "-o", "back"), 2, "pipe"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), OPEN, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_open_says_what_is_wrong_and_leaves_nothing(run, here, arguments, code, words):
    prepared(here)
    sealed(run)
    before = {path.name for path in here.iterdir()}
    run = run.with_environment(MODELKEEP_RING_PASSPHRASE_FILE="ringword")
    ran = run("open", *arguments, code=code)
    said = json.loads(ran.err)["message"] if "--json" in arguments else ran.line()
    assert words in said
    assert {path.name for path in here.iterdir()} == before and (here / "taken").read_text() == "mine"


def test_parts_of_a_keep_are_not_stand_alone_files(template, run, here):
    for verb in (("open", "-o", "back"), ("rewrap", "-R", "alice.pub"), ("reencrypt",)):
        ran = run(verb[0], str(template / "keys" / "model-kek.keep"), *verb[1:], "--seal-passphrase-file", "word", code=1)
        assert "keys of modelkeep's own" in ran.line()
    blob = max((template / "blobs").rglob("*"), key=lambda path: path.stat().st_size if path.is_file() else 0)
    assert "its keep opens it" in run("open", str(blob), "-i", "alice.key", "-o", "back", code=1).line()
    assert not (here / "back").exists()


# -- inspect --


def test_inspect_needs_no_key_and_tells_claims_from_facts(run, here):
    path = sealed(run, "-R", "alice.pub", "--passphrase", "--seal-passphrase-file", "word")
    found = run("inspect", "m.bin.keep", "--json", code=0).json
    assert found["sealed_digest"] == f"sha256:{body_of(path)}"
    assert found["header_hash"] == "sha256:" + hashlib.sha256(path.read_bytes()[:48]).hexdigest()
    assert found["claims"]["model_digest"] == "sha256:" + hashlib.sha256((here / "m.bin").read_bytes()).hexdigest()
    assert found["claims"]["purpose"] == "file" and found["form"] == "file" and found["pending"] is False
    assert found["sizes"]["file"] == path.stat().st_size == found["sizes"]["body"] + found["sizes"]["recipients"]
    assert [row["kind"] for row in found["recipients"]] == ["x-wing", "passphrase"]
    text = run("inspect", "m.bin.keep", code=0).out
    assert text.count("claimed") == 3 and "Argon2id, 64 MiB" in text and found["sealed_digest"] in text
    assert "as expected" in run("inspect", "m.bin.keep", "--expect", found["sealed_digest"], code=0).out
    assert "not the one" in run("inspect", "m.bin.keep", "--expect", "sha256:" + "0" * 64, code=1).line()
    assert "not a digest" in run("inspect", "m.bin.keep", "--expect", "x", code=2).line()


def test_inspect_reads_bodies_and_compartments_of_a_keep(template, run):
    blob = max((path for path in (template / "blobs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    found = run("inspect", str(blob), "--json", code=0).json
    assert found["form"] == "body" and found["sealed_digest"] == f"sha256:{blob.name}" and found["recipients"] == []
    assert "without its recipients" in run("inspect", str(blob), code=0).out
    found = run("inspect", str(template / "keys" / "model-kek.keep"), "--json", code=0).json
    assert found["claims"]["purpose"] == "keys/model-kek"


def test_inspect_of_what_is_not_sealed(run):
    assert "not a modelkeep container" in run("inspect", "m.bin", code=1).line()


# -- rewrap and reencrypt --


def test_rewrap_adds_and_removes_and_leaves_the_body(run, here):
    path = sealed(run)
    body, alice, bob = body_of(path), id_of(run, "alice"), id_of(run, "bob")
    run("rewrap", "m.bin.keep", "-i", "alice.key", "-R", "bob.pub", code=0)
    assert ids(run, path) == [bob, alice] and body_of(path) == body
    said = run("rewrap", "m.bin.keep", "-i", "bob.key", "--remove-recipient", alice, code=0)
    assert "rewrapped" in said.out and ids(run, path) == [bob] and body_of(path) == body
    assert "other recipients" in run("open", "m.bin.keep", "-i", "alice.key", "-o", "back", code=1).line()
    run("open", "m.bin.keep", "-i", "bob.key", "-o", "back", code=0)
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes()


def test_rewrap_is_idempotent_and_needs_no_key_for_what_is_done(run):
    path = sealed(run)
    alice = id_of(run, "alice")
    change = ("rewrap", "m.bin.keep", "-i", "alice.key", "-R", "bob.pub", "--remove-recipient", alice)
    assert run("--json", *change, code=0).json[0]["changed"] is True
    raw, when = path.read_bytes(), path.stat().st_mtime_ns
    again = run("--json", *change, code=0).json[0]
    assert again["changed"] is False and again["absent"] == [alice]
    assert path.read_bytes() == raw and path.stat().st_mtime_ns == when
    assert "was no recipient" in run(*change, code=0).out


def test_rewrap_to_a_passphrase_and_to_a_new_one(run, here):
    path = sealed(run)
    run("rewrap", "m.bin.keep", "-i", "alice.key", "--new-passphrase-file", "word", "--remove-others", code=0)
    assert ids(run, path) == ["passphrase"]
    old = ("--seal-passphrase-file", "word")
    run("rewrap", "m.bin.keep", *old, "--passphrase", "--new-passphrase-file", "other", code=0)
    assert "wrong key" in run("open", "m.bin.keep", *old, "-o", "back", code=1).line()
    run("open", "m.bin.keep", "--seal-passphrase-file", "other", "-o", "back", code=0)


def test_only_if_under_leaves_others_alone(run):
    path = sealed(run)
    raw = path.read_bytes()
    run("rewrap", "m.bin.keep", "-i", "alice.key", "-R", "bob.pub", "--only-if-under", "file:ring/1", code=0)
    assert path.read_bytes() == raw
    run("rewrap", "m.bin.keep", "-i", "alice.key", "-R", "bob.pub", "--only-if-under", id_of(run, "alice"), code=0)
    assert path.read_bytes() != raw


REWRAP = [
    (("-i", "bob.key", "-R", "bob.pub"), 1, "other recipients"),
    (("-i", "alice.key"), 2, "nothing to change"),
    (("-i", "alice.key", "--remove-others"), 2, "--remove-others needs"),
    (("-i", "alice.key", "--remove-recipient", "ALICE"), 2, "nobody could open"),
    (("-i", "alice.key", "-R", "alice.pub", "--remove-recipient", "ALICE"), 2, "choose one"),
    (("-R", "bob.pub"), 2, "-i"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "words"), REWRAP, ids=lambda value: " ".join(value) if isinstance(value, tuple) else ""
)
def test_rewrap_says_what_is_wrong_and_changes_nothing(run, arguments, code, words):
    path = sealed(run)
    raw, alice = path.read_bytes(), id_of(run, "alice")
    ran = run("rewrap", "m.bin.keep", *(alice if word == "ALICE" else word for word in arguments), code=code)
    assert words in ran.line() and path.read_bytes() == raw


def test_one_passphrase_is_read_once_for_many_files(run, here):
    names = [f"{number}.bin" for number in range(6)]
    for name in names:
        (here / name).write_bytes(b"x")
    run("seal", *names, "--seal-passphrase-file", "word", code=0)
    files = [f"{name}.keep" for name in names]
    script = f"{COMMAND} rewrap {' '.join(files)} --seal-passphrase-file <(cat word) -R alice.pub"  # a pipe gives it once
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
    assert "6 rewrapped" in done.stdout, done.stderr
    for verb in ("rewrap", "reencrypt"):
        script = f"{COMMAND} {verb} {' '.join(files)} -i <(cat alice.key) -R bob.pub --remove-recipient passphrase"
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert f"6 {verb}" in done.stdout, done.stderr


def test_many_files_and_one_that_fails(run, here):
    files = []
    for number in range(12):
        (here / f"{number}.bin").write_bytes(os.urandom(1000))
        files.append(str(sealed(run, file=f"{number}.bin")))
    (here / "5.bin.keep").write_bytes(b"not sealed")
    bodies = {file: body_of(file) for file in files if file != "5.bin.keep"}
    ran = run("rewrap", *files, "-i", "alice.key", "-R", "bob.pub", code=1)
    assert "11 rewrapped, 0 as they should be already, 1 failed" in ran.out and "5.bin.keep" in ran.line()
    assert {file: body_of(file) for file in bodies} == bodies
    again = run("--json", "rewrap", *files, "-i", "alice.key", "-R", "bob.pub", code=1).json
    assert [row.get("changed", row.get("code")) for row in again].count(False) == 11
    assert next(row for row in again if row["file"] == "5.bin.keep")["code"] == "not-trusted"


def test_reencrypt_makes_another_body_with_the_same_contents(run, here):
    path = sealed(run, "-R", "alice.pub", "-R", "bob.pub")
    path.chmod(0o640)
    bob, before = id_of(run, "bob"), body_of(path)
    assert "would be lost" in run("reencrypt", "m.bin.keep", "-i", "alice.key", code=2).line()
    assert body_of(path) == before
    run("reencrypt", "m.bin.keep", "-i", "alice.key", "--remove-recipient", bob, code=0)
    assert body_of(path) != before and path.stat().st_mode & 0o777 == 0o640
    assert "other recipients" in run("open", "m.bin.keep", "-i", "bob.key", "-o", "back", code=1).line()
    run("open", "m.bin.keep", "-i", "alice.key", "-o", "back", code=0)
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes()


def test_reencrypt_keeps_a_passphrase_that_opened(run, here):
    path = sealed(run, "--seal-passphrase-file", "word")
    run("reencrypt", "m.bin.keep", "--seal-passphrase-file", "word", "-R", "bob.pub", code=0)
    assert len(ids(run, path)) == 2
    run("open", "m.bin.keep", "--seal-passphrase-file", "word", "-o", "back", code=0)
    lost = run("reencrypt", "m.bin.keep", "-i", "bob.key", "--seal-passphrase-file", "other", code=2)
    assert "passphrase would be lost" in lost.line()


def test_reencrypt_of_an_altered_file_leaves_it(run):
    path = sealed(run)
    flip(path, 150_000)
    raw = path.read_bytes()
    assert "altered" in run("reencrypt", "m.bin.keep", "-i", "alice.key", code=1).line()
    assert path.read_bytes() == raw and {p.suffix for p in path.parent.iterdir() if p.name.startswith(".")} == set()


@pytest.mark.parametrize("provider", ["file", "pkcs11"])
def test_a_key_in_a_provider_from_its_making_to_its_rotation(run, here, provider):
    uri = "file:team.ring" if provider == "file" else Token().uri("team")
    there = run.with_environment(MODELKEEP_RING_PASSPHRASE_FILE="ringword")
    made = there("--json", "keygen", "--key", uri, code=0).json["key_id"]
    assert re.fullmatch(r"file:ring-[0-9a-f]{16}/1|pkcs11:token=[^;]+;object=team/1", made)
    assert there("keygen", "--key", uri).code == 1
    first, second = sealed(there, "-r", uri), sealed(there, "-r", uri, "-o", "second.keep", "--remove-plaintext")
    assert ids(run, first) == [made] == ids(run, second) and not (here / "m.bin").exists()
    there("open", str(first), "-i", uri, code=0)

    keys = open_keys(uri, passphrase=(here / "ringword").read_text().strip().encode)
    keys.rotate()
    there("open", str(first), "-i", uri, "-o", "back", code=0)
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes()
    there("rewrap", str(first), "-i", uri, "-r", uri, "--remove-recipient", made, "--only-if-under", made, code=0)
    there("reencrypt", str(first), "-i", uri, code=0)
    assert ids(run, first) == [made[:-1] + "2"]
    keys.disable(1)
    assert "disabled" in there("open", str(second), "-i", uri, "-o", "b2", code=1).line()
    there("open", str(first), "-i", uri, "-o", "b3", code=0)
    there("rewrap", str(first), "-i", uri, "-R", "alice.pub", "--remove-others", code=0)
    run("open", str(first), "-i", "alice.key", "-o", "b4", code=0)


def test_a_ring_that_cannot_be_opened(run, here):
    there = run.with_environment(MODELKEEP_RING_PASSPHRASE_FILE="ringword")
    there("keygen", "--key", "file:team.ring", code=0)
    sealed(there, "-r", "file:team.ring")
    opening = ("open", "m.bin.keep", "-i", "file:team.ring", "-o", "back")
    assert "--ring-passphrase-file" in run(*opening, code=2).line()
    assert run(*opening, "--ring-passphrase-file", "other", code=1).line()
    assert "no key ring" in there("seal", "word", "-r", "file:none.ring", code=2).line()
    (here / "team.ring").unlink()
    assert "no key ring" in there(*opening, code=2).line()


# -- removing the plaintext --


def test_the_plaintext_goes_only_when_asked_and_says_what_that_means(run, here):
    sealed(run)
    assert (here / "m.bin").exists()
    original = (here / "m.bin").read_bytes()
    said = run("seal", "m.bin", "-R", "alice.pub", "--force", "--remove-plaintext", code=0)
    assert "removed m.bin" in said.out and "may be on the medium" in said.out and not (here / "m.bin").exists()
    run("open", "m.bin.keep", "-i", "alice.key", code=0)
    assert (here / "m.bin").read_bytes() == original
    help_text = " ".join(run("seal", "--help", code=0).out.split())
    assert "names, not bytes" in help_text and "copy-on-write" in help_text


def test_what_would_stay_elsewhere_is_not_removed(run, here):
    os.link(here / "m.bin", here / "second")
    assert "hard links" in run("seal", "m.bin", "-R", "alice.pub", "--remove-plaintext", code=2).line()
    (here / "second").unlink()
    (here / "link").symlink_to(here / "m.bin")
    assert "is a link" in run("seal", "link", "-R", "alice.pub", "--remove-plaintext", code=2).line()
    assert (here / "m.bin").exists() and not list(here.glob("*.keep"))


# -- ONNX with external data --


@pytest.fixture
def bundle(here):
    """model.onnx whose two tensors lie in data files, one of them in a folder."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph_inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 8])]
    tensors = []
    (here / "data").mkdir()
    for name, place in (("w", "weights.bin"), ("b", "data/bias.bin")):
        value = np.random.default_rng(1).normal(size=(8, 2) if name == "w" else (2,)).astype(np.float32)
        tensor = numpy_helper.from_array(value, name)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=place)
        (here / place).write_bytes(value.tobytes())
        tensors.append(tensor)
    node = helper.make_node("Gemm", ["x", "w", "b"], ["y"])
    graph = helper.make_graph(
        [node], "g", graph_inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])], tensors
    )
    (here / "model.onnx").write_bytes(helper.make_model(graph).SerializeToString())
    return {name: (here / name).read_bytes() for name in ("model.onnx", "weights.bin", "data/bias.bin")}


def test_an_onnx_model_takes_its_data_along(run, here, bundle):
    done = run("--json", "seal", "model.onnx", "-R", "alice.pub", code=0).json[0]
    assert sorted(done["files"]) == sorted(bundle)
    said = run("open", "model.onnx.keep", "-i", "alice.key", "-o", "there", code=0)
    assert "weights.bin" in said.out
    for name, content in bundle.items():
        assert (here / "there" / name).read_bytes() == content
        assert (here / "there" / name).stat().st_mode & 0o777 == 0o600
    assert (here / "there").stat().st_mode & 0o777 == 0o700
    assert "is a folder" in run("open", "model.onnx.keep", "-i", "alice.key", "-o", "there", code=1).line()
    run("reencrypt", "model.onnx.keep", "-i", "alice.key", code=0)
    run("open", "model.onnx.keep", "-i", "alice.key", "-o", "again", code=0)
    assert (here / "again" / "data" / "bias.bin").read_bytes() == bundle["data/bias.bin"]


@pytest.mark.parametrize("name", ["model.onnx", "weights.bin"])
def test_force_does_not_replace_what_is_sealed(run, here, bundle, name):
    for more in ((), ("--remove-plaintext",)):
        said = run("seal", "model.onnx", "-R", "alice.pub", "-o", name, "-f", *more, code=2).line()
        assert "name another output" in said and (here / name).read_bytes() == bundle[name]


def test_an_onnx_model_and_its_data_are_removed_together(run, here, bundle):
    run("seal", "model.onnx", "-R", "alice.pub", "--remove-plaintext", code=0)
    assert not any((here / name).exists() for name in bundle)


@pytest.mark.parametrize("what", ["weights.bin", "data"])
def test_a_link_does_not_lead_out_of_the_models_folder(run, here, bundle, tmp_path_factory, what):
    outside = tmp_path_factory.mktemp("outside") / what
    (here / what).rename(outside)
    (here / what).symlink_to(outside)
    assert "a link leads out" in run("seal", "model.onnx", "-R", "alice.pub", "--remove-plaintext", code=2).line()
    assert outside.exists() and (here / "model.onnx").exists() and not (here / "model.onnx.keep").exists()


def test_a_model_and_its_data_may_be_links_to_one_store(run, here, bundle):
    (here / "snapshot" / "data").mkdir(parents=True)
    for name in bundle:
        (here / "snapshot" / name).symlink_to(here / name)
    assert len(run("--json", "seal", "snapshot/model.onnx", "-R", "alice.pub", code=0).json[0]["files"]) == 3


def test_an_onnx_model_with_hundreds_of_data_files(run, here):
    from onnx import TensorProto, helper

    tensors = []
    for number in range(200):
        tensor = TensorProto(name=f"t{number}", data_type=TensorProto.UINT8, dims=[8], data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"./t/{number}")
        tensors.append(tensor)
    (here / "t").mkdir()
    for number in range(200):
        (here / "t" / f"{number}").write_bytes(number.to_bytes(8))
    (here / "many.onnx").write_bytes(helper.make_model(helper.make_graph([], "g", [], [], tensors)).SerializeToString())
    sealed(run, file="many.onnx")
    run("open", "many.onnx.keep", "-i", "alice.key", "-o", "there", code=0)
    assert all((here / "there" / "t" / f"{number}").read_bytes() == number.to_bytes(8) for number in range(200))


@pytest.mark.parametrize("place", ["../outside", "/etc/hostname", "a/../../outside"])
def test_an_onnx_model_that_names_files_elsewhere_takes_none_of_them(run, here, bundle, place):
    import onnx

    model = onnx.load(here / "model.onnx", load_external_data=False)
    model.graph.initializer[0].external_data[0].value = place
    (here / "model.onnx").write_bytes(model.SerializeToString())
    assert "outside its folder" in run("seal", "model.onnx", "-R", "alice.pub", code=2).line()


def test_an_onnx_model_without_its_data_is_not_sealed(run, here, bundle):
    (here / "weights.bin").unlink()
    assert "weights.bin" in run("seal", "model.onnx", "-R", "alice.pub", code=2).line()
    assert not (here / "model.onnx.keep").exists()


def test_an_altered_bundle_leaves_no_folder(run, here, bundle):
    path = sealed(run, file="model.onnx")
    flip(path, 1500)
    before = {p.name for p in here.iterdir()}
    assert "altered" in run("open", "model.onnx.keep", "-i", "alice.key", "-o", "there", code=1).line()
    assert {p.name for p in here.iterdir()} == before


# -- real processes: pipes, terminals, full disks, kill -9 --


def command(*arguments, **more):
    return subprocess.run([COMMAND, *arguments], capture_output=True, check=False, timeout=60, **more)


def test_through_pipes(run, here):
    made = command("seal", "m.bin", "-R", "alice.pub", "-o", "-")
    (here / "p.keep").write_bytes(made.stdout)
    opened = command("open", "p.keep", "-i", "alice.key", "-o", "-")
    assert opened.returncode == 0 and opened.stdout == (here / "m.bin").read_bytes() and not opened.stderr


def test_a_pipe_that_got_bytes_before_the_damage_is_told_so(here, run):
    big = os.urandom(3 << 20)
    rng = json.dumps({name: {"dtype": "U8", "shape": [1 << 20], "data_offsets": [at << 20, (at + 1) << 20]}
                      for at, name in enumerate("abc")}).encode()  # fmt: skip
    (here / "t.safetensors").write_bytes(len(rng).to_bytes(8, "little") + rng + big)
    path = sealed(run, file="t.safetensors")
    flip(path, path.stat().st_size // 2 + (1 << 20))
    done = command("open", str(path), "-i", "alice.key", "-o", "-")
    assert done.returncode == 1 and b"incomplete" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert (here / "t.safetensors").read_bytes().startswith(done.stdout)


def test_a_pipe_that_cannot_be_written_or_is_left(run, here):
    sealed(run)
    for verb in (["open", "m.bin.keep", "-i", "alice.key"], ["seal", "m.bin", "-R", "alice.pub"]):
        with Path("/dev/full").open("wb") as full:
            done = subprocess.run([COMMAND, *verb, "-o", "-"], stdout=full, stderr=subprocess.PIPE, check=False, timeout=60)
        assert done.returncode == 3 and b"No space left" in done.stderr and len(done.stderr.splitlines()) == 1
        left = ["bash", "-c", f"{COMMAND} {' '.join(verb)} -o - | head -c 5"]
        done = subprocess.run(left, capture_output=True, check=False, timeout=60)
        assert len(done.stdout) == 5 and not done.stderr


def on_terminal(arguments, answers):
    """Run a command on a terminal of its own and type ``answers``; (exit code, what the terminal showed)."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(COMMAND, [str(COMMAND), *arguments])
    shown, waiting, deadline = b"", list(answers), time.monotonic() + 60
    while time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                shown += os.read(terminal, 65536)
            except OSError:
                break
        if waiting and shown.rstrip().endswith(b":"):
            os.write(terminal, waiting.pop(0).encode() + b"\n")
            shown += b"|"
    else:
        os.kill(pid, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), shown.decode()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_passphrase_is_asked_for_twice_on_a_terminal_and_never_shown(here, run):
    code, shown = on_terminal(["seal", "m.bin"], [WORD, WORD])
    assert code == 0, shown
    assert "Repeat" in shown and WORD not in shown
    code, shown = on_terminal(["open", "m.bin.keep", "-o", "back"], [WORD])
    assert code == 0 and "Passphrase of m.bin.keep" in shown and WORD not in shown
    assert (here / "back").read_bytes() == (here / "m.bin").read_bytes()
    code, shown = on_terminal(["open", "m.bin.keep", "-o", "-"], [])
    assert code == 2 and "terminal" in shown


@pytest.fixture
def small_disk(here):
    """A file system of 2 MiB. Only root may mount one."""
    place = here / "disk"
    place.mkdir()
    options = ["-o", "size=2m,mode=0700"]
    if subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", place], check=False, capture_output=True).returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_a_full_disk_leaves_what_was_there(run, here, small_disk):
    (here / "big").write_bytes(os.urandom(3 << 20))
    assert "No space left" in run("seal", "big", "-R", "alice.pub", "-o", str(small_disk / "x.keep"), code=3).line()
    path = sealed(run, file="big")
    assert "No space left" in run("open", str(path), "-i", "alice.key", "-o", str(small_disk / "x"), code=3).line()
    assert list(small_disk.iterdir()) == []
    run("seal", "m.bin", "-R", "alice.pub", "-o", str(small_disk / "m.keep"), code=0)
    raw = (small_disk / "m.keep").read_bytes()
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, pytest.raises(OSError, match="space"):
        while True:
            ballast.write(bytes(4096))
    for verb in (("rewrap", "-R", "bob.pub"), ("reencrypt",)):
        ran = run(verb[0], str(small_disk / "m.keep"), "-i", "alice.key", *verb[1:], code=3)
        assert "No space left" in ran.line()
        assert (small_disk / "m.keep").read_bytes() == raw
    assert sorted(path.name for path in small_disk.iterdir()) == ["ballast", "m.keep"]


def test_kill_minus_nine_in_the_middle_of_many_rewraps(run, here):
    for number in range(80):
        (here / f"{number:02}.bin").write_bytes(os.urandom(500 + number))
    names = [f"{number:02}.bin" for number in range(80)]
    run("seal", *names, "-R", "alice.pub", code=0)
    files = [f"{name}.keep" for name in names]
    before = {file: (here / file).read_bytes() for file in files}
    bodies = {file: body_of(file) for file in files}
    change = ["rewrap", *files, "-i", "alice.key", "-R", "bob.pub"]
    with subprocess.Popen([COMMAND, *change], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None and (here / files[9]).read_bytes() == before[files[9]]:
            pass
        process.kill()
    for file in files:
        assert run("open", file, "-i", "alice.key", "-o", "back").code == 0
        assert (here / "back").read_bytes() == (here / file.removesuffix(".keep")).read_bytes()
        (here / "back").unlink()
    run(*change, code=0)
    assert {file: body_of(file) for file in files} == bodies and not list(here.glob("*.rewrap"))
    assert all(len(ids(run, file)) == 2 for file in files)


def writes_unnamed(process, folder):
    """Whether the process has an unnamed file in ``folder`` open: it is in the middle of writing."""
    links = []
    with contextlib.suppress(OSError):  # it ended, or closed a file, meanwhile
        links += [str(fd.readlink()) for fd in Path(f"/proc/{process.pid}/fd").iterdir()]
    return any(link.startswith(str(folder)) and link.endswith("(deleted)") for link in links)


def test_kill_minus_nine_leaves_no_part_of_a_file(run, here):
    (here / "big").write_bytes(os.urandom(48 << 20))
    path = str(sealed(run, file="big"))
    verbs = (["seal", "big", "-R", "alice.pub", "-o", "again.keep"], ["open", path, "-o", "out"], ["reencrypt", path])
    for verb in verbs:
        before = {p.name: p.stat().st_ino for p in here.iterdir()}
        keys = [] if verb[0] == "seal" else ["-i", "alice.key"]
        with subprocess.Popen([COMMAND, *verb, *keys], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            while process.poll() is None and not writes_unnamed(process, here):
                pass
            process.kill()
        assert {p.name: p.stat().st_ino for p in here.iterdir()} == before or process.returncode == 0
    run("open", path, "-i", "alice.key", "-o", "whole", code=0)
    assert (here / "whole").read_bytes() == (here / "big").read_bytes()


def test_these_verbs_load_neither_the_keep_nor_a_server(run, here):
    sealed(run)
    program = (
        "import sys; from modelkeep.cli.main import main; code = main(['inspect', 'm.bin.keep']); "
        "heavy = {'onnxruntime', 'httpx', 'cedarpy', 'starlette', 'modelkeep.app.keep'} & set(sys.modules); "
        "sys.exit(f'{code} {heavy}' if code or heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_rewrap_that_was_cut_off_is_told_and_finished(run, here):
    path = sealed(run)
    raw = path.read_bytes()
    run("rewrap", "m.bin.keep", "-i", "alice.key", "-R", "bob.pub", code=0)
    parts = split_file(BytesReader(path.read_bytes()))
    tail = path.read_bytes()[parts.body.size :]
    journal_of(path).write_bytes(Journal(parts.header_hash, parts.body.size, tail).encode())
    path.write_bytes(raw[:-700])
    assert "A rewrap was cut off" in run("inspect", "m.bin.keep", code=0).out
    run("open", "m.bin.keep", "-i", "bob.key", "-o", "back", code=0)
    run("rewrap", "m.bin.keep", "-i", "bob.key", "-R", "alice.pub", code=0)
    assert "cut off" not in run("inspect", "m.bin.keep", code=0).out and not journal_of(path).exists()
