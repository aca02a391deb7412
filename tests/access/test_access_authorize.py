import pytest

from modelkeep.access.accounts import OPERATOR
from modelkeep.access.authorize import authorize
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied
from modelkeep.policy.engine import KEEP, Engine, account, model

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
