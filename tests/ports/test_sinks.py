"""The conformance suite of the ``Sink`` port on every adapter, and what each of them alone can get wrong."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from sink_servers import SECRET, Authority, MemorySink, SyslogReceiver, WebhookReceiver

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.sinks.disk import DiskSink
from modelkeep.adapters.sinks.stream import Stream, client_context
from modelkeep.adapters.sinks.syslog import SyslogSink
from modelkeep.adapters.sinks.webhook import Secret, WebhookSink
from modelkeep.core.ports import SinkBatch, SinkPlace
from modelkeep.crypto.notes import NoteSigner
from modelkeep.errors import Invalid, Unavailable
from modelkeep.serving.journal import AuditEntry, JournalWriter, Stamps, batches

ORIGIN = "keep.example/audit/00000000000000000001-gateway-0a0b0c0d"
SIGNER = NoteSigner(ORIGIN, b"\x07" * 32)


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("ca"), time.time_ns())


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    """A journal of five commits, as sinks are given them."""
    files = FolderLogFiles(tmp_path_factory.mktemp("journal"))
    writer, stamps, found = JournalWriter(files, b"k" * 32, ORIGIN), Stamps(), []
    writer.begin()
    for number in range(5):
        bodies = [b"body %d.%d" % (number, one) for one in range(number + 1)]
        entries = [AuditEntry("predict", "sub_1", "m@1", f"r{number}", "ok") for _ in bodies]
        first = writer.index
        encoded = [
            stamps.encode(entry, body, first + at, 7) for at, (entry, body) in enumerate(zip(entries, bodies, strict=True))
        ]
        writer.commit(list(zip(encoded, bodies, strict=True)), found.append)
    writer.close()
    assert list(batches(files, ORIGIN, 0)) == found, "read again, they are what was handed out"
    return found


class Place:
    """A sink under test, and the other side: ``records()`` that arrived, ``break_it()``, ``mend()``."""

    def __init__(self, kind: str, folder: Path, authority: Authority, seconds: float = 2.0) -> None:
        self.kind, self.seconds = kind, seconds
        self.authority, self.root = authority, folder / "mirror"
        self.root.mkdir()
        self.receiver = self.memory = None
        if kind == "disk":
            self.sink = DiskSink(self.root, beside=None, reserve=4096)
        elif kind == "memory":
            self.sink = self.memory = MemorySink()
        elif kind == "syslog":
            self.receiver = SyslogReceiver(authority.context)
            stream = Stream("127.0.0.1", self.receiver.port, client_context(str(authority.path), ""), seconds)
            self.sink = SyslogSink(stream, hostname="here", product="1")
        else:
            self.receiver = WebhookReceiver(authority.context)
            stream = Stream("127.0.0.1", self.receiver.port, client_context(str(authority.path), "", "http/1.1"), seconds)
            self.sink = WebhookSink(stream, "/hook?tenant=7", Secret.parse(SECRET), "1")

    def wait(self, count):
        if self.receiver:
            self.receiver.wait(count)

    def records(self):
        if self.kind == "disk":
            files = FolderLogFiles(self.root / ORIGIN.rpartition("/")[2])
            return {
                (ORIGIN, index): entry
                for batch in batches(files, ORIGIN, 0)
                for index, entry in enumerate(batch.entries, batch.first)
            }
        return (self.receiver or self.memory).records

    def break_it(self):
        if self.kind == "disk":
            self.root.rename(self.root.with_name("away"))
        elif self.memory:
            self.memory.down = "the network is down"
        else:
            self.receiver.stop()

    def mend(self):
        if self.kind == "disk":
            self.root.with_name("away").rename(self.root)
        elif self.memory:
            self.memory.down = ""
        else:
            kept = self.receiver
            self.receiver = type(kept)(self.authority.context, kept.port)
            self.receiver.records, self.receiver.notes = kept.records, kept.notes

    def close(self):
        self.sink.close()
        if self.receiver:
            self.receiver.stop()


@pytest.fixture(params=["disk", "syslog", "webhook", "memory"])
def place(request, tmp_path, authority):
    made = Place(request.param, tmp_path, authority)
    yield made
    made.close()


def entries_of(found):
    return {(batch.origin, index): entry for batch in found for index, entry in enumerate(batch.entries, batch.first)}


def test_what_is_accepted_is_there(place, journal):
    assert place.sink.resume(ORIGIN) in (None, SinkPlace(0, 0))
    for batch in journal:
        place.sink.accept(batch)
        place.wait(batch.end)
        assert entries_of([batch]).items() <= place.records().items()
    place.sink.probe()
    place.sink.checkpoint(ORIGIN, b"a note\n")
    assert place.records() == entries_of(journal)


def test_giving_a_batch_again_is_harmless(place, journal):
    place.sink.resume(ORIGIN)
    for batch in (*journal[:3], *journal[:3], *journal):
        place.sink.accept(batch)
    place.wait(journal[-1].end)
    assert place.records() == entries_of(journal)


def test_a_sink_that_is_gone_says_so_and_comes_back(place, journal):
    place.sink.resume(ORIGIN)
    place.sink.accept(journal[0])
    place.wait(1)
    place.break_it()
    with pytest.raises(Unavailable):
        place.sink.probe()
    with pytest.raises(Unavailable):
        place.sink.accept(journal[1])
    place.mend()
    place.sink.resume(ORIGIN)
    place.sink.probe()
    for batch in journal[1:]:
        place.sink.accept(batch)
    place.wait(journal[-1].end)
    assert place.records() == entries_of(journal)


def test_close_may_be_repeated_and_resume_opens_again(place, journal):
    place.sink.resume(ORIGIN)
    place.sink.accept(journal[0])
    place.sink.close()
    place.sink.close()
    place.sink.resume(ORIGIN)
    place.sink.accept(journal[1])
    place.wait(journal[1].end)
    assert place.records() == entries_of(journal[:2])


def test_the_name_holds_no_secret(place):
    assert "whsec" not in place.sink.name + repr(place.sink) and "tenant" not in place.sink.name


# -- what only the network can get wrong --


@pytest.fixture(params=["syslog", "webhook"])
def far(request, tmp_path, authority):
    made = Place(request.param, tmp_path, authority, 0.2)
    yield made
    made.close()


@pytest.mark.parametrize("mode", ["hang", "reset"])
def test_a_server_that_never_speaks_is_given_up_on(far, journal, mode):
    far.receiver.mode = mode
    with pytest.raises(Unavailable):
        far.sink.accept(journal[0])
    assert not far.receiver.records


def test_a_server_with_a_certificate_of_strangers_is_not_told_anything(far, journal, tmp_path):
    (tmp_path / "other").mkdir()
    stranger = Authority(tmp_path / "other", time.time_ns())
    far.sink._stream.tls = client_context(str(stranger.path), "")
    with pytest.raises(Unavailable, match="certificate does not hold"):
        far.sink.accept(journal[0])
    far.sink._stream.tls = client_context(str(far.authority.path), "")
    far.sink._stream.host = "localhost"
    far.sink.accept(journal[0])  # a name of the certificate


def test_a_server_that_speaks_no_tls_is_refused(far, journal):
    far.receiver._tls = None
    with pytest.raises(Unavailable):
        far.sink.accept(journal[0])
    assert not far.receiver.records


def test_a_certificate_that_is_none_is_refused(tmp_path):
    with pytest.raises(Invalid, match="cannot use the certificates"):
        client_context(str(tmp_path / "missing.pem"), "")
    (tmp_path / "bad.pem").write_text("not a certificate")
    with pytest.raises(Invalid, match="cannot use the certificates"):
        client_context(str(tmp_path / "bad.pem"), "")
    assert client_context("", "").minimum_version is ssl.TLSVersion.TLSv1_3


# -- syslog --


def test_messages_are_rfc_5424_with_ocsf_inside(tmp_path, authority, journal):
    place = Place("syslog", tmp_path, authority)
    place.sink.accept(journal[0])
    denied = Stamps().encode(AuditEntry("deny", "s", "m@1", "", "denied"), b"", 9, 5)
    place.sink.accept(SinkBatch(ORIGIN, 9, (denied,), 0, 0, b""))
    place.sink.checkpoint(ORIGIN, b"note\n")
    place.wait(2)
    place.close()
    first, second = place.receiver.messages[:2]
    assert first.startswith(b"<110>1 1970-01-01T00:00:00.000000Z here modelkeep - record - {")
    assert second.startswith(b"<109>1 ")
    event = json.loads(second.partition(b" - record - ")[2])
    assert (event["class_uid"], event["type_uid"], event["status_id"]) == (6003, 600399, 2)
    assert event["actor"]["user"]["uid"] == "s" and event["metadata"]["uid"] == f"{ORIGIN}/9"
    assert event["raw_data"].encode() == denied


# -- webhook --


def test_a_receiver_whose_process_is_stopped_is_noticed():
    """The machine still takes connections for it, so only an answer shows that it lives."""
    program = [sys.executable, "-u", "-m", "http.server", "--bind", "127.0.0.1", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        port = int(server.stdout.readline().split()[5])
        sink = WebhookSink(Stream("127.0.0.1", port, None, 0.5), "/", Secret.parse(SECRET), "1")
        sink.probe()
        server.send_signal(signal.SIGSTOP)
        with pytest.raises(Unavailable, match=r"in time|timed out"):
            sink.probe()
        server.send_signal(signal.SIGCONT)
        sink.probe()
        sink.close()
        server.kill()


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 410 Gone\r\nconnection: close\r\n\r\n",
        b"HTTP/1.1 999999\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 500 x\r\nx: " + b"a" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_only_2xx_is_yes(tmp_path, authority, journal, answer):
    place = Place("webhook", tmp_path, authority, 0.3)
    place.receiver.answer = answer
    with pytest.raises(Unavailable):
        place.sink.accept(journal[0])
    place.receiver.answer = b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    place.sink.accept(journal[0])
    assert place.records() == entries_of(journal[:1])
    place.close()


def test_an_answer_that_trickles_does_not_outlast_the_deadline(tmp_path, authority, journal):
    place = Place("webhook", tmp_path, authority, 0.2)
    place.receiver.slow = 0.05
    with pytest.raises(Unavailable, match=r"timed out|in time"):
        place.sink.accept(journal[0])
    place.close()


def test_the_same_batch_has_the_same_id_and_every_request_its_signature(tmp_path, authority, journal):
    place = Place("webhook", tmp_path, authority)
    place.sink.accept(journal[1])
    place.sink.accept(journal[1])
    place.sink.accept(journal[2])
    ids = [headers["webhook-id"] for headers, _ in place.receiver.requests]
    assert ids[0] == ids[1] != ids[2] and not place.receiver.bad
    place.sink._secret = Secret.parse(b"whsec_" + b"QUFB" * 10)
    place.sink.accept(journal[3])
    assert len(place.receiver.bad) == 1
    place.close()


def test_a_long_batch_goes_in_parts(tmp_path, authority):
    place, stamps = Place("webhook", tmp_path, authority), Stamps()
    entries = tuple(stamps.encode(AuditEntry("predict"), b"", index, 7) for index in range(1_100))
    place.sink.accept(SinkBatch(ORIGIN, 0, entries, 0, 0, b""))
    assert place.records() == {(ORIGIN, index): entry for index, entry in enumerate(entries)}
    assert len(place.receiver.requests) == 3
    place.close()


def test_known_answer_of_the_signature():
    """The example of the Standard Webhooks specification's own test suite."""
    secret = Secret.parse(b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    body = b'{"test": 2432232314}'
    assert secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("text", [b"", b"whsec_", b"whsec_%%%", b"secret", b"whsec_QUFB", b"MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
def test_a_secret_that_is_none(text):
    with pytest.raises(Invalid):
        Secret.parse(text)


# -- disk --


@pytest.fixture
def mirror(tmp_path, authority):
    return Place("disk", tmp_path, authority)


def folder(mirror):
    return mirror.root / ORIGIN.rpartition("/")[2]


def test_a_mirror_is_the_journal_to_the_byte(mirror, journal):
    mirror.sink.resume(ORIGIN)
    for batch in journal:
        mirror.sink.accept(batch)
    assert (folder(mirror) / "journal" / "000000").read_bytes() == b"".join(batch.data for batch in journal)
    assert mirror.sink.resume(ORIGIN) == SinkPlace(0, journal[-1].offset + len(journal[-1].data))


@pytest.mark.parametrize("how", ["deleted", "replaced", "cut", "longer"])
def test_a_mirror_that_somebody_touched_is_noticed_while_idle(mirror, journal, how):
    mirror.sink.resume(ORIGIN)
    mirror.sink.accept(journal[0])
    path = folder(mirror) / "journal" / "000000"
    data = path.read_bytes()
    if how in ("deleted", "replaced"):
        path.unlink()
    if how == "replaced":
        path.write_bytes(data)
    if how in ("cut", "longer"):
        path.write_bytes(data[:-1] if how == "cut" else data + b"x")
    with pytest.raises(Unavailable):
        mirror.sink.probe()
    with pytest.raises(Unavailable):
        mirror.sink.accept(journal[1])


def test_a_root_that_is_another_folder_is_not_the_mirror(mirror, journal):
    """As when its disk is unmounted, and the folder below shows."""
    mirror.sink.resume(ORIGIN)
    mirror.sink.accept(journal[0])
    mirror.root.rename(mirror.root.with_name("unmounted"))
    mirror.root.mkdir()
    for call in (mirror.sink.probe, lambda: mirror.sink.accept(journal[1]), lambda: mirror.sink.resume(ORIGIN)):
        with pytest.raises(Unavailable, match="another folder"):
            call()
    assert not list(mirror.root.iterdir())


def test_a_foreign_file_in_a_mirror_is_named(mirror, journal):
    mirror.sink.resume(ORIGIN)
    mirror.sink.accept(journal[0])
    (folder(mirror) / "journal" / "notes").write_text("mine")
    with pytest.raises(Unavailable, match="'notes'"):
        mirror.sink.resume(ORIGIN)


def test_a_batch_torn_by_a_crash_is_completed(mirror, journal):
    mirror.sink.resume(ORIGIN)
    mirror.sink.accept(journal[0])
    mirror.sink.close()
    path = folder(mirror) / "journal" / "000000"
    with path.open("ab") as stream:
        stream.write(journal[1].data[:50])
    assert mirror.sink.resume(ORIGIN) == SinkPlace(0, len(journal[0].data) + 50)
    mirror.sink.accept(journal[1])
    assert path.read_bytes() == journal[0].data + journal[1].data


def test_what_the_journal_lost_is_put_aside_and_never_dropped(mirror, journal):
    mirror.sink.resume(ORIGIN)
    for batch in journal[:3]:
        mirror.sink.accept(batch)
    other = journal[1]._replace(data=journal[1].data[:-1] + b"?")
    mirror.sink.accept(other)
    assert (folder(mirror) / "journal" / "000000").read_bytes() == journal[0].data + other.data
    (apart,) = folder(mirror).glob("apart-000000-*")
    assert apart.read_bytes() == journal[1].data + journal[2].data


def test_a_gap_is_refused(mirror, journal):
    mirror.sink.resume(ORIGIN)
    mirror.sink.accept(journal[0])
    with pytest.raises(Unavailable, match="must be"):
        mirror.sink.accept(journal[2])


def test_a_mirror_on_the_keeps_own_disk_must_be_meant(tmp_path):
    (tmp_path / "mirror").mkdir()
    with pytest.raises(Invalid, match="same disk"):
        DiskSink(tmp_path / "mirror", beside=tmp_path, reserve=4096)
    late = DiskSink(tmp_path / "later", beside=tmp_path, reserve=4096)  # not mounted yet
    with pytest.raises(Unavailable, match="not there"):
        late.resume(ORIGIN)
    (tmp_path / "later").mkdir()
    with pytest.raises(Invalid, match="same disk"):
        late.resume(ORIGIN)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB. Only root may mount one; tests run as root where this matters."""
    where = tmp_path / "disk"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(where)], check=True)
    yield where
    subprocess.run(["umount", "-l", str(where)], check=True)


def test_a_mirror_whose_disk_fills_up_or_turns_read_only(small_disk, tmp_path, journal):
    sink = DiskSink(small_disk, beside=tmp_path, reserve=65_536)
    sink.resume(ORIGIN)
    sink.accept(journal[0])
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 32_768))
    for call in (sink.probe, lambda: sink.accept(journal[1])):
        with pytest.raises(Unavailable, match="full"):
            call()
    ballast.unlink()
    sink.probe()
    sink.accept(journal[1])
    sink.close()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for call in (sink.probe, lambda: sink.accept(journal[2])):
        with pytest.raises(Unavailable, match="read-only"):
            call()
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    sink.resume(ORIGIN)
    sink.accept(journal[2])
    sink.close()


class Counting(WebhookReceiver):
    """``talks``: how many connections there were; ``unasked``: said on the first one some time after its first answer."""

    talks, unasked = 0, b""

    def talk(self, link):
        self.talks += 1
        if self.unasked and self.talks == 1:
            link.recv(65_536)
            link.sendall(self.answer)
            self.go.wait(0.1)
            link.sendall(self.unasked)
            self.said.set()
            self.go.wait(20)  # and reads nothing any more
        else:
            super().talk(link)


@pytest.fixture
def counting():
    receiver = Counting(None)
    receiver.said = threading.Event()
    receiver.sink = WebhookSink(Stream("127.0.0.1", receiver.port, None, 10.0), "/hook", Secret.parse(SECRET), "1")
    yield receiver
    receiver.sink.close()
    receiver.stop()


@pytest.mark.parametrize("answer", [b"204 No Content\r\n\r\n", b"200 OK\r\ncontent-length: 2\r\n\r\nok"])
def test_a_webhook_keeps_its_connection(counting, journal, answer):
    counting.answer = b"HTTP/1.1 " + answer
    for batch in journal:
        counting.sink.accept(batch)
    assert (counting.talks, len(counting.records)) == (1, 15)


def test_the_first_answer_of_a_webhook_counts_and_no_later_word(counting, journal):
    counting.answer = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(Unavailable, match="answers 503"):
        counting.sink.accept(journal[0])
    counting.answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n" * 2
    counting.sink.accept(journal[0])
    counting.sink.accept(journal[1])
    assert counting.talks == 3  # what is behind an answer is not waited for


def test_what_a_webhook_says_unasked_is_no_answer_to_the_next_batch(counting, journal):
    counting.answer = counting.unasked = b"HTTP/1.1 204 No Content\r\n\r\n"
    counting.sink.accept(journal[0])
    assert counting.said.wait(60)
    counting.sink.accept(journal[1])
    assert counting.talks == 2 and [first for _, first in counting.records] == [1, 2]
