"""modelkeep: no weights in the clear, no release without evidence, no answer without a record."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelkeep import convert, lab, torch
    from modelkeep.app.filechanges import RecipientChange, reencrypt_file, rewrap_file
    from modelkeep.app.fileinspect import inspect_file
    from modelkeep.app.filekeys import Keychain
    from modelkeep.app.files import open_file, seal_file
    from modelkeep.app.keep import Keep
    from modelkeep.app.sealed import load_file, open_sealed

__version__ = "0.1.0"
__all__ = [
    "Keep",
    "Keychain",
    "RecipientChange",
    "__version__",
    "convert",
    "inspect_file",
    "lab",
    "load_file",
    "open_file",
    "open_sealed",
    "reencrypt_file",
    "rewrap_file",
    "seal_file",
    "torch",
]

_PLACES = {
    "Keep": "app.keep",
    "Keychain": "app.filekeys",
    "RecipientChange": "app.filechanges",
    "inspect_file": "app.fileinspect",
    "load_file": "app.sealed",
    "open_file": "app.files",
    "open_sealed": "app.sealed",
    "reencrypt_file": "app.filechanges",
    "rewrap_file": "app.filechanges",
    "seal_file": "app.files",
}


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that importing the package stays cheap (PEP 562)."""
    import importlib

    if name in ("convert", "lab", "torch"):
        return importlib.import_module(f"modelkeep.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(f"modelkeep.{_PLACES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
