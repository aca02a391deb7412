"""The standalone ``.keep`` file: ``body ‖ recipient block ‖ trailer(20)``.

Key compartments, exported models and extraction profiles are such files. Rewrapping replaces block and trailer; the body stays.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from modelkeep.container.check import read_ends
from modelkeep.container.layout import MAGIC, MIN_BODY, Kind
from modelkeep.container.open import SealedFile, open_sealed
from modelkeep.container.reader import BytesReader, Reader, Window, read_bytes
from modelkeep.container.recipients import (
    MAX_BLOCK,
    Binding,
    Opener,
    Recipient,
    Stanza,
    encode_recipients,
    parse_recipients,
    unlock,
)
from modelkeep.container.seal import seal
from modelkeep.errors import NotTrusted

TRAILER_SIZE = 20
_MAGIC = b"KEEPFIL\n"


class KeepFile(NamedTuple):
    """The parts of a standalone file, none of them proven: the body, its header's hash, and the recipient block."""

    body: Window
    header_hash: bytes
    block: bytes


def pack_file(
    source: Reader, recipients: Sequence[Recipient], *, purpose: str, kind: Kind | None = None
) -> Iterator[bytes | memoryview]:
    """Seal ``source`` for ``recipients`` as a standalone file. A chunk is valid until the next one is asked for.

    ``purpose``: 1-255 bytes, such as ``keys/model-kek``; a file opens only for that purpose. ``kind``: as in ``seal``.
    Raises Invalid (no or too many recipients), NotTrusted (the source shrank), and what a recipient's ``stanza`` raises.
    """
    sealing = seal(source, kind=kind)
    yield from sealing.chunks()
    model = sealing.model
    binding = Binding(model.header_hash, model.model_digest, purpose)
    stanzas = [recipient.stanza(model.dek, binding.context()) for recipient in recipients]
    yield _tail(encode_recipients(stanzas, model.dek, binding), model.size)


def unpack_file(reader: Reader, openers: Sequence[Opener], *, purpose: str, root: bytes | None = None) -> SealedFile:
    """Open a standalone file with the first of ``openers`` that has a key to it.

    Raises NotTrusted: plaintext, foreign, future, cut, altered, other recipients, another purpose, or not the signed ``root``.
    """
    parts = split_file(reader)
    dek = unlock(parts.block, parts.header_hash, openers, purpose=purpose)
    sealed = open_sealed(parts.body, dek, root=root)
    if sealed.model_digest != parse_recipients(parts.block).model_digest:
        raise NotTrusted("the sealed file's recipient block names another source than its index: it was put together from two")
    return sealed


def pack_bytes(data: bytes, recipients: Sequence[Recipient], *, purpose: str) -> bytes:
    """``pack_file`` for a small secret in memory."""
    return b"".join(bytes(chunk) for chunk in pack_file(BytesReader(data), recipients, purpose=purpose))


def unpack_bytes(file: bytes, openers: Sequence[Opener], *, purpose: str) -> bytes:
    """``unpack_file`` for a small secret in memory."""
    return bytes(unpack_file(BytesReader(file), openers, purpose=purpose).read_source())


def rewrap_tail(
    reader: Reader, openers: Sequence[Opener], add: Sequence[Recipient], *, purpose: str, keep: Sequence[Stanza]
) -> bytes:
    """The new block and trailer (to stand after the unchanged body) with the ``keep`` stanzas and one for each of ``add``.

    Raises NotTrusted (no opener has a key), Invalid (no or too many recipients).
    """
    parts = split_file(reader)
    dek = unlock(parts.block, parts.header_hash, openers, purpose=purpose)
    binding = Binding(parts.header_hash, parse_recipients(parts.block).model_digest, purpose)
    stanzas = [*(recipient.stanza(dek, binding.context()) for recipient in add), *keep]
    return _tail(encode_recipients(stanzas, dek, binding), parts.body.size)


def split_file(reader: Reader) -> KeepFile:
    """Body and recipient block of a standalone file. Raises NotTrusted: plaintext, foreign, future, cut or appended to."""
    size = reader.size
    if size < MIN_BODY + TRAILER_SIZE or read_bytes(reader, 0, len(MAGIC)) != MAGIC:
        read_ends(reader)  # says what it is instead
        raise NotTrusted(f"the sealed file has {size} bytes: it was cut off")
    body_size, block_size, magic = struct.unpack(">QI8s", read_bytes(reader, size - TRAILER_SIZE, TRAILER_SIZE))
    if magic != _MAGIC:
        raise NotTrusted("the sealed file does not end with its trailer: it was cut off, or bytes were added to it")
    if block_size > MAX_BLOCK or body_size + block_size + TRAILER_SIZE != size:
        raise NotTrusted(
            f"the sealed file has {size} bytes, and its trailer accounts for others: it was cut, spliced or altered"
        )
    body = Window(reader, 0, body_size)
    header, _ = read_ends(body)
    return KeepFile(body, header.hash, read_bytes(reader, body_size, block_size))


def _tail(block: bytes, body_size: int) -> bytes:
    return block + struct.pack(">QI8s", body_size, len(block), _MAGIC)
