"""Sign a release again whose statements no longer count because the key that signed them was compromised.

What those statements say is a claim and no more: the body is opened, the model in it digested and scanned anew, before a
trusted identity says the same of it. The release is then published, not promoted: that takes a decision of its own. One that
was in quarantine or retired at some time is in quarantine again.
"""

import contextlib

import msgspec

from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef, Resource, Statement
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.releases import QUARANTINE, RELEASE, RETIRE, Release
from modelkeep.custody.scan import refusal
from modelkeep.custody.signing import ReleaseFacts, SealedProfile, interface_of, release_statements, state_statement
from modelkeep.errors import Conflict, Missing, NotTrusted
from modelkeep.workflows.oms import sign_model
from modelkeep.workflows.registry import MODEL, PROFILE, Desk
from modelkeep.workflows.trust_changes import disowned


def resign(desk: Desk, ref: ReleaseRef, *, actor: str) -> ReleaseEvidence:
    """The release ``ref`` under this desk's identity, with the same model and the same bodies.

    Raises Conflict (its statements stand), Missing (nobody ever released it), NotTrusted (the body does not hold what was
    said), Denied (keys), Unavailable.
    """
    book = desk.registry.refresh()
    with contextlib.suppress(Missing):
        book.release(ref)
        raise Conflict(f"the statements of {ref} stand: there is nothing to sign again")
    claimed = disowned(desk.registry.view, book.signatories.root).release(ref)
    statements = release_statements(_proven(desk, claimed, actor))
    index = desk.log_statements([*statements, *_kept_away(desk, claimed, actor)])[len(statements) - 1]
    after = desk.registry.refresh().release(ref)
    if after.index != index:
        raise Conflict(f"{ref} was signed again meanwhile, by log entry {after.index}")
    _note(desk, after)
    return after


def _kept_away(desk: Desk, claimed: ReleaseEvidence, actor: str) -> list[Statement]:
    """A quarantine in the same step for what was ever taken away: whether a reinstatement was the thief's, nobody knows."""
    taken = [event for event in claimed.history if event.verb in (QUARANTINE, RETIRE)]
    if not taken:
        return []
    reason = f"signed again after a {taken[-1].verb} at log entry {taken[-1].index}: {taken[-1].reason}"[:2000]
    model, nonce, now = Resource(claimed.filename, claimed.model), desk.entropy.token(16), desk.clock.now_ns()
    return [state_statement(model, claimed.ref, QUARANTINE, actor=actor, at=now, nonce=nonce, reason=reason)]


def _proven(desk: Desk, claimed: ReleaseEvidence, actor: str) -> ReleaseFacts:
    """What is so of a claimed release, seen with our own eyes."""
    opened = desk.registry.open_body(claimed.body, claimed.model, MODEL)
    opened.check_model_digest()
    data = opened.read_source()
    verdict = desk.scanner.judge(data, claimed.filename)
    if refusal(verdict, claimed.filename) or (verdict.format, interface_of(verdict)) != (claimed.format, claimed.interface):
        raise NotTrusted(f"the model of {claimed.ref} is not what was said of it: publish it again from a copy that you trust")
    return ReleaseFacts(
        ref=claimed.ref,
        model=claimed.model,
        filename=claimed.filename,
        size=data.nbytes,
        scan=verdict,
        body=claimed.body,
        profile=_profile(desk, claimed),
        actor=actor,
        at=desk.clock.now_ns(),
        bundle=sign_model(desk, claimed.filename, claimed.model),
    )


def _profile(desk: Desk, claimed: ReleaseEvidence) -> SealedProfile | None:
    if claimed.profile is None or claimed.profile_body is None or claimed.profile_digest is None:
        return None
    desk.registry.open_body(claimed.profile_body, claimed.profile_digest, PROFILE).check_model_digest()
    said = claimed.profile
    return SealedProfile(claimed.profile_body, claimed.profile_digest, said.rows, said.reference, said.code, said.trace)


def _note(desk: Desk, after: ReleaseEvidence) -> None:
    """Write the new log indexes into the record; a cache, so whoever is quicker may win."""
    with contextlib.suppress(Conflict, Missing):
        record = desk.registry.records.get(RELEASE, str(after.ref))
        known = msgspec.structs.replace(Release.parse(record.body or b""), entries=after.entries)
        desk.registry.records.commit([Change(RELEASE, record.key, known.encode(), record.revision)])
