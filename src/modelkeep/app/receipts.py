"""Audit records as their receipts name them, and where the log of each stands."""

import re

from modelkeep.app.premises import Premises
from modelkeep.crypto.notes import Checkpoint, encode_vkey
from modelkeep.errors import Invalid, Missing, Unavailable
from modelkeep.ledger.log import LogView
from modelkeep.serving.journal import decode_entry
from modelkeep.serving.recovery import CLOSE

_INDEX = re.compile(r"(?:0|[1-9][0-9]{0,17})\Z")


def phase_of(premises: Premises, found: Checkpoint) -> str:
    """``final`` when the log under ``found`` lies here and ends with a closing entry, else ``running``."""
    instance = found.origin.rpartition("/")[2]
    if instance not in premises.audit_instances() or not found.size:
        return "running"
    view = LogView(premises.audit_files(instance), encode_vkey(found.origin, premises.trust.audit_key), found.origin)
    if view.refresh().size != found.size:
        return "running"
    last = decode_entry(view.entries(found.size - 1, found.size)[0], found.size - 1)
    return "final" if last.kind == CLOSE else "running"


def prove_record(premises: Premises, receipt: str) -> bytes:
    """A proof that the audit record of ``receipt``, which is ``INSTANCE/INDEX``, is in its log.

    Raises Invalid, Missing (no such log or record), Unavailable (no checkpoint covers it yet), NotTrusted.
    """
    instance, slash, number = receipt.rpartition("/")
    if not slash or not _INDEX.match(number):
        raise Invalid(f"{receipt[:120]!r} is not a receipt: expected INSTANCE/INDEX, as the header modelkeep-record says it")
    if instance not in premises.audit_instances():
        raise Missing(f"there is no audit log {instance[:80]!r} here")
    origin, index = premises.audit_origin(instance), int(number)
    files = premises.audit_files(instance)
    view = LogView(files, encode_vkey(origin, premises.trust.audit_key), origin)
    size = view.refresh().size
    if index < size:
        return view.inclusion(index).encode()
    if phase_of(premises, view.checkpoint) == "final":
        raise Missing(f"the audit log {instance} is closed and has {size} records, so there is no record {index}")
    raise Unavailable(f"the audit log {instance} has {size} records under a checkpoint, and not yet record {index}: try again")
