"""Tracing a suspect model: what every account asked, from the audit logs, against what the suspect has learnt."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.arrays import load_rows
from modelkeep.app.histories import known_of, signups_of
from modelkeep.app.predictor import BATCH, Predictor
from modelkeep.app.premises import Premises
from modelkeep.app.receipts import prove_record
from modelkeep.app.results import Accusation, AccusedTogether
from modelkeep.app.upstreams import Upstreams
from modelkeep.core.values import Digest, ReleaseRef, Resource, digest_bytes, digest_of
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.keys import AUDIT_SUBJECT, MODEL_KEK, WATERMARK
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable
from modelkeep.extraction.accusation import Together, weigh_clusters, weigh_sets
from modelkeep.extraction.flips import spots_of
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.perturb import cells_of
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.scores import read_as_probabilities
from modelkeep.extraction.trace import AccountTrail, Heard, TraceResult, draw_probes, first_asked, hear, probe_seed, trace
from modelkeep.formats.detect import Format
from modelkeep.formats.safetensors import load
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.recovery import read_bodies
from modelkeep.workflows import upstream
from modelkeep.workflows.covariates import network_covariate
from modelkeep.workflows.decisions import Review, decisions_of
from modelkeep.workflows.marks import account_key
from modelkeep.workflows.registry import MODEL, PROFILE, Registry
from modelkeep.workflows.tracereport import Claim, Opened, code_digest

Rows = NDArray[np.float64]
PREDICT, DECEIVED, FLIPPED = "predict", "deceived", "flipped"
PROBES = ("data", "beacon", "log")
DRAWN = 2_000
"""Probes that are drawn where none are handed in."""
LONGEST_BEACON = 4096
LEAST_SIGNIFICANT = 0.1
"""Nobody is accused at a corrected p-value above this, whatever is asked for: the accusation stands in the log for good."""
DECIMALS = 4
"""Of the answers that a gateway gives."""


@dataclass(frozen=True)
class Suspect:
    """What is traced. ``kind``: ``onnx``, ``address`` or ``function``; ``digest``: of the file, or of the address; ``begin``:
    given a few rows of the width that it will be asked, rows (n, d) to the numbers (n, k) that it gives."""

    name: str
    kind: str
    digest: Digest
    begin: Callable[[Rows], Callable[[Rows], Rows]]

    def ask(self, rows: Rows) -> Callable[[Rows], Rows]:
        """Rows (n, d) to what it gives read as probabilities (n, k); ``rows``: some that it will be asked. Raises Invalid."""
        return read_as_probabilities(self.begin(rows), rows)


class Asked(NamedTuple):
    """What a trace is asked for. ``probes``: an npz file of natural rows, else they are drawn by ``beacon``, a value that
    nobody knew when the suspect was fixed, or by the suspect alone where there is none; ``significance``: of corrected
    p-values; ``report``: make the files that somebody else can run it by; ``seen``: Unix nanoseconds by which the suspect was
    there, 0 = nothing is known of its age but what the log says."""

    probes: bytes = b""
    beacon: bytes = b""
    significance: float = 1e-3
    report: bool = False
    seen: int = 0

    def probing(self) -> "Probing":
        """Where the probes come from. Raises Invalid."""
        if self.probes and self.beacon:
            raise Invalid("probes are handed in or drawn by a beacon: give one of them")
        if len(self.beacon) > LONGEST_BEACON:
            raise Invalid(f"a beacon has at most {LONGEST_BEACON:,} bytes")
        if self.probes:
            return Probing("data", load_rows(self.probes, "the probes"))
        return Probing("beacon", beacon=self.beacon) if self.beacon else Probing("log")

    def check(self, now: int) -> None:
        """Raises Invalid: it accuses too easily, or the suspect was seen after ``now``."""
        if not 0.0 < self.significance <= LEAST_SIGNIFICANT:
            raise Invalid(f"the significance of a trace is above 0 and at most {LEAST_SIGNIFICANT:g}")
        if not 0 <= self.seen <= now:
            raise Invalid("the suspect was seen at a time that has not come yet")


class Probing(NamedTuple):
    """Where probes come from: ``rows`` that were handed in (how = ``data``), or drawn by a ``beacon``, or by the suspect alone
    (``log``)."""

    how: str
    rows: Rows | None = None
    beacon: bytes = b""

    def said(self, given: bytes) -> str:
        """What the report says of them. ``given``: the file with the rows."""
        return str(digest_of(given)) if self.how == "data" else self.beacon.hex()


@dataclass(frozen=True)
class Recorded:
    """What an account asked a release, in order: ``x`` (n, d), ``served`` (n, k) as it left; ``first``: its first receipt;
    ``deceived``: the rows (m, d) that were answered falsely in a ``share`` of the regions, the last time that it was so;
    ``flipped``, ``flips``: the same of flipped labels; ``shared``: what others may share with it, its clusters' names."""

    x: Rows
    served: Rows
    first: str
    share: float
    deceived: Rows
    flips: float
    flipped: Rows
    shared: frozenset[str] = frozenset()


def onnx_suspect(data: bytes, name: str = "suspect") -> Suspect:
    """An ONNX model, scanned before it is loaded, and run in memory. Raises Invalid, NotTrusted."""
    verdict = scan(data, "suspect")
    reason = refusal(verdict, "suspect")
    if reason is None and verdict.format != Format.ONNX.id:
        raise Invalid(f"the suspect is {verdict.format}, and only an ONNX model can be asked here")
    if reason is not None:
        raise NotTrusted(f"the suspect is not run, because it is not clean: {reason.message}")
    interface = interface_of(verdict)
    return Suspect(name, "onnx", digest_of(data), lambda rows: Predictor(OnnxRuntime(data), interface, rows).scores)


class Traces:
    """The trace of suspects of one release: opens what it needs once. Raises Missing, Invalid, NotTrusted, Unavailable."""

    def __init__(self, premises: Premises, ref: ReleaseRef) -> None:
        self._here, self._ref = premises, ref
        self._keyring = premises.keyring([MODEL_KEK, AUDIT_SUBJECT, WATERMARK])
        self._registry = premises.registry(premises.openers())
        self._evidence = self._registry.release(ref)
        self._profile = _profile(self._registry, self._evidence)

    def run(self, suspect: Suspect, probing: Probing, seen: int = 0) -> "Trace":
        """Test every account that asked the release. ``seen``: Unix nanoseconds by which the suspect was there, 0 = not known.

        Nothing is claimed of an account whose key was committed to later than that: the key could have been made to fit.
        """
        epsilon, probes = self._here.settings.extraction.epsilon, self._probes(suspect, probing)
        victim, thief = self._victim(probes), suspect.ask(probes)
        recorded = recorded_answers(self._here, self._registry, self._ref)
        master = self._keyring.secret(WATERMARK)
        trails = [
            AccountTrail(
                subject, account_key(master, subject, self._ref), one.x, one.share, one.deceived, one.flips, one.flipped
            )
            for subject, one in recorded.items()
        ]
        heard = hear(thief, victim, probes)
        found = trace(thief, victim, trails, self._profile, probes=heard, epsilon=epsilon, decimals=DECIMALS)
        traced = decisions_of(self._registry.view, self._here.trust).traced if suspect.kind == "onnx" else {}
        known = [seen, traced.get(str(suspect.digest), 0)]  # what is at an address may be newer than its name
        since = min((at for at in known if at), default=0)
        committed = {subject: self._registry.book.committed_on(subject, self._ref) for subject in recorded}
        late = {subject for subject, at in committed.items() if since and (at is None or at >= since)}
        return Trace(suspect, probing, heard, found, recorded, since, frozenset(late))

    def claim(self, done: "Trace", given: bytes, significance: float, actor: str) -> Claim:
        """What a report of ``done`` claims. ``given``: the file with the probes, where they were handed in."""
        together = [one for one in done.together if one.p <= significance]
        named = {subject for one in together for subject in one.members}
        accused = [one for one in done.claimed if one.p_bonferroni <= significance or one.subject in named]
        return Claim(
            actor=actor,
            at=self._here.clock.now_ns(),
            release=str(self._ref),
            model=Resource(self._evidence.filename, self._evidence.model),
            suspect=Resource(done.suspect.name, done.suspect.digest),
            kind=done.suspect.kind,
            how=done.probing.how,
            said=done.probing.said(given),
            probes=done.probes,
            cells=cells_of(self._profile),
            spots=spots_of(self._profile),
            epsilon=self._here.settings.extraction.epsilon,
            decimals=DECIMALS,
            accounts=len(done.found),
            significance=significance,
            least=min((one.p_bonferroni for one in done.found), default=1.0),
            seen=done.seen,
            code=self._code([one.subject for one in accused]),
            accused=tuple(self._open(one, done.recorded[one.subject]) for one in accused),
            together=tuple(together),
        )

    def _code(self, subjects: Sequence[str]) -> bytes:
        """The proof of what the log says of cells and spots, if it said so before it committed to any of these keys."""
        book, profile = self._registry.book, self._evidence.profile
        index = book.profiled_at(self._ref)
        entries = [book.committed_at(subject, self._ref) for subject in subjects]
        if index is None or profile is None or any(at is None or at < index for at in entries):
            return b""
        if profile.code != code_digest(cells_of(self._profile), spots_of(self._profile)):  # of before, or of other rounding
            return b""
        return self._registry.prove(index).encode()

    def _open(self, one: TraceResult, recorded: Recorded) -> Opened:
        entry = self._registry.book.committed_at(one.subject, self._ref)
        if entry is None or one.heard is None:
            raise NotTrusted(f"the releases log does not commit to the key of {one.subject} for {self._ref}")
        try:
            first = prove_record(self._here, recorded.first)
        except (Unavailable, Missing):
            first = b""
        return Opened(
            subject=one.subject,
            key=account_key(self._keyring.secret(WATERMARK), one.subject, self._ref),
            entry=entry,
            p=one.p_value,
            corrected=one.p_bonferroni,
            statistics=one.statistics,
            heard=one.heard,
            lied=one.lied,
            flipped=one.flipped,
            served=recorded.served[first_asked(recorded.x)],
            proof=self._registry.prove(entry).encode(),
            first=first,
        )

    def _probes(self, suspect: Suspect, probing: Probing) -> Rows:
        rows = probing.rows
        if rows is None:
            seed = probe_seed(probing.beacon, digest_bytes(suspect.digest))
            rows = draw_probes(self._profile, DRAWN, seed)
        if rows.shape[1] != self._profile.n_features:
            raise Invalid(f"the probes have {rows.shape[1]} values a row, and {self._ref} takes {self._profile.n_features}")
        return rows

    def _victim(self, probes: Rows) -> Callable[[Rows], Rows]:
        return ask_release(self._here, self._registry, self._evidence, probes)


def ask_release(premises: Premises, registry: Registry, evidence: ReleaseEvidence, rows: Rows) -> Callable[[Rows], Rows]:
    """The model of a release, without marks: rows (n, d) to probabilities (n, k). ``rows``: a few that it will be asked.

    Needs the key family ``model-kek``. Raises Invalid, NotTrusted, Unavailable.
    """
    model = registry.open_body(evidence.body, evidence.model, MODEL).read_source()
    upstreams = Upstreams(premises.settings.upstream, premises.directory)
    batch = upstream.BATCH if evidence.format == Format.UPSTREAM.id else BATCH
    return Predictor(upstreams.runtime(evidence, bytes(model)), evidence.interface, rows, batch=batch).probabilities


@dataclass(frozen=True, eq=False)
class Trace:
    """A suspect that was tested: ``found``, smallest p first, and what it was computed from. ``seen``: Unix nanoseconds by
    which it was there, 0 = not known; ``late``: accounts whose keys were not committed to by then, of which nothing is
    claimed."""

    suspect: Suspect
    probing: Probing
    probes: Heard
    found: list[TraceResult]
    recorded: dict[str, Recorded]
    seen: int
    late: frozenset[str]

    @property
    def claimed(self) -> list[TraceResult]:
        """Those of ``found`` of which something may be claimed."""
        return [one for one in self.found if one.subject not in self.late]

    @cached_property
    def together(self) -> list[Together]:
        """Clusters and sets of accounts that stand out as groups."""
        logs = {one.subject: one.statistics["all"] * math.log(10) for one in self.claimed}
        clusters: dict[str, set[str]] = {}
        for subject, one in self.recorded.items():
            for name in one.shared:
                clusters.setdefault(name, set()).add(subject)
        return [*weigh_clusters(logs, clusters), *weigh_sets(logs)]

    def groups(self, names: Mapping[str, str]) -> tuple[AccusedTogether, ...]:
        """The same, with accounts by ``names``."""
        return tuple(
            AccusedTogether(one.name, tuple(names.get(who, who) for who in one.members), one.others, one.tests, one.p)
            for one in self.together
        )

    def accusations(self, names: Mapping[str, str]) -> tuple[Accusation, ...]:
        """Every account with its p-value. ``names``: of accounts, by pseudonym."""
        return tuple(
            Accusation(
                names.get(one.subject, one.subject),
                one.subject,
                one.p_bonferroni,
                one.statistics,
                len(self.recorded[one.subject].x),
                one.subject in self.late,
            )
            for one in self.found
        )


def _profile(registry: Registry, evidence: ReleaseEvidence) -> Profile:
    if evidence.profile_body is None or evidence.profile_digest is None:
        raise Missing(f"{evidence.ref} has no extraction profile: its answers were not marked")
    opened = registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE)
    return Profile.from_arrays(load(opened.read_source()))


def recorded_answers(premises: Premises, registry: Registry, ref: ReleaseRef) -> dict[str, Recorded]:
    """What every account asked one release and was answered; accounts whose key was erased are left out.

    Needs the key family ``audit-subject``. Raises NotTrusted, Unavailable.
    """
    decisions = decisions_of(registry.view, premises.trust)
    keys = SubjectKeys(premises.records, premises.ring_keys(AUDIT_SUBJECT), premises.entropy, decisions.epochs())
    ladders = premises.ladder.history(registry.book)
    signed_up = known_of(signups_of(premises))
    found: dict[str, list[_Part]] = {}
    for instance in premises.audit_instances():
        origin = premises.audit_origin(instance)
        vkey = encode_vkey(origin, premises.trust.audit_key)
        for index, entry, sealed in read_bodies(premises.audit_files(instance), vkey, origin):
            if entry.kind != PREDICT or entry.release != str(ref):
                continue
            try:
                body = keys.open(sealed, entry.subject, str(ref))
            except Missing:
                continue
            share = flips = 0.0
            if entry.outcome == DECEIVED:
                share = [ruled.ladder for ruled in ladders if ruled.at <= entry.t][-1].steps[Rung.SANCTION].deceive
            elif entry.outcome == FLIPPED:
                flips = _flips(decisions.reviews.get(entry.subject, ()), entry.t)
            found.setdefault(entry.subject, []).append(
                _Part(entry.t, f"{instance}/{index}", body.inputs(), body.served_probs(), share, flips, body.network)
            )
    joined = {subject: _joined(parts) for subject, parts in found.items()}
    return {subject: replace(one, shared=one.shared.union(signed_up(subject))) for subject, one in joined.items()}


class _Part(NamedTuple):
    """One record of an answer: time, receipt, questions, answers, the shares of false regions and of flipped labels, and the
    network's name."""

    t: int
    receipt: str
    x: Rows
    served: Rows
    share: float
    flips: float
    network: bytes


def _flips(reviews: Sequence[Review], t: int) -> float:
    """The share of flipped labels in force at ``t``: of the last review before it that said one, else of the first after it,
    for the clocks of two machines differ."""
    said = [review for review in reviews if review.flips]
    before = [review.flips for review in said if review.at <= t]
    return before[-1] if before else said[0].flips if said else 0.0


def _joined(parts: list[_Part]) -> Recorded:
    parts.sort(key=lambda part: part.t)  # in order over all gateways: an e-value looks at the first question of each region
    x, served = np.concatenate([part.x for part in parts]), np.concatenate([part.served for part in parts])
    share = next((part.share for part in reversed(parts) if part.share), 0.0)
    flips = next((part.flips for part in reversed(parts) if part.flips), 0.0)
    false = [part.x for part in parts if share and part.share == share]
    flipped = [part.x for part in parts if flips and part.flips == flips]
    return Recorded(
        x,
        served,
        parts[0].receipt,
        share,
        np.concatenate([x[:0], *false]),
        flips,
        np.concatenate([x[:0], *flipped]),
        frozenset(name for part in parts for name in network_covariate(part.network)),
    )


def recorded_questions(premises: Premises, registry: Registry, ref: ReleaseRef) -> dict[str, Rows]:
    """Every account's recorded questions (n, d) to one release; as ``recorded_answers``."""
    return {subject: one.x for subject, one in recorded_answers(premises, registry, ref).items()}
