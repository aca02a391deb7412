"""One explanation, from bytes to bytes: why did the model answer this row like that?

credential → requests → policy → admission → validation → ladder → work → cost → step-up → quota → model, many rows →
rounding → record → budget → answer. It takes the steps of a prediction, and like it leaves only after its record is durable.
But it says more than an answer does, so it costs more: a row's count of numbers, and one, in rows of the limits, of the quota,
of work and of what a second factor is good for, and in natural questions of the extraction budget. It is no evidence against
anybody. Nothing in it is marked; it is told in few digits.
"""

import asyncio
import hashlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.access.authorize import authorize
from modelkeep.access.charges import Charges
from modelkeep.access.view import Grant
from modelkeep.access.work import Question
from modelkeep.core.ports import Clock
from modelkeep.crypto.wrap import Sealer
from modelkeep.errors import Invalid, Missing, OverBudget, ReviewRequired, Unavailable
from modelkeep.extraction.ladder import DEFAULT, Ladder, Rung
from modelkeep.policy.engine import model
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.bodies import SubjectKeys, encode_body
from modelkeep.serving.explain import EXPLAIN, Asked, Told, asked_of, encode_explanation, exponent_of, price
from modelkeep.serving.oip import decode_request
from modelkeep.serving.runtime import probability_rows
from modelkeep.serving.shapley import Attribution, Floats, shapley
from modelkeep.serving.validate import Checked
from modelkeep.workflows.admitted import Admitted, Served
from modelkeep.workflows.doors import OURS, Answer, Call, Doors, Entrance
from modelkeep.workflows.recorder import Recorder
from modelkeep.workflows.upstream import BATCH
from modelkeep.workflows.watch import Watching, explained

T = TypeVar("T")
DIGITS = {Rung.MARK: 3, Rung.COARSE: 2}
"""Decimals of a probability's explanation; any other's has one significant digit more. Above these rungs there is none."""
MOST_AT_ONCE = 16
"""Explanations under way or waiting, of all accounts."""
_SPENT = 3_600.0


class ExplainTerms(msgspec.Struct, frozen=True, kw_only=True):
    """``samples``: pairs of permutations unless a request says otherwise; ``max_rows``: most rows one explanation asks."""

    samples: int = 64
    max_rows: int = 65_536


class Explainer:
    """Explains answers of what is served. ``admitted``: what that is now."""

    def __init__(
        self,
        doors: Doors,
        keys: SubjectKeys,
        recorder: Recorder,
        admitted: Callable[[], Admitted],
        *,
        clock: Clock,
        terms: ExplainTerms | None = None,
        ladder: Callable[[], Ladder] = lambda: DEFAULT,
    ) -> None:
        self._limits, self._policy, self._charges = doors.limits, doors.policy, Charges(doors.step_up, doors.quotas)
        self._work = doors.work
        self._entrance = Entrance(doors, recorder, admitted, self._answer, clock=clock)
        self._keys, self._recorder, self._admitted = keys, recorder, admitted
        self._monotonic, self._ladder = clock.monotonic, ladder
        self._terms = terms or ExplainTerms()
        self._busy: set[str] = set()
        self._pool = ThreadPoolExecutor(1, "modelkeep-explain")  # of its own: predictions must not wait for a thread
        self._remote = ThreadPoolExecutor(4, "modelkeep-explain-upstream")  # these wait, and keep nobody busy

    def explain(self, call: Call) -> Coroutine[Any, Any, Answer]:
        """Answer one request, once it is awaited.

        Raises what ``Gateway.predict`` raises; Missing when the release has nothing to explain it by.
        """
        return self._entrance.ask(call)

    async def _answer(self, call: Call, grant: Grant) -> Answer:
        limits, principal = self._limits, grant.principal
        subject = principal.subject
        counted = await limits.admit(principal, grant.quota_id)
        authorize(self._policy, principal, EXPLAIN, model(call.model), call.presented.address)
        served = self._admitted().find(call.model, call.version, self._monotonic())
        request = decode_request(call.body)
        request.check_model(call.model)
        asked = asked_of(request, served.outputs)
        checked = served.inputs.check(request)
        if checked.rows != 1:
            raise Invalid(f"one row is explained at a time, and these are {checked.rows}")
        x = served.inputs.matrix(checked)
        outcome = "ok" if served.usual is None or served.usual.check(checked, x) else "unusual"
        watch, background = _means(served)
        with self._alone(subject):  # so that two at once cannot both be the last that the budget allows
            rung = watch.rung(subject)
            _check_rung(rung)
            step = self._ladder().steps[rung]
            rows = int(price(x.size))
            if step.work:
                question = Question(EXPLAIN, served.text, call.body, rows, call.solution)
                self._work.check(grant, question, step.work, or_factor=step.step_up)
            cost = rows * limits.row_cost(served.ref.name, served.row_seconds)
            counted = (*counted, *await limits.take(principal, served.ref.name, cost, step.rate))
            if not self._charges.held(grant, rung, rows, step.asks_factor):
                await _in_thread(lambda: self._charges.take(grant, rows))
            try:
                pool = self._pool if served.remote is None else self._remote
                with _running(served) as run:
                    told = lambda: self._explained(served, run, background, request.id, asked, checked, rung)  # noqa: E731
                    body = await asyncio.get_running_loop().run_in_executor(pool, told)
                sealer = await self._sealer(subject, served.text)
                entry = AuditEntry(EXPLAIN, subject, served.text, "", outcome)
                written = await self._recorder.write(entry, sealer.seal(encode_body(x, None, b"", body, rung)))
                watch.submit(explained(written.index, subject, x.size, written.instance))
                await asyncio.shield(asyncio.ensure_future(_charged(watch)))
            except OURS:
                self._charges.put_back(grant, rows)
                raise
        return Answer(body, written.receipt, standing=limits.tightest(counted))

    async def _sealer(self, subject: str, release: str) -> Sealer:
        """What seals bodies of ``subject``; made anew when the subject was erased meanwhile."""
        while (found := self._keys.sealer(subject, release)) is None:
            await _in_thread(lambda: self._keys.key(subject))
        return found

    @contextmanager
    def _alone(self, subject: str) -> Iterator[None]:
        """One explanation of an account at a time, and few in all: each takes the model for a while. Raises OverBudget,
        Unavailable."""
        if subject in self._busy:
            raise OverBudget("an explanation for this account is under way: ask again when it is there", 1.0)
        if len(self._busy) >= MOST_AT_ONCE:
            raise Unavailable("too many explanations are under way: ask again in a moment")
        self._busy.add(subject)
        try:
            yield
        finally:
            self._busy.discard(subject)

    def _explained(
        self, served: Served, run: "_Run", background: Floats, request_id: Any, asked: Asked, checked: Checked, rung: Rung
    ) -> bytes:
        """The answer's body. Runs in a thread: it asks the model many rows. Raises Invalid, TooLarge, Unavailable."""
        x = served.inputs.matrix(checked)[0].astype(np.float64)
        target = _target(served, asked, _outputs(served, asked, run(checked.feeds), 1))

        def ask(rows: Floats) -> Floats:
            most = len(rows) if served.remote is None else BATCH
            parts = [rows[at : at + most] for at in range(0, len(rows), most)]
            found = [_outputs(served, asked, run(served.inputs.spread(part, checked)), len(part)) for part in parts]
            return np.concatenate(found)[:, target]

        found: Attribution = shapley(
            ask,
            x,
            background,
            pairs=asked.samples or self._terms.samples,
            max_rows=self._terms.max_rows,
            seed=_seed(served.text, asked, target, x),
        )
        probability = served.outputs.probabilities is not None
        exponent = exponent_of(found, DIGITS[rung] + (0 if probability else 1), probability=probability)
        inputs = {name: checked.feeds[name] for name in served.inputs.numeric}
        return encode_explanation(Told(served.ref, request_id, asked, target, inputs, found, exponent))


_Run = Callable[[Mapping[str, NDArray[Any]]], dict[str, NDArray[Any]]]


@contextmanager
def _running(served: Served) -> Iterator[_Run]:
    """The model, to be asked from a thread, until whoever waits for the explanation has it or goes: then it is asked no more.

    One that another server runs is asked from the event loop, as for a prediction: in a slot, and past its breaker.
    """
    over, loop, remote = threading.Event(), asyncio.get_running_loop(), served.remote
    waiting: set[Future[dict[str, NDArray[Any]]]] = set()

    def run(feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        if over.is_set():
            raise Unavailable("nobody waits for this explanation any more")
        if remote is None:
            return served.runtime.run(feeds)
        answer = asyncio.run_coroutine_threadsafe(remote.infer(feeds), loop)
        waiting.add(answer)
        try:
            return answer.result()
        finally:
            waiting.discard(answer)

    try:
        yield run
    finally:
        over.set()
        for answer in tuple(waiting):
            answer.cancel()


async def _charged(watch: Watching) -> None:
    """Wait until the price is in force, so that the next question finds it taken. Raises Unavailable."""
    for subject, rows in (await _in_thread(watch.work)).items():
        watch.release(subject, rows)


def _means(served: Served) -> tuple[Watching, Floats]:
    """What an explanation is charged to, and the rows it is measured against. Raises Missing."""
    if served.watch is None or served.background is None:
        raise Missing(f"{served.text} has no reference rows to explain it by: publish it again with --reference")
    return served.watch, served.background


def _check_rung(rung: Rung) -> None:
    """Raises ReviewRequired (alarm), OverBudget (the budget is spent, or the evidence asks for coarse answers)."""
    if rung is Rung.ALARM:
        raise ReviewRequired("this account's queries look like an attempt to copy the model: it waits for a review")
    if rung >= Rung.QUANTISED:
        raise OverBudget("this account has learnt as much of this model as it may for now: nothing is explained to it", _SPENT)


def _outputs(served: Served, asked: Asked, answer: Mapping[str, NDArray[Any]], rows: int) -> Floats:
    """The explained output, shape (rows, classes or values). Raises Invalid (no probabilities, not finite)."""
    found = answer[asked.output]
    if served.outputs.probabilities is not None:
        return probability_rows(found, rows)
    wide: Floats = np.asarray(found, dtype=np.float64).reshape(rows, -1)
    if not np.isfinite(wide).all():
        raise Invalid("the model's answers around this input are not finite numbers; check the input's range")
    return wide


def _target(served: Served, asked: Asked, answer: Floats) -> int:
    """Which column is explained. Raises Invalid (there is no such)."""
    if asked.target is None:
        return int(answer[0].argmax()) if served.outputs.probabilities is not None else 0
    if asked.target >= answer.shape[1]:
        raise Invalid(f"parameter 'target' is {asked.target}, and the model's answer has {answer.shape[1]} numbers")
    return asked.target


def _seed(release: str, asked: Asked, target: int, x: Floats) -> int:
    """From what is asked alone, so that the same question has the same answer and asking again averages nothing out."""
    said = f"{release}\0{asked.output}\0{target}\0{asked.samples}\0".encode() + x.tobytes()
    return int.from_bytes(hashlib.sha256(said).digest()[:16], "big")


async def _in_thread(work: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(None, work)
