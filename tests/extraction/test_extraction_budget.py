import numpy as np
import pytest

from modelkeep.extraction import budget
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.profile import Profile


def test_sherman_morrison_is_the_inverse_and_the_cost_is_the_log_determinant():
    rng = np.random.default_rng(0)
    phi, w = rng.normal(size=(30, budget.DIMENSIONS)), rng.uniform(0.1, 1, 30)
    inverse, gathered, total = np.eye(budget.DIMENSIONS), np.eye(budget.DIMENSIONS), 0.0
    for i in range(30):
        cost = budget.spend(inverse, phi[i], w[i])
        gathered = gathered + w[i] * np.outer(phi[i], phi[i])
        total += cost
    assert np.allclose(inverse, np.linalg.inv(gathered))
    assert total == pytest.approx(0.5 * np.linalg.slogdet(gathered)[1])


def test_the_same_question_again_teaches_less_each_time():
    phi = np.ones(budget.DIMENSIONS)
    inverse, costs = np.eye(budget.DIMENSIONS), []
    for _ in range(5):
        cost = budget.spend(inverse, phi, 1.0)
        costs.append(cost)
    assert costs == sorted(costs, reverse=True)


def test_quotes_rise_with_spending_and_reach_beyond_the_curve(digits):
    curve = digits.profile.curve
    quotes = [budget.quote(s, curve, 1000.0) for s in np.linspace(0, 1.5 * curve[1, -1], 40)]
    shares = [q.share for q in quotes]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] > 1.0
    assert 0 <= quotes[5].fidelity <= quotes[-1].fidelity <= 1
    assert budget.quote(float(curve[1, 3]), curve, 1000.0).equivalent == pytest.approx(curve[0, 3])


def test_measured_fidelity_grows_towards_the_model(digits):
    assert digits.profile.curve[2, 0] < 0.6 < 0.8 < digits.profile.curve[2, -1]


@pytest.mark.parametrize(
    ("truth", "guess", "expected"),
    [
        ([[3.0], [-0.5], [2.0], [7.0]], [[2.5], [0.0], [2.0], [8.0]], 0.9486081370449679),  # scikit-learn's own example
        ([[0.5, 1], [-1, 1], [7, -6]], [[0, 2], [-1, 2], [8, -5]], 0.936800526662278),  # of two outputs, the same
        ([[1.0], [2.0], [3.0]], [[2.0], [2.0], [2.0]], 0.0),
        ([[1.0], [2.0], [3.0]], [[3.0], [2.0], [1.0]], -3.0),
        ([[5.0, 1.0], [5.0, 2.0]], [[9.0, 1.0], [9.0, 2.0]], 1.0),  # what does not vary is left out
        ([[5.0], [5.0]], [[5.0], [5.0]], 1.0),
        ([[5.0], [5.0]], [[5.0], [6.0]], 0.0),
    ],
)
def test_r_squared_has_known_values(truth, guess, expected):
    assert budget.r_squared(np.array(truth, float), np.array(guess, float)) == pytest.approx(expected)


def test_of_numbers_the_curve_is_r_squared_and_changes_with_neither_unit_nor_zero(tumour):
    def curved(rows):
        white = (rows - tumour.reference.mean(axis=0)) / tumour.reference.std(axis=0)
        return np.stack([white[:, 0] ** 2 + white[:, 1], np.tanh(white[:, 2] - white[:, 3])], axis=1)

    profile = fit_profile(tumour.reference, None, seed=3, numbers=curved)
    assert (profile.n_classes, profile.fidelity) == (0, "R²")
    fidelity = profile.curve[2]
    assert 0.0 <= fidelity[0] < 0.5 < 0.6 < fidelity[-1] < 1.0 and (np.diff(fidelity) >= 0).all()
    scaled = fit_profile(tumour.reference, None, seed=3, numbers=lambda rows: 1e6 * curved(rows) - 4e7)
    np.testing.assert_allclose(scaled.curve[2], fidelity, atol=1e-6)
    assert Profile.from_arrays(profile.to_arrays()).fidelity == "R²"


def test_where_nothing_was_measured_no_fidelity_is_told(tumour, digits):
    assert fit_profile(tumour.reference, None, seed=3).fidelity == ""
    assert digits.profile.fidelity == "agreement"
