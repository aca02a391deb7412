import hashlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelkeep.errors import Invalid
from modelkeep.extraction.ladder import DEFAULT, respond
from modelkeep.extraction.perturb import Marker, commitment

KEY = bytes(range(32))


def test_the_commitment_is_a_hash_with_a_domain_of_its_own():
    assert commitment(KEY) == hashlib.sha256(b"modelkeep/trace-commitment/1" + KEY).digest()
    assert commitment(KEY) != commitment(bytes(32))


def _softmax(raw):
    e = np.exp(raw - raw.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["tumour", "digits"]),
    arrays(np.float64, (6, 10), elements=st.floats(-12, 12)),
    st.binary(min_size=32, max_size=32),
    st.floats(0, 0.5),
)
def test_a_mark_is_small_keeps_the_sum_and_never_the_top(_cases, name, raw, key, epsilon):
    case = _cases[name]
    probs = _softmax(raw[:, : case.profile.n_classes])
    marked = Marker(key, case.profile, epsilon).apply(case.unseen[:6], probs)
    assert (marked.argmax(axis=1) == probs.argmax(axis=1)).all()
    assert (np.abs(marked - probs).sum(axis=1) <= epsilon + 1e-9).all()
    assert np.allclose(marked.sum(axis=1), probs.sum(axis=1))
    assert (marked >= 0).all()
    assert (marked <= 1).all()
    assert (respond(DEFAULT.steps[0], marked).argmax(axis=1) == probs.argmax(axis=1)).all()


@pytest.fixture(scope="module")
def _cases(tumour, digits):
    return {"tumour": tumour, "digits": digits}


def test_the_same_query_gets_the_same_mark_alone_or_in_a_batch(digits):
    x, marker = digits.unseen[:64], Marker(KEY, digits.profile)
    probs = digits.predict(x)
    batch = marker.apply(x, probs)
    assert np.array_equal(batch, Marker(KEY, digits.profile).apply(x, probs))
    for i in range(64):
        assert np.array_equal(marker.apply(x[i : i + 1], probs[i : i + 1])[0], batch[i])
        assert marker.apply_one(x[i : i + 1].astype(np.float32), probs[i].tolist()) == batch[i].tolist()
    assert np.array_equal(marker.apply(x.astype(np.float32), probs), batch)


@pytest.mark.parametrize("fine", [0.0, 0.35])
def test_the_code_says_where_the_mass_went(digits, tumour, fine):
    x = digits.unseen[:200]
    probs, marker = digits.predict(x), Marker(KEY, replace(digits.profile, fine=fine))
    code, moved, size = marker.code(x, probs), marker.apply(x, probs) - probs, marker.sizes(probs)
    for i in np.flatnonzero(size):
        gained = np.zeros(10)
        placed = (code.fine[i], code.smooth[i]) if not fine else [code.fine[i] if code.size[i] else code.smooth[i]] * 2
        for symbol in placed:
            gained[symbol + (symbol >= code.top[i])] += size[i] * 0.0125
        gained[code.top[i]] = -gained.sum()
        assert np.allclose(moved[i], gained)
    assert 0.8 < (size > 0).mean() <= 1.0
    assert abs((code.size > 0).sum() / (size > 0).sum() - (fine or 1.0)) < 0.1
    x = tumour.unseen[:100]
    probs, marker = tumour.predict(x), Marker(KEY, replace(tumour.profile, fine=fine))
    code, marked, size = marker.code(x, probs), marker.apply(x, probs), marker.sizes(probs)
    fall = (probs - marked)[np.arange(100), code.top]
    both = code.fine + code.smooth if not fine else 2 * np.where(code.size > 0, code.fine, code.smooth)
    assert (fall[(both == 2) & (size > 0)] > 0).all()
    assert (fall[both == 0] <= 0).all()


def test_a_profile_of_before_marks_as_it_did(digits):
    """Known answers: what was marked and reported then is read by the same symbols."""
    x = np.arange(640.0).reshape(10, 64) % 17
    code = Marker(KEY, replace(digits.profile, fine=0.0)).code(x, np.full((10, 10), 0.1))
    assert code.fine.tolist() == [3, 2, 6, 8, 6, 6, 8, 3, 0, 3]


def test_another_key_marks_otherwise_and_symbols_are_even(digits):
    x = digits.unseen
    probs = digits.predict(x)
    codes = [Marker(bytes([k]) * 32, digits.profile).code(x, probs) for k in range(6)]
    agree = np.mean([(a.fine == b.fine).mean() for a in codes for b in codes if a is not b])
    assert abs(agree - 1 / 9) < 0.02
    counts = np.bincount(np.concatenate([c.fine for c in codes]), minlength=9)
    assert counts.max() / counts.min() < 1.25


def test_a_small_move_keeps_the_smooth_symbol_and_renews_the_fine_one(digits):
    x, marker = digits.unseen[:300], Marker(KEY, digits.profile)
    near = x + 1e-3 * np.random.default_rng(0).normal(size=x.shape)
    a, b = marker.code(x, digits.predict(x)), marker.code(near, digits.predict(x))
    assert (a.smooth == b.smooth).mean() > 0.97
    assert (a.fine == b.fine).mean() < 0.25


def test_ties_and_regressions_are_left_alone(digits):
    marker = Marker(KEY, digits.profile)
    tie = np.full((1, 10), 0.1)
    assert np.array_equal(marker.apply(digits.unseen[:1], tie), tie)
    assert np.array_equal(marker.apply(digits.unseen[:1], np.array([[3.5]])), np.array([[3.5]]))


@pytest.mark.parametrize(("key", "epsilon"), [(b"short", 0.05), (KEY, -0.1), (KEY, 0.6)])
def test_bad_markers_are_refused(digits, key, epsilon):
    with pytest.raises(Invalid):
        Marker(key, digits.profile, epsilon)
