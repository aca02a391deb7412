"""What only a bucket can do wrong: half uploads, a store that is gone, lies, or is somebody else's."""

import contextlib
import http.server
import itertools
import os
import re
import ssl
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from services import S3_ENVIRONMENT, certificate

from modelkeep.adapters.blobs import s3
from modelkeep.adapters.blobs.s3 import Place, S3Blobs, parse_place
from modelkeep.core.values import Digest, digest_hex, digest_of
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, TooLarge, Unavailable

ORIGIN = "keep.example/s3"
NOWHERE = Digest("sha256:" + "0" * 64)
MIB = 1 << 20


@pytest.fixture
def bucket(s3_server):
    return s3_server.bucket()


@pytest.fixture
def blobs(s3_server, bucket):
    return S3Blobs.create(s3_server.url(bucket), ORIGIN)


@pytest.fixture
def quick(monkeypatch):
    """Fail sooner than a real store deserves."""
    monkeypatch.setattr(s3, "_RETRY", {"max_retries": 0})
    monkeypatch.setattr(s3, "_TIMES", {"connect_timeout": "2s", "read_timeout": "2s", "timeout": "8s"})


def keys(server, bucket):
    found = server.client().list_objects_v2(Bucket=bucket).get("Contents", [])
    return sorted(item["Key"] for item in found)


def uploads(server, bucket):
    return server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", [])


def key_of(digest):
    return f"keep/{digest_hex(digest)[:2]}/{digest_hex(digest)}"


# -- known answers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("s3://models", Place("models", "", "", "", "")),
        ("s3://models/", Place("models", "", "", "", "")),
        ("s3://models/a/b-c_d.e/", Place("models", "a/b-c_d.e", "", "", "")),
        ("s3://models/a?endpoint=https://minio:9000/&region=eu-1", Place("models", "a", "https://minio:9000", "eu-1", "")),
        ("s3://models/a?endpoint=https://minio&ca=/etc/ca.pem", Place("models", "a", "https://minio", "", "/etc/ca.pem")),
    ],
)
def test_urls(url, place):
    assert parse_place(url, {}) == place


def test_the_endpoint_of_the_environment_is_used_and_named():
    place = parse_place("s3://models/a", {"AWS_ENDPOINT_URL": "https://minio:9000"})
    assert str(place) == "s3://models/a at https://minio:9000"
    assert (
        parse_place("s3://models/a", {"AWS_ENDPOINT_URL_S3": "https://x", "AWS_ENDPOINT_URL": "https://y"}).endpoint
        == "https://x"
    )


@pytest.mark.parametrize(
    "url",
    [
        "s3://", "s3:///a", "s3://UPPER/a", "s3://b/a", "s3://models/../other", "s3://models/a//b", "s3://models/a b", "s3://models/.x",
        "s3://models/a?region", "s3://models/a?zone=1", "s3://models/a#b", "s3://models/a?endpoint=minio", "http://models/a",
        "s3://models/a?endpoint=https://user:word@minio", "s3://AKIA:hunter2@models/a", "s3://[::1/a", "",
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_quoting_secrets(url):
    with pytest.raises(Invalid) as refusal:
        parse_place(url, {})
    assert "hunter2" not in str(refusal.value) and "word" not in str(refusal.value).replace("words", "")


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60).map("s3://".__add__) | st.text(max_size=40))
def test_any_text_is_a_place_or_invalid(url):
    with contextlib.suppress(Invalid):
        assert parse_place(url, {}).bucket


def test_layout(s3_server, bucket, blobs):
    digest = blobs.put([b"abc"])
    assert keys(s3_server, bucket) == sorted(["keep/origin", key_of(digest)])
    assert s3_server.client().get_object(Bucket=bucket, Key="keep/origin")["Body"].read() == ORIGIN.encode()


# -- uploads ------------------------------------------------------------------------------------------------------------------


def test_a_large_blob_in_uneven_chunks_from_one_buffer(s3_server, bucket, blobs):
    """Chunks are views of one buffer that is filled anew, as in sealing: a copy taken too late would be another's bytes."""
    pieces = [os.urandom(size) for size in (5 * MIB, 7, 11 * MIB, 1, 9 * MIB, 0, 13 * MIB)]
    buffer = bytearray(16 * MIB)

    def chunks():
        for piece in pieces:
            buffer[: len(piece)] = piece
            yield memoryview(buffer)[: len(piece)]
            buffer[: len(piece)] = bytes(len(piece))

    digest, whole = blobs.put(chunks()), b"".join(pieces)
    assert digest == digest_of(whole)
    assert keys(s3_server, bucket) == sorted(["keep/origin", key_of(digest)]) and not uploads(s3_server, bucket)
    assert blobs.size(digest) == len(whole)
    assert blobs.read(digest, 5 * MIB - 3, 20 * MIB) == whole[5 * MIB - 3 :][: 20 * MIB]
    into = bytearray(len(whole))
    blobs.read_into(digest, 0, memoryview(into))
    assert into == whole


@pytest.mark.parametrize("after", [0, 5 * MIB, 3 * s3.PART])
def test_a_source_that_fails_leaves_nothing_not_even_an_upload(s3_server, bucket, blobs, after):
    def failing():
        for _ in range(0, after, MIB):
            yield bytes(MIB)
        raise NotTrusted("the source shrank")

    with pytest.raises(NotTrusted, match="shrank"):
        blobs.put(failing())
    assert keys(s3_server, bucket) == ["keep/origin"] and not uploads(s3_server, bucket)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError, OSError, KeyboardInterrupt])
def test_what_a_large_source_raises_is_not_taken_for_the_stores_failure(blobs, error):
    def failing():
        yield bytes(s3.PART)
        yield bytes(s3.PART)
        raise error("of the source")

    with pytest.raises(error, match="of the source"):
        blobs.put(failing())


def test_a_source_that_reads_the_same_store(blobs, monkeypatch):
    """As sealing a stored body anew does: obstore may not be asked from within its own upload."""
    monkeypatch.setattr(s3, "ONE_REQUEST", 0)
    first = blobs.put([bytes(range(256)) * 100])
    assert blobs.put(blobs.read(first, at, 256)[::-1] for at in range(0, 25_600, 256)) != first


def test_an_upload_that_breaks_off_is_told_and_its_source_is_asked_no_more(s3_server, bucket, blobs, quick):
    taken = []

    def chunks():
        for number in itertools.count():
            if number == 20:
                s3_server.stop()
            taken.append(number)
            yield bytes(MIB)
            assert number < 200, "nobody noticed that the store is gone"

    hasty = S3Blobs(s3_server.url(bucket), ORIGIN)
    try:
        with pytest.raises(Unavailable, match="cannot store a blob: s3://"):
            hasty.put(chunks())
    finally:
        s3_server.start()
    assert list(blobs.all()) == []


def test_a_blob_that_is_too_large(blobs, monkeypatch):
    monkeypatch.setattr(s3, "MAX_PARTS", 1)
    with pytest.raises(TooLarge, match="at most 0 GiB"):
        blobs.put([bytes(s3.PART), b"x"])
    assert list(blobs.all()) == []


def test_a_damaged_blob_is_mended_by_putting_it_again(s3_server, bucket, blobs):
    digest = blobs.put([b"abc"])
    s3_server.client().put_object(Bucket=bucket, Key=key_of(digest), Body=b"abX")
    assert blobs.read(digest, 0, 3) == b"abX"  # the container checks, the store does not
    assert blobs.put([b"abc"]) == digest and blobs.read(digest, 0, 3) == b"abc"


def test_what_a_copy_through_us_gives_back_is_hashed_again(s3_server, bucket, blobs, monkeypatch):
    monkeypatch.setattr(s3, "ONE_REQUEST", 0)
    monkeypatch.setattr(s3, "MAX_COPY", 0)
    honest = s3._upload

    def swapped(store, name, parts):
        done = honest(store, name, parts)
        if name.startswith("new/"):
            s3_server.client().put_object(Bucket=bucket, Key=f"keep/{name}", Body=b"evil")
        return done

    monkeypatch.setattr(s3, "_upload", swapped)
    with pytest.raises(NotTrusted, match="other bytes than were stored"):
        blobs.put([b"good"])
    assert keys(s3_server, bucket) == ["keep/origin"]


# -- whose store it is --------------------------------------------------------------------------------------------------------


def test_a_place_that_is_taken_is_refused_and_not_touched(s3_server, bucket, blobs):
    blobs.put([b"mine"])
    before = keys(s3_server, bucket)
    with pytest.raises(Conflict, match="is not empty"):
        S3Blobs.create(s3_server.url(bucket), "keep.example/other")
    S3Blobs.create(s3_server.url(bucket, "other"), "keep.example/other")
    assert set(before) < set(keys(s3_server, bucket))


def test_another_keeps_blobs_are_neither_read_nor_listed_nor_collected(s3_server, bucket, blobs):
    digest = blobs.put([b"mine"])
    stranger = S3Blobs(s3_server.url(bucket), "keep.example/other")
    acts = (
        lambda: list(stranger.all()),
        lambda: stranger.delete(digest),
        lambda: stranger.put([b"x"]),
        lambda: stranger.size(digest),
        lambda: stranger.read(digest, 0, 1),
    )
    for act in acts:
        with pytest.raises(Invalid, match=r"holds the blobs of the keep 'keep\.example/s3'"):
            act()
    assert blobs.read(digest, 0, 4) == b"mine"


def test_an_empty_place_and_a_bucket_that_is_not_there_say_nothing_about_a_blob(s3_server, bucket):
    """Taken for Missing, a slip in the settings would put every release into quarantine."""
    for url in (s3_server.url(bucket, "elsewhere"), s3_server.url("no-such-bucket")):
        blobs = S3Blobs(url, ORIGIN)
        for act in (lambda: blobs.size(NOWHERE), lambda: blobs.read(NOWHERE, 0, 1), lambda: list(blobs.all())):  # noqa: B023
            with pytest.raises(Unavailable, match="no keep's store at"):
                act()
    with pytest.raises(Unavailable):
        S3Blobs.create(s3_server.url("no-such-bucket"), ORIGIN)


def test_a_store_that_is_emptied_while_in_use(s3_server, bucket, blobs):
    digest = blobs.put([b"abc"])
    with pytest.raises(Missing):
        blobs.size(NOWHERE)
    for key in keys(s3_server, bucket):
        s3_server.client().delete_object(Bucket=bucket, Key=key)
    with pytest.raises(Unavailable, match="not any more"):
        blobs.size(digest)


def test_giving_up_a_place(s3_server, bucket, blobs):
    blobs.abandon()
    assert keys(s3_server, bucket) == []


# -- out of reach -------------------------------------------------------------------------------------------------------------


def calls(blobs, digest):
    yield lambda: blobs.put([b"x"])
    yield lambda: blobs.put([bytes(s3.PART), b"x"])
    yield lambda: blobs.size(digest)
    yield lambda: blobs.read(digest, 0, 1)
    yield lambda: blobs.read_into(digest, 0, memoryview(bytearray(1)))
    yield lambda: blobs.delete(digest)
    yield lambda: list(blobs.all())


def one_clear_line(failure):
    text = str(failure.value)
    assert "\n" not in text and len(text) < 250 and "s3://" in text
    assert not any(secret in text for secret in S3_ENVIRONMENT.values() if secret != "us-east-1")
    assert failure.value.__suppress_context__ or failure.value.__cause__ is None
    return text


def test_a_store_that_is_down_and_comes_back(s3_server, bucket, blobs, quick):
    digest = blobs.put([b"abc"])
    known, fresh = S3Blobs(s3_server.url(bucket), ORIGIN), S3Blobs(s3_server.url(bucket), ORIGIN)
    known.size(digest)
    s3_server.stop()
    try:
        for one in (known, fresh):
            for call in calls(one, digest):
                with pytest.raises(Unavailable) as failure:
                    call()
                assert "sending request" in one_clear_line(failure)
    finally:
        s3_server.start()
    for one in (known, fresh):
        assert one.read(digest, 0, 3) == b"abc"


class Lying(http.server.BaseHTTPRequestHandler):
    """A store that answers as ``server.answer`` says: (status, headers, body), or None to say nothing at all."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path.endswith("/origin"):
            return self.tell(206, {"Content-Range": f"bytes 0-{len(ORIGIN) - 1}/{len(ORIGIN)}"}, ORIGIN.encode())
        found = self.server.answer
        if found is None:
            threading.Event().wait(30)
            self.close_connection = True
            return None
        status, headers, body = found
        return self.tell(status, headers, body if self.command == "GET" else b"")

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815  # names of the standard library

    def tell(self, status, headers, body):
        self.send_response(status)
        given = {"Content-Length": str(len(body)), "ETag": '"1"', "Last-Modified": "Sun, 22 Nov 2026 00:00:00 GMT", **headers}
        for name, value in given.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def liar(s3_server, quick):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Lying)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield server, S3Blobs(f"s3://models/keep?endpoint=http://127.0.0.1:{server.server_port}", ORIGIN)
    server.shutdown()
    server.server_close()
    thread.join()


SLOW = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((503, {}, SLOW), Unavailable, "SlowDown"),
        ((500, {}, b"oh no\n" * 1000), Unavailable, "500 Internal Server Error"),
        ((403, {}, b"<Error><Code>AccessDenied</Code></Error>"), Unavailable, "refuses these credentials (AccessDenied"),
        ((401, {}, b""), Unavailable, "refuses these credentials"),
        ((404, {}, b"<Error><Code>NoSuchKey</Code></Error>"), Missing, "there is no blob"),
        ((404, {}, b"<Error><Code>NoSuchBucket</Code></Error>"), Unavailable, "no keep's store"),
        ((416, {}, b"<Error><Code>InvalidRange</Code></Error>"), NotTrusted, "truncated"),
        ((206, {"Content-Range": "bytes 0-4/5"}, b"abcde"), NotTrusted, "truncated"),
        ((206, {"Content-Range": "bytes 5-14/99"}, b"0123456789"), Unavailable, "failed ("),
        ((200, {}, b"0123456789"), Unavailable, "failed ("),
        ((206, {"Content-Range": "bytes 0-19/99"}, b"0123456789" * 2), Unavailable, "failed ("),
        ((206, {"Content-Range": "bytes 0-9/99"}, b"0123456789" * 2), NotTrusted, "more bytes"),
        ((206, {"Content-Range": "rubbish"}, b"0123456789"), Unavailable, "failed ("),
        ((206, {"Content-Range": "bytes 0-9/99", "Content-Length": "30"}, b"0123456789"), Unavailable, "failed ("),
        (None, Unavailable, "failed ("),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str) else None,
)
def test_a_store_that_answers_wrongly(liar, answer, error, words):
    server, blobs = liar
    server.answer = answer
    into = bytearray(10)
    with pytest.raises(error, match=re.escape(words)) as failure:
        blobs.read_into(NOWHERE, 0, memoryview(into))
    if error is Unavailable:
        one_clear_line(failure)


def test_a_store_with_a_private_authority(s3_server, quick, tmp_path):
    """TLS is checked: against the authority named, and against nothing else than that and the system's."""
    ca, _, authority, key = certificate("authority")
    crt, pem, *_ = certificate("localhost", authority, key)
    for name, data in (("ca.pem", ca), ("other.pem", certificate("authority")[0]), ("server.pem", crt + pem)):
        (tmp_path / name).write_bytes(data)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    server = Quiet(("127.0.0.1", 0), Lying)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    server.answer = (206, {"Content-Range": "bytes 0-2/3"}, b"abc")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        url = f"s3://models/keep?endpoint=https://localhost:{server.server_port}"
        assert S3Blobs(f"{url}&ca={tmp_path}/ca.pem", ORIGIN).read(NOWHERE, 0, 3) == b"abc"
        for bad in (url, f"{url}&ca={tmp_path}/other.pem", f"{url.replace('localhost', '127.0.0.1')}&ca={tmp_path}/ca.pem"):
            with pytest.raises(Unavailable) as failure:
                S3Blobs(bad, ORIGIN).read(NOWHERE, 0, 3)
            one_clear_line(failure)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Quiet(http.server.ThreadingHTTPServer):
    """A server that does not print what its clients dislike."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        pass


def test_a_size_that_is_a_lie_costs_no_memory(liar):
    server, blobs = liar
    server.answer = (206, {"Content-Range": f"bytes 0-9/{1 << 60}", "Content-Length": "10"}, b"0123456789")
    with pytest.raises((NotTrusted, Unavailable)):
        blobs.read(NOWHERE, 0, 1 << 50)


def test_odd_names_never_reach_the_store(blobs):
    for call in calls(blobs, Digest("sha256:../../origin")):
        with contextlib.suppress(Invalid):
            call()
    with pytest.raises(Invalid):
        blobs.delete(Digest("sha256:../../origin"))
    assert blobs.place and list(blobs.all())


def test_threads_share_a_store(blobs):
    bodies = [os.urandom(200_000 + i) for i in range(8)]
    wrong = []

    def work(body):
        digest = blobs.put([body])
        if blobs.read(digest, 0, len(body)) != body:
            wrong.append(digest)

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and set(blobs.all()) == {digest_of(body) for body in bodies}


def test_environments_that_obstore_refuses(monkeypatch):
    monkeypatch.setenv("AWS_CHECKSUM_ALGORITHM", "rot13")
    with pytest.raises(Invalid, match="as the environment says"):
        S3Blobs("s3://models/keep", ORIGIN)
    with pytest.raises(Unavailable, match="cannot read the certificate"):
        S3Blobs("s3://models/keep?ca=/no/such/file.pem", ORIGIN)
