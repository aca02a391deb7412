"""Checking logs and proofs with nothing but static files and public keys: what an auditor runs on a copy."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.results import LogChecked, StatementRow
from modelkeep.app.rows import all_audit_checkpoints, statement_row
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.notes import Checkpoint, encode_vkey, open_checkpoint
from modelkeep.custody.admission import EvidenceBook
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Missing, NotTrusted, Unavailable
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import AuditCheckpoint
from modelkeep.ledger.proofs import check_proof
from modelkeep.ledger.verify import verify_log
from modelkeep.serving.recovery import verify_audit
from modelkeep.workflows.archive import Archived, Removed, check_absent, check_pruned
from modelkeep.workflows.decisions import decisions_of
from modelkeep.workflows.successor import check_kept, successions


def check_logs(
    folder: Path, trust: TrustRoot, kept_heads: Iterable[Checkpoint] = (), *, own: bool = False
) -> tuple[LogChecked, ...]:
    """Check the releases log in ``folder/releases`` and every audit log in ``folder/audit``.

    ``kept_heads``: checkpoints of the releases log that it must continue. Every statement's signatures are checked, and every
    audit log must continue all of its checkpoints that the releases log holds. ``own``: the keep's own folder,
    where nothing is missing but what the releases log says was archived.
    Raises NotTrusted (naming the first damage, or an audit log that is gone), Missing (no releases log), Unavailable.
    """
    releases = FolderLogFiles(folder / "releases")
    origin, heads = trust.releases_origin, list(kept_heads)
    whole = verify_log(releases, trust.releases_log, origin, [head for head in heads if head.origin == origin])
    view = LogView(releases, trust.releases_log, origin)
    view.refresh()
    book = EvidenceBook(trust)
    book.catch_up(view, view.checkpoint.size)
    if book.suspicious is not None:
        raise NotTrusted(f"entry {book.suspicious.index} of the releases log does not count: {book.suspicious.why}")
    before = successions(view, trust, book.signatories)
    told = check_kept(view, before, [head for head in heads if head.origin != origin])
    kept: dict[str, list[AuditCheckpoint]] = {}
    for said in all_audit_checkpoints(book.signatories, view):
        kept.setdefault(said.origin, []).append(said)
    names = sorted(path.name for path in (folder / "audit").iterdir()) if (folder / "audit").is_dir() else []
    here = {f"{trust.origin}/audit/{name}" for name in names}
    pruned = Pruned(decisions_of(view, trust).archived, own)
    names += [origin.rpartition("/")[2] for origin in sorted(set(kept) - here) if pruned.whole(origin)]
    for gone in sorted(set(kept) - here - {origin for origin in kept if pruned.whole(origin)}):
        raise NotTrusted(f"the audit log {gone} is gone: the releases log knows {kept[gone][-1].size} records of it")
    passed_over = f"; {book.problem_count} entries do not count" if book.problem_count else ""
    passed_over += "".join(f"; succeeds {each.end.origin} from entry {each.index} on" for each in before)
    passed_over += "".join(f"; {each}" for each in told)
    checked = [LogChecked(origin, whole.size, whole.root.hex(), f"signatures, entries, tiles, statements{passed_over}")]
    return (*checked, *(_check_audit(folder / "audit" / name, trust, name, kept, pruned) for name in sorted(names)))


def _check_audit(
    path: Path, trust: TrustRoot, name: str, kept: dict[str, list[AuditCheckpoint]], pruned: "Pruned"
) -> LogChecked:
    origin = f"{trust.origin}/audit/{name}"
    vkey = encode_vkey(origin, trust.audit_key)
    earlier = [open_checkpoint(said.checkpoint.encode(), vkey, origin) for said in kept.get(origin, [])]
    said, files = pruned.archived.get(origin), FolderLogFiles(path)
    if said is not None and said.removed is Removed.EVERYTHING:
        detail = check_pruned(files, vkey, origin, said, earlier)
        return LogChecked(origin, said.size, said.root, detail)
    report = verify_audit(files, vkey, origin, earlier)
    bodies = check_absent(report, said, own=pruned.own)
    closed = "closed" if report.closed else "not closed yet"
    detail = f"signatures, entries, tiles, {bodies}, {len(earlier)} checkpoints kept; {closed}"
    return LogChecked(origin, report.size, report.root.hex(), detail)


class Pruned(NamedTuple):
    """What the releases log says was archived, and whether all else must be here."""

    archived: Mapping[str, Archived]
    own: bool

    def whole(self, origin: str) -> bool:
        """Whether all of a log may be missing here."""
        said = self.archived.get(origin)
        return said is not None and said.removed is Removed.EVERYTHING


def verify_folder(folder: str, trust: str) -> tuple[LogChecked, ...]:
    """Check a copy of the logs in ``folder`` (a keep's ``log`` folder, or the keep itself) with the public keys in ``trust``.

    Raises Missing (no log, or no trust.toml) and what ``check_logs`` raises.
    """
    root = Path(folder)
    logs = root / "log" if (root / "log").is_dir() else root
    candidates = [Path(trust)] if trust else [root / "trust.toml", logs / "trust.toml", logs.parent / "trust.toml"]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise Missing(f"there is no trust.toml with or beside {folder}: name one with --trust")
    try:
        data = found.read_bytes()
    except OSError as cause:
        raise Unavailable(f"cannot read {found}: {cause.strerror}") from cause
    return check_logs(logs, TrustRoot.parse(data))


def check_proof_file(proof: bytes, trust: bytes) -> StatementRow:
    """Check a proof of ``log prove`` and the signatures of the statement in it. Raises NotTrusted, Conflict, Invalid.

    One proof says nothing of the rest of the log: an identity that was announced since ``trust`` was made is unknown here.
    """
    root = TrustRoot.parse(trust)
    found, _ = check_proof(proof, root.releases_log)
    Signatories(root).check(parse_envelope(found.entry), found.index)
    return statement_row(found.index, found.entry, {})
