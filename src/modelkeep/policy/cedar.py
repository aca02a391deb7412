"""Cedar, with its traps closed.

In Cedar a policy whose condition *errors* (an attribute is missing, say) is skipped; if it was a ``forbid``, the request is
allowed. So: (1) policies are validated in strict mode against a schema when they are loaded, (2) the request and the entities
are validated against the same schema at every decision, (3) a decision that carries any diagnostics error is a denial, and
(4) templates, policies without a unique ``@id`` and duplicate ids are refused, so that every decision names its rules.

Cedar's parser recurses, natively and without a bound: a text of 4 kB, nested deep enough, ends the process that reads it. So
(5) how deep a text can nest is counted before Cedar sees it.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property, lru_cache
from importlib import resources
from typing import Any, NamedTuple

import cedarpy
import msgspec

from modelkeep.errors import Invalid

MAX_POLICY_BYTES = 1 << 20
"""A policy text larger than this is refused before it is parsed."""
_SHOWN = 5
_OF_DATA = re.compile(r'\{"Var":"context"\},"attr":"(?:purpose|fits|granted|owner|personal)"')
MAX_NESTING = 40
"""Brackets inside brackets."""
MAX_OPERATORS = 200
"""Of one policy: each may be nested in the one before it."""
_TOKEN = re.compile(
    r"//[^\n\r]*|\"(?:\\.|[^\"\\])*\"|::|(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<end>;)"
    r"|(?P<operator>&&|\|\||[=!<>]=|[<>+\-*!.?]|\b(?:if|then|else|in|is|has|like)\b)"
)
"""Comments, strings and ``::`` hold nothing that nests; a quote without its other end is passed over and hides nothing."""


class Rule(NamedTuple):
    """What a policy's annotations say: ``@id``, ``@says`` (the rule in words), ``@mend`` (what would satisfy it).

    ``needs``: the short type of the statement that would (``@needs``), "" when none does.
    """

    id: str
    effect: str
    says: str
    mend: str
    needs: str = ""


class Verdict(NamedTuple):
    """A decision: the rules that made it, and the errors that turned it into a denial."""

    allowed: bool
    rules: tuple[Rule, ...]
    errors: tuple[str, ...] = ()


class EntityRef(NamedTuple):
    """A Cedar entity uid, such as ``Model::"credit-risk"``."""

    kind: str
    id: str

    def uid(self) -> dict[str, str]:
        """The JSON form that Cedar reads."""
        return {"type": self.kind, "id": self.id}


@cache
def packaged(name: str) -> str:
    """The text of a policy or schema file that ships with modelkeep."""
    return resources.files(__package__).joinpath(name).read_text("utf-8")


class Ruleset:
    """Policies parsed and validated once; immutable."""

    def __init__(self, policies: str, schema: str) -> None:
        """Parse and validate. Raises Invalid, with the first complaints of the validator."""
        if len(policies) > MAX_POLICY_BYTES:
            raise Invalid(f"the policy has {len(policies)} characters: the limit is {MAX_POLICY_BYTES}")
        _check_depth(policies)
        try:
            self._schema, self._schema_text = cedarpy.Schema.from_str(schema), schema
            self._policies = cedarpy.PolicySet.from_str(policies)
        except ValueError as cause:
            raise Invalid(f"the policy cannot be parsed: {cause}") from cause
        result = cedarpy.validate_policies(policies, self._schema)
        if not result.validation_passed:
            found = [error.error for error in result.errors]
            more = f"; and {len(found) - _SHOWN} complaints more" if len(found) > _SHOWN else ""
            raise Invalid("the policy does not fit its schema: " + "; ".join(found[:_SHOWN]) + more)
        self._rules = _rules(policies)
        self._text = policies

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Every rule, in the order of the text."""
        return tuple(self._rules.values())

    @cached_property
    def permits(self) -> "Ruleset":
        """The permits alone: which of them hold can only be seen where no forbid does. Raises Invalid (there is none)."""
        document = json.loads(cedarpy.policies_to_json_str(self._text))
        kept = {key: policy for key, policy in document["staticPolicies"].items() if policy["effect"] == "permit"}
        text = cedarpy.policies_from_json_str(json.dumps({**document, "staticPolicies": kept})) if kept else ""
        return Ruleset(text, self._schema_text)

    @cached_property
    def mentions(self) -> frozenset["EntityRef"]:
        """Every entity that a rule names, such as ``Role::"analyst"``."""
        return frozenset(_entities(json.loads(cedarpy.policies_to_json_str(self._text))))

    @cached_property
    def asks_context(self) -> bool:
        """Whether a rule looks at the context of a request, beyond what the keep itself knows of a data set."""
        text = json.dumps(json.loads(cedarpy.policies_to_json_str(self._text)), separators=(",", ":"))
        return text.count('{"Var":"context"}') > len(_OF_DATA.findall(text))

    def decide(
        self,
        principal: EntityRef,
        action: str,
        resource: EntityRef,
        *,
        context: Mapping[str, object],
        entities: Sequence[Mapping[str, Any]],
    ) -> Verdict:
        """Evaluate one request. Never raises for a bad request or entity: that is a denial with ``errors``."""
        request = {"principal": principal.uid(), "action": {"type": "Action", "id": action}, "resource": resource.uid()}
        try:
            # The schema must be given here too: it is what adds the action groups and checks the attributes of the entities.
            parsed = cedarpy.Entities.from_json_str(json.dumps(entities), self._schema)
            request["context"] = json.dumps(context)  # type: ignore[assignment]  # the extension takes it as JSON text
            answer = cedarpy.is_authorized(request, self._policies, parsed, schema=self._schema)
        except (ValueError, TypeError) as cause:
            return Verdict(False, (), (str(cause),))
        errors = tuple(answer.diagnostics.errors)
        reasons = frozenset(answer.diagnostics.reasons)
        rules = tuple(rule for policy, rule in self._rules.items() if policy in reasons)  # in the order of the text
        return Verdict(answer.decision is cedarpy.Decision.Allow and not errors, rules, errors)


@lru_cache(maxsize=8)
def ruleset(policies: str, schema: str) -> Ruleset:
    """The same, which several keeps or parts of one may share: a process meets few texts, most often the one that ships."""
    return Ruleset(policies, schema)


def _check_depth(policies: str) -> None:
    """Check that nothing in a text is nested deeper than the parser bears. Raises Invalid, naming the line."""
    depth = operators = 0
    for token in _TOKEN.finditer(policies):
        match token.lastgroup:
            case "open":
                depth += 1
            case "close":
                depth -= 1
            case "operator":
                operators += 1
            case "end" if depth <= 0:
                depth = operators = 0
        if depth > MAX_NESTING or operators > MAX_OPERATORS:
            line = policies.count("\n", 0, token.start()) + 1
            raise Invalid(
                f"the policy nests too deep at line {line}: a rule has at most {MAX_NESTING} brackets inside each other and "
                f"{MAX_OPERATORS} operators; write it as several rules"
            )


def _entities(found: Any) -> Iterator[EntityRef]:
    """Entity uids anywhere in Cedar's JSON form of policies."""
    if isinstance(found, dict):
        if found.keys() == {"type", "id"}:
            yield EntityRef(str(found["type"]), str(found["id"]))
        for value in found.values():
            yield from _entities(value)
    elif isinstance(found, list):
        for value in found:
            yield from _entities(value)


class _Policy(msgspec.Struct):
    effect: str
    annotations: dict[str, str] = {}


class _PolicyDocument(msgspec.Struct, rename="camel"):
    static_policies: dict[str, _Policy]
    templates: dict[str, Any]


def _rules(policies: str) -> dict[str, Rule]:
    document = msgspec.json.decode(cedarpy.policies_to_json_str(policies), type=_PolicyDocument)
    if document.templates:
        raise Invalid("the policy holds a template (?principal or ?resource): write it out as a policy")
    rules: dict[str, Rule] = {}
    seen: set[str] = set()
    for policy_id, policy in document.static_policies.items():
        notes = policy.annotations
        name = notes.get("id", "")
        if not name or name in seen:
            raise Invalid(
                f"every policy needs an @id of its own, and {name!r} is {'there twice' if name else 'empty or missing'}"
            )
        seen.add(name)
        rules[policy_id] = Rule(name, policy.effect, notes.get("says", name), notes.get("mend", ""), notes.get("needs", ""))
    if not rules:
        raise Invalid("the policy is empty: it would deny everything")
    return rules
