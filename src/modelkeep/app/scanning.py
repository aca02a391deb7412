"""Scan files that a person names, without a keep; and who scans, as the settings say."""

import mmap
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.confine import Limits
from modelkeep.adapters.files import SourceFile
from modelkeep.adapters.scanners import OtherScanners
from modelkeep.app.scanresults import CLEAN, UNCLEAN, UNREADABLE, FileScan, ScanReport
from modelkeep.app.sections import ScanSettings
from modelkeep.core.values import digest_of
from modelkeep.custody.opinions import Rule, Scanner
from modelkeep.errors import Invalid, Missing, ModelkeepError, Unavailable
from modelkeep.ledger.predicates import Finding

NOT_A_FILE, LINK = "not-a-file", "link"
RULES = {
    LINK: Rule("medium", "A symbolic link is not followed."),
    NOT_A_FILE: Rule("medium", "A device, socket or pipe is not read."),
}
_KINDS = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"))
_MAPPED_FROM = 16 << 20
"""Bytes from which on a file is mapped rather than read."""


def open_scanner(settings: ScanSettings) -> Scanner:
    """Whoever judges model files, as the settings say."""
    if settings.opinions == "off":
        return Scanner()
    limits = Limits(settings.opinion_memory, settings.opinion_seconds)
    return Scanner(others=OtherScanners(settings.python, limits), required=settings.opinions == "require")


def scan_paths(paths: Iterable[str], scanner: Scanner, watch: Callable[[str], object]) -> ScanReport:
    """Scan files, and every file in folders and below; ``watch`` is told each path before it is read.

    Links, sockets, pipes and devices are not opened, and are not clean. A file that cannot be read is in the report.
    Raises Missing (a path that is named is not there), Invalid (there is no file at all), Unavailable (a folder is unreadable).
    """
    clock = SystemClock()
    started, found = clock.now_ns(), []
    for path in paths:
        if not path:
            raise Invalid("the name of a file to scan is empty: that would be all of this folder, and '.' says so")
        for each in _below(Path(path)):
            watch(_text(each))
            found.append(_scan_one(each, scanner))
    if not found:
        raise Invalid("there is no file in these folders: name some, or a file")
    return ScanReport(scanner.name, scanner.rules_version, tuple(found), started, clock.now_ns())


def _below(path: Path) -> Iterator[Path]:
    """The path itself, or everything in the folder that it is, in order."""
    if not os.path.lexists(path):
        raise Missing(f"there is no file or folder {_text(path)}")
    waiting = [path]
    while waiting:
        each = waiting.pop()
        if each.is_symlink() or not each.is_dir():
            yield each
            continue
        try:
            waiting += sorted(each.iterdir(), reverse=True)
        except OSError as cause:
            raise Unavailable(f"cannot look into {_text(each)}: {cause.strerror}") from cause


def _text(path: Path | str) -> str:
    """A path as text: names are bytes, and need not be UTF-8."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _scan_one(path: Path, scanner: Scanner) -> FileScan:
    try:
        special = _special(path)
        if special is not None:
            return FileScan(_text(path), UNCLEAN, "special", findings=(special,))
        with SourceFile(path) as source, _mapped(source) as data:
            digest, size = digest_of(data), data.nbytes
            verdict = scanner.judge(data, _text(path.name))
            source.check_unchanged()
    except ModelkeepError as problem:
        return FileScan(_text(path), UNREADABLE, problem=_text(str(problem)))
    said = CLEAN if verdict.clean else UNCLEAN
    return FileScan(_text(path), said, verdict.format, size, digest, verdict.findings, verdict.opinions)


def _special(path: Path) -> Finding | None:
    """What speaks against opening it at all. Raises Unavailable."""
    try:
        mode = path.lstat().st_mode
    except OSError as cause:
        raise Unavailable(f"cannot look at {_text(path)}: {cause.strerror}") from cause
    if stat.S_ISLNK(mode):
        return Finding(LINK, _text(path.name)[:255], "a symbolic link is not followed: scan what it points to")
    kind = next((what for found, what in _KINDS if found(mode)), None)
    return Finding(NOT_A_FILE, _text(path.name)[:255], f"{kind} is not read: write it to a file first") if kind else None


@contextmanager
def _mapped(source: SourceFile) -> Iterator[memoryview]:
    """The bytes of a file: mapped, so that they need not all be in memory at once, when it is large. Raises Unavailable."""
    if source.size < _MAPPED_FROM:
        data = bytearray(source.size)
        source.read_into(0, memoryview(data))
        yield memoryview(data)
        return
    try:
        mapping = mmap.mmap(source.fileno(), source.size, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as cause:
        raise Unavailable(f"cannot map {_text(source.path)}: {cause}") from cause
    with mapping, memoryview(mapping) as view:
        yield view
