import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from modelkeep.errors import Invalid
from modelkeep.extraction import places
from modelkeep.extraction.accounts import Account
from modelkeep.extraction.guard import MIN_EFFECTIVE, Guard
from modelkeep.extraction.ladder import Rung
from modelkeep.extraction.places import Places
from modelkeep.extraction.profile import Profile
from modelkeep.extraction.verdicts import odds_text


def _session(rng, pool, labels):
    """One honest account with uneven habits: skewed classes, one side of a column, repeats, bursts, jitter or rounding."""
    n = len(pool)
    weights = np.ones(n)
    if rng.random() < 0.5:
        mix = rng.dirichlet(np.full(labels.max() + 1, 0.3)) + 1e-3
        weights = mix[labels]
    if rng.random() < 0.3:
        weights = weights * np.exp(2 * np.argsort(np.argsort(pool[:, rng.integers(pool.shape[1])])) / n)
    rows = rng.choice(n, int(rng.choice([30, 100, 300])), p=weights / weights.sum())
    if rng.random() < 0.3:
        rows = np.repeat(rows[: len(rows) // 3], 3)
    x, handling = pool[rows], rng.random()
    if handling < 0.2:
        return x + rng.uniform(0, 0.02) * pool.std(axis=0) * rng.normal(size=x.shape)
    grid = np.maximum(0.1 * pool.std(axis=0), 1e-9)
    return np.rint(x / grid) * grid if handling < 0.3 else x


@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_no_honest_session_is_alarmed(name, request):
    case, rng = request.getfixturevalue(name), np.random.default_rng(11)
    labels = case.predict(case.unseen).argmax(axis=1)
    guard = Guard(case.profile)
    for i in range(120):
        x = _session(rng, case.unseen, labels)
        guard.observe(f"honest-{i}", x, case.predict(x))
    held = [guard.verdict(s) for s in guard.subjects()]
    assert [v.rung for v in held] == [Rung.MARK] * 120
    assert max(v.log_m for v in held) < np.log(30)


@pytest.mark.parametrize("handle", ["as they are", "jittered", "rounded"])
@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_an_owner_who_asks_the_reference_rows_themselves_is_no_thief(name, handle, request):
    """Found by the red team: a query at distance nought from a remembered row looked like nothing that is real."""
    case, rng = request.getfixturevalue(name), np.random.default_rng(3)
    for pool in (case.reference, case.train):
        x = rng.permutation(pool)
        spread = np.maximum(pool.std(axis=0), 1e-9)
        if handle == "jittered":
            x = x + 0.02 * spread * rng.normal(size=x.shape)
        elif handle == "rounded":
            x = np.rint(x / (0.1 * spread)) * (0.1 * spread)
        guard = Guard(case.profile)
        guard.observe("owner", x, case.predict(x))
        assert guard.verdict("owner").log_m < np.log(30)


def _shuffled(pool, rng, n):
    return pool[rng.integers(len(pool), size=(n, pool.shape[1])), np.arange(pool.shape[1])]


def _uniform(pool, rng, n):
    return rng.uniform(pool.min(axis=0), pool.max(axis=0), size=(n, pool.shape[1]))


@pytest.mark.parametrize("thief", [_shuffled, _uniform])
@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_thieves_are_alarmed_within_tens_of_queries(name, thief, request):
    case = request.getfixturevalue(name)
    for seed in range(5):
        x = thief(case.unseen, np.random.default_rng(seed), 60)
        guard = Guard(case.profile)
        guard.observe("thief", x, case.predict(x))
        verdict = guard.verdict("thief")
        assert verdict.rung is Rung.ALARM
        assert MIN_EFFECTIVE <= verdict.alarmed_at <= 60
        assert verdict.odds.endswith("against an honest account")


def test_a_sleeper_is_alarmed(digits):
    rng, guard = np.random.default_rng(0), Guard(digits.profile)
    guard.observe("sleeper", digits.unseen[:600], digits.predict(digits.unseen[:600]))
    assert guard.verdict("sleeper").alarmed_at is None
    x = _shuffled(digits.unseen, rng, 60)
    guard.observe("sleeper", x, digits.predict(x))
    assert 600 < guard.verdict("sleeper").alarmed_at <= 650


def test_repeats_and_measurement_noise_are_no_evidence_and_nearly_free(digits):
    guard, rng = Guard(digits.profile), np.random.default_rng(1)
    x = _uniform(digits.unseen, rng, 3)  # three very odd rows, over and over
    scale = digits.profile.embedding.scale
    for _ in range(100):
        guard.observe("dashboard", x, digits.predict(x))
        near = x + 0.02 * scale * rng.normal(size=x.shape)
        guard.observe("sensor", near, digits.predict(near))
    for subject in ("dashboard", "sensor"):
        verdict = guard.verdict(subject)
        assert (verdict.queries, verdict.effective, verdict.uncovered, verdict.rung) == (300, 3, True, Rung.MARK)
    assert guard.verdict("dashboard").budget.equivalent < 20


def test_how_a_stream_is_cut_into_batches_does_not_matter(tumour):
    rng = np.random.default_rng(2)
    x = np.concatenate([tumour.unseen[:80], _shuffled(tumour.unseen, rng, 4), tumour.unseen[:30]])
    names = [f"account-{i}" for i in rng.integers(4, size=len(x))]
    answers = tumour.predict(x)
    whole, single, apart = Guard(tumour.profile), Guard(tumour.profile), Guard(tumour.profile)
    whole.observe_many(names, x, answers)
    for i, name in enumerate(names):
        single.observe_many([name], x[i : i + 1], answers[i : i + 1])
    for name in set(names):
        mine = [i for i, other in enumerate(names) if other == name]
        apart.observe(name, x[mine], answers[mine])
    for name in set(names):
        first = whole.verdict(name)
        for other in (single.verdict(name), apart.verdict(name)):
            assert other.log_m == pytest.approx(first.log_m, abs=1e-9)
            assert (other.effective, other.alarmed_at) == (first.effective, first.alarmed_at)
            assert other.budget.spent == pytest.approx(first.budget.spent, rel=1e-4)


def test_one_account_does_not_touch_another(digits):
    guard = Guard(digits.profile)
    thief = _uniform(digits.unseen, np.random.default_rng(3), 40)
    guard.observe("thief", thief, digits.predict(thief))
    before = guard.verdict("nobody")
    assert (before.rung, before.queries, before.alarmed_at) == (Rung.MARK, 0, None)
    guard.observe("honest", digits.unseen[:40], digits.predict(digits.unseen[:40]))
    assert guard.verdict("honest").alarmed_at is None


def test_after_a_review_the_evidence_restarts_and_the_bar_is_twice_as_high(digits):
    guard, rng = Guard(digits.profile), np.random.default_rng(4)
    first = _uniform(digits.unseen, rng, 40)
    guard.observe("account", first, digits.predict(first))
    guard.clear("account")
    verdict = guard.verdict("account")
    assert (verdict.rung, verdict.alarmed_at, verdict.uncovered) == (Rung.MARK, None, True)
    assert guard._accounts.get("account").reviews == 1
    again = _uniform(digits.unseen, rng, 60)
    guard.observe("account", again, digits.predict(again))
    assert guard.verdict("account").rung is Rung.ALARM
    guard.clear("nobody")


def test_the_budget_prices_a_natural_thief_and_never_accuses(digits):
    guard = Guard(digits.profile, budget_limit=200)
    rungs = []
    for at in range(0, 600, 40):
        x = digits.unseen[at : at + 40]
        guard.observe("reader", x, digits.predict(x))
        rungs.append(guard.verdict("reader").rung)
    verdict = guard.verdict("reader")
    assert rungs[0] is Rung.MARK
    assert rungs[-1] is Rung.LABELS and Rung.QUANTISED in rungs
    assert verdict.alarmed_at is None
    assert verdict.budget.share >= 1.0
    assert verdict.budget.fidelity > 0.7
    guard.begin(30)
    assert guard.verdict("reader").rung is Rung.MARK
    assert guard.verdict("reader").effective == verdict.effective


def test_an_account_takes_less_than_24_kib():
    account = Account(bets=230)
    parts = [getattr(account, name) for name in Account.__slots__]
    assert sum(sys.getsizeof(part) for part in parts) + sys.getsizeof(account) < 24 * 1024


def test_bad_calls_are_refused_and_leave_nothing_behind(digits):
    guard, x = Guard(digits.profile), digits.unseen[:3]
    p = digits.predict(x)
    bad = x.copy()
    bad[1, 1] = np.nan
    for args in ((x[:, :5], p), (x, p[:, :4]), (x, p[:2]), (bad, p), (x, None), (x, p * np.inf)):
        with pytest.raises(Invalid):
            guard.observe("a", *args)
    assert guard.subjects() == []
    guard.observe("a", x[:0], p[:0])
    for alpha, limit in ((0.0, None), (0.5, None), (1e-3, 0.0), (1e-3, float("inf"))):
        with pytest.raises(Invalid):
            Guard(digits.profile, alpha=alpha, budget_limit=limit)


def test_many_threads_lose_no_query(tumour):
    guard = Guard(tumour.profile)
    x, p = tumour.unseen[:50], tumour.predict(tumour.unseen[:50])

    def work(name):
        for i in range(50):
            guard.observe(name, x[i : i + 1], p[i : i + 1])
            guard.verdict(name)

    threads = [threading.Thread(target=work, args=(f"t{i % 3}",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [guard.verdict(f"t{i}").queries for i in range(3)] == [100] * 3


def test_odds_in_words():
    assert odds_text(0.2) == "none"
    assert odds_text(24_000.4) == "1 : 24,000 against an honest account"
    assert odds_text(2.54) == "1 : 2.5 against an honest account"
    assert odds_text(1e300).startswith("over")


def _null_of(embedding):
    """An orthonormal basis, by column, of what the principal coordinates leave out."""
    return np.linalg.qr(embedding.basis, mode="complete")[0][:, embedding.basis.shape[1] :]


def test_a_thief_who_moves_where_the_principal_coordinates_do_not_look_does_not_repeat_himself(digits):
    """Found in review: his queries were taken for one, gave no evidence and cost nothing."""
    embedding, rng = digits.profile.embedding, np.random.default_rng(5)
    null = _null_of(embedding)
    assert null.shape[1] > 8
    for base in (digits.unseen[0], digits.unseen[7]):
        steps = rng.normal(size=(60, null.shape[1]))
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)  # one deviation long in all, an eighth of one a column
        x = base + (steps @ null.T) * embedding.scale
        assert np.abs(embedding.project(x)[1] - embedding.project(base[None])[1]).max() < 1e-9
        guard = Guard(digits.profile)
        guard.observe("thief", x, digits.predict(x))
        assert guard.verdict("thief").effective >= 55


def test_a_step_far_outside_the_range_is_a_step(tumour):
    x = np.repeat(tumour.unseen[:1], 20, axis=0)
    x[:, 3] += tumour.profile.embedding.scale[3] * 15.0 * 1.7 ** np.arange(20)
    guard = Guard(tumour.profile)
    guard.observe("thief", x, tumour.predict(x))
    assert guard.verdict("thief").effective == 20


@pytest.mark.parametrize("name", ["tumour", "digits"])
def test_places_follow_from_the_profile_alone_and_keep_noise_small(name, request):
    case = request.getfixturevalue(name)
    embedding = case.profile.embedding
    again = Places(Profile.from_arrays(case.profile.to_arrays()).embedding)
    x, rng = case.unseen[:100], np.random.default_rng(6)
    at = Places(embedding).of(x)
    assert np.array_equal(at, again.of(x)) and at.shape[1] == min(places.DIMENSIONS, x.shape[1])
    for nearby in (
        x + 0.02 * embedding.scale * rng.normal(size=x.shape),
        np.rint(x / embedding.scale * 10) * embedding.scale / 10,
    ):
        assert np.linalg.norm(Places(embedding).of(nearby) - at, axis=1).max() < case.profile.near
    other = replace(embedding, memory=embedding.memory + 1e-9)  # another profile hides other directions
    assert not np.allclose(Places(other).of(x)[:, places.LEADING :], at[:, places.LEADING :])
