"""Where the logs of a keep lie to be checked: a folder (a keep, its ``log``, one log), or an address that serves such files.

An address is a gateway's ``/log/``, or a copy of any of those folders on a web server. It cannot be listed, so what audit logs
there are is learned from the releases log.
"""

import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.weblog import WORKERS, FetchedAhead, WebLogFiles
from modelkeep.core.ports import StaticFiles
from modelkeep.crypto.notes import open_checkpoint
from modelkeep.errors import Invalid, Missing
from modelkeep.ledger.log import read_note
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.ledger.verify import reading_order

_WEB = ("http://", "https://")
_GATEWAY = "log"
_LAYOUTS = (("releases", "audit"), ("log/releases", "log/audit"))


@dataclass(frozen=True)
class Shelf:
    """``log``: the releases log, or the one log that was named. ``audits``: audit logs by instance; None = not to be read here.

    ``listed``: the instances that lie here; None = that cannot be seen.
    """

    log: StaticFiles
    audits: Callable[[str], StaticFiles] | None = None
    listed: tuple[str, ...] | None = None

    def expect(self, files: StaticFiles, vkey: str, origin: str) -> None:
        """Begin to fetch a whole log, once its checkpoint holds. Raises NotTrusted, Missing, Unavailable."""
        if isinstance(files, FetchedAhead):
            files.want(reading_order(open_checkpoint(read_note(files, origin), vkey, origin).size))


def keep_shelf(logs: Path) -> Shelf:
    """The ``log`` folder of a keep."""
    audit = logs / "audit"
    listed = tuple(sorted(path.name for path in audit.iterdir())) if audit.is_dir() else ()
    return Shelf(FolderLogFiles(logs / "releases"), lambda name: FolderLogFiles(audit / name), listed)


def is_address(source: str) -> bool:
    """Whether ``source`` is on the web rather than a folder."""
    return source.startswith(_WEB)


@contextmanager
def open_shelf(source: str, *, token: str = "", ca: str = "") -> Iterator[Shelf]:
    """What ``source`` holds, a folder or an address. ``token``: an auditor's, for audit logs of a gateway; ``ca``: PEM file.

    Raises Missing (no log there), Invalid (not an address, not a certificate), Unauthenticated, Denied, Unavailable.
    """
    if not is_address(source):
        if token or ca:
            raise Invalid(f"{source} is a folder: a token and a certificate authority are for addresses")
        yield _folder(Path(source))
        return
    web = WebLogFiles(source, token=token, trust=_trust(ca))
    pool = ThreadPoolExecutor(WORKERS, thread_name_prefix="log-fetch")
    try:
        yield _web(web, bool(token), lambda files: FetchedAhead(files, pool))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        web.close()


def _folder(root: Path) -> Shelf:
    for releases, _ in _LAYOUTS:
        if (root / releases).is_dir():
            return keep_shelf((root / releases).parent)
    return Shelf(FolderLogFiles(root))


def _web(web: WebLogFiles, auditor: bool, ahead: Callable[[StaticFiles], StaticFiles]) -> Shelf:
    if _has_log(web):
        if not auditor or web.base.rpartition("/")[2] not in (_GATEWAY, "releases"):
            return Shelf(ahead(web))
        return Shelf(ahead(web), lambda name: ahead(web.beside(f"audit/{name}")))
    for releases, audit in (*_LAYOUTS, (_GATEWAY, "audit" if auditor else "")):
        if _has_log(web.below(releases)):
            return Shelf(ahead(web.below(releases)), partial(_below, web, audit, ahead) if audit else None)
    raise Missing(f"there is no log at {web.base}: name the address below which its file 'checkpoint' lies")


def _below(web: WebLogFiles, folder: str, ahead: Callable[[StaticFiles], StaticFiles], name: str) -> StaticFiles:
    return ahead(web.below(f"{folder}/{name}"))


def _has_log(files: StaticFiles) -> bool:
    try:
        files.read(CHECKPOINT)
    except Missing:
        return False
    return True


def _trust(ca: str) -> ssl.SSLContext | None:
    if not ca:
        return None
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as cause:
        raise Invalid(f"{ca} is not a certificate file that can be read") from cause
