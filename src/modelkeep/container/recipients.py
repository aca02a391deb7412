"""The recipient block: stanzas that each wrap the same data key, and a MAC that only its holders can make.

It stands outside the sealed body, so rotation rewrites it alone. The MAC proves that someone who held the data key wrote the
block; the key itself is proven by the body, whose every stream commits to it. Rewrapping revokes no reader who had the key.
"""

import hmac
import os
import re
import struct
from collections.abc import Sequence
from typing import Protocol

import msgspec

from modelkeep.container.layout import BodyKeys
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Wrapper
from modelkeep.core.values import Digest, digest_bytes
from modelkeep.crypto.kdf import Argon2Params, argon2id
from modelkeep.crypto.wrap import WRAPPED_SIZE, unwrap_key, wrap_key
from modelkeep.crypto.xwing import WRAPPED_SIZE as XWING_SIZE
from modelkeep.crypto.xwing import recipient_id, recipient_of, xwing_unwrap, xwing_wrap
from modelkeep.errors import Denied, Invalid, Missing, NotTrusted

MAX_STANZAS = 64
MAX_BLOCK = 1 << 18

_MAGIC = b"KEEPRCPT"
_VERSION = 1
_MAC_SIZE = 32
_SALT_SIZE = 32
_KMS, _XWING, _PASSPHRASE = 1, 2, 3
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class KmsStanza(msgspec.Struct, frozen=True):
    """The data key, wrapped by the ``Wrapper`` whose key is ``key_id``."""

    key_id: str
    wrapped: bytes


class XWingStanza(msgspec.Struct, frozen=True):
    """The data key, wrapped for the X-Wing public key whose SHA-256 begins with ``recipient_id`` (16 bytes)."""

    recipient_id: bytes
    wrapped: bytes


class PassphraseStanza(msgspec.Struct, frozen=True):
    """The data key, wrapped under an Argon2id-stretched passphrase. At most one in a block."""

    params: Argon2Params
    salt: bytes
    wrapped: bytes


Stanza = KmsStanza | XWingStanza | PassphraseStanza


class Binding(msgspec.Struct, frozen=True):
    """What every wrapped copy of a data key is bound to: this body, the digest of its source, and what it is for."""

    header_hash: bytes
    model_digest: Digest
    purpose: str

    def context(self) -> bytes:
        """The context given to ``Wrapper.wrap``, HPKE info, and associated data."""
        return b"modelkeep/recipient/1" + self.header_hash + digest_bytes(self.model_digest) + self.purpose.encode()


class Recipient(Protocol):
    """Someone to wrap a data key for."""

    def stanza(self, dek: bytes, context: bytes) -> Stanza:
        """Wrap ``dek``, bound to ``context``."""
        ...


class Opener(Protocol):
    """Someone who may hold a key to a block."""

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        """The data key; None when the stanza is for someone else. Raises NotTrusted (it is mine, and does not open)."""
        ...


class KmsRecipient(msgspec.Struct, frozen=True):
    """A key-encryption key behind the ``Wrapper`` port: both a recipient and an opener."""

    wrapper: Wrapper

    def stanza(self, dek: bytes, context: bytes) -> KmsStanza:
        return KmsStanza(self.wrapper.key_id, self.wrapper.wrap(dek, context))

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        if not isinstance(stanza, KmsStanza) or stanza.key_id != self.wrapper.key_id:
            return None
        return self.wrapper.unwrap(stanza.wrapped, context)


class XWingRecipient(msgspec.Struct, frozen=True):
    """A public recovery recipient, in its text form."""

    recipient: str

    def stanza(self, dek: bytes, context: bytes) -> XWingStanza:
        return XWingStanza(recipient_id(self.recipient), xwing_wrap(self.recipient, dek, context))


class XWingOpener:
    """A private recovery identity, in its text form."""

    def __init__(self, identity: str) -> None:
        self._identity = identity
        self._id = recipient_id(recipient_of(identity))

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        if not isinstance(stanza, XWingStanza) or not hmac.compare_digest(stanza.recipient_id, self._id):
            return None
        return xwing_unwrap(self._identity, stanza.wrapped, context)


@never_pickled
class Passphrase:
    """A passphrase: both a recipient and an opener. Costs one Argon2id each time."""

    def __init__(self, passphrase: bytes, params: Argon2Params | None = None) -> None:
        self._passphrase = passphrase
        self._params = params or Argon2Params()

    def stanza(self, dek: bytes, context: bytes) -> PassphraseStanza:
        salt = os.urandom(_SALT_SIZE)
        kek = argon2id(self._passphrase, salt, params=self._params)
        return PassphraseStanza(self._params, salt, wrap_key(kek, dek, context))

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        if not isinstance(stanza, PassphraseStanza):
            return None
        return unwrap_key(argon2id(self._passphrase, stanza.salt, params=stanza.params), stanza.wrapped, context)


class RecipientBlock(msgspec.Struct, frozen=True):
    """A parsed block. ``model_digest`` and ``purpose`` are claims until ``unlock`` has checked the MAC."""

    model_digest: Digest
    purpose: str
    stanzas: tuple[Stanza, ...]


def encode_recipients(stanzas: Sequence[Stanza], dek: bytes, binding: Binding) -> bytes:
    """The block's bytes. ``stanzas`` must wrap ``dek`` under ``binding.context()``. Raises Invalid (none, or too many)."""
    purpose = binding.purpose.encode()
    if not 1 <= len(stanzas) <= MAX_STANZAS or sum(isinstance(s, PassphraseStanza) for s in stanzas) > 1:
        raise Invalid(f"a sealed file has 1 to {MAX_STANZAS} recipients, and at most one passphrase among them")
    if not 1 <= len(purpose) <= 255 or _CONTROL.search(binding.purpose):
        raise Invalid("the purpose of a sealed file has 1 to 255 bytes and no control characters")
    fixed = struct.pack(">8sB32sB", _MAGIC, _VERSION, digest_bytes(binding.model_digest), len(purpose))
    block = b"".join((fixed, purpose, bytes([len(stanzas)]), *(_encode_stanza(stanza) for stanza in stanzas)))
    if len(block) + _MAC_SIZE > MAX_BLOCK:
        raise Invalid(f"the recipients take more than {MAX_BLOCK} bytes: give fewer")
    return block + _mac(block, dek, binding.header_hash)


def parse_recipients(block: bytes) -> RecipientBlock:
    """Parse a block. Raises NotTrusted (malformed, of a future version, or asking for too much work)."""
    if len(block) > MAX_BLOCK or block[:8] != _MAGIC:
        raise NotTrusted("this is not a modelkeep recipient block: it was altered, or belongs to something else")
    if block[8:9] != bytes([_VERSION]):
        raise NotTrusted(f"the recipient block does not have version {_VERSION}: upgrade modelkeep")
    try:
        return _parse(block[:-_MAC_SIZE])
    except (struct.error, ValueError) as cause:
        raise NotTrusted("the recipient block is malformed: it was cut or altered") from cause


def unlock(block: bytes, header_hash: bytes, openers: Sequence[Opener], *, purpose: str) -> bytes:
    """The data key of the body with ``header_hash``, from the first stanza that one of ``openers`` opens.

    Raises NotTrusted: no stanza opens, the block is altered, belongs to another body, or is for another purpose.
    Denied, Missing: none opens, and a provider says so of its key. Unavailable.
    """
    parsed = parse_recipients(block)
    if parsed.purpose != purpose:
        raise NotTrusted(
            f"the sealed file is for {parsed.purpose[:80]!r} and not for {purpose!r}: another file was put in its place"
        )
    context = Binding(header_hash, parsed.model_digest, purpose).context()
    dek = _first(parsed.stanzas, openers, context)
    if not hmac.compare_digest(_mac(block[:-_MAC_SIZE], dek, header_hash), block[-_MAC_SIZE:]):
        raise NotTrusted("the recipient block was altered: its authentication code does not hold")
    return dek


def _first(stanzas: Sequence[Stanza], openers: Sequence[Opener], context: bytes) -> bytes:
    failed: NotTrusted | None = None
    refused: Denied | Missing | None = None
    for opener in openers:
        for stanza in stanzas:
            try:
                dek = opener.unwrap(stanza, context)
            except NotTrusted as cause:
                failed = cause
                continue
            except (Denied, Missing) as cause:  # one version of a key is disabled or gone: another may be a recipient too
                refused = refused or cause
                continue
            if dek is not None:
                return dek
    if refused is not None:
        raise refused
    if failed is not None:
        raise NotTrusted(
            "the sealed file does not open: a wrong key or passphrase, or its recipient block was altered"
        ) from failed
    raise NotTrusted("the sealed file is for other recipients: none of the keys at hand is among them")


def _mac(block: bytes, dek: bytes, header_hash: bytes) -> bytes:
    return hmac.digest(BodyKeys(dek, header_hash).recipients_mac(), block, "sha512")[:_MAC_SIZE]


def _encode_stanza(stanza: Stanza) -> bytes:
    if isinstance(stanza, KmsStanza):
        key_id = stanza.key_id.encode()
        if _CONTROL.search(stanza.key_id):
            raise Invalid("the id of a key has no control characters")
        tag, body = _KMS, struct.pack(">H", len(key_id)) + key_id + stanza.wrapped
    elif isinstance(stanza, XWingStanza):
        tag, body = _XWING, stanza.recipient_id + stanza.wrapped
    else:
        p = stanza.params
        tag, body = _PASSPHRASE, struct.pack(">IBB", p.memory_kib, p.passes, p.lanes) + stanza.salt + stanza.wrapped
    return struct.pack(">BH", tag, len(body)) + body


def _parse(data: bytes) -> RecipientBlock:
    _, _, digest, purpose_length = struct.unpack_from(">8sB32sB", data)
    at = 42 + purpose_length
    purpose, count = _text(data[42:at]), data[at : at + 1]
    at += 1
    stanzas = []
    for _ in range(int.from_bytes(count)):
        tag, length = struct.unpack_from(">BH", data, at)
        body = data[at + 3 : at + 3 + length]
        if len(body) != length:
            raise NotTrusted("the recipient block is cut short")
        stanzas.append(_parse_stanza(tag, body))
        at += 3 + length
    passphrases = sum(isinstance(stanza, PassphraseStanza) for stanza in stanzas)
    if at != len(data) or not 1 <= len(stanzas) <= MAX_STANZAS or passphrases > 1 or not purpose:
        raise NotTrusted("the recipient block is malformed: it was cut or altered")
    return RecipientBlock(Digest("sha256:" + digest.hex()), purpose, tuple(stanzas))


def _text(raw: bytes) -> str:
    """What people get to see without any key: a line end in it could pass for another line of what is said of the file."""
    text = raw.decode()
    if _CONTROL.search(text):
        raise NotTrusted("the recipient block has a control character in a name: it was altered")
    return text


def _parse_stanza(tag: int, body: bytes) -> Stanza:
    if tag == _KMS:
        (length,) = struct.unpack_from(">H", body)
        key_id, wrapped = body[2 : 2 + length], body[2 + length :]
        if len(key_id) == length and wrapped:
            return KmsStanza(_text(key_id), wrapped)
    elif tag == _XWING and len(body) == 16 + XWING_SIZE:
        return XWingStanza(body[:16], body[16:])
    elif tag == _PASSPHRASE and len(body) == 6 + _SALT_SIZE + WRAPPED_SIZE:
        params = Argon2Params.read(*struct.unpack_from(">IBB", body))
        return PassphraseStanza(params, body[6 : 6 + _SALT_SIZE], body[6 + _SALT_SIZE :])
    raise NotTrusted(
        f"the recipient block has a malformed stanza, or one of unknown type {tag}: it was altered, or upgrade modelkeep"
    )
