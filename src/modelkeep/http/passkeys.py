"""Control's one page: a browser registers a passkey there, and approves that an account goes on.

The page keeps nothing: the session it logs in to lives in its script and ends when it is closed. Nothing is loaded from
anywhere else, no script or style stands in the page, and no other site may frame it; cookies there are none, so no other site
can ask in its user's name.
"""

from typing import TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelkeep.app.control import Control
from modelkeep.errors import Invalid
from modelkeep.http.door import Threads, address_of, body_of, token_of
from modelkeep.http.pages import page

PAGE = "/step-up"
MAX_ANSWER = 64 << 10
"""Largest answer of a browser, bytes."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "strict-transport-security": "max-age=63072000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "publickey-credentials-get=(self), publickey-credentials-create=(self)",
    "cache-control": "no-store",
}
T = TypeVar("T")
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class OptionsAsked(msgspec.Struct, frozen=True):
    """``purpose``: register, step-up or approve."""

    purpose: str


class Answered(msgspec.Struct, frozen=True):
    """``challenge``: the id that came with the options; ``credential``: what the browser made, as WebAuthn's JSON."""

    challenge: str
    credential: msgspec.Raw
    label: str = ""


class PasskeyPages:
    """The routes, as methods over one ``Control``."""

    def __init__(self, control: Control, threads: Threads) -> None:
        self._control, self._run = control, threads.run

    def routes(self) -> list[Route]:
        """The page with its two files, and what it calls."""
        return [
            Route(PAGE, self.show),
            Route(PAGE + ".js", self.show),
            Route(PAGE + ".css", self.show),
            Route("/webauthn/v1/options", self.options, methods=["POST"]),
            Route("/webauthn/v1/register", self.register, methods=["POST"]),
            Route("/webauthn/v1/approve", self.approve, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The page, its script or its style."""
        data, kind = page(request.url.path.removeprefix("/"))
        return Response(data, 200, HEADERS, media_type=kind)

    async def options(self, request: Request) -> Response:
        """A fresh challenge, and what the browser is to ask its user."""
        token, asked = token_of(request), _decoded(await body_of(request, MAX_ANSWER), OptionsAsked)
        id_, options = await self._run(self._control.identity.options, token, asked.purpose, address_of(request))
        body = msgspec.json.encode({"challenge": id_, "options": msgspec.Raw(options)})
        return Response(body, 200, {"cache-control": "no-store"}, media_type="application/json")

    async def register(self, request: Request) -> Response:
        """Add the passkey that the browser made."""
        token, asked = token_of(request), _decoded(await body_of(request, MAX_ANSWER), Answered)
        register = self._control.identity.register
        await self._run(register, token, asked.challenge, bytes(asked.credential), asked.label, address_of(request))
        return Response(b"", 204, {"cache-control": "no-store"})

    async def approve(self, request: Request) -> Response:
        """Let the whole account go on."""
        token, asked = token_of(request), _decoded(await body_of(request, MAX_ANSWER), Answered)
        approve = self._control.identity.approve
        await self._run(approve, token, asked.challenge, bytes(asked.credential), address_of(request))
        return Response(b"", 204, {"cache-control": "no-store"})


def _decoded(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except _MALFORMED as cause:
        raise Invalid(f"the request is malformed: {cause}") from cause
