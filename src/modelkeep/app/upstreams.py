"""Models that another server runs: how they are found at publish, and the ways to them that the settings allow."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.dialling import Callee, LinkBounds, tls_context
from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.sections import UpstreamSettings
from modelkeep.core.ports import Link
from modelkeep.core.values import TensorSpec
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.errors import Denied, Invalid, ModelkeepError, Unavailable
from modelkeep.formats.detect import Format
from modelkeep.formats.upstream import Place, Upstream, parse_upstream
from modelkeep.serving.breaker import Thresholds
from modelkeep.serving.runtime import Runtime
from modelkeep.serving.upstream import Described
from modelkeep.workflows.upstream import Patience, RemoteModel, described, dialect_of

FOLDER = "upstream"
"""In the keep's folder: files with the tokens of upstreams."""
_UNKNOWN = (TensorSpec("unknown", "FP32", (-1,)),)


class UpstreamPlace(msgspec.Struct, frozen=True):
    """Where a model runs: ``url`` of the server; what the model is called there ("" = as here), and its version ("" = any).

    ``authority``: PEM; ``pins``: hex SHA-256 of public keys; ``token``: where its bearer token is found (formats/upstream).
    """

    url: str
    model: str = ""
    version: str = ""
    authority: str = ""
    pins: tuple[str, ...] = ()
    token: str = ""


class Upstreams:
    """The upstreams that one process may ask. ``folder``: the keep's."""

    def __init__(
        self,
        settings: UpstreamSettings,
        folder: Path,
        report: Callable[[str], None] = lambda _text: None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._settings, self._folder, self._report, self._environment = settings, folder, report, environment

    def runtime(self, found: ReleaseEvidence, model: bytes) -> Runtime:
        """What runs a release. What is asked is what the log says it is, whatever the bytes look like.

        Raises NotTrusted, Invalid, Denied, Unavailable.
        """
        if found.format != Format.UPSTREAM.id:
            return OnnxRuntime(model)
        return self.start(parse_upstream(model))

    def start(self, document: Upstream) -> RemoteModel:
        """The model that ``document`` names, which still is what it says. Raises Denied (by the settings), Unavailable."""
        remote = self.open(document)
        remote.check_signature()
        return remote

    def open(self, document: Upstream) -> RemoteModel:
        """The same, not asked yet. Raises Denied, Invalid."""
        settings = self._settings
        return RemoteModel(
            document,
            self._ways(document),
            SystemClock(),
            SystemEntropy(),
            patience=Patience(settings.answer_seconds, settings.requests, settings.queue),
            thresholds=Thresholds(
                settings.breaker_window, settings.breaker_failures, settings.breaker_share, settings.breaker_seconds
            ),
            report=self._report,
        )

    def discover(self, at: UpstreamPlace, name: str) -> Upstream:
        """Ask a server what its model takes and gives; ``name``: what it is called there, unless ``at`` says.

        Raises Invalid, Denied, NotTrusted, Unavailable.
        """
        wanted = Upstream(
            url=at.url, model=at.model or name, version=at.version, authority=at.authority, pins=at.pins, token=at.token,
            inputs=_UNKNOWN, outputs=_UNKNOWN,
        )  # fmt: skip
        wanted.check()
        found = asyncio.run(self._described(wanted))
        place = wanted.place
        return msgspec.structs.replace(
            wanted,
            url=place.origin + place.path,
            inputs=found.signature.inputs,
            outputs=found.signature.outputs,
            platform=found.platform,
            binary=found.binary,
        )

    async def _described(self, wanted: Upstream) -> Described:
        seconds = self._settings.answer_seconds
        try:
            async with asyncio.timeout(seconds):
                return await described(self._ways(wanted), dialect_of(wanted))
        except TimeoutError:
            raise Unavailable(f"the upstream does not answer within {seconds:g} s") from None
        except ModelkeepError as cause:
            raise type(cause)(f"the upstream at {wanted.place.origin} cannot be published: {cause}") from None

    def _ways(self, document: Upstream) -> Callable[[], Link]:
        """How connections to the upstream are made. Raises Denied, Invalid."""
        settings, place = self._settings, document.place
        document.check()
        if settings.origins and place.origin not in settings.origins:
            raise Denied(f"upstream.origins does not list {place.origin}: add it there if it is meant")
        if document.token and place.origin not in settings.origins:
            raise Denied(f"a token is sent only to origins that upstream.origins lists: add {place.origin} there")
        link = _link(place)
        context = tls_context(document.authority, "h2" if place.grpc else "http/1.1") if place.secure else None
        bounds = LinkBounds(
            connect_seconds=settings.connect_seconds, max_answer=settings.max_answer, link_local=settings.link_local
        )
        callee = Callee(place, context, document.pins)
        return lambda: link(callee, lambda: self._token(document.token), bounds)

    def _token(self, name: str) -> str:
        """The bearer token that ``name`` names, read again for every connection. Raises Unavailable."""
        kind, _, where = name.partition(":")
        if not kind:
            return ""
        found = self._environment.get(where, "") if kind == "env" else self._token_file(where)
        if not found or not found.isascii() or not found.isprintable() or " " in found or len(found) > 8192:
            raise Unavailable(f"the token of the upstream is not at {name}, or is no token")
        return found

    def _token_file(self, name: str) -> str:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (self._folder / FOLDER / name).read_text("ascii").strip()
        return ""


def _link(place: Place) -> Callable[[Callee, Callable[[], str], LinkBounds], Link]:
    """What speaks the scheme of ``place``; with it come parsers that nobody else needs. Raises Invalid (not installed)."""
    if not place.grpc:
        from modelkeep.adapters.runtime.upstream import HttpLink

        return HttpLink
    try:
        from modelkeep.adapters.runtime.upstream_grpc import GrpcLink
    except ImportError as cause:
        raise Invalid("a gRPC upstream needs the package h2: 'pip install modelkeep[grpc]'") from cause
    return GrpcLink
