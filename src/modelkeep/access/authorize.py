"""May this principal do that? The one function that every edge calls, after authentication and before anything else."""

import ipaddress
from types import MappingProxyType

from modelkeep.core.values import Principal
from modelkeep.errors import Denied
from modelkeep.policy.engine import KEEP, Context, Engine, Target


def authorize(
    engine: Engine,
    principal: Principal,
    action: str,
    resource: Target = KEEP,
    address: str = "",
    known: Context = MappingProxyType({}),
) -> None:
    """Return if ``principal`` may do ``action`` to ``resource``. Raises Denied, saying what it takes.

    The scope of the credential is checked here and not in the policy, so that no policy can widen it: a credential scoped to
    models acts on these models and on nothing else, and one scoped to actions does these and nothing else. ``address``: the
    caller's IP address, "" when he is at the machine itself; ``known``: what else the action's context has.
    """
    check_scope(principal, action, resource)
    context = context_of(engine, address)
    if known:
        context = {**(context or {}), **known}
    if not engine.decide(principal, action, resource, context).allowed:
        raise Denied(engine.explain(principal, action, resource, context))


def check_scope(principal: Principal, action: str, resource: Target) -> None:
    """Return if the credential of ``principal`` reaches that far. Raises Denied."""
    if principal.actions and action not in principal.actions:
        allowed = ", ".join(principal.actions)
        raise Denied(f"this credential of {principal.account} may only {allowed}, and this is {action!r}: use another")
    if principal.models and (resource.kind != "Model" or resource.id not in principal.models):
        names = ", ".join(principal.models)
        raise Denied(f"this credential of {principal.account} is only for {names}: use one that is not so scoped")


def context_of(engine: Engine, address: str) -> dict[str, str | bool] | None:
    """What a policy may know of a request: the caller's address, where a rule asks for it.

    An IPv4 address that came mapped into IPv6 is told as what it is. What is no address makes every decision a denial.
    """
    if not address or not engine.asks_context:
        return None
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return {"address": address}
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return {"address": str(mapped or parsed)}
