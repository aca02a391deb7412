"""A gateway process, put together: what ``app`` wires and ``http`` runs."""

import ssl
from collections.abc import Callable, Sequence

import msgspec

from modelkeep.core.ports import Clock, LogFiles
from modelkeep.core.tallies import Series
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.explain import Explainer
from modelkeep.workflows.follow import AdmissionFollower, Loader
from modelkeep.workflows.predict import Gateway
from modelkeep.workflows.recorder import Delivery, Recorder


class Listen(msgspec.Struct, frozen=True, kw_only=True):
    """Where and how a server listens. Seconds and bytes; ``port`` 0 takes a free one; ``tls`` None is plain HTTP.

    ``descriptor``: of a socket that listens already, which other processes may share; -1 binds one. ``max_buffered``: of all
    request bodies together. A connection counts from its acceptance on, before TLS is agreed.
    """

    host: str = "127.0.0.1"
    port: int = 8443
    descriptor: int = -1
    tls: ssl.SSLContext | None = None
    header_seconds: float = 5.0
    body_seconds: float = 10.0
    idle_seconds: float = 60.0
    write_seconds: float = 10.0
    handle_seconds: float = 15.0
    linger_seconds: float = 2.0
    drain_seconds: float = 10.0
    max_head: int = 16 << 10
    max_headers: int = 64
    max_body: int = 4 << 20
    max_parts: int = 16_384
    max_queue: int = 64
    max_connections: int = 1024
    max_per_address: int = 64
    max_buffered: int = 256 << 20


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The parts of a gateway process.

    ``grpc``: where gRPC is spoken, None = nowhere; ``delivery``: the one that ``audit`` was made with; ``releases``: files of
    the releases log; ``audits``: those of an audit log by instance; ``handover``: takes the audit log's signed checkpoint to
    control at start, every ``handover_seconds``, at the end of its period and at stop (its failures are reported and stop
    nothing); ``announce`` and ``withdraw``: say where it listens (URL, and host:port of gRPC or ""), and take it back;
    ``opening``: run first, ``closing``: last, in order; ``ready``: raises Unavailable while others that this process needs do
    not answer; ``tally``: leaves this process's counts with those of others, ``tallied``: gives those of all for them (may
    wait; raises Unavailable); ``report``: told of trouble, one line each; ``certificate_end``: when the
    certificate that is shown ends, Unix seconds.
    """

    listen: Listen
    gateway: Gateway
    explainer: Explainer
    follower: AdmissionFollower
    loader: Loader
    audit: AuditSeries
    recorder: Recorder
    delivery: Delivery
    clock: Clock
    releases: LogFiles
    audits: Callable[[str], LogFiles]
    handover: Callable[[bytes], None] = lambda _checkpoint: None
    handover_seconds: float = 60.0
    announce: Callable[[str, str], None] = lambda _url, _grpc: None
    withdraw: Callable[[], None] = lambda: None
    opening: Sequence[Callable[[], None]] = ()
    closing: Sequence[Callable[[], None]] = ()
    ready: Callable[[], None] = lambda: None
    tally: Callable[[Sequence[Series]], None] = lambda _series: None
    tallied: Callable[[Sequence[Series]], Sequence[Series]] | None = None
    report: Callable[[str], None] = lambda _text: None
    grpc: Listen | None = None
    certificate_end: Callable[[], float] = lambda: 0.0
