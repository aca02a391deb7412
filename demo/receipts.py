"""An outside auditor at work: are the answers that clients received in the audit logs, as copied and with public keys only?"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.trust import TrustRoot
from modelkeep.ledger.log import LogView


@dataclass(frozen=True)
class Receipts:
    """What one account kept: ``<instance>/<index>`` for every answer of ``release`` it received."""

    account: str
    release: str
    kept: Sequence[str]


@dataclass(frozen=True)
class Reckoning:
    """``missing``: receipts without a matching record, with the reason; ``records``: entries in all audit logs together."""

    receipts: int
    records: int
    logs: int
    missing: tuple[str, ...]


def reckon(copy: Path, trust: Path, receipts: Iterable[Receipts]) -> Reckoning:
    """Look every receipt up in the audit logs below ``copy``/audit.

    Each entry is proven against the log's signed checkpoint before it is believed. A receipt matches when its entry is a
    prediction of that release, for the pseudonym that all of the account's receipts share, and nobody else holds it too.
    Raises NotTrusted when a log does not verify.
    """
    root = TrustRoot.parse(trust.read_bytes())
    logs = {folder.name: _entries(root, folder) for folder in sorted((copy / "audit").iterdir()) if folder.is_dir()}
    seen: set[str] = set()
    subjects: dict[str, str] = {}
    missing, count = [], 0
    for account in receipts:
        for receipt in account.kept:
            count += 1
            problem = _mismatch(logs, receipt, account, subjects) or (f"{receipt} is held twice" if receipt in seen else "")
            seen.add(receipt)
            if problem:
                missing.append(f"{account.account}: {problem}")
    return Reckoning(count, sum(map(len, logs.values())), len(logs), tuple(missing))


def _entries(root: TrustRoot, folder: Path) -> list[dict[str, object]]:
    origin = f"{root.origin}/audit/{folder.name}"
    view = LogView(FolderLogFiles(folder), encode_vkey(origin, root.audit_key), origin)
    size = view.refresh().size
    return [json.loads(entry) for entry in view.entries(0, size)]


def _mismatch(logs: dict[str, list[dict[str, object]]], receipt: str, account: Receipts, subjects: dict[str, str]) -> str:
    instance, _, index = receipt.partition("/")
    log = logs.get(instance, [])
    if not index.isdigit() or int(index) >= len(log):
        return f"there is no record {receipt!r}"
    entry = log[int(index)]
    subject = subjects.setdefault(account.account, str(entry["subject"]))
    if entry["kind"] != "predict" or entry["release"] != account.release or entry["subject"] != subject:
        return f"{receipt} is {entry['kind']} {entry['release']} for {entry['subject']}, not this account's prediction"
    return ""
