"""Audit entries as events of the Open Cybersecurity Schema Framework, version 1.3 (schema.ocsf.io).

Predictions, refusals and administrative requests are API Activity (class 6003); what a log says about itself is Application
Lifecycle (class 6002). Nothing is in an event that is not in the entry: the account is a pseudonym, and there is no input.
"""

from datetime import UTC, datetime, timedelta

import msgspec

from modelkeep.errors import Invalid

VERSION = "1.3.0"
_API, _LIFECYCLE = 6003, 6002
_OTHER = 99
_OWN = {"open": 3, "close": 4}  # Application Lifecycle: Start, Stop
_INFORMATIONAL, _MEDIUM = 1, 3


class _Entry(msgspec.Struct):
    kind: str
    t: int
    subject: str = ""
    release: str = ""
    request: str = ""
    outcome: str = ""
    body: str = ""


_DECODER = msgspec.json.Decoder(_Entry)
_ENCODER = msgspec.json.Encoder(order="deterministic")


def moment(t: int) -> str:
    """Unix nanoseconds as RFC 3339 with microseconds, in UTC."""
    at = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=t // 1000)
    return at.isoformat(timespec="microseconds").replace("+00:00", "Z")


def event(entry: bytes, origin: str, index: int, product: str) -> tuple[int, bytes]:
    """The event of entry ``index`` of the log ``origin``: its time, Unix nanoseconds, and its JSON.

    ``product``: version of this software. ``raw_data`` is the entry to the byte, so that it can be proven against the log.
    Raises Invalid (not an audit entry).
    """
    try:
        found = _DECODER.decode(entry)
    except msgspec.MsgspecError as cause:
        raise Invalid(f"entry {index} of {origin} is not an audit entry: {cause}") from cause
    own = found.kind in _OWN or found.kind == "break-glass"
    kind = _LIFECYCLE if own else _API
    activity = _OWN.get(found.kind, _OTHER)
    said: dict[str, object] = {
        "category_uid": 6,
        "class_uid": kind,
        "activity_id": activity,
        "activity_name": found.kind,
        "type_uid": kind * 100 + activity,
        "severity_id": _MEDIUM if found.kind == "break-glass" else _INFORMATIONAL,
        "status_id": 1 if found.outcome in ("ok", "unusual", "stopped", "") or own else 2,
        "status_detail": found.outcome,
        "time": found.t // 1_000_000,
        "metadata": {
            "version": VERSION,
            "product": {"name": "modelkeep", "vendor_name": "modelkeep", "version": product},
            "log_name": origin,
            "sequence": index,
            "uid": f"{origin}/{index}",
        },
        "raw_data": entry.decode("utf-8", "replace"),
    }
    if own:
        said["app"] = {"name": "modelkeep", "vendor_name": "modelkeep", "version": product}
    else:
        said["actor"] = {"user": {"uid": found.subject, "type_id": 0}}
        said["api"] = {"operation": found.kind, "request": {"uid": found.request}}
        said["src_endpoint"] = {"uid": found.subject}
        said["resources"] = [{"name": found.release, "type": "model release"}]
    return found.t, _ENCODER.encode(said)
