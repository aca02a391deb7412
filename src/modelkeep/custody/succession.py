"""Changes of the signing keys and of the trust root, as amendments that the custodian carries out whole or not at all."""

from collections.abc import Callable, Mapping

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.core.ports import Entropy
from modelkeep.custody import keys
from modelkeep.custody.identities import identity_name, public_of
from modelkeep.custody.keyring import Amendment
from modelkeep.custody.keys import Compartment, KeyVersion, new_material
from modelkeep.custody.trust import TrustedIdentity, TrustRoot

Compartments = Mapping[str, Compartment]
MakeMaterial = Callable[[str, int], dict[str, bytes]]
"""Secrets of a new version, from the keep's origin and the version's number."""


def software(entropy: Entropy) -> MakeMaterial:
    """Both seeds of a statement identity in the key ring."""
    return lambda _origin, _version: new_material(keys.STATEMENT_SIGNING, entropy)


def prepared(make: MakeMaterial, now_ns: int) -> Amendment:
    """A statement identity more, pending: it signs nothing yet and nobody trusts it. One that is pending already stays."""

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        room = found[keys.STATEMENT_SIGNING]
        if any(key.state == keys.PENDING for key in room.versions):
            return found, trust
        number = max((key.version for key in room.versions), default=0) + 1
        fresh = KeyVersion(number, keys.PENDING, now_ns, make(trust.origin, number))
        return {**found, room.family: msgspec.structs.replace(room, versions=(*room.versions, fresh))}, trust

    return change


def followed(fold: Callable[[TrustRoot], TrustRoot]) -> Amendment:
    """The trust root that the log led to, and the pending identity in use where the log announced it.

    ``fold``: the root in force after the whole log, from a root in hand. Changes nothing when nothing was announced.
    """

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        root = fold(trust)
        room = found[keys.STATEMENT_SIGNING]
        for key in room.versions:
            if key.state == keys.PENDING and _open_stretch(root, public_of(trust.origin, key).name):
                room = _entered(room, key.version)
        return {**found, room.family: room}, root

    return change


def compromised(version: int, since: int, rogue: Mapping[str, int], make: MakeMaterial, now_ns: int) -> Amendment:
    """Version ``version`` of the statement identity counts only for log indexes before ``since``; a fresh one is in use.

    ``rogue``: identities that the stolen key may have brought in, by the log index from which they counted: they never did.
    The fresh identity counts from ``since`` on: it is new, so nothing older can be signed with it. Repeated, it changes no key
    again, and an earlier ``since`` takes more away, never less.
    """

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        room = found[keys.STATEMENT_SIGNING]
        victim = room.at(version)
        name = public_of(trust.origin, victim).name
        if victim.state != keys.COMPROMISED:
            room = room.with_event(version, keys.COMPROMISE)
        if not any(key.state == keys.PRIMARY for key in room.versions):
            number = max(key.version for key in room.versions) + 1
            while identity_name(trust.origin, number) in {each.name for each in trust.identities}:
                number += 1  # the thief took the name that was next
            fresh = KeyVersion(number, keys.PENDING, now_ns, make(trust.origin, number))
            kept = tuple(key for key in room.versions if key.state != keys.PENDING)
            room = _entered(msgspec.structs.replace(room, versions=(*kept, fresh)), number)
        cuts = {name: since, **rogue}
        identities = [_cut(each, cuts[each.name]) if each.name in cuts else each for each in trust.identities]
        successor = public_of(trust.origin, room.primary())
        if all(each.name != successor.name for each in identities):
            rights = next(each for each in reversed(identities) if each.name == name)
            identities.append(TrustedIdentity(successor, rights.may_sign, since, None, rights.releases))
        return {**found, room.family: room}, msgspec.structs.replace(trust, identities=tuple(identities))

    return change


def token_key_begun(entropy: Entropy, now_ns: int) -> Amendment:
    """A fresh ``token-signing`` key in use, while the former one still verifies. A rotation under way stays as it is."""

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        if trust.token_key_before:
            return found, trust
        room = found[keys.TOKEN_SIGNING].rotated(entropy, now_ns)
        public = Ed25519PrivateKey.from_private_bytes(room.primary().material["key"]).public_key().public_bytes_raw()
        after = msgspec.structs.replace(trust, token_key=public, token_key_before=trust.token_key)
        return {**found, room.family: room}, after

    return change


def token_key_ended(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
    """The former ``token-signing`` key verifies nothing any more."""
    return found, msgspec.structs.replace(trust, token_key_before=b"")


def _entered(room: Compartment, version: int) -> Compartment:
    """``version`` in use; the former primary only verifies."""
    for key in room.versions:
        if key.state == keys.PRIMARY:
            room = room.with_event(key.version, keys.SUPERSEDE)
    return room.with_event(version, keys.ENTER)


def _open_stretch(root: TrustRoot, name: str) -> bool:
    return any(each.name == name and each.until is None for each in root.identities)


def _cut(each: TrustedIdentity, since: int) -> TrustedIdentity:
    """``each`` without anything from ``since`` on."""
    until = max(each.first, since if each.until is None else min(since, each.until))
    return msgspec.structs.replace(each, until=until, compromised=True)
