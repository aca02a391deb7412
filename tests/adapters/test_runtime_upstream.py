"""The way to an upstream, against one that lies, stalls, repeats itself and hangs up; and what becomes of a question then."""

import asyncio
import hashlib
import json
import ssl
from contextlib import asynccontextmanager

import numpy as np
import pytest
from hostile import Hostile, answer_to, whole

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.dialling import Callee, LinkBounds, is_link_local, tls_context
from modelkeep.adapters.runtime.upstream import HttpLink
from modelkeep.core.values import TensorSpec
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.formats.upstream import Upstream, parse_url
from modelkeep.serving.breaker import State, Thresholds
from modelkeep.workflows.upstream import WAITING, Patience, RemoteModel

FEEDS = {"x": np.array([[1.0, 2.0]], np.float32)}
ENDS = {"inputs": (TensorSpec("x", "FP32", (-1, 2)),), "outputs": (TensorSpec("p", "FP32", (-1, 2)),)}


def model_at(port, *, seconds=30.0, requests=4, queue=8, thresholds=None, bounds=None, reports=None, clock=None):
    url = f"http://127.0.0.1:{port}"
    bounds = bounds or LinkBounds(max_answer=100_000)
    return RemoteModel(
        Upstream(url=url, model="m", **ENDS),
        lambda: HttpLink(Callee(parse_url(url)), bounds=bounds),
        clock or SystemClock(),
        SystemEntropy(),
        patience=Patience(seconds, requests, queue),
        thresholds=thresholds or Thresholds(failures=3, seconds=600.0),
        report=(reports if reports is not None else []).append,
    )


class Ahead(SystemClock):
    """A clock that is so many ``seconds`` ahead."""

    seconds = 0.0

    def monotonic(self):
        return super().monotonic() + self.seconds


@asynccontextmanager
async def against(act, **more):
    """A model behind a server that does ``act`` on every connection."""
    async with Hostile(act) as server:
        model = model_at(server.port, **more)
        try:
            yield model, server
        finally:
            model.close()


async def honest(visit):
    while True:
        await visit.say(answer_to(await visit.question()))


def run(story):
    asyncio.run(asyncio.wait_for(story, 120))


def test_questions_share_a_connection_and_carry_what_they_must():
    async def story():
        async with against(honest) as (model, server):
            for _ in range(3):
                found = await model.infer(FEEDS)
                assert found["p"].tolist() == [[0.25, 0.75]]
            assert server.visits == 1
            head = server.asked[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
            assert head[0] == b"POST /v2/models/m/infer HTTP/1.1"
            assert b"host: 127.0.0.1:%d" % server.port in head
            assert b"accept-encoding: identity" in head
            assert not any(line.startswith(b"authorization") for line in head)
            assert model.readings.answers == 3 and model.readings.failures == 0

    run(story())


def test_a_large_question_is_written_and_read_like_a_small_one():
    async def story():
        async with against(honest, bounds=LinkBounds()) as (model, server):
            found = await model.infer({"x": np.ones((40_000, 2), np.float32)})
            assert found["p"].shape == (40_000, 2) and len(server.asked[0]) > 160_000

    run(story())


def test_no_more_questions_at_once_than_allowed_and_no_longer_a_queue():
    async def story():
        most = now = 0
        let_go = asyncio.Event()

        async def slow(visit):
            nonlocal most, now
            while True:
                question = await visit.question()
                now += 1
                most = max(most, now)
                await let_go.wait()
                now -= 1
                await visit.say(answer_to(question))

        async with against(slow, requests=2, queue=3) as (model, _):
            waiting = [asyncio.ensure_future(model.infer(FEEDS)) for _ in range(5)]
            while now < 2:
                await asyncio.sleep(0.01)
            with pytest.raises(Unavailable, match="too many requests wait"):
                await model.infer(FEEDS)
            let_go.set()
            assert len(await asyncio.gather(*waiting)) == 5
            assert most == 2
            assert not WAITING

    run(story())


def says(*parts, pause=0.0):
    async def act(visit):
        while True:
            await visit.question()
            for part in parts:
                await visit.say(part)
                await asyncio.sleep(pause)

    return act


def closes_after(data):
    async def act(visit):
        await visit.question()
        await visit.say(data)

    return act


async def twice(visit):
    answer = answer_to(await visit.question())
    await visit.say(answer + answer)
    await visit.gone()


async def one_behind(visit):
    """Answers each question with the answer to the one before it."""
    last = b""
    while True:
        question = await visit.question()
        await visit.say(answer_to(last or question.replace(b'"id":"', b'"id":"0')))
        last = question


async def endless(visit):
    await visit.question()
    await visit.say(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        await visit.say(b"4000\r\n" + b" " * 0x4000 + b"\r\n")


async def endless_head(visit):
    await visit.question()
    await visit.say(b"HTTP/1.1 200 OK\r\n")
    while True:
        await visit.say(b"x-more: " + b"y" * 1000 + b"\r\n")


async def drip(visit):
    await visit.question()
    await visit.say(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    while True:
        await visit.say(b" ")
        await asyncio.sleep(0.05)


def body(**more):
    said = {"model_name": "m", "id": "?", "outputs": [{"name": "p", "datatype": "FP32", "shape": [1, 2], "data": [1, 0]}]}
    return json.dumps({**said, **more}).encode()


LIES = {
    "huge": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999\r\n\r\n"), "larger than 100000 bytes"),
    "endless": (endless, "larger than 100000 bytes"),
    "endless-head": (endless_head, "head without end|too many"),
    "closes-at-once": (closes_after(b""), "ended before its answer did"),
    "closes-in-head": (closes_after(b"HTTP/1.1 200 OK\r\ncontent-le"), "ended before its answer did"),
    "closes-in-body": (closes_after(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"), "ended before its answer did"),
    "no-length": (closes_after(b"HTTP/1.1 200 OK\r\n\r\n" + body()), "no length"),
    "two-lengths": (
        says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
        "two lengths|not well-formed",
    ),
    "length-twice": (says(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\n{}"), "twice|not well-formed"),
    "length-plus": (says(b"HTTP/1.1 200 OK\r\ncontent-length: +2\r\n\r\n{}"), "not well-formed"),
    "coding": (says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), "two lengths|not well-formed"),
    "split-header": (says(b"HTTP/1.1 200 OK\r\nx: a\rcontent-length: 2\r\n\r\n{}"), "not well-formed|no length"),
    "folded": (says(b"HTTP/1.1 200 OK\r\nx: a\r\n content-length: 2\r\n\r\n{}"), "not well-formed|no length"),
    "compressed": (says(whole(b"\x1f\x8b", "200 OK", "content-encoding: gzip")), "compressed"),
    "redirect": (says(whole(b"", "307 Temporary Redirect", "location: http://169.254.169.254/")), "redirect"),
    "continue": (says(b"HTTP/1.1 100 Continue\r\n\r\n" + whole(body())), "status 100"),
    "upgrade": (
        says(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n"),
        "status 101|another protocol",
    ),
    "old": (says(b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}"), "HTTP/1.0"),
    "http-2": (says(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00"), "not well-formed"),
    "trailer": (
        says(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-more: 9\r\n\r\n"),
        "behind its body",
    ),
    "twice": (twice, "answers twice"),
    "another-id": (says(whole(body())), "another request"),
    "server-error": (says(whole(b'{"error": "boom"}', "500 Internal Server Error")), "status 500: boom"),
}


@pytest.mark.parametrize("name", LIES)
def test_a_lie_is_unavailable_and_its_connection_is_not_used_again(name):
    act, why = LIES[name]

    async def story():
        async with against(act) as (model, server):
            with pytest.raises(Unavailable, match=why):
                await model.infer(FEEDS)
            assert len(server.asked) == 1  # and it is not sent a second time
            assert model.readings.failures == 1
            if name not in ("another-id", "server-error", "redirect"):
                with pytest.raises(Unavailable):
                    await model.infer(FEEDS)
                assert server.visits == 2

    run(story())


def test_a_slow_drip_ends_with_the_time_that_a_question_has():
    async def story():
        async with against(drip, seconds=0.3) as (model, server):
            with pytest.raises(Unavailable, match=r"within 0\.3 s"):
                await model.infer(FEEDS)
            assert server.visits == 1

    run(story())


def test_an_answer_to_the_question_before_is_never_taken():
    async def story():
        async with against(one_behind, thresholds=Thresholds(failures=50)) as (model, _):
            for _ in range(3):
                with pytest.raises(Unavailable, match="another request"):
                    await model.infer(FEEDS)

    run(story())


def test_what_comes_unasked_ends_the_connection():
    async def story():
        said = asyncio.Event()

        async def act(visit):
            answer = answer_to(await visit.question())
            await visit.say(answer)
            await asyncio.sleep(0.05)
            if not said.is_set():
                said.set()
                await visit.say(answer)  # for whoever asks next
                await visit.gone()
                return
            await visit.gone()

        async with against(act) as (model, server):
            await model.infer(FEEDS)
            await said.wait()
            await asyncio.sleep(0.05)
            assert (await model.infer(FEEDS))["p"].tolist() == [[0.25, 0.75]]
            assert server.visits == 2

    run(story())


def test_a_kept_connection_that_was_closed_meanwhile_costs_nobody_an_answer():
    async def once(visit):
        await visit.say(answer_to(await visit.question()))

    async def story():
        async with against(once) as (model, server):
            for _ in range(3):
                await model.infer(FEEDS)
                await asyncio.sleep(0.05)
            assert server.visits == 3 and model.readings.failures == 0

    run(story())


def test_a_connection_that_nobody_uses_is_let_go():
    async def story():
        gone = asyncio.Event()

        async def act(visit):
            await visit.say(answer_to(await visit.question()))
            await visit.gone()
            gone.set()

        async with against(act, bounds=LinkBounds(idle_seconds=0.1)) as (model, _):
            await model.infer(FEEDS)
            await gone.wait()

    run(story())


def test_who_goes_away_takes_the_question_along():
    async def story():
        hung_up = asyncio.Event()

        async def act(visit):
            await visit.question()
            await visit.gone()
            hung_up.set()

        async with against(act) as (model, _):
            asking = asyncio.ensure_future(model.infer(FEEDS))
            while asking not in WAITING:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled()
            await hung_up.wait()
            assert model.readings.failures == 0 and model.state() is State.CLOSED and not WAITING

    run(story())


def test_the_breaker_opens_says_so_and_closes_when_the_upstream_is_back():
    async def story():
        well = asyncio.Event()

        async def act(visit):
            while True:
                question = await visit.question()
                if question.startswith(b"GET /v2/models/m/ready"):
                    await visit.say(whole(b"{}") if well.is_set() else whole(b"", "503 Unavailable"))
                else:
                    await visit.say(answer_to(question) if well.is_set() else whole(b"", "500 Broken"))

        reports, clock = [], Ahead()
        async with against(act, reports=reports, clock=clock) as (model, server):
            await model.check_ready()
            for _ in range(3):
                with pytest.raises(Unavailable, match="status 500"):
                    await model.infer(FEEDS)
            asked = len(server.asked)
            with pytest.raises(Unavailable, match="left alone"):
                await model.infer(FEEDS)
            with pytest.raises(Unavailable, match="left alone"):
                await model.check_ready()
            assert len(server.asked) == asked  # it was
            clock.seconds += 601
            with pytest.raises(Unavailable, match="status 503"):
                await model.check_ready()  # asked in place of the question that would see
            assert model.state() is State.OPEN
            well.set()
            clock.seconds += 100_000
            await model.check_ready()
            assert model.state() is State.CLOSED
            await model.infer(FEEDS)
        assert "is left alone for a while: it answers with status 500" in reports[0] and "answers again" in reports[-1]

    run(story())


def test_an_input_that_it_refuses_is_invalid_and_no_failure():
    async def story():
        async with against(says(whole(b'{"error": "bad input"}', "400 Bad Request"))) as (model, _):
            for _ in range(6):
                with pytest.raises(Invalid, match="does not take the input: bad input"):
                    await model.infer(FEEDS)
            assert model.state() is State.CLOSED

    run(story())


# -- where it may be, and who it must be --


@pytest.mark.parametrize(
    ("address", "refused"),
    [
        ("169.254.169.254", True), ("fe80::1", True), ("fe80::1%eth0", True), ("::ffff:169.254.169.254", True),
        ("fd00:ec2::254", True), ("100.100.100.200", True), ("0.0.0.0", True), ("::", True), ("224.0.0.1", True),
        ("fd20:ce::254", True), ("168.63.129.16", True), ("192.0.0.192", True), ("::ffff:168.63.129.16", True),
        ("0.1.2.3", True), ("2002:a9fe:a9fe::1", True), ("64:ff9b::a9fe:a9fe", True), ("2002:0a00:0001::1", False),
        ("255.255.255.255", True), ("240.0.0.1", True), ("ff02::1", True),
        ("127.0.0.1", False), ("::1", False), ("10.0.0.7", False), ("192.168.1.1", False), ("93.184.216.34", False),
        ("2a00:1450::1", False), ("fd12::1", False),
    ],
)  # fmt: skip
def test_addresses_that_hold_the_secrets_of_machines_are_not_asked(address, refused):
    assert is_link_local(address) is refused


def test_a_refused_address_is_not_connected_to():
    async def story():
        for host in ("169.254.169.254", "0.0.0.0"):
            with pytest.raises(NotTrusted, match="link-local"):
                await HttpLink(Callee(parse_url(f"http://{host}:1"))).request(b"GET", "/v2")

    run(story())


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a", "file:///etc/passwd", "http://", "http://user:pw@a", "http://a?x=1", "http://a#x", "http://a/../b",
        "http://a b", "http://a:99999", "http://a\r\nhost: b", "http://[fe80::1%25eth0]", "//a", "a:80", "http://a//b",
        "http://ä.example", "http://a/%2e%2e/",
    ],
)  # fmt: skip
def test_what_is_no_plain_url_is_refused(url):
    with pytest.raises(Invalid):
        parse_url(url)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a", ("http", "a", 80, "")), ("https://A.example:8443/", ("https", "a.example", 8443, "")),
        ("http://[::1]:8000/seldon/v2", ("http", "::1", 8000, "/seldon")),
        ("http://10.0.0.1/v2/", ("http", "10.0.0.1", 80, "")),
    ],
)  # fmt: skip
def test_urls(url, found):
    assert parse_url(url) == found


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for localhost with its authority and key, and the pin of its key."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
    from cryptography.x509 import load_pem_x509_certificate

    from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key

    folder = tmp_path_factory.mktemp("tls")
    secret, now = make_authority_key(), SystemClock().now_ns()
    authority = authority_certificate(secret, "test", now)
    leaf = issue(secret, authority, ("localhost", "127.0.0.1"), now)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (folder / "chain.pem").write_bytes(leaf.chain)
    (folder / "key.pem").write_bytes(leaf.key)
    context.load_cert_chain(folder / "chain.pem", folder / "key.pem")
    key = load_pem_x509_certificate(leaf.chain).public_key()
    pin = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    other = authority_certificate(make_authority_key(), "other", now)
    return context, authority.decode(), other.decode(), pin


@pytest.mark.parametrize("case", ["good", "pinned", "stranger", "public", "another-key", "another-name"])
def test_it_must_be_the_server_that_was_published(certificate, case):
    context, authority, other, pin = certificate

    async def act(visit):
        await visit.question()
        await visit.say(whole(b"{}"))
        await visit.gone()

    async def story():
        async with Hostile(act, context) as server:
            url = f"https://{'127.0.0.2' if case == 'another-name' else 'localhost'}:{server.port}"
            trusted = {"stranger": other, "public": ""}.get(case, authority)
            pins = {"pinned": (pin,), "another-key": ("0" * 64,)}.get(case, ())
            link = HttpLink(Callee(parse_url(url), tls_context(trusted), pins), lambda: "s3cret")
            if case in ("good", "pinned"):
                assert (await link.request(b"GET", "/v2")).status == 200
                assert b"authorization: Bearer s3cret\r\n" in server.asked[0]
            else:
                with pytest.raises((NotTrusted, Unavailable)):
                    await link.request(b"GET", "/v2")
                assert server.asked == []
            link.close()

    run(story())


def test_an_authority_that_is_none_is_refused():
    for text in ("no pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"):
        with pytest.raises(Invalid, match="not PEM"):
            tls_context(text)
