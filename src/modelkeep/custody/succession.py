"""Changes of the signing keys and of the trust root, as amendments that the custodian carries out whole or not at all."""

from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.core.ports import Entropy
from modelkeep.crypto.signatures import PublicIdentity
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
    """A statement identity more, pending: it signs nothing yet and nobody trusts it. One that is pending already stays, unless
    somebody else's identity has its name by now: then it could never be announced, and a fresh one takes its place.
    """

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        room = found[keys.STATEMENT_SIGNING]
        waiting = [key for key in room.versions if key.state == keys.PENDING]
        if waiting and not any(_taken(trust, public_of(trust.origin, key)) for key in waiting):
            return found, trust
        number = _free_number(room, trust)
        fresh = KeyVersion(number, keys.PENDING, now_ns, make(trust.origin, number))
        kept = tuple(key for key in room.versions if key.state != keys.PENDING)
        return {**found, room.family: msgspec.structs.replace(room, versions=(*kept, fresh))}, trust

    return change


def followed(fold: Callable[[TrustRoot], TrustRoot]) -> Amendment:
    """The trust root that the log led to, and the pending identity in use where the log announced it.

    ``fold``: the root in force after the whole log, from a root in hand. Changes nothing when nothing was announced.
    """

    def change(found: Compartments, trust: TrustRoot) -> tuple[Compartments, TrustRoot]:
        root = fold(trust)
        room = found[keys.STATEMENT_SIGNING]
        for key in room.versions:
            if key.state == keys.PENDING and _open_stretch(root, public_of(trust.origin, key)):
                room = _entered(room, key.version)
        return {**found, room.family: room}, root

    return change


def compromised(
    version: int, since: int, rogue: Mapping[str, int], limited: Collection[tuple[str, int]], make: MakeMaterial, now_ns: int
) -> Amendment:
    """Version ``version`` of the statement identity counts only for log indexes before ``since``; a fresh one is in use.

    ``rogue``: identities that the stolen key may have brought in, by the log index from which they counted: they never did.
    ``limited``: names and first indexes of stretches of others that it may have begun: they give no more than the one before.
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
            number = _free_number(room, trust)
            fresh = KeyVersion(number, keys.PENDING, now_ns, make(trust.origin, number))
            kept = tuple(key for key in room.versions if key.state != keys.PENDING)
            room = _entered(msgspec.structs.replace(room, versions=(*kept, fresh)), number)
        cuts = {name: since, **rogue}
        held = _unwidened(trust.identities, limited)
        identities = [_cut(each, cuts[each.name]) if each.name in cuts else each for each in held]
        successor = public_of(trust.origin, room.primary())
        if all(each.name != successor.name for each in identities):
            own = [each for each in identities if each.name == name]
            rights = next((each for each in reversed(own) if each.first <= since), own[0])  # a later limit may be the thief's
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


def _open_stretch(root: TrustRoot, public: PublicIdentity) -> bool:
    return any(each.public == public and each.until is None for each in root.identities)  # a name alone proves nothing


def _taken(trust: TrustRoot, public: PublicIdentity) -> bool:
    """Whether the name of ``public`` belongs to other keys."""
    return any(each.name == public.name and each.public != public for each in trust.identities)


def _free_number(room: Compartment, trust: TrustRoot) -> int:
    """The next version whose name nobody has: whoever may add identities may have taken the one that was next."""
    number = max((key.version for key in room.versions), default=0) + 1
    while identity_name(trust.origin, number) in {each.name for each in trust.identities}:
        number += 1
    return number


def _unwidened(identities: Iterable[TrustedIdentity], limited: Collection[tuple[str, int]]) -> list[TrustedIdentity]:
    """``identities`` with each of the stretches ``limited`` at most as wide as the stretch before; what narrows stays."""
    found: list[TrustedIdentity] = []
    for each in identities:
        former = next((one for one in reversed(found) if one.name == each.name), None)
        if (each.name, each.first) in limited and former is not None and not former.rights.covers(each.rights):
            found.append(msgspec.structs.replace(each, may_sign=former.may_sign, releases=former.releases))
        else:
            found.append(each)
    return found


def _cut(each: TrustedIdentity, since: int) -> TrustedIdentity:
    """``each`` without anything from ``since`` on."""
    until = max(each.first, since if each.until is None else min(since, each.until))
    return msgspec.structs.replace(each, until=until, compromised=True)
