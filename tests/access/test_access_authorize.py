import pytest

from modelkeep.access.accounts import OPERATOR
from modelkeep.access.authorize import authorize, context_of
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied
from modelkeep.policy.engine import KEEP, Engine, account, default_policy, model

ENGINE = Engine()


def who(*roles, models=()):
    return Principal("anna", "sub_1", tuple(roles), "key:1", models)


def test_allowed_and_denied():
    authorize(ENGINE, who(Role.ANALYST), "predict", model("a"))
    with pytest.raises(Denied, match="ml_engineer or admin"):
        authorize(ENGINE, who(Role.ANALYST), "promote", model("a"))
    with pytest.raises(Denied):
        authorize(ENGINE, who(), "list")


def test_the_operator_may_do_what_an_admin_may():
    authorize(ENGINE, OPERATOR, "keys.rotate")
    authorize(ENGINE, OPERATOR, "publish", model("a"))


@pytest.mark.parametrize("target", [KEEP, model("b"), account("anna"), model("")])
def test_a_scoped_credential_reaches_its_models_and_nothing_else(target):
    scoped = who(Role.ADMIN, models=("a",))
    authorize(ENGINE, scoped, "predict", model("a"))
    for action in ("predict", "list", "key.rotate", "user.add", "publish"):
        with pytest.raises(Denied, match="only for a"):
            authorize(ENGINE, scoped, action, target)


def test_no_policy_can_widen_the_scope():
    generous = Engine('@id("all") permit (principal, action, resource);')
    with pytest.raises(Denied):
        authorize(generous, who(Role.ADMIN, models=("a",)), "predict", model("b"))


OFFICE = Engine(
    default_policy()
    + """@id("office") @says("only from the office") forbid (principal, action in Action::"use", resource)
    unless { context has address && context.address.isInRange(ip("10.0.0.0/8")) };
    @id("abroad") @says("not from there") forbid (principal, action in Action::"read", resource)
    when { context has address && context.address.isInRange(ip("2001:db8::/32")) };"""
)


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_a_rule_sees_where_the_caller_is(address):
    authorize(OFFICE, who(Role.ANALYST), "predict", model("a"), address)
    authorize(OFFICE, who(Role.ANALYST), "list", KEEP, address)


@pytest.mark.parametrize(
    ("address", "why"), [("192.0.2.1", "office"), ("", "office"), ("10.1.2.3.4", "decided"), ("x", "decided")]
)
def test_who_is_elsewhere_or_nowhere_is_denied(address, why):
    with pytest.raises(Denied, match=why):
        authorize(OFFICE, who(Role.ANALYST), "predict", model("a"), address)


def test_a_zone_says_nothing_about_an_address():
    with pytest.raises(Denied, match="not from there"):
        authorize(OFFICE, who(Role.ANALYST), "list", KEEP, "2001:db8::1%eth0")


def test_a_policy_that_does_not_ask_is_not_told():
    assert context_of(ENGINE, "10.1.2.3") is None
    authorize(ENGINE, who(Role.ANALYST), "predict", model("a"), "junk")
