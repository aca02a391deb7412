"""What a gateway writes down about accounts, on a disk that is full, and then is not."""

import numpy as np
import pytest
from commandline import PASSPHRASE, copy_keep
from disks import fill
from sharing import FEATURES, ONE, Log, told

from modelkeep.app.evidence import Alarms
from modelkeep.app.keep import Keep
from modelkeep.errors import Unavailable
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.ladder import DEFAULT
from modelkeep.workflows.evidence import OwnEvidence
from modelkeep.workflows.spendings import Spendings, spendings
from modelkeep.workflows.watch import Observation

NETWORK = "net-00000000000000aa"
ACCOUNTS = 8


@pytest.fixture(scope="module")
def profile():
    return fit_profile(np.random.default_rng(1).normal(size=(240, FEATURES)), told, seed=1)


def accused(profile):
    """Evidence in which accounts of one network have just become a case, and have spent of their budgets."""
    evidence = OwnEvidence(Log(), Guard)
    evidence.take(DEFAULT._replace(questions=10.0))
    watch, rng = evidence.watch(ONE, profile), np.random.default_rng(8)
    for at in range(40 * ACCOUNTS):
        x = rng.uniform(-8, 8, (1, FEATURES))
        watch.offer(Observation(at, f"sub_{at % ACCOUNTS}", x, told(x), "one", 0.0, (NETWORK,)))
        watch.work()
        if watch.cases():
            assert watch.alarmed() == [] and watch.learnt(NETWORK).budget.share > 0.1
            return evidence
    raise AssertionError("never found")


def test_a_case_that_no_disk_takes_is_opened_once_and_whole_when_there_is_room(profile, template, small_disk):
    keep = Keep.open(copy_keep(template, small_disk / "keep"), PASSPHRASE.encode())
    evidence = accused(profile)
    alarms = Alarms(keep.premises, evidence, None)
    before = keep.premises.records.revision()
    ballast = fill(small_disk)
    for _ in range(3):  # as a gateway looks, again and again
        with pytest.raises(Unavailable) as refused:
            alarms.look()
        assert "full" in str(refused.value) and "\n" not in str(refused.value)
        assert (keep.cases(), keep.incidents()) == ((), ())
    assert keep.premises.records.revision() == before
    ballast.unlink()
    alarms.look()
    [case], [incident] = keep.cases(), keep.incidents()
    assert (case.id, case.state, case.accounts) == (NETWORK, "open", ACCOUNTS) and case.id in incident.id
    written = keep.premises.records.revision()
    alarms.look()
    assert keep.premises.records.revision() == written
    Alarms(keep.premises, evidence, None).look()  # of a gateway that has just started
    assert [(one.id, one.opened) for one in keep.cases()] == [(case.id, case.opened)] and len(keep.incidents()) == 1


def test_spendings_that_no_disk_takes_are_written_whole_when_there_is_room(profile, template, small_disk):
    keep = Keep.open(copy_keep(template, small_disk / "keep"), PASSPHRASE.encode())
    records, evidence = keep.premises.records, accused(profile)
    looking = Spendings(records, keep.premises.clock, evidence.by_release)
    ballast = fill(small_disk)
    for _ in range(3):
        with pytest.raises(Unavailable, match="full"):
            looking.look()
        assert list(spendings(records)) == []
    ballast.unlink()
    looking.look()
    watch = evidence.by_release()[ONE]
    assert {one.name for one in spendings(records)} == {NETWORK, *watch.subjects()}
    for one in spendings(records):
        assert one.spending.learnt == pytest.approx(watch.learnt(one.name).budget.equivalent)
