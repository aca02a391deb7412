"""A log that succeeds another: what a restore opens, because a log that was continued from a backup would be a forked one.

The successor has another origin, and begins with all entries of its predecessor: the same tree, so every index stays what it
was, and the root that it has at that size is the predecessor's. The next entry, a ``succession`` statement, names the
predecessor's checkpoint. So both logs verify, and that nothing was dropped in between is one comparison of hashes.
"""

import contextlib
from collections.abc import Iterable, Sequence

import msgspec

from modelkeep.core.values import Resource, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.notes import Checkpoint, NoteSigner, open_checkpoint
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot, origin_of
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted
from modelkeep.ledger.cosigned import WITNESSED
from modelkeep.ledger.log import LogView, read_note
from modelkeep.ledger.predicates import Succession
from modelkeep.ledger.statements import make_statement, peek_type, predicate_of
from modelkeep.ledger.tiles import CHECKPOINT, TileFiles
from modelkeep.ledger.verify import verify_log
from modelkeep.workflows.registry import Desk
from modelkeep.workflows.trust_changes import entries_of


class Predecessor(msgspec.Struct, frozen=True):
    """A log that ended: its last checkpoint here and the signed note of it."""

    checkpoint: Checkpoint
    note: bytes


def successor_origin(origin: str, number: int, token: bytes) -> str:
    """The origin of the ``number``-th releases log of the keep ``origin``. ``token``: random, since two restores of one backup
    are two logs."""
    return f"{origin}/releases/{number}-{token.hex()}"


def open_successor(files: TileFiles, vkey: str, signer: NoteSigner) -> Predecessor:
    """Let the log in ``files`` be that of ``signer`` from now on; what it was.

    For a copy that nobody uses yet: the succession has to be logged next. Raises NotTrusted (damaged), Missing, Unavailable.
    """
    origin = origin_of(vkey)
    note = read_note(files, origin)
    report = verify_log(files, vkey, origin)
    files.write(CHECKPOINT, Checkpoint(signer.name, report.size, report.root).sign(signer))
    with contextlib.suppress(Missing):
        files.delete(WITNESSED)  # it is of the log before: witnesses are asked about this one
    return Predecessor(Checkpoint(origin, report.size, report.root), note)


def log_succession(desk: Desk, before: Predecessor, *, actor: str, known: bytes = b"") -> int:
    """Log that this log succeeds ``before``; its index. ``known``: the signed note of the furthest checkpoint that is known.

    Raises Conflict (something was logged already), NotTrusted, Unavailable.
    """
    if desk.registry.view.refresh().size != before.checkpoint.size:
        raise Conflict("the log went on before it was said what it succeeds")
    said = Succession(
        actor=actor,
        at=desk.clock.now_ns(),
        origin=before.checkpoint.origin,
        size=before.checkpoint.size,
        root=before.checkpoint.root.hex(),
        checkpoint=before.note.decode(),
        known=known.decode(),
    )
    (index,) = desk.log_statements([make_statement(said, Resource(said.origin, digest_of(before.note)))])
    return index


class Succeeded(msgspec.Struct, frozen=True):
    """A predecessor of a log: where it ended, its key, the index of the statement that says so, and how far it is known to have
    gone on elsewhere (its ``end`` when nobody knows of more)."""

    end: Checkpoint
    vkey: str
    index: int
    known: Checkpoint


def successions(view: LogView, trust: TrustRoot, signatories: Signatories) -> tuple[Succeeded, ...]:
    """The predecessors of the log under ``view``, oldest first, each proven to be what it begins with.

    ``signatories``: of the whole log. Raises NotTrusted: the log does not begin with what the trust root says it succeeds.
    """
    if not trust.releases_before:
        return ()
    known = iter(_said(view, signatories))
    proven = []
    for vkey in trust.releases_before:
        match = next((pair for pair in known if pair[1].origin == origin_of(vkey)), None)
        if match is None:
            raise NotTrusted(f"the releases log does not say where it continues {origin_of(vkey)}, which it succeeds")
        proven.append(_proven(view, vkey, *match))
    return tuple(proven)


def check_kept(view: LogView, before: Sequence[Succeeded], kept: Iterable[Checkpoint]) -> list[str]:
    """Check checkpoints that somebody kept of predecessors; what there is to say about them.

    Raises NotTrusted: it was rewritten, or entries that one covers are not here because the keep was restored from a backup,
    and the log does not own up to it.
    """
    words = []
    for one in kept:
        past = next((each for each in before if each.end.origin == one.origin), None)
        if past is None:
            raise NotTrusted(f"the kept checkpoint is of the log {one.origin!r}, which this one does not succeed")
        if one.size <= past.end.size:
            if view.root_at(one.size) != one.root:
                raise NotTrusted(f"the log {one.origin} was rewritten: it does not continue a kept checkpoint")
            continue
        lost = f"the keep was restored from a backup: entries {past.end.size} to {one.size - 1} of {one.origin} are lost"
        if one.size > past.known.size or (one.size == past.known.size and one.root != past.known.root):
            raise NotTrusted(f"{lost}, and its log does not say so")
        words.append(f"{lost}, as entry {past.index} says")
    return words


def _said(view: LogView, signatories: Signatories) -> list[tuple[int, Succession]]:
    found = []
    for index, entry in entries_of(view):
        try:
            envelope = parse_envelope(entry)
            if peek_type(envelope) == Succession.TYPE:
                found.append((index, predicate_of(signatories.check(envelope, index)[0], Succession)))
        except (Conflict, NotTrusted, Invalid):
            continue  # what does not count says nothing
    return found


def _proven(view: LogView, vkey: str, index: int, said: Succession) -> Succeeded:
    try:
        end = open_checkpoint(said.checkpoint.encode(), vkey, said.origin)
        known = open_checkpoint(said.known.encode(), vkey, said.origin) if said.known else end
    except ModelkeepError as cause:
        raise NotTrusted(f"entry {index} of the releases log names a checkpoint that its predecessor did not sign") from cause
    if (end.size, end.root.hex()) != (said.size, said.root) or index != end.size or view.root_at(end.size) != end.root:
        raise NotTrusted(f"the releases log does not begin with the {said.size} entries of {said.origin}, which it succeeds")
    return Succeeded(end, vkey, index, known)
