"""Tracing a suspect model: what every account asked, from the audit logs, against what the suspect has learnt."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.predictor import BATCH, Predictor
from modelkeep.app.premises import Premises
from modelkeep.app.probing import Pools, Probing
from modelkeep.app.receipts import prove_record
from modelkeep.app.recorded import Recorded, recorded_answers
from modelkeep.app.traceresults import Accusation, AccusedTogether
from modelkeep.app.upstreams import Upstreams
from modelkeep.core.values import Digest, ReleaseRef, Resource, digest_bytes, digest_of
from modelkeep.custody.evidence import Committed, ReleaseEvidence
from modelkeep.custody.keys import AUDIT_SUBJECT, MODEL_KEK, WATERMARK
from modelkeep.custody.scan import refusal, scan
from modelkeep.custody.signing import interface_of
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable
from modelkeep.extraction.accusation import Together, weigh_clusters, weigh_sets
from modelkeep.extraction.flips import spots_of
from modelkeep.extraction.perturb import cells_of
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.reading import Heard, first_asked, hear
from modelkeep.extraction.regression import hear_numbers, one_number, trace_numbers
from modelkeep.extraction.scores import Patient, read_as_probabilities
from modelkeep.extraction.trace import AccountTrail, EpochRead, TraceResult, trace
from modelkeep.formats.detect import Format
from modelkeep.formats.safetensors import load
from modelkeep.workflows import upstream
from modelkeep.workflows.decisions import OpenedKey, decisions_of
from modelkeep.workflows.marks import account_key
from modelkeep.workflows.registry import MODEL, PROFILE, Registry
from modelkeep.workflows.tracereport import DECIMALS, Claim, Opened, Pooled, code_digest

Rows = NDArray[np.float64]


@dataclass(frozen=True)
class Suspect:
    """What is traced. ``kind``: ``onnx``, ``address`` or ``function``; ``digest``: of the file, or of the address; ``begin``:
    given a few rows of the width that it will be asked, rows (n, d) to the numbers (n, k) that it gives."""

    name: str
    kind: str
    digest: Digest
    begin: Callable[[Rows], Callable[[Rows], Rows]]

    def ask(self, rows: Rows, *, silent: bool = False) -> Callable[[Rows], Rows]:
        """Rows (n, d) to what it gives read as probabilities (n, k); ``rows``: some that it will be asked; ``silent``: it may
        refuse some, or answer them with what is no number. Raises Invalid."""
        begun = self.begin(rows)
        return read_as_probabilities(Patient(begun) if silent else begun, rows, silent=silent)

    def tell(self, rows: Rows) -> Callable[[Rows], Rows]:
        """Rows (n, d) to the one number (n, 1) that it gives for each; ``rows``: some that it will be asked."""
        ask = self.begin(rows)
        return lambda some: one_number(ask(some), len(some))


def onnx_suspect(data: bytes, name: str = "suspect", *, called: str = "the suspect") -> Suspect:
    """An ONNX model, scanned before it is loaded, and run in memory. ``called``: what errors call it. Raises Invalid,
    NotTrusted."""
    verdict = scan(data, "suspect")
    reason = refusal(verdict, "suspect")
    if reason is None and verdict.format != Format.ONNX.id:
        raise Invalid(f"{called} is {verdict.format}, and only an ONNX model can be asked here")
    if reason is not None:
        raise NotTrusted(f"{called} is not run, because it is not clean: {reason.message}")
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
        self._size = premises.settings.extraction.regression_epsilon * self._profile.error
        """Of the mark of a model that answers with one number, in its unit; 0 of any other model."""
        said = None if self._evidence.profile is None else self._evidence.profile.trace
        self._epsilon = premises.settings.extraction.epsilon if said is None else said.epsilon
        self._decimals = DECIMALS if said is None else said.decimals
        self._decisions = decisions_of(self._registry.view, premises.trust)
        first = self._registry.book.profiled_at(ref)
        self._pools = Pools(self._evidence, self._profile, self._decisions.pools, -1 if first is None else first)

    def check_reportable(self, probing: Probing) -> None:
        """Raise Invalid for a model that answers with numbers: ``trace-check`` does not compute those again yet; and for probes
        that prove nothing to anybody else."""
        if not self._profile.n_classes:
            raise Invalid(f"{self._ref} answers with numbers, and a trace of numbers has no report yet: leave --report out")
        self._pools.check_reportable(probing)

    def run(self, suspect: Suspect, probing: Probing, seen: int = 0) -> "Trace":
        """Test every account that asked the release. ``seen``: Unix nanoseconds by which the suspect was there, 0 = not known.

        Nothing is claimed of an account whose key was committed to later than that: the key could have been made to fit. Nor by
        a key from before the pool that the probes are drawn of: they could have been.
        """
        probes, pooled = self._pools.draw(probing, digest_bytes(suspect.digest))
        victim, thief = self._victim(probes), suspect.tell(probes) if self._size else suspect.ask(probes, silent=True)
        recorded = recorded_answers(self._here, self._registry, self._ref)
        heard = (hear_numbers if self._size else hear)(thief, victim, probes)
        decisions = self._decisions
        traced = decisions.traced if suspect.kind == "onnx" else {}
        known = [seen, traced.get(str(suspect.digest), 0)]  # what is at an address may be newer than its name
        since = min((at for at in known if at), default=0)
        held = _Held(
            str(self._ref),
            partial(self._registry.book.committed, ref=self._ref),
            decisions.opened,
            since,
            -1 if pooled is None else pooled.entry,
        )
        trails = [trail for subject, one in recorded.items() for trail in self._trails(subject, one, held)]
        if self._size:
            found = trace_numbers(thief, victim, trails, self._profile, probes=heard, size=self._size)
        else:
            found = trace(thief, victim, trails, self._profile, probes=heard, epsilon=self._epsilon, decimals=self._decimals)
        late = frozenset(subject for subject, one in recorded.items() if not held.usable(subject, one))
        spent = frozenset(subject for subject, one in recorded.items() if any(held.spent(subject, epoch) for epoch in one))
        return Trace(suspect, probing, heard, found, recorded, since, late, spent, pooled)

    def _trails(self, subject: str, recorded: Mapping[int, Recorded], held: "_Held") -> list[AccountTrail]:
        """One for each epoch of which something may be claimed; if there is none, of each, to be told and not claimed."""
        epochs = held.usable(subject, recorded) or recorded.keys()
        master, keys = self._keyring.secret(WATERMARK), len(self._registry.book.committed(subject, self._ref))
        return [
            AccountTrail(
                subject,
                account_key(master, subject, self._ref, epoch),
                one.x,
                one.share,
                one.deceived,
                one.flips,
                one.flipped,
                epoch,
                max(keys, 1),
            )
            for epoch, one in sorted(recorded.items())
            if epoch in epochs
        ]

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
            epsilon=self._epsilon,
            decimals=self._decimals,
            accounts=len(done.found),
            significance=significance,
            least=min((one.p_bonferroni for one in done.found), default=1.0),
            seen=done.seen,
            beacon=done.probing.beacon,
            pooled=done.pooled,
            pool=self._pool_proof(done),
            terms=self._evidence.profile is not None and self._evidence.profile.trace is not None,
            code=self._code([(one.subject, read.epoch) for one in accused for read in one.run]),
            accused=tuple(self._open(one, read, done.recorded[one.subject][read.epoch]) for one in accused for read in one.run),
            together=tuple(together),
        )

    def _code(self, keys: Sequence[tuple[str, int]]) -> bytes:
        """The proof of what the log says of cells and spots, if it said so before it committed to any of these keys."""
        book, profile = self._registry.book, self._evidence.profile
        index = book.profiled_at(self._ref)
        entries = [book.committed(subject, self._ref)[epoch].entry for subject, epoch in keys]
        if index is None or profile is None or any(at < index for at in entries):
            return b""
        if profile.code != code_digest(cells_of(self._profile), spots_of(self._profile)):  # of before, or of other rounding
            return b""
        return self._registry.prove(index).encode()

    def _pool_proof(self, done: "Trace") -> bytes:
        """The proof of what the log says of rows that were handed in; of the release's own pool it is that of the code."""
        if done.pooled is None or done.probing.how != "data":
            return b""
        return self._registry.prove(done.pooled.entry).encode()

    def _open(self, one: TraceResult, read: EpochRead, recorded: Recorded) -> Opened:
        committed = self._registry.book.committed(one.subject, self._ref)
        if read.epoch >= len(committed) or read.heard is None:
            raise NotTrusted(f"the releases log does not commit to the key of {one.subject} for {self._ref}")
        try:
            first = prove_record(self._here, recorded.first)
        except (Unavailable, Missing):
            first = b""
        return Opened(
            subject=one.subject,
            epoch=read.epoch,
            epochs=one.epochs,
            key=account_key(self._keyring.secret(WATERMARK), one.subject, self._ref, read.epoch),
            entry=committed[read.epoch].entry,
            p=one.p_value,
            corrected=one.p_bonferroni,
            statistics=read.statistics,
            heard=read.heard,
            lied=read.lied,
            flipped=read.flipped,
            served=recorded.served[first_asked(recorded.x)],
            proof=self._registry.prove(committed[read.epoch].entry).encode(),
            first=first,
        )

    def _victim(self, probes: Rows) -> Callable[[Rows], Rows]:
        model = release_predictor(self._here, self._registry, self._evidence, probes)
        if self._size:
            return model.numbers
        if not self._profile.n_classes:
            raise Invalid(
                f"the answers of {self._ref} carry no mark: it has no classes, and numbers are marked by the setting "
                "extraction.regression_epsilon where --reference of publish had the truth, an array 'y'"
            )
        return model.probabilities


@dataclass(frozen=True)
class _Held:
    """What may be claimed of a suspect that was there by ``since``, Unix nanoseconds, 0 = not known. ``committed``: the keys of
    a subject for the release ``ref``; ``opened``: those that reports told, and when; ``after``: log index of what says of which
    pool the probes are drawn, -1 = none does."""

    ref: str
    committed: Callable[[str], Sequence[Committed]]
    opened: Mapping[OpenedKey, int]
    since: int
    after: int = -1

    def usable(self, subject: str, epochs: Collection[int]) -> set[int]:
        """Those of ``epochs`` whose key the log committed to behind the pool and before the suspect was there, and no report
        opened by then."""
        known = self.committed(subject)
        behind = {epoch for epoch in epochs if epoch < len(known) and known[epoch].entry > self.after}
        old = {epoch for epoch in behind if not 0 < self.since <= known[epoch].at}
        return {epoch for epoch in old if not self.spent(subject, epoch)}

    def spent(self, subject: str, epoch: int) -> bool:
        """Whether a report opened the key before the suspect was there: then whoever read that could have made it."""
        at = self.opened.get(OpenedKey(self.ref, subject, epoch), 0)
        return at > 0 and not 0 < self.since <= at


def ask_release(premises: Premises, registry: Registry, evidence: ReleaseEvidence, rows: Rows) -> Callable[[Rows], Rows]:
    """The model of a release, without marks: rows (n, d) to probabilities (n, k). ``rows``: a few that it will be asked.

    Needs the key family ``model-kek``. Raises Invalid, NotTrusted, Unavailable.
    """
    return release_predictor(premises, registry, evidence, rows).probabilities


def release_predictor(premises: Premises, registry: Registry, evidence: ReleaseEvidence, rows: Rows) -> Predictor:
    """The model of a release as a function of rows, otherwise as ``ask_release``."""
    model = registry.open_body(evidence.body, evidence.model, MODEL).read_source()
    upstreams = Upstreams(premises.settings.upstream, premises.directory)
    batch = upstream.BATCH if evidence.format == Format.UPSTREAM.id else BATCH
    return Predictor(upstreams.runtime(evidence, bytes(model)), evidence.interface, rows, batch=batch)


@dataclass(frozen=True, eq=False)
class Trace:
    """A suspect that was tested: ``found``, smallest p first, and what it was computed from. ``recorded``: by subject and
    epoch; ``seen``: Unix nanoseconds by which it was there, 0 = not known; ``late``: accounts of which nothing is claimed, for
    by then each key was open or not yet committed to, or it is older than the pool; ``spent``: accounts of which a report had
    opened a key; ``pooled``: where the probes come from, None where nothing shows it."""

    suspect: Suspect
    probing: Probing
    probes: Heard
    found: list[TraceResult]
    recorded: dict[str, dict[int, Recorded]]
    seen: int
    late: frozenset[str]
    spent: frozenset[str] = frozenset()
    pooled: Pooled | None = None

    @property
    def claimed(self) -> list[TraceResult]:
        """Those of ``found`` of which something may be claimed."""
        return [one for one in self.found if one.subject not in self.late]

    @property
    def cautions(self) -> tuple[str, ...]:
        """What whoever reads the verdict should know of the probes, in words."""
        found = []
        if self.probing.how == "data" and self.pooled is None:
            found.append("The probes were not logged before the keys: whoever knows these can choose rows that accuse anybody.")
        if self.probes.silent:
            found.append(f"The suspect gave no numbers for {self.probes.silent:,} of {len(self.probes.x):,} probes.")
        refused = sum(read.heard.silent for one in self.found for read in one.run if read.heard is not None)
        if refused:
            found.append(f"It gave none for {refused:,} questions that accounts had asked.")
        return tuple(found)

    @cached_property
    def together(self) -> list[Together]:
        """Clusters and sets of accounts that stand out as groups."""
        logs = {one.subject: one.statistics["all"] * math.log(10) for one in self.claimed}
        clusters: dict[str, set[str]] = {}
        for subject, epochs in self.recorded.items():
            for name in frozenset[str]().union(*(one.shared for one in epochs.values())):
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
                sum(len(part.x) for part in self.recorded[one.subject].values()),
                one.subject in self.late,
                one.subject in self.spent,
            )
            for one in self.found
        )


def _profile(registry: Registry, evidence: ReleaseEvidence) -> Profile:
    if evidence.profile_body is None or evidence.profile_digest is None:
        raise Missing(f"{evidence.ref} has no extraction profile: its answers were not marked")
    opened = registry.open_body(evidence.profile_body, evidence.profile_digest, PROFILE)
    return Profile.from_arrays(load(opened.read_source()))
