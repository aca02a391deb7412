"""How an account stands with a release, and how it got there: its questions judged again, and the records of its rungs."""

import math
from dataclasses import replace
from functools import partial

import msgspec

from modelkeep.app.accountresults import MoveRow, Standing
from modelkeep.app.auditfolders import audit_folders
from modelkeep.app.histories import guard_of, history_of, known_of, signups_of
from modelkeep.app.premises import Premises
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.errors import Missing
from modelkeep.extraction.budget import forecast, quoted
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.verdicts import Terms, Verdict
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows.follow import open_profile
from modelkeep.workflows.moves import RUNG, open_move
from modelkeep.workflows.watch import Observation, Today, Watch, day_of

_DAY = 86_400e9


class Judge:
    """Judges accounts from what the audit logs hold. Reads all of them, so it may take long.

    An account's evidence is its own, so its questions alone are judged. Only whom that puts higher than a population that
    drifted may be is judged a second time, among all others' questions.
    """

    def __init__(self, here: Premises) -> None:
        """Raises NotTrusted, Missing, Unavailable."""
        self._here, self._registry = here, here.registry(here.openers())
        self._decisions = here.decisions()
        self._keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, self._decisions.epochs())
        self._ladder = here.ladder.of(self._registry.book)
        self._history = history_of(here, lambda: audit_folders(here), self._keys, self._decisions, self._registry)

    def standing(self, ref: ReleaseRef, subject: str, terms: Terms, cases: tuple[str, ...] = ()) -> Standing | None:
        """How ``subject`` stands with ``ref``; None: it never asked, or the release has no profile. ``cases``: those that
        name it, and were not cleared. Raises NotTrusted, Missing (no such release), Unavailable."""
        profile = open_profile(self._registry, self._registry.release(ref))
        if profile is None:
            return None
        guard = guard_of(self._here)(profile)
        guard.agree(subject, replace(terms, budget=terms.budget * self._ladder.case) if cases else terms)
        watch, learnt = Watch(guard), list[tuple[float, float]]()
        part: list[Observation] = []
        day = 0

        def close() -> None:
            watch.replay(part)
            part.clear()
            learnt.append((day + 1.0, guard.verdict(subject).budget.equivalent))

        for event in self._history.of(ref, subject):
            if isinstance(event, Observation):
                part.append(event)
                continue
            close()
            day = event.day if isinstance(event, Today) else day
            watch.take(event)
        close()
        self._as_of_now(guard)
        found = msgspec.structs.replace(guard.verdict(subject), cases=cases)
        if not found.queries and not found.budget.equivalent:
            return None
        drifting = self._ladder.rung(math.exp(found.log_m), found.budget.share, alarmed=False, drifting=True)
        if found.rung > drifting and not terms.sanctioned:
            found = self._among_all(profile, ref, subject, terms)
        return self._told(ref, subject, found, learnt, profile)

    def _among_all(self, profile: Profile, ref: ReleaseRef, subject: str, terms: Terms) -> Verdict:
        """The verdict on ``subject`` as a gateway reaches it, which sees whether all others' evidence rises with its."""
        guard = guard_of(self._here)(profile)
        guard.agree(subject, terms)
        Watch(guard, known=known_of(signups_of(self._here))).replay(self._history.of(ref))
        self._as_of_now(guard)
        return guard.verdict(subject)

    def _as_of_now(self, guard: Guard) -> None:
        guard.adopt(self._ladder)
        guard.begin(day_of(self._here.clock.now_ns()))

    def _told(
        self, ref: ReleaseRef, subject: str, verdict: Verdict, learnt: list[tuple[float, float]], profile: Profile
    ) -> Standing:
        now, ladder = self._here.clock.now_ns(), self._ladder
        begins = day_of(now) // ladder.days * ladder.days
        today = now / _DAY
        said = forecast(
            [(min(day, today), questions) for day, questions in learnt if day > begins],
            verdict.budget.limit,
            now=today,
            begins=begins,
            ends=begins + ladder.days,
        )
        return Standing(
            release=str(ref),
            rung=verdict.rung.text,
            told=ladder.steps[verdict.rung].tells(confidences=profile.n_classes > 0) or "answers are as usual",
            odds=verdict.odds,
            queries=verdict.queries,
            effective=verdict.effective,
            learnt=verdict.budget.equivalent,
            limit=verdict.budget.limit,
            fidelity=verdict.budget.fidelity,
            measure=profile.fidelity,
            forecast=said.text,
            drifting=verdict.drifting,
            cases=verdict.cases,
            history=tuple(self._moves(ref, subject)),
            left=said.lasts,
            said=quoted(verdict.budget.equivalent, verdict.budget.limit, verdict.budget.fidelity, profile.fidelity),
        )

    def _moves(self, ref: ReleaseRef, subject: str) -> list[MoveRow]:
        found, here = [], self._here
        for instance in here.audit_instances():
            origin = here.audit_origin(instance)
            vkey = encode_vkey(origin, here.trust.audit_key)
            for index, entry, sealed in read_bodies(here.audit_files(instance), vkey, origin):
                if entry.kind != RUNG or (entry.subject, entry.release) != (subject, str(ref)):
                    continue
                try:
                    move = self._keys.opened(subject, partial(open_move, sealed=sealed, subject=subject, release=entry.release))
                except Missing:  # erased
                    continue
                share = move.equivalent / move.limit
                found.append(MoveRow(entry.t, move.before, move.after, move.odds, share, f"{instance}/{index}"))
        return sorted(found, key=lambda row: row.at)
