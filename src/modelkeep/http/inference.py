"""What the gateway answers over gRPC: ``inference.GRPCInferenceService`` of the Open Inference Protocol v2.

The same ``Gateway`` as over HTTP, so that every promise holds here too. The one place that knows gRPC status codes.
"""

import re
from collections.abc import Awaitable, Callable

import modelkeep
from modelkeep import errors
from modelkeep.access.presented import Certificate, Presented
from modelkeep.core.ports import Clock
from modelkeep.errors import Invalid, Missing, ModelkeepError, NotAdmitted, NotTrusted, Quarantined, Unavailable
from modelkeep.http.credential import presented
from modelkeep.http.gateway import NOTICE_HEADER, RECORD_HEADER
from modelkeep.http.grpc import OK, UNIMPLEMENTED, GrpcCall, GrpcReply, refusal
from modelkeep.http.metrics import Metrics
from modelkeep.http.problem import challenge
from modelkeep.http.protocol import Request
from modelkeep.http.work import solution
from modelkeep.serving.grpc import (
    GRPC,
    encode_flag,
    encode_model,
    encode_server,
    read_named,
    read_names,
    read_nothing,
)
from modelkeep.workflows.doors import Call
from modelkeep.workflows.predict import Gateway

SERVICE = b"/inference.GRPCInferenceService/"
_MODEL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
_VERSION = re.compile(r"(?:[1-9][0-9]{0,8}|[a-z][a-z0-9._-]{0,63})\Z")

STATUS: dict[type[ModelkeepError], int] = {
    errors.Unauthenticated: 16,
    errors.Denied: 7,
    errors.Refused: 7,
    errors.NotTrusted: 9,
    errors.Quarantined: 9,
    errors.NotAdmitted: 9,
    errors.OverBudget: 8,
    errors.Invalid: 3,
    errors.Missing: 5,
    errors.Conflict: 10,
    errors.Unavailable: 14,
    errors.ModelkeepError: 13,
}
"""gRPC status code by class; a class that is not listed takes its nearest base."""


def status_of(error: ModelkeepError) -> int:
    """The gRPC status code of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def failure(error: ModelkeepError) -> GrpcReply:
    """The answer that tells a client about ``error``: status, sentence, the stable code as ``modelkeep-code``, what helps."""
    said = refusal(status_of(error), error.code, str(error))
    if isinstance(error, errors.OverBudget):
        wait = b"%d" % max(1, round(min(error.retry_after, 86_400.0) * 1000))
        return said._replace(trailers=(*said.trailers, (b"grpc-retry-pushback-ms", wait)))
    if isinstance(error, errors.Unauthenticated | errors.WorkRequired):
        return said._replace(trailers=(*said.trailers, *challenge(error)))
    return said


Method = Callable[[GrpcCall], Awaitable[GrpcReply]]


class Inference:
    """The service's methods."""

    def __init__(self, gateway: Gateway, metrics: Metrics, clock: Clock) -> None:
        self._gateway, self._metrics, self._monotonic = gateway, metrics, clock.monotonic
        self._server = encode_server(modelkeep.__version__)
        self._open: dict[bytes, Method] = {
            b"ServerLive": self._live,
            b"ServerReady": self._ready,
            b"ServerMetadata": self._metadata,
        }
        self._guarded: dict[bytes, Method] = {
            b"ModelReady": self._model_ready,
            b"ModelMetadata": self._model_metadata,
            b"ModelInfer": self._infer,
        }

    async def __call__(self, call: GrpcCall) -> GrpcReply:
        """Answer one call. Raises nothing of modelkeep's error tree: every error becomes a status."""
        name = call.path.removeprefix(SERVICE)
        method = self._open.get(name) or self._guarded[name]
        try:
            return await method(call)
        except ModelkeepError as error:
            return failure(error)

    def door(self, path: bytes, headers: dict[bytes, bytes], certificate: Certificate | None, address: str) -> GrpcReply | None:
        """Turn away, before its message is read, a call whose address has sent too many, one of what is not here, and one of
        what needs a credential without one."""
        try:
            self._gateway.limits.knock(address)
        except ModelkeepError as error:
            self._metrics.requests.add("", error.code)
            return failure(error)
        name = path.removeprefix(SERVICE) if path.startswith(SERVICE) else b""
        if name in self._open:
            return None
        if name not in self._guarded:
            detail = (
                "there is no such method here; inference.GRPCInferenceService has ServerLive, ServerReady, ServerMetadata, "
            )
            return refusal(UNIMPLEMENTED, "missing", detail + "ModelReady, ModelMetadata and ModelInfer")
        try:
            _who(GrpcCall(path, headers, b"", "", certificate))
        except ModelkeepError as error:
            self._metrics.requests.add("", error.code)
            return failure(error)
        return None

    async def _infer(self, call: GrpcCall) -> GrpcReply:
        began = self._monotonic()
        outcome, model = "ok", ""
        try:
            model, version = _address(*read_names(call.message))
            agent = self._gateway.agent(call.headers)
            asked = Call(model, version, _who(call), call.message, GRPC, agent, solution(call.headers))
            answer = await self._gateway.predict(asked)
            notice = ((NOTICE_HEADER, answer.notice.encode("ascii")),) if answer.notice else ()
            return GrpcReply(OK, answer.body, trailers=((RECORD_HEADER, answer.record.encode()), *notice))
        except ModelkeepError as error:
            outcome = error.code
            raise
        finally:
            self._metrics.requests.add(model if self._gateway.serves(model) else "", outcome)
            self._metrics.latency.observe(self._monotonic() - began)

    async def _live(self, call: GrpcCall) -> GrpcReply:
        read_nothing(call.message)
        return GrpcReply(OK, encode_flag(True))

    async def _ready(self, call: GrpcCall) -> GrpcReply:
        read_nothing(call.message)
        try:
            self._gateway.check_ready()
        except Unavailable:
            return GrpcReply(OK, encode_flag(False))
        return GrpcReply(OK, encode_flag(True))

    async def _metadata(self, call: GrpcCall) -> GrpcReply:
        read_nothing(call.message)
        return GrpcReply(OK, self._server)

    async def _model_ready(self, call: GrpcCall) -> GrpcReply:
        model, version = _address(*read_named(call.message))
        try:
            await self._gateway.ready(_who(call), model, version)
        except (Missing, NotAdmitted, NotTrusted, Quarantined, Unavailable):
            return GrpcReply(OK, encode_flag(False))
        return GrpcReply(OK, encode_flag(True))

    async def _model_metadata(self, call: GrpcCall) -> GrpcReply:
        model, version = _address(*read_named(call.message))
        return GrpcReply(OK, encode_model(model, *await self._gateway.interface(_who(call), model, version)))


def _who(call: GrpcCall) -> Presented:
    """Who asks, as over HTTP: a call is a POST to its path on its authority. Raises Unauthenticated."""
    return presented(Request(b"POST", call.path, call.headers, b"", call.address, call.certificate))


def _address(name: str, version: str) -> tuple[str, int | str | None]:
    """Model and version as ``Call`` has them. Raises Invalid."""
    if not _MODEL.match(name):
        raise Invalid(f"{name[:64]!r} is not the name of a model")
    if not version:
        return name, None
    if not _VERSION.match(version):
        raise Invalid(f"{version[:64]!r} is neither a version nor an alias")
    return name, int(version) if version.isdigit() else version
