"""modelkeep: no weights in the clear, no release without evidence, no answer without a record."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from modelkeep.app.keep import Keep

__version__ = "0.1.0"
__all__ = ["Keep", "__version__"]


def __getattr__(name: str) -> Any:
    """Load ``Keep`` on first use, so that importing the package stays cheap (PEP 562)."""
    if name == "Keep":
        from modelkeep.app.keep import Keep

        return Keep
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
