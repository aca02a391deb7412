"""What no type can say about settings: values that contradict each other, files that are not there, and weak choices."""

import socket
import stat
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Literal, NamedTuple

from modelkeep.adapters.certificates import CertificateFiles, ending, not_after
from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.keys.uri import SCHEMES, is_key_uri
from modelkeep.adapters.tls import server_context
from modelkeep.app.premises import TRUST_FILE
from modelkeep.app.processes import find
from modelkeep.app.settings import Settings, authority_files
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import ModelkeepError
from modelkeep.formats.upstream import parse_url
from modelkeep.workflows.breakglass import parse_break_glass

STOP_SECONDS = 20.0
"""``up`` kills a gateway that has not ended after this long (app/processes.py)."""
MUCH_BODY = 64 << 20
OLD_ADVISORIES = 30


class Caution(NamedTuple):
    """As of ``configuration.Problem``."""

    level: Literal["error", "warning"]
    setting: str
    message: str


def cautions(settings: Settings, directory: Path) -> Iterator[Caution]:
    """Everything about settings whose types are right, for the keep in ``directory``."""
    for look in (_origin, _tls, _identity, _ports, _audit, _stores, _upstream, _keys, _files, _weak):
        yield from look(settings, directory)


def _origin(settings: Settings, directory: Path) -> Iterator[Caution]:
    """The keep's name stands in its trust root, which is what counts; the file only says it to people."""
    try:
        origin = TrustRoot.parse((directory / TRUST_FILE).read_bytes()).origin
    except (OSError, ModelkeepError):
        return  # whoever opens the keep says that
    if settings.keep.origin != origin:
        yield Caution(
            "warning", "keep.origin", f"is {settings.keep.origin!r}, and the name of this keep is {origin!r}: put it back"
        )


def _tls(settings: Settings, directory: Path) -> Iterator[Caution]:
    own = settings.gateway
    if bool(own.certificate) != bool(own.key):
        lone, other = ("certificate", "key") if own.certificate else ("key", "certificate")
        yield Caution("error", f"gateway.{lone}", f"goes together with gateway.{other}: name both files, or neither")
        return
    if own.key_passphrase_file and not own.key:
        yield Caution("error", "gateway.key_passphrase_file", "is of gateway.key, and that is not set")
        return
    if not own.certificate:
        return
    word = directory / own.key_passphrase_file if own.key_passphrase_file else None
    try:
        pair = CertificateFiles(directory / own.certificate, directory / own.key, word).read()
        server_context(pair, minimum=own.tls_minimum)
    except ModelkeepError as cause:
        yield Caution("error", "gateway.certificate", str(cause))
        return
    if words := ending(not_after(pair.chain), time.time()):
        yield Caution("warning", "gateway.certificate", words)


def _identity(settings: Settings, directory: Path) -> Iterator[Caution]:
    """Whose tokens and certificates count; nothing is asked of an issuer."""
    from modelkeep.app.identity import client_authorities, open_issuers

    yield from _refused("issuers", lambda: open_issuers(directory, settings, SystemClock()))
    yield from _refused("gateway.client_ca", lambda: client_authorities(directory, settings))
    for name in authority_files(settings):
        if (path := directory / name).exists() and (path.stat().st_mode & 0o077):
            yield Caution("error", "", f"{path} is open to others: 'chmod go= {path}', after finding out who changed it")


def _upstream(settings: Settings, directory: Path) -> Iterator[Caution]:
    for origin in settings.upstream.origins:
        try:
            meant = parse_url(origin).origin
        except ModelkeepError as cause:
            yield Caution("error", "upstream.origins", str(cause))
        else:
            if meant != origin:
                yield Caution("error", "upstream.origins", f"names {origin}, which matches nothing: write {meant}")
    del directory


def _ports(settings: Settings, directory: Path) -> Iterator[Caution]:
    gateway, control = settings.gateway, settings.control
    wanted = (
        ("gateway.port", "gateway", gateway.host, gateway.port),
        ("gateway.grpc_port", "gateway", gateway.host, max(gateway.grpc_port, 0)),
        ("control.port", "control", control.host, control.port),
    )
    for (one, _, host, port), (other, _, its_host, its_port) in combinations(wanted, 2):
        if port and port == its_port and _same_host(host, its_host):
            yield Caution("error", other, f"is {port}, and so is {one}: one of them has to be another")
    for name, role, host, port in wanted:
        running = find(directory, role)
        ours = running is not None and f":{port}" in (running.url[-6:], running.grpc[-6:])
        if port and not ours and (why := _cannot_bind(host, port)):
            yield Caution("warning", name, f"{host} port {port} cannot be listened on now: {why}")


def _same_host(one: str, other: str) -> bool:
    anywhere = ("0.0.0.0", "::", "")  # noqa: S104  # compared with, not listened on
    return one == other or one in anywhere or other in anywhere


def _cannot_bind(host: str, port: int) -> str:
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, proto) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as cause:
        return cause.strerror or str(cause)
    except ValueError:  # a name that no name can be, such as one with an empty label
        return "that is no host"
    return ""


def _audit(settings: Settings, directory: Path) -> Iterator[Caution]:
    from modelkeep.app.sinks import open_sink

    audit = settings.audit
    if audit.require > len(audit.sinks):
        yield Caution("error", "audit.require", f"is {audit.require}, and audit.sinks names {len(audit.sinks)}")
    for url in audit.sinks:
        yield from _refused("audit.sinks", partial(open_sink, url, audit, directory))
    yield from _refused("audit.break_glass", lambda: parse_break_glass(audit.break_glass))
    if audit.break_glass:
        yield Caution("warning", "audit.break_glass", "answers may leave without a record at the required sinks")
    if settings.gateway.drain_seconds > STOP_SECONDS:
        said = f"is {settings.gateway.drain_seconds:g}, and 'up' kills a gateway that has not ended after {STOP_SECONDS:g} s"
        yield Caution("error", "gateway.drain_seconds", said)


def _stores(settings: Settings, directory: Path) -> Iterator[Caution]:
    from modelkeep.app.stores import _postgres, _redis, _s3

    if settings.records.url:
        yield from _refused("records.url", lambda: _postgres(settings.records.url))
        if ":" in settings.records.url.partition("://")[2].rpartition("@")[0]:
            yield Caution("warning", "records.url", "holds a password: others may come to read it; use a pgpass file")
    if settings.state.url:
        yield from _refused("state.url", lambda: _redis(settings.state.url))
    if settings.blobs.url:
        yield from _refused("blobs.url", lambda: _s3(settings.blobs.url))
    del directory


def _keys(settings: Settings, directory: Path) -> Iterator[Caution]:
    from modelkeep.adapters.keys.uri import open_keys

    named = {
        "keys.model_kek": settings.keys.model_kek,
        "keys.statement_signing": settings.keys.statement_signing,
        "unseal.provider": settings.unseal.provider,
    }
    for name, uri in named.items():
        if uri and not is_key_uri(uri):
            yield Caution("error", name, f"is no key URI: it begins with one of {', '.join(f'{each}:' for each in SCHEMES)}")
        elif uri:
            yield from _refused(name, partial(open_keys, uri, passphrase=bytes))
    if settings.unseal.provider and not (directory / "unseal" / "provider.json").exists():
        yield Caution("error", "unseal.provider", "is set, and nothing was prepared: run 'modelkeep unsealing provider URI'")


def _files(settings: Settings, directory: Path) -> Iterator[Caution]:
    """Files that must be there. Names without a folder are in the keep's."""
    named = {
        **{f"issuers[{at}].ca": issuer.ca for at, issuer in enumerate(settings.issuers)},
        "witness.policy": settings.witness.policy,
        "witness.ca": settings.witness.ca,
        "provenance.allowed_signers": settings.provenance.allowed_signers,
        "provenance.gnupg_home": settings.provenance.gnupg_home,
        "scan.python": settings.scan.python,
    }
    for name, value in named.items():
        if value and not (directory / value).exists():
            yield Caution("error", name, f"names {value}, and there is no such file")
    for name in ("", "modelkeep.toml", "keys"):
        path = directory / name
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Caution("error", "", f"{path} is open to others: 'chmod go= {path}', after finding out who read it")


def _weak(settings: Settings, directory: Path) -> Iterator[Caution]:
    """Choices that somebody may have made for a reason, and should know about."""
    if settings.keep.admission == "open":
        yield Caution("warning", "keep.admission", '"open" serves releases without evidence: for trying out only')
    if settings.gateway.tls_minimum == "1.2":
        yield Caution("warning", "gateway.tls_minimum", "lets TLS 1.2 in: set it back when the last client speaks 1.3")
    if settings.gateway.max_body > MUCH_BODY:
        yield Caution("warning", "gateway.max_body", f"lets one request take {settings.gateway.max_body >> 20} MiB of memory")
    if settings.intel.max_age_days > OLD_ADVISORIES:
        yield Caution("warning", "intel.max_age_days", "counts advisories as new that are older than a month")
    if settings.extraction.alpha > 0.01:
        yield Caution("warning", "extraction.alpha", "accuses more than one honest account in a hundred")
    if settings.unseal.provider and settings.unseal.provider.startswith("file:"):
        yield Caution("error", "unseal.provider", "names a key ring file, which itself opens with a passphrase only")
    del directory


def _refused(setting: str, attempt: Callable[[], object]) -> Iterator[Caution]:
    try:
        attempt()
    except ModelkeepError as cause:  # malformed, a file that is not there, a backend that does not answer
        yield Caution("error", setting, str(cause))
