"""What every group of verbs builds on: the opened keep, who acts, permission, and the statement that records the act."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.authorize import authorize
from modelkeep.app.premises import OPERATOR_ACCOUNT, Premises
from modelkeep.core.ports import Change, Record
from modelkeep.core.values import Principal, ReleaseRef, ReleaseState, parse_name
from modelkeep.custody.keys import LOG_SIGNING, STATEMENT_SIGNING, WATERMARK
from modelkeep.errors import Conflict, Unavailable
from modelkeep.ledger.statements import Act, Predicate, keep_resource, make_statement, sign_statement
from modelkeep.policy.engine import KEEP, Target, account, model
from modelkeep.workflows.marks import missing_marks

T = TypeVar("T")
SIGNERS = (STATEMENT_SIGNING, LOG_SIGNING)
_RETRIES = 16


class Acts:
    """An opened keep and who acts on it. Verbs are methods of its subclasses, marked with ``@verb``."""

    def __init__(self, premises: Premises, actor: Principal = OPERATOR_ACCOUNT) -> None:
        self.premises = premises
        self.actor = actor

    def authorize(self, action: str, arguments: dict[str, Any]) -> None:
        """Raise Denied unless the actor may do ``action`` to what ``arguments`` name."""
        authorize(self.premises.access, self.actor, action, _target(action, arguments))

    def log(self, *statements: Predicate) -> int:
        """Sign statements about the keep itself and append them to the releases log; the index of the last."""
        resource = keep_resource(self.premises.trust.origin)
        signer = self.premises.keyring(SIGNERS).statement_signer()
        entries = [sign_statement(make_statement(each, resource), signer) for each in statements]
        return self.premises.releases_log().append(entries)[-1]

    def act(self, verb: str, about: str, **detail: str) -> int:
        """Record an administrative act of the actor in the releases log; its index."""
        now = self.premises.clock.now_ns()
        return self.log(Act(actor=self.actor.account, at=now, verb=verb, about=about, detail=detail))

    def commit_marks(self, subjects: Sequence[str]) -> None:
        """Commit to the watermark key of each of ``subjects`` for every promoted release that the log has none for yet."""
        here = self.premises
        book, _ = here.book()
        promoted = [evidence for evidence in book.releases() if evidence.state is ReleaseState.PROMOTED]
        keyring = here.keyring([*SIGNERS, WATERMARK])
        statements = missing_marks(
            book, promoted, subjects, master=keyring.secret(WATERMARK), actor=self.actor.account, at=here.clock.now_ns()
        )
        signer = keyring.statement_signer()
        entries = [sign_statement(statement, signer) for statement in statements]
        if entries:
            here.releases_log().append(entries)

    def subjects(self) -> list[str]:
        """The pseudonym of every account."""
        return [parse_account(record).subject for record in self.premises.records.scan(ACCOUNT)]

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

    def record(self, kind: str, key: str) -> Record:
        """One record. Raises Missing."""
        return self.premises.records.get(kind, key)


def _target(action: str, arguments: dict[str, Any]) -> Target:
    if "ref" in arguments:
        return model(ReleaseRef.parse(arguments["ref"]).name)
    if action == "publish":
        return model(parse_name(arguments["name"], "model name"))
    owner = arguments.get("account", arguments.get("name"))
    return account(owner) if action.startswith(("user.", "key.")) and isinstance(owner, str) else KEEP
