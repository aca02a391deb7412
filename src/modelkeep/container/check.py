"""What can be said of a sealed body with no key at all: its kind of damage, and whether it is the one that was signed."""

import hashlib

from modelkeep.container.layout import FOOTER_SIZE, HEADER_SIZE, MAGIC, MIN_BODY, Header, check_footer, check_header
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.core.values import Digest
from modelkeep.errors import NotTrusted
from modelkeep.formats.detect import Format, detect

_PIECE = 4 << 20
_PREFIX = 4096


def check_body(reader: Reader, sealed_digest: Digest) -> None:
    """Check, without a key, that a stored body is whole and is the one called ``sealed_digest``.

    Raises NotTrusted with one line that names the damage: plaintext, foreign, future version, cut or appended to, altered.
    """
    read_ends(reader)
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_PIECE, reader.size)))
    for offset in range(0, reader.size, _PIECE):
        piece = buffer[: min(_PIECE, reader.size - offset)]
        reader.read_into(offset, piece)
        digest.update(piece)
    if "sha256:" + digest.hexdigest() != sealed_digest:
        raise NotTrusted(f"the sealed file was altered: its SHA-256 is {digest.hexdigest()}, and {sealed_digest} was signed")


def suite_of(reader: Reader) -> int:
    """The cipher suite of a body or standalone file; needs no key. Raises NotTrusted (not a container that is read here)."""
    prefix = read_bytes(reader, 0, min(_PREFIX, reader.size))
    if not prefix.startswith(MAGIC):
        raise NotTrusted(_what_else(prefix))
    if len(prefix) < MIN_BODY:
        raise NotTrusted(f"the sealed file has {reader.size} bytes: it was cut off")
    return check_header(prefix[:HEADER_SIZE]).suite


def read_ends(reader: Reader) -> tuple[Header, int]:
    """(header, length of the encrypted index) of a body whose header and footer hold. Raises NotTrusted."""
    prefix = read_bytes(reader, 0, min(_PREFIX, reader.size))
    if not prefix.startswith(MAGIC):
        raise NotTrusted(_what_else(prefix))
    if reader.size < MIN_BODY:
        raise NotTrusted(f"the sealed file has {reader.size} bytes: it was cut off")
    header = check_header(prefix[:HEADER_SIZE])
    footer = read_bytes(reader, reader.size - FOOTER_SIZE, FOOTER_SIZE)
    return header, check_footer(footer, reader.size)


def _what_else(prefix: bytes) -> str:
    if not prefix:
        return "the sealed file is empty: it was cut off"
    if MAGIC.startswith(prefix):
        return f"the sealed file has {len(prefix)} bytes: it was cut off"
    found = detect(prefix)
    if found is Format.UNKNOWN:
        return "this is not a modelkeep container: it does not begin with the container's magic bytes"
    return f"this is {found.article}, and not a sealed file: someone put plaintext in its place"
