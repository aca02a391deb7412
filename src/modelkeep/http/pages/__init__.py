"""The files of control's page, as they lie in the package."""

from functools import cache
from importlib.resources import files

_KINDS = {
    "step-up": ("step-up.html", "text/html"),
    "step-up.js": ("step-up.js", "text/javascript"),
    "step-up.css": ("step-up.css", "text/css"),
}


@cache
def page(name: str) -> tuple[bytes, str]:
    """The bytes of a file by its address, and its media type."""
    file, kind = _KINDS[name]
    return files(__name__).joinpath(file).read_bytes(), kind
