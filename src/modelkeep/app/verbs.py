"""What a verb is: one method of ``Keep``, and from its signature everything that the admin API needs to carry it.

``@verb("promote")`` marks a method with the action that policy decides on. ``table`` reads the marked methods' signatures, so
the wire form of a call has no description of its own that could drift from the method.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar, cast, get_type_hints

import msgspec

from modelkeep.errors import Invalid, Missing

P = ParamSpec("P")
R = TypeVar("R")
_ACTION = "__modelkeep_action__"


class Acting(Protocol):
    """A facade that acts for somebody."""

    def authorize(self, action: str, arguments: dict[str, Any]) -> None:
        """Raise Denied unless whoever it acts for may do ``action`` to what ``arguments`` name."""
        ...


S = TypeVar("S", bound=Acting)


class Verb(NamedTuple):
    """One verb: ``name`` on the wire, ``action`` for policy, ``params`` a struct type of its keyword arguments."""

    name: str
    action: str
    params: type[msgspec.Struct]
    result: Any
    call: Callable[..., Any]


def verb(action: str) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Make a method of the facade a verb: permission for ``action`` is checked before its body runs."""

    def mark(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @functools.wraps(method)
        def checked(self: S, *args: P.args, **kwargs: P.kwargs) -> R:
            self.authorize(action, dict(kwargs))
            return method(self, *args, **kwargs)

        setattr(checked, _ACTION, action)
        return cast(Callable[Concatenate[S, P], R], checked)  # functools.wraps loses the name of the first parameter

    return mark


def table(facade: type) -> dict[str, Verb]:
    """Every verb of ``facade`` by name."""
    found = {}
    for name, method in inspect.getmembers(facade, inspect.isfunction):
        action = getattr(method, _ACTION, None)
        if action is None:
            continue
        hints = get_type_hints(method)
        fields: list[Any] = []
        for parameter in list(inspect.signature(method).parameters.values())[1:]:
            kind = hints[parameter.name]
            required = parameter.default is inspect.Parameter.empty
            fields.append((parameter.name, kind) if required else (parameter.name, kind, parameter.default))
        params = msgspec.defstruct(f"{name}_params", fields, kw_only=True, frozen=True, forbid_unknown_fields=True)
        found[name] = Verb(name, action, params, hints["return"], method)
    return found


def call(verbs: dict[str, Verb], target: object, name: str, body: bytes) -> bytes:
    """Decode a MessagePack call, run it on ``target``, encode the result. Raises Missing, Invalid and what the verb raises."""
    if name not in verbs:
        raise Missing(f"there is no verb {name[:40]!r}")
    try:
        params = msgspec.msgpack.decode(body, type=verbs[name].params)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Invalid(f"{name}: {cause}") from cause
    return msgspec.msgpack.encode(verbs[name].call(target, **msgspec.structs.asdict(params)))
