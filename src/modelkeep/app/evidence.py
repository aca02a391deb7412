"""Where a gateway's extraction evidence is: in its own process, or in one that it shares with other workers."""

import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from functools import partial

import msgspec

from modelkeep.adapters.links import LinkClient
from modelkeep.app.auditfolders import audit_folder
from modelkeep.app.caseverbs import Standing, accused_of
from modelkeep.app.handover import hand_link
from modelkeep.app.histories import guard_of, history_of, known_of, signups_of
from modelkeep.app.keep import Keep
from modelkeep.app.oversight import DRIFT, EXTRACTION
from modelkeep.app.premises import Premises
from modelkeep.app.signups import Signups
from modelkeep.core.ports import Allowances
from modelkeep.core.tallies import Series
from modelkeep.errors import ModelkeepError
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.decisions import Decisions
from modelkeep.workflows.evidence import AuditFolder, Evidence, OwnEvidence
from modelkeep.workflows.registry import Registry
from modelkeep.workflows.sharing import MAX_FRAME
from modelkeep.workflows.siblings import EVERY, Siblings
from modelkeep.workflows.spendings import Spendings
from modelkeep.workflows.worker import SharedAllowances, SharedEvidence


class Worker(msgspec.Struct, frozen=True):
    """One of several processes that serve together: worker ``number`` (from 1) ``of`` so many. ``listens``: descriptor of the
    socket that they all take connections from, ``grpc``: of the one for gRPC, -1 = none."""

    number: int
    of: int
    listens: int
    grpc: int = -1

    @property
    def name(self) -> str:
        """Its name among the processes of the keep."""
        return f"worker-{self.number}"

    def share(self, whole: int) -> int:
        """This worker's part of a bound, rounded up."""
        return -(-whole // self.of)


class Held(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence and what keeps it up. ``look``: called four times a second, raises Unavailable when nothing may be served;
    ``ready``, ``tally`` and ``tallied``: as ``Service`` has them."""

    evidence: Evidence
    start: Callable[[], None]
    stop: Callable[[], None]
    look: Callable[[], None]
    ready: Callable[[], None]
    tally: Callable[[Sequence[Series]], None] = lambda _series: None
    tallied: Callable[[Sequence[Series]], Sequence[Series]] | None = None
    allowances: Allowances | None = None
    """What counts the limits that this process shares with other workers; None = it shares none."""


def keep_evidence(  # what a gateway has at hand
    here: Premises,
    audit: AuditSeries,
    keys: SubjectKeys,
    decisions: Decisions,
    registry: Registry,
    earlier: Sequence[AuditFolder],
    report: Callable[[str], None],
) -> Held:
    """Evidence of this process, rebuilt from ``earlier`` logs; what other gateways of the keep record is taken in."""
    signups = signups_of(here)
    evidence = own_evidence(here, lambda: earlier, keys, decisions, registry, signups)
    alarms = Alarms(here, evidence, signups)
    own = {audit.current.instance}  # and those of later periods

    def ours() -> set[str]:
        own.add(audit.current.instance)
        return own

    siblings = siblings_of(here, evidence, ours)
    thread = Repeated("evidence of other gateways", EVERY, siblings.look, report)

    def look() -> None:
        alarms.look()
        siblings.check()

    return Held(evidence=evidence, start=thread.start, stop=thread.stop, look=look, ready=siblings.check)


def share_evidence(  # what a worker has at hand
    here: Premises, audit: AuditSeries, keys: SubjectKeys, worker: Worker, updates: int, report: Callable[[str], None]
) -> Held:
    """Evidence that the owner keeps for all workers. ``updates``: descriptor of the socket to the process that started both."""
    evidence = SharedEvidence(here.clock, workers=worker.of, publish=audit.publish, forget=keys.forget)
    through = socket.socket(fileno=os.dup(updates))
    link = LinkClient(
        lambda end: hand_link(through, end),
        MAX_FRAME,
        connected=evidence.connected,
        received=evidence.received,
        lost=evidence.lost,
        report=report,
    )
    return Held(
        evidence=evidence,
        start=link.start,
        stop=link.stop,
        look=lambda: None,
        ready=evidence.check,
        tally=evidence.tally,
        tallied=evidence.tallied,
        allowances=SharedAllowances(evidence),
    )


def own_evidence(  # what a process that keeps it has at hand
    here: Premises,
    logs: Callable[[], Sequence[AuditFolder]],
    keys: SubjectKeys,
    decisions: Decisions,
    registry: Registry,
    signups: Signups | None,
) -> OwnEvidence:
    """Evidence that this process keeps, rebuilt from ``logs``, by the settings."""
    return OwnEvidence(history_of(here, logs, keys, decisions, registry), guard_of(here), known_of(signups))


def siblings_of(here: Premises, evidence: OwnEvidence, ours: Callable[[], set[str]]) -> Siblings:
    """The other gateways of this keep, by their audit logs."""
    return Siblings(evidence, here.audit_instances, partial(audit_folder, here), ours, here.clock)


DRIFTED = "the evidence of many accounts on {ref} rises together: who does not stand out is not accused until it is calibrated"
"""What an incident of drift says."""


class Alarms:
    """Opens an incident for every account that reaches the alarm rung, and for every release whose population drifted; a case
    for every cluster that is accused. Writes down what was learnt of budgets, and reads who signed up."""

    def __init__(self, premises: Premises, evidence: OwnEvidence, signups: Signups | None) -> None:
        self._keep = Keep(premises)
        self._evidence, self._signups = evidence, signups
        self._told: set[tuple[str, str]] = set()
        self._drifted: set[str] = set()
        self._cases: dict[tuple[str, str], Standing] = {}
        self._spendings = Spendings(premises.records, premises.clock, evidence.by_release)

    def look(self) -> None:
        """Open what is not open yet. Raises Unavailable, NotTrusted."""
        if self._signups is not None:
            self._signups.look()
        now = {(str(ref), subject): watch for ref, watch in self._evidence.by_release().items() for subject in watch.alarmed()}
        for ref, subject in sorted(now.keys() - self._told):
            # No odds here: the same alarm, found again by a restarted gateway, must read the same.
            detail = f"extraction alarm at query {now[ref, subject].verdict(subject).alarmed_at}: modelkeep account list"
            self._keep.raise_incident(EXTRACTION, f"{subject} on {ref}", detail, again=False)
        self._told = set(now)
        drifted = {str(ref): watch for ref, watch in self._evidence.by_release().items() if watch.withheld}
        for ref in sorted(drifted.keys() - self._drifted):
            self._keep.raise_incident(DRIFT, ref, DRIFTED.format(ref=ref))
        self._drifted = set(drifted)
        self._look_at_cases()
        self._spendings.look()

    def _look_at_cases(self) -> None:
        standing: dict[tuple[str, str], Standing] = {}
        for ref, watch in sorted(self._evidence.by_release().items()):
            for cluster in watch.cases():
                key, told = (str(ref), cluster.id), self._cases.get((str(ref), cluster.id))
                standing[key] = now = Standing(cluster.accused_at or 0, len(cluster.members), cluster.effective)
                if told is not None and not now.tells_more_than(told):
                    standing[key] = told
                    continue
                self._keep.open_case(cluster.id, accused_of(str(ref), cluster, watch.verdict))
                if told is None or told.accused_at != now.accused_at:
                    detail = f"accounts that act as one, accused at their query {now.accused_at}: modelkeep case {cluster.id}"
                    self._keep.raise_incident(EXTRACTION, f"{cluster.id} on {ref}", detail, again=False)
        self._cases = standing


def end_this_process() -> None:
    """Stop as if asked to: who started this process is gone, and its other workers may be, too."""
    os.kill(os.getpid(), signal.SIGTERM)


class Repeated(threading.Thread):
    """Does something every ``seconds`` until it is stopped; what goes wrong is told once, until it works again."""

    def __init__(self, name: str, seconds: float, work: Callable[[], None], report: Callable[[str], None]) -> None:
        super().__init__(name=name, daemon=True)
        self._seconds, self._work, self._report = seconds, work, report
        self._stop_now = threading.Event()
        self._told = ""

    def stop(self) -> None:
        """End it, after what it is doing."""
        self._stop_now.set()
        if self.ident is not None:
            self.join()

    def run(self) -> None:
        """What the thread does."""
        while not self._stop_now.wait(self._seconds):
            try:
                self._work()
                self._told = ""
            except ModelkeepError as cause:
                if str(cause) != self._told:
                    self._told = str(cause)
                    self._report(f"{self.name}: {cause}")
