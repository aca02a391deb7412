import numpy as np
import pytest
from sklearn.ensemble import ExtraTreesClassifier

from modelkeep.errors import Invalid
from modelkeep.extraction import reading
from modelkeep.extraction.flips import Flipper, Told, first_of, flip_scores, flipped, spots_of
from modelkeep.extraction.reading import hear
from modelkeep.extraction.trace import AccountTrail, trace

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def flipper(digits):
    return Flipper(KEY, spots_of(digits.profile))


def test_a_share_of_the_spots_is_flipped_and_each_key_has_its_own(digits, flipper):
    names = [number.to_bytes(48, "big") for number in range(20_000)]
    few, more = flipper.flips(names, 0.005), flipper.flips(names, 0.02)
    assert 60 < few.sum() < 140 and 320 < more.sum() < 480 and more[few].all(), "a larger share has the same ones and more"
    other = Flipper(KEY[::-1], spots_of(digits.profile)).flips(names, 0.02)
    assert (more & other).sum() < 25, "about eight by chance"
    with pytest.raises(Invalid, match="32 bytes"):
        Flipper(KEY[:31], spots_of(digits.profile))


def test_a_question_is_told_the_same_again_alone_and_a_little_aside(digits, flipper):
    x = digits.unseen[:400]
    names = flipper.names(x)
    assert len(set(names)) > 380, "natural questions rarely share a spot"
    assert [flipper.names(row[None])[0] for row in x] == names == flipper.names(x.astype(np.float32))
    aside = flipper.names(x + np.random.default_rng(1).normal(size=x.shape) * 0.005 * digits.profile.embedding.scale)
    assert np.mean([one == other for one, other in zip(names, aside, strict=True)]) > 0.9
    assert [len(name) for name in flipper.names(np.full((1, 64), 3e38))] == [8 * 6], "rows far out have a spot, too"


def test_a_flip_changes_the_places_of_two_classes_and_nothing_else(digits, flipper):
    x = digits.unseen[:400]
    probs = digits.predict(x)
    found = flipped(flipper, x, probs, 0.1)
    false = flipper.flips(flipper.names(x), 0.1)
    assert ((found.argmax(axis=1) != probs.argmax(axis=1)) == false).all() and 15 < false.sum() < 80
    assert (found[~false] == probs[~false]).all()
    assert np.allclose(np.sort(found, axis=1), np.sort(probs, axis=1), atol=1e-12)
    assert (found[false].argmax(axis=1) == np.argsort(-probs[false], axis=1, kind="stable")[:, 1]).all()


def test_a_score_is_settled_before_later_questions_are_asked():
    """So that the e-value holds for a thief who chooses his questions by earlier answers."""
    rng = np.random.default_rng(3)
    clean, read, known, seen = (rng.dirichlet(np.ones(4), size=n) for n in (90, 90, 200, 200))
    probes, later = Told(known, seen), rng.dirichlet(np.ones(4), size=50)
    whole = flip_scores(Told(clean, read), probes)
    for way, scores in enumerate(flip_scores(Told(clean, np.concatenate([read[:40], later])), probes)):
        assert np.array_equal(scores[:40], whole[way][:40])
        assert (scores[40:] != whole[way][40:]).any()
    assert first_of([b"a", b"b", b"a", b"c", b"b"]).tolist() == [0, 1, 3]


def _labels(case, model):
    return lambda rows: np.eye(10)[model.predict(rows)]


@pytest.fixture(scope="module")
def asked(digits):
    """Questions of the thief: mixes of two natural rows."""
    rng = np.random.default_rng(4)
    one, other = digits.unseen[rng.integers(len(digits.unseen), size=(2, 1200))]
    return np.rint(one + rng.uniform(0, 0.5, size=(1200, 1)) * (other - one))


def test_a_copy_of_flipped_labels_is_traced_by_labels_alone_and_to_nobody_else(digits, asked):
    keys, share = [bytes([number]) * 32 for number in range(8)], 0.02
    told = flipped(Flipper(keys[7], spots_of(digits.profile)), asked, digits.predict(asked), share).argmax(axis=1)
    copy = ExtraTreesClassifier(20, random_state=1).fit(asked, told)
    trails = [AccountTrail(f"u{i}", key, asked, flips=share, flipped=asked) for i, key in enumerate(keys)]
    found = trace(_labels(digits, copy), digits.predict, trails, digits.profile, probes=digits.unseen[:300])
    assert found[0].subject == "u7" and found[0].p_bonferroni < 1e-8
    assert found[1].p_bonferroni > 0.05
    assert found[0].statistics["flips"] > 10 and found[0].statistics["all"] > 10
    plain = [AccountTrail(one.subject, one.key, one.x) for one in trails]
    before = trace(_labels(digits, copy), digits.predict, plain, digits.profile, probes=digits.unseen[:300])
    assert before[0].p_bonferroni > 0.05, "without the flips its labels say nothing"


def test_p_values_of_a_copy_of_true_labels_are_uniform_or_larger(digits, asked):
    """Over many keys, and for a copy that errs where the model is unsure: by chance half of that is told as a flip would be."""
    few = asked[:400]
    copy = ExtraTreesClassifier(20, max_depth=6, random_state=1).fit(few[:200], digits.predict(few[:200]).argmax(axis=1))
    heard = hear(_labels(digits, copy), digits.predict, few)
    probes = hear(_labels(digits, copy), digits.predict, digits.unseen[:300])
    told, rng = reading.Flipped(0.05, spots_of(digits.profile), heard), np.random.default_rng(6)
    p = np.array([np.exp(-reading._flip_evidence(rng.bytes(32), told, probes)) for _ in range(200)])
    for level in (0.2, 0.05, 0.01):
        assert (p <= level).mean() <= level + 3 * np.sqrt(level / 200)
    assert p.min() > 1e-4
