"""The access log: our words and never the client's, sampled, and quiet about addresses unless told otherwise."""

import asyncio

import pytest

from modelkeep.errors import Denied, Unavailable
from modelkeep.http.observe import AccessLog, route_of, shown_address
from modelkeep.http.problem import problem
from modelkeep.http.protocol import Request, Response

CANARY = "canary-0123456789"


def serves(name):
    return name == "risk"


def observed(response, *, share=1.0, addresses="off"):
    said = []

    async def handler(_request):
        return response

    log = AccessLog(
        handler,
        lambda level, event, message="", **fields: said.append((level, event, fields)),
        share=share,
        addresses=addresses,
        serves=serves,
        monotonic=iter(range(1000)).__next__,
    )
    return log, said


def ask(log, target=b"/v2/models/risk/infer", method=b"POST"):
    headers = {b"authorization": f"Bearer {CANARY}".encode(), b"cookie": CANARY.encode()}
    return asyncio.run(log(Request(method, target, headers, CANARY.encode(), "203.0.113.77")))


def test_a_line_says_what_was_asked_of_what_with_which_record():
    answer = Response(200, b"{}", headers=((b"modelkeep-record", b"g1/7"),))
    log, said = observed(answer)
    assert ask(log) is answer
    ((level, event, fields),) = said
    assert (level, event) == ("info", "request")
    assert fields == {
        "method": "POST",
        "route": "infer",
        "model": "risk",
        "status": 200,
        "code": "",
        "ms": 1000.0,
        "bytes_in": len(CANARY),
        "bytes_out": 2,
        "record": "g1/7",
        "address": "",
    }


@pytest.mark.parametrize(
    ("target", "route", "model"),
    [
        (b"/v2", "server", ""),
        (b"/v2/health/ready?x=1", "ready", ""),
        (b"/v2/models/risk", "metadata", "risk"),
        (b"/v2/models/risk/versions/3/infer", "infer", "risk"),
        (b"/v2/models/" + CANARY.encode() + b"/infer", "infer", ""),
        (b"/" + CANARY.encode(), "other", ""),
        (b"/log/checkpoint", "log", ""),
        (b"/v2/models/risk/infer\n", "other", ""),
    ],
)
def test_nothing_that_was_typed_is_repeated(target, route, model):
    assert route_of(target, serves) == (route, model)
    log, said = observed(problem(Denied(f"not {CANARY}")))
    ask(log, target, CANARY.encode())
    assert CANARY not in repr(said) and said[0][2]["code"] == "denied" and said[0][2]["method"] == "other"


def test_a_share_of_the_answers_and_everything_that_failed_for_us():
    log, said = observed(Response(200), share=0.25)
    for _ in range(100):
        ask(log)
    assert len(said) == 25
    log, said = observed(problem(Unavailable("no disk")), share=0.001)
    ask(log)
    assert [level for level, _, _ in said] == ["warning"]


@pytest.mark.parametrize(
    ("address", "truncated"),
    [("203.0.113.77", "203.0.113.0/24"), ("2001:db8:1:2::3", "2001:db8:1::/48"), ("", ""), ("@unix", "")],
)
def test_addresses(address, truncated):
    assert shown_address(address, "truncated") == truncated
    assert shown_address(address, "off") == ""
    assert shown_address(address, "full") == (address if truncated else "")
