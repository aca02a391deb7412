"""A witness over HTTP: ``POST /add-checkpoint`` and the checkpoints that it cosigned. Source: C2SP tlog-witness.

Errors are one line of plain text: whoever asks may be another implementation.
"""

import asyncio
import re
from collections.abc import Callable

import uvloop

from modelkeep.errors import Missing, ModelkeepError
from modelkeep.http.problem import bad_request
from modelkeep.http.protocol import Request, Response, Server
from modelkeep.http.serve import listening, stop_signal
from modelkeep.ledger.witness import MAX_REQUEST, SIZE_TYPE, Objection, Refusal, Witness
from modelkeep.workflows.service import Listen

STATUS = {
    Objection.MALFORMED: 400,
    Objection.UNKNOWN_LOG: 404,
    Objection.NOT_SIGNED: 403,
    Objection.STALE: 409,
    Objection.FORK: 409,
    Objection.BAD_PROOF: 422,
}
_TEXT = b"text/plain; charset=utf-8"
_LATEST = re.compile(rb"/([0-9a-f]{64})/checkpoint\Z")


class WitnessApp:
    """The routes of one witness. ``report``: told of trouble and of what contradicts itself, one line each."""

    def __init__(self, witness: Witness, report: Callable[[str], None]) -> None:
        self._witness, self._report = witness, report

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises nothing of modelkeep's error tree."""
        loop = asyncio.get_running_loop()
        path = request.target.partition(b"?")[0]
        found = _LATEST.match(path)
        if path == b"/add-checkpoint":
            if request.method != b"POST":
                return _not_allowed(b"POST")
            return await loop.run_in_executor(None, self._add, request.body)
        if found is None:
            return _text(404, "there is nothing at this address: a witness answers POST /add-checkpoint")
        if request.method not in (b"GET", b"HEAD"):
            return _not_allowed(b"GET")
        return await loop.run_in_executor(None, self._show, found[1].decode())

    def _add(self, body: bytes) -> Response:
        try:
            answer = self._witness.add_checkpoint(body)
        except ModelkeepError as cause:
            self._report(f"witness: {cause}")
            return _text(503, "this witness cannot answer now; its operator was told why")
        if isinstance(answer, bytes):
            return Response(200, answer, _TEXT)
        if answer.objection in (Objection.FORK, Objection.BAD_PROOF):
            self._report(f"witness: refused: {answer.why}")
        return refusal_response(answer)

    def _show(self, folder: str) -> Response:
        try:
            return Response(200, self._witness.latest(folder), _TEXT)
        except Missing:
            return _text(404, "nothing of this log was ever cosigned here")
        except ModelkeepError as cause:
            self._report(f"witness: {cause}")
            return _text(503, "this witness cannot answer now; its operator was told why")


def refusal_response(refusal: Refusal) -> Response:
    """A refusal as the specification wants it answered."""
    if refusal.objection is Objection.STALE:
        return Response(409, b"%d\n" % refusal.size, SIZE_TYPE.encode())
    return _text(STATUS[refusal.objection], refusal.why)


def _text(status: int, line: str) -> Response:
    return Response(status, line.replace("\n", " ").encode() + b"\n", _TEXT)


def _not_allowed(method: bytes) -> Response:
    return Response(405, b"use " + method + b"\n", _TEXT, ((b"allow", method),))


def bounds(listen: Listen) -> Listen:
    """``listen`` with the bounds of a witness: its requests are small."""
    return Listen(host=listen.host, port=listen.port, tls=listen.tls, max_body=MAX_REQUEST, max_queue=4, max_buffered=32 << 20)


def run_witness(witness: Witness, listen: Listen, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT. ``tell``: told the address. Raises Conflict (the address is taken), Unavailable."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(witness, listen, tell))


async def _serve(witness: Witness, listen: Listen, tell: Callable[[str], None]) -> None:
    server = Server(WitnessApp(witness, tell), bad_request, bounds(listen), asyncio.get_running_loop())
    async with listening(server) as (host, port):
        shown = f"[{host}]" if ":" in host else host
        tell(f"witness: {'https' if listen.tls else 'http'}://{shown}:{port}")
        await stop_signal()
