import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction.crowd import Asked, Crowd
from modelkeep.extraction.guard import Guard


@pytest.fixture(scope="module")
def rows(digits):
    """Honest rows, repeats and near repeats among them, and ones that a thief makes."""
    rng = np.random.default_rng(5)
    honest = digits.unseen[:300]
    near = honest[:60] + 1e-4 * rng.normal(size=honest[:60].shape)
    made = rng.uniform(0.0, 16.0, size=(200, honest.shape[1]))
    return np.concatenate([honest, near, honest[:40], made])


def test_a_crowd_decides_as_the_guard_does(digits, rows):
    profile = digits.profile
    rng, accounts, steps = np.random.default_rng(7), 12, 250
    order = np.where(
        rng.random((steps, accounts)) < np.linspace(0.0, 1.0, accounts),
        rng.integers(400, len(rows), size=(steps, accounts)),
        rng.integers(0, 400, size=(steps, accounts)),
    )
    probs = digits.predict(rows)
    crowd, asked = Crowd(profile, accounts), Asked.of(profile, rows, probs)
    guard, shared = Guard(profile), [("all",)] * accounts  # so many thieves apart would be taken for a population that drifted
    names = [f"account {number}" for number in range(accounts)]
    for chosen in order:
        crowd.step(asked, chosen)
        guard.observe_many(names, rows[chosen], probs[chosen], shared)
    verdicts = [guard.verdict(name) for name in names]
    assert [one.effective for one in verdicts] == crowd.effective.tolist()
    assert [one.alarmed_at or 0 for one in verdicts] == crowd.alarmed_at.tolist()
    assert np.allclose([one.log_m for one in verdicts], np.log(np.maximum(crowd.value, 1e-300)), atol=1e-6)
    assert 0 < (crowd.alarmed_at > 0).sum() < accounts  # of both kinds there are some


def test_a_step_has_one_row_an_account(digits, rows):
    asked = Asked.of(digits.profile, rows[:4], digits.predict(rows[:4]))
    with pytest.raises(Invalid, match="3 accounts ask one row each"):
        Crowd(digits.profile, 3).step(asked, np.arange(4))
