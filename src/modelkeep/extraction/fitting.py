"""Fitting an extraction profile: what the evidence, its null, the budget and the trace's cells learn from benign rows."""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from modelkeep.errors import Invalid
from modelkeep.extraction import budget, evidence, null, synthetic
from modelkeep.extraction.discriminator import Discriminator, fit_discriminator
from modelkeep.extraction.features import Embedding, fit_embedding, margin
from modelkeep.extraction.forgeries import forgeries, nudged
from modelkeep.extraction.layer import Inner, Layer, fit_layer
from modelkeep.extraction.paces import fit_paces
from modelkeep.extraction.pictures import PictureJudge, find_picture, fit_picture_judge
from modelkeep.extraction.profile import (
    LEARNT,
    MIN_CALIBRATION,
    Floats,
    Grid,
    Hidden,
    Ints,
    Judges,
    Predict,
    Profile,
    among,
    classes_of,
    standard_scores,
    tree_rows,
)
from modelkeep.extraction.surroundings import fit_surroundings
from modelkeep.extraction.trees import Trees, fit_trees

CELLS = 64
MAX_CALIBRATION = 4000
FINE, FINE_OF_TWO = 0.35, 0.95
"""Share of the answers that carry the fine mark alone, of many classes and of two: enough for the log. The others teach copies
the smooth one; copies of two classes do not show it where nobody asked, whatever its share."""
SHOWN, HELD_OUT = 6000, 4000
"""Rows that the network and the trees learn from, at most; with as many to learn from as the second, some are held out."""


def fit_profile(
    x: Floats,
    predict: Predict | None,
    *,
    seed: int,
    alpha: float = 1e-3,
    train_rows: Floats | None = None,
    numbers: Predict | None = None,
    inner: Inner | None = None,
    shape: Sequence[int] = (),
) -> Profile:
    """Fit the evidence, its null, the budget and the trace cells on benign rows.

    ``x``: reference rows (n, d), as the model takes them, flattened; not the model's training rows. ``predict``: (b, d) to
    probabilities (b, k), or None for a model without classes. ``train_rows``: (m, d), the training rows if at hand: then all
    of ``x`` calibrates; else a random half of ``x`` teaches the discriminator and the other half calibrates. ``numbers``:
    (b, d) to (b, m), what a model without classes answers; only the budget's fidelity is measured on them. ``inner``: an inner
    layer of the model to look at, too. ``shape``: of each row as the model takes it, such as (channels, height, width); it
    helps to see whether rows are pictures. Deterministic in ``seed``. Raises Invalid: too few rows (the message says how many
    are needed), wrong shapes, numbers that are not finite.
    """
    rng = np.random.default_rng(seed)
    teach, calibrate = _split(x, train_rows, rng)
    answer = _answering(predict, teach[:1])
    teach_probs, calibrate_probs = answer(teach), answer(calibrate)
    embedding = fit_embedding(teach, teach_probs, rng)
    layer = None if inner is None else fit_layer(inner, teach, np.random.default_rng([seed, 1]))
    look = _looking(inner, layer)
    columns = synthetic.study_columns(teach, embedding.scale)
    pictures = _fit_pictures(embedding, columns, teach, answer, shape, np.random.default_rng([seed, 2]))
    shown, held = _held_out(teach)
    judges = Judges(
        embedding, layer, pictures, *_fit_judges(embedding, columns, shown, answer, np.random.default_rng([seed, 3]))
    )
    held_probs = answer(held)
    raw, features = judges.raw_scores(held, held_probs, look(held))
    shift, scale = _class_moments(raw, held_probs)
    around = fit_surroundings(standard_scores(raw, held_probs, shift, scale)[:, LEARNT], features)

    def score(rows: Floats, probs: Floats | None) -> Floats:
        raw, features = judges.raw_scores(rows, probs, look(rows))
        return among(around, standard_scores(raw, probs, shift, scale), features)

    scores = score(calibrate, calibrate_probs).T
    taus = evidence.usable_taus(len(calibrate))
    reference = np.sort(scores, axis=1)
    limits = evidence.thresholds(reference, taus)
    versions = _handlings(calibrate, columns, rng)
    touched = {name: score(rows, answer(rows)) for name, rows in versions.items()}
    grid = _fit_grid(columns, calibrate, [touched[name] for name, share in null.SHARES.items() if share == 1.0], taus)
    handled = {name: _as_numbers(grid.events(rows, touched[name], limits)) for name, rows in versions.items()}
    weights = null.accounts(_pool(embedding, calibrate, calibrate_probs), rng)
    spread = 1.0 / (weights**2).sum(axis=1)
    plain = _as_numbers(evidence.own_events(scores, taus).transpose(2, 0, 1))
    rates = null.score_rates(weights, plain, handled)
    near, step_limits, beside, step_kappa = fit_paces(
        embedding, {"plain": calibrate} | versions, {"plain": plain} | handled, weights, taus, rng
    )
    kappa = np.concatenate([null.bound(rates, np.tile(spread, 1 + len(null.SHARES))), step_kappa])
    classes = 0 if teach_probs is None else teach_probs.shape[1]
    told = None if classes or numbers is None else (numbers(teach), numbers(calibrate))
    return Profile(
        embedding=embedding,
        discriminator=judges.discriminator,
        trees=judges.trees,
        class_shift=shift,
        class_scale=scale,
        reference=reference,
        taus=np.array(taus),
        limits=limits,
        step_limits=step_limits,
        near=near,
        beside=beside,
        kappa=kappa,
        cells=null.clusters(embedding.project(teach)[1], CELLS, rng)[0],
        curve=budget.measure(embedding, teach, teach_probs, calibrate, calibrate_probs, np.random.default_rng([seed, 2]), told),
        counts=(x.shape[1], classes, len(teach), len(calibrate)),
        alpha=alpha,
        layer=layer,
        pictures=pictures,
        grid=grid,
        surroundings=around,
        fine=FINE_OF_TWO if classes == 2 else FINE,
    )


def _fit_grid(columns: synthetic.Columns, calibrate: Floats, handled: list[Floats], taus: tuple[float, ...]) -> Grid:
    """``handled``: scores (n, scores) of the calibration rows after each handling that takes all rows off the grid; the largest
    thresholds hold for all of them."""
    whole = columns.whole & (calibrate == np.rint(calibrate)).all(axis=0)
    limits = np.stack([evidence.thresholds(np.sort(scores.T, axis=1), taus) for scores in handled])
    return Grid(whole.astype(np.float64), limits.max(axis=0))


def _looking(inner: Inner | None, layer: Layer | None) -> Callable[[Floats], Hidden]:
    if inner is None or layer is None:
        return lambda _rows: None
    return lambda rows: layer.project(inner.of(rows))


def _split(x: Floats, train_rows: Floats | None, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Rows that teach and rows that calibrate, without exact duplicates across. Raises Invalid."""
    for name, rows in (("reference", x), ("training", train_rows)):
        if rows is not None and (rows.ndim != 2 or not np.isfinite(rows).all()):
            raise Invalid(f"the {name} rows must be a table (rows, features) of finite numbers, not shape {rows.shape}")
    if train_rows is not None and train_rows.shape[1] != x.shape[1]:
        raise Invalid(f"the training rows have {train_rows.shape[1]} features and the reference rows {x.shape[1]}")
    unique = np.unique(np.asarray(x, dtype=np.float64), axis=0)
    order = unique[rng.permutation(len(unique))]
    half = len(order) // 2
    teach, calibrate = (order[:half], order[half:]) if train_rows is None else (np.asarray(train_rows, np.float64), order)
    if len(calibrate) < MIN_CALIBRATION or len(teach) < MIN_CALIBRATION:
        need = (
            f"{MIN_CALIBRATION} rows and {MIN_CALIBRATION} training rows"
            if train_rows is not None
            else f"{2 * MIN_CALIBRATION} rows"
        )
        raise Invalid(
            f"{len(unique)} distinct reference rows are too few to promise anything to honest accounts: give at least {need}"
        )
    return teach[rng.permutation(len(teach))], calibrate[:MAX_CALIBRATION]


def _answering(predict: Predict | None, sample: Floats) -> Callable[[Floats], Floats | None]:
    """``predict`` with its answers checked once; a model with fewer than two columns has no classes."""
    if predict is None:
        return lambda _rows: None
    shape = np.asarray(predict(sample)).shape
    if len(shape) != 2 or shape[0] != 1:
        raise Invalid(f"the model must answer (rows, classes), not shape {shape}")
    if shape[1] < 2:
        return lambda _rows: None
    known = predict
    return lambda rows: np.asarray(known(rows), dtype=np.float64)


def _fit_judges(
    embedding: Embedding,
    columns: synthetic.Columns,
    rows: Floats,
    answer: Callable[[Floats], Floats | None],
    rng: np.random.Generator,
) -> tuple[Discriminator, Trees]:
    near_real = _near_real(rows, columns, rng)
    tops = None if answer(rows[:1]) is None else partial(_tops, answer)
    fake = synthetic.thieves(rows, columns, int(np.clip(14 * len(rows), 7000, 28000)), rng, tops)
    real, made = [_shown(embedding, rows, answer) for rows in near_real], _shown(embedding, fake, answer)
    judge = fit_discriminator(np.concatenate([features for features, _ in real]), made[0], rng)
    trees = fit_trees(np.concatenate([columns for _, columns in real]), made[1], rng)
    return judge, trees


def _near_real(rows: Floats, columns: synthetic.Columns, rng: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Real rows as they are, measured again and rounded: all of them are real."""
    jitters = synthetic.jitters(len(rows), rng)
    return rows, synthetic.jittered(rows, columns, jitters, rng), synthetic.rounded(rows, columns)


def _fit_pictures(
    embedding: Embedding,
    columns: synthetic.Columns,
    rows: Floats,
    answer: Callable[[Floats], Floats | None],
    shape: Sequence[int],
    rng: np.random.Generator,
) -> PictureJudge | None:
    picture = find_picture(rows, shape)
    if picture is None:
        return None
    most = rows[:12_000]
    made = forgeries(most, picture, int(np.clip(8 * len(most), 8000, 24_000)), rng)
    real = (*_near_real(most, columns, rng), picture.rows(nudged(picture.planes(most), rng)))
    return fit_picture_judge(picture, real, made, lambda some: embedding.features(some, answer(some)), rng)


def _held_out(teach: Floats) -> tuple[Floats, Floats]:
    """Rows that the network and the trees learn from, and rows on which their scores are standardised: a quarter that they have
    not seen, or all where there are few."""
    if len(teach) < HELD_OUT:
        return teach, teach
    shown = min(SHOWN, 3 * len(teach) // 4)
    return teach[:shown], teach[shown:][:SHOWN]


def _tops(answer: Callable[[Floats], Floats | None], rows: Floats) -> Ints:
    probs = answer(rows)
    return classes_of(probs, len(rows), len(rows))


def _shown(embedding: Embedding, rows: Floats, answer: Callable[[Floats], Floats | None]) -> tuple[Floats, Floats]:
    """What the network sees of ``rows``, and what the trees see."""
    probs = answer(rows)
    features = embedding.features(rows, probs)
    return features, tree_rows(rows, probs, features)


def _class_moments(raw: Floats, probs: Floats | None) -> tuple[Floats, Floats]:
    """Location and scale of the raw scores within each predicted class, shrunk to the whole by 20 rows."""
    centre, width = np.median(raw, axis=0), raw.std(axis=0) + 1e-3
    if probs is None:
        return centre[None], width[None]
    labels, shift, scale = probs.argmax(axis=1), [], []
    for c in range(probs.shape[1]):
        mine = raw[labels == c]
        trust = len(mine) / (len(mine) + 20.0)
        shift.append(trust * np.median(mine, axis=0) + (1 - trust) * centre if len(mine) else centre)
        scale.append(trust * mine.std(axis=0) + (1 - trust) * width if len(mine) else width)
    return np.stack(shift), np.stack(scale) + 1e-3


def _handlings(rows: Floats, columns: synthetic.Columns, rng: np.random.Generator) -> dict[str, Floats]:
    return {
        "jittered": synthetic.jittered(rows, columns, synthetic.JITTER, rng),
        "slightly jittered": synthetic.jittered(rows, columns, 0.1 * synthetic.JITTER, rng),
        "rounded": synthetic.rounded(rows, columns),
        "defaulted": synthetic.defaulted(rows, rng),
        "mistyped": synthetic.mistyped(rows, rng),
        "what-if": synthetic.what_if(rows, rng),
    }


def _as_numbers(events: NDArray[np.bool_]) -> Floats:
    """(n, scores, taus) to (n, scores · taus) as 0/1."""
    return events.reshape(len(events), -1).astype(np.float64)


def _pool(embedding: Embedding, rows: Floats, probs: Floats | None) -> null.Pool:
    white = embedding.project(rows)[1] / embedding.spread
    flat = np.zeros(len(rows))
    if probs is None:
        return null.Pool(white[:, :16], flat.astype(np.int64), flat)
    return null.Pool(white[:, :16], probs.argmax(axis=1), margin(probs))
