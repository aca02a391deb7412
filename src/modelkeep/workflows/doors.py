"""The way in to everything that is asked of a model, in one order: credential → its use → requests in flight → the answer,
or the record of the refusal.
"""

import asyncio
from collections.abc import Awaitable, Callable

import msgspec

from modelkeep.access.cells import Standing
from modelkeep.access.directory import Directory, FirstVisit
from modelkeep.access.limits import Limits
from modelkeep.access.presented import Presented
from modelkeep.access.quotas import Quotas
from modelkeep.access.stepup import StepUp
from modelkeep.access.uses import Uses
from modelkeep.access.view import Grant
from modelkeep.access.work import Solution, Work
from modelkeep.core.ports import Clock
from modelkeep.errors import ModelkeepError, NotTrusted, Unavailable
from modelkeep.policy.engine import Engine
from modelkeep.serving.oip import Form
from modelkeep.serving.rest import JSON
from modelkeep.workflows.admitted import Admitted
from modelkeep.workflows.cautions import Sightings
from modelkeep.workflows.recorder import Recorder

WELCOME_SECONDS = 5.0
"""How long the first request of an account of another issuer waits to be known."""
LOOK_SECONDS = 0.3
OURS = (Unavailable, NotTrusted)
"""What no input causes: an answer that fails so is not charged (access/charges)."""


class Call(msgspec.Struct, frozen=True, gc=False):
    """One question to a model. ``version``: a number, an alias, or None for the newest that is served; ``form``: how ``body``
    is written, and how its answer will be; ``agent``: the User-Agent, where somebody looks out for it; ``solution``: of a
    puzzle that was set before, None = none came."""

    model: str
    version: int | str | None
    presented: Presented
    body: bytes
    form: Form = JSON
    agent: bytes = b""
    solution: Solution | None = None


class Answer(msgspec.Struct, frozen=True, gc=False):
    """``body``: the response of the Open Inference Protocol; ``record``: ``<instance>/<index>`` of its audit record;
    ``json_size``: see ``Reply``; ``standing``: the limit that is nearest to its end, None when nothing is limited;
    ``notice``: what the account is told about its answers when they are not as usual."""

    body: bytes
    record: str
    json_size: int = -1
    standing: Standing | None = None
    notice: str = ""


class Doors(msgspec.Struct, frozen=True, kw_only=True):
    """Who is let in: the directory, the limits, quotas per credential, the access policy, when a second factor is asked for or
    work, who is noted to have come, and from where."""

    directory: Directory
    limits: Limits
    quotas: Quotas
    policy: Engine
    step_up: StepUp
    work: Work
    uses: Uses
    sightings: Sightings = msgspec.field(default_factory=Sightings)


class Entrance:
    """Lets in who asks, and has ``answer`` answer him."""

    def __init__(
        self,
        doors: Doors,
        recorder: Recorder,
        admitted: Callable[[], Admitted],
        answer: Callable[[Call, Grant], Awaitable[Answer]],
        *,
        clock: Clock,
    ) -> None:
        """``admitted``: what is served now; ``answer``: what one call of somebody who is known is told."""
        self._directory, self._limits, self._uses = doors.directory, doors.limits, doors.uses
        self._sightings = doors.sightings
        self._recorder, self._admitted, self._answer = recorder, admitted, answer
        self._monotonic = clock.monotonic

    async def ask(self, call: Call) -> Answer:
        """Answer one call.

        Raises Unauthenticated, Denied, OverBudget, Unavailable, and what ``answer`` raises. A refusal of somebody who is known
        has a durable record (all but Unavailable; of those over a limit, one a second).
        """
        try:
            grant = self._directory.authenticate(call.presented)
        except FirstVisit:
            grant = await self._welcome(call.presented)
        subject = grant.principal.subject
        self._uses.note(grant.principal.credential)
        if self._sightings.wanted:
            self._sightings.see(subject, call.presented.address, call.agent)
        try:
            self._limits.enter(subject)
            try:
                return await self._answer(call, grant)
            finally:
                self._limits.leave(subject)
        except Unavailable:
            raise
        except ModelkeepError as refusal:
            await self._recorder.refusal(subject, self._named(call), refusal)
            raise

    def who(self, presented: Presented) -> Grant:
        """Who comes with a credential, the use of which is noted. Raises what ``authenticate`` does."""
        grant = self._directory.authenticate(presented)
        self._uses.note(grant.principal.credential)
        return grant

    async def who_comes(self, presented: Presented) -> Grant:
        """The same; whoever comes for the first time waits a moment to be known."""
        try:
            return self.who(presented)
        except FirstVisit:
            return await self._welcome(presented)

    async def _welcome(self, presented: Presented) -> Grant:
        """Wait until somebody who comes for the first time is known. Raises what ``authenticate`` does."""
        end = self._monotonic() + WELCOME_SECONDS
        while True:
            await asyncio.sleep(LOOK_SECONDS)  # the directory looks four times a second, and so does whoever admits
            try:
                grant = self._directory.authenticate(presented)
            except FirstVisit:
                if self._monotonic() > end:
                    raise
            else:
                await asyncio.sleep(LOOK_SECONDS)  # his marks were logged before: the next look at the log sees them
                return grant

    def _named(self, call: Call) -> str:
        """What a refusal is recorded to be about: nothing unless there is such a model, for what was typed may be anything."""
        admitted = self._admitted()
        if not any(ref.name == call.model for ref in (*admitted.models, *admitted.refused)):
            return ""
        return call.model if call.version is None else f"{call.model}@{call.version}"
