"""The key ring: one sealed compartment per key family, each opened only by the process that needs it.

A compartment is a ``.keep`` file sealed for a passphrase (Argon2id) and for the offline recovery recipient (X-Wing). Every
change writes the whole set, all or nothing (``KeyStore.replace``), so a change of passphrase that is cut off is done or has not
begun.
"""

import hmac
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.container.file import pack_bytes, unpack_bytes
from modelkeep.container.recipients import Opener, PassphraseStanza, Recipient, Stanza, XWingOpener, XWingRecipient
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Entropy, Wrapper
from modelkeep.core.values import to_json
from modelkeep.crypto.kdf import Argon2Params, argon2id, hkdf
from modelkeep.crypto.notes import NoteSigner
from modelkeep.crypto.signatures import SOFTWARE, PublicIdentity, StatementSigner
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.custody import keys
from modelkeep.custody.identities import TokenHalves, identity_name, no_token, place_of, public_of, signer_of
from modelkeep.custody.keys import Compartment, KeyVersion, new_material
from modelkeep.custody.oms import BundleSigner, bundle_keys
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

    def replace(self, files: Mapping[str, bytes], *, trust: bytes = b"", escrows: Mapping[str, bytes] = {}) -> None:
        """Replace or add compartments, all of them or none, durably; with them the public ``trust`` root, unless empty, and
        ``escrows`` by kind (``custody.unsealing``).

        Raises Unavailable.
        """
        ...

    def lock(self) -> AbstractContextManager[None]:
        """Hold the store against every other process; finishes or undoes a replacement that was cut off."""
        ...


@never_pickled
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


@never_pickled
class Unlocked:
    """A passphrase, stretched for one set of compartments: it opens and seals them until the passphrase changes.

    A process that goes on changing keys holds this and not the passphrase, which may open other things, too.
    """

    def __init__(self, params: Argon2Params, salt: bytes, kek: bytes) -> None:
        self._params, self._salt, self._kek = params, salt, kek

    def stanza(self, dek: bytes, context: bytes) -> PassphraseStanza:
        """Wrap ``dek``, bound to ``context``."""
        return PassphraseStanza(self._params, self._salt, wrap_key(self._kek, dek, context))

    def unwrap(self, stanza: Stanza, context: bytes) -> bytes | None:
        """The data key; None when the stanza is no passphrase's. Raises NotTrusted (the passphrase changed, or altered)."""
        if not isinstance(stanza, PassphraseStanza):
            return None
        return unwrap_key(self._kek, stanza.wrapped, context)

    def tag(self, data: bytes) -> bytes:
        """A code over ``data`` that only who has this can make: 32 bytes."""
        return hmac.digest(hkdf(self._kek, salt=b"", info=b"modelkeep/unlocked-tag/1"), data, "sha256")

    def hand_over(self) -> bytes:
        """For a child process, over a pipe and nothing else: it is as good as the passphrase to this set."""
        params = (self._params.memory_kib, self._params.passes, self._params.lanes)
        return to_json([params, self._salt, self._kek])

    @classmethod
    def receive(cls, data: bytes) -> "Unlocked":
        """What ``hand_over`` gave. Raises NotTrusted."""
        try:
            params, salt, kek = msgspec.json.decode(data, type=tuple[tuple[int, int, int], bytes, bytes])
            return cls(Argon2Params.read(*params), salt, kek)
        except msgspec.DecodeError:  # `from None`: the cause could quote a secret
            raise NotTrusted("the handed-over key to the key ring is malformed") from None


Word = bytes | Unlocked
"""What opens the whole key ring: the passphrase, or what it was stretched to."""


@never_pickled
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

    def unlocked(self) -> Unlocked:
        """What it was stretched to when it last opened a compartment. Raises NotTrusted: it opened none."""
        for (params, salt), kek in self._stretched.items():
            return Unlocked(params, salt, kek)
        raise NotTrusted("the key compartments are not sealed for a passphrase")

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
    due: int = 0


@never_pickled
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
    def open(cls, store: KeyStore, families: Sequence[str], passphrase: Word) -> "Keyring":
        """Open the compartments of ``families``.

        Raises NotTrusted (wrong passphrase, damaged or swapped file), Missing (no such compartment), Unavailable.
        """
        with store.lock():
            return cls(_open_all(store, families, *_opener(passphrase)))

    @classmethod
    def unlock(cls, store: KeyStore, families: Sequence[str], passphrase: bytes) -> tuple["Keyring", Unlocked]:
        """The same, and what the passphrase was stretched to: it opens the compartments again without asking."""
        word = SetPassphrase(passphrase)
        with store.lock():
            return cls(_open_all(store, families, word, "wrong passphrase")), word.unlocked()

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

    @property
    def recovery(self) -> str:
        """The public recovery recipient that the compartments are sealed for besides the passphrase."""
        return next(iter(self._compartments.values())).recovery

    def inventory(self) -> list[KeyInfo]:
        """Every key version opened here, by family and version."""
        opened = (self._compartments[family] for family in self.families)
        return [KeyInfo(each.family, key.version, key.state, key.created, key.due) for each in opened for key in each.versions]

    def places(self, family: str) -> tuple[str, ...]:
        """Where keys of ``family`` live or lived: provider URIs, "" for this ring; the last one is used now. Raises Sealed."""
        return self._at(family).places or ("",)

    def wrapper(self, family: str = keys.MODEL_KEK, version: int | None = None) -> RingWrapper:
        """The primary of a wrapping family, or one version. Raises Sealed, Invalid, Denied (no primary), Missing."""
        if family not in keys.TURNING:
            raise Invalid(f"{family[:40]!r} is not a family of wrapping keys")
        compartment = self._at(family)
        return RingWrapper(family, compartment.primary() if version is None else compartment.at(version))

    def wrappers(self, family: str = keys.MODEL_KEK) -> tuple[Wrapper, ...]:
        """Every version that may unwrap, the newest first. Raises Sealed, Invalid."""
        usable = [key.version for key in self._at(family).versions if key.state in keys.MAY_UNWRAP]
        return tuple(self.wrapper(family, version) for version in reversed(usable))

    def statement_signer(self, tokens: TokenHalves = no_token) -> StatementSigner:
        """The identity that signs this keep's statements; ``tokens`` opens the half that lives in a token.

        Raises Sealed, Denied (no primary, or the token refuses), Unavailable.
        """
        return signer_of(self.trust.origin, self._at(keys.STATEMENT_SIGNING).primary(), tokens)

    def pending_signer(self, tokens: TokenHalves = no_token) -> StatementSigner | None:
        """The identity that is made and not announced yet, or not in force; None when there is none. Raises Sealed."""
        found = [key for key in self._at(keys.STATEMENT_SIGNING).versions if key.state == keys.PENDING]
        return signer_of(self.trust.origin, found[-1], tokens) if found else None

    def identities(self) -> dict[int, PublicIdentity]:
        """The public half of each version of the statement identity that is not destroyed. Raises Sealed."""
        found = self._at(keys.STATEMENT_SIGNING).versions
        return {key.version: public_of(self.trust.origin, key) for key in found if key.state != keys.DESTROYED}

    def token_places(self) -> dict[int, str]:
        """The URI of the Ed25519 half of each version of the statement identity that lives in a token. Raises Sealed."""
        found = ((key.version, place_of(key)) for key in self._at(keys.STATEMENT_SIGNING).versions)
        return {version: place for version, place in found if place not in ("", SOFTWARE)}

    def identity_places(self) -> dict[str, str]:
        """Where the Ed25519 half of each identity lives, by its name: ``software`` or a token's URI. Raises Sealed."""
        found = self._at(keys.STATEMENT_SIGNING).versions
        return {identity_name(self.trust.origin, key.version): place_of(key) for key in found}

    def note_signer(self, family: str, origin: str) -> NoteSigner:
        """Signs a log's checkpoints: ``log-signing`` or ``audit-log``, named by the log's origin. Raises Sealed, Invalid."""
        if family not in (keys.LOG_SIGNING, keys.AUDIT_LOG):
            raise Invalid(f"{family[:40]!r} does not sign logs")
        return NoteSigner(origin, self.secret(family))

    def bundle_signer(self) -> BundleSigner:
        """The key that signs models the OpenSSF way. Raises Sealed, Denied (no primary)."""
        return BundleSigner(self.secret(keys.OMS_SIGNING))

    def token_key(self) -> Ed25519PrivateKey:
        """The key that signs session tokens. Raises Sealed, Denied."""
        return Ed25519PrivateKey.from_private_bytes(self.secret(keys.TOKEN_SIGNING))

    def secret(self, family: str) -> bytes:
        """The primary secret of a one-part family: 32 bytes, or PKCS #8 DER for P-256. Raises Sealed, Denied, Invalid."""
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
                identities=(TrustedIdentity(public_of(origin, fresh[keys.STATEMENT_SIGNING])),),
                oms=bundle_keys((), origin, [fresh[keys.OMS_SIGNING]], 0),
            )
            made = [Compartment(family, recovery, trust, (key,)) for family, key in fresh.items()]
            self._write(made, passphrase)
        return Keyring(made)

    def complete(self, passphrase: Word, *, now_ns: int) -> tuple[Keyring, tuple[str, ...]]:
        """Make the compartments that a keep of an earlier version lacks: the key ring, and the families that were made.

        Idempotent; what every keep has is never made anew. Raises Missing (no key ring), NotTrusted, Unavailable.
        """
        with self.store.lock():
            word, wrong = _opener(passphrase)
            opened = {found.family: found for found in _open_all(self.store, self.store.families(), word, wrong)}
            lacking = tuple(family for family in keys.LATER_FAMILIES if family not in opened)
            first = next(iter(opened.values()))
            for family in lacking:
                # Of a compartment of signing keys that was lost, the trust root still knows the keys.
                number = 1 + len(first.trust.oms) if family == keys.OMS_SIGNING else 1
                fresh = KeyVersion(number, keys.PRIMARY, now_ns, new_material(family, self.entropy))
                opened[family] = Compartment(family, first.recovery, first.trust, (fresh,))
            if lacking:
                trust = _trust_after(opened, 0)
                opened = {name: msgspec.structs.replace(found, trust=trust) for name, found in opened.items()}
                recipient = word.unlocked() if isinstance(word, SetPassphrase) else word
                self._seal(list(opened.values()), recipient, before=first.trust)
            return Keyring(opened.values()), lacking

    def change_passphrase(self, old: bytes, new: bytes, renew: "Renewal" = lambda *_: {}) -> tuple[str, ...]:
        """Seal every compartment under ``new``, and the escrows that ``renew`` gives, all or none; the families.

        Raises NotTrusted (``old`` is wrong), Invalid, Unavailable, and what ``renew`` raises: then nothing has changed.
        """
        with self.store.lock():
            before = SetPassphrase(old)
            opened = _open_all(self.store, self.store.families(), before, "wrong passphrase")
            after = SetPassphrase(new, self.params, self.entropy.token(32))
            sealed = _sealed(opened, after)
            self.store.replace(sealed, escrows=renew(before.unlocked(), after.unlocked()))
        return tuple(sealed)

    def recover(self, identity: str, new: bytes) -> Keyring:
        """Open every compartment with the offline recovery identity and seal it under the passphrase ``new``.

        Raises NotTrusted (another identity, or damaged), Invalid (mistyped), Unavailable.
        """
        with self.store.lock():
            opened = _open_all(self.store, self.store.families(), XWingOpener(identity), "wrong recovery identity")
            self._write(opened, new)
        return Keyring(opened)

    def rotate(self, passphrase: Word, family: str, *, now_ns: int, log_size: int) -> Keyring:
        """Give ``family`` a fresh primary; the former one can still decrypt or be verified.

        ``log_size``: of the releases log. A former statement identity counts only for what it signed before that index.
        What was wrapped under an older key stays so until it is rewrapped. Raises Invalid, NotTrusted, Unavailable.
        """
        if family not in keys.ROTATABLE:
            raise Invalid(f"{family[:40]!r} cannot be rotated in place: possible are {', '.join(keys.ROTATABLE)}")
        return self._change(passphrase, family, lambda found: found.rotated(self.entropy, now_ns), log_size)

    def set_state(self, passphrase: Word, family: str, version: int, event: str, *, log_size: int, due: int = 0) -> Keyring:
        """Let ``event`` (disable, enable, schedule, cancel, destroy, compromise) happen to one key version.

        A compromised statement identity counts only for what it signed before log index ``log_size``. ``due``: when a scheduled
        destruction happens, Unix nanoseconds.
        Raises Conflict (not in the table), Missing, Invalid, NotTrusted, Unavailable.
        """
        if event not in (keys.DISABLE, keys.ENABLE, keys.SCHEDULE, keys.CANCEL, keys.DESTROY, keys.COMPROMISE):
            raise Invalid(
                f"{event[:40]!r} is not something that can be done to a key: disable, enable, destroy or compromise it"
            )
        return self._change(passphrase, family, lambda found: found.with_event(version, event, due), log_size)

    def move(self, passphrase: Word, family: str, place: str) -> Keyring:
        """Have the keys of a wrapping family made at ``place`` from now on: a provider URI, "" for this ring.

        A primary that is left behind here can still decrypt. Raises Invalid, NotTrusted, Unavailable.
        """
        if family != keys.MODEL_KEK:
            raise Invalid(f"{family[:40]!r} lives in the key ring: only {keys.MODEL_KEK} can be moved to a provider")
        return self._change(passphrase, family, lambda found: found.moved(place), 0)

    def _change(self, passphrase: Word, family: str, change: "_Change", log_size: int) -> Keyring:
        with self.store.lock():
            word, wrong = _opener(passphrase)
            opened = {found.family: found for found in _open_all(self.store, self.store.families(), word, wrong)}
            if family not in opened:
                raise Missing(f"there is no key compartment {family[:40]}")
            before = opened[family].trust
            opened[family] = change(opened[family])
            trust = _trust_after(opened, log_size)
            changed = [msgspec.structs.replace(found, trust=trust) for found in opened.values()]
            # The same salt as before: what another process holds as Unlocked opens the new files, too.
            self._seal(changed, word.unlocked() if isinstance(word, SetPassphrase) else word, before=before)
        return Keyring(changed)

    def amend(self, passphrase: Word, change: "Amendment") -> Keyring:
        """Change one compartment and the trust root together, in all compartments and in the public copy, or not at all.

        ``change``: given the compartments by family and the trust root of now, those of then; what it raises, this raises.
        Raises NotTrusted, Missing, Unavailable.
        """
        with self.store.lock():
            word, wrong = _opener(passphrase)
            opened = {found.family: found for found in _open_all(self.store, self.store.families(), word, wrong)}
            before = next(iter(opened.values())).trust
            after, trust = change(opened, before)
            changed = [msgspec.structs.replace(found, trust=trust) for found in after.values()]
            if trust != before or after != opened:
                self._seal(changed, word.unlocked() if isinstance(word, SetPassphrase) else word, before=before)
        return Keyring(changed)

    def _write(self, compartments: Sequence[Compartment], passphrase: bytes) -> None:
        self._seal(compartments, SetPassphrase(passphrase, self.params, self.entropy.token(32)))

    def _seal(self, compartments: Sequence[Compartment], word: Recipient, *, before: TrustRoot | None = None) -> None:
        """``before``: the trust root that the public copy has now; None = it has the one of ``compartments``."""
        trust = compartments[0].trust
        self.store.replace(_sealed(compartments, word), trust=b"" if before in (None, trust) else trust.encode())


class Amendment(Protocol):
    """A change of compartments and trust root, as ``Custodian.amend`` carries it out."""

    def __call__(
        self, found: Mapping[str, Compartment], trust: TrustRoot, /
    ) -> tuple[Mapping[str, Compartment], TrustRoot]: ...


class Renewal(Protocol):
    """The escrows, by kind, that go with a changed passphrase. The store is locked meanwhile."""

    def __call__(self, before: Unlocked, after: Unlocked, /) -> Mapping[str, bytes]: ...


class _Change(Protocol):
    def __call__(self, found: Compartment, /) -> Compartment: ...


def releases_origin(origin: str) -> str:
    """The origin of a keep's releases log."""
    return f"{origin}/releases"


def _ed25519_public(key: KeyVersion) -> bytes:
    return Ed25519PrivateKey.from_private_bytes(key.material["key"]).public_key().public_bytes_raw()


def _opener(word: Word) -> tuple[SetPassphrase | Unlocked, str]:
    """What opens the compartments, and what to say when it does not."""
    if isinstance(word, Unlocked):
        return word, "the passphrase was changed since this process started (start it again)"
    return SetPassphrase(word), "wrong passphrase"


def _open_all(store: KeyStore, families: Sequence[str], opener: Opener, wrong: str) -> list[Compartment]:
    if not families:
        raise Missing("there are no key compartments here")
    if lacking := set(families) - set(store.families()):
        new = lacking <= set(keys.LATER_FAMILIES)
        advice = "'modelkeep upgrade' makes it" if new else "restore it from a backup"
        raise Missing(f"there is no key compartment {', '.join(f'keys/{name}.keep' for name in sorted(lacking))}: {advice}")
    opened = []
    for family in families:
        sealed = store.read(family)
        try:
            plain = unpack_bytes(sealed, [opener], purpose=PURPOSE + family)
        except NotTrusted as cause:
            raise NotTrusted(f"{wrong}, or damaged compartment keys/{family}.keep ({cause})") from cause
        opened.append(Compartment.parse(plain, family))
    return opened


def _sealed(compartments: Sequence[Compartment], word: Recipient) -> dict[str, bytes]:
    """The files of ``compartments``, for ``word`` and the recovery identity."""
    return {
        each.family: pack_bytes(each.encode(), [word, XWingRecipient(each.recovery)], purpose=PURPOSE + each.family)
        for each in compartments
    }


def _trust_after(compartments: Mapping[str, Compartment], log_size: int) -> TrustRoot:
    """The trust root once keys changed: the token key follows, former identities end at ``log_size``, a new one begins."""
    trust = compartments[keys.STATEMENT_SIGNING].trust
    identities = list(trust.identities)
    for key in compartments[keys.STATEMENT_SIGNING].versions:
        known = [each for each in identities if each.name == identity_name(trust.origin, key.version)]
        if not known and key.state == keys.PRIMARY:
            identities.append(TrustedIdentity(public_of(trust.origin, key), first=log_size))
        elif known and known[-1].until is None and key.state not in (keys.PRIMARY, keys.PENDING):
            identities[identities.index(known[-1])] = msgspec.structs.replace(known[-1], until=log_size)
    token = [key for key in compartments[keys.TOKEN_SIGNING].versions if key.state == keys.PRIMARY]
    token_key = _ed25519_public(token[0]) if token else trust.token_key
    bundles = compartments.get(keys.OMS_SIGNING)
    oms = bundle_keys(trust.oms, trust.origin, bundles.versions, log_size) if bundles else trust.oms
    return msgspec.structs.replace(trust, identities=tuple(identities), token_key=token_key, oms=oms)
