"""A model that runs behind another server: one question, from arrays to arrays, and a breaker around it.

slot → breaker → question → answer, checked. Whatever goes wrong becomes our own errors: the upstream refuses the input
(Invalid), or it is Unavailable. A request of which a byte was sent is not sent again: an answer may have been computed, and
been counted or charged for there. Neither its address nor its headers reach those who ask us.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import msgspec
from numpy.typing import NDArray

from modelkeep.core.ports import Clock, Entropy, Link, Reply
from modelkeep.errors import Invalid, NotTrusted, Unavailable
from modelkeep.formats.upstream import Upstream
from modelkeep.serving.breaker import DEFAULT_THRESHOLDS, Breaker, Permit, State, Thresholds
from modelkeep.serving.upstream import Arrays, Described, Dialect, Question, Rest
from modelkeep.serving.upstream_grpc import Grpc

T = TypeVar("T")
WAITING: set["asyncio.Task[Any]"] = set()
"""Tasks that wait for an upstream. Whoever asked is gone: then such a task may be cancelled, since nothing is recorded yet."""

BATCH = 32
"""Rows that an upstream is asked at once for our own ends: what many servers take by default."""
MANY = 20_000
"""Numbers that take about two milliseconds to write down as JSON, or to read."""


class Patience(NamedTuple):
    """``seconds``: for a whole answer, waiting for a slot included; ``requests``: at once; ``queue``: that may wait for one."""

    seconds: float = 10.0
    requests: int = 16
    queue: int = 64


_PATIENCE = Patience()


class Readings(msgspec.Struct):
    """What is counted of one upstream. ``seconds``: of all answers together."""

    answers: int = 0
    failures: int = 0
    seconds: float = 0.0


class RemoteModel:
    """A model of an upstream. ``infer`` is for the server's event loop alone; ``run`` for threads that have none."""

    def __init__(
        self,
        document: Upstream,
        connect: Callable[[], Link],
        clock: Clock,
        entropy: Entropy,
        *,
        patience: Patience = _PATIENCE,
        thresholds: Thresholds = DEFAULT_THRESHOLDS,
        report: Callable[[str], None] = lambda _text: None,
    ) -> None:
        """``connect``: makes a way to the server; ``report``: told when the breaker opens and closes."""
        self._document, self._connect, self._signature = document, connect, document.signature
        self._monotonic, self._entropy, self._patience, self._report = clock.monotonic, entropy, patience, report
        self._breaker = Breaker(thresholds)
        self._dialect = dialect_of(document)
        self._batched = all(spec.shape[:1] == (-1,) for spec in document.inputs)
        self._link: Link | None = None
        self._slots: asyncio.Semaphore | None = None
        self._queued = 0
        self._told = State.CLOSED
        self.readings = Readings()

    @property
    def platform(self) -> str:
        """What the upstream calls its runtime; ``upstream`` when it does not say."""
        return self._document.platform or "upstream"

    def state(self) -> State:
        """The state of the breaker now."""
        return self._breaker.state(self._monotonic())

    def run(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """One question on a connection of its own. Raises Invalid, Unavailable, NotTrusted."""

        async def once() -> Arrays:
            with contextlib.closing(self._connect()) as link:
                return await self._ask(link, feeds)

        try:
            return asyncio.run(self._in_time(once))
        except Unavailable as cause:
            raise Unavailable(f"the upstream gave no answer that can be used: {cause}") from None

    def check_signature(self) -> None:
        """Check that the upstream still describes the model as it did when it was published. Raises Unavailable."""
        try:
            found = asyncio.run(self._in_time(lambda: described(self._connect, self._dialect)))
        except (Invalid, NotTrusted) as cause:  # it may be another one tomorrow
            raise Unavailable(str(cause)) from None
        if found.signature != self._signature:
            raise Unavailable("the upstream's model takes or gives something else than when it was published: publish it again")

    async def infer(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """One question. Cancelling it cancels it at the upstream. Raises Invalid, Unavailable."""
        return await self._counted(lambda link: self._ask(link, feeds))

    async def check_ready(self) -> None:
        """Raise Unavailable unless the upstream answers, as far as that is known.

        When it was left alone for long enough, this asks it whether it is ready, in place of the request that would see.
        """
        if self.state() is not State.CLOSED:
            await self._counted(self._ready)

    def close(self) -> None:
        """Let go of what is open."""
        if self._link is not None:
            self._link.close()

    async def _ready(self, link: Link) -> None:
        self._dialect.check_ready(await _put(link, self._dialect.ready()))

    async def _ask(self, link: Link, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        request_id, size = self._entropy.token(12).hex(), sum(array.size for array in feeds.values())
        question = await _aside(size, lambda: self._dialect.infer(feeds, request_id))
        reply = await _put(link, question)
        return await _aside(len(reply.body) // 8, lambda: self._dialect.answer(reply, self._rows(feeds), request_id))

    def _rows(self, feeds: Mapping[str, NDArray[Any]]) -> int | None:
        return len(feeds[self._signature.inputs[0].name]) if self._batched else None

    async def _counted(self, act: Callable[[Link], Awaitable[T]]) -> T:
        """Do something at the upstream: in a slot, in time, and with leave of the breaker, which is told what became of it.

        Raises Invalid (the question is bad), Unavailable.
        """
        end = asyncio.get_running_loop().time() + self._patience.seconds
        task = asyncio.current_task()
        assert task is not None  # a coroutine that runs is in one
        WAITING.add(task)
        try:
            async with self._slot(end) as link:
                return await self._permitted(lambda: act(link), end)
        finally:
            WAITING.discard(task)

    @contextlib.asynccontextmanager
    async def _slot(self, end: float) -> AsyncIterator[Link]:
        """One of the few places at the upstream. Raises Unavailable (none comes free until ``end``, or too many wait)."""
        if self._slots is None or self._link is None:
            self._slots, self._link = asyncio.Semaphore(self._patience.requests), self._connect()
        if self._queued >= self._patience.queue:
            raise Unavailable("too many requests wait for the model's server: ask again in a moment")
        self._queued += 1
        try:
            async with asyncio.timeout_at(end):
                await self._slots.acquire()
        except TimeoutError:
            raise Unavailable("the model's server is busy: ask again in a moment") from None
        finally:
            self._queued -= 1
        try:
            yield self._link
        finally:
            self._slots.release()

    async def _permitted(self, act: Callable[[], Awaitable[T]], end: float) -> T:
        began = self._monotonic()
        try:
            permit = self._breaker.enter(began)
        except Unavailable as cause:
            raise Unavailable(f"the model's server does not answer: {cause}") from None
        try:
            async with asyncio.timeout_at(end):
                found = await act()
        except Invalid:  # it answered, and it is the question that is bad
            self._breaker.succeeded(permit, self._monotonic())
            raise
        except (Unavailable, NotTrusted) as cause:
            raise self._failed(permit, str(cause)) from None
        except TimeoutError:
            raise self._failed(permit, f"none came within {self._patience.seconds:g} s") from None
        finally:
            self._breaker.abandoned(permit)  # when it was cancelled: that says nothing of the upstream
        now = self._monotonic()
        self.readings.answers += 1
        self.readings.seconds += now - began
        self._breaker.succeeded(permit, now)
        self._tell("")
        return found

    def _failed(self, permit: Permit, why: str) -> Unavailable:
        self.readings.failures += 1
        self._breaker.failed(permit, self._monotonic())
        self._tell(why)
        return Unavailable(f"the model's server gave no answer that can be used: {why}")

    async def _in_time(self, act: Callable[[], Awaitable[T]]) -> T:
        try:
            async with asyncio.timeout(self._patience.seconds):
                return await act()
        except TimeoutError:
            raise Unavailable(f"the upstream does not answer within {self._patience.seconds:g} s") from None

    def _tell(self, why: str) -> None:
        """Report that the breaker opened or closed, once."""
        state = self.state()
        if state is State.OPEN and self._told is not State.OPEN:
            self._report(f"{self._document.model} at {self._document.url} is left alone for a while: {why}")
        elif state is State.CLOSED and self._told is not State.CLOSED:
            self._report(f"{self._document.model} at {self._document.url} answers again")
        else:
            return
        self._told = state


async def _aside(values: int, work: Callable[[], T]) -> T:
    """Do ``work`` on so many values: here when they are few, in a thread when it would hold everybody up."""
    if values < MANY:
        return work()
    return await asyncio.get_running_loop().run_in_executor(None, work)


def dialect_of(document: Upstream) -> Dialect:
    """How to talk about the model that ``document`` names."""
    if document.place.grpc:
        return Grpc(document.model, document.version, document.signature)
    return Rest(document.model, document.version, document.signature, binary=document.binary)


async def described(connect: Callable[[], Link], dialect: Dialect) -> Described:
    """What the upstream says of a model and of itself. Raises Invalid (it says too little), Unavailable, NotTrusted."""
    server, model = dialect.who()
    with contextlib.closing(connect()) as link:
        return dialect.described(await _put(link, server), await _put(link, model))


async def _put(link: Link, question: Question) -> Reply:
    return await link.request(question.method, question.path, question.headers, question.body)
