"""What the gateway serves follows the releases log: four looks a second, each good for a lease of one second.

The log decides, the policy judges, the container proves. A release that is quarantined, retired or no longer admitted is gone
with the next look; if the log, the records or this thread fail, the lease runs out and nothing is served (promises P3, P5).
"""

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.ports import Clock
from modelkeep.core.values import ModelSignature, ReleaseRef
from modelkeep.custody.admission import admit
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, ModelkeepError, NotTrusted, Unavailable
from modelkeep.extraction.profile import Profile
from modelkeep.formats.onnx_inner import with_output
from modelkeep.formats.safetensors import load
from modelkeep.ledger.cosigned import Witnessed
from modelkeep.policy.admission import AdmissionPolicy
from modelkeep.policy.engine import model as model_target
from modelkeep.serving.ranges import Ranges
from modelkeep.serving.runtime import OutputPlan, RemoteRuntime, Runtime, plan_outputs, plan_unseen
from modelkeep.serving.validate import InputPlan, RangePolicy, usual
from modelkeep.workflows.admitted import LEASE, Admitted, Served
from modelkeep.workflows.budgets import Spent
from modelkeep.workflows.calibrations import calibrations_of
from modelkeep.workflows.decisions import Decision, Decisions
from modelkeep.workflows.evidence import Evidence
from modelkeep.workflows.policies import AccessInForce, AdmissionInForce
from modelkeep.workflows.reference import background_of
from modelkeep.workflows.registry import MODEL, PROFILE, Registry
from modelkeep.workflows.rules import Rules
from modelkeep.workflows.trust_changes import fold
from modelkeep.workflows.watch import Watching

EVERY = 0.25
"""Seconds between two looks."""
RETRY = 5.0
"""Seconds until a release whose store failed is tried again."""
_SUM = "dataset_epsilon"
_UNMEASURED = 0.002
"""Seconds a row, of a model that could not be tried: it is run in a thread."""


class _Failed(NamedTuple):
    """A load that failed: of which sealed body, at which log size, why, and from when it may be tried again."""

    sealed: str
    size: int
    reason: ModelkeepError
    again: float


class Opened(NamedTuple):
    """A release, decrypted and proven: the model file's bytes, and what was learnt from its reference data if it has any."""

    model: bytes | bytearray | memoryview
    profile: Profile | None
    ranges: Ranges | None = None
    background: NDArray[np.float64] | None = None


class Authority(msgspec.Struct, frozen=True):
    """Who decides what is served: the releases log as the registry reads it, the policies that it says, and people.

    ``in_hand``: the trust root of the keys that this process holds now; ``check_public``: told what the log led to, raises
    NotTrusted when ``trust.toml`` says something else.
    """

    registry: Registry
    admission: AdmissionInForce
    access: AccessInForce
    rules: Rules
    decisions: Decisions
    in_hand: Callable[[], TrustRoot]
    check_public: Callable[[Sequence[TrustRoot]], None]
    spent: Spent

    def refresh(self) -> EvidenceBook:
        """What the log says now. Raises NotTrusted, Unavailable."""
        root, book = self.in_hand(), self.registry.refresh()
        if root not in book.signatories.roots:
            self.decisions.rebase(fold(self.registry.view, root))  # first: cut off after the registry, it would never be done
            self.registry.rebase(root)
        self.decisions.catch_up(self.registry.view, book.size)
        self.check_public(book.signatories.roots)
        self.access.follow(book)
        if self.admission.of(book).asks(_SUM):  # one that cannot be read ends the lease
            self.spent.look()
        self.rules.read(book)
        return book

    def hand_over(self, take: Callable[[Decision], None]) -> None:
        """Tell ``take`` what was decided and it has not taken yet, and every calibration of a release, oldest first. Raises
        what it raises."""
        self.decisions.hand_over(take)
        self.rules.hand_over(take)
        book = self.registry.book
        for found in book.releases():
            for calibrated in calibrations_of(book, found.ref):  # each is taken in once
                take(calibrated)

    def witnessed(self) -> Witnessed | None:
        """What a quorum of witnesses has cosigned; None = no policy asks. Raises as ``Registry.witnessed``."""
        return self.registry.witnessed()

    def judge(self, found: ReleaseEvidence) -> None:
        """Return if ``found`` may be served. Raises Quarantined, NotAdmitted, Unavailable."""
        judge(self.admission.of(self.registry.book), self.registry, found.ref, lambda: self.spent)


def judge(policy: AdmissionPolicy, registry: Registry, ref: ReleaseRef, spent: Callable[[], Spent]) -> None:
    """Return if the log, its witnesses and the admission policy let a release be served. Nothing is refreshed.

    ``spent``: called only where the policy looks at sums, as reading all ledgers of a long log takes seconds.
    Raises Quarantined, NotAdmitted, Missing, Unavailable (what was spent is being counted), and of the witnesses NotTrusted,
    Invalid, Unavailable.
    """
    admit(registry.book, ref, policy.decide, registry.witnessed(), spent() if policy.asks(_SUM) else None)


def open_release(registry: Registry, found: ReleaseEvidence) -> Opened:
    """Decrypt a release and its extraction profile, both proven against the log. Raises NotTrusted, Denied, Unavailable.

    A body that was sealed later than the release is digested, too: whoever signed the release did not see it.
    """
    opened = registry.open_body(found.body, found.model, MODEL)
    if found.entries["sealing"] > found.index:
        opened.check_model_digest()
    model, arrays = opened.read_source(), _open_arrays(registry, found)
    if arrays is None:
        return Opened(model, None)
    return Opened(model, Profile.from_arrays(arrays), Ranges.from_arrays(arrays), background_of(arrays))


def open_profile(registry: Registry, found: ReleaseEvidence) -> Profile | None:
    """Decrypt a release's extraction profile alone, proven in the same way; None if it has none. Raises as ``open_release``."""
    arrays = _open_arrays(registry, found)
    return None if arrays is None else Profile.from_arrays(arrays)


def _open_arrays(registry: Registry, found: ReleaseEvidence) -> dict[str, NDArray[Any]] | None:
    if found.profile_body is None or found.profile_digest is None:
        return None
    sealed = registry.open_body(found.profile_body, found.profile_digest, PROFILE)
    if found.entries["profile"] > found.index:
        sealed.check_model_digest()
    return load(sealed.read_source())


class Loader:
    """Makes a release ready to serve. A release's evidence is kept for the life of the process, also while it is not served."""

    def __init__(
        self,
        opened: Callable[[ReleaseEvidence], Opened],
        start: Callable[[ReleaseEvidence, bytes], Runtime],
        clock: Clock,
        evidence: Evidence,
        *,
        max_rows: int = 1024,
        ranges: RangePolicy = RangePolicy(),  # noqa: B008 - frozen
    ) -> None:
        """``opened``: decrypts and proves; ``start``: a runtime of a release; ``evidence``: of every release;
        ``ranges``: what becomes of inputs that do not look like the reference data."""
        self._opened, self._start, self._clock, self._evidence = opened, start, clock, evidence
        self._max_rows, self._ranges = max_rows, ranges

    def load(self, found: ReleaseEvidence) -> Served:
        """Open, start and probe one release, and rebuild its evidence. Raises NotTrusted, Unavailable, Missing, Invalid."""
        opened = self._opened(found)
        layer = None if opened.profile is None else opened.profile.layer
        model = bytes(opened.model) if layer is None else with_output(opened.model, layer.tensor)
        runtime = self._start(found, model)
        features = None if opened.profile is None else opened.profile.n_features
        inputs = InputPlan(found.interface, max_rows=self._max_rows, features=features)
        outputs, row_seconds = self._probe(found, runtime, inputs, opened.profile)
        return Served(
            ref=found.ref,
            text=str(found.ref),
            target=model_target(found.ref.name),
            interface=ModelSignature(found.interface.inputs, outputs.served),
            inputs=inputs,
            outputs=outputs,
            runtime=runtime,
            profile=opened.profile,
            watch=None if opened.profile is None else self._evidence.watch(found.ref, opened.profile),
            row_seconds=row_seconds,
            remote=runtime if isinstance(runtime, RemoteRuntime) else None,
            markers={},
            usual=usual(opened.ranges, inputs, self._ranges),
            background=opened.background,
            layer=layer,
        )

    def take(self, decision: Decision) -> None:
        """What somebody decided, for the evidence on every release."""
        self._evidence.take(decision)

    def watches(self) -> list[Watching]:
        """Every release's evidence so far."""
        return list(self._evidence.by_release().values())

    def by_release(self) -> Mapping[ReleaseRef, Watching]:
        """The same, by release."""
        return self._evidence.by_release()

    def _probe(
        self, found: ReleaseEvidence, runtime: Runtime, inputs: InputPlan, profile: Profile | None
    ) -> tuple[OutputPlan, float]:
        """What the outputs are, from one row (an average benign one if possible), and the seconds that a row takes."""
        row = inputs.probe(None if profile is None else profile.embedding.mean)
        try:
            plan = plan_outputs(found.interface, runtime.run(row))
        except (Invalid, Unavailable) as cause:
            remote = isinstance(runtime, RemoteRuntime)
            if profile is not None or not inputs.texts or (remote and isinstance(cause, Unavailable)):
                raise
            return plan_unseen(found.interface), 0.0 if remote else _UNMEASURED  # it takes no text but those that it learnt
        if profile is not None and bool(profile.n_classes) != (plan.probabilities is not None):
            raise NotTrusted(f"{found.ref} does not answer as its extraction profile says: publish it again")
        if isinstance(runtime, RemoteRuntime):  # it holds up nobody here
            return plan, 0.0
        times = []
        for _ in range(5):
            began = self._clock.monotonic()
            runtime.run(row)
            times.append(self._clock.monotonic() - began)
        return plan, min(times)


class AdmissionFollower:
    """Keeps ``Admitted`` up to date from the releases log, in a thread of its own; loading happens in another."""

    def __init__(
        self,
        authority: Authority,
        loader: Loader,
        clock: Clock,
        *,
        publish: Callable[[Admitted], None],
        also: Sequence[Callable[[], None]] = (),
        only: Iterable[ReleaseRef] = (),
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``publish``: takes every look's result; ``also``: refreshed in every round (directory, quotas); ``only``: serve no
        other release than these (empty: all that are promoted); ``report``: told when something fails, and works again."""
        self._authority, self._loader, self._clock = authority, loader, clock
        self._publish, self._also, self._only, self._report = publish, tuple(also), frozenset(only), report
        self._loaded: dict[ReleaseRef, tuple[str, Served]] = {}
        self._loading: dict[ReleaseRef, tuple[str, Future[Served]]] = {}
        self._pool = ThreadPoolExecutor(1, "modelkeep-load")
        self._failed: dict[ReleaseRef, _Failed] = {}
        self._tried: set[ReleaseRef] = set()
        self._seen = -1
        self._quorum: Witnessed | None = None
        self._again = False
        self._last = Admitted({}, {}, {}, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="admission", daemon=True)
        self.problem = ""

    def start(self) -> None:
        """Follow the log from now on."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread. The lease in force runs out by itself."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._pool.shutdown(cancel_futures=True)

    def settle(self, seconds: float) -> None:
        """Look until nothing is loading for the first time: what failed may be tried for ever, such as models of servers that
        do not answer. Raises what a look raises, and Unavailable when it takes longer than ``seconds``.
        """
        end = self._clock.monotonic() + seconds
        while True:
            self.look()
            if self._loading.keys() <= self._tried:
                return
            if self._clock.monotonic() > end:
                raise Unavailable(f"the models could not be loaded within {seconds:g} s")
            self._clock.sleep(0.02)

    def retry(self) -> None:
        """Try what failed to load again with the next look: the keys changed, say."""
        self._again = True

    def look(self) -> None:
        """One look. Raises NotTrusted (the log was rolled back or damaged), Unavailable; the lease is then not renewed."""
        began = self._clock.monotonic()
        for refresh in self._also:
            refresh()
        book = self._authority.refresh()
        self._authority.hand_over(self._loader.take)
        if self._again:
            self._again = False
            self._failed.clear()
            self._seen = -1
        quorum = self._authority.witnessed()
        if (book.size, quorum) != (self._seen, self._quorum) or self._loading or self._failed:
            self._seen, self._quorum = book.size, quorum
            self._last = self._sort(book)
        self._last = msgspec.structs.replace(self._last, until=began + LEASE)
        self._publish(self._last)

    def _sort(self, book: EvidenceBook) -> Admitted:
        models: dict[ReleaseRef, Served] = {}
        refused: dict[ReleaseRef, ModelkeepError] = {}
        newest: dict[str, ReleaseRef] = {}
        for found in book.releases():
            if self._only and found.ref not in self._only:
                continue
            try:
                self._judge(found)
                models[found.ref] = self._serving(found)
                newest[found.ref.name] = found.ref
            except ModelkeepError as reason:
                refused[found.ref] = reason
                if not isinstance(reason, Unavailable):
                    self._loaded.pop(found.ref, None)
        return Admitted(models, newest, refused, 0.0, self._aliases(book, models, refused))

    def _judge(self, found: ReleaseEvidence) -> None:
        """As ``Authority.judge``; what could not be judged yet is judged again with the next look."""
        try:
            self._authority.judge(found)
        except Unavailable:
            self._seen = -1
            raise

    def _aliases(
        self, book: EvidenceBook, models: Mapping[ReleaseRef, Served], refused: Mapping[ReleaseRef, ModelkeepError]
    ) -> dict[tuple[str, str], ReleaseRef]:
        """What answers to each alias. While its new release is being loaded the former one does, so that no request is lost."""
        found = {}
        for (name, alias), version in book.catalogue.aliases().items():
            ref, former = ReleaseRef(name, version), self._last.aliases.get((name, alias))
            waits = isinstance(refused.get(ref), Unavailable) and former in models
            found[name, alias] = former if former is not None and waits else ref
        return found

    def _serving(self, found: ReleaseEvidence) -> Served:
        """The loaded release. Raises Unavailable while it is being loaded, and what loading raised."""
        loaded, content = self._loaded.get(found.ref), f"{found.model} {found.profile_digest}"
        if loaded is not None and loaded[0] == content:
            return loaded[1]  # also when it was sealed anew meanwhile: what is inside is the same
        self._check_failed(found)
        pending = self._loading.get(found.ref)
        if pending is None or pending[0] != found.body.sealed:
            pending = self._loading[found.ref] = (found.body.sealed, self._pool.submit(self._loader.load, found))
        if not pending[1].done():
            raise Unavailable(f"{found.ref} is being loaded: ask again in a moment")
        del self._loading[found.ref]
        self._tried.add(found.ref)
        reason = _reason(found.ref, pending[1].exception())
        if reason is not None:
            again = self._clock.monotonic() + (RETRY if isinstance(reason, Unavailable) else float("inf"))
            self._failed[found.ref] = _Failed(found.body.sealed, self._seen, reason, again)
            raise reason
        served = pending[1].result()
        self._loaded[found.ref] = (content, served)
        return served

    def _check_failed(self, found: ReleaseEvidence) -> None:
        """Raise why loading failed last time, until the log grows or, where retrying may help, a few seconds have passed."""
        failed = self._failed.get(found.ref)
        if failed is None:
            return
        if failed.sealed == found.body.sealed and failed.size == self._seen and self._clock.monotonic() < failed.again:
            raise failed.reason
        del self._failed[found.ref]

    def _run(self) -> None:
        while not self._stop.wait(EVERY):
            try:
                self.look()
            except ModelkeepError as cause:
                self._tell(str(cause))
            else:
                self._tell("")

    def _tell(self, problem: str) -> None:
        if problem != self.problem:
            self.problem = problem
            self._report(problem or "the releases log and the records can be read again")


def _reason(ref: ReleaseRef, failure: BaseException | None) -> ModelkeepError | None:
    """Why ``ref`` could not be loaded, in modelkeep's terms. A model on which the code that loads it breaks stays out alone."""
    if failure is None or isinstance(failure, ModelkeepError):
        return failure
    what = f"{type(failure).__name__}: {str(failure)[:200]}"
    if isinstance(failure, MemoryError | OSError):
        return Unavailable(f"{ref} could not be loaded ({what}): it is tried again in {RETRY:g} s")
    return NotTrusted(f"{ref} cannot be loaded here, which no sound model causes ({what}): verify it and publish it again")
