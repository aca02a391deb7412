"""Verbs about the life of keys: list, inventory, new, rotate, move, disable, enable, destroy, cancel, compromise."""

from collections.abc import Callable

from modelkeep.adapters.keys.uri import open_keys
from modelkeep.app.keyresults import FamilyRow, HeldRow, Inventory, KeyRetired, KeyRotated, VersionRow
from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.premises import same_place
from modelkeep.app.settings import FILE_NAME
from modelkeep.app.verbs import verb
from modelkeep.core.ports import KeyInfo, WrappingKeys
from modelkeep.core.values import Digest
from modelkeep.custody.datasets import DATA_RECIPIENTS
from modelkeep.custody.keys import (
    COMPROMISED,
    DATA_KEK,
    DISABLED,
    FAMILIES,
    MODEL_KEK,
    OMS_SIGNING,
    PENDING_DESTRUCTION,
    SECOND_FACTOR,
    STATEMENT_SIGNING,
    TLS_CA,
    TOKEN_SIGNING,
    TURNING,
    WRAPPING_FAMILIES,
)
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.errors import Conflict, Denied, Invalid, ModelkeepError, Unavailable
from modelkeep.workflows import key_rotation
from modelkeep.workflows.bodies import referred
from modelkeep.workflows.holdings import Bodies, DataBodies, Holdings, SecondFactors, Subjects, wrapped_under
from modelkeep.workflows.key_rotation import Rotated, Wheel
from modelkeep.workflows.registry import Registry
from modelkeep.workflows.rewrap import Progress, silent

ROTATIONS: dict[str, str] = {
    STATEMENT_SIGNING: "rotate_statement_signing",
    TOKEN_SIGNING: "rotate_token_signing",
    TLS_CA: "rotate_tls_ca",
    OMS_SIGNING: "rotate_oms_signing",
}
"""Family of signing keys -> the method of the facade that rotates it: called with nothing, answers ``KeyRotated``."""
COMPROMISES: dict[str, str] = {
    STATEMENT_SIGNING: "compromise_statement_signing",
    TOKEN_SIGNING: "compromise_token_signing",
    TLS_CA: "compromise_tls_ca",
    OMS_SIGNING: "compromise_oms_signing",
}
"""Family of signing keys -> the method that is called with (version, reason, since) when one may be in other hands."""
KEYS = "keys"
"""Kind of an incident about keys."""
RING = "ring"
"""How a person says that keys live in the keep's own key ring."""
MAX_REASON = 2000


class KeyVerbs(OversightVerbs):
    """The life of keys. ``progress``: told how far a long one is; it does not travel to a server."""

    progress: Progress = staticmethod(silent)

    @verb("keys.show")
    def keys_list(self) -> tuple[FamilyRow, ...]:
        """Key families, where their keys live, and the states of their versions."""
        here, rows = self.premises, []
        ring = here.keyring(FAMILIES)
        for family in ring.families:
            place = ring.places(family)[-1]
            if family in TURNING:
                found = [info for provider in reversed(here.providers(family)) for info in _versions(provider)]
            else:
                own = (info for info in ring.inventory() if info.family == family)
                halves = ring.token_places() if family == STATEMENT_SIGNING else {}  # the other half is in the ring
                found = [
                    KeyInfo(
                        f"file:{family}/{i.version}{' + ' + halves[i.version] if i.version in halves else ''}",
                        i.version,
                        i.state,
                        i.created,
                        i.due,
                    )
                    for i in own
                ]
            purpose = "wraps" if family in WRAPPING_FAMILIES else "signs"
            rows.append(FamilyRow(family, purpose, place.partition("?")[0], tuple(VersionRow(*info) for info in found)))
        return tuple(rows)

    @verb("keys.show")
    def keys_inventory(self) -> Inventory:
        """What is wrapped under which key; and where records and stored bodies disagree."""
        rows = []
        for family in TURNING:
            wheel = self._wheel(family)
            held = wrapped_under(wheel.holdings)
            states = {info.key_id: info.state for provider in wheel.providers() for info in provider.versions()}
            known = dict.fromkeys([*states, *held])
            rows += [HeldRow(family, each, states.get(each, "unknown"), held.get(each, 0)) for each in known]
        return Inventory(tuple(rows), tuple(_disagreements(self.premises.registry())))

    @verb("keys.rotate")
    def keys_new(self, *, family: str) -> KeyRotated:
        """A new primary for what is new; what is wrapped stays under the former one. Raises Conflict, Denied, Unavailable."""
        wheel = self._wheel(family)
        with wheel.desk.claims.hold(wheel.claim):
            if key_rotation.standing(wheel) is not None:
                raise Conflict(f"a rotation of {family} was cut off: finish it first with 'modelkeep keys rotate {family}'")
            primary = wheel.now.rotate().key_id
            self.act("keys.new", family, key=primary)
        return KeyRotated(family, primary)

    @verb("keys.rotate")
    def keys_rotate(self, *, family: str, rewrap_only: bool = False, keep_old: bool = False) -> KeyRotated:
        """A new primary; everything wrapped under it; the former key disabled, and destroyed after a grace period.

        Run again to resume. ``rewrap_only``: no new key, only wrap what is not under the primary; ``keep_old``: do not disable
        the former key. Raises Conflict, NotTrusted (something does not open), Denied, Unavailable.
        """
        if family in ROTATIONS:
            if rewrap_only or keep_old:
                raise Invalid(f"{family} wraps nothing: rotate it without options")
            done: KeyRotated = getattr(self, ROTATIONS[family])()
            return done
        wheel = self._wheel(family)
        return _result(key_rotation.rewrap_only(wheel) if rewrap_only else key_rotation.rotate(wheel, keep_old=keep_old))

    @staticmethod
    def keys_create(uri: str, passphrase: Callable[[], bytes]) -> str:
        """The first key at a provider URI, for which no keep is needed; its id. Raises Conflict (there is one), Invalid."""
        return open_keys(uri, passphrase=passphrase).create().key_id

    def keys_move(self, uri: str) -> KeyRotated:
        """Have model keys made at ``uri`` (an HSM, a KMS; "ring": the keep's own) from now on, and wrap everything there.

        Only with the folder and the passphrase: whoever chooses the place could choose one of his own. Raises Invalid,
        Conflict, NotTrusted (the provider does not open what it wraps), Denied, Unavailable.
        """
        self.authorize("keys.move", {})
        place = "" if uri == RING else uri
        pinned = self.premises.settings.keys.model_kek
        if pinned and not same_place(pinned, place):
            raise Invalid(f"keys.model_kek in {FILE_NAME} says {pinned}: change or remove that setting first")
        self.premises.moving = True
        try:
            return _result(key_rotation.move(self._wheel(MODEL_KEK), place))
        finally:
            self.premises.moving = False

    @verb("keys.rotate")
    def keys_disable(self, *, family: str, version: str) -> VersionRow:
        """Stop a key from opening anything. Raises Conflict (something is wrapped under it, or its state), Missing."""
        return self._let("keys.disable", key_rotation.disable(self._wheel(family), version))

    @verb("keys.rotate")
    def keys_enable(self, *, family: str, version: str) -> VersionRow:
        """Let a disabled key open again. Raises Conflict (its state), Missing."""
        provider, info = key_rotation.find(self._wheel(family), version)
        return self._let("keys.enable", provider.enable(info.version))

    @verb("keys.destroy")
    def keys_destroy(self, *, family: str, version: str, now: bool = False, reason: str = "") -> VersionRow:
        """Destroy a disabled key after the grace period, or one whose period is over. It never comes back.

        ``now``: without a grace period, for a ``reason``. Raises Conflict (something is wrapped under it, its state, or not due
        yet), Missing, Invalid.
        """
        if (now and not reason) or len(reason) > MAX_REASON:
            raise Invalid(f"to destroy a key without a grace period, give a reason of at most {MAX_REASON:,} characters")
        wheel = self._wheel(family)
        provider, info = key_rotation.find(wheel, version)
        if info.state not in (DISABLED, COMPROMISED, PENDING_DESTRUCTION):
            raise Conflict(f"{info.key_id} is {info.state}: disable it first")
        key_rotation.check_unused(wheel, info.key_id)
        after = provider.destroy(info.version, grace_days=0 if now else wheel.grace_days)
        return self._let("keys.destroy", after, due=str(after.due), reason=reason)

    @verb("keys.destroy")
    def keys_cancel(self, *, family: str, version: str) -> VersionRow:
        """Take back a destruction that is not due yet; the key is disabled. Raises Conflict (none is pending), Missing."""
        provider, info = key_rotation.find(self._wheel(family), version)
        return self._let("keys.cancel", provider.cancel(info.version))

    @verb("keys.destroy")
    def keys_compromise(self, *, family: str, version: str, reason: str, since: str = "") -> KeyRotated:
        """A key may be in other hands: fresh data keys for whatever was ever under it, its end, and an incident.

        ``since``: for statement-signing the log index or time from which on what it signed no longer counts.

        Run again to resume. Raises Missing, Conflict, NotTrusted (a body is damaged: the others are done), Denied, Unavailable.
        """
        if not reason or len(reason) > MAX_REASON:
            raise Invalid(f"say why, in at most {MAX_REASON:,} characters")
        if family in COMPROMISES:
            told: KeyRotated = getattr(self, COMPROMISES[family])(version, reason, since)
            return told
        if since:
            raise Invalid("--since is for statement-signing: a key that wraps is compromised from the beginning")
        wheel = self._wheel(family)
        _, info = key_rotation.find(wheel, version)
        self.raise_incident(KEYS, info.key_id, f"the key may be in other hands: {reason}")
        return _result(key_rotation.compromise(wheel, info.key_id, reason))

    def keys_due(self) -> None:
        """What is due without anybody's asking: a rotation that was cut off, one by age, destructions whose time has come.

        What fails opens an incident. Raises what failed last.
        """
        self.authorize("keys.rotate", {})
        failed: ModelkeepError | None = None
        for family in TURNING:
            try:
                self._look(family)
            except ModelkeepError as failure:
                self.raise_incident(KEYS, family, f"what is due with the keys could not be done: {failure}", again=False)
                failed = failure
        if failed is not None:
            raise failed

    def _look(self, family: str) -> None:
        wheel = self._wheel(family)
        try:
            with wheel.desk.claims.hold(wheel.claim):
                pass
        except Conflict:
            return  # somebody is at it
        if key_rotation.standing(wheel) is not None or self._is_old(wheel):
            key_rotation.rotate(wheel)
        key_rotation.carry_out_due(wheel)

    def _is_old(self, wheel: Wheel) -> bool:
        ttl = self.premises.settings.keys.ttl_ns
        if not ttl:
            return False
        primary = wheel.now.wrapper().key_id
        created = next(info.created for info in wheel.now.versions() if info.key_id == primary)
        return 0 < created <= self.premises.clock.now_ns() - ttl

    def _wheel(self, family: str) -> Wheel:
        """Raises Invalid (a family of another kind), and what opening the keep's keys raises."""
        if family not in TURNING:
            known = ", ".join((*TURNING, *ROTATIONS))
            raise Invalid(f"{family[:40]!r} is not a family that this can be done to: possible are {known}")
        here = self.premises
        desk = here.desk()
        return Wheel(
            family=family,
            desk=desk,
            holdings=self._holdings(family, desk.registry),
            providers=lambda: here.providers(family),
            at=lambda place: here.provider(place, family),
            move=lambda place: here.move_keys(family, place),
            act=lambda name, about, detail: self.act(name, about, **detail),
            actor=self.actor.subject,
            grace_days=here.settings.keys.destroy_grace_days,
            progress=self.progress,
        )

    def _holdings(self, family: str, registry: Registry) -> Holdings:
        """What is wrapped under a family."""
        if family == MODEL_KEK:
            return Bodies(registry)
        if family == DATA_KEK:
            return DataBodies(registry, self.premises.data_openers())
        wrapped = self.premises.wrapping(family)
        return SecondFactors(registry.records, wrapped) if family == SECOND_FACTOR else Subjects(registry.records, wrapped)

    def _let(self, name: str, info: KeyInfo, **detail: str) -> VersionRow:
        self.act(name, info.key_id, **detail)
        return VersionRow(*info)


def _versions(provider: WrappingKeys) -> tuple[KeyInfo, ...]:
    """Its keys; one line that says so when it cannot be asked, so that the others are still listed."""
    try:
        return provider.versions()
    except (Unavailable, Denied):
        return (KeyInfo(provider.uri, 0, "unreachable", 0, 0),)


def _result(done: Rotated) -> KeyRotated:
    retired = tuple(KeyRetired(each.key_id, each.state, each.due) for each in done.retired)
    return KeyRotated(done.family, done.primary, done.changed, done.current, done.resealed, retired)


def _disagreements(registry: Registry) -> list[str]:
    """What the records, the log and the store of bodies say differently, one line each."""
    needed = referred(registry)
    kinds = (RECIPIENTS, DATA_RECIPIENTS)
    wrapped = {Digest(record.key) for kind in kinds for record in registry.records.scan(kind)}
    stored = set(registry.blobs.all())
    return [
        *(
            f"{sealed}: a release refers to it, and its recipients are gone: it cannot be opened"
            for sealed in sorted(needed - wrapped)
        ),
        *(f"{sealed}: a release refers to it, and the body is gone" for sealed in sorted(needed - stored)),
        *(f"{sealed}: wrapped, and no release refers to it" for sealed in sorted(wrapped - needed)),
        *(f"{sealed}: stored, and neither wrapped nor referred to" for sealed in sorted(stored - needed - wrapped)),
    ]
