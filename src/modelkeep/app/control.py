"""The control process, apart from its sockets: sessions, verbs on behalf of whoever may, audit checkpoints, integrity.

Control keeps an audit log of its own: a request of somebody who is known is answered only after its record is durable.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.authorize import check_scope, context_of
from modelkeep.access.directory import Directory
from modelkeep.access.limits import Limiter
from modelkeep.access.logins import Logins
from modelkeep.access.presented import Presented
from modelkeep.access.sessions import SessionIssuer, SessionVerifier, revoke_session
from modelkeep.access.steady import SteadyTime
from modelkeep.access.uses import EVERY, Uses
from modelkeep.access.view import Grant
from modelkeep.adapters.certificates import Certificates
from modelkeep.app.audits import new_series, recover_all
from modelkeep.app.handover import CONTROL_NAME, LEAF_SECONDS, Opened
from modelkeep.app.identity import KeyReader, Visitors, open_issuers, open_proofs
from modelkeep.app.keep import Keep
from modelkeep.app.premises import Premises
from modelkeep.app.receipts import phase_of
from modelkeep.app.scanresults import CLEAN
from modelkeep.app.settings import Settings
from modelkeep.app.sinktroubles import log_break_glass
from modelkeep.app.stepups import StepUps
from modelkeep.app.verbs import Verb, call, table
from modelkeep.core.values import Party, Principal, Role
from modelkeep.crypto.notes import encode_vkey, open_checkpoint
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import TLS_CA, TOKEN_SIGNING
from modelkeep.errors import Denied, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable
from modelkeep.policy.engine import KEEP, model
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.series import AuditSeries
from modelkeep.workflows.acts import log_audit_checkpoint
from modelkeep.workflows.breakglass import Glass, parse_break_glass

CONTROL = Principal("control@local", "control@local", (Role.ADMIN,), "local")
"""Who acts when nobody asked: the integrity pass, and what is settled at start."""

NOBODYS = "-"
"""No model can have this name: what is allowed on it is allowed on any."""
_VISIT_SECONDS = 0.25
_MARKS_SECONDS = 3600.0
MAX_SMALL = 1 << 20
"""Largest body of a call that carries no file, bytes."""


@dataclass
class Control:
    """What the HTTP layer of control calls. Thread-safe."""

    keep: Keep
    audit: AuditSeries
    directory_of_accounts: Directory
    visitors: Visitors
    logins: Logins
    issuer: SessionIssuer
    verifier: SessionVerifier
    addresses: Limiter
    failures: Limiter
    shown: Certificates
    report: Callable[[str], None] = print
    verbs: dict[str, Verb] = field(default_factory=lambda: table(Keep))
    settled: bool = False
    _ring: Keyring | None = None
    _logging: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _intel_done: str = ""
    url: str = "https://localhost"
    """Where control listens, as a browser on this machine names it."""

    def __post_init__(self) -> None:
        self.identity = StepUps(self)
        self._time = SteadyTime(self.keep.premises.clock)
        self._uses = Uses(self.keep.premises.records, self.keep.premises.clock)

    def now(self) -> int:
        """Unix time in seconds; it never goes back."""
        return self._time.now()

    def acting(self) -> Keep:
        """The keep, acted on by control itself."""
        return self.keep.acting_as(CONTROL)

    def party(self) -> Party:
        """Who asks for passkeys: the address of the settings, or the one that control listens on."""
        origin = self.settings.access.url or self.url
        return Party(urlsplit(origin).hostname or "", origin)

    @property
    def settings(self) -> Settings:
        """This keep's settings."""
        return self.keep.premises.settings

    @property
    def directory(self) -> Path:
        """The keep's folder."""
        return self.keep.premises.directory

    def login(self, account: str, password: str, new_password: str | None, address: str, code: str = "") -> tuple[str, int]:
        """A session token and its end, Unix seconds.

        Raises Unauthenticated, Denied (the password was a one-time one), Invalid, OverBudget.
        """
        made = self.identity.login(account, password, new_password, code, address)
        return made.access, made.session.exp

    def logout(self, presented: Presented) -> None:
        """End the session that asks. Raises Unauthenticated, Invalid (it is an API key)."""
        grant = self.authenticate(presented)
        if grant.kind != "session":
            raise Invalid("an API key is no session: revoke it with 'modelkeep key revoke'")
        session = self.verifier.verify(presented.token)
        self.keep.premises.records.commit(revoke_session(session))
        self.identity.end_family_of(session.jti)
        self.record("logout", grant.principal.subject, "", "ok")

    def authenticate(self, presented: Presented) -> Grant:
        """Who asks, on records read now. Raises Unauthenticated, OverBudget, Unavailable."""
        self.renew()
        self.directory_of_accounts.refresh()
        grant = self.directory_of_accounts.authenticate(presented)
        self._uses.note(grant.principal.credential)
        return grant

    def room(self, presented: Presented, name: str) -> int:
        """The largest body that a call of verb ``name`` may have, bytes: asked before any of it is read.

        Only a verb that takes a file has room for one, and only for those who may use it on something.
        Raises Unauthenticated, Denied, OverBudget, Unavailable.
        """
        grant = self.authenticate(presented)
        found = self.verbs.get(name)
        if found is None or not any(field.type is bytes for field in msgspec.structs.fields(found.params)):
            return MAX_SMALL
        with self._refusals(grant, name):
            policy = self.keep.premises.access
            targets = [model(known) for known in grant.principal.models] or [KEEP, model(NOBODYS), *policy.models]
            context = context_of(policy, presented.address)
            check_scope(grant.principal, found.action, targets[0])
            if not any(policy.decide(grant.principal, found.action, target, context).allowed for target in targets):
                raise Denied(policy.explain(grant.principal, found.action, targets[0], context))
        return self.settings.control.max_upload

    def run(self, presented: Presented, name: str, body: bytes) -> bytes:
        """Run a verb for whoever the credential speaks for *now*: the body may have come slowly, and it may have ended since.

        Raises what authentication and the verb raise; the record of a refusal is durable, too.
        """
        grant = self.authenticate(presented)
        with self._refusals(grant, name):
            answer = call(self.verbs, self.keep.acting_as(grant.principal, presented.address), name, body)
        self.record(f"admin:{name}", grant.principal.subject, "", "ok")
        return answer

    def renew(self) -> None:
        """Use the session keys of now: ``token-signing`` may have been rotated. Raises NotTrusted, Unavailable."""
        here = self.keep.premises
        ring, origin = here.keyring([TOKEN_SIGNING]), here.trust.origin
        if ring is not self._ring:
            issuer = self.settings.access.url
            self.issuer = SessionIssuer(ring.token_key(), origin, entropy=here.entropy, clock=here.clock, issuer=issuer)
            self.verifier = SessionVerifier(here.trust.token_keys, origin, issuer)
            self.directory_of_accounts.trust(here.trust.token_keys)
            self._ring = ring

    def log_checkpoint(self, note: bytes) -> None:
        """Append an audit checkpoint to the releases log, unless it is there. Raises NotTrusted, Unavailable."""
        here = self.keep.premises
        origin = note.partition(b"\n")[0].decode("utf-8", "replace")
        if not origin.startswith(f"{here.trust.origin}/audit/"):
            raise NotTrusted("this checkpoint is of a log of another keep")
        found = open_checkpoint(note, encode_vkey(origin, here.trust.audit_key), origin)
        with self._logging:
            known = here.registry().book.audits().get(origin)
            if known is not None and (found.size < known.size or (found.size == known.size and found.root.hex() != known.root)):
                raise NotTrusted(
                    f"the audit log {origin} was rolled back from {known.size} to {found.size} records, or rewritten"
                )
            if known is None or found.size > known.size:
                log_audit_checkpoint(here.desk(), note, found, actor=CONTROL.subject, phase=phase_of(here, found))

    def check_ready(self) -> None:
        """Raise Unavailable when no record of what somebody does could be written now."""
        if why := self.audit.failure or self.audit.refusal:
            raise Unavailable(why)

    def start(self) -> None:
        """Begin what control does by itself: integrity, handover of its checkpoint, keys, advisories, scans by new rules."""
        settings = self.settings
        due = (
            (self._pass, settings.control.integrity_seconds),
            (self._handover, settings.audit.handover_seconds),
            (self._keys, settings.keys.check_seconds),
            (self._intel, settings.intel.check_seconds),
            (self._rescan, settings.control.rescan_seconds),
            *(((self._marks, _MARKS_SECONDS),) if settings.extraction.mark_epoch_days else ()),
            *(((self._visits, _VISIT_SECONDS),) if settings.issuers else ()),
            (self._leaf, LEAF_SECONDS),
            (self._tidy, EVERY),
        )
        for work, pause in due:
            thread = threading.Thread(target=self._repeat, args=(work, pause), name=work.__name__, daemon=True)
            thread.start()
            self._threads.append(thread)
        if settings.witness.policy:
            self._threads.append(threading.Thread(target=self._witnesses, name="witnesses", daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End the background work, close the audit log and log its last checkpoint."""
        self._stop.set()
        self.keep.premises.logged.set()  # wakes whoever waits for something to be witnessed
        for thread in self._threads:
            thread.join()
        try:
            self._uses.flush()
        except ModelkeepError as cause:
            self.report(f"when API keys were last used was not written down: {cause}")
        try:
            self.log_checkpoint(self.audit.stop())
        except ModelkeepError as cause:
            self.report(f"control's last audit checkpoint was not logged: {cause}")

    def _repeat(self, work: Callable[[], None], pause: float) -> None:
        while True:
            try:
                work()
            except ModelkeepError as cause:
                self.report(f"control: {cause}")
            if self._stop.wait(pause):
                return

    def _witnesses(self) -> None:
        """Ask the witnesses after every append, and now and then those that were late."""
        logged, acting = self.keep.premises.logged, self.keep.acting_as(CONTROL)
        cosigning, told = acting.cosigning(), ""
        while not self._stop.is_set():
            logged.clear()
            try:
                acting.ask_witnesses(cosigning)
                told = ""
            except ModelkeepError as cause:
                if told != str(cause):
                    self.report(f"control: {cause}")
                told = str(cause)
            logged.wait(self.settings.witness.seconds)

    def settle(self) -> None:
        """Complete or collect what dead publishers left behind; later when a store does not answer now. Raises NotTrusted."""
        try:
            self.keep.settle()
        except Unavailable as cause:  # accounts must be manageable while models are out of reach
            self.report(f"control settles what dead publishers left at a later integrity pass: {cause}")
        else:
            self.settled = True

    def _pass(self) -> None:
        if not self.settled:
            self.settle()
        here = self.keep.acting_as(CONTROL)
        here.sweep_erased()
        here.integrity()

    def _keys(self) -> None:
        self.keep.acting_as(CONTROL).keys_due()

    def _intel(self) -> None:
        self._intel_done = self.keep.acting_as(CONTROL).intel_due(self._intel_done)

    def _leaf(self) -> None:
        """A fresh certificate before the one that is shown ends."""
        here = self.keep.premises
        if self.shown.renewal_due(here.clock.now_ns() / 1e9):
            self.shown.show(here.issue_leaf(here.keyring([TLS_CA]), (CONTROL_NAME,)))
            self.report("control: the certificate was renewed")

    def _tidy(self) -> None:
        self._uses.flush()
        self.identity.tidy()

    def _rescan(self) -> None:
        for done in self.keep.acting_as(CONTROL).rescan_stale():
            if done.outcome != CLEAN:
                why = done.problem or f"{done.outcome}: {done.findings[0].message}"
                self.report(f"control judged {done.ref} again: {why}")

    def _marks(self) -> None:
        if begun := self.keep.acting_as(CONTROL).marks_due():
            self.report(f"control: {begun} account marks have a new key")

    def _visits(self) -> None:
        """Read the keys of other issuers when they are due, and give whoever came from there a pseudonym."""
        self.visitors.look()
        for why in self.keep.acting_as(CONTROL).admit_newcomers():
            self.report(f"control let somebody of another issuer not in: {why}")

    def _handover(self) -> None:
        if final := self.audit.roll():
            self.log_checkpoint(final)
        self.log_checkpoint(self.audit.publish())

    @contextlib.contextmanager
    def _refusals(self, grant: Grant, name: str) -> Iterator[None]:
        """Make the record of a refusal durable before it is told."""
        try:
            yield
        except ModelkeepError as refusal:
            known = name if name in self.verbs else "unknown"  # what somebody typed is not recorded
            self.record(f"admin:{known}", grant.principal.subject, "", refusal.code)
            raise

    def subject_of(self, account: str) -> str:
        """The pseudonym of an account, "" when there is none. What was typed is not recorded: it may be a password."""
        try:
            return parse_account(self.keep.premises.records.get(ACCOUNT, account)).subject
        except Missing:
            return ""

    def record(self, kind: str, subject: str, request: str, outcome: str) -> None:
        """Wait until a record of a request is durable. Raises Unavailable: then nothing may be answered."""
        written: Future[int | ModelkeepError] = Future()
        entry = AuditEntry(kind=kind, subject=subject, release="", request=request, outcome=outcome)
        self.audit.submit(entry, b"", written.set_result)
        result = written.result()
        if isinstance(result, ModelkeepError):
            raise result


def open_control(directory: Path, opened: Opened, report: Callable[[str], None]) -> Control:
    """Open a keep for its control process; what dead processes left is settled first.

    Raises NotTrusted, Conflict, Unavailable.
    """
    keyring, leaf, unlocked = opened
    premises = Premises.open(directory, _no_passphrase, keyring, unlocked)
    keep = Keep(premises)
    clock, entropy, origin = premises.clock, premises.entropy, premises.trust.origin
    limits, issuer = premises.settings.limits, premises.settings.access.url
    rate, burst = limits.failures_rate, limits.failures_burst
    addresses = Limiter(clock.monotonic, rate=rate, burst=burst, what="logins from this address")
    failures = Limiter(clock.monotonic, rate=rate, burst=burst, what="bad credentials from this address")
    glass = Glass(parse_break_glass(premises.settings.audit.break_glass), clock.now_ns, clock.monotonic)
    recovered = recover_all(premises, keyring, report)
    audit = new_series(premises, keyring, "control", glass)
    issuers = open_issuers(directory, premises.settings, clock)
    accounts = Directory(
        premises.records,
        clock,
        premises.trust.token_keys,
        origin,
        failures=failures,
        issuers=issuers,
        proofs=open_proofs(premises.settings, clock, entropy.token(32)),
        report=report,
    )
    made = Control(
        keep=keep,
        audit=audit,
        directory_of_accounts=accounts,
        visitors=Visitors(accounts, KeyReader(issuers, report), report),
        logins=premises.logins,
        issuer=SessionIssuer(keyring.token_key(), origin, entropy=entropy, clock=clock, issuer=issuer),
        verifier=SessionVerifier(premises.trust.token_keys, origin, issuer),
        addresses=addresses,
        failures=failures,
        shown=Certificates(leaf),
        report=report,
    )
    made.settle()
    for note in recovered:
        made.log_checkpoint(note)
    log_break_glass(keep.acting_as(CONTROL), glass, report)
    keep.acting_as(CONTROL).commit_marks(keep.subjects())
    return made


def _no_passphrase() -> bytes:
    raise Invalid("this process was given its keys and no passphrase")
