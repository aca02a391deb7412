"""Disks that are full."""

from pathlib import Path


def fill(place: Path, name: str = "ballast") -> Path:
    """Leave no byte; the file that does it."""
    ballast = place / name
    with ballast.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            pass
    return ballast
