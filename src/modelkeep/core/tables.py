"""A data set in memory: columns of equal length, by name. What reads files makes these; checks and training take them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid, Missing

Column = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """``columns``: by name, in the order of the file; first axis n of each. Numbers are float64, int64 or bool, where a missing
    one is NaN (a column of whole numbers with gaps is float64); text is an object array of ``str`` and None; pictures and other
    tensors keep their dtype and shape (n, ...).
    """

    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        """Raises Invalid (no columns, different lengths)."""
        lengths = {len(column) for column in self.columns.values()}
        if len(lengths) != 1:
            raise Invalid(f"a table needs columns of one length, not {sorted(lengths) or 'none'}")

    def __len__(self) -> int:
        """Rows."""
        return len(next(iter(self.columns.values())))

    def column(self, name: str) -> Column:
        """Raises Missing."""
        try:
            return self.columns[name]
        except KeyError:
            raise Missing(f"there is no column {name[:80]!r}: there are {', '.join(self.columns)[:400]}") from None

    def rows(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> "Table":
        """Those rows: their numbers, or a mask of shape (n,)."""
        return Table({name: column[chosen] for name, column in self.columns.items()})


def joined(parts: Sequence[Table]) -> Table:
    """The rows of all ``parts``, which have the same columns, one after the other. Raises Invalid (no part)."""
    if not parts:
        raise Invalid("a table needs at least one part")
    if len(parts) == 1:
        return parts[0]
    return Table({name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})
