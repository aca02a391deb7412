"""The next version of a name: taken, and a pending record of it left, in one step."""

import contextlib
from collections.abc import Callable, Sequence

from modelkeep.core.ports import Change, Record, Records
from modelkeep.core.values import ReleaseRef
from modelkeep.custody.releases import Counter
from modelkeep.errors import Conflict, Missing

_TRIES = 64


def reserve_version(
    records: Records,
    kinds: tuple[str, str],
    name: str,
    *,
    last: Callable[[Sequence[Record]], int],
    pending: Callable[[int], bytes],
) -> Record:
    """Leave the record of the next version of ``name``, as ``pending`` makes it. No version is given twice.

    ``kinds``: of counters and of the records, whose keys are ``name@version``; ``last``: the highest version that the log has
    ever had, asked with the records that there are, once the counter was read: who takes a version meanwhile makes it asked
    again. Raises what ``last`` raises, Conflict (too many at once), Unavailable.
    """
    counters, kind = kinds
    for _ in range(_TRIES):
        try:
            counter = records.get(counters, name)
            given, expected = Counter.parse(counter.body or b"").last, counter.revision
        except Missing:
            given, expected = 0, 0
        found = list(records.scan(kind, f"{name}@"))
        known = (ReleaseRef.parse(record.key).version for record in found)
        version = max(given, last(found), *known, 0) + 1
        key, body = f"{name}@{version}", pending(version)
        with contextlib.suppress(Conflict):
            taken = Change(counters, name, Counter(version).encode(), expected)
            return Record(kind, key, body, records.commit([taken, Change(kind, key, body, 0)]))
    raise Conflict(f"no version of {name} could be reserved: too many add to it at once, try again")
