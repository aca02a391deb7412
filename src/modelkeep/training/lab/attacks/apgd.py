"""Auto-PGD: projected gradient ascent that finds its step size by itself.

Source: Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
attacks", section 3, Algorithm 1, with momentum 0.75 and rho 0.75. Every row is at a step of its own (``lanes``), and leaves
when it falls.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.lanes import Attacked, Jobs, State, joined, run, targeted
from modelkeep.training.lab.attacks.losses import cross_entropy, targeted_dlr

Logits = Callable[[Any], Any]
Loss = Callable[[Any, Any, Any], tuple[Any, Any]]
MOMENTUM, RHO = 0.75, 0.75
TARGETS = 9
WIDEST, NARROWEST, NUMBERS = 512, 64, 160_000
"""Rows computed at once: as many as hold so many numbers, which caches hold with what a small network makes of them."""


class Plan(NamedTuple):
    """``steps``: of each job; ``restarts``: from other random points; ``seed``: of those; ``width``: rows computed at once, 0 =
    by their size."""

    steps: int = 100
    restarts: int = 1
    seed: int = 0
    width: int = 0

    def wide(self, x: Any) -> int:
        """Rows of ``x`` (n, d) that are computed at once."""
        return self.width or min(WIDEST, max(NARROWEST, NUMBERS // x.shape[1]))


USUAL = Plan()


class Trail(NamedTuple):
    """What attacks met with at each row, shape (n,) bool; True, too, at rows that were not attacked.

    ``flat``: the gradient was zero everywhere, wherever a job began; ``still``: the loss rose in no step of any job.
    """

    flat: Any
    still: Any


def checkpoints(steps: int) -> list[int]:
    """Steps at which step sizes are judged: w_0 = 0.22, each interval 0.03 shorter, none under 0.06 of all steps."""
    found, interval, at = [], max(int(0.22 * steps), 1), 0
    while at + interval <= steps:
        at += interval
        found.append(at)
        interval = max(interval - max(int(0.03 * steps), 1), int(0.06 * steps), 1)
    return found


def apgd_ce(logits: Logits, known: Attacked, ball: Ball, plan: Plan = USUAL) -> Trail:
    """Raise the cross-entropy of every row of ``known`` that stands, until it falls or all steps are taken."""
    rows = (~known.fallen).nonzero().squeeze(1)
    jobs = Jobs(rows.repeat(plan.restarts), known.y[rows].repeat(plan.restarts))
    return _climb(logits, known, jobs, ball, plan, cross_entropy)


def apgd_t(logits: Logits, known: Attacked, ball: Ball, plan: Plan = USUAL, *, targets: int = TARGETS) -> Trail:
    """Raise the targeted ratio of logits of every row that stands, towards each of its likeliest wrong classes."""
    rows = (~known.fallen).nonzero().squeeze(1)
    if not len(rows):
        return _trail(known)
    with torch.no_grad():
        answers = torch.cat([logits(part) for part in known.x[rows].split(plan.wide(known.x))])
    jobs = joined(one for _ in range(plan.restarts) for one in targeted(rows, answers, known.y[rows], targets))
    return _climb(logits, known, jobs, ball, plan, targeted_dlr)


def _trail(known: Attacked) -> Trail:
    return Trail(torch.ones_like(known.fallen), torch.ones_like(known.fallen))


def _climb(logits: Logits, known: Attacked, jobs: Jobs, ball: Ball, plan: Plan, loss: Loss) -> Trail:
    generator = torch.Generator().manual_seed(plan.seed)
    trail = _trail(known)
    since = torch.zeros(plan.steps + 1, dtype=torch.long, device=known.x.device)
    """At a step that is a checkpoint, how many steps ago the one before was, else 0."""
    marks = checkpoints(plan.steps)
    for before, at in zip([0, *marks], marks, strict=False):
        since[at] = at - before

    def enter(rows: Any, targets: Any) -> State:
        centre = known.x[rows]
        x = ball.draw(centre, generator)
        zeros = x.new_zeros(len(rows))
        return {
            "row": rows, "target": targets, "label": known.y[rows], "done": torch.zeros_like(rows, dtype=torch.bool),
            "step": torch.zeros_like(rows), "centre": centre, "x": x, "old": x.clone(), "best_x": x.clone(),
            "gradient": torch.zeros_like(x), "size": zeros + 2 * ball.epsilon, "best": zeros - torch.inf,
            "last": zeros + torch.inf, "judged": zeros - torch.inf, "rises": zeros.clone(), "halved": zeros + 1.0,
            "first": zeros + torch.inf,
        }  # fmt: skip

    def step(held: State) -> None:
        value, gradient, answer = _ask(logits, held, loss)
        fallen = answer != held["label"]
        if bool(fallen.any()):
            known.fell(held["row"][fallen], held["x"][fallen])
        better = value > held["best"]
        trail.still[held["row"][value > held["first"]]] = False
        first = held["step"] == 0
        if bool(first.any()):
            rows = held["row"][first]
            trail.flat[rows[gradient[first].any(dim=1)]] = False
            held["first"] = torch.where(first, value, held["first"])
        every = better[:, None]
        torch.where(every, held["x"], held["best_x"], out=held["best_x"])
        torch.where(every, gradient, held["gradient"], out=held["gradient"])  # of the best point
        torch.where(better, value, held["best"], out=held["best"])
        held["rises"] += value > held["last"]
        held["last"] = value
        at = held["x"]
        span = since[held["step"]]
        if bool(span.any()):
            at, gradient = _judge(held, span, at, gradient)
        held["done"] |= fallen | (held["step"] >= plan.steps)
        _move(held, at, gradient, ball, first)
        held["step"] = (held["step"] + 1).clamp_max_(plan.steps)  # a lane that is done may wait for others

    run(known, jobs, plan.wide(known.x), enter, step)
    return trail


def _ask(logits: Logits, held: State, loss: Loss) -> tuple[Any, Any, Any]:
    """Loss, its gradient at the input, and the answered class, of every lane."""
    with torch.enable_grad():
        x = held["x"].detach().requires_grad_()
        scores = logits(x)
    value, slope = loss(scores.detach(), held["label"], held["target"])
    (gradient,) = torch.autograd.grad(scores, x, slope)
    answer = scores.detach()
    return value, gradient, torch.where(answer.isnan().any(dim=1), -1, answer.argmax(dim=1))  # no number is no answer


def _judge(held: State, span: Any, at: Any, gradient: Any) -> tuple[Any, Any]:
    """At a checkpoint: halve the step of rows whose loss rose too seldom, or not at all at the same step, and take these back
    to their best point."""
    due = span > 0
    seldom = held["rises"] <= RHO * span
    stuck = (held["halved"] == 0) & (held["judged"] >= held["best"])
    halve = due & (seldom | stuck)
    held["size"] = torch.where(halve, held["size"] / 2, held["size"])
    held["halved"] = torch.where(due, halve.to(held["halved"].dtype), held["halved"])
    held["judged"] = torch.where(due, held["best"], held["judged"])
    held["rises"] = torch.where(due, torch.zeros_like(held["rises"]), held["rises"])
    every = halve[:, None]
    return torch.where(every, held["best_x"], at), torch.where(every, held["gradient"], gradient)


def _move(held: State, at: Any, gradient: Any, ball: Ball, first: Any) -> None:
    """One step with momentum, from ``at``, of every lane."""
    centre = held["centre"]
    target = ball.project(torch.addcmul(at, ball.steepest(gradient), held["size"][:, None]), centre)
    share = torch.where(first, 1.0, MOMENTUM)[:, None]
    carried = at - held["old"]
    x = ball.project(at + (target - at).mul_(share) + carried.mul_(1 - share), centre)
    held["old"], held["x"] = at, x
