"""The verb that calibrates a release's null anew: over tools that are declared, and over what real accounts asked."""

from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from modelkeep.app.arrays import load_rows
from modelkeep.app.auditfolders import audit_folders
from modelkeep.app.calibrationresults import CalibrationDone, CostRow, ScoreRow
from modelkeep.app.oversight import DRIFT, EXTRACTION, OversightVerbs
from modelkeep.app.predictor import BATCH, Predictor, Rows
from modelkeep.app.premises import Premises
from modelkeep.app.upstreams import Upstreams
from modelkeep.app.verbs import verb
from modelkeep.core.values import ReleaseRef, digest_bytes, digest_of
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.keys import AUDIT_SUBJECT, MODEL_KEK
from modelkeep.errors import Conflict, Invalid, Missing
from modelkeep.extraction.calibration import (
    Fitted,
    Recorded,
    over_people,
    over_tool,
    prices,
    smallest_share,
    smallest_stretch,
)
from modelkeep.extraction.profile import Hidden, Profile, with_kappa
from modelkeep.formats.detect import Format
from modelkeep.formats.onnx_inner import with_output
from modelkeep.ledger.predicates import DeclaredTool
from modelkeep.operations.cases import KIND, CaseState, parse_case
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows import upstream
from modelkeep.workflows.calibrations import Basis, bounds_in_force, log_calibration, rounded_up
from modelkeep.workflows.decisions import Decisions
from modelkeep.workflows.evidence import in_time_order
from modelkeep.workflows.follow import open_profile
from modelkeep.workflows.registry import MODEL, Registry

PREDICT = "predict"
MOST_ROWS = 20_000
"""Recorded queries of one account that are looked at: its last ones."""
MOST_TOOLS = 16
LONGEST_REASON = 500


@dataclass
class _Asked:
    """The last queries of one account, as batches (rows, answers, coordinates of the inner layer)."""

    parts: deque[tuple[Rows, Rows, Hidden]] = field(default_factory=deque)
    rows: int = 0

    def add(self, x: Rows, probs: Rows, hidden: Hidden) -> None:
        self.parts.append((x, probs, hidden))
        self.rows += len(x)
        while self.rows - len(self.parts[0][0]) >= MOST_ROWS:
            self.rows -= len(self.parts.popleft()[0])

    def hidden(self) -> Hidden:
        """The coordinates of all of them; None of a profile without an inner layer."""
        seen = [hidden for _, _, hidden in self.parts if hidden is not None]
        return np.concatenate(seen) if seen else None


class CalibrationVerbs(OversightVerbs):
    """calibrate: the null of a release's extraction evidence."""

    @verb("calibrate")
    def calibrate(
        self,
        *,
        ref: str,
        tools: tuple[bytes, ...] = (),
        accounts: tuple[str, ...] = (),
        everyone: bool = False,
        period: tuple[int, int] = (0, 0),
        afresh: bool = False,
        dry_run: bool = False,
        reason: str = "",
    ) -> CalibrationDone:
        """Raise the bounds of what an honest account may do, and tell what it costs; gateways judge by them from then on.

        ``tools``: npz files of rows as a declared tool sends them, in its order; ``accounts``: names of accounts that use a
        declared tool, who are vouched for; ``everyone``: all accounts, of whom none widens the null alone; ``period``:
        recorded queries between these Unix nanoseconds, the second 0 = until now. The accused and confirmed thieves are left
        out. ``afresh``: begin from the profile's own bounds instead of those in force.
        ``dry_run``: log nothing. Raises Invalid, Missing, Conflict, NotTrusted, Unavailable.
        """
        self._check(tools, accounts, everyone, afresh, reason)
        asked, registry = self.ref(ref), self._open(accounts, everyone)
        known = registry.release(asked)
        profile = open_profile(registry, known)
        if profile is None:
            raise Missing(f"{asked} has no extraction profile: there is nothing to calibrate")
        earlier, in_force = registry.book.calibrations(asked), bounds_in_force(registry.book, asked)
        before = profile if in_force is None else with_kappa(profile, in_force)
        after = profile if afresh else before
        declared = []
        for data in tools:
            after, tool = self._with_tool(registry, known, after, data)
            declared.append(tool)
        since, until = period[0], period[1] or self.premises.clock.now_ns()
        whose = accounts, everyone, dry_run
        people, left_out = self._people(asked, whose, (since, until)) if accounts or everyone else ([], [])
        fitted = over_people(after, people)
        kappa = np.array(rounded_up(fitted.kappa))
        counted = sum(len(one.x) for one in people if one.subject not in fitted.short)
        index = -1
        if not dry_run:
            basis = Basis(
                tools=tuple(declared),
                accounts=fitted.accounts,
                rows=counted,
                since=since if people else 0,
                until=until if people else 0,
                afresh=afresh,
                reason=reason,
            )
            replaces = earlier[-1][0] if earlier else -1
            index = log_calibration(self.premises.desk(), asked, kappa, basis, actor=self.actor.subject, replaces=replaces)
            for found in self._open_incidents():
                if (found.kind, found.about) == (DRIFT, str(asked)):
                    self._resolve(found.id, f"calibrated by log entry {index}")
            self.premises.settle_lease()
        return self._calibrated(asked, index, before, with_kappa(profile, kappa), fitted, counted, left_out, declared)

    def _check(self, tools: Sequence[bytes], accounts: Sequence[str], everyone: bool, afresh: bool, reason: str) -> None:
        if not (tools or accounts or everyone or afresh):
            raise Invalid("say over what to calibrate: tools, accounts, everyone, or afresh alone to go back to the profile")
        if len(tools) > MOST_TOOLS or len(reason) > LONGEST_REASON:
            raise Invalid(f"a calibration takes at most {MOST_TOOLS} tools and a reason of {LONGEST_REASON} characters")

    def _open(self, accounts: Sequence[str], everyone: bool) -> Registry:
        self.premises.keyring([MODEL_KEK, AUDIT_SUBJECT] if accounts or everyone else [MODEL_KEK])
        return self.premises.registry(self.premises.openers())

    def _with_tool(
        self, registry: Registry, known: ReleaseEvidence, profile: Profile, data: bytes
    ) -> tuple[Profile, DeclaredTool]:
        rows, digest = load_rows(data, "the file of the tool"), digest_of(data)
        if rows.shape[1] != profile.n_features:
            raise Invalid(f"the rows of the tool have {rows.shape[1]} values each, and {known.ref} takes {profile.n_features}")
        probs = hidden = None
        if profile.n_classes or profile.layer is not None:
            model = bytes(registry.open_body(known.body, known.model, MODEL).read_source())
            upstreams = Upstreams(self.premises.settings.upstream, self.premises.directory)
            batch = upstream.BATCH if known.format == Format.UPSTREAM.id else BATCH
            runs = model if profile.layer is None else with_output(model, profile.layer.tensor)
            predictor = Predictor(upstreams.runtime(known, runs), known.interface, rows, batch=batch)
            probs = predictor.probabilities(rows) if profile.n_classes else None
            hidden = None if profile.layer is None else profile.layer.project(predictor.inner(profile.layer.tensor).of(rows))
        seed = int.from_bytes(digest_bytes(digest)[:8], "big")
        return with_kappa(profile, over_tool(profile, rows, probs, seed, hidden)), DeclaredTool(digest, len(rows))

    def _people(
        self, ref: ReleaseRef, whose: tuple[tuple[str, ...], bool, bool], period: tuple[int, int]
    ) -> tuple[list[Recorded], list[str]]:
        """What accounts asked in the period, and the names of those that are left out. ``whose``: these accounts, everyone, and
        whether it is a dry run."""
        accounts, everyone, dry_run = whose
        names, decisions = self.names(), self.premises.decisions()
        by_name = {name: subject for subject, name in names.items()}
        unknown = [name for name in accounts if name not in by_name]
        if unknown:
            raise Missing(f"there is no account {unknown[0][:64]!r}")
        vouched = {by_name[name] for name in accounts}
        falsely = {one.subject for one in decisions.false_alarms}  # for the next calibration, as their reviews said
        away = decisions.confirmed() | set(decisions.sanctioned) | self._accused() | self._in_cases()
        if dry_run:  # what it would cost to call the questions of an accused account honest
            away -= vouched
        if vouched & away:
            name = names[min(vouched & away)]
            raise Conflict(f"{name} is accused or was confirmed as a thief: review the account before its queries calibrate")
        asked = _recorded(self.premises, ref, decisions, period, None if everyone else vouched | falsely)
        people = [
            Recorded(
                subject,
                np.concatenate([x for x, _, _ in one.parts]),
                np.concatenate([probs for _, probs, _ in one.parts]),
                vouched=subject in vouched | falsely or bool(decisions.cleared_at(subject)),
                hidden=one.hidden(),
            )
            for subject, one in asked.items()
            if subject not in away
        ]
        return people, sorted(names.get(subject, subject) for subject in asked.keys() & away)

    def _accused(self) -> set[str]:
        """Subjects with an open extraction incident, on any release."""
        return {one.about.partition(" ")[0] for one in self._open_incidents() if one.kind == EXTRACTION}

    def _in_cases(self) -> set[str]:
        """Members of groups that are accused of acting as one and that nobody cleared: they could raise a bound together."""
        found = (parse_case(record) for record in self.premises.records.scan(KIND))
        open_ones = (one for case in found if case.state is not CaseState.CLEARED for one in case.accused)
        return {member.subject for one in open_ones for member in one.members}

    def _calibrated(
        self,
        ref: ReleaseRef,
        index: int,
        before: Profile,
        after: Profile,
        fitted: Fitted,
        rows: int,
        left_out: Sequence[str],
        tools: Sequence[DeclaredTool],
    ) -> CalibrationDone:
        names, alpha = self.names(), self.premises.settings.extraction.alpha
        # Both as a statement says them, so that what did not change reads so.
        old, new = (np.array(rounded_up(one.kappa)).reshape(-1, len(before.taus)) for one in (before, after))
        return CalibrationDone(
            ref=str(ref),
            log_index=index,
            tools=tuple(tools),
            accounts=fitted.accounts,
            rows=rows,
            smallest=smallest_stretch(before),
            short=tuple(sorted(names.get(subject, subject) for subject in fitted.short)),
            left_out=tuple(left_out),
            widest={names.get(subject, subject): count for subject, count in fitted.widest.items()},
            scores=tuple(
                ScoreRow(score, tuple(was.tolist()), tuple(now.tolist()))
                for score, was, now in zip(before.streams, old, new, strict=True)
            ),
            costs=tuple(CostRow(one.share, one.before, one.after) for one in prices(before.kappa, after.kappa, alpha)),
            smallest_share=(smallest_share(before.kappa, alpha), smallest_share(after.kappa, alpha)),
        )


def _recorded(
    premises: Premises, ref: ReleaseRef, decisions: Decisions, period: tuple[int, int], wanted: Collection[str] | None
) -> dict[str, _Asked]:
    """Recorded queries of accounts (all, or these) to one release in a period, in time order, by subject; but of the erased."""
    keys = SubjectKeys(premises.records, premises.ring_keys(AUDIT_SUBJECT), premises.entropy, decisions.epochs())
    asked: dict[str, _Asked] = {}
    for _, _, entry, sealed in in_time_order(audit_folders(premises)):
        ours = entry.kind == PREDICT and entry.release == str(ref) and period[0] <= entry.t < period[1]
        if not ours or (wanted is not None and entry.subject not in wanted):
            continue
        try:
            body = keys.open(sealed, entry.subject, str(ref))
        except Missing:
            continue
        asked.setdefault(entry.subject, _Asked()).add(body.inputs(), body.raw_probs(), body.coordinates())
    return asked
