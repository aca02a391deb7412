import numpy as np
import pytest

from modelkeep.extraction import discriminator
from modelkeep.extraction.features import EXTRA, fit_embedding, margin, nearest


def test_known_margins():
    got = margin(np.array([[0.8, 0.1, 0.1], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]))
    assert got == pytest.approx([np.log(8), 0.0, 12.0], abs=1e-6)
    assert margin(np.ones((3, 1))).tolist() == [0.0, 0.0, 0.0]


def test_nearest_agrees_with_brute_force():
    rng = np.random.default_rng(0)
    points, memory = rng.normal(size=(20, 4)), rng.normal(size=(50, 4))
    slow = np.sort(np.sqrt(((points[:, None] - memory[None]) ** 2).sum(axis=2)), axis=1)[:, :3]
    assert np.allclose(nearest(points, memory, 3), slow)


def test_real_rows_have_standard_features_and_constant_columns_do_no_harm():
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12))
    rows[:, 3] = 7.0
    embedding = fit_embedding(rows, None, rng)
    features = embedding.features(rows, None)
    assert features.shape == (300, embedding.basis.shape[1] + EXTRA)
    assert np.abs(features.mean(axis=0)).max() < 0.1
    assert np.isfinite(embedding.features(1e30 * np.ones((2, 12)), None)).all()


def test_gradient_agrees_with_differences():
    rng = np.random.default_rng(2)
    shapes = ((5, 6), (6,), (6, 4), (4,), (4,), ())
    weights = [rng.normal(size=s).astype(np.float64) for s in shapes]
    rows, target = rng.normal(size=(9, 5)), (rng.random(9) < 0.5).astype(float)

    def loss(ws):
        w1, b1, w2, b2, w3, b3 = ws
        logit = np.maximum(np.maximum(rows @ w1 + b1, 0) @ w2 + b2, 0) @ w3 + b3
        return float(np.mean(np.logaddexp(0, logit) - target * logit))

    for i, grad in enumerate(discriminator._gradient(weights, rows, target)):
        moved = [w.copy() for w in weights]
        at = tuple(0 for _ in shapes[i])
        up, down = [w.copy() for w in moved], [w.copy() for w in moved]
        up[i] = np.array(up[i])
        down[i] = np.array(down[i])
        up[i][at] += 1e-6
        down[i][at] -= 1e-6
        assert grad[at] == pytest.approx((loss(up) - loss(down)) / 2e-6, abs=1e-5)


def test_the_discriminator_separates_what_can_be_separated():
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(500, 6)), rng.normal(size=(500, 6)) + 2.0
    judge = discriminator.fit_discriminator(real[:400], fake[:400], rng, steps=200)
    assert (judge.suspicion(fake[400:]) > 0).mean() > 0.95
    assert (judge.suspicion(real[400:]) < 0).mean() > 0.95
