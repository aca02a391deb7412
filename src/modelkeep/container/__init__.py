"""The sealed container ``.keep``: seal, open, check, recipients, standalone files. docs/formats/container.md is the format."""

from modelkeep.container.bundle import FilePart, FilesReader
from modelkeep.container.check import check_body, suite_of
from modelkeep.container.file import (
    KeepFile,
    pack_bytes,
    pack_file,
    rewrap_tail,
    split_file,
    unpack_bytes,
    unpack_file,
)
from modelkeep.container.layout import Entry, Kind
from modelkeep.container.open import SealedFile, Tensor, Writer, open_sealed
from modelkeep.container.reader import BlobReader, BytesReader, Reader, Window, read_bytes
from modelkeep.container.recipients import (
    Binding,
    KmsRecipient,
    KmsStanza,
    Opener,
    Passphrase,
    PassphraseStanza,
    Recipient,
    RecipientBlock,
    Stanza,
    XWingOpener,
    XWingRecipient,
    XWingStanza,
    encode_recipients,
    parse_recipients,
    unlock,
)
from modelkeep.container.seal import SealedModel, Sealing, seal

__all__ = [
    "Binding",
    "BlobReader",
    "BytesReader",
    "Entry",
    "FilePart",
    "FilesReader",
    "KeepFile",
    "Kind",
    "KmsRecipient",
    "KmsStanza",
    "Opener",
    "Passphrase",
    "PassphraseStanza",
    "Reader",
    "Recipient",
    "RecipientBlock",
    "SealedFile",
    "SealedModel",
    "Sealing",
    "Stanza",
    "Tensor",
    "Window",
    "Writer",
    "XWingOpener",
    "XWingRecipient",
    "XWingStanza",
    "check_body",
    "encode_recipients",
    "open_sealed",
    "pack_bytes",
    "pack_file",
    "parse_recipients",
    "read_bytes",
    "rewrap_tail",
    "seal",
    "split_file",
    "suite_of",
    "unlock",
    "unpack_bytes",
    "unpack_file",
]
