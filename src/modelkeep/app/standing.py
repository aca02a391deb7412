"""How an account stands with a release, and how it got there: its questions judged again, and the records of its rungs."""

from modelkeep.app.accountresults import MoveRow, Standing
from modelkeep.app.auditfolders import audit_folders
from modelkeep.app.premises import Premises
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.errors import Missing
from modelkeep.extraction.budget import forecast, quoted
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.verdicts import Terms
from modelkeep.serving.audit import read_bodies
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows.calibrations import calibrations_of
from modelkeep.workflows.evidence import History
from modelkeep.workflows.follow import open_profile
from modelkeep.workflows.moves import RUNG, open_move
from modelkeep.workflows.watch import Observation, Today, Watch, day_of

_DAY = 86_400e9


class Judge:
    """Judges accounts from what the audit logs hold. Reads all of them, so it may take long."""

    def __init__(self, here: Premises) -> None:
        """Raises NotTrusted, Missing, Unavailable."""
        self._here, self._registry = here, here.registry(here.openers())
        self._decisions = here.decisions()
        self._keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, self._decisions.epochs())
        self._ladder = here.ladder.of(self._registry.book)

    def standing(self, ref: ReleaseRef, subject: str, terms: Terms) -> Standing | None:
        """How ``subject`` stands with ``ref``; None: it never asked, or the release has no profile. Raises NotTrusted, Missing
        (no such release), Unavailable."""
        profile = open_profile(self._registry, self._registry.release(ref))
        if profile is None:
            return None
        guard = Guard(profile, alpha=self._here.settings.extraction.alpha, ladder=self._ladder)
        guard.agree(subject, terms)
        watch, learnt = Watch(guard), list[tuple[float, float]]()
        calibrations = lambda one: calibrations_of(self._registry.book, one)  # noqa: E731
        history = History(lambda: audit_folders(self._here), self._keys, self._decisions.cleared_at, calibrations=calibrations)
        part: list[Observation] = []
        day = 0

        def close() -> None:
            watch.replay(part)
            part.clear()
            learnt.append((day + 1.0, guard.verdict(subject).budget.equivalent))

        for event in history.of(ref, subject):
            if isinstance(event, Observation):
                part.append(event)
                continue
            close()
            day = event.day if isinstance(event, Today) else day
            watch.take(event)
        close()
        if not guard.verdict(subject).queries and not guard.verdict(subject).budget.equivalent:
            return None
        return self._told(ref, subject, guard, learnt, profile)

    def _told(
        self, ref: ReleaseRef, subject: str, guard: Guard, learnt: list[tuple[float, float]], profile: Profile
    ) -> Standing:
        now = self._here.clock.now_ns()
        guard.begin(day_of(now))
        verdict, ladder = guard.verdict(subject), self._ladder
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
                    move = open_move(self._keys.existing(subject), sealed, subject, entry.release)
                except Missing:  # erased
                    continue
                share = move.equivalent / move.limit
                found.append(MoveRow(entry.t, move.before, move.after, move.odds, share, f"{instance}/{index}"))
        return sorted(found, key=lambda row: row.at)
