"""Changes of who may sign: rotation, additions, limits and removals, announced in the log; and what is done about a stolen key.

The order makes each safe to be cut off: first the log, which everybody follows from then on, then the sealed trust root with
its public copy, which is only a shorter way to the same. Whoever opens the keys next lets the sealed root catch up.
"""

from collections.abc import Callable, Iterator, Sequence

import msgspec

from modelkeep.core.values import ReleaseRef, ReleaseState
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.signatures import PublicIdentity, StatementSigner
from modelkeep.custody import succession
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.identities import TokenHalves, no_token
from modelkeep.custody.keyring import Amendment, Keyring
from modelkeep.custody.policies import KINDS
from modelkeep.custody.signatories import ADD, LIMIT, REMOVE, ROTATE, Signatories
from modelkeep.custody.succession import MakeMaterial
from modelkeep.custody.trust import Rights, TrustedIdentity, TrustRoot
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import NamedIdentity, Trust
from modelkeep.ledger.statements import keep_resource, make_statement, parse_statement, peek_type
from modelkeep.workflows.registry import Desk

Amend = Callable[[Amendment], Keyring]
"""Carries an amendment out on the key ring and the trust root, whole or not at all; the ring as it then is."""

_BATCH = 256


class Rotated(msgspec.Struct, frozen=True):
    """A statement identity took another's place: their names, and the log index of the announcement."""

    former: str
    name: str
    log_index: int


class Fallen(msgspec.Struct, frozen=True):
    """What a compromise took from the releases: ``gone`` have no trusted release statement any more, ``held`` are in quarantine
    or no longer promoted because what was said of them later does not count; ``policies``: kinds of which another is in force
    again than was."""

    gone: tuple[ReleaseRef, ...]
    held: tuple[ReleaseRef, ...]
    policies: tuple[str, ...] = ()


def fold(view: LogView, root: TrustRoot) -> Signatories:
    """Who may sign after the whole log under ``view``, from the trust root in hand. Raises NotTrusted, Unavailable."""
    found = Signatories(root)
    for index, entry in entries_of(view):
        try:
            envelope = parse_envelope(entry)
            if peek_type(envelope) == Trust.TYPE:
                found.follow(index, envelope, found.check(envelope, index)[0])
        except ModelkeepError:
            continue  # it does not count; the evidence book tells why
    return found


def catch_up(view: LogView, amend: Amend) -> Keyring:
    """Let the sealed trust root say what the log has led to; the key ring then. Idempotent. Raises what ``amend`` raises."""
    return amend(succession.followed(lambda root: fold(view, root).root))


def rotate_identity(
    desk: Desk, amend: Amend, make: MakeMaterial, *, actor: str, tokens: TokenHalves = no_token, reason: str = ""
) -> Rotated:
    """Announce a fresh statement identity in the log and take it into use; the former one ends there. Rerun to resume.

    Raises Conflict (the announcement does not count), Denied, NotTrusted, Unavailable.
    """
    ring = amend(succession.prepared(make, desk.clock.now_ns()))
    successor = ring.pending_signer(tokens)
    assert successor is not None
    former = desk.signer.public.name
    known = _announcement(desk, successor.public)
    if known is None:
        book = desk.registry.refresh()
        rights = book.signatories.at(former, book.size).rights
        identity = NamedIdentity.of(successor.public)
        _log(desk, ROTATE, former, actor, rights=rights, identity=identity, reason=reason, also=(successor,))
        known = _announcement(desk, successor.public)
    if known is None:
        raise Conflict(f"{successor.name} was announced without effect: {_last_problem(desk.registry.book)}")
    catch_up(desk.registry.view, amend)
    return Rotated(former, successor.name, known)


def add_identity(desk: Desk, amend: Amend, public: PublicIdentity, rights: Rights, *, actor: str, reason: str = "") -> int:
    """Let an identity made elsewhere sign within ``rights``, from the log index returned plus one on.

    Raises Conflict (its name or key is known), Invalid, NotTrusted, Unavailable.
    """
    if _announcement(desk, public) is None:
        if desk.registry.refresh().signatories.stretches(public.name):
            raise Conflict(f"there is an identity {public.name[:80]} already: names are never used again")
        _log(desk, ADD, public.name, actor, rights=rights, identity=NamedIdentity.of(public), reason=reason)
    index = _announcement(desk, public)
    if index is None:
        raise Conflict(f"{public.name[:80]} was added without effect: {_last_problem(desk.registry.book)}")
    catch_up(desk.registry.view, amend)
    return index


def limit_identity(desk: Desk, amend: Amend, name: str, rights: Rights, *, actor: str, reason: str = "") -> int:
    """Give an identity other rights from the next log index on; the log index of the change. Repeated, it changes nothing.

    Raises Missing, Conflict (it ended), Invalid, NotTrusted, Unavailable.
    """
    last = _standing(desk, name)
    if last.rights != rights:
        index = _log(desk, LIMIT, name, actor, rights=rights, reason=reason)
        if _standing(desk, name).rights != rights:
            raise Conflict(f"{name[:80]} was limited without effect: {_last_problem(desk.registry.book)}")
    else:
        index = last.first - 1
    catch_up(desk.registry.view, amend)
    return index


def remove_identity(desk: Desk, amend: Amend, name: str, *, actor: str, reason: str = "") -> int:
    """End an identity: what it signed so far stays, nothing later counts. The log index of the change.

    Raises Missing, Conflict (it ended before), NotTrusted, Unavailable.
    """
    _standing(desk, name)
    index = _log(desk, REMOVE, name, actor, reason=reason)
    if desk.registry.refresh().signatories.stretches(name)[-1].until is None:
        raise Conflict(f"{name[:80]} was removed without effect: {_last_problem(desk.registry.book)}")
    catch_up(desk.registry.view, amend)
    return index


def compromise_identity(
    view: LogView, ring: Keyring, amend: Amend, make: MakeMaterial, *, version: int, since: int, now_ns: int
) -> tuple[Keyring, Fallen]:
    """Let what one version of the statement identity signed count only before log index ``since``; a fresh one is in use.

    That is a new trust root, made by hand: the log cannot announce it, since whoever has the key could announce, too.
    Identities that the key brought in from ``since`` on never counted. Raises Missing, Conflict (its state), Invalid,
    NotTrusted, Unavailable.
    """
    if not 0 <= since <= view.checkpoint.size:
        raise Invalid(f"the releases log has {view.checkpoint.size} entries: none has the index {since}")
    ours = ring.identities()
    if version not in ours:
        raise Missing(f"statement-signing has no key version {version} that could be compromised")
    ring = catch_up(view, amend)  # what the log ended before the theft does not begin again
    found = fold(view, ring.trust)
    rogue = _brought_in_by(found, ours[version].name, since, ours=set(ours.values()))
    limited = {
        (each.public.name, each.index + 1)
        for each in found.limited()
        if (each.by == ours[version].name and each.index >= since) or each.by in rogue
    }
    before = book_of(view, ring.trust)
    after = amend(succession.compromised(version, since, rogue, limited, make, now_ns))
    return after, fallen(before, book_of(view, after.trust))


def fallen(before: EvidenceBook, after: EvidenceBook) -> Fallen:
    """What stood in ``before`` and does not stand in ``after``, folds of one log under two trust roots."""
    now = {found.ref: found.state for found in after.releases()}
    gone = tuple(found.ref for found in before.releases() if found.ref not in now)
    served = [found.ref for found in before.releases() if found.state is ReleaseState.PROMOTED]
    held = tuple(ref for ref in served if ref in now and now[ref] is not ReleaseState.PROMOTED)
    policies = tuple(kind for kind in KINDS if before.policies.index(kind) != after.policies.index(kind))
    return Fallen(gone, held, policies)


def disowned(view: LogView, root: TrustRoot) -> EvidenceBook:
    """What the log would say if no key were compromised: claims to be proven again, and nothing to act upon."""
    last = {each.name: each for each in root.identities}
    believed = [
        msgspec.structs.replace(each, until=None) if each.compromised and last[each.name] is each else each
        for each in root.identities
    ]
    return book_of(view, msgspec.structs.replace(root, identities=tuple(believed)))


def book_of(view: LogView, root: TrustRoot) -> EvidenceBook:
    """The evidence of the whole log under ``view``, from a trust root. Raises NotTrusted, Unavailable."""
    book = EvidenceBook(root)
    book.catch_up(view, view.checkpoint.size)
    return book


def index_of_time(view: LogView, at: int) -> int:
    """The first log index whose statement says that it was made at Unix nanosecond ``at`` or later; the log's size if none.

    Times are those that signers wrote, and a thief writes any he likes: what he dated back before ``at`` counts if it stands
    before every honest statement since. An index is surer.
    """
    for index, entry in entries_of(view):
        try:
            said = parse_statement(parse_envelope(entry).unverified_payload()).predicate.get("at")
        except ModelkeepError:
            continue
        if isinstance(said, int) and said >= at:
            return index
    return view.checkpoint.size


def entries_of(view: LogView) -> Iterator[tuple[int, bytes]]:
    """Every entry under the checkpoint of ``view`` with its index. Raises NotTrusted, Unavailable."""
    size = view.checkpoint.size
    for start in range(0, size, _BATCH):
        yield from enumerate(view.entries(start, min(size, start + _BATCH)), start)


def _brought_in_by(signatories: Signatories, name: str, since: int, ours: set[PublicIdentity]) -> dict[str, int]:
    """Identities that ``name`` brought in from ``since`` on, and those that they brought in, by the index where each began."""
    found: dict[str, int] = {}
    for each in signatories.announced():
        if ((each.by == name and each.index >= since) or each.by in found) and each.public not in ours:
            found[each.public.name] = each.index + 1
    return found


def _log(
    desk: Desk,
    change: str,
    name: str,
    actor: str,
    *,
    rights: Rights | None = None,
    identity: NamedIdentity | None = None,
    reason: str = "",
    also: Sequence[StatementSigner] = (),
) -> int:
    if len(reason) > 2000:
        raise Invalid("a reason has at most 2,000 characters")
    said = Trust(
        actor=actor,
        at=desk.clock.now_ns(),
        change=change,
        name=name,
        id=desk.entropy.token(16).hex(),
        may_sign=rights.may_sign if rights else (),
        releases=rights.releases if rights else (),
        identity=identity,
        reason=reason,
    )
    origin = desk.registry.book.signatories.root.origin
    (index,) = desk.log_statements([make_statement(said, keep_resource(origin))], *also)
    return index


def _announcement(desk: Desk, public: PublicIdentity) -> int | None:
    """The log index at which ``public`` was announced and counted; None when it was not."""
    signatories = desk.registry.refresh().signatories
    if signatories.identities.get(public.key_ids[0]) != public:
        return None
    return next((each.index for each in signatories.announced() if each.public == public), None)


def _standing(desk: Desk, name: str) -> TrustedIdentity:
    """The open stretch of ``name``. Raises Missing, Conflict (it ended)."""
    found = desk.registry.refresh().signatories.stretches(name)
    if not found:
        raise Missing(f"no identity of the trust root is called {name[:80]!r}")
    if found[-1].until is not None:
        raise Conflict(f"{name} ended at log index {found[-1].until}: it signs nothing any more")
    return found[-1]


def _last_problem(book: EvidenceBook) -> str:
    return book.problems[-1].why if book.problems else "another change came first"
