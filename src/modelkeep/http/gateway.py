"""The gateway's routes: the Open Inference Protocol v2, health, metrics and the log's static files.

``handle(request) -> response``, without a framework. Targets that were understood once are remembered, so the hot path is one
dictionary look-up before ``Gateway.predict``.
"""

import asyncio
import functools
import math
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import msgspec

import modelkeep
from modelkeep.access.cells import Standing
from modelkeep.access.presented import Certificate
from modelkeep.access.rates import Rate
from modelkeep.core.ports import Clock, LogFiles
from modelkeep.core.tallies import Series
from modelkeep.errors import Invalid, Missing, ModelkeepError
from modelkeep.http.credential import presented
from modelkeep.http.metrics import Metrics, text
from modelkeep.http.problem import problem
from modelkeep.http.protocol import Request, Response
from modelkeep.http.work import solution
from modelkeep.serving.oip import server_metadata
from modelkeep.serving.rest import JSON, RestForm
from modelkeep.workflows.doors import Answer, Call
from modelkeep.workflows.explain import Explainer
from modelkeep.workflows.predict import Gateway

RECORD_HEADER = b"modelkeep-record"
NOTICE_HEADER = b"modelkeep-notice"
JSON_SIZE = b"inference-header-content-length"
_MAX_ROUTES = 4096
_MODEL = re.compile(
    rb"/v2/models/([a-z0-9][a-z0-9._-]{0,63})(?:/versions/([1-9][0-9]{0,8}|[a-z][a-z0-9._-]{0,63}))?(/infer|/explain|/ready)?\Z"
)
_LOG = re.compile(rb"/(log|audit/([a-z0-9][a-z0-9._-]{0,63}))/(checkpoint(?:\.witnessed)?|tile(?:/[a-z0-9.]{1,16}){1,12})\Z")
_TEXT = b"text/plain; charset=utf-8"
_BYTES = b"application/octet-stream"


_IS_READY = Response(200, b'{"ready":true}')


class _Route(NamedTuple):
    """An understood target: what to do, with which model."""

    method: bytes
    act: Callable[[Request, "_Route"], Awaitable[Response]]
    model: str = ""
    version: int | str | None = None


class App:
    """Everything the gateway answers. ``releases``: the releases log's files; ``audits``: those of audit logs by instance."""

    def __init__(  # noqa: PLR0913 - what a gateway has at hand
        self,
        gateway: Gateway,
        metrics: Metrics,
        clock: Clock,
        *,
        releases: LogFiles,
        audits: Callable[[str], LogFiles],
        explainer: Explainer,
        open_metrics: bool = True,
        ready: Callable[[], None] = lambda: None,
        tallied: Callable[[Sequence[Series]], Sequence[Series]] | None = None,
    ) -> None:
        """``open_metrics``: ``/metrics`` needs no credential; otherwise it needs the permission ``status``. ``ready`` and
        ``tallied``: as ``Service`` has them."""
        self._gateway, self.metrics, self._monotonic = gateway, metrics, clock.monotonic
        self._explainer = explainer
        self._releases, self._audits, self._open_metrics = releases, audits, open_metrics
        self._others_ready, self._tallied = ready, tallied
        self._gathering: asyncio.Future[Sequence[Series]] | None = None
        self._server = server_metadata(modelkeep.__version__)
        self._known: dict[bytes, _Route] = {
            b"/v2": _Route(b"GET", self._metadata),
            b"/v2/health/live": _Route(b"GET", self._live),
            b"/v2/health/ready": _Route(b"GET", self._ready),
            b"/metrics": _Route(b"GET", self._show_metrics),
        }
        self._models: dict[bytes, _Route] = {}

    async def __call__(self, request: Request) -> Response:
        """Answer one request. Raises nothing of modelkeep's error tree: every error becomes problem+json."""
        try:
            route = self._models.get(request.target) or self._route(request.target)
            if request.method != route.method and not (request.method == b"HEAD" and route.method == b"GET"):
                return _method_not_allowed(route.method)
            return await route.act(request, route)
        except ModelkeepError as error:
            return problem(error)

    def welcome(self, address: str) -> bool:
        """Whether a connection may come in, before TLS is agreed on it: not while its address is over its limit."""
        try:
            self._gateway.limits.knock(address)
        except ModelkeepError as error:
            self.metrics.requests.add("", error.code)
            return False
        return True

    def door(
        self, method: bytes, headers: dict[bytes, bytes], certificate: Certificate | None, address: str
    ) -> Response | None:
        """Turn away, before its body is read and anything is looked up, a request whose address has sent too many, and one
        that asks for something or brings a body without a credential."""
        try:
            self._gateway.limits.knock(address)
        except ModelkeepError as error:
            self.metrics.requests.add("", error.code)
            return problem(error)
        if headers.get(b"authorization", b"")[:7] == b"Bearer ":  # whoever has the body says whether it is one
            return None
        if method != b"POST" and b"transfer-encoding" not in headers and headers.get(b"content-length", b"0") == b"0":
            return None
        try:
            presented(Request(method, b"", headers, b"", "", certificate))
        except ModelkeepError as error:
            self.metrics.requests.add("", error.code)
            return problem(error)
        return None

    def _route(self, target: bytes) -> _Route:
        path = target.partition(b"?")[0]
        fixed = self._known.get(path)
        if fixed is not None:
            return fixed
        if _LOG.match(path):
            return _Route(b"GET", self._log_file)
        found = _MODEL.match(path)
        if found is None:
            raise Missing("there is nothing at this address; the Open Inference Protocol begins at /v2")
        name, version, verb = found.groups()
        chosen = None if version is None else int(version) if version.isdigit() else version.decode()
        method, act = {
            b"/infer": (b"POST", self._infer),
            b"/explain": (b"POST", self._explain),
            b"/ready": (b"GET", self._model_ready),
            None: (b"GET", self._model_metadata),
        }[verb]
        route = _Route(method, act, name.decode(), chosen)
        if len(self._models) < _MAX_ROUTES:
            self._models[target] = route
        return route

    # -- predictions --

    async def _infer(self, request: Request, route: _Route) -> Response:
        began = self._monotonic()
        outcome = "ok"
        try:
            headers = request.headers
            if b"content-encoding" in headers:
                raise Invalid("send the body as it is: no content-encoding is taken here")
            json_size = headers.get(JSON_SIZE)
            form = JSON if json_size is None else RestForm(json_size)
            agent = self._gateway.agent(headers)
            call = Call(route.model, route.version, presented(request), request.body, form, agent, solution(headers))
            return _answered(await self._gateway.predict(call))
        except ModelkeepError as error:
            outcome = error.code
            raise
        finally:
            name = route.model if self._gateway.serves(route.model) else ""
            self.metrics.requests.add(name, outcome)
            self.metrics.latency.observe(self._monotonic() - began)

    async def _explain(self, request: Request, route: _Route) -> Response:
        outcome = "explained"
        try:
            headers = request.headers
            if b"content-encoding" in headers or JSON_SIZE in headers:
                raise Invalid("send plain JSON: an explanation takes neither a content-encoding nor binary tensors")
            agent = self._gateway.agent(headers)
            solved = solution(headers)
            call = Call(route.model, route.version, presented(request), request.body, agent=agent, solution=solved)
            return _answered(await self._explainer.explain(call))
        except ModelkeepError as error:
            outcome = error.code
            raise
        finally:
            self.metrics.requests.add(route.model if self._gateway.serves(route.model) else "", outcome)

    # -- what is served --

    async def _metadata(self, _request: Request, _route: _Route) -> Response:
        return Response(200, self._server)

    async def _live(self, _request: Request, _route: _Route) -> Response:
        return Response(200, b'{"live":true}')

    async def _ready(self, request: Request, _route: _Route) -> Response:
        """Whether predictions can be answered; to who may ask for the status, also which releases are and which are not."""
        self._gateway.check_ready()
        self._others_ready()
        if b"authorization" not in request.headers:
            return _IS_READY
        try:
            self._gateway.permit_known(presented(request), "status")  # a probe does not wait
        except ModelkeepError:  # clients that send their key with everything get the answer that anybody gets
            return _IS_READY
        admitted = self._gateway.admitted
        return Response(
            200,
            msgspec.json.encode(
                {
                    "ready": True,
                    "served": sorted(map(str, admitted.models)),
                    "refused": {str(ref): {"code": why.code, "detail": str(why)} for ref, why in admitted.refused.items()},
                }
            ),
        )

    async def _model_ready(self, request: Request, route: _Route) -> Response:
        name = await self._gateway.ready(presented(request), route.model, route.version)
        return Response(200, b'{"name":"%s","ready":true}' % name.encode())

    async def _model_metadata(self, request: Request, route: _Route) -> Response:
        return Response(200, await self._gateway.metadata(presented(request), route.model, route.version))

    async def _show_metrics(self, request: Request, _route: _Route) -> Response:
        if not self._open_metrics:
            await self._gateway.permit(presented(request), "status")
        found = self.metrics.series() if self._tallied is None else await self._of_all(self._tallied)
        return Response(200, text(found), b"text/plain; version=0.0.4; charset=utf-8")

    async def _of_all(self, tallied: Callable[[Sequence[Series]], Sequence[Series]]) -> Sequence[Series]:
        """The counts of all workers. They are gathered for one request at a time, and whoever comes meanwhile is told the same:
        so scrapes take one thread, however many there are. Raises Unavailable."""
        if self._gathering is None:
            gathering = asyncio.get_running_loop().run_in_executor(None, tallied, self.metrics.series())
            self._gathering = gathering
            gathering.add_done_callback(self._gathered)
        return await asyncio.shield(self._gathering)  # one who goes away takes it from nobody

    def _gathered(self, gathering: asyncio.Future[Sequence[Series]]) -> None:
        self._gathering = None
        if not gathering.cancelled():
            gathering.exception()  # whoever waited was told, and perhaps nobody waits any more

    async def _log_file(self, request: Request, _route: _Route) -> Response:
        found = _LOG.match(request.target.partition(b"?")[0])
        if found is None:
            raise Missing("there is no such log file")
        instance, path = found[2], found[3].decode()
        if instance is None:
            data = self._releases.read(path)
        else:
            await self._gateway.permit(presented(request), "audit.read")
            data = self._audits(instance.decode()).read(path)
        scope = b"public" if instance is None else b"private"
        if path.startswith("checkpoint"):
            return Response(200, data, _TEXT, cache=b"no-cache")
        return Response(200, data, _BYTES, cache=scope + b", max-age=31536000, immutable")


def _answered(answer: Answer) -> Response:
    told = ((RECORD_HEADER, answer.record.encode()), *ratelimit(answer.standing))
    if answer.notice:
        told = (*told, (NOTICE_HEADER, answer.notice.encode("ascii")))
    if answer.json_size < 0:
        return Response(200, answer.body, headers=told)
    return Response(200, answer.body, _BYTES, headers=(*told, (JSON_SIZE, b"%d" % answer.json_size)))


def ratelimit(standing: Standing | None) -> tuple[tuple[bytes, bytes], ...]:
    """The limit that is nearest to its end, as draft-ietf-httpapi-ratelimit-headers-11 (sections 3 and 4) has it."""
    if standing is None:
        return ()
    name, terms = _policy(standing.rate)
    return (b"ratelimit-policy", terms), (b"ratelimit", b"%s;r=%d;t=%d" % (name, standing.left, math.ceil(standing.reset)))


@functools.lru_cache(maxsize=256)
def _policy(rate: Rate) -> tuple[bytes, bytes]:
    return f'"{rate.name}"'.encode(), f'"{rate.name}";{rate.terms}'.encode()


def _method_not_allowed(allowed: bytes) -> Response:
    refused = problem(Invalid(f"this address answers {allowed.decode()} only"))
    return msgspec.structs.replace(refused, status=405, headers=((b"allow", allowed),))
