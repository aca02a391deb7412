"""Objects that hold secrets: they print without them, and are neither pickled nor copied."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

T = TypeVar("T", bound=type)


def holds_secrets(*shown: str) -> Callable[[T], T]:
    """A class whose representation has the fields ``shown`` and no other, and that pickling and copying refuse."""

    def fields(self: Any) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in shown]

    def words(self: Any) -> str:
        said = "".join(f"{name}={value!r}, " for name, value in fields(self))
        return f"{type(self).__name__}({said}…)"

    def mend(kind: T) -> T:
        setattr(kind, "__rich_repr__", fields)  # noqa: B010  # mypy lets nobody assign a method
        setattr(kind, "__repr__", words)  # noqa: B010
        return never_pickled(kind)

    return mend


def never_pickled(kind: T) -> T:
    """A class that pickling and copying refuse, and that says itself how it is represented."""

    def refuse(self: Any, _protocol: Any) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} holds secrets: it is neither pickled nor copied")

    setattr(kind, "__reduce_ex__", refuse)  # noqa: B010
    return kind
