"""What is named by mistake: a folder or a secret for a certificate, a place that cannot be written, a stream that is closed."""

import contextlib
import os
import resource
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from certificates import Authority

from modelkeep.cli import context
from modelkeep.cli.context import new_file, write_file
from modelkeep.cli.remote import Remote, Session, save_sessions
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable

SECRET = "a secret that nobody may see"


@pytest.mark.parametrize(
    "arguments", [("cert", "add", "alice"), ("cert", "remove"), ("key", "issue", "alice", "--certificate")]
)
@pytest.mark.parametrize("text", [SECRET, "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n", ""])
def test_a_secret_named_as_a_certificate_is_not_shown(cli, tmp_path, arguments, text):
    path = tmp_path / "named"
    path.write_text(text)
    ran = cli(*arguments, str(path), code=2)
    assert ran.line().startswith(f"modelkeep: error: {path} holds no certificate in PEM")
    assert SECRET not in ran.err and "PRIVATE" not in ran.err and "c2Vj" not in ran.err


def test_a_private_key_beside_the_certificate_stays_here(tmp_path):
    from modelkeep.cli.certificates import named

    pem = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----"
    (tmp_path / "both").write_text(f"-----BEGIN PRIVATE KEY-----\nc2Vj\n-----END PRIVATE KEY-----\n{pem}\n")
    assert named(str(tmp_path / "both")) == pem + "\n"


@pytest.mark.parametrize(("place", "said"), [("there", "exists"), ("none/key", "there is no folder"), (".", "exists")])
def test_no_key_is_issued_that_cannot_be_written(cli, tmp_path, place, said):
    (tmp_path / "there").write_text("mine")
    kept = cli("key", "issue", "alice", "--out", str(tmp_path / "kept"), code=0)
    before = cli("key", "list").out
    key_id = kept.out.split()[1]
    for words in (("key", "issue", "alice"), ("key", "rotate", key_id)):
        assert said in cli(*words, "--out", str(tmp_path / place), code=2).line()
    assert cli("key", "list").out == before, "the key in use was replaced by one that nobody knows"
    assert (tmp_path / "there").read_text() == "mine" and {path.name for path in tmp_path.glob("*.new")} == set()


def test_a_few_bytes_that_the_disk_has_no_room_for_are_told_once(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4, before[1]))
    try:
        with pytest.raises(Unavailable, match=r"cannot write .*/page\.html: File too large"):
            write_file(str(tmp_path / "page.html"), b"few bytes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_no_key_and_no_share_is_made_when_the_disk_is_full(cli, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    cli("shares", "make", "--threshold", "2", "--shares", "2", code=0)
    before = cli("key", "list").out, cli("unsealing", "list").out
    monkeypatch.setattr(context.os, "posix_fallocate", full)
    places = (("key", "issue", "alice", "--out", str(tmp_path / "key")),)
    places += (("shares", "make", "--threshold", "2", "--shares", "3", "--out-dir", str(tmp_path)),)
    for words in places:
        assert "No space left on device" in cli(*words, code=3).line()
    assert (cli("key", "list").out, cli("unsealing", "list").out) == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "key", "share"))) == []


def test_a_new_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    with pytest.raises(ZeroDivisionError), new_file(str(path), room=4096):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    with new_file(str(path), room=4096) as write:
        write(b"short")
    assert path.read_bytes() == b"short" and path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(Invalid, match="exists"):
        write_file(str(path), b"other")
    with pytest.raises(Missing, match="no folder"):
        write_file(str(path / "below"), b"other")
    with new_file(str(tmp_path / "late")) as write:
        (tmp_path / "late").write_text("somebody else's")
        with pytest.raises(Invalid, match="exists"):
            write(b"mine")
    assert (tmp_path / "late").read_text() == "somebody else's" and len(list(tmp_path.iterdir())) == 2


def test_a_file_that_may_not_be_read_is_a_mistake_and_not_a_failure(tmp_path):
    if not os.geteuid():
        pytest.skip("root reads everything")
    (tmp_path / "closed").write_text("x")
    (tmp_path / "closed").chmod(0)
    with pytest.raises(Invalid, match="not yours to read"):
        context.read_file(str(tmp_path / "closed"))


def test_sessions_that_cannot_be_written_leave_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    session = Session("https://h", "alice", "t" * 5000, 1, "")
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(Unavailable, match="cannot write"):
            save_sessions({"https://h": session})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list((tmp_path / "modelkeep").iterdir()) == []


@pytest.mark.parametrize("closed", ["stdout", "every"])
def test_a_closed_stream_is_one_line_or_none(tmp_path, closed):
    shell = ">&-" if closed == "stdout" else "<&- >&- 2>&-"
    command = f'"$0" -m modelkeep scan . {shell}'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, check=False, timeout=60, cwd=tmp_path)
    said = b"modelkeep: error: standard output is closed, and nothing would be seen: send it somewhere, or to /dev/null\n"
    assert (done.returncode, done.stderr) == (2, said if closed == "stdout" else b"")


def test_a_closed_input_and_error_stream_keep_nobody_from_an_answer(tmp_path):
    (tmp_path / "words.txt").write_text("no model")
    command = '"$0" -m modelkeep scan . <&- 2>&-'
    done = subprocess.run(["sh", "-c", command, sys.executable], capture_output=True, check=False, timeout=60, cwd=tmp_path)
    assert done.returncode == 1 and b"words.txt" in done.stdout and done.stderr == b""


@pytest.mark.parametrize(
    ("trusts", "said"), [("", "login --ca"), ("its own", "the port of a gateway"), ("another", "another keep's")]
)
def test_a_certificate_that_does_not_hold_is_refused_with_what_to_do(tmp_path, trusts, said):
    authority, other = Authority(tmp_path / "one"), Authority(tmp_path / "other")
    with tls_server(authority.issue(dns="localhost", server=True)) as port:
        made = Remote(
            f"https://localhost:{port}", ca={"": b"", "its own": authority.pem, "another": other.pem}[trusts].decode()
        )
        with pytest.raises(NotTrusted, match=said):
            made.post("/admin/v1/whoami", b"")


@contextlib.contextmanager
def tls_server(shown):
    """A server that agrees on TLS with ``shown``, and no more; the port it listens on."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(shown.chain, shown.key)

    def serve(listener):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with contextlib.suppress(OSError), context.wrap_socket(connection, server_side=True):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=(listener,), daemon=True)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_folder_is_no_file(cli, tmp_path):
    for words in (("cert", "add", "alice", "."), ("log", "check", ".", "--trust", "."), ("unseal", "--share-file", ".")):
        ran = cli(*words)
        assert ran.code in (2, 3) and "Errno" not in ran.err
    assert "is a folder: name a file" in cli("cert", "add", "alice", str(Path(tmp_path)), code=2).line()


@pytest.mark.parametrize(
    "arguments",
    [("quarantine", "risk@1", "--reason", "bad\udcff"), ("user", "add", "eve\udcff", "--role", "analyst"),
     ("key", "issue", "alice", "--model", "m\udcff")],
    ids=lambda words: words[0],
)  # fmt: skip
def test_what_is_no_text_is_one_line_and_no_traceback(cli, arguments):
    before = cli("list").out
    assert "is not UTF-8 text" in cli(*arguments, code=2).line() and "\\udcff" in cli(*arguments).err
    assert cli("list").out == before


def test_an_interrupt_is_130_and_leaves_nothing(cli, desk, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("modelkeep.app.keep.Keep.publish", interrupted)
    ran = cli("publish", str(desk / "model.onnx"), "--name", "cut", "--reference", str(desk / "ref.npz"))
    assert ran.code == 130 and "Traceback" not in ran.err and "cut@1" not in cli("list").out
