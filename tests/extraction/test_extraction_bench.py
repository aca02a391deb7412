"""The extraction bench in small: honest accounts, thieves and copies of one model of digits, judged by the bench's own bars."""

from dataclasses import replace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from benchmarks._extraction import settings
from benchmarks._extraction_bars import judged
from benchmarks._extraction_blocked import Blocked
from benchmarks._extraction_honest import SAME, honest
from benchmarks._extraction_results import Results
from benchmarks._extraction_thieves import NATURAL, found
from benchmarks._extraction_users import sybil
from modelkeep.extraction.profile import with_kappa

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def setting():
    with threadpool_limits(1):  # as the bench has it
        (one,) = settings(None, {"digits/mlp"})
        yield one


def test_no_honest_account_is_accused(setting):
    rows = [row for row in honest(setting, 224, 300) if row["family"] != SAME]
    assert len(rows) == 8
    assert sum(row["accounts"] for row in rows) >= 224
    assert [row["accused"] for row in rows] == [0] * 8


def test_the_bench_sees_when_the_guarantee_breaks(setting):
    narrow = with_kappa(setting.profile, 0.1 * setting.profile.kappa)
    assert sum(row["accused"] for row in honest(replace(setting, profile=narrow), 56, 200)) > 5


def test_thieves_are_found_and_the_natural_one_is_not(setting):
    results, names = Results(None), ["uniform", "line-search", "t-rnd", "photographs", "mirrored", NATURAL]
    results.take("alarms", found(setting, names, runs=2, budget=200))
    bars = {row["bar"]: row["verdict"] for row in judged(results)}
    assert len(bars) == 7
    assert set(bars.values()) == {"met"}
    (natural,) = [row for row in results.of("thieves") if row["attack"] == NATURAL]
    assert natural["found"] == 0
    hidden = {row["attack"]: row["found"] for row in results.of("thieves") if row["how"] == "one in ten"}
    assert hidden["uniform"] == hidden["photographs"] == hidden["t-rnd"] == 2


def test_what_a_copy_is_worth_at_the_stop(setting):
    judge = Blocked(setting, runs=2, most=125)
    uniform, jacobian, natural = (judge.row(name) for name in ("uniform", "t-rnd", NATURAL))
    assert np.all(np.diff(judge.control[[0, 2, 4]]) > 0.0)  # natural rows teach, the more the more
    assert uniform["blocked"] == uniform["alarm"] == 2
    assert uniform["advantage"] < 0.0
    assert jacobian["alarm"] == 2
    assert jacobian["half"] == 0  # its hundred natural rows have taught it already
    assert natural["alarm"] == natural["budget"] == natural["blocked"] == 0
    assert uniform["top-1 changed"] == jacobian["top-1 changed"] == natural["top-1 changed"] == 0


def test_accounts_that_share_a_network_are_one(setting):
    rows = {(row["attack"], row["how"]): row for row in sybil(setting, ["uniform", "line-search"], runs=1, budget=120)}
    for attack in ("uniform", "line-search"):
        assert rows[attack, "20 accounts"]["within twice"] == 1
