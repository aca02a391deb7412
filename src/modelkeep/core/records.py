"""What the records hold, as values."""

from typing import TypeVar

import msgspec

from modelkeep.core.ports import Record
from modelkeep.errors import NotTrusted

T = TypeVar("T")


def parse_record(record: Record, kind: type[T], what: str, advice: str = "restore it from a backup") -> T:
    """The value in ``record``. ``what`` it is about and ``advice`` are for the message. Raises NotTrusted (damaged).

    A store may hold anything: also text that is no UTF-8, or nested without end, which msgspec tells by errors of Python's own.
    """
    try:
        return msgspec.json.decode(record.body or b"", type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise NotTrusted(f"the record of {what} is damaged: {advice}") from cause
