"""The corpus of the scanner, made anew each time: files that must not be called clean, and files that should be."""

from functools import cache

from archive_attacks import archive_attacks
from benign_files import benign_files
from other_attacks import other_attacks
from pickle_attacks import pickle_attacks


@cache
def malicious() -> dict[str, bytes]:
    """By name. Nothing here is ever loaded."""
    return pickle_attacks() | archive_attacks() | other_attacks()


@cache
def benign() -> dict[str, bytes]:
    """By name, as their libraries wrote them."""
    return benign_files()
