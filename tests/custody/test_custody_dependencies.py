"""Packages against a snapshot: clean is said of nothing that was not looked up, and a statement always fits the log."""

import datetime

import msgspec
import pytest
from advisories import affected, archive, events, record

from modelkeep.core.values import Resource, digest_of
from modelkeep.custody.dependencies import DAY, Checked, check_packages, remembered, vulnerabilities_statement
from modelkeep.custody.lockfiles import Packages, parse_locks
from modelkeep.custody.osv import read_snapshot
from modelkeep.errors import Missing
from modelkeep.ledger.attestations import Advisory, Vulnerabilities
from modelkeep.ledger.statements import MAX_ENTRY, encode_statement, predicate_of

NEWEST = int(datetime.datetime(2026, 11, 20, tzinfo=datetime.UTC).timestamp()) * 10**9
INDEX = read_snapshot(
    archive(
        record("A-1", affected("bad", events(("introduced", "0"))), modified="2026-11-20T00:00:00Z"),
        record("B-1", affected("odd", events(("introduced", "0"), type="SEMVER")), modified="2026-01-01T00:00:00Z"),
    ),
    source="test",
    now_ns=NEWEST + DAY,
)
GOOD = Packages((("good", "1"),))


def checked(packages, index=INDEX, *, days=0, allowed=14):
    return check_packages(packages, index, now_ns=NEWEST + days * DAY, max_age_days=allowed)


def test_clean_and_the_edge_of_age():
    assert checked(GOOD).clean and checked(GOOD, days=14).clean and checked(GOOD, days=14).age == 14
    late = checked(GOOD, days=15)
    assert not late.clean and "1 day older than allowed" in late.reasons[0]
    assert checked(GOOD, days=-3).age == 0  # a clock that goes wrong makes no snapshot younger than new


@pytest.mark.parametrize(
    ("packages", "index", "reason"),
    [
        (GOOD, None, "no advisory snapshot"),
        (Packages(()), INDEX, "no package was audited"),
        (Packages((("good", "1"),), ("p: it is not pinned",)), INDEX, "1 package could not be audited"),
        (Packages((("good", "1"), ("odd", "1"))), INDEX, "1 package could not be audited"),
        (Packages((("good", "1"), ("bad", "1"))), INDEX, "1 known vulnerability, 1 unknown"),
        (Packages((("good", "1"), ("good", "latest"))), INDEX, None),
    ],
)
def test_everything_else_is_not_clean(packages, index, reason):
    found = checked(packages, index)
    assert found.clean is (reason is None and "latest" not in str(packages))
    assert reason is None or any(reason in one for one in found.reasons)


def test_without_a_snapshot_every_package_is_unaudited():
    found = checked(Packages((("a", "1"), ("b", "2")), ("c: editable",)), None)
    assert len(found.unaudited) == 3 and found.age == -1 and found.audited == 0


def statement(found, packages=GOOD):
    model = Resource("model.onnx", digest_of(b"m"))
    return vulnerabilities_statement(model, packages, found, INDEX, actor="acc_1", at=1)


def test_what_does_not_fit_a_statement_is_named_as_unaudited():
    worst = Advisory("A" * 80, "b" * 128, "1" * 128, "critical", 9.8, ("1" * 128,) * 6, ("C" * 80,) * 8)
    many = tuple(msgspec.structs.replace(worst, id=f"{number:080}", severity="low") for number in range(500))
    found = Checked(0, 1, tuple(f"package-{number}: {'why ' * 100}" for number in range(900)), (worst, *many), ("bad",))
    said = predicate_of(statement(found), Vulnerabilities)
    assert said.advisories[0] == worst and 10 < len(said.advisories) < 501
    assert f"{501 - len(said.advisories)} further advisories" in said.unaudited[-2] and "further packages" in said.unaudited[-1]
    payload = len(encode_statement(statement(found)))
    assert payload * 4 // 3 + 5_200 < MAX_ENTRY  # base64, and what an envelope and two signatures take
    small = Checked(0, 1, ("x: y",), (worst,), ("bad",))
    assert (statement(small).predicate["unaudited"], len(statement(small).predicate["advisories"])) == (["x: y"], 1)


def test_an_earlier_look_is_remembered_with_what_its_lock_could_not_say():
    packages = parse_locks({"r.txt": b"odd==1\ngood==1\n-e ./mine\n"})
    said = predicate_of(statement(checked(packages), packages), Vulnerabilities)
    assert len(said.unaudited) == 2
    again = remembered(packages.pins, said)
    assert again == packages  # odd is asked anew, the editable one stays
    for pins in ((), (("good", "1"),), (*packages.pins, ("more", "1"))):
        with pytest.raises(Missing):
            remembered(pins, said)


def test_a_count_of_what_was_left_out_is_remembered_too():
    found = Checked(0, 1, tuple(f"package-{number}: {'why ' * 100}" for number in range(900)), (), ("bad",))
    said = predicate_of(statement(found), Vulnerabilities)
    assert not checked(remembered(GOOD.pins, said)).clean
