"""What may be served: an admission policy over the evidence on one release.

The evidence is gathered and proven elsewhere (custody, from the releases log, so that nothing unlogged counts); here it is
only judged. It comes as a mapping of plain values that must fit ``admission.cedarschema`` exactly: an attribute that is
missing, unknown or of another type means "not admitted". Profiles that ship: ``open``, ``standard`` and ``strict``, Cedar files
beside this one; an operator may load a text of their own against the same schema.
"""

from collections.abc import Mapping
from typing import NamedTuple

from modelkeep.errors import Invalid, NotAdmitted
from modelkeep.policy.cedar import EntityRef, Rule, Ruleset, Verdict, packaged, ruleset

PROFILES = ("open", "standard", "strict")
"""Names of the admission profiles that ship with modelkeep, the least demanding first."""

_GATEWAY = EntityRef("Gateway", "gateway")


class Judgement(NamedTuple):
    """``admitted``; ``rules``: those that permit it, or that stand in the way; ``errors``: why it could not be judged."""

    admitted: bool
    rules: tuple[Rule, ...]
    errors: tuple[str, ...]


class Held(NamedTuple):
    """One rule of the policy, and whether the release satisfies it: a permit that holds, or a forbid that does not."""

    rule: Rule
    satisfied: bool


class AdmissionPolicy:
    """An admission policy, parsed and validated. Immutable."""

    def __init__(self, policies: str, name: str = "custom") -> None:
        """Load Cedar text. Raises Invalid."""
        self.name = name
        self._text = policies
        self._rules = ruleset(policies, packaged("admission.cedarschema"))

    @classmethod
    def profile(cls, name: str) -> "AdmissionPolicy":
        """One of ``PROFILES``. Raises Invalid."""
        return cls(profile_text(name), name)

    def asks(self, attribute: str) -> bool:
        """Whether a rule may look at this attribute of a release. One that costs much is worked out for those alone."""
        return attribute in self._text

    def judge(self, evidence: Mapping[str, object]) -> Judgement:
        """Judge the evidence; never raises, an evaluation error is "not admitted"."""
        verdict = self._decide(self._rules, evidence)
        return Judgement(verdict.allowed, verdict.rules, verdict.errors)

    def decide(self, evidence: Mapping[str, object]) -> tuple[str, ...]:
        """The ids of the rules by which the release may be served. Raises NotAdmitted, naming every rule that failed."""
        judgement = self.judge(evidence)
        if not judgement.admitted:
            raise NotAdmitted(self.explain(evidence))
        return tuple(rule.id for rule in judgement.rules)

    def review(self, evidence: Mapping[str, object]) -> tuple[Held, ...]:
        """Every rule in the order of the text, and whether it is satisfied. Of several permits one suffices.

        Raises Invalid when the evidence could not be judged.
        """
        judgement = self.judge(evidence)
        permits = any(rule.effect == "permit" for rule in self._rules.rules)
        permitted = self._decide(self._rules.permits, evidence) if permits else Verdict(False, ())
        if judgement.errors or permitted.errors:
            raise Invalid(f"{_ref(evidence)} could not be judged: {(*judgement.errors, *permitted.errors)[0]}")
        standing = {rule.id for rule in judgement.rules if rule.effect == "forbid"}
        granting = {rule.id for rule in permitted.rules}
        return tuple(
            Held(rule, rule.id in granting if rule.effect == "permit" else rule.id not in standing)
            for rule in self._rules.rules
        )

    def explain(self, evidence: Mapping[str, object]) -> str:
        """One sentence: admitted, or which rules failed and what would satisfy each."""
        ref = _ref(evidence)
        judgement = self.judge(evidence)
        if judgement.admitted:
            return f"{ref} is admitted by the {self.name} policy"
        if judgement.errors:
            return f"{ref} is not admitted: the {self.name} policy could not be evaluated ({judgement.errors[0]})"
        if not judgement.rules:
            permits = "; ".join(_words(rule) for rule in self._rules.rules if rule.effect == "permit")
            why = permits or "no rule of it permits anything"
            return f"{ref} is {evidence.get('state')} and not admitted by the {self.name} policy: {why}"
        return f"{ref} is not admitted by the {self.name} policy: " + "; ".join(map(_words, judgement.rules))

    def _decide(self, rules: Ruleset, evidence: Mapping[str, object]) -> Verdict:
        ref = EntityRef("Release", _ref(evidence))
        entity = {"uid": ref.uid(), "attrs": dict(evidence), "parents": []}
        return rules.decide(_GATEWAY, "serve", ref, context={}, entities=[entity])


def profile_text(name: str) -> str:
    """The Cedar text of one of ``PROFILES``. Raises Invalid."""
    if name not in PROFILES:
        raise Invalid(f"there is no admission profile {name[:40]!r}: use {', '.join(PROFILES)}")
    return packaged(f"admission_{name}.cedar")


def _words(rule: Rule) -> str:
    return f"{rule.says} ({rule.mend})" if rule.mend else rule.says


def _ref(evidence: Mapping[str, object]) -> str:
    return f"{evidence.get('name')}@{evidence.get('version')}"
