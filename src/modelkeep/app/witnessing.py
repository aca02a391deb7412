"""What a keep has in its folder about its witnesses: the policy file, and the authorities of their certificates."""

import re
from pathlib import Path

from modelkeep.errors import Invalid, Missing, Unavailable
from modelkeep.ledger.quorum import LogPolicy, parse_policy

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def inside(directory: Path, name: str, setting: str) -> Path:
    """The file in the keep's folder that a setting names. Raises Invalid."""
    if not _NAME.match(name):
        raise Invalid(f"{setting} is {name[:80]!r}: name a file in the keep's folder")
    return directory / name


class PolicyFile:
    """The witness policy in a keep's folder, read anew at every look and parsed when it changed."""

    def __init__(self, directory: Path, name: str) -> None:
        """``name``: the setting ``witness.policy``, "" when no witness is asked for. Raises Invalid."""
        self._path = inside(directory, name, "witness.policy") if name else None
        self._last: tuple[bytes, LogPolicy] | None = None

    def read(self) -> LogPolicy | None:
        """The policy in force, the same object until it changes; None when no witness is asked for.

        Raises Missing (it is gone: nobody stops asking for witnesses by deleting a file), Invalid, Unavailable.
        """
        if self._path is None:
            return None
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            raise Missing(f"{self._path} is missing, and the setting witness.policy asks for it: restore it") from None
        except OSError as cause:
            raise Unavailable(f"cannot read {self._path}: {cause.strerror}") from cause
        if self._last is None or self._last[0] != data:
            self._last = data, parse_policy(data)
        return self._last[1]
