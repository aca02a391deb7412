"""Privacy budgets of data sets in the releases log: set, reserved before a run, settled after it, and told.

The log decides, and its order settles who came first: a run is reserved by an act, and counts in full from then on. Whoever
reserved looks again once it is logged, and gives back what does not fit behind those that came before. A run that was cut off
stays charged until somebody says how many steps it made. Acts that no trusted identity signed give nothing back; what was ever
signed stays charged, even when its signer turns out to be compromised.
"""

import contextlib
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

from modelkeep.core.ports import Clock
from modelkeep.core.values import Digest, Resource, Statement, digest_of
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.custody.signatories import Signatories
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Denied, Invalid, Missing, ModelkeepError, Unavailable
from modelkeep.ledger.attestations import Privacy, Salted
from modelkeep.ledger.log import LogView
from modelkeep.ledger.predicates import Act, Trust
from modelkeep.ledger.statements import check_statement, encode_statement, keep_resource, peek_type, peek_verb, predicate_of
from modelkeep.training.accountant import Promise, Spend, Steps, epsilon_of
from modelkeep.training.budgets import Budget, Charge, Ledger, PrivacySpent, ledger_name
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.attest import attest
from modelkeep.workflows.registry import Desk

BUDGET, RESERVE, SETTLE = "privacy.budget", "privacy.reserve", "privacy.settle"
"""Acts: a data set has another budget; a run is about to begin; it has ended after so many steps."""

_BATCH = 256


class Ledgers:
    """The ledgers of all data sets, as a log says."""

    def __init__(self, trust: TrustRoot) -> None:
        self._signatories, self._keep = Signatories(trust), keep_resource(trust.origin)
        self._size = 0
        self._found: dict[str, Ledger] = {}
        self._runs: dict[str, str] = {}
        self._seen: set[Digest] = set()

    @classmethod
    def of(cls, view: LogView, trust: TrustRoot) -> "Ledgers":
        """Raises NotTrusted, Unavailable."""
        made = cls(trust)
        made.catch_up(view, view.checkpoint.size)
        return made

    def catch_up(self, view: LogView, size: int) -> None:
        """Read the log up to ``size`` entries. Raises NotTrusted, Unavailable."""
        while self._size < size:
            for entry in view.entries(self._size, min(size, self._size + _BATCH)):
                with contextlib.suppress(ModelkeepError):  # it does not count; the evidence book tells why
                    self._apply(self._size, entry)
                self._size += 1

    def ledger(self, name: str) -> Ledger:
        """Of one data set, empty when nothing is known of it."""
        return self._found.get(name, Ledger(name))

    def all(self) -> tuple[Ledger, ...]:
        """By name."""
        return tuple(self._found[name] for name in sorted(self._found))

    def run(self, run: str) -> tuple[Ledger, Charge]:
        """A run that was reserved, and the ledger that it is in. Raises Missing."""
        ledger = self.ledger(self._runs.get(run, ""))
        found = [one for one in ledger.charges if one.run == run]
        if not found:
            raise Missing(f"no run {run[:40]!r} was reserved: 'modelkeep privacy ledger' tells those that were")
        return ledger, found[0]

    def _apply(self, index: int, entry: bytes) -> None:
        envelope = parse_envelope(entry)
        kind = peek_type(envelope)
        if kind not in (Act.TYPE, Privacy.TYPE, Trust.TYPE):
            return
        if kind == Act.TYPE and peek_verb(envelope) not in (BUDGET, RESERVE, SETTLE):
            return  # most acts are others, and signatures take most of the time
        try:
            statement, trusted = self._signatories.check(envelope, index)[0], True
        except Conflict:  # its signer is compromised: what it charged stays charged
            statement, trusted = check_statement(envelope, self._signatories.identities)[0], False
        if kind == Trust.TYPE:
            self._signatories.follow(index, envelope, statement)
        elif not self._fresh(statement):
            raise Conflict("this statement was logged before: a copy does not count, or a larger budget of before would again")
        elif kind == Privacy.TYPE:
            self._charged(index, statement.subject[0].digest, predicate_of(statement, Privacy))
        elif statement.subject == (self._keep,):
            self._acted(index, predicate_of(statement, Act), trusted)

    def _fresh(self, statement: Statement) -> bool:
        identifier, before = digest_of(encode_statement(statement)), len(self._seen)
        self._seen.add(identifier)
        return len(self._seen) > before

    def _acted(self, index: int, said: Act, trusted: bool) -> None:
        if said.verb == BUDGET and trusted:
            budget = Budget(_number(said, "epsilon"), _number(said, "delta")).checked()
            self._found[said.about] = replace(self.ledger(said.about), budget=budget)
        elif said.verb == RESERVE:
            self._reserved(index, said)
        elif said.verb == SETTLE and trusted:
            ledger, charge = self.run(said.detail.get("run", ""))
            if not charge.settled:
                self._put(ledger, charge.after(int(_number(said, "steps"))))

    def _reserved(self, index: int, said: Act) -> None:
        run = said.detail.get("run", "")
        if run in self._runs:
            raise Conflict(f"the run {run[:40]} was reserved before")
        spend = Steps(_number(said, "noise"), _number(said, "rate"), int(_number(said, "steps")))
        data = said.detail.get("dataset", said.about), Digest(said.detail.get("digest", ""))
        charge = Charge(index, run, said.actor, said.at, *data, spend, delta=_number(said, "delta"), clip=_number(said, "clip"))
        self._add(said.about, charge)

    def _charged(self, index: int, model: Digest, said: Privacy) -> None:
        """A privacy statement: of a reserved run, whose costs are known, or a charge of its own.

        A reservation pays for one model, and for nobody else's: else a hundred could be trained for the price of one.
        """
        if said.dataset is None:
            return
        name, spend = ledger_name(said.dataset.name), _spend(said)
        reserved = next((one for one in self.ledger(name).charges if one.run and one.run == said.run), None)
        if reserved is not None and reserved.pays_for(model, said.actor) and spend == reserved.spend:
            self._put(self.ledger(name), replace(reserved, models=(model,), settled=True))
            return
        charge = Charge(
            index, "", said.actor, said.at, said.dataset.name, said.dataset.digest, spend, said.delta, said.max_grad_norm,
            settled=True, models=(model,),
        )  # fmt: skip
        self._add(name, charge)

    def _add(self, name: str, charge: Charge) -> None:
        ledger = self.ledger(name)
        self._found[name] = replace(ledger, charges=(*ledger.charges, charge))
        if charge.run:
            self._runs[charge.run] = name

    def _put(self, ledger: Ledger, charge: Charge) -> None:
        charges = tuple(charge if one.index == charge.index else one for one in ledger.charges)
        self._found[ledger.name] = replace(ledger, charges=charges)


class Spent:
    """What all private runs on a data set have cost together, as the log said at the last ``look``. Thread-safe.

    A sum is counted once, in a thread of its own. ``wait``: seconds by ``clock`` that all answers between two looks may take
    together, None = as long as counting does: whoever serves models must not wait for hundreds of runs, which take seconds, nor
    for every release anew.
    """

    def __init__(
        self,
        view: LogView,
        trust: Callable[[], TrustRoot],
        *,
        clock: Clock,
        wait: float | None = None,
        count: Callable[[Sequence[Spend], float], float] = epsilon_of,
    ) -> None:
        self._view, self._trust, self._clock, self._wait, self._count = view, trust, clock, wait, count
        self._looked = clock.monotonic()
        self._root = trust()
        self._ledgers = Ledgers(self._root)
        self._counted: dict[tuple[str, float], tuple[list[Spend], Future[float]]] = {}
        self._pool = ThreadPoolExecutor(1, "modelkeep-count")
        self._lock = threading.Lock()

    def look(self) -> "Spent":
        """This one, as the log says that ``view`` last saw. Raises NotTrusted, Unavailable."""
        with self._lock:
            root = self._trust()
            if root != self._root:
                self._root, self._ledgers = root, Ledgers(root)
            self._ledgers.catch_up(self._view, self._view.checkpoint.size)
            self._looked = self._clock.monotonic()
        return self

    def __call__(self, said: Privacy) -> float:
        """The epsilon of all runs on the data of a statement, at its delta, or that of the budget if it is smaller.

        So no budget of a large delta makes little of what was spent. Infinite when it is not known. Raises Unavailable (it is
        being counted).
        """
        if said.dataset is None or said.dataset_epsilon <= 0.0:  # no run of this keep: what else was trained, nobody counted
            return math.inf
        name = ledger_name(said.dataset.name)
        with self._lock:
            ledger = self._ledgers.ledger(name)
            delta, spends = min(said.delta, ledger.told_at(said.delta)), [one.spend for one in ledger.charges]
            if not spends:
                return math.inf
            before, sum_of_all = self._counted.get((name, delta), ([], None))
            if sum_of_all is None or before != spends:
                sum_of_all = self._pool.submit(self._count, spends, delta)
                self._counted[name, delta] = spends, sum_of_all
        try:
            return sum_of_all.result(self._left())
        except TimeoutError:
            raise Unavailable(f"what all private runs on the data set {name} cost together is being counted") from None
        except Invalid:  # no accountant counts at such a delta
            return math.inf

    def _left(self) -> float | None:
        """Seconds that answers may still take before the next look."""
        return None if self._wait is None else max(0.0, self._looked + self._wait - self._clock.monotonic())


def set_budget(desk: Desk, origin: str, name: str, budget: Budget, *, actor: str, reason: str = "") -> int:
    """Log the budget of a data set; the index. Raises Invalid, TooLarge, NotTrusted, Unavailable."""
    told = budget.checked()
    detail = {"epsilon": repr(told.epsilon), "delta": repr(told.delta), "reason": reason}
    return log_act(desk, origin, BUDGET, name, actor=actor, detail=detail)


class Reserved(NamedTuple):
    """A run that may begin: its ``ledger`` and ``charge``."""

    ledger: Ledger
    charge: Charge


def reserve(desk: Desk, trust: TrustRoot, data: Salted, plan: PrivacySpent, *, actor: str) -> Reserved:
    """Charge a run before it begins.

    Of two who reserve at once, the log's order says who was first. Raises Denied (it does not fit the budget), Invalid (it is
    no plan, or promises nothing), NotTrusted, Unavailable.
    """
    name = ledger_name(data.name)
    if not math.isfinite(epsilon_of([plan.spend], plan.delta)):
        raise Invalid(f"this plan has no finite epsilon at delta {plan.delta:g}: add noise, or make fewer steps")
    _read(desk, trust).ledger(name).check(plan)
    run = desk.entropy.token(16).hex()
    detail = {
        "run": run,
        "dataset": data.name,
        "digest": data.digest,
        "noise": repr(plan.noise_multiplier),
        "rate": repr(plan.sample_rate),
        "steps": str(plan.steps),
        "delta": repr(plan.delta),
        "clip": repr(plan.max_grad_norm),
    }
    index = log_act(desk, trust.origin, RESERVE, name, actor=actor, detail=detail)
    ledger, charge = _read(desk, trust).run(run)
    earlier = replace(ledger, charges=tuple(one for one in ledger.charges if one.index < index))
    try:
        earlier.check(plan)
    except Denied:
        settle(desk, trust, run, 0, actor=actor, reason="others reserved first")
        raise
    return Reserved(ledger, charge)


def settle(desk: Desk, trust: TrustRoot, run: str, steps: int, *, actor: str, reason: str = "") -> Charge:
    """Say how many steps a run made, 0 = it never began; what it did not spend is given back.

    Raises Missing (no such run), Conflict (it is settled), Invalid (more than were reserved), NotTrusted, Unavailable.
    """
    _, charge = _read(desk, trust).run(run)
    if charge.settled:
        raise Conflict(f"the run {run} is settled: what was spent stays spent")
    charge.after(steps)
    log_act(desk, trust.origin, SETTLE, run, actor=actor, detail={"run": run, "steps": str(steps), "reason": reason})
    return _read(desk, trust).run(run)[1]


def record(desk: Desk, trust: TrustRoot, run: str, model: Resource, *, actor: str) -> int:
    """Log the privacy statement of a model that came out of a reserved run, in the numbers that were reserved; its index.

    Raises Missing, Conflict (it was given back, or another model came out of it), NotTrusted, Unavailable.
    """
    ledger, charge = _read(desk, trust).run(run)
    spend = charge.spend
    assert isinstance(spend, Steps)
    if not charge.pays_for(model.digest, actor):
        raise Conflict(f"the run {run} was reserved by somebody else, or another model came out of it: reserve one of its own")
    if spend.steps == 0:
        raise Conflict(f"the run {run} was given back: no model can have come out of it")
    whole = ledger.total(ledger.told_at(charge.delta))
    said = Privacy(
        actor=actor,
        at=desk.clock.now_ns(),
        epsilon=charge.epsilon,
        delta=charge.delta,
        accountant="pld",
        noise_multiplier=spend.noise,
        sample_rate=spend.rate,
        steps=spend.steps,
        max_grad_norm=charge.clip,
        dataset=Salted(charge.dataset, charge.digest),
        run=run,
        dataset_epsilon=whole if math.isfinite(whole) else 0.0,
    )
    return attest(desk, model, said)


def _read(desk: Desk, trust: TrustRoot) -> Ledgers:
    desk.registry.refresh()
    return Ledgers.of(desk.registry.view, trust)


def _spend(said: Privacy) -> Spend:
    known = said.mechanism == "dp-sgd" and said.noise_multiplier > 0.0 and said.sample_rate > 0.0 and said.steps > 0
    if known:
        return Steps(said.noise_multiplier, said.sample_rate, said.steps)
    return Promise(said.epsilon, said.delta)


def _number(said: Act, field: str) -> float:
    try:
        found = float(said.detail[field])
    except (KeyError, ValueError) as cause:
        raise Invalid(f"the act {said.verb} has no number {field!r}") from cause
    if not math.isfinite(found):
        raise Invalid(f"the act {said.verb} has no finite {field!r}")
    return found
