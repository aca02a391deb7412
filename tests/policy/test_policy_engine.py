import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied, Invalid
from modelkeep.policy import engine as room
from modelkeep.policy.cedar import packaged
from modelkeep.policy.engine import KEEP, Engine, account, dataset, default_policy, known_actions, model

ENGINE = Engine()
D, M, A, X = Role.DATA_SCIENTIST, Role.ML_ENGINEER, Role.ANALYST, Role.ADMIN

# action -> (what it is done to, the roles that may)
MATRIX = {
    "list": (KEEP, {D, M, A, X}),
    "show": (model("m"), {D, M, A, X}),
    "verify": (model("m"), {D, M, A, X}),
    "log.read": (KEEP, {D, M, A, X}),
    "policy.read": (KEEP, {D, M, A, X}),
    "policy.set": (KEEP, {X}),
    "privacy.budget": (KEEP, {X}),
    "privacy.return": (KEEP, {X}),
    "attest": (model("m"), {D, M, X}),
    "approve": (model("m"), {D, M, X}),
    "publish": (model("m"), {D, M, X}),
    "export": (model("m"), {D, X}),
    "run.record": (KEEP, {D, X}),
    "data.add": (dataset("loans"), {D, X}),
    "data.list": (KEEP, {D, M, A, X}),
    "promote": (model("m"), {M, X}),
    "quarantine": (model("m"), {M, X}),
    "reinstate": (model("m"), {M, X}),
    "retire": (model("m"), {M, X}),
    "alias": (model("m"), {M, X}),
    "scan": (model("m"), {M, X}),
    "metadata": (model("m"), {D, M, X}),
    "card.read": (model("m"), {D, M, X}),
    "hold": (model("m"), {X}),
    "collect": (KEEP, {X}),
    "intel.read": (KEEP, {D, M, A, X}),
    "intel.check": (model("m"), {D, M, X}),
    "intel.import": (KEEP, {X}),
    "bom.record": (model("m"), {D, M, X}),
    "predict": (model("m"), {A, X}),
    "explain": (model("m"), {A, X}),
    "status": (KEEP, {D, M, X}),
    "trace": (model("m"), {M, X}),
    "metrics.read": (KEEP, {M, X}),
    "incident.read": (KEEP, {M, X}),
    "incident.close": (KEEP, {M, X}),
    "audit.erase": (KEEP, {X}),
    "log.archive": (KEEP, {X}),
    "backup": (KEEP, {X}),
    "audit.read": (KEEP, {X}),
    "review": (account("other"), {X}),
    "calibrate": (model("m"), {X}),
    "user.add": (KEEP, {X}),
    "user.role": (account("other"), {X}),
    "user.disable": (account("other"), {X}),
    "user.enable": (account("other"), {X}),
    "user.reset": (account("other"), {X}),
    "user.list": (KEEP, {X}),
    "key.issue": (account("other"), {X}),
    "key.list": (account("other"), {X}),
    "key.quota": (account("other"), {X}),
    "key.rotate": (account("other"), {X}),
    "key.revoke": (account("other"), {X}),
    "session.list": (account("other"), {X}),
    "session.revoke": (account("other"), {X}),
    "mfa.own": (account("other"), {X}),
    "mfa.require": (account("other"), {X}),
    "mfa.reset": (account("other"), {X}),
    "step-up.approve": (account("other"), {X}),
    "password.change": (account("other"), {X}),
    "whoami": (account("other"), {X}),
    "trust.show": (KEEP, {D, M, A, X}),
    "trust.change": (KEEP, {X}),
    "keys.show": (KEEP, {X}),
    "keys.rotate": (KEEP, {X}),
    "keys.destroy": (KEEP, {X}),
    "keys.move": (KEEP, {X}),
    "keys.passwd": (KEEP, {X}),
    "keys.recover": (KEEP, {X}),
    "upgrade": (KEEP, {X}),
    "audit.handover": (KEEP, {X}),
}


def who(*roles, name="anna", models=()):
    return Principal(name, "sub_0", tuple(roles), "key:1", models)


@pytest.mark.parametrize("action", MATRIX)
def test_who_may_what(action):
    target, allowed = MATRIX[action]
    assert {role for role in Role if ENGINE.decide(who(role), action, target).allowed} == allowed
    assert set(ENGINE.who_may(action, target)) == allowed
    assert not ENGINE.decide(who(), action, target).allowed


def test_the_matrix_above_names_every_action_of_the_schema():
    for action in MATRIX:
        assert f'"{action}"' in packaged("access.cedarschema")
    lines = [line.partition("//")[0] for line in packaged("access.cedarschema").split("\n")]
    named = {part for line in lines for part in line.split('"')[1::2]}
    groups = {"train", "evaluate", "export-models", "deploy", "update", "monitor", "use", "read", "administer", "own"}
    assert named - groups == {*MATRIX, "data.read", "data.extend", "data.grant", "data.remove"} == set(known_actions())


def reading(*, fits=True, granted=False, owner=False, personal=True):
    return {"purpose": "credit", "fits": fits, "granted": granted, "owner": owner, "personal": personal}


@pytest.mark.parametrize(
    ("context", "readers", "grantors"),
    [
        (reading(), set(), {X}),
        (reading(granted=True), {D, M, A, X}, {X}),
        (reading(owner=True), {D, M, A, X}, {D, M, A, X}),
        (reading(granted=True, fits=False), set(), {X}),
        (reading(owner=True, fits=False), set(), {D, M, A, X}),
    ],
)
def test_who_may_read_a_data_set_and_grant_it(context, readers, grantors):
    loans = dataset("loans")
    assert {role for role in Role if ENGINE.decide(who(role), "data.read", loans, context).allowed} == readers
    for action in ("data.grant", "data.remove"):
        assert {role for role in Role if ENGINE.decide(who(role), action, loans, context).allowed} == grantors


@pytest.mark.parametrize(("granted", "adders"), [(False, {X}), (True, {D, M, A, X})])
def test_who_may_add_to_a_data_set_that_somebody_else_began(granted, adders):
    known = {"granted": granted}
    assert {role for role in Role if ENGINE.decide(who(role), "data.extend", dataset("loans"), known).allowed} == adders
    assert not ENGINE.decide(who(X), "data.extend", dataset("loans")).allowed  # nobody looked what was granted


def test_data_are_not_read_where_nobody_says_what_for():
    assert not ENGINE.decide(who(X), "data.read", dataset("loans")).allowed


def test_the_rules_about_data_do_not_ask_for_everybodys_address():
    assert not ENGINE.asks_context
    rule = 'permit(principal, action == Action::"predict", resource) when { context has address };'
    assert Engine('@id("a")' + rule).asks_context


OWN = ["key.rotate", "key.revoke", "session.list", "session.revoke", "password.change", "whoami", "mfa.own", "step-up.approve"]


@pytest.mark.parametrize("action", OWN)
def test_ones_own_account(action):
    assert ENGINE.decide(who(A), action, account("anna")).allowed
    assert not ENGINE.decide(who(A), action, account("bert")).allowed


def test_nobody_issues_themselves_keys():
    assert not ENGINE.decide(who(A), "key.issue", account("anna")).allowed


def test_roles_add_up():
    assert ENGINE.decide(who(D, A), "predict", model("m")).allowed
    assert ENGINE.decide(who(D, A), "export", model("m")).allowed


def test_a_refusal_says_who_could():
    with pytest.raises(Denied, match=r"anna \(analyst\) may not do 'promote' on model m: that takes ml_engineer or admin"):
        ENGINE.require(who(A), "promote", model("m"))
    assert ENGINE.explain(who(M), "promote", model("m")).endswith("ML engineers deploy, monitor and update models")
    ENGINE.require(who(M), "promote", model("m"))


def test_an_undecidable_request_is_denied_and_says_so():
    with pytest.raises(Denied, match="could not be decided"):
        ENGINE.require(who(X), "no-such-action")
    with pytest.raises(Denied, match="could not be decided"):
        ENGINE.require(who(X), "promote", account("anna"))  # not a thing that can be promoted
    with pytest.raises(Denied, match="could not be decided"):
        ENGINE.require(who(X), "list", KEEP, {"address": "not an address"})


def test_a_policy_may_look_at_the_address():
    engine = Engine(
        default_policy()
        + '@id("office") @says("only from the office network") forbid (principal, action, resource)'
        + ' unless { context has address && context.address.isInRange(ip("10.0.0.0/8")) };'
    )
    assert engine.decide(who(X), "list", KEEP, {"address": "10.1.2.3"}).allowed
    assert not engine.decide(who(X), "list", KEEP, {"address": "192.0.2.1"}).allowed
    assert not engine.decide(who(X), "list").allowed  # an unknown address is not in the range
    assert "only from the office network" in engine.explain(who(X), "list")


def test_a_new_policy_takes_effect_at_once_and_forgets_old_decisions():
    engine = Engine()
    assert engine.decide(who(A), "predict", model("m")).allowed
    engine.load('@id("admin") permit (principal in Role::"admin", action, resource);')
    assert engine.epoch == 2
    assert not engine.decide(who(A), "predict", model("m")).allowed
    with pytest.raises(Invalid):
        engine.load("permit (")
    assert engine.epoch == 2
    assert not engine.decide(who(A), "predict", model("m")).allowed


def test_a_decision_under_way_during_a_change_is_not_remembered_by_the_new_policy():
    engine = Engine()
    old = engine._epoch
    engine.load('@id("admin") permit (principal in Role::"admin", action, resource);')
    old.remember((who(A), "predict", model("m")), room.Decision(True, ()))
    assert not engine.decide(who(A), "predict", model("m")).allowed


def test_a_change_of_role_is_another_question():
    assert ENGINE.decide(who(A), "predict", model("m")).allowed
    assert not ENGINE.decide(who(D), "predict", model("m")).allowed


def test_the_cache_is_bounded_and_holds_no_junk(monkeypatch):
    monkeypatch.setattr(room, "CACHE_SIZE", 8)
    engine = Engine()
    for number in range(40):
        engine.decide(who(A), "predict", model(f"m{number}"))
        engine.decide(who(A), "predict", model("x" * 65 + str(number)))
    assert len(engine._epoch.decisions) == 8
    assert all(len(key[2].id) <= 64 for key in engine._epoch.decisions)


@given(
    st.lists(st.sampled_from(list(Role)), max_size=3), st.sampled_from(list(MATRIX)), st.text(max_size=12), st.text(max_size=12)
)
@settings(max_examples=60, deadline=None)
def test_a_remembered_decision_is_the_decision(roles, action, name, target):
    principal = Principal(name, "sub", tuple(roles), "c")
    for resource in (model(target), account(target)):
        first = ENGINE.decide(principal, action, resource)
        assert ENGINE.decide(principal, action, resource) == first == Engine().decide(principal, action, resource)
        if Role.ADMIN not in roles and name != target:
            assert not ENGINE.decide(principal, "user.role", resource).allowed
