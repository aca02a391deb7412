"""May this principal do that? The one function that every edge calls, after authentication and before anything else."""

from collections.abc import Mapping

from modelkeep.core.values import Principal
from modelkeep.errors import Denied
from modelkeep.policy.engine import KEEP, Engine, Target


def authorize(
    engine: Engine, principal: Principal, action: str, resource: Target = KEEP, context: Mapping[str, str] | None = None
) -> None:
    """Return if ``principal`` may do ``action`` to ``resource``. Raises Denied, saying what it takes.

    The scope of the credential is checked here and not in the policy, so that no policy can widen it: a credential scoped to
    models acts on these models and on nothing else. ``context``: see ``Engine.decide``.
    """
    if principal.models and (resource.kind != "Model" or resource.id not in principal.models):
        names = ", ".join(principal.models)
        raise Denied(f"this credential of {principal.account} is only for {names}: use one that is not so scoped")
    if not engine.decide(principal, action, resource, context).allowed:
        raise Denied(engine.explain(principal, action, resource, context))
