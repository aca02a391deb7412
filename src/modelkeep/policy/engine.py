"""Who may do what: the access policy, with a decision cache for the hot path.

A decision depends on the principal's roles and scope, the action, the resource and the context, and on nothing else, so it is
cached under exactly these. The cache belongs to the policy text it was computed from (the *epoch*): a new policy starts with an
empty one, and a decision that was under way in the old epoch cannot leak into the new.
"""

import functools
import re
import threading
from collections.abc import Mapping
from typing import NamedTuple

from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied
from modelkeep.policy.cedar import EntityRef, Rule, Ruleset, Verdict, packaged, ruleset

Context = Mapping[str, str | bool]

CACHE_SIZE = 16_384
"""Decisions remembered per epoch; beyond it the oldest is forgotten."""

_LONGEST_NAME = 64
_ANYONE = "anyone who holds the role"  # not a valid account name, so rules about one's own account never match it


class Target(NamedTuple):
    """What an action is done to. Make it with ``KEEP``, ``model``, ``account`` or ``dataset``."""

    kind: str
    id: str


KEEP = Target("Keep", "keep")
"""The keep as a whole."""


@functools.lru_cache(maxsize=4096)
def model(name: str) -> Target:
    """A model with all its versions."""
    return Target("Model", name)


def account(name: str) -> Target:
    """An account, its API keys and its sessions."""
    return Target("Account", name)


def dataset(name: str) -> Target:
    """A data set with all its versions."""
    return Target("Dataset", name)


class Decision(NamedTuple):
    """``allowed``; ``reasons``: ids of the rules that decided (empty when nothing permitted it), or the evaluation errors."""

    allowed: bool
    reasons: tuple[str, ...]


class _Epoch:
    """One policy text and the decisions made under it."""

    __slots__ = ("decisions", "lock", "number", "rules")

    def __init__(self, rules: Ruleset, number: int) -> None:
        self.rules = rules
        self.number = number
        self.decisions: dict[object, Decision] = {}
        self.lock = threading.Lock()

    def remember(self, key: object, decision: Decision) -> None:
        with self.lock:
            while len(self.decisions) >= CACHE_SIZE:
                del self.decisions[next(iter(self.decisions))]
            self.decisions[key] = decision


class Engine:
    """The access policy in force. Safe to use from several threads."""

    def __init__(self, policies: str | None = None) -> None:
        """Use ``policies`` (Cedar text), or the policy that ships with modelkeep. Raises Invalid."""
        self._schema = packaged("access.cedarschema")
        self._epoch = _Epoch(ruleset(default_policy() if policies is None else policies, self._schema), 1)

    @property
    def epoch(self) -> int:
        """Number of the policy in force; rises with every ``load``."""
        return self._epoch.number

    @property
    def asks_context(self) -> bool:
        """Whether a rule of the policy in force looks at the caller's address."""
        return self._epoch.rules.asks_context

    @property
    def models(self) -> tuple[Target, ...]:
        """The models that the policy in force names."""
        return tuple(sorted(model(entity.id) for entity in self._epoch.rules.mentions if entity.kind == "Model"))

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles that the policy in force speaks of: those that ship in their order, then others by name."""
        found = {entity.id for entity in self._epoch.rules.mentions if entity.kind == "Role"}
        known = [str(role) for role in Role if role in found]
        return (*known, *sorted(found - set(known)))

    def load(self, policies: str) -> None:
        """Put another policy in force, at once and whole. Raises Invalid, and then the old one stays in force."""
        self._epoch = _Epoch(ruleset(policies, self._schema), self._epoch.number + 1)

    def decide(self, principal: Principal, action: str, resource: Target = KEEP, context: Context | None = None) -> Decision:
        """Decide whether ``principal`` may do ``action`` to ``resource``. ``context``: as the schema has it of the action, such
        as ``address``, the caller's IP address."""
        epoch = self._epoch
        key = (principal, action, resource, tuple(sorted(context.items()))) if context else (principal, action, resource)
        found = epoch.decisions.get(key)
        if found is not None:
            return found
        verdict = _evaluate(epoch.rules, principal, action, resource, context or {})
        decision = Decision(verdict.allowed, verdict.errors or tuple(rule.id for rule in verdict.rules))
        if len(resource.id) <= _LONGEST_NAME:  # a longer name is junk from outside: not worth the memory
            epoch.remember(key, decision)
        return decision

    def require(self, principal: Principal, action: str, resource: Target = KEEP, context: Context | None = None) -> None:
        """Return if ``decide`` allows it. Raises Denied, naming the action and the roles that could."""
        if not self.decide(principal, action, resource, context).allowed:
            raise Denied(self.explain(principal, action, resource, context))

    def who_may(self, action: str, resource: Target = KEEP, context: Context | None = None) -> tuple[str, ...]:
        """The roles of which one alone suffices for ``action``."""
        stranger = "role-holder"  # is nobody's account, so that rules about one's own account do not count
        return tuple(
            role for role in self.roles if self.decide(Principal(stranger, "", (role,), ""), action, resource, context).allowed
        )

    def explain(self, principal: Principal, action: str, resource: Target = KEEP, context: Context | None = None) -> str:
        """One sentence that says whether, by which rule and, if not, who could."""
        verdict = _evaluate(self._epoch.rules, principal, action, resource, context or {})
        what = f"{action!r} on {_words(resource)}"
        if verdict.errors:
            return f"{principal.account} may not do {what}: it could not be decided ({verdict.errors[0]})"
        if verdict.allowed:
            return f"{principal.account} may do {what}: {_said(verdict.rules)}"
        if verdict.rules:
            return f"{principal.account} may not do {what}: {_said(verdict.rules)}"
        could = self.who_may(action, resource, context)
        roles = ", ".join(principal.roles) or "no role"
        return f"{principal.account} ({roles}) may not do {what}: that takes {' or '.join(could) or 'a rule that no role has'}"


def default_policy() -> str:
    """The Cedar text of the access policy that ships with modelkeep."""
    return packaged("default.cedar")


def known_actions() -> tuple[str, ...]:
    """Every action that a policy may speak about, groups apart, in the order of the schema."""
    statements = re.sub(r"//[^\n]*", "", packaged("access.cedarschema")).split(";")
    heads = [
        text.strip().partition(" in ")[0] for text in statements if text.strip().startswith("action") and "appliesTo" in text
    ]
    return tuple(name for head in heads for name in re.findall(r'"([^"]+)"', head))


def _evaluate(rules: Ruleset, principal: Principal, action: str, resource: Target, context: Context) -> Verdict:
    who = EntityRef("Account", principal.account)
    entity = {
        "uid": who.uid(),
        "attrs": {"credential": principal.credential, "models": list(principal.models)},
        "parents": [{"type": "Role", "id": str(role)} for role in principal.roles],
    }
    return rules.decide(who, action, EntityRef(*resource), context=context, entities=[entity])


def _said(rules: tuple[Rule, ...]) -> str:
    return "; ".join(dict.fromkeys(rule.says for rule in rules))


def _words(resource: Target) -> str:
    return "this keep" if resource.kind == "Keep" else f"{resource.kind.lower()} {resource.id}"
