"""FAB: the nearest point across the boundary, by projections on the linearised boundary between the label and one other class.

Source: Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", Algorithm 1, in
its targeted form; alpha_max 0.1, eta 1.05, beta 0.9. It does not need the scale of the loss, so that a model which hides its
gradients from APGD by saturating may still fall.
"""

from typing import Any

import torch

from modelkeep.training.lab.attacks.apgd import TARGETS, USUAL, Logits, Plan
from modelkeep.training.lab.attacks.ball import Ball
from modelkeep.training.lab.attacks.lanes import Attacked, State, joined, run, targeted

ALPHA, ETA, BETA = 0.1, 1.05, 0.9


def fab(logits: Logits, known: Attacked, ball: Ball, plan: Plan = USUAL, *, targets: int = TARGETS) -> Any:
    """Look for the nearest point that fools the model, of every row that stands, until one is within the ball.

    Returns: the least distance found of each row, shape (n,), infinite where none was.
    """
    rows = (~known.fallen).nonzero().squeeze(1)
    nearest = torch.full((len(known.x),), torch.inf, dtype=known.x.dtype, device=known.x.device)
    if not len(rows):
        return nearest
    generator = torch.Generator().manual_seed(plan.seed)
    with torch.no_grad():
        answers = torch.cat([logits(part) for part in known.x[rows].split(plan.wide(known.x))])
    jobs = joined(targeted(rows, answers, known.y[rows], targets))
    project = project_linf if ball.norm == "linf" else project_l2

    def enter(rows: Any, targets: Any) -> State:
        centre = known.x[rows]
        x = ball.grown(ball.epsilon / 2).draw(centre, generator) if restart else centre.clone()
        return {
            "row": rows, "target": targets, "label": known.y[rows], "done": torch.zeros_like(rows, dtype=torch.bool),
            "step": torch.zeros_like(rows), "centre": centre, "x": x,
        }  # fmt: skip

    def step(held: State) -> None:
        x, centre = held["x"], held["centre"]
        above, normal = _boundary(logits, held)
        offset = above  # of x from the plane, where the target is as likely as the label: normal @ (z - x) + above = 0
        from_centre = above + (normal * (centre - x)).sum(dim=1)
        d = project(torch.cat([x, centre]), torch.cat([normal, normal]), torch.cat([offset, from_centre]), ball)
        d1, d2 = d.split(len(x))
        a1, a2 = (ball.distance(one, torch.zeros_like(one)).clamp_min_(1e-8) for one in (d1, d2))
        alpha = (a1 / (a1 + a2)).clamp_max_(ALPHA)[:, None]
        x = ball.clip((x + ETA * d1) * (1 - alpha) + (centre + ETA * d2) * alpha)
        with torch.no_grad():
            across = logits(x).argmax(dim=1) != held["label"]
        distance = torch.where(across, ball.distance(x, centre), torch.inf)
        nearest.scatter_reduce_(0, held["row"], distance, "amin")
        inside = distance <= ball.epsilon * (1 + 1e-6)
        if bool(inside.any()):
            known.fell(held["row"][inside], ball.project(x[inside], centre[inside]))
        held["x"] = torch.where(across[:, None], centre + BETA * (x - centre), x)
        held["step"] += 1
        held["done"] |= inside | (held["step"] >= plan.steps)

    for restart in range(plan.restarts):  # noqa: B007 — `enter` reads it; the first begins at the row itself
        run(known, jobs, plan.wide(known.x), enter, step)
    return nearest


def _boundary(logits: Logits, held: State) -> tuple[Any, Any]:
    """The score of the target above that of the label, and its gradient."""
    with torch.enable_grad():
        x = held["x"].detach().requires_grad_()
        scores = logits(x)
        above = (scores.gather(1, held["target"][:, None]) - scores.gather(1, held["label"][:, None])).squeeze(1)
    (normal,) = torch.autograd.grad(above.sum(), x)
    return above.detach(), normal


def project_linf(x: Any, normal: Any, offset: Any, ball: Ball) -> Any:
    """The step d that is least in its largest number so that normal @ d = -offset and x + d is in the box.

    ``x``, ``normal``: (n, d); ``offset``: (n,). Where no step reaches the plane, the one that comes nearest. Each number moves
    by min(r, room) in the direction that helps; the least r is found among the sorted rooms.
    """
    way, room, weight = _ways(x, normal, offset, ball)
    room, order = room.sort(dim=1)
    weight_sorted = weight.gather(1, order)
    rest = weight_sorted.sum(dim=1, keepdim=True) - weight_sorted.cumsum(dim=1)  # of those with more room
    reached = (weight_sorted * room).cumsum(dim=1) + rest * room  # by r = room
    radius = _solve(offset.abs(), reached, room, torch.cat([weight_sorted.sum(1, keepdim=True), rest], dim=1))
    back = torch.empty_like(room).scatter_(1, order, room)
    return way * torch.minimum(radius[:, None], back)


def project_l2(x: Any, normal: Any, offset: Any, ball: Ball) -> Any:
    """As ``project_linf``, for the step that is least in its L2 norm: each number moves by min(r |normal|, room)."""
    way, room, weight = _ways(x, normal, offset, ball)
    at = torch.where(weight > 0, room / weight.clamp_min(torch.finfo(weight.dtype).tiny), torch.inf)
    at, order = at.sort(dim=1)
    square, used = (weight.square().gather(1, order), (weight * room).gather(1, order))
    rest = square.sum(dim=1, keepdim=True) - square.cumsum(dim=1)
    reached = used.cumsum(dim=1) + rest * torch.where(at.isinf(), 0.0, at)
    radius = _solve(offset.abs(), reached, at, torch.cat([square.sum(1, keepdim=True), rest], dim=1))
    return way * torch.minimum(radius.clamp_max(1e30)[:, None] * weight, room)  # infinite times 0 would be no number


def _ways(x: Any, normal: Any, offset: Any, ball: Ball) -> tuple[Any, Any, Any]:
    """Of each number: the sign that brings it to the plane, how far it may go, and how much that helps."""
    way = -normal.sign() * offset.sign()[:, None]
    room = torch.where(way > 0, ball.high - x, x - ball.low).clamp_min_(0.0)
    return way, room * (way != 0), normal.abs()


def _solve(wanted: Any, reached: Any, at: Any, slopes: Any) -> Any:
    """The least r at which a concave function, which grows from 0 with ``slopes`` between points, is ``wanted``, shape (n,).

    ``at``: the points; ``reached``: its values there, (n, d). Infinite where it never is.
    """
    place = torch.searchsorted(reached.contiguous(), wanted[:, None].contiguous())
    zero = reached.new_zeros(len(reached), 1)
    from_value = torch.cat([zero, reached], dim=1).gather(1, place).squeeze(1)
    from_at = torch.cat([zero, at], dim=1).gather(1, place).squeeze(1)
    slope = slopes.gather(1, place).squeeze(1)
    return torch.where(slope > 0, from_at + (wanted - from_value) / slope.clamp_min(1e-30), torch.inf)
