"""What is left in answers that a defence made coarse: the fidelity of a copy that learns from them, at equal distortion.

ModelGuard's quantiser beside our third rung and beside noise. Every thief asks natural rows and does the best that is known
against each: the posterior mean of the clean answer, from answers that he simulates himself.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from benchmarks import Row
from benchmarks._extraction import Floats, Setting
from modelkeep.adapters.surrogates import MlpSurrogate
from modelkeep.extraction import ladder
from modelkeep.extraction.attacks import Recovering
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.perturb import Marker

DRAWS, NEAR = 8, 16
"""Simulated answers to each question, and how many of them an answer is recovered from."""


def quantised(probs: Floats, epsilon: float) -> Floats:
    """Each of the answers (n, k) as the first known one of its class within ``epsilon`` (L1), or itself, known from then on.

    Source: Tang et al. 2024, "ModelGuard: Information-Theoretic Defense Against Model Extraction Attacks", the ordered
    incremental quantisation of ModelGuard-S; like an answer that is given again, it never changes with what comes later.
    """
    known, count, out = np.empty_like(probs), 0, np.array(probs)
    for row, answer in enumerate(probs):
        cell = first_within(answer, known[:count], epsilon)
        if cell < 0:
            known[count], count = answer, count + 1
        else:
            out[row] = known[cell]
    return out


def first_within(answer: Floats, known: Floats, epsilon: float) -> int:
    """The number of the first of ``known`` (m, k) with the same top class within ``epsilon`` (L1) of ``answer`` (k,), or -1."""
    near = np.flatnonzero(np.abs(known - answer).sum(axis=1) <= epsilon)
    fits = near[known[near].argmax(axis=1) == answer.argmax()] if len(near) else near
    return int(fits[0]) if len(fits) else -1


def recovered(told: Floats, guess: Floats, epsilon: float, rng: np.random.Generator) -> Floats:
    """Answers ``told`` (n, k), each as the mean of the simulated clean answers that the quantiser would have told the same.

    ``guess``: (n, k), what a copy that learnt from ``told`` answers; simulated are its answers, jittered, and of those of one
    cell the sixteen nearest to the guess count. Source: Tang et al. 2024, the Bayes attack.
    """
    index = np.unique(told, axis=0, return_index=True)[1]
    known = told[np.sort(index)]
    logits = np.log(np.maximum(np.tile(guess, (DRAWS, 1)), 1e-9))
    logits = logits * np.exp(0.3 * rng.normal(size=(len(logits), 1))) + 0.3 * rng.normal(size=logits.shape)
    clean = np.exp(logits - logits.max(axis=1, keepdims=True))
    clean /= clean.sum(axis=1, keepdims=True)
    place = np.array([first_within(answer, known, epsilon) for answer in clean])
    out = np.array(told)
    for cell, centroid in enumerate(known):
        like = clean[place == cell]
        if not len(like):
            continue
        for row in np.flatnonzero((told == centroid).all(axis=1)):
            nearest = np.argsort(np.abs(like - guess[row]).sum(axis=1))[:NEAR]
            out[row] = like[nearest].mean(axis=0)
    return out


def matching(probs: Floats, distortion: float) -> float:
    """The epsilon at which ``quantised`` changes ``probs`` (n, k) by ``distortion`` in the mean (L1), by bisection."""
    low, high = 0.0, 2.0
    for _ in range(12):
        middle = 0.5 * (low + high)
        if np.abs(quantised(probs, middle) - probs).sum(axis=1).mean() < distortion:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def noisy(probs: Floats, distortion: float, rng: np.random.Generator) -> Floats:
    """Answers (n, k) moved towards random ones with the same top class, by ``distortion`` in the mean (L1)."""
    other = rng.dirichlet(np.ones(probs.shape[1]), size=len(probs))
    rows, top = np.arange(len(probs)), probs.argmax(axis=1)
    best = other.argmax(axis=1)
    other[rows, top], other[rows, best] = other[rows, best], other[rows, top]
    apart = np.abs(other - probs).sum(axis=1).mean()
    return probs + min(1.0, distortion / apart) * (other - probs)


def answers(setting: Setting, runs: int, questions: int = 500) -> Iterator[Row]:
    """Fidelity on rows that nobody asked of copies that learnt from ``questions`` answers, and what distortion they had."""
    found: dict[str, list[tuple[float, float]]] = {}
    for run in range(runs):
        rng = np.random.default_rng([run, 9])
        order = rng.permutation(len(setting.pool))
        asked, rest = order[: min(questions, len(order) // 2)], order[-min(4000, len(order) // 2) :]
        for name, copy, distortion in _copies(setting, setting.pool[asked], setting.answers[asked], run, rng):
            agreed = copy.predict(setting.pool[rest]).argmax(axis=1) == setting.answers[rest].argmax(axis=1)
            found.setdefault(name, []).append((float(agreed.mean()), distortion))
    for name, each in found.items():
        fidelity, distortion = np.array(each).T
        yield {
            "part": "answers",
            "setting": setting.name,
            "who": name,
            "L1": f"{distortion.mean():.3f}",
            "fidelity": f"{fidelity.mean():.3f}",
            "deviation": f"{fidelity.std():.3f}",
        }


def _copies(
    setting: Setting, x: Floats, clean: Floats, run: int, rng: np.random.Generator
) -> Iterator[tuple[str, MlpSurrogate | Recovering, float]]:
    def make() -> MlpSurrogate:
        return MlpSurrogate(seed=run)

    def learnt(told: NDArray[np.float64]) -> MlpSurrogate:
        copy = make()
        copy.fit(x, told)
        return copy

    ours = ladder.respond(ladder.DEFAULT.steps[Rung.QUANTISED], Marker(bytes([run]) * 32, setting.profile).apply(x, clean))
    ours = np.maximum(ours, 1e-9)
    room = float(np.abs(ours - clean).sum(axis=1).mean())
    epsilon = matching(clean, room)
    theirs = quantised(clean, epsilon)
    away = float(np.abs(theirs - clean).sum(axis=1).mean())
    yield "clean", learnt(clean), 0.0
    yield "ours, quarters", learnt(ours), room
    recovering = Recovering(make, seed=run)
    recovering.fit(x, ours)
    yield "ours, recovered", recovering, room
    copy = learnt(theirs)
    yield "ModelGuard-S", copy, away
    yield "ModelGuard-S, recovered", learnt(recovered(theirs, copy.predict(x), epsilon, rng)), away
    yield "noise", learnt(noisy(clean, room, rng)), room
    yield "top class only", learnt(np.eye(clean.shape[1])[clean.argmax(axis=1)]), float(2.0 * (1.0 - clean.max(axis=1)).mean())
