"""Audit records from the event loop: hand one over, wait until it is durable, one wake-up of the loop per batch."""

import asyncio
from collections.abc import Callable
from functools import partial

import msgspec

from modelkeep.core.ports import Clock
from modelkeep.errors import ModelkeepError, OverBudget, Unavailable
from modelkeep.serving.audit import AuditEntry
from modelkeep.serving.series import AuditSeries

Done = Callable[[int | ModelkeepError], None]
MAX_QUIET = 65_536
GROUP, TURNS = 16, 6
"""Records, and turns of the event loop, after which a group is committed while more of it come in."""


class Delivery:
    """Brings the results of the audit writer's thread to the event loop. Give it to ``AuditLog`` as ``deliver``."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self, batch: list[tuple[Done, int | ModelkeepError]]) -> None:
        """Deliver a batch; in this thread while no loop runs."""
        if self.loop is None or self.loop.is_closed():
            _run(batch)
        else:
            self.loop.call_soon_threadsafe(_run, batch)


def _run(batch: list[tuple[Done, int | ModelkeepError]]) -> None:
    for done, result in batch:
        done(result)


def _settle(future: asyncio.Future[int], result: int | ModelkeepError) -> None:
    if future.done():  # the request was cut at its deadline; its record stands
        return
    if isinstance(result, ModelkeepError):
        future.set_exception(result)
    else:
        future.set_result(result)


class Written(msgspec.Struct, frozen=True):
    """A record that is durable: its ``index`` in the log of ``instance``."""

    instance: str
    index: int

    @property
    def receipt(self) -> str:
        """What the client is told about it: ``<instance>/<index>``."""
        return f"{self.instance}/{self.index}"


class Recorder:
    """The audit log as the hot path sees it. ``took`` is told each record's seconds."""

    def __init__(self, audit: AuditSeries, clock: Clock) -> None:
        self._submit, self._monotonic = audit.enqueue, clock.monotonic
        self._turning = self._crowd = False
        self._fresh = self._group = self._turns = 0
        self.took: Callable[[float], None] = lambda _seconds: None
        self._audit = audit
        self._quiet: dict[str, float] = {}

    def check(self) -> None:
        """Raise Unavailable if a record would be refused at this moment."""
        refusal = self._audit.refusal
        if refusal:
            raise Unavailable(refusal)

    async def write(self, entry: AuditEntry, body: bytes) -> Written:
        """Where the record is, once it is durable. Raises Unavailable: then nothing may be answered."""
        began = self._monotonic()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[int] = loop.create_future()
        instance = self._submit(entry, body, partial(_settle, future))
        self._fresh += 1
        if not self._turning:
            self._turning = True
            loop.call_soon(self._turn, loop)
        index = await future
        self.took(self._monotonic() - began)
        return Written(instance, index)

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop has come round: commit what was handed over, or wait for what the next turn brings.

        A sync costs the machine as much as an answer does, so where requests come turn after turn they share it. Whoever asks
        alone never waits for others: a group of one is followed by one that goes at once.
        """
        fresh, self._fresh = self._fresh, 0
        self._group += fresh
        if fresh and (self._crowd or self._group > 1) and self._group < GROUP and self._turns < TURNS:
            self._turns += 1
            loop.call_soon(self._turn, loop)
            return
        self._crowd = self._group > 1
        self._turning, self._group, self._turns = False, 0, 0
        self._audit.wake()

    async def refusal(self, subject: str, release: str, error: ModelkeepError) -> None:
        """Record that a known account was refused. Of refusals over a limit one a second and account: they cost nothing."""
        if isinstance(error, OverBudget):
            now = self._monotonic()
            if now < self._quiet.get(subject, 0.0):
                return
            if len(self._quiet) >= MAX_QUIET:
                self._quiet.clear()
            self._quiet[subject] = now + 1.0
        await self.write(AuditEntry(kind="deny", subject=subject, release=release, request="", outcome=error.code), b"")
