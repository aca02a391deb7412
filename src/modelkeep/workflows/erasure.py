"""Erasure: what the logs say about somebody becomes unreadable, and every proof still verifies (GDPR, Article 17).

The releases log comes first: once the erasure stands there, no process reads a key of before it, wherever a copy lies. Then
the wrapped keys go, and what a store still holds of deleted rows. Cut off anywhere, it is simply run again; the control process
does so whenever it starts.
"""

from collections.abc import Callable

from modelkeep.access.accounts import ACCOUNT, LOGIN
from modelkeep.access.certificates import CERTIFICATE
from modelkeep.access.credentials import KEY
from modelkeep.access.externals import EXTERNAL, NAME, NEWCOMER, TURNED_AWAY, external_of, forget_external
from modelkeep.access.factors import FACTOR
from modelkeep.access.forgetting import FORGOTTEN, Credentials, account_of, forget_account
from modelkeep.access.refresh import REFRESH
from modelkeep.access.sessions import REVOCATION, SESSION
from modelkeep.core.epochs import Epochs, epoch_key, split_epoch
from modelkeep.core.ports import Change, Records
from modelkeep.custody.salting import DATA_SALT
from modelkeep.errors import Conflict, Missing, Unavailable
from modelkeep.serving.bodies import SUBJECT_KEY
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.cautions import CAUTION, whose_caution
from modelkeep.workflows.decisions import ERASE, ERASE_DATA, FORGET, Decisions, decisions_of
from modelkeep.workflows.moves import RUNG, whose_rung
from modelkeep.workflows.registry import Desk

ROUTINE = (LOGIN, NEWCOMER, TURNED_AWAY, FACTOR, SESSION, REFRESH, CERTIFICATE, RUNG, CAUTION)
WIPED = (SUBJECT_KEY, DATA_SALT, ACCOUNT, EXTERNAL, NAME, *ROUTINE)
"""Kinds whose deleted records leave nothing behind, not even their key. All but ``ROUTINE`` are deleted by erasures only."""
SECRETS = {ERASE: SUBJECT_KEY, ERASE_DATA: DATA_SALT}
"""Act -> the kind of the secret that it erases."""
_WHOSE: tuple[tuple[str, str, Callable[[str], tuple[str, int]]], ...] = (
    (ERASE, SUBJECT_KEY, split_epoch),
    (ERASE_DATA, DATA_SALT, split_epoch),
    (ERASE, RUNG, lambda key: whose_rung(key)[1:]),
    (ERASE, CAUTION, whose_caution),
)
"""Act, the kind of records that it erases, and the name and epoch in their keys."""
_RETRIES = 16


def erase(desk: Desk, origin: str, verb: str, name: str, *, actor: str, reason: str = "") -> int:
    """Log that the secret of ``name`` is dropped, unless that is done and it has none since; the log index of the erasure.

    ``verb``: ``audit.erase`` (``name`` is a pseudonym), ``data.erase`` (a data set) or ``user.forget``. Wait until no gateway
    acts on what it knew before, and then ``sweep``. Raises Missing (no such data set), TooLarge, NotTrusted, Unavailable.
    """
    epoch = decisions(desk).epochs(verb)(name)
    kept = verb in SECRETS and _has_secret(desk.registry.records, verb, name, epoch)
    if epoch and not kept:
        return epoch - 1
    if verb == ERASE_DATA and not kept:  # else a mistyped name would be told and logged as erased
        raise Missing(f"no data set {name!r} has a salt here, so there is nothing to erase: check the name")
    detail = {"id": desk.entropy.token(16).hex()} | ({"reason": reason} if reason else {})  # never a copy of an earlier one
    return log_act(desk, origin, verb, name, actor=actor, detail=detail)


def sweep(desk: Desk, wait: Callable[[], None], *, wipe: bool) -> int:
    """Delete what the log says was erased and is there all the same; how many records.

    ``wait``: returns once every process has seen that accounts went; ``wipe``: also when there was nothing to delete, have the
    store overwrite what it holds of deleted rows. Raises NotTrusted, Unavailable.
    """
    records, found = desk.registry.records, decisions(desk)
    stale = [change for verb, kind, whose in _WHOSE for change in _stale(records, kind, whose, found.epochs(verb))]
    if stale:
        records.commit(stale)
    forgotten = sum(_forget(records, subject) for subject in found.erased(FORGET))
    left = {record.kind for record in records.since(0) if record.body is None} & set(WIPED)
    if left & {ACCOUNT, EXTERNAL}:
        wait()
    if left - set(ROUTINE) or wipe:
        records.expunge(WIPED)
    return len(stale) + forgotten


def decisions(desk: Desk) -> Decisions:
    """What the log says now that people decided. Raises NotTrusted, Unavailable."""
    book = desk.registry.refresh()
    return decisions_of(desk.registry.view, book.signatories.root)


def _has_secret(records: Records, verb: str, name: str, epoch: int) -> bool:
    try:
        records.get(SECRETS[verb], epoch_key(name, epoch))
    except (KeyError, Missing):
        return False
    return True


def _stale(records: Records, kind: str, whose: Callable[[str], tuple[str, int]], epochs: Epochs) -> list[Change]:
    found = []
    for record in records.scan(kind):
        name, epoch = whose(record.key)
        if epoch < epochs(name):
            found.append(Change(kind, record.key, None))
    return found


def _forget(records: Records, subject: str) -> bool:
    """Delete the account behind ``subject``, if it is there; the last admin stays until there is another."""
    for _ in range(_RETRIES):
        accounts = records.scan(ACCOUNT)
        account = account_of(accounts, subject)
        if account is None:
            return _forget_external(records, subject)
        credentials = Credentials(*(records.scan(kind) for kind in (KEY, REVOCATION, CERTIFICATE, SESSION, REFRESH)))
        try:
            changes = forget_account(accounts, credentials, account.name)[1]
        except Conflict:
            return False
        try:
            records.commit(changes)
        except Conflict:
            continue
        return True
    raise Unavailable("the records change too fast: try again in a moment")


def _forget_external(records: Records, subject: str) -> bool:
    externals = records.scan(EXTERNAL)
    account = external_of(externals, subject)
    if account is None:
        return False
    try:
        records.commit([*forget_external(externals, account.name)[1], Change(FORGOTTEN, subject, b"{}")])
    except Conflict:
        return _forget_external(records, subject)
    return True
