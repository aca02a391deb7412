"""What an inner layer adds to the evidence, and that it takes nothing from it."""

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction.calibration import new_events
from modelkeep.extraction.crowd import Asked, Crowd
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.layer import DIRECTIONS, WIDEST_LAYER, Inner, fit_layer
from modelkeep.extraction.profile import Profile

RNG = np.random.default_rng(1)


def hidden_of(case):
    """The last hidden layer of the case's own perceptron."""
    scaler, network = (step for _, step in case.predict.__self__.steps)
    weights, bias = network.coefs_[0], network.intercepts_[0]
    return Inner("hidden", lambda rows: np.maximum(scaler.transform(rows) @ weights + bias, 0.0))


@pytest.fixture(scope="module")
def deep(digits):
    return fit_profile(digits.reference, digits.predict, seed=1, inner=hidden_of(digits))


def test_a_layer_is_one_more_stream_and_leaves_all_else_as_it_is(digits, deep):
    plain, more = digits.profile, deep
    assert more.streams == ("synthetic", "far", "margin", "synthetic+far", "layer", "pictures", "trees", "step", "beside")
    one, other = plain.to_arrays(), more.to_arrays()
    for name in one:
        if name.split(".")[0] in {"embedding", "discriminator", "picture", "trees"} or name in {
            "step_limits",
            "cells",
            "curve",
            "scalars",
        }:
            assert np.array_equal(one[name], other[name]), name
    kept = np.array([i for i, name in enumerate(more.streams) if name != "layer"])
    assert np.array_equal(plain.kappa.reshape(8, -1), more.kappa.reshape(9, -1)[kept])
    x, probs = digits.unseen[:50], digits.predict(digits.unseen[:50])
    seen = more.layer.project(hidden_of(digits).of(x))
    assert np.array_equal(more.scores(x, probs, seen)[:, kept[:6]], plain.scores(x, probs))


def test_upside_down_pictures_are_strange_to_the_layer(digits, deep):
    x = digits.unseen[:200]
    turned = x.reshape(-1, 8, 8)[:, ::-1].reshape(-1, 64)
    at = deep.streams.index("layer")

    def rate(rows):
        seen = deep.layer.project(hidden_of(digits).of(rows))
        return (deep.scores(rows, digits.predict(rows), seen)[:, at] > deep.limits[at, 0]).mean()

    assert rate(x) < 0.15 < 0.3 < rate(turned)


def test_the_guard_needs_the_coordinates_of_every_query(digits, deep):
    guard, x = Guard(deep), digits.unseen[:4]
    probs, seen = digits.predict(x), deep.layer.project(hidden_of(digits).of(x))
    for wrong in (None, seen[:3], seen[:, :-1], np.full_like(seen, np.nan)):
        with pytest.raises(Invalid, match="coordinates of the inner layer"):
            guard.observe("ada", x, probs, wrong)
    guard.observe("ada", x, probs, seen)
    assert guard.verdict("ada").queries == 4


def test_guard_crowd_and_calibration_see_the_same(digits, deep):
    rows = np.random.default_rng(0).uniform(0, 16, size=(40, 64))
    probs, seen = digits.predict(rows), deep.layer.project(hidden_of(digits).of(rows))
    guard, crowd = Guard(deep), Crowd(deep, 1)
    guard.observe("thief", rows, probs, seen)
    asked = Asked.of(deep, rows, probs, seen)
    for row in range(len(rows)):
        crowd.step(asked, np.array([row]))
    assert guard.verdict("thief").alarmed_at == crowd.alarmed_at[0] > 0
    events = new_events(deep, rows, probs, seen)
    assert events.shape == (40, len(deep.kappa))
    assert np.array_equal(events[:, : asked.events.shape[1]], asked.events)


@pytest.mark.parametrize("width", [3, 40])
def test_directions_are_orthonormal_and_lead(width):
    values = RNG.normal(size=(400, width)) * np.geomspace(1, 100, width)
    layer = fit_layer(Inner("t", lambda rows: values[: len(rows)]), values, RNG)
    assert layer.directions == min(width, DIRECTIONS)
    np.testing.assert_allclose(layer.basis.T @ layer.basis, np.eye(layer.directions), atol=1e-9)
    found = layer.project(values).astype(np.float64)
    assert (np.diff(found.std(axis=0)) <= 1e-6).all()
    assert found.var(axis=0).sum() >= 0.8 * values.var(axis=0).sum()


def test_what_is_no_number_is_as_far_away_as_can_be():
    values = RNG.normal(size=(200, 5))
    layer = fit_layer(Inner("t", lambda rows: rows), values, RNG)
    odd = layer.project(np.array([[np.nan] * 5, [np.inf] * 5, [1e300] * 5, [0.0] * 5]))
    assert np.isfinite(odd).all()
    strange = layer.strangeness(odd)
    assert (strange[:3] > strange[3] + 2).all() and np.isfinite(strange).all()


def test_shapes_beyond_rows_are_flattened_and_another_width_is_refused():
    values = RNG.normal(size=(100, 2, 3))
    layer = fit_layer(Inner("t", lambda _rows: values), np.zeros((100, 4)), RNG)
    assert layer.project(values[:7]).shape == (7, 6)
    with pytest.raises(Invalid, match="has 8 values a row, not 6"):
        layer.project(np.zeros((7, 8)))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (np.zeros((100, 4)), "the same for all reference rows"),
        (np.full((100, 4), np.nan), "not finite"),
        (np.zeros((50, 4)), "for 100 rows"),
        (np.zeros((100, WIDEST_LAYER + 1)), "at most"),
    ],
)
def test_a_layer_that_tells_nothing_is_refused(values, why):
    with pytest.raises(Invalid, match=why):
        fit_layer(Inner("t", lambda _rows: values), np.zeros((100, 4)), RNG)


def test_a_profile_of_a_model_without_classes_takes_a_layer_too(tumour):
    profile = fit_profile(tumour.reference, None, seed=2, inner=Inner("t", lambda rows: np.tanh(rows[:, :9] / 20.0)))
    again = Profile.from_arrays(profile.to_arrays())
    assert again.layer is not None and again.streams == profile.streams
    guard = Guard(again)
    x = tumour.unseen[:60]
    guard.observe("ada", x, None, again.layer.project(np.tanh(x[:, :9] / 20.0)))
    assert guard.verdict("ada").alarmed_at is None
