"""Traces of requests for OpenTelemetry, sent over OTLP. Needs the extra ``otel``; imported only when tracing is on.

One span a request and one for each of its phases. A share of requests is sampled *here*: a client's ``traceparent`` names the
trace that ours goes on with, and cannot have a request sampled that is not. Spans hold our words only: no input, no output, no
credential, nothing that was typed. Source: W3C Trace Context, section 3.2; semantic conventions for HTTP spans.
"""

import inspect
import random
import re
import time
from collections.abc import Callable
from contextvars import ContextVar
from importlib.metadata import version
from typing import Any, ParamSpec, TypeVar

import requests
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)

from modelkeep.adapters.tracecontext import TRACEPARENT

P = ParamSpec("P")
T = TypeVar("T")
CREDENTIAL, VALIDATE, RUN, RECORD = "credential", "validate", "run", "record"
_PARENT = re.compile(rb"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?\Z")
_EXPORT_SECONDS = 5.0


class _Seen:
    """A sampled request on its way: its span, and when its credential was known."""

    __slots__ = ("known_ns", "span")

    def __init__(self, span: Span) -> None:
        self.span = span
        self.known_ns = 0


_current: ContextVar[_Seen | None] = ContextVar("modelkeep-span", default=None)


def parse_traceparent(value: bytes) -> SpanContext | None:
    """The span that a ``traceparent`` header names; None when it is none that the specification lets us go on with."""
    found = _PARENT.match(value)
    if found is None or found[1] == b"ff" or (found[1] == b"00" and found[5]):
        return None
    context = SpanContext(int(found[2], 16), int(found[3], 16), is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return context if context.is_valid else None


class Traces:
    """Makes spans of requests and sends them to the collector at ``endpoint``. ``close`` it: what waits is sent then."""

    def __init__(self, endpoint: str, share: float) -> None:
        """``endpoint``: such as ``http://127.0.0.1:4318/v1/traces``; ``share``: of requests that are sampled, 0 to 1."""
        session = requests.Session()
        session.trust_env = False  # no proxy of the environment gets to see them
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_EXPORT_SECONDS, session=session)
        release = version("modelkeep")
        resource = Resource.create({"service.name": "modelkeep", "service.version": release})
        self._provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("modelkeep", release)
        self._share, self._random = share, random.random

    def begin(self, traceparent: bytes) -> "_Seen | None":
        """Begin the span of a request, unless it is not sampled; until ``end`` its phases become spans within."""
        if self._random() >= self._share:
            return None
        remote = parse_traceparent(traceparent)
        parent = set_span_in_context(NonRecordingSpan(remote)) if remote else set_span_in_context(NonRecordingSpan(_NOWHERE))
        seen = _Seen(self._tracer.start_span("request", context=parent, kind=SpanKind.SERVER))
        context = seen.span.get_span_context()
        _current.set(seen)
        TRACEPARENT.set(b"00-%032x-%016x-01" % (context.trace_id, context.span_id))
        return seen

    def end(self, seen: "_Seen", name: str, status: int, attributes: dict[str, str]) -> None:
        """End it. ``attributes``: in our words; empty ones are left out."""
        _current.set(None)
        TRACEPARENT.set(b"")
        span = seen.span
        span.update_name(name)
        span.set_attribute("http.response.status_code", status)
        for key, value in attributes.items():
            if value:
                span.set_attribute(key, value)
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    def see(self, thing: T, **phases: str) -> T:
        """``thing``, whose methods named here are phases: ``see(directory, authenticate=CREDENTIAL)``."""
        return _Phased(thing, {method: self._phase(getattr(thing, method), phase) for method, phase in phases.items()})  # type: ignore[return-value]

    def runtime(self, make: Callable[P, T]) -> Callable[P, T]:
        """A maker of runtimes whose runs are phases."""

        def made(*args: P.args, **kwargs: P.kwargs) -> T:
            runtime = make(*args, **kwargs)
            ways = {"run": RUN, "infer": RUN} if hasattr(runtime, "infer") else {"run": RUN}  # here, or at another server
            return self.see(runtime, **ways)

        return made

    def close(self) -> None:
        """Send what waits, for a few seconds at most, and end."""
        self._provider.shutdown()

    def _phase(self, method: Callable[..., Any], phase: str) -> Callable[..., Any]:
        if inspect.iscoroutinefunction(method):

            async def waited(*args: Any, **kwargs: Any) -> Any:
                seen = _current.get()
                if seen is None:
                    return await method(*args, **kwargs)
                began = self._begin_phase(seen, phase)
                try:
                    return await method(*args, **kwargs)
                finally:
                    self._span(seen, phase, began)

            return waited

        def called(*args: Any, **kwargs: Any) -> Any:
            seen = _current.get()
            if seen is None:
                return method(*args, **kwargs)
            began = self._begin_phase(seen, phase)
            try:
                return method(*args, **kwargs)
            finally:
                self._span(seen, phase, began)

        return called

    def _begin_phase(self, seen: "_Seen", phase: str) -> int:
        now = time.time_ns()
        if phase == RUN and seen.known_ns:  # all between who it is and the model: rate, policy, admission, validation
            self._span(seen, VALIDATE, seen.known_ns, now)
        return now

    def _span(self, seen: "_Seen", phase: str, began: int, ended: int = 0) -> None:
        now = ended or time.time_ns()
        if phase == CREDENTIAL:
            seen.known_ns = now
        self._tracer.start_span(phase, context=set_span_in_context(seen.span), start_time=began).end(now)


class _Phased:
    """Something of which some methods are phases; everything else of it is as it was."""

    def __init__(self, thing: object, methods: dict[str, Callable[..., Any]]) -> None:
        self._thing = thing
        self.__dict__.update(methods)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._thing, name)

    @property
    def __class__(self) -> Any:
        """Whoever asks what it is gets to know what is within."""
        return type(self._thing)

    @__class__.setter
    def __class__(self, _kind: Any) -> None:
        raise TypeError("it stays what it is")


_NOWHERE = SpanContext(0, 0, is_remote=False)
