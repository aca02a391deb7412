"""Aliases: second names of versions, such as ``champion``, moved by statements in the log and kept with their history."""

from modelkeep.core.values import ReleaseRef, ReleaseState, Resource
from modelkeep.custody.catalogue import AliasMove, parse_alias
from modelkeep.custody.metadata import alias_statement
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.workflows.registry import Desk

TRIES = 16
ENDED = (ReleaseState.RETIRED, ReleaseState.COLLECTED)


def set_alias(desk: Desk, ref: ReleaseRef, alias: str, *, actor: str, expect: int | None = None) -> AliasMove:
    """Let ``alias`` of a model mean ``ref``; the move. It returns once every gateway knows: after their lease.

    ``expect``: the version that it must mean until now, 0 = none; None = whatever it means. Setting what is set logs nothing.
    Raises Invalid (the alias), Missing (no such release), Conflict (retired, or the alias means another version), NotTrusted,
    Unavailable.
    """
    if desk.registry.release(ref).state in ENDED:
        raise Conflict(f"{ref} is {desk.registry.book.release(ref).state} and will never be served again: no alias may name it")
    return _move(desk, (ref.name, parse_alias(alias)), ref.version, actor=actor, expect=expect)


def remove_alias(desk: Desk, name: str, alias: str, *, actor: str, expect: int | None = None) -> AliasMove:
    """Let ``alias`` of a model mean nothing; its history stays. Raises Missing (it means nothing), and as ``set_alias``."""
    if not desk.registry.refresh().catalogue.alias(name, alias):
        raise Missing(f"{name} has no alias {alias[:64]!r}")
    return _move(desk, (name, alias), 0, actor=actor, expect=expect)


def _move(desk: Desk, key: tuple[str, str], version: int, *, actor: str, expect: int | None) -> AliasMove:
    for _ in range(TRIES):
        book = desk.registry.refresh()
        standing = book.catalogue.alias(*key)
        if expect is not None and standing != expect:
            raise Conflict(f"{key[0]}@{key[1]} means version {standing or 'none'}, not {expect or 'none'}: nothing was changed")
        if standing == version:
            return book.catalogue.moves(*key)[-1]
        about = book.release(ReleaseRef(key[0], version or standing))
        statement = alias_statement(
            Resource(about.filename, about.model), key, version, standing,
            actor=actor, at=desk.clock.now_ns(), nonce=desk.entropy.token(16),
        )  # fmt: skip
        (index,) = desk.log_statements([statement])
        book = desk.registry.refresh()
        moved = next((move for move in book.catalogue.moves(*key) if move.index == index), None)
        if moved is not None:
            desk.clock.sleep(desk.lease)
            return moved
        problem = next((problem for problem in book.problems if problem.index == index), None)
        if problem is not None and not problem.honest:
            raise NotTrusted(f"{key[0]}@{key[1]} was not moved by log entry {index}: {problem.why}")
        # Somebody else moved it between our look and the log: look again, with what was expected of it.
    raise Conflict(f"{key[0]}@{key[1]} is moved by too many at once: try again")
