from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from modelkeep.adapters.surrogates import MlpSurrogate, TreesSurrogate
from modelkeep.errors import Invalid
from modelkeep.extraction import evalues
from modelkeep.extraction import reading as r
from modelkeep.extraction import trace as t
from modelkeep.extraction.deceive import deceived
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Cells, Marker
from modelkeep.extraction.probes import draw_probes
from modelkeep.extraction.trace import AccountTrail, trace

CELLS = Cells(np.zeros(3, np.float32), np.eye(3, dtype=np.float32), np.zeros(3, np.float32))


def _keys(n, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.bytes(32) for _ in range(n)]


def _copy(case, key, x, surrogate):
    surrogate.fit(x, respond(DEFAULT.steps[0], Marker(key, case.profile).apply(x, case.predict(x))))
    return surrogate.predict


def _trails(case, keys, thief, x):
    rng = np.random.default_rng(9)
    pool = case.unseen
    return [AccountTrail(f"u{i}", k, x if i == thief else pool[rng.integers(len(pool), size=150)]) for i, k in enumerate(keys)]


def test_a_copy_of_digits_is_traced_to_its_account_and_to_no_other(digits):
    keys, x = _keys(25), digits.unseen
    suspect = _copy(digits, keys[4], x, MlpSurrogate((128, 64), updates=3000))
    found = trace(
        suspect, digits.predict, _trails(digits, keys, 4, x), digits.profile, probes=draw_probes(digits.profile, 1500, 1)
    )
    assert found[0].subject == "u4"
    assert found[0].p_bonferroni < 1e-6
    assert found[1].p_bonferroni > 0.05
    assert found[0].p_bonferroni == min(1.0, 25 * found[0].p_value)


def test_a_copy_of_a_binary_model_is_traced(tumour):
    keys, x = _keys(10), tumour.unseen
    suspect = _copy(tumour, keys[2], x, TreesSurrogate())
    found = trace(
        suspect, tumour.predict, _trails(tumour, keys, 2, x), tumour.profile, probes=draw_probes(tumour.profile, 1000, 1)
    )
    assert found[0].subject == "u2"
    assert found[0].p_bonferroni < 1e-4
    assert found[1].p_bonferroni > 0.05


def test_answers_that_carry_one_symbol_each_teach_copies_the_smooth_one_better(digits):
    """From fresh probes alone, beside marks of a profile of before."""
    p = {}
    for fine in (0.0, digits.profile.fine):
        case = replace(digits, profile=replace(digits.profile, fine=fine))
        x, key = case.unseen, _keys(5)[4]
        suspect = _copy(case, key, x, MlpSurrogate((128, 64), updates=3000))
        trail = AccountTrail("u", key, x[:0])
        p[fine] = trace(suspect, case.predict, [trail], case.profile, probes=draw_probes(case.profile, 1500, 1))[0].p_value
    assert p[digits.profile.fine] < 0.01 * p[0.0]


@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_p_values_of_an_independent_model_are_uniform_or_larger(name, request):
    """Over many keys, for a model that learnt from clean answers to the very questions that the account asked."""
    case = request.getfixturevalue(name)
    honest = MlpSurrogate((32,), updates=600)
    x = case.unseen[:250]
    honest.fit(x, case.predict(x))
    trails = [AccountTrail(str(i), key, x[:60], 0.3 * (i % 2), x[:60]) for i, key in enumerate(_keys(400, seed=5))]
    p = np.array(
        [r.p_value for r in trace(honest.predict, case.predict, trails, case.profile, probes=draw_probes(case.profile, 300, 2))]
    )
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / 400)
    assert p.min() > 1e-4


@pytest.mark.parametrize("symbols", [2, 3])
def test_the_e_value_averages_to_one_exactly(symbols):
    """Over all codes of five questions, whatever the scores: E e = 1 under the key's randomness."""
    scores = np.random.default_rng(1).uniform(-1, 1, size=(5, symbols))
    values = [np.exp(evalues.Bets(scores).log_e(np.array(code))) for code in product(range(symbols), repeat=5)]
    assert np.mean(values) == pytest.approx(1.0)


def test_the_smooth_e_value_averages_to_one_exactly():
    scores = np.random.default_rng(2).uniform(-1, 1, size=(8, 2))
    cell = np.array([0, 0, 1, 1, 2, 2, 2, 3])
    regions = evalues.regions_of(cell, np.zeros(8, int), np.ones(8), [scores])
    assert regions.cell.tolist() == [0, 1, 2, 3], "one symbol a region, however many probes"
    values = [np.exp(regions.bets[0].log_e(np.array(symbols))) for symbols in product((0, 1), repeat=4)]
    assert np.mean(values) == pytest.approx(1.0)


def test_a_copy_that_was_trained_on_is_read_by_its_logarithms():
    """Its answers are extreme, so that the mark is a small factor of very small probabilities."""
    rng = np.random.default_rng(8)
    clean = rng.dirichlet(np.ones(5), size=900)
    marker = Marker(bytes(32), CELLS)
    x = rng.normal(size=(900, 3))
    odds = 4.0 * np.log(marker.apply(x, clean) + 1e-3)
    read = np.exp(odds - odds.max(axis=1, keepdims=True))
    read /= read.sum(axis=1, keepdims=True)
    reading = r.Reading(r.Heard(x[500:], clean[500:], read[500:]), 0.05)
    asked = r.Heard(x[:500], clean[:500], read[:500])
    p, statistics = reading.weigh(bytes(32), CELLS, asked)
    first = max(statistics[f"fine-{name}"] for name in r.TRANSFORMS)
    assert statistics["fine-deep"] > first + 3.0
    assert p < 10 ** -(statistics["fine-deep"] - 3.0)
    assert reading.weigh(bytes([1]) * 32, CELLS, asked)[0] > 0.05


def test_a_copy_that_tells_its_leading_classes_alone_is_read_by_what_it_tells():
    """Silence is no evidence, and no noise either."""
    rng = np.random.default_rng(9)
    clean = rng.dirichlet(np.full(10, 0.4), size=900)
    x = rng.normal(size=(900, 3))
    read = Marker(bytes(32), CELLS).apply(x, clean) + rng.normal(0, 0.002, size=(900, 10)) * (clean > 0.01)
    read[read < np.sort(read, axis=1)[:, -3:-2]] = 0.0
    read /= read.sum(axis=1, keepdims=True)
    reading = r.Reading(r.Heard(x[500:], clean[500:], read[500:]), 0.05)
    asked = r.Heard(x[:500], clean[:500], read[:500])
    p, statistics = reading.weigh(bytes(32), CELLS, asked)
    first = max(statistics[f"fine-{name}"] for name in r.TRANSFORMS)
    assert max(statistics[f"fine-named-{name}"] for name in r.TRANSFORMS) > first + 3.0
    assert p < 10 ** -(first + 1.0)
    assert reading.weigh(bytes([1]) * 32, CELLS, asked)[0] > 0.05


def test_labels_and_rounded_answers_are_read_as_they_are(digits):
    told = digits.predict(digits.unseen)
    for read in (told, np.eye(10)[told.argmax(axis=1)], np.round(told, 2), np.round(told[:0], 2)):
        assert r._named(read) == 0


def test_readings_that_came_later_leave_the_p_values_of_before(digits):
    """A report of before is checked with one that is at most a twentieth larger."""
    rng = np.random.default_rng(5)
    heard = r.hear(digits.predict, digits.predict, digits.unseen[:120])
    marked = Marker(bytes(32), digits.profile).apply(heard.x, heard.clean)
    reading = r.Reading(r.Heard(heard.x, heard.clean, np.clip(marked + rng.normal(0, 0.01, marked.shape), 0, 1)), 0.05)
    p, statistics = reading.weigh(bytes(32), digits.profile, None)
    smooth = np.mean([10 ** statistics[f"smooth-{name}"] for name in r.TRANSFORMS])
    before = 0.2 + 0.8 * smooth  # e of the mark without fine symbols is 1, and four in five of the means have a smooth one
    assert before > 2.0
    assert p <= 1.05 / before


def test_an_e_value_that_is_no_number_accuses_nobody():
    assert [evalues.p_of(one) for one in (np.nan, -np.inf, 0.0, np.inf)] == [1.0, 1.0, 1.0, evalues.SMALLEST]


def test_a_key_weighs_the_same_whatever_was_weighed_before(digits):
    """What a reading keeps of its probes belongs to one layout of cells and one rounding."""
    probes, key = r.hear(digits.predict, digits.predict, digits.unseen[:80]), bytes(32)
    probes = r.Heard(probes.x, probes.clean, np.clip(probes.clean + np.random.default_rng(4).normal(0, 0.02, (80, 10)), 0, 1))
    fewer = replace(digits.profile, cells=digits.profile.cells[:8])
    cases = [(digits.profile, 4), (fewer, 4), (digits.profile, 2)]
    alone = [r.Reading(probes, 0.05).weigh(key, cells, None, decimals=decimals) for cells, decimals in cases]
    assert len({tuple(statistics.items()) for _, statistics in alone}) == 3
    reading = r.Reading(probes, 0.05)
    reading.weigh(bytes([1]) * 32, fewer, None)
    assert [reading.weigh(key, cells, None, decimals=decimals) for cells, decimals in cases] == alone


def test_the_e_value_of_false_answers_averages_to_one_exactly():
    """Over all keys of six regions, whatever the suspect tells there."""
    scores, share = np.random.default_rng(3).uniform(0, 4, size=6), 0.3
    values = [
        np.exp(evalues.log_false(scores, np.array(false), share)) * np.prod(np.where(false, share, 1 - share))
        for false in product((False, True), repeat=6)
    ]
    assert np.sum(values) == pytest.approx(1.0)
    assert evalues.log_false(scores, np.ones(6, bool), 1.0) == pytest.approx(0.0, abs=1e-6), "no news when all is false"


def test_labels_that_were_false_after_a_review_are_traced(digits):
    """A copy that saw nothing but the top class, of an account that was answered falsely in a share of the regions."""
    keys, x, share = _keys(25), digits.unseen[:600], 0.3
    marker = Marker(keys[4], digits.profile)
    answers = deceived(marker, x, marker.apply(x, digits.predict(x)), share)
    labels = np.eye(answers.shape[1])[answers.argmax(axis=1)]
    copy = TreesSurrogate()
    copy.fit(x, labels)
    trails = [AccountTrail(f"u{i}", key, x, share, x) for i, key in enumerate(keys)]
    found = trace(lambda rows: np.eye(10)[copy.predict(rows).argmax(axis=1)], digits.predict, trails, digits.profile,
                  probes=digits.unseen[600:])  # fmt: skip
    assert found[0].subject == "u4" and found[0].p_bonferroni < 1e-6
    assert found[1].p_bonferroni > 0.05
    assert found[0].statistics["false"] > 6


def test_the_epochs_of_a_theft_are_found_among_those_of_an_account(digits):
    """Two thefts with a renewal in between, taught to one copy; before and after them the account asked honestly."""
    parts = list(enumerate(np.array_split(digits.unseen, 4)))
    keys, probes = _keys(4, seed=6), digits.unseen[:300]
    told = [respond(DEFAULT.steps[0], Marker(keys[at], digits.profile).apply(x, digits.predict(x))) for at, x in parts]
    stolen = TreesSurrogate()
    stolen.fit(np.concatenate([x for _, x in parts[1:3]]), np.concatenate(told[1:3]))
    trails = [AccountTrail("u", keys[at], x, epoch=at, epochs=4) for at, x in parts]
    others = [AccountTrail(f"v{at}", key, parts[0][1]) for at, key in enumerate(_keys(4, seed=7))]
    first, second, *_ = trace(stolen.predict, digits.predict, trails + others, digits.profile, probes=probes)
    assert first.subject == "u" and first.p_bonferroni == min(1.0, 5 * first.p_value) < 1e-9 < 0.05 < second.p_bonferroni
    assert [one.epoch for one in first.run] == [1, 2] and first.epochs == 4
    lone = [replace(trail, epoch=0, epochs=1) for trail in trails[1:3]]
    p = [trace(stolen.predict, digits.predict, [one], digits.profile, probes=probes)[0].p_value for one in lone]
    assert first.p_value == pytest.approx(10 * p[0] * p[1]), "there are ten runs of four epochs"
    assert first.statistics["questions"] == sum(len(x) for _, x in parts[1:3])


@pytest.mark.parametrize(
    ("logs", "asked", "run"),
    [
        ([2.0], {0}, (0, 0)),
        ([-2.0], {0}, (0, 0)),
        ([-2.0, -1.0, -3.0], {0, 1, 2}, (1, 1)),
        ([9.0, -1.0, 9.0, -9.0], {0, 1, 2, 3}, (0, 2)),
        ([9.0, 2.0], {0, 1}, (0, 0)),
        ([9.0, 2.5], {0, 1}, (0, 1)),
        ([3.0, -4.0, 3.5], {0, 1, 2}, (2, 2)),
        ([0.0, 5.0, 0.0, 5.0, 0.0], {1, 3}, (1, 3)),
        ([5.0, 0.0, 0.0], {0, 2}, (0, 0)),
    ],
)
def test_the_run_that_says_most(logs, asked, run):
    assert t.strongest_run(logs, asked) == run


def test_the_choice_of_a_run_is_paid_for():
    """Over fair coins, the corrected p of the best run of epochs is uniform or larger."""
    rng = np.random.default_rng(3)
    logs = np.where(rng.random((20_000, 5)) < 0.5, np.log(1.8), np.log(0.2)) * rng.integers(1, 4, size=(20_000, 1))
    logs -= np.log(np.exp(logs).mean())  # the mean of e is 1 over these draws
    runs = [t.strongest_run(row, range(5)) for row in logs]
    p = np.array([evalues.p_of(row[a : b + 1].sum() - np.log(t.runs_of(5))) for row, (a, b) in zip(logs, runs, strict=True)])
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / len(p))


def test_an_account_without_questions_is_judged_by_probes_alone(digits):
    found = trace(
        digits.predict,
        digits.predict,
        [AccountTrail("new", bytes(32), digits.unseen[:0])],
        digits.profile,
        probes=digits.unseen[:200],
    )
    assert found[0].p_value > 0.5
    assert found[0].statistics["questions"] == 0


def test_repeats_of_a_question_count_once(digits):
    x = digits.unseen[:40]
    a, b = AccountTrail("a", bytes(32), x), AccountTrail("b", bytes(32), np.concatenate([x, x, x[:7]]))
    found = trace(digits.predict, digits.predict, [a, b], digits.profile, probes=digits.unseen[:200])
    assert found[0].p_value == found[1].p_value
    assert found[0].statistics["questions"] == 40


def test_probes_look_like_natural_rows_and_depend_on_the_seed(digits):
    probes = draw_probes(digits.profile, 400, 3)
    assert np.array_equal(probes, draw_probes(digits.profile, 400, 3))
    assert not np.array_equal(probes, draw_probes(digits.profile, 400, 4))
    far = digits.profile.scores(probes, digits.predict(probes))[:, 1] > digits.profile.limits[1, 0]
    assert far.mean() < 0.3


def test_bad_calls_are_refused(digits):
    trail = AccountTrail("a", bytes(32), digits.unseen[:5])
    probes = digits.unseen[:50]
    with pytest.raises(Invalid, match="twice"):
        trace(digits.predict, digits.predict, [trail, trail], digits.profile, probes=probes)
    later = [trail, replace(trail, epoch=1, epochs=2)]
    assert len(trace(digits.predict, digits.predict, later, digits.profile, probes=probes)) == 1
    with pytest.raises(Invalid, match="same two or more classes"):
        trace(lambda x: np.ones((len(x), 3)), digits.predict, [trail], digits.profile, probes=probes)
    with pytest.raises(Invalid, match="finite"):
        trace(lambda x: np.full((len(x), 10), np.nan), digits.predict, [trail], digits.profile, probes=probes)
