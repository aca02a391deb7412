"""A witness over real sockets, asked in the words of C2SP tlog-witness."""

import asyncio
import base64
import sys
from pathlib import Path

import pytest
from http_support import Running, drain

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from memorylogfiles import MemoryLogFiles
from static_server import ENDLESS, trickling

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.adapters.witnesses import HttpWitnesses, trust_of
from modelkeep.crypto.cosignatures import ED25519, ML_DSA_44, Cosigner, cosignatures
from modelkeep.crypto.merkle import leaf_hash, root_of
from modelkeep.crypto.notes import Checkpoint, NoteSigner, NoteVerifier
from modelkeep.errors import Invalid, Unavailable
from modelkeep.http.protocol import Response
from modelkeep.http.witness import WitnessApp, bounds
from modelkeep.ledger.witness import Witness, checkpoint_path, origin_folder
from modelkeep.workflows.service import Listen

ORIGIN = "example.com/behind-the-sofa"
LOG = NoteSigner(ORIGIN, b"l" * 32)
KEYS = [Cosigner("witness.example/w1", b"1" * 32, ED25519), Cosigner("witness.example/w1", b"2" * 32, ML_DSA_44)]
LEAVES = [leaf_hash(b"a"), leaf_hash(b"b")]
ONE, TWO = (Checkpoint(ORIGIN, size, root_of(LEAVES[:size])).sign(LOG) for size in (1, 2))
OTHER = Checkpoint(ORIGIN, 2, b"x" * 32).sign(LOG)
PROOF = b"old 1\n" + base64.b64encode(LEAVES[1]) + b"\n\n" + TWO


@pytest.fixture
def files():
    return MemoryLogFiles()


@pytest.fixture
def told():
    return []


@pytest.fixture
def server(files, told):
    witness = Witness(files, KEYS, {ORIGIN: [NoteVerifier.parse(LOG.vkey)]}, SystemClock())
    limits = bounds(Listen())
    running = Running(
        WitnessApp(witness, told.append), max_body=limits.max_body, max_queue=limits.max_queue, linger_seconds=0.2
    )
    yield running
    running.stop()


def ask(server, body, method=b"POST", target=b"/add-checkpoint"):
    """Status, content type and body of the answer."""
    head = b"%s %s HTTP/1.1\r\nhost: w\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % (method, target, len(body))
    answer = server.ask(head + body)
    fields, _, content = answer.partition(b"\r\n\r\n")
    kinds = [line.split(b": ")[1] for line in fields.lower().split(b"\r\n") if line.startswith(b"content-type")]
    return int(answer[9:12]), kinds[0].decode(), content


def test_the_road_of_the_specification(server):
    status, _, lines = ask(server, b"old 0\n\n" + ONE)
    assert status == 200
    assert len(lines.splitlines()) == 2
    assert all(line.startswith("\u2014 witness.example/w1 ") for line in lines.decode().splitlines())
    assert cosignatures(ONE + lines, [key.verifier for key in KEYS]).keys() == {key.verifier for key in KEYS}
    status, _, lines = ask(server, PROOF)
    assert (status, len(lines.splitlines())) == (200, 2)
    target = f"/{origin_folder(ORIGIN)}/checkpoint".encode()
    assert ask(server, b"", b"GET", target) == (200, "text/plain; charset=utf-8", TWO + lines)
    assert ask(server, b"", b"HEAD", target)[2] == b""


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"old 1\n\n" + TWO, 409, "text/x.tlog.size"),
        (b"old 2\n\n" + OTHER, 409, "text/plain; charset=utf-8"),
        (b"old 3\n\n" + TWO, 400, "text/plain; charset=utf-8"),
        (b"old 02\n\n" + TWO, 400, "text/plain; charset=utf-8"),
        (b"nonsense", 400, "text/plain; charset=utf-8"),
        (b"", 400, "text/plain; charset=utf-8"),
        (b"old 2\n\n" + TWO.replace(b"example.com", b"example.org"), 404, "text/plain; charset=utf-8"),
        (
            b"old 2\n\n" + Checkpoint(ORIGIN, 2, root_of(LEAVES)).sign(NoteSigner(ORIGIN, b"m" * 32)),
            403,
            "text/plain; charset=utf-8",
        ),
        (b"old 2\n\n" + Checkpoint(ORIGIN, 3, b"x" * 32).sign(LOG), 422, "text/plain; charset=utf-8"),
    ],
)
def test_the_statuses_of_the_specification(server, told, body, status, kind):
    assert ask(server, b"old 0\n\n" + TWO)[0] == 200
    answer = ask(server, body)
    assert answer[:2] == (status, kind)
    assert answer[2].endswith(b"\n")
    assert (answer[2] == b"2\n") == (kind == "text/x.tlog.size")
    assert bool(told) == (body.endswith(OTHER) or status == 422)  # the operator hears of contradictions


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        (b"GET", b"/add-checkpoint", 405),
        (b"PUT", b"/add-checkpoint", 405),
        (b"POST", b"/", 404),
        (b"GET", b"/", 404),
        (b"GET", b"/" + b"0" * 64 + b"/checkpoint", 404),
        (b"GET", b"/../witness.key", 404),
        (b"GET", b"/%2e%2e/witness.key", 404),
        (b"POST", f"/{origin_folder(ORIGIN)}/checkpoint".encode(), 405),
        (b"GET", f"/{origin_folder(ORIGIN)}/checkpoint".encode(), 404),  # nothing cosigned yet
        (b"GET", f"/{origin_folder(ORIGIN)}/refused".encode(), 404),
    ],
)
def test_nothing_else_is_there(server, method, target, status):
    assert ask(server, b"", method, target)[0] == status


def test_a_request_that_is_too_large_is_not_read(server):
    assert ask(server, b"old 0\n\n" + b"x" * (200 << 10))[0] == 413


def test_connections_are_kept(server):
    with server.connect() as connection:
        for number in range(3):
            body = b"old %d\n\n" % (2 if number else 0) + TWO
            end = b"connection: close\r\n" if number == 2 else b""
            connection.sendall(
                b"POST /add-checkpoint HTTP/1.1\r\nhost: w\r\n%scontent-length: %d\r\n\r\n" % (end, len(body)) + body
            )
            if number < 2:
                assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert drain(connection).startswith(b"HTTP/1.1 200")


def test_a_damaged_memory_answers_nobody(server, files, told):
    assert ask(server, b"old 0\n\n" + ONE)[0] == 200
    files.files[checkpoint_path(ORIGIN)] = bytearray(ONE)
    assert ask(server, PROOF)[0] == 503
    assert "remembers" in told[0]


class Stage:
    """What a server that is no good witness answers."""

    def __init__(self):
        self.answer, self.seen = Response(200, b"lines", b"text/plain"), []

    async def __call__(self, request):
        self.seen.append(request)
        if request.target.startswith(b"/slow"):
            await asyncio.sleep(1.0)
        return self.answer


@pytest.fixture
def stage():
    stage = Stage()
    stage.server = Running(stage, drain_seconds=0.1)
    yield stage
    stage.server.stop()


@pytest.mark.parametrize("prefix", ["", "/", "/w/1", "/w/1/"])
def test_the_client_asks_as_the_specification_says(stage, prefix):
    url = f"http://127.0.0.1:{stage.server.port}{prefix}"
    assert HttpWitnesses().add_checkpoint(url, b"old 0\n\nnote") == (200, "text/plain", b"lines")
    (request,) = stage.seen
    assert (request.method, request.target) == (b"POST", prefix.rstrip("/").encode() + b"/add-checkpoint")
    assert request.body == b"old 0\n\nnote"


def test_the_client_follows_no_redirect(stage):
    stage.answer = Response(307, b"", b"text/plain", ((b"location", b"/elsewhere/add-checkpoint"),))
    assert HttpWitnesses().add_checkpoint(f"http://127.0.0.1:{stage.server.port}", b"")[0] == 307
    assert len(stage.seen) == 1


def test_the_client_reads_no_endless_answer(stage):
    stage.answer = Response(200, b"x" * (1 << 20), b"text/plain")
    with pytest.raises(Unavailable, match="too long"):
        HttpWitnesses().add_checkpoint(f"http://127.0.0.1:{stage.server.port}", b"")


def test_the_client_does_not_wait_for_ever(stage):
    with pytest.raises(Unavailable, match="cannot be reached"):
        HttpWitnesses(seconds=0.2).add_checkpoint(f"http://127.0.0.1:{stage.server.port}/slow", b"")


@pytest.mark.parametrize("said", ENDLESS.values(), ids=ENDLESS)
def test_no_witness_holds_the_others_up(said):
    with trickling(*said) as url, pytest.raises(Unavailable, match="too slow"):
        HttpWitnesses(seconds=0.2).add_checkpoint(url, b"")


def test_the_client_believes_the_authorities_it_is_given(tmp_path):
    key = make_authority_key()
    now = SystemClock().now_ns()
    authority = authority_certificate(key, "witness.example", now)
    ours, public = tmp_path / "ca.pem", tmp_path / "none.pem"
    ours.write_bytes(authority)
    public.write_text("nothing")
    server = Running(Stage(), tls=server_context(issue(key, authority, ["127.0.0.1"], now)), drain_seconds=0.1)
    try:
        url = f"https://127.0.0.1:{server.port}"
        assert HttpWitnesses(trust_of(ours)).add_checkpoint(url, b"")[0] == 200
        with pytest.raises(Unavailable, match="certificate"):
            HttpWitnesses().add_checkpoint(url, b"")
        for path in (public, tmp_path / "missing.pem"):
            with pytest.raises(Invalid, match="no certificates"):
                trust_of(path)
    finally:
        server.stop()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "w.example",
        "ftp://w.example",
        "http://",
        "http://me:pass@w.example",
        "http://w..example/",
        "http://127.0.0.1:99999",
        "http://xn--a.example",
        "http://w.example/?q",
        "http://w.example/#f",
    ],
)
def test_addresses_that_are_none(url):
    with pytest.raises(Invalid):
        HttpWitnesses().add_checkpoint(url, b"")
