"""The integrity pass: is what is stored still what the signed statements name? No key is needed."""

from collections.abc import Callable, Iterable, Iterator

import msgspec

from modelkeep.core.values import ReleaseRef
from modelkeep.errors import NotTrusted

KIND, LATEST = "integrity", "latest"
"""Record kind and key of the last pass."""


class Finding(msgspec.Struct, frozen=True):
    """One damaged release and one sentence about the first damage found."""

    release: ReleaseRef
    problem: str


class IntegrityPass(msgspec.Struct, frozen=True):
    """One pass. ``finished``: Unix nanoseconds; ``checked``: releases; ``findings``: what is damaged, in words;
    ``quarantined``: releases that this pass put into quarantine."""

    finished: int
    checked: int
    findings: tuple[str, ...]
    quarantined: tuple[str, ...]


def examine(releases: Iterable[ReleaseRef], check: Callable[[ReleaseRef], None]) -> Iterator[Finding]:
    """Check each release with ``check`` (raises NotTrusted) and yield what is damaged.

    Unavailable passes through: a store that cannot be read says nothing about its bytes.
    """
    for ref in releases:
        try:
            check(ref)
        except NotTrusted as problem:
            yield Finding(ref, str(problem))
