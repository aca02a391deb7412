from dataclasses import replace

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction import synthetic
from modelkeep.extraction.calibration import new_events
from modelkeep.extraction.discriminator import fit_discriminator
from modelkeep.extraction.evidence import SCORES
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import MIN_CALIBRATION, Grid, Profile
from modelkeep.extraction.trees import fit_trees

SEEN = (*SCORES[:4], "pictures", SCORES[4])
"""The scores of the profile of digits."""


def test_round_trip_through_plain_arrays(digits):
    arrays = digits.profile.to_arrays()
    assert all(a.dtype in (np.float64, np.int64) for a in arrays.values())
    again = Profile.from_arrays(arrays)
    x = digits.unseen[:50]
    assert np.array_equal(again.scores(x, digits.predict(x)), digits.profile.scores(x, digits.predict(x)))
    assert again.promise == digits.profile.promise
    assert (again.n_features, again.n_classes) == (64, 10)
    assert sum(a.nbytes for a in arrays.values()) < 2_000_000


def test_the_same_seed_gives_the_same_profile(tumour, monkeypatch):
    for fit in (fit_discriminator, fit_trees):  # not as tests/conftest.py remembers them
        monkeypatch.setattr(f"modelkeep.extraction.fitting.{fit.__name__}", fit)
    again = fit_profile(tumour.reference, tumour.predict, seed=1).to_arrays()
    assert all(np.array_equal(a, again[name]) for name, a in tumour.profile.to_arrays().items())


def test_training_rows_leave_the_whole_reference_for_calibration(tumour):
    profile = fit_profile(tumour.reference, tumour.predict, seed=2, train_rows=tumour.train)
    assert profile.counts[2:] == (200, 200)
    assert tumour.profile.counts[2:] == (100, 100)
    assert "200 reference rows" in profile.promise


def test_held_out_rows_trip_each_level_about_as_often_as_it_says(digits):
    x = digits.unseen
    events = digits.profile.events(x, digits.predict(x)).mean(axis=0).reshape(len(SEEN), -1)
    for s in range(len(SEEN)):
        for t, tau in enumerate(digits.profile.taus):
            assert events[s, t] <= tau + 4 * np.sqrt(tau / 270) + 4 * np.sqrt(tau / len(x))


@pytest.mark.parametrize("change", ["as they are", "jittered", "slightly jittered", "rounded"])
def test_calibration_rows_trip_each_level_at_most_as_often_as_it_says(digits, change):
    # with training rows given, all of the reference calibrates
    profile = fit_profile(digits.reference, digits.predict, seed=4, train_rows=digits.train)
    rows, rng = np.unique(digits.reference, axis=0), np.random.default_rng(5)
    columns = synthetic.study_columns(digits.train, profile.embedding.scale)
    rows = {
        "as they are": lambda: rows,
        "jittered": lambda: synthetic.jittered(rows, columns, synthetic.JITTER, rng),
        "slightly jittered": lambda: synthetic.jittered(rows, columns, 0.1 * synthetic.JITTER, rng),
        "rounded": lambda: synthetic.rounded(rows, columns),
    }[change]()
    assert profile.grid.left(rows).mean() == (0.0 if change == "as they are" else 1.0)
    events = profile.events(rows, digits.predict(rows)).mean(axis=0).reshape(len(SEEN), -1)
    sure = 0.0 if change in {"as they are", "rounded"} else 3.0  # another draw of the noise than publish had
    assert (events <= profile.taus + sure * np.sqrt(profile.taus / len(rows))).all()


def test_a_row_off_the_grid_is_judged_by_the_limits_of_honest_ones_that_are():
    grid = Grid(whole=np.array([1.0, 0.0]), limits=np.array([[5.0, 6.0]]))
    rows = np.array([[3.0, 0.5], [3.5, 0.5], [-2.0, 1.0], [3.0000001, 7.0]])
    assert grid.left(rows).tolist() == [False, True, False, True]
    events = grid.events(rows, np.full((4, 1), 5.5), np.array([[1.0, 9.0]]))
    assert events[:, 0].tolist() == [[True, False], [True, False], [True, False], [True, False]]
    events = grid.events(rows, np.full((4, 1), 4.0), np.array([[1.0, 2.0]]))
    assert events[:, 0].tolist() == [[True, True], [False, False], [True, True], [False, False]]


@pytest.mark.parametrize("handling", ["jittered", "slightly jittered", "rounded"])
def test_rows_that_a_thief_handles_as_honest_people_may_are_no_less_odd(digits, handling):
    rng, rows = np.random.default_rng(8), digits.unseen
    made = np.stack([rng.permutation(column) for column in rows.T], axis=1)
    columns = synthetic.study_columns(rows, digits.profile.embedding.scale)
    amounts = {"jittered": synthetic.JITTER, "slightly jittered": 0.1 * synthetic.JITTER}
    asked = (
        synthetic.rounded(made, columns) if handling == "rounded" else synthetic.jittered(made, columns, amounts[handling], rng)
    )
    trees = SEEN.index("trees") * len(digits.profile.taus)
    assert digits.profile.events(asked, digits.predict(asked))[:, trees].mean() > 0.6


def test_honest_accounts_keep_below_the_bounds_and_a_line_search_goes_beyond_those_beside_its_own(digits):
    profile = digits.profile
    assert profile.streams == (*SEEN, "step", "beside")
    rng = np.random.default_rng(3)
    x = digits.unseen[rng.permutation(len(digits.unseen))]
    honest = new_events(profile, x, digits.predict(x)).mean(axis=0)
    assert (honest <= profile.kappa + 3 * np.sqrt(profile.kappa / len(x))).all()
    ends, lines = digits.unseen[:16], []
    near, far = ends[:8], ends[8:]
    for _ in range(8):
        lines.append((near + far) / 2)
        same = digits.predict(lines[-1]).argmax(axis=1) == digits.predict(ends[:8]).argmax(axis=1)
        near, far = np.where(same[:, None], lines[-1], near), np.where(same[:, None], far, lines[-1])
    asked = np.concatenate([ends, *lines])
    thief = new_events(profile, asked, digits.predict(asked)).mean(axis=0)
    beside = slice(-len(profile.taus), None)
    assert (thief[beside] > 3 * profile.kappa[beside]).any()


def test_too_few_rows_are_refused_with_the_number_needed(tumour):
    with pytest.raises(Invalid, match=f"at least {2 * MIN_CALIBRATION} rows"):
        fit_profile(tumour.reference[:150], tumour.predict, seed=0)
    with pytest.raises(Invalid, match=f"at least {MIN_CALIBRATION} rows and {MIN_CALIBRATION} training rows"):
        fit_profile(tumour.reference[:70], tumour.predict, seed=0, train_rows=tumour.train)
    with pytest.raises(Invalid, match="60 distinct"):
        fit_profile(np.repeat(tumour.reference[:60], 10, axis=0), tumour.predict, seed=0)


@pytest.mark.parametrize(
    "rows",
    [np.full((300, 30), np.nan), np.zeros(300), np.zeros((300, 3, 3)), np.full((300, 30), np.inf)],
    ids=["nan", "1d", "3d", "inf"],
)
def test_bad_rows_are_refused(tumour, rows):
    with pytest.raises(Invalid):
        fit_profile(rows, tumour.predict, seed=0)


def test_training_rows_of_another_width_are_refused(tumour):
    with pytest.raises(Invalid, match="features"):
        fit_profile(tumour.reference, tumour.predict, seed=0, train_rows=tumour.train[:, :5])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("kappa"),
        lambda a: a.update(kappa=a["kappa"][:3]),
        lambda a: a.update(limits=np.full_like(a["limits"], np.nan)),
        lambda a: a.update(scalars=a["scalars"][:2]),
        lambda a: a.update(scalars=a["scalars"] * [1, 1, 0, 1]),
        lambda a: a.update(scalars=a["scalars"] * [1, 1, 1, 4]),
        lambda a: a.update(scalars=a["scalars"][:3]),
        lambda a: a.update(counts=np.array([3, *a["counts"][1:]])),
        lambda a: a.update(counts=np.array([99, 1, 1, 1, 1])),
        lambda a: a.update(counts=np.array([], dtype=np.int64)),
        lambda a: a.pop("discriminator.3"),
        lambda a: a.pop("trees.limits"),
        lambda a: a.pop("grid.whole"),
        lambda a: a.update({"grid.whole": a["grid.whole"][:5]}),
        lambda a: a.update({"grid.limits": a["grid.limits"][:, :1]}),
        lambda a: a.pop("surroundings.least"),
        lambda a: a.update({"surroundings.mean": a["surroundings.mean"][:5]}),
        lambda a: a.update({"surroundings.spread": a["surroundings.spread"][:, :0]}),
        lambda a: a.update({"surroundings.least": a["surroundings.least"] * 0}),
        lambda a: a.update({"trees.columns": a["trees.columns"] + 1000}),
        lambda a: a.update({"trees.columns": a["trees.columns"] - 1000}),
        lambda a: a.update({"trees.leaves": a["trees.leaves"][:, :5]}),
        lambda a: a.update({"trees.limits": a["trees.limits"][:5]}),
    ],
)
def test_damaged_arrays_are_refused(tumour, spoil):
    arrays = tumour.profile.to_arrays()
    spoil(arrays)
    with pytest.raises(Invalid):
        Profile.from_arrays(arrays)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a: a.pop("picture.centre"),
        lambda a: a.pop("picture.discriminator.5"),
        lambda a: a.update({"picture.layout": np.array([8, 8, 3, 0])}),
        lambda a: a.update({"picture.layout": np.array([16, 4, 1, 0])}),
        lambda a: a.update({"picture.range": np.array([1.0, 1.0])}),
        lambda a: a.update({"picture.centre": a["picture.centre"][1:]}),
        lambda a: a.update({"picture.width": -a["picture.width"]}),
        lambda a: a.update({"picture.discriminator.0": a["picture.discriminator.5"]}),
        lambda a: a.update({"picture.discriminator.0": a["picture.discriminator.0"][:, 1:]}),
        lambda a: a.update(counts=np.array([4, *a["counts"][1:]])),
    ],
)
def test_damaged_arrays_of_pictures_are_refused(digits, spoil):
    arrays = digits.profile.to_arrays()
    spoil(arrays)
    with pytest.raises(Invalid):
        Profile.from_arrays(arrays)


def of_version_5(arrays):
    """The arrays as they were before a share of the answers carried the fine mark alone."""
    return arrays | {"scalars": arrays["scalars"][:3], "counts": np.array([5, *arrays["counts"][1:]])}


def of_version_4(arrays):
    """The arrays as they were before pictures had a network of their own, and rows off the grid thresholds of theirs."""
    arrays = of_version_5(arrays)
    taus = len(arrays["taus"])
    found = {name: array for name, array in arrays.items() if name.split(".")[0] not in {"picture", "grid", "surroundings"}}
    found |= {name: np.delete(arrays[name], 3, axis=1) for name in ("class_shift", "class_scale")}
    found |= {name: np.delete(arrays[name], 4, axis=0) for name in ("reference", "limits")}
    found["kappa"] = np.delete(arrays["kappa"], range(4 * taus, 5 * taus))
    found["counts"] = np.array([4, *arrays["counts"][1:]])
    return found


def of_version_3(arrays):
    """The arrays as they were before the trees' events counted once more beside own questions."""
    arrays = of_version_4(arrays)
    found = arrays | {"scalars": arrays["scalars"][:2], "kappa": arrays["kappa"][: -len(arrays["taus"])]}
    return found | {"counts": np.array([3, *arrays["counts"][1:]])}


def of_version_2(arrays):
    """The arrays as they were before there were trees."""
    taus, arrays = len(arrays["taus"]), of_version_3(arrays)
    found = {name: array for name, array in arrays.items() if not name.startswith("trees.")}
    found |= {name: arrays[name][:, :3] for name in ("class_shift", "class_scale")}
    found |= {name: arrays[name][:4] for name in ("reference", "limits")}
    found["kappa"] = np.concatenate([arrays["kappa"][: 4 * taus], arrays["kappa"][5 * taus :]])
    found["counts"] = np.array([2, *arrays["counts"][1:]])
    return found


def test_a_profile_of_before_the_share_marks_every_answer_with_both_symbols(digits):
    arrays = of_version_5(digits.profile.to_arrays())
    profile = Profile.from_arrays(arrays)
    again = profile.to_arrays()
    assert (profile.fine, digits.profile.fine) == (0.0, 0.35)
    assert again.keys() == arrays.keys() and all(np.array_equal(again[name], array) for name, array in arrays.items())


@pytest.mark.parametrize(
    ("older", "streams"),
    [
        (of_version_2, (*SCORES[:4], "step")),
        (of_version_3, (*SCORES, "step")),
        (of_version_4, (*SCORES, "step", "beside")),
    ],
    ids=["without trees", "nothing beside", "neither pictures nor a grid"],
)
def test_a_profile_of_an_earlier_version_is_read_and_watches(digits, older, streams):
    arrays = older(digits.profile.to_arrays())
    profile = Profile.from_arrays(arrays)
    assert profile.streams == streams
    again = profile.to_arrays()
    assert again.keys() == arrays.keys() and all(np.array_equal(again[name], array) for name, array in arrays.items())
    x, probs = digits.unseen[:50], digits.predict(digits.unseen[:50])
    kept = [SEEN.index(name) for name in streams if name in SEEN]
    plain = replace(digits.profile, surroundings=None)
    assert np.array_equal(profile.scores(x, probs), plain.scores(x, probs)[:, kept])
    guard = Guard(profile)
    rows = np.random.default_rng(0).uniform(0, 16, size=(60, 64))
    guard.observe("thief", rows, digits.predict(rows))
    guard.observe("honest", x, probs)
    assert guard.alarmed() == ["thief"]


@pytest.mark.parametrize("predict", [None, lambda x: x[:, :1] * 2.0], ids=["no model", "regression"])
def test_a_model_without_classes_is_watched_by_its_inputs(tumour, predict):
    profile = fit_profile(tumour.reference, predict, seed=3)
    assert profile.n_classes == 0
    guard = Guard(profile)
    rng = np.random.default_rng(0)
    low, high = tumour.reference.min(axis=0), tumour.reference.max(axis=0)
    guard.observe("thief", rng.uniform(low, high, size=(60, 30)), None if predict is None else np.ones((60, 1)))
    guard.observe("honest", tumour.unseen[:60], None if predict is None else np.ones((60, 1)))
    assert guard.verdict("thief").alarmed_at is not None
    assert guard.verdict("honest").alarmed_at is None
