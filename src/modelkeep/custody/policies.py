"""Which policies are in force: what the releases log says of it, folded.

A policy is a statement like any other, so that changing what may be served, or who may do what, takes a signature, leaves a
trace, and reaches every gateway the way a quarantine does. Each statement names the one that it replaces.
"""

import re

import msgspec

from modelkeep.core.values import Resource, Statement
from modelkeep.custody.evidence import Found
from modelkeep.errors import Conflict, Invalid, NotTrusted
from modelkeep.ledger.predicates import Policy
from modelkeep.ledger.statements import predicate_of

ADMISSION, ACCESS, LADDER = "admission", "access", "ladder"
KINDS = (ADMISSION, ACCESS, LADDER)
CUSTOM, EXTENDED, DEFAULT = "custom", "extended", "default"
WITH_TEXT = (CUSTOM, EXTENDED)
"""Names of policies that carry a text; ``extended`` adds it to the access policy that ships."""
MAX_TEXT = 32_768
"""Characters of a policy text: its statement must fit a log entry."""
_ID = re.compile(r"[0-9a-f]{32}\Z")


class PolicyInForce(msgspec.Struct, frozen=True):
    """One policy statement: log ``index``, what it says, and the identity that signed it."""

    index: int
    said: Policy
    signer: str


class Policies:
    """The fold. ``keep``: what the statements must be about. Not safe for two writers."""

    def __init__(self, keep: Resource) -> None:
        self._keep = keep
        self._history: dict[str, tuple[PolicyInForce, ...]] = dict.fromkeys(KINDS, ())

    def fold(self, found: Found, statement: Statement) -> None:
        """Take one in. Raises NotTrusted (of another keep), Conflict (it replaces another than the one in force), Invalid."""
        said = predicate_of(statement, Policy)
        if statement.subject != (self._keep,):
            raise NotTrusted("this policy statement is about another keep")
        if said.kind not in KINDS or not _ID.match(said.id) or len(said.text) > MAX_TEXT:
            raise Invalid(f"a policy statement is about {' or '.join(KINDS)} and has an id of 32 hex digits")
        if (said.name in WITH_TEXT) != bool(said.text):
            raise Invalid(f"a policy statement has a text exactly when its name is {' or '.join(WITH_TEXT)}")
        if said.replaces != self.index(said.kind):
            raise Conflict(f"log entry {said.replaces} is not the {said.kind} policy in force: another came first")
        self._history[said.kind] = (*self._history[said.kind], PolicyInForce(found.index, said, found.signer))

    def in_force(self, kind: str) -> PolicyInForce | None:
        """The policy of a kind; None before the first statement."""
        found = self._history[kind]
        return found[-1] if found else None

    def index(self, kind: str) -> int:
        """Log index of the policy in force; -1 before the first."""
        found = self.in_force(kind)
        return found.index if found else -1

    def history(self, kind: str) -> tuple[PolicyInForce, ...]:
        """Every policy of a kind that was in force, oldest first."""
        return self._history[kind]
