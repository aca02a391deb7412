"""Pictures in folders, one a class: ``x``, shape (n, height, width) or (n, height, width, channels), and ``y``, the folder.

Pillow reads them. All have one size; grey stays grey, and colours are RGB or RGBA.
"""

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelkeep.core.tables import Column, Table
from modelkeep.errors import Invalid

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MAX_PIXELS = 1 << 26
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
_MODES = {"L": "L", "1": "L", "RGB": "RGB", "P": "RGB", "RGBA": "RGBA"}


class ImageRows:
    """``files``: name (``class/picture.png``) to what gives its bytes, in the order of the rows.

    Raises Invalid (no pictures, one outside a folder of a class, no Pillow).
    """

    def __init__(self, files: Mapping[str, Callable[[], bytes]], kinds: Mapping[str, str] | None = None) -> None:
        self._files, self.rows = list(files.items()), len(files)
        if not self._files:
            raise Invalid(f"there are no pictures ({', '.join(ENDINGS)}) in folders of classes here")
        for name in files:
            unfit = name.count("/") != 1 or name.split("/")[0] in ("", ".", "..") or not name.isprintable()
            if unfit or not name.lower().endswith(ENDINGS):
                raise Invalid(f"{name[:80]!r} is no picture in the folder of a class: CLASS/NAME with {', '.join(ENDINGS)}")
        self._first = self._picture(*self._files[0])
        self.names = ["x", "y"]
        self.kinds = {"x": f"|u1[{'x'.join(map(str, self._first.shape))}]", "y": "text"}
        if kinds is not None and dict(kinds) != self.kinds:
            raise Invalid("the folder does not have the pictures that it had when it was added")

    def batches(self, size: int, columns: Sequence[str]) -> Iterator[Table]:
        """``size`` pictures at a time. Raises Invalid (no picture, of another size or kind, or too large)."""
        for at in range(0, len(self._files), size):
            part = self._files[at : at + size]
            made: dict[str, Column] = {}
            if "x" in columns:
                made["x"] = np.empty((len(part), *self._first.shape), np.uint8)
                for row, (name, read) in enumerate(part):
                    made["x"][row] = self._alike(name, self._picture(name, read))
            if "y" in columns:
                made["y"] = np.array([name.split("/")[0] for name, _ in part], object)
            yield Table({name: made[name] for name in columns})

    def unpacked(self, columns: Sequence[str]) -> int:
        """Bytes that ``columns`` have in memory."""
        return len(self._files) * (self._first.nbytes * ("x" in columns) + 8)

    def _alike(self, name: str, found: NDArray[np.uint8]) -> NDArray[np.uint8]:
        if found.shape != self._first.shape:
            raise Invalid(
                f"{name[:80]!r} has the shape {found.shape}, and the first picture {self._first.shape}: make them alike"
            )
        return found

    def _picture(self, name: str, read: Callable[[], bytes]) -> NDArray[np.uint8]:
        pillow, raw = _pillow(), read()
        try:
            with pillow.open(io.BytesIO(raw), formats=_FORMATS) as found:
                if found.width * found.height > MAX_PIXELS or found.mode not in _MODES:
                    raise Invalid(
                        f"{name[:80]!r} is {found.mode}, {found.width} x {found.height}: grey, RGB and RGBA of 8 bits are read"
                    )
                return np.asarray(found.convert(_MODES[found.mode]), np.uint8)
        except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError, pillow.DecompressionBombWarning):
            raise Invalid(f"{name[:80]!r} is damaged, or no picture of the kinds that are read") from None


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise Invalid("folders of pictures need Pillow: 'pip install pillow'") from None
    return Image
