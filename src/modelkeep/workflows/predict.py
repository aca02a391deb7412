"""One prediction, from bytes to bytes: the gateway's hot path.

credential → requests → policy → admission → validation → ladder → work → cost → evidence → step-up → quota → model →
watermark → record → answer. Each step returns or raises; an answer exists only once its audit record is durable, and so does a
refusal of somebody who is known.
"""

import asyncio
import struct
from collections.abc import Callable, Coroutine, Mapping
from contextvars import copy_context
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.access.authorize import authorize
from modelkeep.access.charges import Charges
from modelkeep.access.networks import Networks
from modelkeep.access.presented import Presented
from modelkeep.access.view import Grant
from modelkeep.access.work import Question
from modelkeep.core.ports import Clock
from modelkeep.core.values import ModelSignature, ReleaseRef
from modelkeep.errors import Invalid, OverBudget, ReviewRequired, Unavailable
from modelkeep.extraction.deceive import deceived
from modelkeep.extraction.flips import Flipper, flipped, spots_of
from modelkeep.extraction.ladder import DEFAULT, Rung, Step, respond, respond_one
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.regression import NumberMarker
from modelkeep.policy.engine import KEEP, Target, model
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.bodies import SubjectKeys, encode_body
from modelkeep.serving.oip import ONNX, Outputs, Reply, Row, Values, encode_response, model_metadata
from modelkeep.serving.runtime import probability_rows, round_floats
from modelkeep.serving.validate import Checked
from modelkeep.workflows.admitted import NOTHING, Served
from modelkeep.workflows.covariates import network_covariate
from modelkeep.workflows.doors import OURS, Answer, Call, Doors, Entrance
from modelkeep.workflows.marks import UNMARKED, Marking, Marks
from modelkeep.workflows.recorder import Recorder
from modelkeep.workflows.watch import Observation, Watching

_ACCUSED = "this account's queries look like an attempt to copy the model: it waits for a review"
_HELD = "this account was reviewed, and this model answers it no more"
Floats = NDArray[np.float64]
T = TypeVar("T")
LONE_ROWS = 8
"""A request with more rows is judged before its answer leaves."""
INLINE_SECONDS = 0.002
"""A run expected to take longer leaves the event loop for a thread."""


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How answers are given. ``epsilon``: L1 bound of the mark; ``regression_epsilon``: bound of the mark of a number, over the
    model's own error, 0 = numbers are not marked; ``decimals``: of probabilities; ``contact``: whom an account may ask about a
    review or its budget, "" = nobody is named."""

    epsilon: float = 0.05
    regression_epsilon: float = 0.0
    decimals: int = 4
    contact: str = ""
    max_markers: int = 4096


class Shown(msgspec.Struct, frozen=True, gc=False):
    """What one run gives: probabilities ``raw`` and, as bytes, those ``served`` (None and empty: no classifier); outputs."""

    raw: Floats | None
    served: bytes
    outputs: dict[str, Values]


class Gateway:
    """Answers predictions. ``admitted``, ``ladder`` and ``renews`` (the day on which budgets begin anew, as text) are replaced
    by the follower; everything else stays for the process's life."""

    def __init__(
        self,
        doors: Doors,
        keys: SubjectKeys,
        marks: Marks,
        recorder: Recorder,
        *,
        clock: Clock,
        terms: Terms | None = None,
        networks: Networks | None = None,
        flips: Callable[[str], float | None] = lambda _subject: 0.0,
    ) -> None:
        """``networks``: names the network of each request in its record; None = none is recorded; ``flips``: of a subject that
        a review put on the last rung, the share of its labels to flip, 0 = regions are false; None of any other."""
        self.limits, self._policy, self._charges = doors.limits, doors.policy, Charges(doors.step_up, doors.quotas)
        self._work = doors.work
        self._entrance = Entrance(doors, recorder, lambda: self.admitted, self._answer, clock=clock)
        self._keys, self._marks, self._recorder = keys, marks, recorder
        self._monotonic = clock.monotonic
        self._terms = terms or Terms()
        self._network = networks.name if networks is not None else lambda _address: b""
        self._sightings = doors.sightings
        self.admitted, self.ladder, self.renews = NOTHING, DEFAULT, ""
        self._flips = flips

    def predict(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Answer one request, once it is awaited.

        Raises Unauthenticated, Denied, ReviewRequired, WorkRequired, OverBudget, Invalid, TooLarge, Missing, NotAdmitted,
        Quarantined, NotTrusted, Unavailable. A refusal of somebody who is known has a durable record too (all but Unavailable;
        of those over a limit, one a second). An answer that fails because of us costs no rows; any other refusal that comes
        after they were charged does.
        """
        return self._entrance.ask(call)

    async def _answer(self, call: Call, grant: Grant) -> Answer:
        principal, subject = grant.principal, grant.principal.subject
        counted = await self.limits.admit(principal, grant.quota_id)
        authorize(self._policy, principal, "predict", model(call.model), call.presented.address)
        served = self.admitted.find(call.model, call.version, self._monotonic())
        request = call.form.read(call.body)
        request.check_model(call.model)
        wanted = served.outputs.wanted(request.output_names())
        checked = served.inputs.check(request)
        x = served.inputs.matrix(checked)
        outcome = "ok" if served.usual is None or served.usual.check(checked, x) else "unusual"
        rows, watch, network = checked.rows, served.watch, self._network(call.presented.address)
        rung, step = self._stand(served, grant, call, rows)
        cost = rows * self.limits.row_cost(served.ref.name, served.row_seconds)
        counted = (*counted, *await self.limits.take(principal, served.ref.name, cost, step.rate))
        if watch is not None:
            watch.reserve(subject, rows)  # before rows are charged: who must wait for the evidence has spent none
        charged, written = False, None
        try:
            if not self._charges.held(grant, rung, rows, step.asks_factor):  # the records may wait for a disk or a lock
                await _in_thread(lambda: self._charges.take(grant, rows))
            charged = True
            sealer = self._keys.sealer(subject, served.text)
            while sealer is None:  # made, or made anew because the subject was erased meanwhile
                await _in_thread(lambda: self._keys.key(subject))
                sealer = self._keys.sealer(subject, served.text)
            marking = self._marking(served, subject) or await self._begin(served, subject)
            if served.remote is None and rows * served.row_seconds < INLINE_SECONDS:
                found = served.runtime.run(checked.feeds)
            else:
                found = await _elsewhere(served, checked)
            shown = self._show(served, x, found, marking, step)
            hidden = None if served.layer is None else served.layer.project(found[served.layer.tensor])
            outputs = [(spec, shown.outputs[spec.name]) for spec in wanted]
            reply = call.form.write(served.ref, request, outputs)
            said = b"" if shown.raw is not None else _in_json(reply, served.ref, request.id, outputs)
            plain = encode_body(x, shown.raw, shown.served, said, rung, network, hidden, marking.epoch)
            entry = AuditEntry("predict", subject, served.text, "", _outcome(step) or outcome)
            written = await self._recorder.write(entry, sealer.seal(plain))
            if watch is not None:
                raw = np.empty((rows, 0)) if shown.raw is None else shown.raw
                watch.submit(
                    Observation(written.index, subject, x, raw, written.instance, 0.0, network_covariate(network), hidden)
                )
                if rows > LONE_ROWS or watch.behind(subject) > watch.unseen_rows:
                    await self._judge(watch, subject)
        except BaseException as cause:
            if watch is not None and written is None:
                watch.release(subject, rows)
            if charged and isinstance(cause, OURS):
                self._charges.put_back(grant, rows)
            raise
        notice = self._notice(served, subject, rung, step) if rung else ""
        return Answer(reply.body, written.receipt, reply.json_size, self.limits.tightest(counted), notice)

    def _stand(self, served: Served, grant: Grant, call: Call, rows: int) -> tuple[Rung, Step]:
        """The ladder's rung in force for this account, and what it means.

        Raises ReviewRequired (it gets no answer), WorkRequired (it gets this one for work that it has not done).
        """
        rung = Rung.MARK if served.watch is None else served.watch.rung(grant.principal.subject)
        step = self.ladder.steps[rung]
        if rung is Rung.SANCTION and step.deceive:
            step = self._sanction(grant.principal.subject, step)
        # Without probabilities there is no label that could stand alone, and none that could be false.
        if rung >= Rung.ALARM and (step.refuse or served.outputs.probabilities is None):
            raise self._waits(rung)
        if step.work:
            asked = Question("predict", served.text, call.body, rows, call.solution)
            self._work.check(grant, asked, step.work, or_factor=step.step_up)
        return rung, step

    def _sanction(self, subject: str, step: Step) -> Step:
        """What the last rung means for this account. Raises Unavailable: its review was not read here yet."""
        flips = self._flips(subject)
        if flips is None:
            raise Unavailable("what a review decided about this account is being read: ask again in a second")
        return replace(step, deceive=0.0, flips=flips) if flips else step

    def _notice(self, served: Served, subject: str, rung: Rung, step: Step) -> str:
        """What an account above the lowest rung is told with its answers: how they are, until when, and whom to ask."""
        if rung is Rung.SANCTION or served.watch is None:
            return ""
        verdict = served.watch.verdict(subject)
        by_budget = rung < Rung.ALARM and verdict.spent >= step.spent
        own = verdict.budget.share >= step.spent
        whose = "the information budget" if own else "the information budget that it shares with others"
        until = f"; {whose} begins anew on {self.renews}" if by_budget and self.renews else ""
        contact = f"; ask {self._terms.contact}" if self._terms.contact else ""
        said = step.tells(confidences=served.outputs.probabilities is not None)
        return f"{said}{until}{contact}" if said else ""

    def _waits(self, rung: Rung) -> ReviewRequired:
        return ReviewRequired(told(_HELD if rung is Rung.SANCTION else _ACCUSED, self._terms.contact))

    async def _judge(self, watch: Watching, subject: str) -> None:
        """Judge what was just recorded before it is told, so that no batch runs ahead of its own evidence.

        Raises ReviewRequired, or OverBudget (the account gets labels from now on), when this raises the alarm; Unavailable.
        """
        await asyncio.shield(asyncio.ensure_future(_examine(watch)))  # a request that is cut off still frees what it examined
        if (rung := watch.rung(subject)) is Rung.ALARM:
            if self.ladder.steps[rung].refuse:
                raise self._waits(rung)
            raise OverBudget("this account's queries look like an attempt to copy the model: ask again, for labels only", 0.1)

    def _show(self, served: Served, x: NDArray[Any], found: Mapping[str, NDArray[Any]], marking: Marking, step: Step) -> Shown:
        """What leaves: probabilities marked for the account and as coarse as its rung asks; the label as the model gave it."""
        plan, marker = served.outputs, marking.marker
        if plan.probabilities is None:
            return Shown(None, b"", _numbers(served, x, found, marking.numbers))
        raw = probability_rows(found[plan.probabilities], len(x))
        if step.deceive or step.flips:
            return self._deceive(served, x, found, marker, step)
        if len(x) == 1:
            row: list[float] = raw[0].tolist()
            marked = row if marker is None else marker.apply_one(x, row)
            numbers = respond_one(step, marked, self._terms.decimals)
            shown: Values = Row(numbers)
            served_bytes = struct.pack(f"<{len(numbers)}d", *numbers)
        else:
            shown = respond(step, raw if marker is None else marker.apply(x, raw), self._terms.decimals)
            served_bytes = shown.tobytes()
        outputs = {plan.probabilities: shown}
        if plan.label is not None:
            outputs[plan.label] = found[plan.label]
        return Shown(raw, served_bytes, outputs)

    def _deceive(
        self, served: Served, x: NDArray[Any], found: Mapping[str, NDArray[Any]], marker: Marker | None, step: Step
    ) -> Shown:
        """What an account gets that a review put on the last rung. Raises ReviewRequired: this model cannot deceive."""
        plan = served.outputs
        assert plan.probabilities is not None
        raw = probability_rows(found[plan.probabilities], len(x))
        label = None if plan.label is None else found[plan.label]
        top = raw.argmax(axis=1)
        if (
            marker is None
            or served.profile is None
            or (label is not None and (label.dtype.kind not in "iu" or (label.reshape(-1) != top).any()))
        ):
            raise self._waits(Rung.SANCTION)  # a label in words would give the deception away
        marked = marker.apply(x, raw)
        if step.flips:
            false = flipped(Flipper(marker.key, spots_of(served.profile)), x, marked, step.flips)
        else:
            false = deceived(marker, x, marked, step.deceive)
        shown = respond(step, false, self._terms.decimals)
        outputs: dict[str, Values] = {plan.probabilities: shown}
        if label is not None and plan.label is not None:
            outputs[plan.label] = shown.argmax(axis=1).astype(label.dtype).reshape(label.shape)
        return Shown(raw, shown.tobytes(), outputs)

    def _marking(self, served: Served, subject: str) -> Marking | None:
        """What marks for ``subject``, if it is at hand and the releases log has begun no later epoch."""
        found = served.markers.get(subject)
        return found if found is not None and found.epoch >= self._marks.epoch(subject, served.ref) else None

    async def _begin(self, served: Served, subject: str) -> Marking:
        profile, plan = served.profile, served.outputs
        if profile is None:
            return UNMARKED
        size = 0.0 if plan.number is None else self._terms.regression_epsilon * profile.error
        if plan.probabilities is None and not size:
            return UNMARKED
        found = self._marks.key(subject, served.ref)
        if size:
            made = Marking(found.epoch, None, await _in_thread(lambda: NumberMarker(found.key, profile, size)))
        else:
            marker = await _in_thread(lambda: Marker(found.key, profile, self._terms.epsilon, self._terms.decimals))
            made = Marking(found.epoch, marker)
        if len(served.markers) >= self._terms.max_markers:
            served.markers.pop(next(iter(served.markers)))
        served.markers[subject] = made
        return made

    def agent(self, headers: Mapping[bytes, bytes]) -> bytes:
        """The User-Agent among the ``headers`` of a request, for its ``Call``; b"" while nobody looks out for one."""
        return headers.get(b"user-agent", b"") if self._sightings.wanted else b""

    # -- what else clients may ask --

    def permit_known(self, presented: Presented, action: str, target: Target = KEEP) -> Grant:
        """Let somebody do ``action`` who is known. Raises Unauthenticated, OverBudget, Denied, FirstVisit, Unavailable."""
        return self._permitted(self._entrance.who(presented), presented, action, target)

    async def permit(self, presented: Presented, action: str, target: Target = KEEP) -> Grant:
        """The same; whoever comes for the first time waits a moment to be known."""
        return self._permitted(await self._entrance.who_comes(presented), presented, action, target)

    def _permitted(self, grant: Grant, presented: Presented, action: str, target: Target) -> Grant:
        self.limits.look(grant.principal)
        authorize(self._policy, grant.principal, action, target, presented.address)
        return grant

    async def metadata(self, presented: Presented, name: str, version: int | str | None) -> bytes:
        """The metadata of a served model. Raises what ``permit`` and ``Admitted.find`` raise."""
        return model_metadata(name, *await self.interface(presented, name, version))

    async def interface(
        self, presented: Presented, name: str, version: int | str | None
    ) -> tuple[list[int], ModelSignature, str]:
        """The served versions of a model, what it takes and gives, and its platform.

        Raises what ``permit`` and ``Admitted.find`` raise.
        """
        served = await self._shown_to(presented, name, version)
        versions = sorted(ref.version for ref in self.admitted.models if ref.name == name)
        return versions, served.interface, served.remote.platform if served.remote is not None else ONNX

    async def ready(self, presented: Presented, name: str, version: int | str | None) -> str:
        """Return the release that would answer. Raises what ``permit`` and ``Admitted.find`` raise."""
        served = await self._shown_to(presented, name, version)
        if served.remote is not None:
            await served.remote.check_ready()
        return served.text

    def serves(self, name: str) -> bool:
        """Whether ``name`` is a served model now."""
        return name in self.admitted.newest

    def lease_left(self, now: float) -> float:
        """Seconds left of the admission lease; 0 when it is over."""
        return max(0.0, self.admitted.until - now)

    def check_ready(self) -> None:
        """Raise Unavailable unless predictions can be answered: lease in force, limits counted, last record durable."""
        self.admitted.check_lease(self._monotonic())
        self.limits.check()
        self._recorder.check()

    async def _shown_to(self, presented: Presented, name: str, version: int | str | None) -> Served:
        await self.permit(presented, "show", model(name))
        return self.admitted.find(name, version, self._monotonic())


def _numbers(
    served: Served, x: NDArray[Any], found: Mapping[str, NDArray[Any]], marker: NumberMarker | None
) -> dict[str, Values]:
    """The outputs of a model without classes: to six digits, or marked for the account where they are one number a row.

    Raises Invalid (not finite, not a number for each row of ``x``).
    """
    plain = {spec.name: round_floats(found[spec.name]) for spec in served.outputs.served}
    if marker is None or served.outputs.number is None:
        return dict(plain)
    name = served.outputs.number
    clean = found[name].astype(np.float64).reshape(-1)
    if len(clean) != len(x):
        raise Invalid(f"the model answered with shape {found[name].shape} for {len(x)} rows")
    marked = marker.apply(x, clean)
    return {name: np.where(marked == clean, plain[name].reshape(-1), marked).reshape(found[name].shape)}


def _outcome(step: Step) -> str:
    """The outcome of answers of which a part is false; "" where none is."""
    return "flipped" if step.flips else "deceived" if step.deceive else ""


def _in_json(reply: Reply, ref: ReleaseRef, request_id: str | msgspec.UnsetType, outputs: Outputs) -> bytes:
    """What the record holds of an answer that has no probabilities: its JSON, in whatever form it leaves."""
    return reply.body if reply.json_size < 0 else encode_response(ref, request_id, outputs)


def told(why: str, contact: str) -> str:
    """What an account that is held is told: why, and how to ask for a review."""
    return f"{why}; ask for one at {contact}" if contact else why


async def _examine(watch: Watching) -> None:
    for subject, rows in (await _in_thread(watch.work)).items():
        watch.release(subject, rows)


async def _elsewhere(served: Served, checked: Checked) -> dict[str, NDArray[Any]]:
    """Run a model that would hold everybody up: in a thread, or where it runs."""
    if served.remote is not None:
        return await served.remote.infer(checked.feeds)
    here = copy_context()  # a span of the request may be in it
    return await _in_thread(lambda: here.run(served.runtime.run, checked.feeds))


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
