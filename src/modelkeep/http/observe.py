"""What is seen of each request from outside of the gateway: one line of an access log, and one span of a trace.

Nothing here runs unless one of the two is on. A line says what was asked in our words, never in the client's: the address that
was typed, headers, bodies and credentials stay out. The audit record that it names says who asked.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Any, Literal, Protocol

import msgspec

from modelkeep.http.protocol import Handler, Request, Response

Addresses = Literal["off", "truncated", "full"]
_MODEL = re.compile(rb"/v2/models/([a-z0-9][a-z0-9._-]{0,63})(?:/versions/[a-z0-9._-]{1,64})?(/[a-z]{1,16})?\Z")
_ROUTES = {b"/v2": "server", b"/v2/health/live": "live", b"/v2/health/ready": "ready", b"/metrics": "metrics"}
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"PATCH", b"OPTIONS"})
RECORD = b"modelkeep-record"
_NONE = Response(500)
"""What a request that raised is told in its span."""


class Says(Protocol):
    """Where a line goes: ``adapters.logs.Log.event``."""

    def __call__(self, level: Literal["info", "warning"], event: str, message: str = "", /, **fields: Any) -> None: ...


class Spans(Protocol):
    """Where spans come from: ``adapters.traces.Traces``."""

    def begin(self, traceparent: bytes) -> Any:
        """A request begins; None when it is not sampled."""
        ...

    def end(self, seen: Any, name: str, status: int, attributes: dict[str, str]) -> None:
        """It ends."""
        ...


class _Coded(msgspec.Struct):
    code: str = ""


class AccessLog:
    """Answers as ``handler`` does and says so: of every answer, or of a ``share`` of them and of all that failed for us."""

    def __init__(
        self,
        handler: Handler,
        say: Says,
        *,
        share: float,
        addresses: Addresses,
        serves: Callable[[str], bool],
        monotonic: Callable[[], float],
    ) -> None:
        """``serves``: whether a name is that of a served model; any other name is the client's word and is not repeated."""
        self._handler, self._say, self._share, self._addresses = handler, say, share, addresses
        self._serves, self._monotonic = serves, monotonic
        self._due = 0.0

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        began = self._monotonic()
        response = await self._handler(request)
        self._due += self._share
        if self._due >= 1.0:
            self._due -= 1.0
        elif response.status < 500:
            return response
        route, model = route_of(request.target, self._serves)
        self._say(
            "warning" if response.status >= 500 else "info",
            "request",
            method=request.method.decode() if request.method in _METHODS else "other",
            route=route,
            model=model,
            status=response.status,
            code=code_of(response),
            ms=round(1000 * (self._monotonic() - began), 3),
            bytes_in=len(request.body),
            bytes_out=len(response.body),
            record=record_of(response),
            address=shown_address(request.address, self._addresses),
        )
        return response


class Traced:
    """Answers as ``handler`` does, and makes a span of each request that is sampled."""

    def __init__(self, handler: Handler, traces: Spans, serves: Callable[[str], bool]) -> None:
        self._handler, self._traces, self._serves = handler, traces, serves

    async def __call__(self, request: Request) -> Response:
        """Answer one request."""
        seen = self._traces.begin(request.headers.get(b"traceparent", b""))
        if seen is None:
            return await self._handler(request)
        response = _NONE
        try:
            response = await self._handler(request)
            return response
        finally:
            method = request.method.decode() if request.method in _METHODS else "other"
            route, model = route_of(request.target, self._serves)
            attributes = {
                "http.request.method": method,
                "http.route": route,
                "modelkeep.model": model,
                "modelkeep.record": record_of(response),
                "error.type": code_of(response),
            }
            self._traces.end(seen, f"{method} {route}", response.status, attributes)


def route_of(target: bytes, serves: Callable[[str], bool]) -> tuple[str, str]:
    """What was asked, in our words, and of which served model ("" = none)."""
    path = target.partition(b"?")[0]
    if fixed := _ROUTES.get(path):
        return fixed, ""
    found = _MODEL.match(path)
    if found is None:
        return ("log" if path.startswith((b"/log/", b"/audit/")) else "other"), ""
    name = found[1].decode()
    return (found[2] or b"/metadata")[1:].decode(), name if serves(name) else ""


def code_of(response: Response) -> str:
    """The stable code of a problem document, "" of any other answer."""
    if response.status < 400:
        return ""
    try:
        return msgspec.json.decode(response.body, type=_Coded).code
    except msgspec.MsgspecError:
        return ""


def record_of(response: Response) -> str:
    """The audit record of an answer, "" when it has none."""
    return next((value.decode() for name, value in response.headers if name == RECORD), "")


def shown_address(address: str, how: Addresses) -> str:
    """An address as the settings let it be kept: not at all, its network (IPv4 /24, IPv6 /48), or whole."""
    if how == "off" or not address:
        return ""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if how == "full":
        return str(found)
    return str(ipaddress.ip_network((found, 24 if found.version == 4 else 48), strict=False))
