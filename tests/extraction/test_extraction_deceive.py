import numpy as np
import pytest

from modelkeep.extraction.deceive import deceived, is_false
from modelkeep.extraction.perturb import Marker

KEY = bytes(range(32))


def test_a_share_of_the_regions_is_false_and_each_key_has_its_own():
    pairs = [(cell, top) for cell in range(200) for top in range(10)]
    for share in (0.1, 0.3, 1.0):
        found = np.mean([is_false(KEY, *pair, share) for pair in pairs])
        assert abs(found - share) < 0.05
    ours, theirs = ([is_false(key, *pair, 0.5) for pair in pairs] for key in (KEY, KEY[::-1]))
    assert 0.4 < np.mean(np.array(ours) == np.array(theirs)) < 0.6
    assert all(is_false(KEY, *pair, 0.6) for pair, false in zip(pairs, ours, strict=True) if false), "a larger share has more"


def test_false_answers_swap_the_two_leading_classes_of_a_region_and_nothing_else(digits):
    marker, x = Marker(KEY, digits.profile), digits.unseen[:200]
    probs = marker.apply(x, digits.predict(x))
    found = deceived(marker, x, probs, 0.5)
    top = probs.argmax(axis=1)
    false = found.argmax(axis=1) != top
    region = [is_false(marker.falsity, cell, int(t), 0.5) for cell, t in zip(marker.cells_of(x).tolist(), top, strict=True)]
    assert false.tolist() == region and 40 < false.sum() < 160
    assert (found[~false] == probs[~false]).all()
    assert np.allclose(np.sort(found, axis=1), np.sort(probs, axis=1), atol=1e-12)
    assert (deceived(marker, x, probs, 0.5) == found).all(), "asking again is told the same"


@pytest.mark.parametrize("row", [[0.5, 0.5], [0.25, 0.25, 0.25, 0.25], [1.0, 0.0]])
def test_a_tie_is_no_truth(digits, row):
    marker, x = Marker(KEY, digits.profile), digits.unseen[:1]
    probs = np.array([row])
    assert deceived(marker, x, probs, 1.0).argmax() != probs.argmax()
    assert deceived(marker, x, np.array([[0.7]]), 1.0).tolist() == [[0.7]]
