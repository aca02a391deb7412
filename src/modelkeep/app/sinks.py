"""The audit sinks that the settings name, and what each still lacks of older logs. docs/audit-sinks.md has the URLs."""

import hashlib
import ipaddress
import shutil
import socket
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from urllib.parse import SplitResult, parse_qsl, urlsplit

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.sinks.disk import DiskSink
from modelkeep.adapters.sinks.stream import Stream, client_context
from modelkeep.adapters.sinks.syslog import SyslogSink
from modelkeep.adapters.sinks.webhook import Secret, WebhookSink
from modelkeep.app.premises import SINKS_FOLDER, Premises
from modelkeep.app.sections import AuditSettings
from modelkeep.core.ports import LogFiles, Sink
from modelkeep.crypto.notes import encode_vkey
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.ledger.log import read_checkpoint
from modelkeep.serving.sinks import SinkLimits, Sinks, Stretch, read_cursor

_FOLLOWING_SECONDS = 5.0
"""A sink that is not required may take this long, and is looked at this often."""
_HTTPS, _SYSLOG = 443, 6514


def open_sinks(premises: Premises, instance: str, waived: Callable[[], str]) -> Sinks | None:
    """The sinks of the audit log ``instance``, which is about to begin; None when the settings name none.

    ``waived``: see ``Sinks``. Nothing is asked of a sink yet. Raises Invalid (a setting), Unavailable.
    """
    settings = premises.settings.audit
    if settings.require > len(settings.sinks):
        raise Invalid(f"[audit] require is {settings.require}, and sinks names {len(settings.sinks)}")
    if not settings.sinks:
        return None
    sinks = [open_sink(url, settings, premises.directory) for url in settings.sinks]
    if len(set(map(_place, sinks))) < len(sinks):
        raise Invalid("[audit] sinks names one sink twice")
    folders = [premises.directory / SINKS_FOLDER / _folder(sink) for sink in sinks]
    places = {sink.name: folder for sink, folder in zip(sinks, folders, strict=True)}
    return Sinks(
        [(sink, _unfinished(premises, folder)) for sink, folder in zip(sinks, folders, strict=True)],
        premises.clock,
        sink_limits(settings),
        cursor=lambda sink: _held(places[sink.name] / instance),
        waived=waived,
    )


def sink_limits(settings: AuditSettings) -> SinkLimits:
    """Deadlines such that trouble with a required sink is known within ``hang_seconds``."""
    hang = settings.hang_seconds
    if settings.require:
        return SinkLimits(settings.require, hang=0.8 * hang, slow=0.4 * hang, probe=0.25 * hang)
    return SinkLimits(0, hang=2 * _FOLLOWING_SECONDS, slow=2 * _FOLLOWING_SECONDS, probe=_FOLLOWING_SECONDS)


def open_sink(url: str, settings: AuditSettings, keep: Path) -> Sink:
    """The sink at ``url``. Raises Invalid."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as cause:
        raise Invalid(f"[audit] sinks has a malformed URL: {cause}") from None
    seconds = 0.75 * settings.hang_seconds if settings.require else _FOLLOWING_SECONDS
    if parts.username or parts.password:
        raise Invalid("[audit] sinks: a URL holds no password; a webhook's secret is in a file")
    if parts.scheme == "disk":
        options = _options(parts.query, ("same-disk",), url)
        root = Path(parts.path)
        if parts.netloc or not root.is_absolute():
            raise Invalid(f"[audit] sinks: {url!r} must be disk: and an absolute path")
        return DiskSink(root, beside=None if options.get("same-disk") == "yes" else keep, reserve=settings.reserve)
    if not (parts.hostname or "").isascii():
        raise Invalid("[audit] sinks: a host is named in ASCII; write an international name as 'xn--…'")
    if not parts.hostname:
        raise Invalid(f"[audit] sinks: {url.partition('?')[0][:80]!r} names no host")
    if parts.scheme == "syslog+tls":
        options = _options(parts.query, ("ca", "cert"), url)
        tls = client_context(options.get("ca", ""), options.get("cert", ""))
        stream = Stream(parts.hostname, port or _SYSLOG, tls, seconds)
        return SyslogSink(stream, hostname=socket.gethostname(), product=version("modelkeep"))
    if parts.scheme in ("https", "http"):
        return _webhook(parts, port, seconds, url)
    raise Invalid(f"[audit] sinks: {parts.scheme[:20]!r} is none of disk:, syslog+tls:// and https://")


def _webhook(parts: SplitResult, port: int | None, seconds: float, url: str) -> WebhookSink:
    """Its options stand behind ``#``: the query is the receiver's."""
    options = _options(parts.fragment, ("secret", "ca", "cert"), url)
    host = parts.hostname or ""
    if parts.scheme == "http" and not _is_here(host):
        raise Invalid("[audit] sinks: http:// is for this machine alone; use https://")
    if "secret" not in options:
        raise Invalid("[audit] sinks: a webhook needs '#secret=FILE', the file with its 'whsec_…' secret")
    tls = client_context(options.get("ca", ""), options.get("cert", ""), "http/1.1") if parts.scheme == "https" else None
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not target.isascii() or any(c <= " " for c in target):
        raise Invalid("[audit] sinks: a webhook's path and query are ASCII without spaces")
    stream = Stream(host, port or (_HTTPS if tls else 80), tls, seconds)
    return WebhookSink(stream, target, _secret(Path(options["secret"])), version("modelkeep"))


def _secret(path: Path) -> Secret:
    try:
        if path.stat().st_mode & 0o077:
            raise Invalid(f"{path} is open to others: chmod 600 it, after finding out who read it")
        return Secret.parse(path.read_bytes())
    except OSError as cause:
        raise Invalid(f"cannot read the secret of a webhook in {path}: {cause.strerror}") from cause


def _is_here(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _options(text: str, known: tuple[str, ...], url: str) -> dict[str, str]:
    found = dict(parse_qsl(text, keep_blank_values=True))
    if strange := sorted(set(found) - set(known)):
        raise Invalid(f"[audit] sinks: {url.partition('?')[0].partition('#')[0][:80]!r} has no option {strange[0][:40]!r}")
    return found


def _place(sink: Sink) -> str:
    """Where a sink's records end up: one folder under two names is one place."""
    scheme, _, path = sink.name.partition(":")
    return str(Path(path).resolve()) if scheme == "disk" else sink.name


def _folder(sink: Sink) -> str:
    return hashlib.sha256(sink.name.encode()).hexdigest()[:16]


def _held(folder: Path) -> tuple[FolderLogFiles, ExitStack]:
    """A cursor's folder, held against other processes. Raises Conflict, Unavailable."""
    files, held = FolderLogFiles(folder), ExitStack()
    held.enter_context(files.lock(wait=False))
    return files, held


def _unfinished(premises: Premises, folder: Path) -> list[Stretch]:
    """Logs of dead processes that a sink was fed and has not accepted whole. The cursors of the others are removed."""
    found = []
    for place in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            cursor, held = _held(place)
        except Conflict:
            continue  # its process lives
        if not _finished(premises, place.name):
            held.close()
            continue
        stretch = _stretch(premises, place.name, cursor, held)
        if stretch is not None:
            found.append(stretch)
        else:
            shutil.rmtree(place, ignore_errors=True)
            held.close()
    return found


def _finished(premises: Premises, instance: str) -> bool:
    """Whether no process holds a log: one that still finishes it knows how long it becomes, and sends what is left."""
    if instance not in premises.audit_instances():
        return True
    try:
        with premises.audit_files(instance).lock(wait=False):
            return True
    except Conflict:
        return False


def _stretch(premises: Premises, instance: str, cursor: LogFiles, held: ExitStack) -> Stretch | None:
    origin, files = premises.audit_origin(instance), premises.audit_files(instance)
    try:
        size = read_checkpoint(files, encode_vkey(origin, premises.trust.audit_key), origin).size
    except (Missing, NotTrusted):  # erased, or damaged, which its own checks say
        return None
    try:
        accepted = read_cursor(cursor)
    except NotTrusted:
        accepted = 0
    if accepted >= size:
        return None
    return Stretch(origin, files, cursor, accepted, size, size, saved=accepted, held=held)
