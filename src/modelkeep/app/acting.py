"""What every group of verbs builds on: the opened keep, who acts, permission, and the log entry that records the act."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from modelkeep.access.accounts import ACCOUNT, Account, parse_account
from modelkeep.access.authorize import authorize
from modelkeep.access.credentials import KEY, parse_key_record
from modelkeep.access.externals import EXTERNAL, External, find_external, is_external
from modelkeep.app.names import names_by_pseudonym
from modelkeep.app.premises import DESK_FAMILIES, OPERATOR_ACCOUNT, Premises
from modelkeep.core.ports import Change, Record
from modelkeep.core.values import Principal, ReleaseRef, ReleaseState, parse_name
from modelkeep.custody.catalogue import reference_name
from modelkeep.custody.keys import WATERMARK
from modelkeep.errors import Conflict, Missing, Unavailable
from modelkeep.policy.engine import KEEP, Engine, Target, account, dataset, model
from modelkeep.workflows.acts import commit_traces, log_act
from modelkeep.workflows.marks import first_marks, next_marks

T = TypeVar("T")
_RETRIES = 16


class Acts:
    """An opened keep and who acts on it. Verbs are methods of its subclasses, marked with ``@verb``."""

    def __init__(self, premises: Premises, actor: Principal = OPERATOR_ACCOUNT, address: str = "") -> None:
        """``address``: the IP address that the actor calls from, "" at the machine itself."""
        self.premises = premises
        self.actor = actor
        self.address = address

    def authorize(self, action: str, arguments: dict[str, Any]) -> None:
        """Raise Denied unless the actor may do ``action`` to what ``arguments`` name."""
        target = self._target_of_key(arguments["key_id"]) if "key_id" in arguments else _target(action, arguments)
        authorize(self.engine, self.actor, action, target, self.address)

    @property
    def engine(self) -> Engine:
        """The access policy that the actor is judged by: whoever is at the machine, by the one that ships."""
        return self.premises.shipped_access if self.actor.account.endswith("@local") else self.premises.access

    def _target_of_key(self, key_id: str) -> Target:
        """The actor's account when the API key is its own, else the keep: nobody learns whose key another's id is of."""
        try:
            owner = parse_key_record(self.record(KEY, key_id)).account
        except Missing:
            return KEEP
        return account(owner) if owner == self.actor.account else KEEP

    def act(self, verb: str, about: str, **detail: str) -> int:
        """Record an administrative act of the actor in the releases log; its index."""
        return log_act(self.premises.desk(), self.premises.trust.origin, verb, about, actor=self.actor.subject, detail=detail)

    def commit_marks(self, subjects: Sequence[str], ahead_of: ReleaseRef | None = None) -> None:
        """Commit to the watermark key of each of ``subjects`` for every promoted release, where the log does not yet.

        ``ahead_of``: a release that is about to be promoted, too.
        """
        desk = self.premises.desk()
        master = self.premises.keyring([WATERMARK, *DESK_FAMILIES]).secret(WATERMARK)
        for evidence in desk.registry.book.releases():
            if evidence.state is ReleaseState.PROMOTED or evidence.ref == ahead_of:
                commit_traces(desk, evidence.ref, first_marks(master, evidence.ref, subjects), actor=self.actor.subject)

    def renew_marks(self, ref: ReleaseRef, subjects: Sequence[str], *, before: int | None = None) -> int:
        """Begin a new epoch of the watermark keys for ``ref`` of those of ``subjects`` that have one; how many it began.

        ``before``: only of those whose epoch began earlier than that, Unix nanoseconds. Raises as ``commit_traces``.
        """
        desk = self.premises.desk()
        master = self.premises.keyring([WATERMARK, *DESK_FAMILIES]).secret(WATERMARK)
        entries = next_marks(master, ref, subjects, desk.registry.book.committed, before=before)
        return commit_traces(desk, ref, entries, actor=self.actor.subject)

    def subjects(self) -> list[str]:
        """The pseudonym of every account."""
        return list(self.names())

    def names(self) -> dict[str, str]:
        """Account names by pseudonym: the log has only these."""
        return names_by_pseudonym(self.premises.records)

    def change(self, decide: Callable[[], tuple[T, Sequence[Change]]]) -> T:
        """Commit what ``decide`` computes from the records, again if they changed meanwhile. Raises Conflict, Unavailable."""
        for _ in range(_RETRIES):
            result, changes = decide()
            try:
                self.premises.records.commit(changes)
            except Conflict:
                if any(change.expected == 0 for change in changes):
                    raise
                continue
            return result
        raise Unavailable("the records change too fast: try again in a moment")

    def ref(self, text: str) -> ReleaseRef:
        """The release that ``name@version``, or ``name@alias`` now, means. Raises Invalid, Missing (no such alias)."""
        reference_name(text)
        if not text.rpartition("@")[2][0].isalpha():
            return ReleaseRef.parse(text)
        return self.premises.registry().book.catalogue.resolve(text)

    def owner(self, name: str) -> Account | External:
        """The account of that name, ours or another issuer's. Raises Missing."""
        try:
            if is_external(name):
                return find_external(self.premises.records.scan(EXTERNAL), name)
            return parse_account(self.record(ACCOUNT, name))
        except Missing:
            raise Missing(f"there is no account {name[:64]!r}") from None

    def record(self, kind: str, key: str) -> Record:
        """One record. Raises Missing."""
        return self.premises.records.get(kind, key)


_ABOUT_ACCOUNTS = ("user.", "key.", "mfa.", "session.", "step-up.")


def _target(action: str, arguments: dict[str, Any]) -> Target:
    if "ref" in arguments:
        return model(reference_name(arguments["ref"]))
    if action == "data.add":
        return dataset(parse_name(arguments["name"], "name of a data set"))
    if action in ("publish", "alias"):
        return model(parse_name(arguments["name"], "model name"))
    owner = arguments.get("account", arguments.get("name"))
    return account(owner) if action.startswith(_ABOUT_ACCOUNTS) and isinstance(owner, str) else KEEP
