"""Rows that are pictures: when they are taken for some, what is measured of them, what is forged, and whom that finds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits, load_sample_images

from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.forgeries import (
    blurred,
    clouds,
    forgeries,
    in_another_order,
    nudged,
    patched,
    shifted,
    strokes,
    zoomed,
)
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.pictures import GRID, MEASURES, Picture, find_picture

GREY = Picture(8, 8, 1, False, 0.0, 1.0)


def cuts(count=400, side=16):
    """Cuts (count, side, side, 3) of the photographs that come with scikit-learn."""
    rng, photographs = np.random.default_rng(0), load_sample_images().images
    corners = rng.integers(0, 400, size=(count, 2))
    return np.stack([photographs[i % 2][a : a + side, b : b + side] / 255.0 for i, (a, b) in enumerate(corners)])


# -- measures --


def test_a_ramp_steps_across_and_not_down():
    found = GREY.measures(np.tile(np.arange(8.0) / 7.0, 8)[None])[0]
    assert found.shape == (MEASURES,)
    cells = GRID * GRID
    assert found[:cells] == pytest.approx(np.log(1 / 7 + 1e-3), abs=1e-5)
    assert found[cells : 2 * cells + 1] == pytest.approx(np.log(1e-3), abs=1e-5)  # nor does it bend
    assert found[-3:] == pytest.approx([1 / 8, 1 / 8, 1 / 8])


def test_a_single_bright_pixel_is_measured_in_its_cell():
    row = np.zeros((1, 64))
    row[0, 8 * 2 + 3] = 1.0
    found = np.exp(GREY.measures(row)[0, :-3]) - 1e-3
    across, down, energy = found[:16].reshape(4, 4), found[16:32].reshape(4, 4), found[32]
    assert across.sum() == pytest.approx(2 / 4, abs=1e-5)  # two steps of one, in a cell of 2 by 2 pairs of neighbours
    assert across[1, 1] == pytest.approx(across.sum(), abs=1e-5)
    assert down[:, 1].sum() == pytest.approx(down.sum(), abs=1e-5)
    assert energy == pytest.approx((4**2 + 4 * 1) / 36, abs=1e-5)  # [[0, 1, 0], [1, -4, 1], [0, 1, 0]] over the inner 6 by 6
    assert GREY.measures(row)[0, -3:] == pytest.approx([63 / 64, 63 / 64, 1 / 64])


def test_layouts_of_one_picture_measure_the_same():
    rows = cuts(20)
    last, first = Picture(16, 16, 3, True), Picture(16, 16, 3, False)
    flat, planes = rows.reshape(20, -1), rows.transpose(0, 3, 1, 2)
    assert np.array_equal(last.planes(flat), planes)
    assert np.array_equal(last.rows(last.planes(flat)), flat)
    assert np.array_equal(first.rows(planes), planes.reshape(20, -1))
    assert np.allclose(last.measures(flat), first.measures(planes.reshape(20, -1)), atol=1e-5)
    assert np.isfinite(last.measures(1e30 * flat)).all()


# -- pictures or a table --


def test_pictures_are_known_in_every_layout():
    digits, photographs = load_digits().data, cuts()
    found = find_picture(digits)
    assert (found.height, found.width, found.channels, found.low, found.high) == (8, 8, 1, 0.0, 16.0)
    assert find_picture(digits, (1, 8, 8)) is not None and find_picture(digits, (8, 8)) is not None
    last, first = photographs.reshape(400, -1), photographs.transpose(0, 3, 1, 2).reshape(400, -1)
    wide = photographs[:, :8]
    for rows, shape, expected in (
        (last, (), (16, 16, 3, True)),
        (first, (), (16, 16, 3, False)),
        (last, (-1, -1, 3), (16, 16, 3, True)),
        (wide.reshape(400, -1), (8, 16, 3), (8, 16, 3, True)),
        (wide.transpose(0, 3, 1, 2).reshape(400, -1), (3, 8, 16), (8, 16, 3, False)),
        (wide[..., 0].reshape(400, -1), (8, 16), (8, 16, 1, False)),
    ):
        found = find_picture(rows, shape)
        assert (found.height, found.width, found.channels, found.last) == expected
    assert find_picture(wide.reshape(400, -1)) is None  # no square, and nobody said what else


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), side=st.sampled_from([6, 8, 12]), kind=st.integers(0, 5), shaped=st.booleans())
def test_no_table_and_no_series_is_a_picture(seed, side, kind, shaped):
    rng, width = np.random.default_rng(seed), side * side
    n = int(rng.integers(80, 600))
    noise = rng.normal(size=(n, width))
    rows = [
        lambda: noise @ rng.normal(size=(width, width)),
        lambda: noise + rng.uniform(0, 3) * rng.normal(size=(n, 1)),  # one thing that all columns say
        lambda: noise.cumsum(axis=1),
        lambda: np.sin(2 * np.pi * (np.arange(width) / side + rng.random((n, 1)))) + 0.3 * noise,  # every row one period
        lambda: np.eye(width)[rng.integers(width, size=n)] + np.eye(width)[rng.integers(width, size=n)],
        lambda: rng.normal(size=(n, 5)) @ rng.normal(size=(5, width)) + 0.2 * noise,
    ][kind]()
    assert find_picture(rows, (side, side) if shaped else ()) is None


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_pixels_in_another_order_are_a_table(seed):
    assert find_picture(load_digits().data[:, np.random.default_rng(seed).permutation(64)]) is None


def test_columns_of_many_scales_are_a_table():
    rows = load_digits().data
    assert find_picture(rows * 10.0 ** (np.arange(64) % 4)) is None
    assert find_picture(np.ones((200, 64))) is None


# -- forgeries --


def test_what_is_moved_keeps_its_pixels():
    planes = cuts(30).transpose(0, 3, 1, 2)
    rng = np.random.default_rng(1)
    for made in (in_another_order(planes, 4, rng), in_another_order(planes, 3, rng), shifted(planes, rng)):
        assert np.array_equal(np.sort(made.reshape(30, 3, -1)), np.sort(planes.reshape(30, 3, -1)))
        assert (made != planes).any(axis=(1, 2, 3)).mean() > 0.9
    corner = in_another_order(planes, 3, rng)[:, :, 15:, 15:]
    assert np.array_equal(corner, planes[:, :, 15:, 15:])  # three pieces of five leave a pixel


def test_pictures_cut_a_pixel_aside_are_no_forgeries():
    planes = np.arange(28.0 * 56.0).reshape(1, 1, 28, 56).repeat(200, axis=0)
    made = nudged(planes, np.random.default_rng(8))
    by = {one[0, 14, 28] - planes[0, 0, 14, 28] for one in made}
    assert by == {56.0 * down + right for down in (-1, 0, 1) for right in (-2, -1, 0, 1, 2)}
    assert np.array_equal(nudged(planes[:, :, :16, :16], np.random.default_rng(8)), planes[:, :, :16, :16])


def test_a_patch_comes_from_the_other_picture():
    made = patched(np.zeros((200, 1, 8, 8)), np.ones((200, 1, 8, 8)), np.random.default_rng(2))
    share = made.mean(axis=(1, 2, 3))
    assert set(np.unique(made)) == {0.0, 1.0} and 0.05 < share.mean() < 0.3
    for one in made[share > 0][:20, 0]:
        rows, columns = np.flatnonzero(one.any(axis=1)), np.flatnonzero(one.any(axis=0))
        assert one[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()


def test_a_zoom_shows_half_of_the_picture_or_the_whole_within_its_edge():
    ramp = np.broadcast_to(np.arange(28.0), (60, 1, 28, 28))
    spans = np.ptp(zoomed(ramp, np.random.default_rng(3)), axis=(1, 2, 3))
    assert {int(span) for span in spans} == {13, 19, 27}


def test_a_blur_keeps_the_mean_and_takes_the_detail():
    noise = np.random.default_rng(4).normal(size=(5, 1, 28, 28))
    soft = blurred(noise, 1.0)
    assert np.allclose(soft.mean(axis=(1, 2, 3)), noise.mean(axis=(1, 2, 3)))
    assert soft.var() == pytest.approx(1 / (4 * np.pi), rel=0.2)  # the energy of a Gaussian kernel of one pixel
    made = clouds(20, (28, 28), 3.0, np.random.default_rng(5))
    assert made.std() == pytest.approx(1.0) and np.abs(np.diff(made, axis=3)).mean() < 0.4


def test_strokes_are_bright_on_an_empty_ground():
    made = strokes(40, (28, 28), 3.0, np.random.default_rng(6))
    assert made.shape == (40, 1, 28, 28) and made.min() == 0.0 and 0.9 < made.max() <= 1.0
    assert 0.3 < (made == 0.0).mean() < 0.95


@pytest.mark.parametrize("picture", [Picture(16, 16, 3, True), Picture(16, 16, 3, False), Picture(8, 16, 3, True)])
def test_every_kind_is_as_many_and_as_wide(picture):
    rows = cuts(100)[:, : picture.height].reshape(100, -1)
    kinds = list(forgeries(rows, picture, 160, np.random.default_rng(7)))
    assert [kind.shape for kind in kinds] == [(10, rows.shape[1])] * 16
    known = {row.tobytes() for row in rows}
    assert sum(row.tobytes() in known for kind in kinds for row in kind) < 8


# -- what it finds --


def asked(profile, predict, rows):
    guard = Guard(profile)
    guard.observe("account", rows, predict(rows))
    return guard.verdict("account").alarmed_at


@pytest.mark.parametrize(
    ("change", "within"),
    [(lambda x: x[:, :, ::-1], 60), (lambda x: np.transpose(x, (0, 2, 1)), 40)],  # upside down: not with so few reference rows
    ids=["mirrored", "turned"],
)
def test_pictures_that_were_turned_are_found(digits, change, within):
    rows = digits.unseen[:200]
    moved = np.ascontiguousarray(change(rows.reshape(-1, 8, 8))).reshape(-1, 64)
    found = asked(digits.profile, digits.predict, moved)
    assert found is not None and found <= within
    assert asked(digits.profile, digits.predict, rows) is None


def test_a_table_has_no_such_stream(tumour):
    assert tumour.profile.pictures is None and "pictures" not in tumour.profile.streams
    assert not any(name.startswith("picture") for name in tumour.profile.to_arrays())


def test_the_shape_of_the_input_tells_where_pixels_are():
    rows = cuts(400)[:, :8].reshape(400, -1)
    flat, shaped = fit_profile(rows, None, seed=1), fit_profile(rows, None, seed=1, shape=(8, 16, 3))
    assert flat.pictures is None and shaped.pictures.picture.last
    assert np.array_equal(flat.kappa.reshape(7, -1), np.delete(shaped.kappa.reshape(8, -1), 4, axis=0))
