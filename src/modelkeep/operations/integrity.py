"""The integrity pass: is every sealed body still the bytes that the signed statements name? No key is needed."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from modelkeep.core.values import Digest, ReleaseRef
from modelkeep.errors import Missing, NotTrusted

KIND = "integrity"
LATEST = "latest"


class Finding(msgspec.Struct, frozen=True):
    """One damaged body: the release, which of its bodies (``model`` or ``profile``), and one sentence."""

    release: str
    body: str
    problem: str


class IntegrityPass(msgspec.Struct, frozen=True):
    """One pass. ``started``, ``finished``: Unix nanoseconds; ``checked``: bodies read."""

    started: int
    finished: int
    checked: int
    findings: tuple[Finding, ...]


class Expected(msgspec.Struct, frozen=True):
    """What the log says must be in the blob store."""

    release: ReleaseRef
    body: str
    sealed: Digest


def examine(expected: Iterable[Expected], check: Callable[[Digest], None]) -> Iterator[Finding | None]:
    """Check each body with ``check`` (raises NotTrusted, Missing); yields None for a sound one.

    Unavailable passes through: a store that cannot be read says nothing about its bytes.
    """
    for item in expected:
        try:
            check(item.sealed)
        except (NotTrusted, Missing) as problem:
            yield Finding(str(item.release), item.body, str(problem))
        else:
            yield None
