"""Checking logs and proofs with nothing but static files and public keys: what an auditor runs on a copy."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec

from modelkeep.app.kept import KeptNote
from modelkeep.app.results import LogChecked, StatementRow
from modelkeep.app.rows import all_audit_checkpoints, audit_row, statement_row
from modelkeep.app.shelf import Shelf, is_address, open_shelf
from modelkeep.core.ports import StaticFiles
from modelkeep.core.values import digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.notes import Checkpoint, NoteVerifier, encode_vkey, open_checkpoint
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import AuditCheckpoint
from modelkeep.ledger.proofs import check_continuation, check_proof, is_continuation, origin_of
from modelkeep.ledger.tiles import CHECKPOINT
from modelkeep.ledger.verify import Progress, silent, verify_log
from modelkeep.serving.recovery import verify_audit
from modelkeep.workflows.archive import Archived, Removed, check_absent, check_pruned
from modelkeep.workflows.decisions import decisions_of
from modelkeep.workflows.successor import check_kept, successions


@dataclass(frozen=True)
class Access:
    """How to be let in at an address. ``token``: an auditor's; ``ca``: PEM file of the authority to believe."""

    token: str = field(default="", repr=False)
    ca: str = ""


NOBODY = Access()


class Pruned(NamedTuple):
    """What the releases log says was archived, and whether all else must be here, because it is the keep's ``own`` folder."""

    archived: Mapping[str, Archived]
    own: bool = False

    def whole(self, origin: str) -> bool:
        """Whether all of a log may be missing here."""
        said = self.archived.get(origin)
        return said is not None and said.removed is Removed.EVERYTHING


def check_logs(
    shelf: Shelf,
    trust: TrustRoot,
    kept_heads: Iterable[Checkpoint] = (),
    progress: Progress = silent,
    *,
    own: bool = False,
) -> tuple[LogChecked, ...]:
    """Check the releases log on ``shelf`` and every audit log there.

    ``kept_heads``: checkpoints of the releases log that it must continue. Every statement's signatures are checked, and every
    audit log must continue all of its checkpoints that the releases log holds. ``own``: the keep's own folder, where nothing
    is missing but what the releases log says was archived.
    Raises NotTrusted (naming the first damage, or an audit log that is gone), Missing (no releases log), Unavailable.
    """
    return _check_logs(shelf, trust, kept_heads, progress, own=own)[0]


def _check_logs(
    shelf: Shelf, trust: TrustRoot, kept_heads: Iterable[Checkpoint], progress: Progress, *, own: bool = False
) -> tuple[tuple[LogChecked, ...], bytes]:
    checked, kept, archived, note = _check_releases(shelf, trust, kept_heads, progress)
    pruned = Pruned(archived, own)
    if shelf.audits is None:
        unread = f"; not read: {len(kept)} audit logs, which an auditor may" if kept else ""
        return (msgspec.structs.replace(checked, detail=checked.detail + unread),), note
    named = {origin.removeprefix(f"{trust.origin}/audit/") for origin in kept}
    here = named if shelf.listed is None else set(shelf.listed)
    away = {name for name in named - here if pruned.whole(f"{trust.origin}/audit/{name}")}
    for gone in sorted(named - here - away):
        raise NotTrusted(_gone(f"{trust.origin}/audit/{gone}", kept))
    return (checked, *(_check_audit(shelf, trust, name, kept, pruned, progress) for name in sorted(here | away))), note


_Kept = dict[str, list[AuditCheckpoint]]
"""Checkpoints of audit logs in the releases log, by origin, oldest first."""


def _check_releases(
    shelf: Shelf, trust: TrustRoot, kept_heads: Iterable[Checkpoint], progress: Progress
) -> tuple[LogChecked, _Kept, Mapping[str, Archived], bytes]:
    origin = trust.releases_origin
    shelf.expect(shelf.log, trust.releases_log, origin)
    heads = list(kept_heads)
    whole = verify_log(shelf.log, trust.releases_log, origin, [head for head in heads if head.origin == origin], progress)
    view = LogView(shelf.log, trust.releases_log, origin)
    view.refresh()
    book = EvidenceBook(trust)
    book.catch_up(view, view.checkpoint.size)
    if book.suspicious is not None:
        raise NotTrusted(f"entry {book.suspicious.index} of the releases log does not count: {book.suspicious.why}")
    before = successions(view, trust, book.signatories)
    told = check_kept(view, before, [head for head in heads if head.origin != origin])
    kept: _Kept = {}
    for said in all_audit_checkpoints(book.signatories, view):
        kept.setdefault(said.origin, []).append(said)
    passed_over = f"; {book.problem_count} entries do not count" if book.problem_count else ""
    passed_over += "".join(f"; succeeds {each.end.origin} from entry {each.index} on" for each in before)
    passed_over += "".join(f"; {each}" for each in told)
    detail = f"signatures, entries, tiles, statements{passed_over}"
    return LogChecked(origin, whole.size, whole.root.hex(), detail), kept, decisions_of(view, trust).archived, whole.note


def _gone(origin: str, kept: _Kept) -> str:
    return f"the audit log {origin} is gone: the releases log knows {kept[origin][-1].size} records of it"


def _check_audit(shelf: Shelf, trust: TrustRoot, name: str, kept: _Kept, pruned: Pruned, progress: Progress) -> LogChecked:
    assert shelf.audits is not None
    origin = f"{trust.origin}/audit/{name}"
    vkey = encode_vkey(origin, trust.audit_key)
    earlier = [open_checkpoint(said.checkpoint.encode(), vkey, origin) for said in kept.get(origin, [])]
    files, said = shelf.audits(name), pruned.archived.get(origin)
    if said is not None and said.removed is Removed.EVERYTHING:
        return LogChecked(origin, said.size, said.root, check_pruned(files, vkey, origin, said, earlier))
    try:
        shelf.expect(files, vkey, origin)
        report = verify_audit(files, vkey, origin, earlier, progress)
    except Missing as cause:
        if shelf.listed is None and origin in kept:
            raise NotTrusted(_gone(origin, kept)) from cause
        raise
    bodies = check_absent(report, said, own=pruned.own)
    closed = "closed" if report.closed else "not closed yet"
    detail = f"signatures, entries, tiles, {bodies}, {len(earlier)} checkpoints kept; {closed}"
    return LogChecked(origin, report.size, report.root.hex(), detail)


def verify_source(
    source: str, *, trust: str = "", vkey: str = "", kept: str = "", access: Access = NOBODY, progress: Progress = silent
) -> tuple[LogChecked, ...]:
    """Check the logs that ``source``, a folder or an address, holds, with public keys alone.

    ``trust``: a trust.toml, by default the one in or beside a folder; or ``vkey``: the key of one log, whatever is in it.
    ``kept``: a file with the last checkpoint seen of the log (the releases log where there are several), which is replaced by
    this one if all holds. Raises Missing (no log, or no trust.toml), Invalid, Conflict and what ``check_logs`` raises.
    """
    if vkey and trust:
        raise Invalid("name --trust or --vkey: the keys of a keep, or the key of one log")
    if vkey:
        NoteVerifier.parse(vkey)
    root = None if vkey else _trust_root(source, trust)
    memory = KeptNote(kept) if kept else None
    with open_shelf(source, token=access.token, ca=access.ca) as shelf:
        key, origin = (vkey, vkey.partition("+")[0]) if root is None else _key_of(root, shelf.log)
        known = memory.checkpoint(key, origin) if memory else None
        heads = [known] if known else []
        if root is not None and origin == root.releases_origin:
            checked, note = _check_logs(shelf, root, heads, progress)
        else:
            shelf.expect(shelf.log, key, origin)
            check = _one_log if root is None else _one_audit
            one, note = check(shelf.log, key, origin, heads, progress)
            checked = (one,)
        if memory:
            memory.keep(note)
        return checked


def _one_log(
    files: StaticFiles, vkey: str, origin: str, heads: list[Checkpoint], progress: Progress
) -> tuple[LogChecked, bytes]:
    one = verify_log(files, vkey, origin, heads, progress)
    return LogChecked(origin, one.size, one.root.hex(), "signatures, entries, tiles"), one.note


def _one_audit(
    files: StaticFiles, vkey: str, origin: str, heads: list[Checkpoint], progress: Progress
) -> tuple[LogChecked, bytes]:
    one = verify_audit(files, vkey, origin, heads, progress)
    closed = "closed" if one.closed else "not closed yet"
    return LogChecked(origin, one.size, one.root.hex(), f"signatures, entries, tiles, {one.bodies} bodies; {closed}"), one.note


def _key_of(root: TrustRoot, files: StaticFiles) -> tuple[str, str]:
    """Verifier key and origin of the log under ``files``, which says itself which of the keep's logs it is."""
    try:
        return _key_named(root, files.read(CHECKPOINT).split(b"\n", 1)[0].decode(errors="replace"))
    except Missing:  # whoever reads it tells a log that lost its checkpoint from one that never was
        return root.releases_log, root.releases_origin


def _key_named(root: TrustRoot, named: str) -> tuple[str, str]:
    releases = root.releases_origin
    if named == releases:
        return root.releases_log, releases
    if named.startswith(f"{root.origin}/audit/"):
        return encode_vkey(named, root.audit_key), named
    raise NotTrusted(f"this is the log {named[:80]!r}, and none of the keep {root.origin}")


def _trust_root(source: str, trust: str) -> TrustRoot:
    if trust:
        candidates = [Path(trust)]
    elif is_address(source):
        raise Missing(f"whom to believe about {source} must come from elsewhere: name a trust.toml with --trust, or --vkey")
    else:
        folders = [Path(source), *list(Path(source).absolute().parents)[:3]]
        candidates = [folder / "trust.toml" for folder in (folders[0], folders[0] / "log", *folders[1:])]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        raise Missing(
            f"there is no {trust}" if trust else f"there is no trust.toml with or beside {source}: name one with --trust"
        )
    try:
        return TrustRoot.parse(found.read_bytes())
    except OSError as cause:
        raise Unavailable(f"cannot read {found}: {cause.strerror}") from cause


def check_proof_file(proof: bytes, trust: bytes, *, kept: bytes = b"") -> StatementRow | LogChecked:
    """Check a proof of ``log prove`` with the public keys of a trust.toml: of a statement its signatures too.

    ``kept``: the checkpoint that a consistency proof begins at. Raises NotTrusted, Conflict, Invalid.
    One proof says nothing of the rest of the log: an identity that was announced since ``trust`` was made is unknown here.
    """
    root = TrustRoot.parse(trust)
    key, origin = _key_named(root, _origin(proof))
    if is_continuation(proof):
        return _continues(proof, kept, key)
    found, _ = check_proof(proof, key)
    if origin != root.releases_origin:
        return audit_row(found.index, found.entry)
    Signatories(root).check(parse_envelope(found.entry), found.index)
    return statement_row(found.index, found.entry, {})


def check_proof_with_key(proof: bytes, vkey: str, *, kept: bytes = b"") -> StatementRow | LogChecked:
    """The same with the verifier key of one log: that an entry is in it is proven, and nothing is said of what it means."""
    if is_continuation(proof):
        return _continues(proof, kept, vkey)
    found, _ = check_proof(proof, vkey)
    return StatementRow(found.index, "entry", 0, "", vkey.partition("+")[0], str(digest_of(found.entry)))


def _origin(proof: bytes) -> str:
    try:
        return origin_of(proof)
    except Invalid as cause:
        raise NotTrusted(f"the proof cannot be read: {cause}") from cause


def _continues(proof: bytes, kept: bytes, vkey: str) -> LogChecked:
    if not kept:
        raise Invalid("a consistency proof begins at a checkpoint that you have: name its file with --kept")
    before, after = check_continuation(proof, kept, vkey)
    return LogChecked(after.origin, after.size, after.root.hex(), f"continues its first {before.size} entries")
