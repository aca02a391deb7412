"""What a backup holds: its manifest. docs/backup.md specifies the file around it.

A backup is one sealed file of two parts: the manifest, and after it all that it lists, one thing after the other.
"""

import re
from collections.abc import Sequence

import msgspec

from modelkeep.core.values import Digest, to_json
from modelkeep.errors import Invalid, NotTrusted

FORMAT = 1
MANIFEST, CONTENT = "backup.json", "content"
"""The two parts of the sealed source."""

RECORDS = "records"
"""Name of the dump of all records in the content: MessagePack, an array of arrays (kind, key, body)."""

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
WITNESS = {"policy": "witness/policy", "ca": "witness/ca"}
"""Names in the content of the files that the settings ``witness.…`` name, whatever they are called in the keep."""

_ROOMS = ("keys", "log", "blobs", "tls", "intel", "witness")
_FILES = ("modelkeep.toml", "trust.toml", RECORDS)


class Part(msgspec.Struct, frozen=True, array_like=True):
    """One file of the keep: its relative path, and its size in bytes."""

    name: str
    size: int


class Manifest(msgspec.Struct, frozen=True):
    """What is in a backup, and where it belongs.

    ``origin``: the keep's; ``made``: Unix nanoseconds; ``log``, ``size``, ``root``: origin and checkpoint (root in hex) of its
    releases log; ``revision``: of the records; ``parts``: what the content is, in order; ``outside``: bodies that the keep has
    in a store outside its folder, and that are not in here.
    """

    origin: str
    made: int
    log: str
    size: int
    root: str
    revision: int
    parts: tuple[Part, ...]
    outside: tuple[Digest, ...] = ()
    format: int = FORMAT

    @property
    def content_size(self) -> int:
        """Bytes of all parts together."""
        return sum(part.size for part in self.parts)


def encode_manifest(manifest: Manifest) -> bytes:
    """Canonical JSON. Raises Invalid (two parts of one name, or one that no keep has)."""
    check_parts(manifest.parts)
    return to_json(manifest)


def parse_manifest(data: bytes, content_size: int) -> Manifest:
    """Read a manifest beside a content of ``content_size`` bytes. Raises NotTrusted (malformed, later format, wrong sizes)."""
    try:
        found = msgspec.json.decode(data, type=Manifest)
        check_parts(found.parts)
    except (msgspec.MsgspecError, Invalid, UnicodeDecodeError) as cause:
        raise NotTrusted(f"the backup's manifest is malformed: {cause}") from cause
    if found.format != FORMAT:
        raise NotTrusted(f"the backup has format {found.format}; this modelkeep knows format {FORMAT}")
    if found.content_size != content_size:
        raise NotTrusted(f"the backup's manifest lists {found.content_size} bytes, and there are {content_size}")
    return found


def check_parts(parts: Sequence[Part]) -> None:
    """Raises Invalid: a path that no keep has, twice the same, or a negative size. None can lead out of the folder."""
    if len({part.name for part in parts}) != len(parts):
        raise Invalid("two files of a backup have the same name")
    for part in parts:
        room, *rest = part.name.split("/")
        plain = all(_SEGMENT.match(segment) for segment in rest)
        if part.size < 0 or not plain or (part.name not in _FILES if not rest else room not in _ROOMS):
            raise Invalid(f"{part.name[:120]!r} is no file of a keep")
    names = {part.name for part in parts}
    if not {*_FILES} <= names:
        raise Invalid(f"the backup lacks {', '.join(sorted({*_FILES} - names))}")
