"""What verbs about key families, keys and the trust root return."""

from msgspec import Struct


class VersionRow(Struct, frozen=True):
    """One key; a provider that cannot be asked is one line with the state ``unreachable`` and version 0.

    ``created``, ``due`` (of its destruction, 0 = none): Unix nanoseconds; ``created`` 0 = the provider does not say.
    """

    key_id: str
    version: int
    state: str
    created: int
    due: int


class FamilyRow(Struct, frozen=True):
    """One family of keys. ``purpose``: wraps or signs; ``place``: where its keys are made, "" = the keep's own key ring."""

    family: str
    purpose: str
    place: str
    versions: tuple[VersionRow, ...]


class HeldRow(Struct, frozen=True):
    """What is wrapped under one key: ``things`` sealed bodies, or keys of accounts."""

    family: str
    key_id: str
    state: str
    things: int


class Inventory(Struct, frozen=True):
    """What is wrapped under which key, and what the records say that the store does not have, or the other way round."""

    keys: tuple[HeldRow, ...]
    problems: tuple[str, ...]


class KeyRetired(Struct, frozen=True):
    """A former key. ``due``: when it is destroyed, Unix nanoseconds, 0 = it is already, or never by modelkeep."""

    key_id: str
    state: str
    due: int


class KeyRotated(Struct, frozen=True):
    """What a rotation did: the key in use, how many things were wrapped anew, how many releases got fresh data keys.

    ``gone``: releases that fell away with a compromised identity; ``held``: those that are no longer promoted for it;
    ``policies``: kinds of policy of which an earlier one is in force again for it.
    """

    family: str
    primary: str
    changed: int = 0
    current: int = 0
    resealed: int = 0
    retired: tuple[KeyRetired, ...] = ()
    gone: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()


class IdentityRow(Struct, frozen=True):
    """One identity of the trust root in one stretch of the log, ``first`` <= index < ``until`` (None: no end).

    ``key``: keyid of its Ed25519 key; ``ed25519`` and ``mldsa65``: where the two private keys live.
    """

    name: str
    state: str
    may_sign: tuple[str, ...]
    releases: tuple[str, ...]
    first: int
    until: int | None
    key: str
    ed25519: str
    mldsa65: str


class TrustChanged(Struct, frozen=True):
    """An identity after a change. ``log_index``: of the statement; it holds from the next index on."""

    name: str
    log_index: int
    may_sign: tuple[str, ...]
    releases: tuple[str, ...]
    in_force: bool
