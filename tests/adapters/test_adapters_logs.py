"""The log of a server process: its two forms, what it cuts out, and lines that come again and again."""

import io
import json
import logging
import threading
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.adapters.logs import Log, redact, take_over_logging
from modelkeep.crypto.shamir import share_text, split
from modelkeep.crypto.xwing import generate_identity

PEM = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIcanary\n-----END PRIVATE KEY-----\n"


def made(form="json", **more):
    stream, ticks = io.StringIO(), [0.0]
    log = Log("gateway", form=form, stream=stream, monotonic=lambda: ticks[0], now=lambda: 1_800_000_000.25, **more)
    return log, (lambda: stream.getvalue().splitlines()), ticks


def test_one_event_in_both_forms():
    for form, wanted in [
        (
            "json",
            '{"time":"2027-01-15T08:00:00.250Z","level":"info","process":"gateway","event":"request","status":200,"ms":1.5}',
        ),
        ("text", "2027-01-15T08:00:00.250Z INFO    gateway: request status=200 ms=1.5"),
        (
            "auto",
            '{"time":"2027-01-15T08:00:00.250Z","level":"info","process":"gateway","event":"request","status":200,"ms":1.5}',
        ),
    ]:
        log, lines, _ = made(form)
        log.event("info", "request", status=200, ms=1.5, code="", address=None)
        assert lines() == [wanted]


def test_the_level_and_fields_that_would_take_the_place_of_ours():
    log, lines, _ = made(level="warning")
    log.tell("not written")
    log.event("error", "trouble", "why", time="mine", level="mine", found=[1, "two"])
    (line,) = map(json.loads, lines())
    assert (line["level"], line["time"][:4], line["message"], line["found"]) == ("error", "2027", "why", [1, "two"])


def secrets():
    return [
        "mk_01234567_" + "a" * 49,
        "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLWNhbmFyeQ",
        share_text(split(bytes(range(32)), 2, 2)[0]),
        share_text(split(bytes(range(32)), 2, 2)[0]).replace("-", "").upper(),
        generate_identity(),
        "otpauth://totp/modelkeep:alice?secret=CANARYCANARYCANARYCANARYCANARYCA&issuer=modelkeep",
        "whsec_" + "Q2FuYXJ5" * 4,
        PEM,
    ]


@pytest.mark.parametrize("secret", secrets(), ids=["key", "jwt", "share", "typed share", "identity", "totp", "webhook", "pem"])
def test_secrets_are_cut_out_wherever_they_stand(secret):
    log, lines, _ = made()
    log.report(f"before {secret} after")
    log.event("info", "x", "y", field=f"({secret})", many=[secret])
    said = "\n".join(lines())
    assert secret[8:24] not in said and secret not in said
    assert said.count("[cut out]") == 3 and "before" in said


def test_passwords_in_urls_and_headers():
    said = redact("postgresql://me:canary@host/db Authorization: Bearer canary-token.x https://user:canary@h")
    assert "canary" not in said and "@host/db" in said


@given(st.text())
def test_every_event_is_one_line_of_json(text):
    log, lines, _ = made()
    log.event("info", "e", text, field=text)
    (line,) = lines()
    found = json.loads(line)
    assert found["event"] == "e" and "\n" not in found.get("message", "")


@given(st.text())
def test_nobodys_words_steer_a_terminal_or_pass_for_a_line(text):
    log, lines, _ = made("text")
    log.event("info", "e", "said:" + text)
    assert len(lines()) == 1 and all(c.isprintable() or ord(c) > 0x9F for c in lines()[0])


def test_what_comes_again_is_counted_instead_of_written():
    log, lines, ticks = made(repeat_seconds=10.0)
    for _ in range(5):
        log.report("the disk is full")
    log.report("another thing")
    assert len(lines()) == 2
    ticks[0] = 11.0
    log.report("the disk is full")
    assert json.loads(lines()[-1])["repeated"] == 4
    log.report("the disk is full")
    assert len(lines()) == 3
    for number in range(1000):
        log.report(f"different {number}")
    assert len(log._seen) <= 256 and len(lines()) == 1003


def test_events_without_a_message_are_never_held_back():
    log, lines, _ = made()
    for _ in range(5):
        log.event("info", "request", status=200)
    assert len(lines()) == 5


def test_threads_do_not_write_into_each_others_lines():
    log, lines, _ = made(repeat_seconds=0)
    threads = [threading.Thread(target=lambda n=n: [log.tell(f"{n} {'x' * 500}") for _ in range(50)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines()) == 200 and all(json.loads(line) for line in lines())


def test_a_stream_that_is_gone_stops_nothing():
    log, _, _ = made()
    log._stream.close()
    log.report("nobody reads this")


def test_what_libraries_log_has_no_values_of_a_traceback():
    log, lines, _ = made()
    before = logging.root.handlers[:], logging.root.level
    logging.captureWarnings(False)  # a test before this one may have left them caught
    try:
        take_over_logging(log)
        try:
            raise ValueError("the canary is " + "mk_01234567_" + "a" * 49 + " canary-input 7654321")
        except ValueError:
            logging.getLogger("asyncio").exception("Exception in callback %s", "f")
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("x").info("not written")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("of a library", UserWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
        logging.root.handlers[:], logging.root.level = before
    first, second, third = map(json.loads, lines())
    assert (
        first["error"] == "ValueError" and first["at"][0].startswith("test_what_libraries_log") and "canary" not in lines()[0]
    )
    assert second["message"].startswith("Invalid HTTP") and "of a library" in third["message"]
