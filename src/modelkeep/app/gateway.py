"""The gateway process, wired: what serving needs and nothing else, from compartments that were handed over."""

import signal
import ssl
import threading
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import msgspec

from modelkeep.access.directory import Directory
from modelkeep.access.leases import Leases
from modelkeep.access.limits import Limiter, Limits
from modelkeep.access.networks import Networks
from modelkeep.access.quotas import Quotas
from modelkeep.access.rates import Override, Rates
from modelkeep.access.stepup import StepUp, StepUpTerms
from modelkeep.access.uses import Uses
from modelkeep.access.work import Work
from modelkeep.adapters.certificates import CertificateFiles, Certificates, CertificateWatch
from modelkeep.adapters.tls import Identity
from modelkeep.app.auditfolders import audit_folders
from modelkeep.app.audits import new_series, recover_all
from modelkeep.app.evidence import Worker, end_this_process, keep_evidence, share_evidence
from modelkeep.app.handover import CONTROL_NAME, Opened, follow_ring
from modelkeep.app.identity import KeyReader, Visitors, client_authorities, open_issuers, open_proofs
from modelkeep.app.premises import CA_FILE, Premises
from modelkeep.app.processes import announce, find, withdraw
from modelkeep.app.sections import AccessSettings, GatewaySettings, LimitSettings, ValidationSettings
from modelkeep.app.settings import load
from modelkeep.app.sinktroubles import SinkTroubles
from modelkeep.app.stores import open_state
from modelkeep.app.upstreams import Upstreams
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.kdf import hkdf
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import AUDIT_SUBJECT, GATEWAY_FAMILIES, WATERMARK
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.extraction.ladder import Rung
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.validate import RangePolicy
from modelkeep.workflows.admitted import LEASE, Admitted
from modelkeep.workflows.breakglass import Glass, GlassWatch, parse_break_glass
from modelkeep.workflows.budgets import Spent
from modelkeep.workflows.cautions import Cautions
from modelkeep.workflows.decisions import Decisions, decisions_of
from modelkeep.workflows.doors import Doors
from modelkeep.workflows.explain import Explainer, ExplainTerms
from modelkeep.workflows.follow import AdmissionFollower, Authority, Loader, open_release
from modelkeep.workflows.marks import Marks
from modelkeep.workflows.moves import Moves
from modelkeep.workflows.predict import Gateway, Terms
from modelkeep.workflows.recorder import Delivery, Recorder
from modelkeep.workflows.registry import Registry
from modelkeep.workflows.rules import Rules
from modelkeep.workflows.service import Listen, Service

if TYPE_CHECKING:
    from modelkeep.adapters.traces import Traces

GATEWAY = "gateway@local"


def open_gateway(
    directory: Path,
    opened: Opened,
    only: Sequence[ReleaseRef],
    report: Callable[[str], None],
    updates: int = -1,
    worker: Worker | None = None,
    *,
    auto: bool = False,
    traces: "Traces | None" = None,
) -> Service:
    """Wire a gateway for the keep in ``directory``. ``only``: serve no other releases (empty: all that are promoted).

    ``updates``: descriptor of the socket that changed key compartments come through, -1 = none; ``auto``: show a certificate of
    this keep's authority, whatever the settings say; ``traces``: has phases of requests become spans. What dead gateways left
    is finished first, and their records rebuild the evidence; ``worker``: another process does both for this one and others.
    Raises Invalid (a compartment that a gateway must not hold is open), NotTrusted, Conflict, Unavailable.
    """
    keyring, leaf, _ = opened
    check_surplus(keyring)
    own = own_certificate(directory, auto)
    here = Premises.open(directory, no_passphrase, keyring)
    clock, settings, trust = here.clock, here.settings, here.trust
    check_grpc(settings.gateway)
    handover = Handover(directory)
    for note in recover_all(here, keyring, report) if worker is None else ():
        handover.later(note)
    registry = here.registry(here.openers())
    decisions = decisions_of(registry.view, trust)
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy, decisions.epochs())
    earlier = audit_folders(here)  # this process's own log, begun below, is no history
    delivery = Delivery()
    glass = Glass(parse_break_glass(settings.audit.break_glass), clock.now_ns, clock.monotonic)
    watch = GlassWatch(glass, trust)
    watch.catch_up(registry.view, registry.view.checkpoint.size)
    audit = new_series(here, keyring, "gateway", glass, delivery)
    recorder = Recorder(audit, clock)
    access, visitors = _directory(here, keyring, report)
    quotas = Quotas(here.records, clock.monotonic)
    step_up = StepUp(step_up_terms(settings.access), quotas, clock)
    uses = Uses(here.records, clock)
    held = (
        keep_evidence(here, audit, keys, decisions, registry, earlier, report)
        if worker is None
        else share_evidence(here, audit, keys, worker, updates, report)
    )
    counted = open_state(settings, trust.origin, here.records, here.entropy) or held.allowances
    leases = None if counted is None else Leases(counted, clock.monotonic)
    doors = Doors(
        directory=traces.see(access, authenticate="credential") if traces else access,
        limits=Limits(
            clock.monotonic,
            rates_of(settings.limits),
            in_flight=settings.limits.in_flight,
            in_flight_total=settings.limits.in_flight_total,
            cells=leases,
        ),
        quotas=quotas,
        policy=here.access_in_force.engine,
        step_up=step_up,
        work=Work(hkdf(keyring.secret(WATERMARK), salt=b"", info=b"modelkeep/work-key/1"), step_up, clock),
        uses=uses,
    )
    extraction = settings.extraction
    gateway = Gateway(
        doors,
        keys,
        Marks(keyring.secret(WATERMARK), registry.book.committed),
        traces.see(recorder, write="record") if traces else recorder,
        clock=clock,
        terms=Terms(epsilon=extraction.epsilon, regression_epsilon=extraction.regression_epsilon, contact=extraction.contact),
        networks=_networks(keyring) if "network" in extraction.clusters else None,
        flips=decisions.flipping,
    )
    start = Upstreams(settings.upstream, directory, report).runtime
    runtimes = traces.runtime(start) if traces else start
    loader = Loader(partial(open_release, registry), runtimes, clock, held.evidence, ranges=_ranges(settings.validation))
    troubles = SinkTroubles(here, audit, report)

    def watch_sinks() -> None:
        watch.catch_up(registry.view, registry.view.checkpoint.size)
        troubles.look()

    cautions = Cautions(here.records, decisions, clock, held.evidence.by_release, lambda: rules.ladder.caution, doors.sightings)
    rules = Rules(decisions, here.ladder, clock, cautions.factors)

    def admit(admitted: Admitted) -> None:
        gateway.admitted, gateway.ladder, gateway.renews = admitted, rules.ladder, rules.renews

    follower = AdmissionFollower(
        authority_of(here, registry, rules, decisions),
        loader,
        clock,
        publish=admit,
        also=(
            lambda: access.trust(here.trust.token_keys),
            access.refresh,
            visitors.look,
            quotas.refill,
            uses.flush_when_due,
            held.look,
            watch_sinks,
            Moves(here.records, keys, held.evidence.by_release, audit, decisions.epochs()).look,
            cautions.look,
        ),
        only=only,
        report=report,
    )

    def take(changed: Keyring) -> None:
        check_surplus(changed)
        here.adopt(changed)
        follower.retry()

    shown = _certificates(here, leaf, own, report)
    if updates >= 0:
        follow_ring(
            updates,
            take,
            report,
            ended=end_this_process if worker else lambda: None,
            show=(lambda _leaf: None) if own else shown.show,
        )
    place = worker or Worker(1, 1, -1)
    listen = _listen(settings.gateway, place, shown)
    return Service(
        listen=listen,
        gateway=gateway,
        explainer=Explainer(
            doors,
            keys,
            recorder,
            lambda: gateway.admitted,
            clock=clock,
            terms=ExplainTerms(samples=settings.explain.samples, max_rows=settings.explain.max_rows),
            ladder=lambda: gateway.ladder,
        ),
        follower=follower,
        loader=loader,
        audit=audit,
        recorder=recorder,
        delivery=delivery,
        clock=clock,
        releases=here.releases_files(),
        audits=here.audit_files,
        handover=handover,
        handover_seconds=settings.audit.handover_seconds,
        announce=partial(announce, directory, worker.name if worker else "gateway"),
        withdraw=lambda: withdraw(directory, worker.name if worker else "gateway"),
        opening=(held.start, *(() if leases is None else (leases.start,))),
        closing=(
            *((traces.close,) if traces else ()),
            held.look,
            quotas.give_back,
            uses.flush,
            *(() if leases is None else (leases.stop,)),
            held.stop,
        ),
        ready=held.ready,
        tally=held.tally,
        tallied=held.tallied,
        report=report,
        grpc=_listen_grpc(settings.gateway, listen, shown, place.grpc),
        certificate_end=lambda: shown.not_after,
    )


def _directory(here: Premises, keyring: Keyring, report: Callable[[str], None]) -> tuple[Directory, Visitors]:
    """Who may come in, and whoever comes for the first time."""
    clock, settings, trust = here.clock, here.settings, here.trust
    failures = Limiter(
        clock.monotonic,
        rate=settings.limits.failures_rate,
        burst=settings.limits.failures_burst,
        what="bad credentials from this address",
    )
    issuers = open_issuers(here.directory, settings, clock)
    nonce_key = hkdf(keyring.secret(WATERMARK), salt=b"", info=b"modelkeep/dpop-nonce-key/1")  # the same in every gateway
    access = Directory(
        here.records,
        clock,
        trust.token_keys,
        trust.origin,
        failures=failures,
        issuers=issuers,
        proofs=open_proofs(settings, clock, nonce_key),
        report=report,
    )
    return access, Visitors(access, KeyReader(issuers, report), report)


def _networks(keyring: Keyring) -> Networks:
    """Names of networks, the same in every gateway."""
    return Networks(hkdf(keyring.secret(WATERMARK), salt=b"", info=b"modelkeep/network-names/1"))


def _listen(settings: GatewaySettings, place: Worker, shown: Certificates) -> Listen:
    """Where and how the gateway listens."""
    return Listen(
        host=settings.host,
        port=settings.port,
        descriptor=place.listens,
        tls=shown.context,
        header_seconds=settings.header_seconds,
        body_seconds=settings.body_seconds,
        drain_seconds=settings.drain_seconds,
        max_body=settings.max_body,
        max_connections=place.share(settings.max_connections),
        max_per_address=settings.max_per_address,
        max_buffered=place.share(Listen().max_buffered),
    )


def _ranges(settings: ValidationSettings) -> RangePolicy:
    return RangePolicy(action=settings.ranges, tolerance=settings.tolerance, tell=settings.tell)


def check_grpc(settings: GatewaySettings) -> None:
    """Raises Invalid when gRPC is asked for, and what it needs is not installed."""
    if settings.grpc_port >= 0 and find_spec("h2") is None:
        raise Invalid("gateway.grpc_port is set, and gRPC needs a package that is missing: pip install 'modelkeep[grpc]'")


def _listen_grpc(settings: GatewaySettings, listen: Listen, shown: Certificates, descriptor: int) -> Listen | None:
    """Where gRPC is spoken, if it is: with the bounds of HTTP, the same certificate, and the same clients' certificates."""
    if settings.grpc_port < 0:
        return None
    return msgspec.structs.replace(listen, port=settings.grpc_port, tls=shown.listen("h2"), descriptor=descriptor)


def _certificates(here: Premises, leaf: Identity, own: CertificateFiles | None, report: Callable[[str], None]) -> Certificates:
    """What the gateway shows: ``leaf``, or what is in the files ``own``, which are read again when they change or at SIGHUP."""
    settings = here.settings
    minimum = settings.gateway.tls_minimum
    shown = Certificates(own.read() if own else leaf, *client_authorities(here.directory, settings), minimum=minimum)
    if own:
        signal.signal(signal.SIGHUP, CertificateWatch(own, shown, report).start().on_signal)
    return shown


def own_certificate(directory: Path, auto: bool) -> CertificateFiles | None:
    """The files that the settings name, if a certificate of one's own is shown. Raises Invalid (only one of them is named)."""
    named = load(directory).gateway
    if auto or not (named.certificate or named.key):
        return None
    if not (named.certificate and named.key):
        raise Invalid("gateway.certificate and gateway.key go together: name both files, or neither")
    word = directory / named.key_passphrase_file if named.key_passphrase_file else None
    return CertificateFiles(directory / named.certificate, directory / named.key, word)


def step_up_terms(said: AccessSettings) -> StepUpTerms:
    """When the settings have a second factor asked for."""
    rungs = {"off": 0, "coarse": int(Rung.COARSE), "quantised": int(Rung.QUANTISED)}
    return StepUpTerms(
        requests=said.step_up_requests,
        rung=rungs[said.step_up_rung],
        seconds=said.step_up_seconds,
        keys=said.step_up_keys == "approve",
        link=said.url and f"{said.url}/step-up",
    )


def rates_of(limits: LimitSettings) -> Rates:
    """The limits that the settings name."""
    return Rates(
        account=(limits.rate, limits.burst),
        key=(limits.key_rate, limits.key_burst),
        address=(limits.address_rate, limits.address_burst),
        cost=(limits.cost_rate, limits.cost_burst),
        model=(limits.model_rate, limits.model_burst),
        account_model=(limits.account_model_rate, limits.account_model_burst),
        timed=limits.cost == "time",
        accounts={name: Override(**msgspec.structs.asdict(found)) for name, found in limits.accounts.items()},
        keys={name: Override(**msgspec.structs.asdict(found)) for name, found in limits.keys.items()},
        models={
            name: Override(
                rate=found.rate,
                burst=found.burst,
                cost_rate=found.account_rate,
                cost_burst=found.account_burst,
                cost=found.cost,
            )
            for name, found in limits.models.items()
        },
    )


def check_surplus(keyring: Keyring, families: Sequence[str] = GATEWAY_FAMILIES) -> None:
    """Raises Invalid when a compartment is open that a gateway, or another process of ``families``, must not hold."""
    if surplus := set(keyring.families) - set(families):
        raise Invalid(f"a gateway must not hold {', '.join(sorted(surplus))}: open only what serving needs")


def announce_gateway(directory: Path, url: str, report: Callable[[str], None], grpc: str = "") -> None:
    """Say that this process answers, or those that it keeps running. Raises Unavailable."""
    announce(directory, "gateway", url, grpc)
    report(f"clients trust {directory / CA_FILE}, such as: curl --cacert {directory / CA_FILE} {url}/v2/health/ready")


class TrustFile:
    """``trust.toml`` as it is now, read again when it changed."""

    def __init__(self, premises: Premises) -> None:
        self._premises = premises
        self._stamp: object = None
        self._foreign: TrustRoot | None = None

    def check(self, roots: Sequence[TrustRoot]) -> None:
        """Check that what it says is one of ``roots``, to which the keys in hand and the log have led.

        What was once seen and is not explained stays so until it is: putting an older file back does not help. Raises
        NotTrusted (a key may be compromised, and this process was not told), Missing, Invalid, Unavailable.
        """
        stamp = self._premises.trust_stamp()
        if stamp != self._stamp:
            found = self._premises.public_trust()
            self._foreign = self._foreign if found in roots else found
            self._stamp = stamp
        if self._foreign is not None and self._foreign not in roots:
            raise NotTrusted("the trust root was changed by hand, and this process was not given the new keys: start it again")
        self._foreign = None


def authority_of(here: Premises, registry: Registry, rules: Rules, decisions: Decisions) -> Authority:
    """By what a process of this keep decides what it serves and keeps evidence for."""
    spent = Spent(registry.view, lambda: here.trust, clock=here.clock, wait=LEASE / 4)
    trusted, check = (lambda: here.trust), TrustFile(here).check
    return Authority(registry, here.admission, here.access_in_force, rules, decisions, trusted, check, spent)


class Handover:
    """Takes audit checkpoints to control: the last one of each log, dead gateways' and ended periods' among them, waits here
    until control takes it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._waiting: dict[bytes, bytes] = {}  # by origin, the first line
        self._turn = threading.Lock()  # at stop the last handover may meet a periodic one that is under way

    def later(self, note: bytes) -> None:
        """Hand ``note`` over with the next one; it takes the place of an earlier one of its log."""
        self._waiting[note.partition(b"\n")[0]] = note

    def __call__(self, note: bytes) -> None:
        """Hand everything over. Raises Unavailable (control cannot be reached, or did not take one); it waits then."""
        self.later(note)
        self.waiting()

    def waiting(self) -> None:
        """Hand over what waits, if anything does. Raises Unavailable; one that is not taken keeps back no other."""
        if not self._waiting:
            return
        control = find(self._directory, "control")
        if control is None:
            raise Unavailable("control is not running")
        context = ssl.create_default_context(cafile=str(self._directory / CA_FILE))
        try:
            with self._turn, httpx.Client(verify=context, timeout=10.0, trust_env=False) as client:
                refused = [why for origin in list(self._waiting) if (why := self._hand(client, control.url, origin))]
        except httpx.HTTPError as cause:
            raise Unavailable(f"control at {control.url} cannot be reached: {cause}") from cause
        if refused:
            raise Unavailable(f"control did not take an audit checkpoint: {refused[0]}")

    def _hand(self, client: httpx.Client, url: str, origin: bytes) -> str:
        """Hand over the checkpoint of one log; why it was not taken."""
        note = self._waiting[origin]
        answer = client.post(f"{url}/gateway/v1/checkpoint", content=note, extensions={"sni_hostname": CONTROL_NAME})
        if answer.status_code != httpx.codes.OK:
            return f"{answer.status_code} {answer.text[:200]}"
        if self._waiting[origin] is note:  # no later one came meanwhile
            del self._waiting[origin]
        return ""


def no_passphrase() -> bytes:
    """Raises Invalid."""
    raise Invalid("this process was given its keys and no passphrase")
