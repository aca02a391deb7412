"""The process that keeps the extraction evidence of a gateway with several workers, wired.

It holds no watermark key and no certificate, and listens nowhere: links to it come through the process that started it.
"""

import queue
import signal
import threading
from collections.abc import Callable
from pathlib import Path

from modelkeep.adapters.links import LinkServer
from modelkeep.adapters.state.memory import MemoryAllowances
from modelkeep.app.auditfolders import audit_folders
from modelkeep.app.audits import recover_all
from modelkeep.app.evidence import Alarms, Repeated, end_this_process, own_evidence, siblings_of
from modelkeep.app.gateway import Handover, authority_of, check_surplus, no_passphrase
from modelkeep.app.handover import Opened, follow_ring
from modelkeep.app.histories import signups_of
from modelkeep.app.premises import Premises
from modelkeep.app.processes import announce, find, withdraw
from modelkeep.core.values import ReleaseRef
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import AUDIT_SUBJECT, OWNER_FAMILIES
from modelkeep.errors import Missing, Unavailable
from modelkeep.extraction.profile import Profile
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows.cautions import Cautions
from modelkeep.workflows.decisions import decisions_of
from modelkeep.workflows.follow import EVERY, Authority, open_profile
from modelkeep.workflows.owner import Owner
from modelkeep.workflows.rules import Rules
from modelkeep.workflows.sharing import BEAT, MAX_FRAME
from modelkeep.workflows.siblings import EVERY as SIBLINGS_EVERY

NAME = "owner"
"""Its name among the processes of the keep."""


class _Jobs:
    """Does jobs one after the other in a thread, whose death is that of the process."""

    def __init__(self, done: Callable[[], None]) -> None:
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._done = done
        self._thread = threading.Thread(target=self._run, name="evidence-jobs", daemon=True)
        self._thread.start()

    def begin(self, job: Callable[[], None]) -> None:
        """Do ``job`` after those that wait."""
        self._waiting.put(job)

    def _run(self) -> None:
        while (job := self._waiting.get()) is not None:
            job()
            self._done()


def run_owner(directory: Path, opened: Opened, report: Callable[[str], None], updates: int) -> None:
    """Keep the evidence until SIGTERM. ``updates``: descriptor through which links to workers and changed keys come.

    Raises NotTrusted, Unavailable: what is recorded cannot be read, or the evidence got a hole; another start rebuilds it.
    """
    keyring = opened.keyring
    check_surplus(keyring, OWNER_FAMILIES)
    here = Premises.open(directory, no_passphrase, keyring)
    handover = Handover(directory)
    killed = find(directory, NAME) is not None  # who ended well took that back: else workers may hold leases of it

    def finish() -> None:
        for note in recover_all(here, keyring, report):
            handover.later(note)

    finish()
    registry = here.registry(here.openers())
    decisions = decisions_of(registry.view, here.trust)
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, decisions.epochs())
    signups = signups_of(here)
    evidence = own_evidence(here, lambda: audit_folders(here), keys, decisions, registry, signups)

    def profile_of(ref: ReleaseRef) -> Profile:
        profile = open_profile(registry, registry.book.release(ref))
        if profile is None:
            raise Missing(f"{ref} has no extraction profile")
        return profile

    jobs = _Jobs(lambda: server.wake())  # noqa: PLW0108  # it is made below
    siblings = siblings_of(here, evidence, lambda: owner.fed())  # noqa: PLW0108  # it is made below
    owner = Owner(
        evidence,
        profile_of,
        finish,
        clock=here.clock,
        begin=jobs.begin,
        allowances=MemoryAllowances(here.clock.monotonic, lost=killed),
        check=siblings.check,
        report=report,
    )
    server = LinkServer(MAX_FRAME, joined=owner.joined, received=owner.received, left=owner.left, report=report)
    cautions = Cautions(here.records, decisions, here.clock, evidence.by_release, lambda: rules.ladder.caution)
    rules = Rules(decisions, here.ladder, here.clock, cautions.factors)
    authority = authority_of(here, registry, rules, decisions)
    stopping = threading.Event()

    def stop(*_: object) -> None:
        stopping.set()
        server.wake()

    def take(changed: Keyring) -> None:
        check_surplus(changed, OWNER_FAMILIES)
        here.adopt(changed)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the workers end first, then SIGTERM comes
    follow_ring(updates, take, report, link=server.add, ended=end_this_process)
    alarms = Alarms(here, evidence, signups)
    threads = [
        Repeated("decisions", EVERY, lambda: _look(authority, owner, alarms, cautions), report),
        Repeated("evidence of other gateways", SIBLINGS_EVERY, siblings.look, report),
        Repeated("handover", here.settings.audit.handover_seconds, handover.waiting, report),
    ]
    for thread in threads:
        thread.start()
    announce(directory, NAME, "")
    try:
        while not stopping.is_set():
            if owner.failure:
                raise Unavailable(owner.failure)
            server.turn(0.0 if owner.round() else BEAT / 2)
    finally:
        for thread in threads:
            thread.stop()
        withdraw(directory, NAME)
    alarms.look()
    handover.waiting()


def _look(authority: Authority, owner: Owner, alarms: Alarms, cautions: Cautions) -> None:
    """Take in what was decided about accounts, and open an incident for each that is accused."""
    authority.refresh()
    cautions.look()
    authority.hand_over(owner.decided)
    alarms.look()
