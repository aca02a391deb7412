import numpy as np
import pytest

from modelkeep.extraction import budget


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
