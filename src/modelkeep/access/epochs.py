"""The state of the place that counts shared limits, by its id, in the records: so one that forgot does not pass for new."""

import msgspec

from modelkeep.core.ports import Change, Record, Records
from modelkeep.core.records import parse_record
from modelkeep.core.values import to_json
from modelkeep.errors import Conflict, Missing

EPOCH = "limit-epoch"
"""Record kind; its one key is ``shared``."""

_KEY = "shared"


class Epoch(msgspec.Struct, frozen=True):
    """``id``: what the place called its state; "" before its first answer."""

    id: str = ""


class KeptEpoch:
    """The id of the state that was last seen."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def claim(self) -> tuple[str, bool]:
        """The id that was kept last, and whether there never was one: that is said once, to the first who asks.

        Whoever was told so and died before the place answered leaves an empty id: the next one takes the state for lost, which
        is safe. Raises NotTrusted (damaged), Unavailable.
        """
        try:
            return _parse(self._records.get(EPOCH, _KEY)).id, False
        except Missing:
            pass
        try:
            self._records.commit([Change(EPOCH, _KEY, to_json(Epoch()), 0)])
        except Conflict:  # another gateway was first
            return _parse(self._records.get(EPOCH, _KEY)).id, False
        return "", True

    def keep(self, epoch: str) -> None:
        """Remember ``epoch``. Raises Unavailable."""
        self._records.commit([Change(EPOCH, _KEY, to_json(Epoch(epoch)))])


def _parse(record: Record) -> Epoch:
    return parse_record(record, Epoch, "what the limits' store knew")
