"""The key ring: one sealed compartment per key family, each opened only by the process that needs it.

A compartment is a ``.keep`` file sealed for a passphrase (Argon2id) and for the offline recovery recipient (X-Wing). Every
change writes the whole set, all or nothing (``KeyStore.replace``), so a change of passphrase that is cut off is done or has not
begun.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.container.file import pack_bytes, unpack_bytes
from modelkeep.container.recipients import Opener, PassphraseStanza, Recipient, Stanza, XWingOpener, XWingRecipient
from modelkeep.core.ports import Entropy, Wrapper
from modelkeep.core.values import to_json
from modelkeep.crypto.kdf import Argon2Params, argon2id
from modelkeep.crypto.notes import NoteSigner
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.custody import keys
from modelkeep.custody.keys import Compartment, KeyVersion, new_material
from modelkeep.custody.trust import TrustedIdentity, TrustRoot
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Sealed

PURPOSE = "keys/"


class KeyStore(Protocol):
    """Where the sealed compartments lie. ``adapters.keys.file.FileKeys`` is one."""

    def families(self) -> list[str]:
        """Families that have a compartment, sorted."""
        ...

    def read(self, family: str) -> bytes:
        """One compartment's sealed bytes. Raises Missing, NotTrusted (readable by others), Unavailable."""
        ...

    def replace(self, files: Mapping[str, bytes]) -> None:
        """Replace or add compartments, all of them or none, durably. Raises Unavailable."""
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store against every other process; finishes or undoes a replacement that was cut off."""
        ...


@dataclass(frozen=True)
class RingWrapper:
    """``Wrapper`` over one version of a wrapping family."""

    family: str
    key: KeyVersion

    @property
    def key_id(self) -> str:
        """``file:<family>/<version>``."""
        return f"file:{self.family}/{self.key.version}"

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``. Raises Denied unless this is the primary."""
        if self.key.state != keys.PRIMARY:
            raise Denied(f"{self.key_id} is {self.key.state}: it may not wrap anything new")
        return wrap_key(self.key.material["key"], key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key or other context), Denied (disabled or destroyed)."""
        if self.key.state not in keys.MAY_UNWRAP:
            raise Denied(f"{self.key_id} is {self.key.state}: it may not unwrap anything")
        return unwrap_key(self.key.material["key"], wrapped, context)


class SetPassphrase:
    """A passphrase for a whole set of compartments: recipient and opener. It is stretched once per salt, not once per file.

    One salt for the set costs nothing: whoever guesses passphrases attacks one file anyway, and each file's data key is wrapped
    under a one-time key of its own (crypto/wrap).
    """

    def __init__(self, passphrase: bytes, params: Argon2Params | None = None, salt: bytes = b"") -> None:
        """``params`` and ``salt`` (32 bytes) are for sealing; opening takes them from the file."""
        self._passphrase = passphrase
        self._params, self._salt = params or Argon2Params(), salt
        self._stretched: dict[tuple[Argon2Params, bytes], bytes] = {}

    def stanza(self, dek: bytes, context: bytes) -> PassphraseStanza:
        """Wrap ``dek``, bound to ``context``. Raises Invalid (empty passphrase, no salt)."""
        return PassphraseStanza(self._params, self._salt, wrap_key(self._kek(self._params, self._salt), dek, context))

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        """The data key; None when the stanza is no passphrase's. Raises NotTrusted (wrong passphrase, or altered)."""
        if not isinstance(stanza, PassphraseStanza):
            return None
        return unwrap_key(self._kek(stanza.params, stanza.salt), stanza.wrapped, context)

    def _kek(self, params: Argon2Params, salt: bytes) -> bytes:
        if (params, salt) not in self._stretched:
            self._stretched[params, salt] = argon2id(self._passphrase, salt, params=params)
        return self._stretched[params, salt]


class KeyInfo(msgspec.Struct, frozen=True):
    """One key version without its secret: what ``keys list`` shows."""

    family: str
    version: int
    state: str
    created: int


class Keyring:
    """The compartments that this process has opened. Its representation shows their names only."""

    def __init__(self, compartments: Iterable[Compartment]) -> None:
        """Raises Invalid (none), NotTrusted (the compartments disagree about the trust root)."""
        self._compartments = {compartment.family: compartment for compartment in compartments}
        if not self._compartments:
            raise Invalid("a key ring needs at least one compartment")
        first, *rest = self._compartments.values()
        if any(other.trust != first.trust for other in rest):
            raise NotTrusted("the key compartments carry different trust roots: one was put back from another time or keep")
        self.trust: TrustRoot = first.trust

    def __repr__(self) -> str:
        return f"Keyring({', '.join(sorted(self._compartments))})"

    @classmethod
    def open(cls, store: KeyStore, families: Sequence[str], passphrase: bytes) -> "Keyring":
        """Open the compartments of ``families``.

        Raises NotTrusted (wrong passphrase, damaged or swapped file), Missing (no such compartment), Unavailable.
        """
        with store.lock():
            return cls(_open_all(store, families, SetPassphrase(passphrase), "wrong passphrase"))

    def hand_over(self, families: Sequence[str]) -> bytes:
        """Opened compartments for a child process: secrets in the clear, for a pipe and nothing else. Raises Sealed."""
        return to_json([self._at(family).encode() for family in families])

    @classmethod
    def receive(cls, data: bytes) -> "Keyring":
        """What ``hand_over`` gave. Raises NotTrusted."""
        try:
            parts = msgspec.json.decode(data, type=list[bytes])
            return cls([Compartment.parse(part, msgspec.json.decode(part, type=_Family).family) for part in parts])
        except msgspec.DecodeError:  # `from None`: the cause could quote a secret
            raise NotTrusted("the handed-over key compartments are malformed") from None

    @property
    def families(self) -> tuple[str, ...]:
        """Families opened here, sorted."""
        return tuple(sorted(self._compartments))

    def inventory(self) -> list[KeyInfo]:
        """Every key version opened here, by family and version."""
        opened = (self._compartments[family] for family in self.families)
        return [KeyInfo(each.family, key.version, key.state, key.created) for each in opened for key in each.versions]

    def wrapper(self, family: str = keys.MODEL_KEK, version: int | None = None) -> RingWrapper:
        """The primary of a wrapping family, or one version. Raises Sealed, Invalid, Denied (no primary), Missing."""
        if family not in (keys.MODEL_KEK, keys.AUDIT_SUBJECT):
            raise Invalid(f"{family[:40]!r} is not a family of wrapping keys")
        compartment = self._at(family)
        return RingWrapper(family, compartment.primary() if version is None else compartment.at(version))

    def wrappers(self, family: str = keys.MODEL_KEK) -> tuple[Wrapper, ...]:
        """Every version that may unwrap, the newest first. Raises Sealed, Invalid."""
        usable = [key.version for key in self._at(family).versions if key.state in keys.MAY_UNWRAP]
        return tuple(self.wrapper(family, version) for version in reversed(usable))

    def statement_signer(self) -> StatementSigner:
        """The identity that signs this keep's statements. Raises Sealed, Denied (no primary)."""
        return _signer(self.trust.origin, self._at(keys.STATEMENT_SIGNING).primary())

    def note_signer(self, family: str, origin: str) -> NoteSigner:
        """Signs a log's checkpoints: ``log-signing`` or ``audit-log``, named by the log's origin. Raises Sealed, Invalid."""
        if family not in (keys.LOG_SIGNING, keys.AUDIT_LOG):
            raise Invalid(f"{family[:40]!r} does not sign logs")
        return NoteSigner(origin, self.secret(family))

    def token_key(self) -> Ed25519PrivateKey:
        """The key that signs session tokens. Raises Sealed, Denied."""
        return Ed25519PrivateKey.from_private_bytes(self.secret(keys.TOKEN_SIGNING))

    def secret(self, family: str) -> bytes:
        """The primary secret of a one-part family: 32 bytes, or PKCS #8 DER for ``tls-ca``. Raises Sealed, Denied, Invalid."""
        if family == keys.STATEMENT_SIGNING:
            raise Invalid("statement-signing is a pair of keys: use statement_signer")
        return self._at(family).primary().material["key"]

    def _at(self, family: str) -> Compartment:
        try:
            return self._compartments[family]
        except KeyError:
            raise Sealed(
                f"the key compartment {family[:40]} is not open in this process: unseal it with the passphrase"
            ) from None


class _Family(msgspec.Struct):
    family: str


@dataclass(frozen=True)
class Custodian:
    """The one who may change the key ring: ``store``, fresh randomness, and what a passphrase costs."""

    store: KeyStore
    entropy: Entropy
    params: Argon2Params = field(default_factory=Argon2Params)

    def create(self, passphrase: bytes, recovery: str, *, origin: str, now_ns: int) -> Keyring:
        """Make every compartment with fresh keys, and the trust root that goes with them.

        ``recovery``: the recipient of the offline recovery identity; ``origin``: the keep's name, such as ``keep.acme.eu``.
        Raises Conflict (there are compartments already), Invalid (empty passphrase, bad recipient or origin), Unavailable.
        """
        with self.store.lock():
            if self.store.families():
                raise Conflict("there are key compartments here already; none was touched")
            fresh = {
                family: KeyVersion(1, keys.PRIMARY, now_ns, new_material(family, self.entropy)) for family in keys.FAMILIES
            }
            trust = TrustRoot(
                origin=origin,
                releases_log=NoteSigner(releases_origin(origin), fresh[keys.LOG_SIGNING].material["key"]).vkey,
                audit_key=_ed25519_public(fresh[keys.AUDIT_LOG]),
                token_key=_ed25519_public(fresh[keys.TOKEN_SIGNING]),
                identities=(TrustedIdentity(_signer(origin, fresh[keys.STATEMENT_SIGNING]).public),),
            )
            made = [Compartment(family, recovery, trust, (key,)) for family, key in fresh.items()]
            self._write(made, passphrase)
        return Keyring(made)

    def change_passphrase(self, old: bytes, new: bytes) -> None:
        """Seal every compartment under ``new``, all or none. Raises NotTrusted (``old`` is wrong), Invalid, Unavailable."""
        with self.store.lock():
            self._write(self._open(old), new)

    def recover(self, identity: str, new: bytes) -> Keyring:
        """Open every compartment with the offline recovery identity and seal it under the passphrase ``new``.

        Raises NotTrusted (another identity, or damaged), Invalid (mistyped), Unavailable.
        """
        with self.store.lock():
            opened = _open_all(self.store, self.store.families(), XWingOpener(identity), "wrong recovery identity")
            self._write(opened, new)
        return Keyring(opened)

    def rotate(self, passphrase: bytes, family: str, *, now_ns: int, log_size: int) -> Keyring:
        """Give ``family`` a fresh primary; the former one can still decrypt or be verified.

        ``log_size``: of the releases log. A former statement identity counts only for what it signed before that index.
        What was wrapped under an older key stays so until it is rewrapped. Raises Invalid, NotTrusted, Unavailable.
        """
        if family not in keys.ROTATABLE:
            raise Invalid(f"{family[:40]!r} cannot be rotated in place: possible are {', '.join(keys.ROTATABLE)}")
        return self._change(passphrase, family, lambda found: found.rotated(self.entropy, now_ns), log_size)

    def set_state(self, passphrase: bytes, family: str, version: int, event: str, *, log_size: int) -> Keyring:
        """Let ``event`` (disable, enable, destroy, compromise) happen to one key version.

        A compromised statement identity counts only for what it signed before log index ``log_size``.
        Raises Conflict (not in the table), Missing, Invalid, NotTrusted, Unavailable.
        """
        if event not in (keys.DISABLE, keys.ENABLE, keys.DESTROY, keys.COMPROMISE):
            raise Invalid(
                f"{event[:40]!r} is not something that can be done to a key: disable, enable, destroy or compromise it"
            )
        return self._change(passphrase, family, lambda found: found.with_event(version, event), log_size)

    def _change(self, passphrase: bytes, family: str, change: "_Change", log_size: int) -> Keyring:
        with self.store.lock():
            opened = {found.family: found for found in self._open(passphrase)}
            if family not in opened:
                raise Missing(f"there is no key compartment {family[:40]}")
            opened[family] = change(opened[family])
            trust = _trust_after(opened, log_size)
            changed = [msgspec.structs.replace(found, trust=trust) for found in opened.values()]
            self._write(changed, passphrase)
        return Keyring(changed)

    def _open(self, passphrase: bytes) -> list[Compartment]:
        return _open_all(self.store, self.store.families(), SetPassphrase(passphrase), "wrong passphrase")

    def _write(self, compartments: Sequence[Compartment], passphrase: bytes) -> None:
        word, sealed = SetPassphrase(passphrase, self.params, self.entropy.token(32)), {}
        for each in compartments:
            recipients: list[Recipient] = [word, XWingRecipient(each.recovery)]
            sealed[each.family] = pack_bytes(each.encode(), recipients, purpose=PURPOSE + each.family)
        self.store.replace(sealed)


class _Change(Protocol):
    def __call__(self, found: Compartment, /) -> Compartment: ...


def releases_origin(origin: str) -> str:
    """The origin of a keep's releases log."""
    return f"{origin}/releases"


def identity_name(origin: str, version: int) -> str:
    """The name of a keep's statement identity, by key version."""
    return f"{origin}/statement-signing/{version}"


def _signer(origin: str, key: KeyVersion) -> StatementSigner:
    return StatementSigner(identity_name(origin, key.version), key.material["ed25519"], key.material["mldsa65"])


def _ed25519_public(key: KeyVersion) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(key.material["key"]).public_key().public_bytes_raw()


def _open_all(store: KeyStore, families: Sequence[str], opener: Opener, wrong: str) -> list[Compartment]:
    if not families:
        raise Missing("there are no key compartments here")
    opened = []
    for family in families:
        sealed = store.read(family)
        try:
            plain = unpack_bytes(sealed, [opener], purpose=PURPOSE + family)
        except NotTrusted as cause:
            raise NotTrusted(f"{wrong}, or damaged compartment keys/{family}.keep ({cause})") from cause
        opened.append(Compartment.parse(plain, family))
    return opened


def _trust_after(compartments: Mapping[str, Compartment], log_size: int) -> TrustRoot:
    """The trust root once keys changed: the token key follows, former identities end at ``log_size``, a new one begins."""
    trust = compartments[keys.STATEMENT_SIGNING].trust
    identities = {trusted.public.name: trusted for trusted in trust.identities}
    for key in compartments[keys.STATEMENT_SIGNING].versions:
        name = identity_name(trust.origin, key.version)
        known = identities.get(name)
        if known is None:
            identities[name] = TrustedIdentity(_signer(trust.origin, key).public, first=log_size)
        elif key.state != keys.PRIMARY and known.until is None:
            identities[name] = msgspec.structs.replace(known, until=log_size)
    token = [key for key in compartments[keys.TOKEN_SIGNING].versions if key.state == keys.PRIMARY]
    token_key = _ed25519_public(token[0]) if token else trust.token_key
    return msgspec.structs.replace(trust, identities=tuple(identities.values()), token_key=token_key)
