"""Calibrations as the evidence book folds them: what counts, and that nothing else does."""

import msgspec
import pytest
from test_custody_admission import KEEP, MODEL, REF, SCANNER, Log, facts

from modelkeep.core.values import ReleaseRef, Resource, digest_of
from modelkeep.custody.signing import release_statements
from modelkeep.ledger.predicates import Calibration
from modelkeep.ledger.statements import make_statement
from modelkeep.workflows.calibrations import bounds_in_force, calibrations_of, rounded_up

PROFILE = digest_of(b"plain profile")


@pytest.fixture
def log():
    return Log().add(*release_statements(facts()))


def calibrated(log, kappa=(0.1, 0.2), *, replaces=-1, at=5, model=MODEL, profile=PROFILE, ref=REF, signer=KEEP):
    said = Calibration(actor="bo", at=at, release=str(ref), id=f"{len(log.list):032x}", replaces=replaces, kappa=tuple(kappa))
    about = [Resource("m.onnx", model), *([Resource("profile", profile)] if profile else [])]
    return log.add(make_statement(said, *about), signer=signer)


def test_the_last_one_is_in_force_and_all_are_kept(log):
    assert bounds_in_force(log.book, REF) is None and calibrations_of(log.book, REF) == ()
    first = len(log.list)
    calibrated(calibrated(log, at=9), (0.3, 0.4), replaces=first, at=4)
    assert log.why == [] and bounds_in_force(log.book, REF) == (0.3, 0.4)
    assert [(one.at, one.kappa) for one in calibrations_of(log.book, REF)] == [(9, (0.1, 0.2)), (10, (0.3, 0.4))]
    assert calibrations_of(log.book, ReleaseRef("m", 2)) == ()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"profile": digest_of(b"another")}, "another extraction profile"),
        ({"profile": None}, "another extraction profile"),
        ({"model": digest_of(b"another")}, "another extraction profile"),
        ({"replaces": 0}, "does not name the one that it replaces"),
        ({"kappa": (0.1, 1.0)}, "outside"),
        ({"kappa": (0.0, 0.1)}, "outside"),
        ({"ref": ReleaseRef("m", 7)}, "m@7"),
        ({"signer": SCANNER}, "may not sign calibration"),
    ],
)
def test_what_does_not_count_changes_nothing(log, how, why):
    calibrated(log, **how)
    assert bounds_in_force(log.book, REF) is None
    assert why in log.why[-1]


def test_of_two_who_calibrate_at_once_one_succeeds_and_a_copy_counts_for_nothing(log):
    first = len(log.list)
    calibrated(log)
    log.add_raw(log.list[-1])
    calibrated(log, (0.5, 0.5))
    assert bounds_in_force(log.book, REF) == (0.1, 0.2) and len(log.why) == 2
    assert [index for index, _ in log.book.calibrations(REF)] == [first]


def test_a_statement_holds_bounds_that_are_never_lower():
    assert rounded_up([0.1234561, 0.5, 0.123456, 0.9999999]) == (0.123457, 0.5, 0.123456, 0.999999)
    assert msgspec.json.decode(msgspec.json.encode(rounded_up([0.1234561]))) == [0.123457]
