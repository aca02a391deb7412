"""The audit logs of a keep, as the evidence is rebuilt from them."""

from modelkeep.app.premises import Premises
from modelkeep.crypto.notes import encode_vkey
from modelkeep.errors import Missing
from modelkeep.workflows.evidence import AuditFolder


def audit_folders(here: Premises) -> list[AuditFolder]:
    """The audit logs that there are now, oldest first."""
    found = (audit_folder(here, instance) for instance in here.audit_instances())
    return [folder for folder in found if folder is not None]


def audit_folder(here: Premises, instance: str) -> AuditFolder | None:
    """One audit log; None while it has no checkpoint."""
    origin, files = here.audit_origin(instance), here.audit_files(instance)
    try:
        files.read("checkpoint")
    except Missing:
        return None
    return AuditFolder(files, encode_vkey(origin, here.trust.audit_key), origin)
