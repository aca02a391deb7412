import math

import numpy as np
import pytest

from modelkeep.extraction.accusation import cluster_log_e, corrected, set_tests, weigh_clusters, weigh_sets


def logs(**values):
    return {name: math.log(value) for name, value in values.items()}


def test_known_answers():
    assert cluster_log_e([math.log(9.0), math.log(99.0)], 1) == pytest.approx(math.log(5 * 50 / 2))
    assert cluster_log_e([0.0], 0) == pytest.approx(0.0) and cluster_log_e([800.0], 0) == pytest.approx(800 - math.log(2))
    assert (set_tests(5, 1), set_tests(5, 2), set_tests(100_000, 2)) == (40, 80, 8 * 4_999_950_000)
    assert corrected(math.log(1e6), 10) == pytest.approx(1e-5) and corrected(-3.0, 1) == 1.0
    assert corrected(5000.0, 1e40) == 1e-300


def test_a_cluster_is_named_for_what_its_members_show_together():
    found = weigh_clusters(
        logs(a=1e4, b=1e3, c=1e3, d=0.5, e=1e9, f=0.1, g=1e3, h=1e3),
        {"net-1": ["a", "b", "c", "d", "unheard"], "net-2": ["e", "f"], "signup-1": ["a", "b", "c", "d"], "net-3": ["g"]},
    )
    (one,) = found
    assert (one.name, one.members, one.others) == ("net-1", ("a", "b", "c"), 1), "who explains all alone is no group"
    assert one.tests == 2, "the same accounts are one test, and one account is none"
    assert one.p == pytest.approx(2 * 2 / (10_001 / 2 * (1001 / 2) ** 2))


def test_a_set_is_named_where_no_account_alone_is_as_sure():
    many = {f"u{i}": math.log(0.6) for i in range(1000)}
    pooled = many | logs(x=1e6, y=1e5, z=1e5)
    (one,) = weigh_sets(pooled)
    assert one.members == ("x", "y", "z") and one.name == ""
    assert one.p == pytest.approx(8 * math.comb(1003, 3) / 1e16)
    assert weigh_sets(many | logs(x=1e12)) == [], "an account that explains all is accused alone"
    assert weigh_sets(logs(a=1e12, b=0.9)) == [] == weigh_sets({})
    assert len(weigh_sets({f"u{i}": math.log(1e9) for i in range(20)})[0].members) == 8


def test_p_values_of_groups_hold_where_nobody_taught_the_suspect():
    """e = U^(-1/2)/2 has mean 1 and a heavy tail: no member of any group is guilty, and few are accused."""
    rng, runs = np.random.default_rng(2), 2000
    clusters = {f"net-{i}": [f"u{j}" for j in range(40) if j % 8 == i] for i in range(8)}
    least = []
    for _ in range(runs):
        found = {f"u{i}": float(value) for i, value in enumerate(-0.5 * np.log(rng.random(40)) - math.log(2))}
        named = weigh_clusters(found, clusters), weigh_sets(found)
        least.append([min((one.p for one in groups), default=1.0) for groups in named])
    for level in (0.1, 0.02):
        assert (np.array(least) <= level).mean(axis=0).max() <= level
