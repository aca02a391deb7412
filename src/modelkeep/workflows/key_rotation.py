"""The life of a wrapping key: a new primary, everything wrapped under it, proof that nothing is left, the former key's end.

``rotate`` is the story, read top to bottom; ``move`` is the same with the new primary in another provider, and ``compromise``
seals anew whatever the key may have given away. Each begins by writing down a plan. Whoever is cut off anywhere leaves that
plan, and the next run goes on with it: no step is taken twice that matters, and no second new key is made. Every step is an
act in the releases log; one that was taken just before the cut may stand there twice.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from modelkeep.core.ports import Change, KeyInfo, Record, Wrapper, WrappingKeys
from modelkeep.core.records import parse_record
from modelkeep.core.values import Digest, to_json
from modelkeep.custody import keys
from modelkeep.custody.ringkeys import RingKeys
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted
from modelkeep.workflows.holdings import Holdings, wrapped_under
from modelkeep.workflows.publish import settle_publishers
from modelkeep.workflows.reencrypt import reencrypt, sealed_before
from modelkeep.workflows.registry import Desk
from modelkeep.workflows.rewrap import Progress, rewrap, silent

PLAN = "key-plan"
"""Record kind: what is being done to a family of wrapping keys; the key is the family."""
QUIET_SECONDS, QUIET_STEP = 120.0, 0.25
"""How long a rotation waits for publishers that may still wrap under the former key."""
USABLE = (keys.PRIMARY, keys.DECRYPT_ONLY)


class Plan(msgspec.Struct, frozen=True):
    """What is under way. ``former``: ids of the keys to retire; ``place``: URI of where the new primary is made, "" = where it
    is made anyhow; ``renew``: a new primary is made; ``began``: Unix nanoseconds; ``done``: steps that are in the log;
    ``compromised``: id of the key that somebody else may have, with the ``reason`` and the sealed digests ``exposed`` by it; ""
    for a mere rotation.
    """

    former: tuple[str, ...]
    began: int
    grace_days: int
    place: str = ""
    renew: bool = True
    keep_old: bool = False
    compromised: str = ""
    reason: str = ""
    exposed: tuple[str, ...] = ()
    done: tuple[str, ...] = ()


class Retired(msgspec.Struct, frozen=True):
    """A key that nothing is wrapped under any more. ``due``: when it is destroyed, Unix nanoseconds, 0 = it is already."""

    key_id: str
    state: str
    due: int


class Rotated(msgspec.Struct, frozen=True):
    """What a rotation did. ``primary``: id of the key in use; ``resealed``: releases that got fresh data keys."""

    family: str
    primary: str
    changed: int
    current: int
    resealed: int
    retired: tuple[Retired, ...]


@dataclass(frozen=True)
class Wheel:
    """One family of wrapping keys, and what turning it needs.

    ``providers``: where its keys live or lived, the place of now first; ``at``: the keys at a place; ``move``: have new keys
    made at a place; ``act``: log a step (verb, about, details).
    """

    family: str
    desk: Desk
    holdings: Holdings
    providers: Callable[[], tuple[WrappingKeys, ...]]
    at: Callable[[str], WrappingKeys]
    move: Callable[[str], None]
    act: Callable[[str, str, dict[str, str]], int]
    actor: str
    grace_days: int
    progress: Progress = silent

    @property
    def claim(self) -> str:
        """The name under which one process at a time turns it."""
        return f"keys-{self.family}"

    @property
    def now(self) -> WrappingKeys:
        """Where its keys are made now."""
        return self.providers()[0]


# -- the stories --


def rotate(wheel: Wheel, *, keep_old: bool = False) -> Rotated:
    """A new primary, everything rewrapped, the former keys disabled and scheduled for destruction. Run again to resume.

    ``keep_old``: the former keys stay as they are, able to open. Raises Conflict (another process turns the same keys, a
    publisher does not finish, or a key has a state that does not allow it), NotTrusted (something does not open; all else is
    rewrapped), Denied, Unavailable.
    """
    with wheel.desk.claims.hold(wheel.claim):
        plan = standing(wheel) or _begin(wheel, Plan(_usable(wheel), _now(wheel), wheel.grace_days, keep_old=keep_old))
        return _carry_out(wheel, plan)


def move(wheel: Wheel, place: str) -> Rotated:
    """The same with the new primary at ``place``, whose key is made unless it is there. Raises what ``rotate`` raises.

    Conflict, too, when something else is under way, or ``place`` is where the keys are made already.
    """
    with wheel.desk.claims.hold(wheel.claim):
        plan = standing(wheel)
        if plan is None:
            target = wheel.at(place)
            if target.uri == wheel.now.uri:
                raise Conflict(f"{wheel.family} keys are made at {target.uri} already: rotate them")
            plan = _begin(wheel, Plan(_usable(wheel), _now(wheel), wheel.grace_days, place=place or HERE))
        elif plan.place != (place or HERE):
            raise Conflict(
                f"a rotation of {wheel.family} was cut off: finish it first with 'modelkeep keys rotate {wheel.family}'"
            )
        return _carry_out(wheel, plan)


def compromise(wheel: Wheel, key_id: str, reason: str) -> Rotated:
    """Somebody else may have the key ``key_id``: what it may have given away gets fresh data keys, and the key ends.

    Exposed is every body that was ever wrapped under it, also one that was rewrapped since. Raises what ``rotate`` raises,
    Conflict when something else is under way, Missing.
    """
    with wheel.desk.claims.hold(wheel.claim):
        plan = standing(wheel)
        if plan is None:
            primary, exposed = _primary(wheel.now), tuple(sorted(_exposed(wheel, key_id)))
            made = Plan((key_id,), _now(wheel), wheel.grace_days, compromised=key_id, reason=reason, exposed=exposed)
            renew = primary is None or primary.key_id == key_id
            plan = _begin(wheel, msgspec.structs.replace(made, renew=renew))
        elif plan.compromised != key_id:
            raise Conflict(
                f"a rotation of {wheel.family} was cut off: finish it first with 'modelkeep keys rotate {wheel.family}'"
            )
        return _carry_out(wheel, plan)


def rewrap_only(wheel: Wheel) -> Rotated:
    """Everything under the primary that there is, and nothing else. Raises what ``rotate`` raises."""
    with wheel.desk.claims.hold(wheel.claim):
        primary = wheel.now.wrapper()
        done = rewrap(wheel.holdings, primary, wheel.progress)
        wheel.act("keys.rewrap", wheel.family, {"key": primary.key_id, "changed": str(done.changed)})
        return Rotated(wheel.family, primary.key_id, done.changed, done.current, 0, ())


def disable(wheel: Wheel, name: str) -> KeyInfo:
    """Stop a key from opening anything, once nobody can be about to wrap under it: a publisher who began when it was primary.

    Raises Conflict (it is in use, something is wrapped under it, or its state), Missing, Invalid, Unavailable.
    """
    with wheel.desk.claims.hold(wheel.claim):
        provider, info = find(wheel, name)
        if info.state == keys.PRIMARY:
            raise Conflict(f"{info.key_id} is in use: rotate {wheel.family} first")
        check_unused(wheel, info.key_id)
        _wait_for_publishers(wheel)
        check_unused(wheel, info.key_id)
        return provider.disable(info.version)


def carry_out_due(wheel: Wheel) -> list[Retired]:
    """Destroy the keys whose grace period is over. Raises Conflict (something is wrapped under one again), Unavailable."""
    gone = []
    for provider, info in _versions(wheel):
        if info.state == keys.PENDING_DESTRUCTION and 0 < info.due <= _now(wheel):
            check_unused(wheel, info.key_id)
            after = provider.destroy(info.version, grace_days=wheel.grace_days)
            if after.state == keys.PENDING_DESTRUCTION:
                continue  # a provider that carries it out by itself, and takes its time
            wheel.act("keys.destroyed", info.key_id, {})
            gone.append(Retired(after.key_id, after.state, after.due))
    return gone


def check_unused(wheel: Wheel, key_id: str) -> None:
    """Return if nothing is wrapped under ``key_id``. Raises Conflict, NotTrusted, Unavailable."""
    count = wrapped_under(wheel.holdings).get(key_id, 0)
    if count:
        raise Conflict(
            f"{count} {'thing is' if count == 1 else 'things are'} wrapped under {key_id}: "
            f"wrap them anew first with 'modelkeep keys rotate {wheel.family} --rewrap-only'"
        )


# -- the steps --

HERE = "ring"
"""How a plan says that keys move back into the keep's own ring."""


def _carry_out(wheel: Wheel, plan: Plan) -> Rotated:
    resealed = 0
    plan = _mark(wheel, plan)
    plan, primary = _new_primary(wheel, plan)
    _taint(wheel, plan)
    _wait_for_publishers(wheel)
    if plan.compromised and wheel.family == keys.MODEL_KEK:
        resealed = _reencrypt(wheel, plan)
        plan = _logged(wheel, plan, "keys.reencrypt", plan.compromised, {"releases": str(resealed)})
    done = rewrap(wheel.holdings, primary, wheel.progress)
    plan = _logged(wheel, plan, "keys.rewrap", wheel.family, {"key": primary.key_id, "changed": str(done.changed)})
    retired = () if plan.keep_old else _retire(wheel, plan)
    _finish(wheel)
    return Rotated(wheel.family, primary.key_id, done.changed, done.current, resealed, retired)


def _mark(wheel: Wheel, plan: Plan) -> Plan:
    """Say in the log that a key is compromised before anything is done about it."""
    if not plan.compromised:
        return plan
    return _logged(wheel, plan, "keys.compromise", plan.compromised, {"reason": plan.reason})


def _new_primary(wheel: Wheel, plan: Plan) -> tuple[Plan, Wrapper]:
    """The key that is used from now on: one that no former plan made, or the one that this plan made before it was cut off."""
    if plan.place:
        _move(wheel, plan, "" if plan.place == HERE else plan.place)
    primary = _primary(wheel.now)
    if primary is None or primary.key_id in plan.former:
        primary = wheel.now.rotate()
    if not plan.renew:
        return plan, primary
    said = {"key": primary.key_id, "former": " ".join(plan.former)}
    return _logged(wheel, plan, "keys.move" if plan.place else "keys.rotate", wheel.family, said), primary


def _taint(wheel: Wheel, plan: Plan) -> None:
    """Mark the compromised key in the keep's own ring; a provider has no such state, and its key is disabled in the end."""
    for provider, info in _named(wheel, [plan.compromised]):
        if isinstance(provider, RingKeys) and info.state in (keys.DECRYPT_ONLY, keys.DISABLED, keys.PENDING_DESTRUCTION):
            provider.compromise(info.version)


def _move(wheel: Wheel, plan: Plan, place: str) -> None:
    target = wheel.at(place)
    primary = _primary(target)
    if primary is None or primary.key_id in plan.former:
        _fresh(target)
    _prove(target)
    if wheel.now.uri != target.uri:
        wheel.move(place)


def _fresh(target: WrappingKeys) -> None:
    """A key where there may never have been one."""
    try:
        target.versions()
    except Missing:
        target.create()
    else:
        target.rotate()


def _prove(target: WrappingKeys) -> None:
    """See that a provider opens what it wraps before anything is entrusted to it. Raises NotTrusted, Denied, Unavailable."""
    wrapper, key, context = target.wrapper(), bytes(range(32)), b"modelkeep/proof/1"
    again = target.opens(wrapper.key_id)
    if again is None or again.unwrap(wrapper.wrap(key, context), context) != key:
        raise NotTrusted(f"the key at {target.uri} does not open what it wraps: it is not used")


def _primary(provider: WrappingKeys) -> Wrapper | None:
    try:
        return provider.wrapper()
    except (Missing, Denied):
        return None


def _wait_for_publishers(wheel: Wheel) -> None:
    """Wait for whoever began before the new primary was there and may wrap under the former one. Raises Conflict."""
    if wheel.family != keys.MODEL_KEK:
        wheel.desk.clock.sleep(2 * wheel.desk.lease)  # gateways get a changed key ring within a second
        return
    clock = wheel.desk.clock
    end = clock.monotonic() + QUIET_SECONDS
    waiting = set(settle_publishers(wheel.desk).underway)
    while waiting:
        if clock.monotonic() > end:
            raise Conflict(f"{', '.join(sorted(waiting))} is still being published under the former key: run this again later")
        clock.sleep(QUIET_STEP)
        waiting &= set(settle_publishers(wheel.desk).underway)


def _reencrypt(wheel: Wheel, plan: Plan) -> int:
    under = {held.record.key for held in wheel.holdings.scan() if plan.compromised in held.key_ids}
    exposed = set(plan.exposed) | under
    return reencrypt(wheel.desk, lambda body: body.sealed in exposed, actor=wheel.actor, progress=wheel.progress)


def _retire(wheel: Wheel, plan: Plan) -> tuple[Retired, ...]:
    """Disable the former keys, prove once more that nothing is under them, and schedule their destruction.

    A primary that was left behind in a provider stays as it is: only the provider's owner can end it.
    """
    for key_id in plan.former:
        check_unused(wheel, key_id)
    for provider, info in _named(wheel, plan.former):
        if info.state == keys.DECRYPT_ONLY:
            provider.disable(info.version)
        if info.state in (keys.DECRYPT_ONLY, keys.DISABLED):
            plan = _logged(wheel, plan, "keys.disable", info.key_id, {})
    _check_still_unused(wheel, plan)
    retired = []
    for provider, info in _named(wheel, plan.former):
        ready = info.state in (keys.DISABLED, keys.COMPROMISED)
        after = provider.destroy(info.version, grace_days=plan.grace_days) if ready else info
        if after.state in (keys.PENDING_DESTRUCTION, keys.DESTROYED):
            plan = _logged(wheel, plan, "keys.destroy", after.key_id, {"due": str(after.due)})
        retired.append(Retired(after.key_id, after.state, after.due))
    return tuple(retired)


def _check_still_unused(wheel: Wheel, plan: Plan) -> None:
    """Somebody may have wrapped under a key just before it was disabled: then it is enabled again. Raises Conflict."""
    try:
        for key_id in plan.former:
            check_unused(wheel, key_id)
    except Conflict:
        for provider, info in _named(wheel, plan.former):
            if info.state == keys.DISABLED:
                provider.enable(info.version)
        raise


# -- the plan --


def standing(wheel: Wheel) -> Plan | None:
    """The plan that somebody was cut off in. Raises NotTrusted (the record is damaged), Unavailable."""
    try:
        return _parse(wheel.desk.registry.records.get(PLAN, wheel.family))
    except Missing:
        return None


def _begin(wheel: Wheel, plan: Plan) -> Plan:
    wheel.desk.registry.records.commit([Change(PLAN, wheel.family, to_json(plan), 0)])
    return plan


def _logged(wheel: Wheel, plan: Plan, verb: str, about: str, detail: dict[str, str]) -> Plan:
    """Log a step that was taken, once: the plan remembers it."""
    step = f"{verb} {about}"
    if step in plan.done:
        return plan
    wheel.act(verb, about, detail)
    after = msgspec.structs.replace(plan, done=(*plan.done, step))
    wheel.desk.registry.records.commit([Change(PLAN, wheel.family, to_json(after))])
    return after


def _finish(wheel: Wheel) -> None:
    wheel.desk.registry.records.commit([Change(PLAN, wheel.family, None)])


def _parse(record: Record) -> Plan:
    return parse_record(record, Plan, f"the plan of a rotation of {record.key}", "restore the records from a backup")


# -- keys and what they are called --


def _now(wheel: Wheel) -> int:
    return wheel.desk.clock.now_ns()


def _versions(wheel: Wheel) -> Iterable[tuple[WrappingKeys, KeyInfo]]:
    for provider in wheel.providers():
        for info in provider.versions():
            yield provider, info


def _named(wheel: Wheel, key_ids: Iterable[str]) -> list[tuple[WrappingKeys, KeyInfo]]:
    wanted = set(key_ids)
    return [(provider, info) for provider, info in _versions(wheel) if info.key_id in wanted]


def _usable(wheel: Wheel) -> tuple[str, ...]:
    return tuple(info.key_id for _, info in _versions(wheel) if info.state in USABLE)


def find(wheel: Wheel, name: str) -> tuple[WrappingKeys, KeyInfo]:
    """A key by its id, or by its version where the family's keys are made now. Raises Missing, Invalid, Unavailable."""
    if not name.isdigit() and "/" not in name:
        raise Invalid(f"{name[:80]!r} is neither a version nor a key id: 'modelkeep keys list' shows both")
    for provider, info in _versions(wheel):
        if name in (info.key_id, str(info.version)):
            return provider, info
    raise Missing(f"{wheel.family} has no key {name[:120]}: 'modelkeep keys list' shows those that there are")


def _exposed(wheel: Wheel, key_id: str) -> set[Digest]:
    """Bodies whose data key was wrapped under a key at some time: those sealed before the next key took its place."""
    if wheel.family != keys.MODEL_KEK:
        return set()
    provider, info = find(wheel, key_id)
    later = [each.created for each in provider.versions() if each.version > info.version]
    if not later:
        return set(wheel.desk.registry.refresh().bodies())
    return sealed_before(wheel.desk, min(later))
