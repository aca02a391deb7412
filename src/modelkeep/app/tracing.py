"""Suspects that are no files, and reports that are computed again with public keys alone."""

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.functions import FunctionTarget
from modelkeep.app.arrays import load_rows
from modelkeep.app.shelf import is_address, open_shelf
from modelkeep.app.suspects import Suspect, onnx_suspect
from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, Missing, Unavailable
from modelkeep.ledger.log import LogView
from modelkeep.workflows.tracecheck import ReportChecked, check_report, rows_of
from modelkeep.workflows.tracelog import WholeLog
from modelkeep.workflows.traceprobes import Reader

Rows = NDArray[np.float64]

BATCH, PATIENCE = 64, 120.0
"""Rows that an address is asked at once, and seconds that one answer may be put off."""
_ADDRESS = re.compile(r"(https?://[^/]+(?:/.*)?)/v2/models/([^/]+)/versions/([1-9][0-9]{0,8})/?\Z")
_FUNCTION = re.compile(r".+\.py:[A-Za-z_][A-Za-z0-9_]*\Z")


def is_function(named: str) -> bool:
    """Whether ``named`` is meant to be ``FILE.py:NAME``."""
    return _FUNCTION.match(named) is not None


def open_suspect(named: str, stack: ExitStack, *, key: str = "", ca: str = "") -> Suspect:
    """The suspect at an address, of a function, or in a file; what it holds open is closed with ``stack``.

    ``key``: an API key, ``ca``: PEM file, both for an address. Raises Invalid, Missing, NotTrusted, Unavailable.
    """
    if is_address(named):
        return _at_address(named, stack, key, ca)
    if is_function(named):
        function = FunctionTarget(named)
        return Suspect(named, "function", function.digest, lambda _rows: function.predict)
    try:
        return onnx_suspect(Path(named).read_bytes(), named)
    except FileNotFoundError as cause:
        raise Missing(f"there is no {named}") from cause
    except OSError as cause:
        raise Unavailable(f"cannot read {named}: {cause.strerror}") from cause


def _at_address(named: str, stack: ExitStack, key: str, ca: str) -> Suspect:
    found = _ADDRESS.match(named)
    if found is None:
        raise Invalid(f"{named[:120]!r} is no model's address: expected https://HOST/v2/models/NAME/versions/N")
    from modelkeep.adapters.targets import HttpTarget  # brings a client in that nothing else here needs

    base, name, version = found.groups()
    target = stack.enter_context(
        HttpTarget(base, ReleaseRef(name, int(version)), key, ca=Path(ca) if ca else None, patience=PATIENCE)
    )

    def ask(rows: Rows) -> Rows:
        return np.concatenate([target.predict(rows[at : at + BATCH]) for at in range(0, len(rows), BATCH)])

    return Suspect(named, "address", digest_of(named.encode()), lambda _rows: ask)


class Shown(NamedTuple):
    """What the reader of a report has. ``suspect``: to be asked again; ``seen``: Unix nanoseconds by which it was there, 0 = as
    the report says; ``model``: the owner's, an ONNX file that was shown to him; ``beacon``: the value that is to draw the
    probes; ``probes``: an npz file of rows that the other side chose; ``log``: where the keep's logs lie, a folder or an
    address. b"" or "" where he has none."""

    suspect: Suspect | None = None
    seen: int = 0
    model: bytes = b""
    beacon: bytes = b""
    probes: bytes = b""
    log: str = ""


def check_trace(files: Mapping[str, bytes], trust: bytes, shown: Shown | None = None) -> ReportChecked:
    """Compute the report of a trace again. ``files``: by name; ``trust``: a trust.toml. Raises NotTrusted (what does not hold),
    Invalid (not a report, or the reader's own files are none)."""
    root, shown = TrustRoot.parse(trust), shown or Shown()
    suspect, rows = shown.suspect, rows_of(files) if shown.suspect or shown.model else None
    model = onnx_suspect(shown.model, "the model") if shown.model else None
    return check_report(
        files,
        root,
        Reader(
            suspect=None if suspect is None or rows is None else suspect.ask(rows, silent=True),
            suspect_kind="" if suspect is None else suspect.kind,
            suspect_digest=None if suspect is None else suspect.digest,
            seen=shown.seen,
            model=None if model is None or rows is None else model.ask(rows),
            model_digest=None if model is None else model.digest,
            beacon=shown.beacon or None,
            rows=load_rows(shown.probes, "the probes") if shown.probes else None,
        ),
        _whole(shown.log, root) if shown.log else None,
    )


def _whole(source: str, trust: TrustRoot) -> WholeLog:
    with open_shelf(source) as shelf:
        shelf.expect(shelf.log, trust.releases_log, trust.releases_origin)
        view = LogView(shelf.log, trust.releases_log, trust.releases_origin)
        view.refresh()
        return WholeLog.read(view, trust)
