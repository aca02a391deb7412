"""Cedar's traps: each is shown to exist in Cedar itself, then shown to be closed."""

import cedarpy
import pytest

from modelkeep.errors import Invalid
from modelkeep.policy.cedar import MAX_POLICY_BYTES, EntityRef, Ruleset, ruleset

SCHEMA = """
entity User;
entity Thing = { size: Long, label?: String };
action "groups";
action "use" in [Action::"groups"] appliesTo { principal: [User], resource: [Thing], context: { level?: Long } };
"""
PERMIT = '@id("all") permit (principal, action, resource);\n'
USER, THING = EntityRef("User", "u"), EntityRef("Thing", "t")


def decide(policies, *, action="use", attrs=None, context=None):
    entity = {"uid": THING.uid(), "attrs": {"size": 1} if attrs is None else attrs, "parents": []}
    return Ruleset(policies, SCHEMA).decide(USER, action, THING, context=context or {}, entities=[entity])


def test_the_trap_is_real_a_forbid_that_errors_is_skipped_by_cedar():
    policies = cedarpy.PolicySet.from_str(PERMIT + "forbid (principal, action, resource) unless { context.level < 3 };")
    request = {"principal": 'User::"u"', "action": 'Action::"use"', "resource": 'Thing::"t"', "context": {}}
    answer = cedarpy.is_authorized(request, policies, "[]")
    assert answer.allowed and answer.diagnostics.errors


def test_a_policy_that_could_error_on_a_missing_attribute_does_not_load():
    with pytest.raises(Invalid, match="optional attribute `level`"):
        Ruleset(PERMIT + '@id("f") forbid (principal, action, resource) unless { context.level < 3 };', SCHEMA)


@pytest.mark.parametrize(
    "attrs", [{}, {"size": "1"}, {"size": True}, {"size": 1.5}, {"size": 2**64}, {"size": None}, {"size": 1, "x": 1}]
)
def test_an_entity_that_does_not_fit_the_schema_is_denied(attrs):
    verdict = decide(PERMIT, attrs=attrs)
    assert not verdict.allowed and verdict.errors


@pytest.mark.parametrize("context", [{"levle": 1}, {"level": "high"}, {"level": None}])
def test_a_context_that_does_not_fit_the_schema_is_denied(context):
    verdict = decide(PERMIT, context=context)
    assert not verdict.allowed and verdict.errors


def test_an_error_while_evaluating_is_denied_even_when_a_permit_holds():
    overflow = PERMIT + '@id("f") forbid (principal, action, resource) when { resource.size * 9223372036854775807 > 5 };'
    assert not decide(overflow, attrs={"size": 1}).allowed  # the forbid holds
    verdict = decide(overflow, attrs={"size": 3})  # the forbid overflows: Cedar alone would allow
    assert not verdict.allowed and "overflow" in verdict.errors[0]


def test_an_unknown_action_is_denied_even_when_everything_is_permitted():
    assert decide(PERMIT).allowed
    assert not decide(PERMIT, action="destroy").allowed


def test_action_groups_count():
    assert decide('@id("g") permit (principal, action in Action::"groups", resource);').allowed


@pytest.mark.parametrize(
    ("policies", "complaint"),
    [
        ("permit (", "parsed"),
        ("", "empty"),
        ("permit (principal, action, resource);", "@id"),
        (PERMIT + PERMIT, "twice"),
        ('@id("t") permit (principal == ?principal, action, resource);', "template"),
        ('@id("a") permit (principal, action == Action::"lst", resource);', "unrecognized action"),
        ('@id("a") permit (principal in Rolle::"x", action, resource);', "Rolle"),
        ('@id("a") permit (principal, action, resource) when { resource.sise > 1 };', "sise"),
        ("/" * (MAX_POLICY_BYTES + 1), "limit"),
    ],
)
def test_a_bad_policy_is_refused_at_load(policies, complaint):
    with pytest.raises(Invalid, match=complaint):
        Ruleset(policies, SCHEMA)


@pytest.mark.parametrize(
    "deep",
    [
        "(" * 2000 + "true" + ")" * 2000,
        "[" * 2000 + "]" * 2000 + " == []",
        "{a: " * 2000 + "1" + "}" * 2000 + " == {}",
        "true" + " || true" * 60_000,
        "1" + " + 1" * 60_000 + " > 0",
        "resource" + ".size" * 60_000 + " > 0",
        "if true then " * 2000 + "true" + " else true" * 2000,
        "(" * 2000 + 'resource.kind == "' + ")" * 2000,
    ],
    ids=lambda text: text[:12],
)
def test_a_text_that_would_overflow_the_parser_never_gets_there(deep):
    with pytest.raises(Invalid, match="nests too deep at line 2"):
        Ruleset(f'@id("x") permit (principal, action, resource) when {{\n{deep} }};', SCHEMA)


def test_what_nests_is_counted_rule_by_rule_and_not_in_strings_or_comments():
    text = '@id("{0}") @says("{1}") permit (principal, action, resource) when {{ {2} }}; // {1}\n'
    busy = " || ".join(["resource.size > 1"] * 60)
    rules = [text.format(number, "((((( && " * 60, busy) for number in range(20)]
    assert len(Ruleset("".join(rules), SCHEMA).rules) == 20


def test_a_name_cannot_break_out_of_its_quotes():
    evil = EntityRef("Thing", 't" || "a" == "a')
    entity = {"uid": evil.uid(), "attrs": {"size": 1}, "parents": []}
    only = Ruleset('@id("one") permit (principal, action, resource == Thing::"t");', SCHEMA)
    assert not only.decide(USER, "use", evil, context={}, entities=[entity]).allowed


def test_rules_keep_the_order_and_words_of_the_text():
    rules = Ruleset('@id("b") @says("bees") @mend("hive") permit (principal, action, resource);' + PERMIT, SCHEMA).rules
    assert [(rule.id, rule.says, rule.mend, rule.effect) for rule in rules] == [
        ("b", "bees", "hive", "permit"),
        ("all", "all", "", "permit"),
    ]


def test_a_text_is_read_once_and_a_bad_one_is_refused_each_time():
    assert ruleset(PERMIT, SCHEMA) is ruleset(PERMIT, SCHEMA)
    assert ruleset(PERMIT, SCHEMA) is not ruleset(PERMIT + "\n", SCHEMA)
    for _ in range(2):
        with pytest.raises(Invalid, match="the policy is empty"):
            ruleset("", SCHEMA)
