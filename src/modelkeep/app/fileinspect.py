"""What a sealed file shows to somebody without any key, and what of that is proven by its bytes alone."""

import hashlib
from pathlib import Path

from msgspec import Struct

from modelkeep.adapters.tails import SealedReader
from modelkeep.app.filekeys import stanza_id
from modelkeep.app.files import Watch, naming, split
from modelkeep.container.check import read_ends
from modelkeep.container.layout import END_MAGIC, FOOTER_SIZE, HEADER_SIZE, MIN_BODY, VERSION
from modelkeep.container.reader import Reader, read_bytes
from modelkeep.container.recipients import KmsStanza, PassphraseStanza, Stanza, parse_recipients
from modelkeep.core.values import Digest, parse_digest
from modelkeep.errors import NotTrusted

SUITES = {
    1: "Cobblestone-256 streams, HKDF-SHA-512 keys, SHA-256 digests",
    2: "Cobblestone-256 streams, HKDF-SHA-512 keys, BLAKE3 stream digests, SHA-256 tree",
}
_PIECE = 4 << 20


class RecipientRow(Struct, frozen=True):
    """One recipient: its kind (kms, x-wing, passphrase), the id that names it, and how the data key is wrapped for it."""

    kind: str
    id: str
    how: str


class Sizes(Struct, frozen=True):
    """Bytes of the parts of a sealed file. ``recipients``: block and trailer, 0 for a body alone."""

    file: int
    body: int
    streams: int
    index: int
    recipients: int


class Claims(Struct, frozen=True):
    """What the recipient block says and only a key can prove."""

    model_digest: str
    purpose: str


class Inspected(Struct, frozen=True):
    """A sealed file, or the body of one (``form``), seen without a key.

    ``sealed_digest``: SHA-256 of the body, computed now. ``pending``: a rewrap was cut off, and its journal was read instead.
    """

    file: str
    form: str
    version: int
    suite: int
    suite_name: str
    sizes: Sizes
    header_hash: str
    sealed_digest: str
    claims: Claims | None
    recipients: tuple[RecipientRow, ...]
    pending: bool


def inspect_file(path: str, *, expect: str = "", watch: Watch = lambda _: None) -> Inspected:
    """Look at the sealed file or body at ``path``; the body is read once, to hash it.

    ``expect``: the sealed digest that it must have. Raises NotTrusted (no sealed file, cut, altered, or not the one that was
    expected), Missing, Invalid, Unavailable.
    """
    wanted = parse_digest(expect) if expect else None
    with SealedReader(path) as reader, naming(path):
        if reader.size >= MIN_BODY and read_bytes(reader, reader.size - len(END_MAGIC), len(END_MAGIC)) == END_MAGIC:
            body: Reader = reader
            claims: Claims | None = None
            rows: tuple[RecipientRow, ...] = ()
        else:
            parts = split(path, reader)
            body = parts.body
            block = parse_recipients(parts.block)
            claims = Claims(block.model_digest, block.purpose)
            rows = tuple(_row(stanza) for stanza in block.stanzas)
        header, index = read_ends(body)
        digest = _digest(body, watch)
        if wanted is not None and digest != wanted:
            raise NotTrusted(f"it is not the one that was expected: its sealed digest is {digest}, and not {wanted}")
        sizes = Sizes(reader.size, body.size, body.size - index - HEADER_SIZE - FOOTER_SIZE, index, reader.size - body.size)
    return Inspected(
        file=str(Path(path)),
        form="body" if claims is None else "file",
        version=VERSION,
        suite=header.suite,
        suite_name=SUITES.get(header.suite, "unknown"),
        sizes=sizes,
        header_hash=f"sha256:{header.hash.hex()}",
        sealed_digest=digest,
        claims=claims,
        recipients=rows,
        pending=reader.pending,
    )


def _row(stanza: Stanza) -> RecipientRow:
    if isinstance(stanza, KmsStanza):
        return RecipientRow("kms", stanza.key_id, f"by its provider, {len(stanza.wrapped)} bytes")
    if isinstance(stanza, PassphraseStanza):
        p = stanza.params
        how = f"Argon2id, {p.memory_kib / 1024:g} MiB, {p.passes} passes, {p.lanes} lanes"
        return RecipientRow("passphrase", stanza_id(stanza), how)
    return RecipientRow("x-wing", stanza_id(stanza), "ML-KEM-768 with X25519 (HPKE)")


def _digest(body: Reader, watch: Watch) -> Digest:
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(min(_PIECE, body.size)))
    for offset in range(0, body.size, _PIECE):
        piece = buffer[: min(_PIECE, body.size - offset)]
        body.read_into(offset, piece)
        digest.update(piece)
        watch(piece.nbytes)
    return Digest("sha256:" + digest.hexdigest())
