"""Detectors of others against known answers: what their papers' formulas give, worked out another way."""

import math

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.stats import norm, shapiro

from benchmarks._extraction import settings
from benchmarks._extraction_baselines import Add, Curve, Judged, Mahalanobis, Mmd, Prada, Rule, growing_distances
from benchmarks._extraction_contest import OURS, contest
from benchmarks._extraction_prices import Coverage, Privacy, b4b_noise, vote_costs, work
from benchmarks._extraction_quantiser import answers, matching, noisy, quantised, recovered

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


class Flat:
    """A space of rows as they are, and answers that say nothing."""

    def rows(self, x, probs):
        return x

    def features(self, x, probs):
        return x


def alike(count, classes=2):
    return np.tile(np.eye(classes)[0], (count, 1))


# -- PRADA --


def test_distances_are_to_the_nearest_row_of_a_set_that_grows_by_far_rows():
    points = np.array([[0.0], [4.0], [3.0], [10.0], [9.0]])
    # set {0}: 4, grows; limit mean - deviation of (0, 4) = 0; 3 is 1 off, grows: of (0, 4, 1) 5/3 - 1.70 < 0, stays 0;
    # 10 is 6 off, grows; 9 is 1 off
    found = growing_distances(points)
    assert math.isnan(found[0])
    np.testing.assert_allclose(found[1:], [4.0, 1.0, 6.0, 1.0])


def test_a_row_nearer_than_the_limit_does_not_join_the_set():
    far = np.array([[100.0 * i] for i in range(12)])  # eleven distances of 100 and one 0: limit 91.7 - 27.6 = 64
    found = growing_distances(np.concatenate([far, [[1150.0], [1160.0]]]))
    np.testing.assert_allclose(found[-2:], [50.0, 60.0])  # 1150 stayed out, or 1160 were 10 off


def test_prada_scores_by_the_shapiro_wilk_statistic_of_the_distances_without_outliers():
    x = np.random.default_rng(0).normal(size=(240, 6))
    x[200] = 300.0  # an outlier
    found = Prada(lambda rows: rows).judge(x, alike(240))
    assert found.at.tolist() == list(range(110, 241, 10))
    told = growing_distances(x)[1:]
    kept = told[np.abs(told - told.mean()) < 3 * told.std()]
    assert len(kept) < len(told)
    assert found.score[-1] == pytest.approx(1.0 - shapiro(kept).statistic)


def test_prada_finds_steps_from_known_rows_as_its_paper_says():
    rng = np.random.default_rng(1)
    natural = rng.normal(size=(150, 30))
    steps = natural + 0.1 * rng.choice((-1.0, 1.0), size=natural.shape)
    judge, honest = Prada(lambda rows: rows), rng.normal(size=(300, 30))
    told = judge.judge(np.concatenate([natural, steps]), alike(300)).score.max()
    assert told > 0.15 > judge.judge(honest, alike(300)).score.max()


# -- ADD, Mahalanobis, MMD --


def test_add_is_the_frechet_distance_of_each_class_weighted_by_its_rows():
    rng = np.random.default_rng(2)
    classes = rng.integers(2, size=4000)
    benign = rng.normal(size=(4000, 3)) * (1.0 + classes[:, None]) + classes[:, None]
    judge = Add(Flat(), benign, np.eye(2)[classes])
    mine = np.array([0] * 10 + [1] * 6)[rng.permutation(16)]
    x = rng.normal(size=(16, 3)) + 2.0
    expected = 0.0
    whole = np.cov(benign, rowvar=False)
    for c in (0, 1):
        rows, some = benign[classes == c], x[mine == c]
        trust = len(rows) / (len(rows) + 3)
        spread, own = trust * np.cov(rows, rowvar=False) + (1 - trust) * whole, np.cov(some, rowvar=False, bias=True)
        away = ((rows.mean(axis=0) - some.mean(axis=0)) ** 2).sum()
        expected += len(some) / 16 * (away + np.trace(spread + own) - 2.0 * np.trace(sqrtm(spread @ own).real))
    assert judge.judge(x, np.eye(2)[mine]).score == pytest.approx([expected])


def test_mahalanobis_is_the_mean_distance_over_the_window():
    rng = np.random.default_rng(3)
    benign = rng.normal(size=(50_000, 4)) @ np.diag([1.0, 2.0, 3.0, 4.0])
    judge = Mahalanobis(Flat(), benign, alike(50_000), window=2)
    x = np.array([[0.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]])
    found = judge.judge(x, alike(3))
    assert found.at.tolist() == [2, 3]
    np.testing.assert_allclose(found.score, [0.5, 2.0], rtol=0.02)


def test_mmd_is_that_of_two_gaussians_in_closed_form():
    rng = np.random.default_rng(4)
    width, shift = 6, 1.0
    benign, account = rng.normal(size=(6000, width)), shift + rng.normal(size=(1500, width))
    judge = Mmd(Flat(), benign, alike(6000), 1500, frequencies=2000)
    found = judge.judge(account, alike(1500)).score[-1]
    square = float(np.median(((benign[:3000] - benign[3000:]) ** 2).sum(axis=1)))  # the bandwidth's square
    same = (square / (square + 2.0)) ** (width / 2)  # mean of exp(-|x - y|^2 / 2s) over N(0, 2I)
    assert found == pytest.approx(2.0 * same * -math.expm1(-0.5 * width * shift**2 / (square + 2.0)), rel=0.06)


def test_mmd_of_honest_rows_is_unbiased():
    rng = np.random.default_rng(5)
    judge = Mmd(Flat(), rng.normal(size=(4000, 3)), alike(4000), 100)
    found = [judge.judge(rng.normal(size=(100, 3)), alike(100)).score[0] for _ in range(300)]
    assert abs(np.mean(found)) < 4.0 * np.std(found) / math.sqrt(300)
    assert min(found) < 0.0  # a biased estimate never is


# -- rules --


def test_the_best_rule_accuses_at_most_its_share_of_the_calibration_accounts_and_no_fewer():
    lives = [Judged(np.array([10, 20]), np.array([0.0, float(peak)])) for peak in range(100)]
    assert [bool(Rule.best(lives, grows=False, share=share).first(lives[99])) for share in (0.0, 0.01)] == [False, True]
    rule = Rule.best(lives, grows=False, share=0.05)
    assert sum(bool(rule.first(life)) for life in lives) == 5
    assert rule.first(lives[99]) == 20


def test_a_growing_score_is_compared_at_the_same_number_of_rows():
    at = np.arange(10, 101, 10)
    lives = [Judged(at, at * (1.0 + 0.001 * i)) for i in range(101)]
    curve = Curve.of(lives)
    np.testing.assert_allclose(curve.middle[1:], 1.05 * at)
    early = Judged(at, np.minimum(at * 3.0, 100.0))  # never above what an honest account ends with
    assert Rule.best(lives, grows=True, share=0.0).first(early) == 10
    assert Rule.best(lives, grows=False, share=0.0).first(early) == 0
    assert curve.level(Judged(np.array([100, 110]), np.array([105.0, 1e9]))).tolist() == [0.0, -np.inf]  # nobody had 110


# -- prices --


def test_b4b_noise_begins_at_nothing_and_is_alpha_at_beta():
    np.testing.assert_allclose(b4b_noise(np.array([0.0, 0.8]), 0.8), [0.0, 0.8 - 1e-6])


def test_coverage_counts_buckets_once():
    class Plane(Flat):
        embedding = type("Embedding", (), {"spread": np.ones(2)})()
        centre = np.ones(0)

    judge = Coverage(Plane(), bits=2, hashes=1)
    judge._directions = np.eye(2)  # buckets are quadrants
    corners = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    asked = corners[[0] * 5 + [1] * 9 + [2] * 6]
    assert judge.judge(asked, alike(20)).score.tolist() == [0.5, 0.75]


def test_a_vote_costs_what_theorem_6_says():
    votes, sigma, order = np.array([[45.0, 3.0, 2.0]]), 6.0, 4.0
    q = sum(norm.sf(gap / (math.sqrt(2) * sigma)) for gap in (42.0, 43.0))
    mu2 = sigma * math.sqrt(-math.log(q))
    mu1, eps2 = mu2 + 1.0, mu2 / sigma**2
    eps1 = mu1 / sigma**2
    a = (1 - q) / (1 - (q * math.exp(eps2)) ** ((mu2 - 1) / mu2))
    b = math.exp(eps1) / q ** (1 / (mu1 - 1))
    expected = math.log((1 - q) * a ** (order - 1) + q * b ** (order - 1)) / (order - 1)
    assert expected < order / sigma**2
    assert vote_costs(votes, sigma, np.array([order]))[0, 0] == pytest.approx(expected)


def test_a_split_vote_costs_as_much_as_noise_alone():
    orders = np.array([2.0, 8.0])
    np.testing.assert_allclose(vote_costs(np.array([[25.0, 25.0]]), 5.0, orders)[0], orders / 25.0)


def test_work_grows_with_the_distance_from_the_expected_cost():
    np.testing.assert_allclose(
        work(np.array([7.0, 5.0, 3.0, 1e6]), np.full(4, 5.0), 2.0), [4.0, 1.0, 4.0, 3000.0]
    )  # at most 3,000


# -- quantised answers --


def answered(count, seed=0, classes=4):
    return np.random.default_rng(seed).dirichlet(np.ones(classes), size=count)


def test_quantised_answers_stay_within_epsilon_keep_the_top_class_and_are_fewer():
    probs = answered(500)
    told = quantised(probs, 0.3)
    assert np.abs(told - probs).sum(axis=1).max() <= 0.3
    assert (told.argmax(axis=1) == probs.argmax(axis=1)).all()
    assert len(np.unique(told, axis=0)) < 250
    np.testing.assert_array_equal(quantised(probs[:100], 0.3), told[:100])  # what comes later changes nothing


def test_matching_and_noise_change_answers_by_as_much_as_asked():
    probs = answered(400)
    assert np.abs(quantised(probs, matching(probs, 0.2)) - probs).sum(axis=1).mean() == pytest.approx(0.2, abs=0.02)
    told = noisy(probs, 0.2, np.random.default_rng(1))
    assert np.abs(told - probs).sum(axis=1).mean() == pytest.approx(0.2)
    assert (told.argmax(axis=1) == probs.argmax(axis=1)).all()


def test_recovery_comes_nearer_to_the_clean_answers():
    probs = answered(600, classes=3)
    told = quantised(probs, 0.5)
    guess = 0.8 * probs + 0.2 * told
    found = recovered(told, guess, 0.5, np.random.default_rng(0))
    assert np.abs(found - probs).sum() < 0.8 * np.abs(told - probs).sum()


# -- all of it, in small --


@pytest.fixture(scope="module")
def setting():
    (one,) = settings(None, {"digits/mlp"})
    return one


def test_detectors_find_what_their_papers_say_and_ours_is_beside_them(setting):
    long, short, priced = contest(setting, users=12, queries=400, runs=1)
    found = {(row["who"], row["attack"]): row["found"] for row in long}
    assert found[Prada.name, "jacobian"] == found["Mahalanobis, window 32", "uniform"] == found[OURS, "uniform"] == "1/1"
    assert (
        found["MMD, window 100", "photographs"] == found["ADD, window 16", "t-rnd"] == found[Privacy.name, "uniform"] == "1/1"
    )
    assert len(short) == 8
    assert found[OURS, "in-distribution"] == "0/1"
    assert {row["held out"] for row in short if row["who"] == OURS} == {"0/6"}
    worked = {row["who"]: float(str(row["work"])) for row in priced}
    assert worked["calibration"] == pytest.approx(1.0, abs=0.01)
    assert worked["uniform"] > 3.0


def test_coarse_answers_are_compared_at_equal_distortion(setting):
    rows = {row["who"]: row for row in answers(setting, runs=1, questions=200)}
    ours, *others = [float(str(rows[who]["L1"])) for who in ("ours, quarters", "ModelGuard-S", "noise")]
    assert others == pytest.approx([ours, ours], abs=0.03)
    assert float(str(rows["clean"]["fidelity"])) > 0.6
