"""Which rows a suspect is asked: drawn of a pool of before the keys, and what an owner who picks them himself could do."""

import hashlib

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from modelkeep.errors import Invalid, NotTrusted
from modelkeep.extraction import reading as r
from modelkeep.extraction.features import Embedding
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.probes import DRAWN, POOLED, Pool, check_paths, draw_pool, draw_probes, drawn, name_pool, probe_seed

ROOT = "5f" * 32


def embedding(memory=40, width=5, components=3):
    """One that every machine has to the last bit."""
    numbers = np.frombuffer(hashlib.shake_256(b"embedding").digest(4 * (memory + width) * components), dtype="<i4") / 2.0**30
    basis, held = np.split(numbers, [width * components])
    one = np.ones(width)
    return Embedding(
        mean=0.1 * one,
        scale=0.3 * one,
        basis=basis.reshape(width, components),
        spread=np.ones(components),
        memory=held.reshape(memory, components),
        low=-0.5 * one,
        high=0.75 * one,
        centre=np.zeros(components + 10),
        width=np.ones(components + 10),
    )


def test_a_pool_and_what_is_drawn_of_it_are_the_same_on_every_machine():
    pool = draw_pool(embedding(), 300)
    assert pool.root == "6f9aeab3d2479e1f0cf9edba6240c62fb18ee22106ba7ed419f65b2e3ce38a4c"
    assert drawn(b"round 42", ROOT, 300, bytes(32), 6).tolist() == [145, 7, 85, 204, 19, 79]
    wide, narrow = embedding(width=9_000, components=1), embedding()
    assert (len(draw_pool(wide)), len(draw_pool(narrow))) == (DRAWN, POOLED)
    assert name_pool(narrow) == (draw_pool(narrow).root, POOLED)


def test_what_is_drawn_is_a_shuffle_by_shake_256():
    """The same by the slow definition: a list, from which one after the other is taken."""
    beacon, suspect = b"a value", bytes(range(32))
    said = b"modelkeep/probes/2" + hashlib.sha256(beacon).digest() + bytes.fromhex(ROOT) + suspect
    stream, left, wanted = hashlib.shake_256(said).digest(8 * 40), list(range(97)), []
    for at in range(40):
        word = int.from_bytes(stream[8 * at : 8 * at + 8], "little")
        left[at], left[at + word % (97 - at)] = left[at + word % (97 - at)], left[at]
        wanted.append(left[at])
    found = drawn(beacon, ROOT, 97, suspect, 40)
    assert found.tolist() == wanted and len(set(wanted)) == 40
    assert sorted(drawn(beacon, ROOT, 7, suspect).tolist()) == list(range(7)), "a small pool is asked whole"
    others = [drawn(b"another", ROOT, 97, suspect, 40), drawn(beacon, "5e" * 32, 97, suspect, 40)]
    others.append(drawn(beacon, ROOT, 97, bytes(32), 40))
    assert not any(np.array_equal(found, other) for other in others)


@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 13, 100])
def test_rows_prove_that_they_stand_in_the_pool_and_others_do_not(rows):
    pool = Pool(np.random.default_rng(rows).normal(size=(rows, 4)))
    index = np.arange(rows)
    x, paths = pool.rows[index].astype(np.float64), pool.paths(index)
    check_paths(x, index, paths, pool.root, rows)
    moved = x + np.eye(rows, 4)[:, :4]
    wrong = [(moved, index, paths, pool.root, rows), (x, index, paths, ROOT, rows), (x + 1e-12, index, paths, pool.root, rows)]
    wrong += [(x, index, paths[:, :, :31], pool.root, rows), (x, index[:-1], paths, pool.root, rows)]
    wrong += [(x, index, paths, pool.root, 2 * rows)]
    if rows > 1:
        wrong += [(x, index[::-1], paths, pool.root, rows), (x, index, paths ^ np.uint8(1), pool.root, rows)]
    for arguments in wrong:
        with pytest.raises(NotTrusted):
            check_paths(*arguments)


def test_a_pool_is_rows_of_finite_numbers():
    assert Pool(np.array([[-0.0, 1.0]])).root == Pool(np.array([[0.0, 1.0]])).root, "a zero has one sign only"
    for rows in (np.zeros((0, 3)), np.zeros((3, 0)), np.zeros(3), np.array([[np.nan]]), np.array([[1e300]])):
        with np.errstate(over="ignore"), pytest.raises(Invalid, match="finite"):
            Pool(rows)


def test_points_of_a_pool_look_like_natural_rows(digits):
    rows = draw_pool(digits.profile.embedding, 400).rows.astype(np.float64)
    far = digits.profile.scores(rows, digits.predict(rows))[:, 1] > digits.profile.limits[1, 0]
    assert far.mean() < 0.3 and len(np.unique(rows, axis=0)) == 400


def test_probes_of_before_there_were_pools_are_drawn_as_they_were(digits):
    assert probe_seed(b"abc", bytes(32)) == int(
        hashlib.sha256(b"modelkeep/probes/1" + hashlib.sha256(b"abc").digest() + bytes(32)).hexdigest(), 16
    )
    assert len({probe_seed(b"abc", bytes(32)), probe_seed(b"abd", bytes(32)), probe_seed(b"abc", bytes(31) + b"\1")}) == 3
    assert np.array_equal(draw_probes(digits.profile, 40, 3), draw_probes(digits.profile, 40, 3))


def some(heard, rows):
    return r.Heard(heard.x[rows], heard.clean[rows], heard.read[rows])


def picked(case, heard, key):
    """What a hostile owner hands in of ``heard``: rows on which the suspect happens to lean to the key's symbol, and, so that
    this is nothing usual, others on which it does not lean away from it."""
    marker, top = Marker(key, case.profile), heard.clean.argmax(axis=1)
    symbol = marker.smooth(marker.cells_of(heard.x), top, heard.clean.shape[1])
    rows = np.arange(1500)
    for _ in range(3):
        readers = r.Reading(some(heard, rows), 0.05)._readers
        scores = np.mean([readers[way].scores(heard.clean, heard.read) for way in r.TRANSFORMS], axis=0)
        lean = scores[np.arange(len(top)), symbol] * marker.sizes(heard.clean)
        rows = np.concatenate([np.flatnonzero(lean[:1500] > -0.02), np.argsort(-lean)[:500]])
    return some(heard, rows)


def test_an_owner_who_picks_the_rows_accuses_anybody_and_one_who_picks_the_seed_nobody(digits):
    """The attack that the pool is there for, on a model that was trained without any marked answer."""
    rng = np.random.default_rng(3)
    innocent = LogisticRegression(max_iter=2000).fit(digits.train / 16, digits.predict(digits.train).argmax(axis=1))
    pool = draw_pool(digits.profile.embedding, 12_000).rows.astype(np.float64)
    heard = r.hear(lambda rows: innocent.predict_proba(rows / 16), digits.predict, pool)
    keys = [rng.bytes(32) for _ in range(3)]
    assert max(r.Reading(picked(digits, heard, key), 0.05).weigh(key, digits.profile, None)[0] for key in keys) < 1e-6
    least = 1.0
    for attempt in range(30):
        index = drawn(bytes([attempt]), ROOT, len(pool), bytes(32), 1500)
        reading = r.Reading(some(heard, index), 0.05)
        least = min(least, *(reading.weigh(key, digits.profile, None)[0] for key in keys))
    assert least > 1.0 / (30 * len(keys) * 20), "by chance below that once in twenty runs, and this one is always the same"


def test_a_suspect_that_refuses_rows_cannot_forbid_the_trace(digits):
    """It answers them with no numbers, which is read as the model's own answer: no key decides which rows these are."""
    x = digits.unseen[:60]

    def refusing(rows):
        found = digits.predict(rows).copy()
        found[rows[:, 20] > 8.0] = np.nan
        return found

    heard = r.hear(refusing, digits.predict, x)
    assert heard.silent == (x[:, 20] > 8.0).sum() > 0 and np.array_equal(heard.read, heard.clean)
    assert r.Reading(heard, 0.05).weigh(bytes(32), digits.profile, heard)[0] > 1e-3
    with pytest.raises(Invalid, match="no probe with finite"):
        r.Reading(r.hear(lambda rows: np.full((len(rows), 10), np.inf), digits.predict, x), 0.05)
    with pytest.raises(Invalid, match="the model itself"):
        r.hear(digits.predict, refusing, x)
