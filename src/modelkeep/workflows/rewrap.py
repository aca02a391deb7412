"""Rewrap: after a rotation, wrap everything that a family's keys hold under its primary. Kilobytes change; bodies, signatures
and log stay.

Rewrapping does not revoke anyone who held a data key: that takes sealing again (workflows/reencrypt).
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from modelkeep.core.ports import Change, Record, Wrapper
from modelkeep.errors import Conflict, Missing, ModelkeepError
from modelkeep.workflows.holdings import Held, Holdings

THREADS = 8
"""Providers over a network answer in milliseconds: several questions at once, or a thousand bodies take a minute."""
BATCH = 64
"""Records in one commit: one wait for the disk for all of them. Cut off, at most these are done again."""

Progress = Callable[[str, int, int], None]
"""Told what is being done, how much of it is done, and how much there is."""


def silent(_what: str, _done: int, _total: int) -> None:
    """A progress that nobody watches."""


class Rewrapped(msgspec.Struct, frozen=True):
    """How many things were wrapped anew, and how many were wrapped under the primary already."""

    changed: int
    current: int


def rewrap(holdings: Holdings, wrapper: Wrapper, progress: Progress = silent, *, batch: int = BATCH) -> Rewrapped:
    """Wrap everything in ``holdings`` under ``wrapper`` alone. Rerun to resume: what is done is passed over.

    What does not open is left as it is; the rest is done before the first such failure is raised: NotTrusted (altered, or no
    key at hand opens it), Denied, Conflict (of no release), Unavailable.
    """
    held = holdings.scan()
    stale = [each for each in held if each.key_ids != (wrapper.key_id,)]
    failures: list[ModelkeepError] = []
    done = 0
    progress("rewrap", 0, len(stale))
    with ThreadPoolExecutor(THREADS, "modelkeep-rewrap") as pool:
        for at in range(0, len(stale), batch):
            made = pool.map(lambda each: _try(holdings, each, wrapper), stale[at : at + batch])
            done += _commit(holdings, wrapper, list(_sound(made, failures)))
            progress("rewrap", done, len(stale))
    if failures:
        raise failures[0]
    return Rewrapped(done, len(held) - len(stale))


def _try(holdings: Holdings, held: Held, wrapper: Wrapper) -> tuple[Record, bytes | ModelkeepError]:
    try:
        return held.record, holdings.again(held.record, wrapper)
    except ModelkeepError as failure:
        return held.record, failure


def _sound(
    made: Iterator[tuple[Record, bytes | ModelkeepError]], failures: list[ModelkeepError]
) -> Iterator[tuple[Record, bytes]]:
    for record, body in made:
        if isinstance(body, ModelkeepError):
            failures.append(body)
        else:
            yield record, body


def _commit(holdings: Holdings, wrapper: Wrapper, made: Sequence[tuple[Record, bytes]]) -> int:
    """Store a batch, or one by one when something changed meanwhile; how many."""
    changes = [Change(record.kind, record.key, body, record.revision) for record, body in made]
    if not changes:
        return 0
    try:
        holdings.records.commit(changes)
    except Conflict:
        return sum(_commit_one(holdings, wrapper, change) for change in changes)
    return len(changes)


def _commit_one(holdings: Holdings, wrapper: Wrapper, change: Change) -> int:
    """Store one; when it changed or went meanwhile, as it is now. Raises Conflict (it changes all the time)."""
    for _ in range(3):
        try:
            holdings.records.commit([change])
        except Conflict:
            try:
                now = holdings.records.get(change.kind, change.key)
            except Missing:
                return 0
            change = Change(now.kind, now.key, holdings.again(now, wrapper), now.revision)
        else:
            return 1
    raise Conflict(f"the {change.kind} record {change.key} changes all the time: run this again")
