"""Explanations: what one costs, how near it comes to the exact values, and what a thief learns from it for which price.

``python -m benchmarks explain``. Beside it, in the same run: plain answers to the same thief; shap's permutation explainer,
where that package is installed.
"""

import time
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier

from benchmarks import Row, report
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.profile import Profile
from modelkeep.serving.explain import exponent_of, price
from modelkeep.serving.shapley import Ask, in_units, shapley

Floats = NDArray[np.float64]
PAIRS, MOST = 64, 65_536


def _digits() -> tuple[Ask, Floats, Floats]:
    data = load_digits()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = MLPClassifier((64,), max_iter=60, random_state=0).fit(data.data[:900], data.target[:900])
    target = int(model.predict(data.data[1000:1001])[0])
    return lambda rows: model.predict_proba(rows)[:, target], data.data[1000].astype(float), data.data[:32].astype(float)


def _cost() -> list[Row]:
    ask, x, background = _digits()
    near = shapley(ask, x, background, pairs=8192, max_rows=1 << 22, seed=9).phi
    rows: list[Row] = []
    for pairs in (32, 64, 256):
        errors, times, asked = [], [], 0
        for seed in range(5):
            began = time.perf_counter()
            found = shapley(ask, x, background, pairs=pairs, max_rows=MOST, seed=seed)
            times.append(time.perf_counter() - began)
            errors.append(found.phi - near)
            asked = found.rows
        rows.append(_cost_row(f"digits, 64 numbers, {pairs} pairs", asked, times, errors))
    try:
        from shap import PermutationExplainer
        from shap.maskers import Independent
    except ImportError:
        return [*rows, {"bench": "explain", "case": "shap is not installed here"}]
    errors, times = [], []
    for seed in range(5):
        explainer = PermutationExplainer(ask, Independent(background, max_samples=32), seed=seed)
        began = time.perf_counter()
        errors.append(explainer(x[None], max_evals=2 * 64 + 1, silent=True).values[0] - near)
        times.append(time.perf_counter() - began)
    return [*rows, _cost_row("shap's permutation explainer, 129 evaluations", 129 * 32, times, errors)]


def _cost_row(case: str, asked: int, times: list[float], errors: list[Floats]) -> Row:
    return {
        "bench": "explain",
        "case": case,
        "rows_asked": asked,
        "ms": round(float(np.median(times)) * 1e3, 1),
        "rms_error": round(float(np.sqrt(np.mean(np.square(errors)))), 5),
    }


def _told(ask: Ask, x: Floats, background: Floats, digits: int, probability: bool) -> tuple[Floats, float]:
    """What an account is told about ``x``: rounded values, and the rounded answer."""
    found = shapley(ask, x, background, pairs=PAIRS, max_rows=MOST, seed=1)
    unit = 10.0 ** exponent_of(found, digits, probability=probability)
    whole, value, _ = in_units(found, unit)
    return whole * unit, value * unit


def _linear() -> list[Row]:
    """A linear regression: its weights from explanations, and from answers."""
    data = load_diabetes(scaled=False)
    x = data.data
    model = LinearRegression().fit(x, data.target)
    ask: Ask = model.predict
    scale = x.std(axis=0)
    true = model.coef_ * scale
    rows: list[Row] = []
    features = x.shape[1]
    for asked in (2, 4, features + 1):
        told = np.array([_told(ask, row, x[300:332], 4, False)[0] for row in x[:asked]])
        weights = np.array(
            [np.polyfit(x[:asked, j], told[:, j], 1)[0] if np.ptp(x[:asked, j]) else 0.0 for j in range(features)]
        )
        rows.append(_row("linear, from explanations", asked, asked * price(features), _error(weights * scale, true)))
    away = 1e5 * scale
    told = _told(ask, x.mean(axis=0) + away, x[300:332], 4, False)[0]
    rows.append(_row("linear, from one explanation far off", 1, price(features), _error(told / away * scale, true)))
    for asked in (features + 1, 2 * features, 22):
        answers = np.array([float(f"{value:.5e}") for value in ask(x[:asked])])
        found = np.linalg.lstsq(np.c_[x[:asked], np.ones(asked)], answers, rcond=None)[0][:features]
        rows.append(_row("linear, from answers", asked, float(asked), _error(found * scale, true)))
    return rows


def _error(found: Floats, true: Floats) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def _row(case: str, asked: int, charged: float, error: float) -> Row:
    return {"bench": "explain", "case": case, "requests": asked, "charged": charged, "error_of_weights": round(error, 4)}


def _logistic() -> list[Row]:
    """A logistic regression of 30 numbers, solved from what d + 1 explanations or answers say; agreement on other rows."""
    data = load_breast_cancer()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    model = LogisticRegression(C=0.05).fit(x, data.target)
    ask: Ask = lambda rows: model.predict_proba(rows)[:, 1]  # noqa: E731
    features, rng = x.shape[1], np.random.default_rng(0)
    rows: list[Row] = []
    for words, digits, weight in (("explanations", 3, price(features)), ("answers", 4, 1.0)):
        chosen = x[rng.permutation(len(x))[: features + 1]] * 0.3
        told = [
            _told(ask, row, x[:32], digits, True)[1] if weight > 1 else round(float(ask(row[None])[0]), digits)
            for row in chosen
        ]
        logit = np.log(np.clip(told, 1e-4, 1 - 1e-4) / (1 - np.clip(told, 1e-4, 1 - 1e-4)))
        design = np.c_[chosen, np.ones(len(chosen))]
        found = np.linalg.solve(design.T @ design + 1e-3 * np.eye(features + 1), design.T @ logit)
        agree = float(((x @ found[:features] + found[features] > 0) == (ask(x) > 0.5)).mean())
        rows.append(
            {
                "bench": "explain",
                "case": f"logistic, from {words}",
                "requests": features + 1,
                "charged": weight * (features + 1),
                "agreement": round(agree, 3),
            }
        )
    return rows


def _crafted() -> list[Row]:
    """The same regression from the attributions of rows that are made up: each number one deviation away, up or down. Against
    answers to such rows, which are marked; those are evidence, explained rows are none. Means of six thieves."""
    data = load_breast_cancer()
    x = (data.data - data.data.mean(axis=0)) / data.data.std(axis=0)
    model = LogisticRegression(C=0.05).fit(x, data.target)
    profile = fit_profile(x[:400], model.predict_proba, seed=0)
    rows: list[Row] = []
    for asked in (1, 2, 4, 8):
        found = [_thief_of_attributions(model, x, asked, seed) for seed in range(6)]
        rows.append(_copied("crafted explanations", asked, asked * price(x.shape[1]), model, x, found))
    for asked in (31, 62, 124):
        found = [_thief_of_answers(model, profile, asked, seed) for seed in range(6)]
        rows.append(_copied("crafted answers, marked", asked, float(asked), model, x, found))
    return rows


def _thief_of_attributions(model: Any, x: Floats, asked: int, seed: int) -> Floats:
    """Weights and intercept: what each number moved, over its distance, and the scale at which answer and base value fit."""
    rng, ask = np.random.default_rng(seed), lambda rows: model.predict_proba(rows)[:, 1]
    own = x[rng.permutation(len(x))[400:]]  # rows of the kind, which he has himself
    signs = rng.choice([-1.0, 1.0], (asked, x.shape[1]))
    said = [in_units(shapley(ask, own.mean(axis=0) + one, x[:32], pairs=PAIRS, max_rows=MOST, seed=1), 1e-3) for one in signs]
    slope = np.mean([one * whole * 1e-3 for one, (whole, _, _) in zip(signs, said, strict=True)], axis=0)
    at, values, base = (own.mean(axis=0) + signs) @ slope, np.array([v for _, v, _ in said]) * 1e-3, said[0][2] * 1e-3

    def misfit(a: float, b: float) -> float:
        miss = np.square(_sigmoid(a * at + b) - values).sum() + (_sigmoid(a * (own @ slope) + b).mean() - base) ** 2
        return float(miss)

    grid = [(a, b) for a in np.geomspace(1, 20, 60) for b in np.linspace(-3, 3, 121)]
    a, b = min(grid, key=lambda pair: misfit(*pair))
    return np.append(a * slope, b)


def _thief_of_answers(model: Any, profile: Profile, asked: int, seed: int) -> Floats:
    rows = np.random.default_rng(seed).choice([-1.0, 1.0], (asked, 30))
    told = np.round(Marker(bytes([seed]) * 32, profile, 0.05, 4).apply(rows, model.predict_proba(rows)), 4)[:, 1]
    design = np.c_[rows, np.ones(asked)]
    logit = np.log(np.clip(told, 1e-3, 1 - 1e-3) / (1 - np.clip(told, 1e-3, 1 - 1e-3)))
    solved: Floats = np.linalg.solve(design.T @ design + 1e-3 * np.eye(31), design.T @ logit)
    return solved


def _sigmoid(z: Floats) -> Floats:
    return 1 / (1 + np.exp(-z))


def _copied(case: str, asked: int, charged: float, model: Any, x: Floats, copies: list[Floats]) -> Row:
    truth = model.predict(x).astype(bool)
    agree = [float(((x @ one[:-1] + one[-1] > 0) == truth).mean()) for one in copies]
    alike = [float(np.corrcoef(one[:-1], model.coef_[0])[0, 1]) for one in copies]
    return {
        "bench": "explain",
        "case": f"logistic, from {case}",
        "requests": asked,
        "charged": charged,
        "agreement": round(float(np.mean(agree)), 3),
        "weights_correlation": round(float(np.mean(alike)), 3),
    }


def _allowed() -> list[Row]:
    """How many explanations a budget of 1,000 natural questions lets through, by the guard itself."""
    data = load_digits()
    rows: list[Row] = []
    for features in (10, 30, 64):
        reference = data.data[:, :features].astype(float) + np.random.default_rng(0).normal(size=(len(data.data), features))
        guard, count = Guard(fit_profile(reference[:400], None, seed=0)), 0
        while guard.verdict("a").rung < Rung.QUANTISED:
            guard.charge("a", price(features))
            count += 1
        rows.append({"bench": "explain", "case": f"let through, {features} numbers a row", "requests": count})
    return rows


def run(args: list[str]) -> None:
    """Print the figures. Takes no arguments."""
    report("one explanation (scikit-learn's network; errors against 8,192 pairs)", _cost())
    report("what is learnt, and what it is charged", [*_linear(), *_logistic(), *_crafted(), *_allowed()])


if __name__ == "__main__":
    run([])
