import numpy as np
import pytest

from modelkeep.extraction import surroundings
from modelkeep.extraction.surroundings import Surroundings, fit_surroundings


def test_a_score_is_told_in_deviations_of_those_around():
    around = Surroundings(mean=np.array([[1.0], [2.0]]), spread=np.array([[3.0], [-1.0]]), least=np.array([0.5]))
    scores, features = np.array([[1.0], [9.0], [9.0]]), np.array([[0.0], [1.0], [2.9]])
    assert around.standard(scores, features)[:, 0] == pytest.approx([0.0, 6.0 / 2.0, 2.2 / 0.5])


def test_mean_and_deviation_are_learnt(monkeypatch):
    monkeypatch.setattr(surroundings, "SHRINK", 1.0)
    rng = np.random.default_rng(0)
    features = rng.uniform(-1, 1, size=(20_000, 3))
    scores = 5.0 + 2.0 * features[:, :1] + (1.0 + 0.2 * features[:, 1:2]) * rng.normal(size=(20_000, 1))
    around = fit_surroundings(scores, features)
    assert around.mean[:, 0] == pytest.approx([5.0, 2.0, 0.0, 0.0], abs=0.05)
    assert around.spread[:, 0] / around.spread[0, 0] == pytest.approx([1.0, 0.0, 0.2, 0.0], abs=0.05)


def test_few_rows_teach_little():
    rng = np.random.default_rng(1)
    features = rng.normal(size=(100, 50))
    around = fit_surroundings(rng.normal(size=(100, 1)) + features[:, :1], features)
    assert np.abs(around.mean[1:]).max() < 0.1 and (around.spread[0] > 0.3).all()


def test_mixes_of_rows_differ_less_in_how_often_they_are_odd():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(12_000, 4))
    scores = (2.0 * features[:, :1] + (1.0 + 0.3 * np.clip(features[:, 1:2], -2, 2)) * rng.normal(size=(12_000, 1))) / 2.2
    around = fit_surroundings(scores[:6000], features[:6000])
    there = features[6000:, 0] > 0.7

    def at(values):
        odd = values > np.quantile(values, 0.97)
        return odd[there].mean()

    assert at(around.standard(scores[6000:], features[6000:])[:, 0]) < 0.85 * at(scores[6000:, 0])
