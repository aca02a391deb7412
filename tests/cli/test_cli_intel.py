"""Advisory snapshots, dependencies and bills of materials from the command line."""

import json
import sys

import msgspec
import pytest
from advisories import affected, archive, events, record, snapshot

from modelkeep.app.control import CONTROL, open_control
from modelkeep.app.handover import open_for
from modelkeep.app.keep import Keep
from modelkeep.app.verbs import call, table
from modelkeep.core.values import Principal, Resource, Role, digest_of
from modelkeep.custody.keys import FAMILIES
from modelkeep.errors import Conflict, Denied, Missing, NotTrusted
from modelkeep.ledger.attestations import Code, Environment, Machine, Salted, TrainingRun
from modelkeep.ledger.statements import make_statement

ALLOWED = {"MODELKEEP_INTEL_MAX_AGE_DAYS": "3650"}
"""The records of these tests have fixed dates, and the days go by."""


@pytest.fixture
def house(cli):
    return cli.with_environment(**ALLOWED)


@pytest.fixture
def zips(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return str(tmp_path / name)

    return write


def opened(cli):
    return Keep.open(cli.keep, lambda: cli.passphrase_file.read_bytes().strip())


def train(cli, packages, *, at=1):
    """A training run of risk@1, as ``modelkeep run`` would log it."""
    here = opened(cli).premises
    known = here.registry().release(opened(cli).ref("risk@1"))
    said = TrainingRun(
        actor="acc_1", at=at, run="ab" * 16, command=("python", "train.py"), code=Code(commit="cd" * 20),
        environment=Environment("3.12", "linux", digest_of(b"x"), packages), machine=Machine("Linux"), started=at, ended=at + 1,
        inputs=(Salted("loans@3", digest_of(b"salt")),), outputs={known.filename: known.model},
    )  # fmt: skip
    here.desk().log_statements([make_statement(said, Resource(known.filename, known.model))])


def looked_up(cli):
    """Every statement about vulnerabilities of risk@1."""
    registry = opened(cli).premises.registry()
    ref = opened(cli).ref("risk@1")
    seen = [
        registry.book.dossier(ref, until).vulnerabilities
        for until in range(registry.release(ref).index + 1, registry.book.size + 1)
    ]
    return [told.said for told in {told.index: told for told in seen if told is not None}.values()]


def test_a_snapshot_is_imported_and_shown(house, zips):
    assert "no advisory snapshot" in house("intel", "show", code=2).line()
    done = house("--json", "intel", "import", zips("all.zip", snapshot()), code=0).json
    assert (done["advisories"], done["withdrawn"], done["others"], done["packages"]) == (5, 1, 1, 3)
    assert done["snapshot"] == digest_of(snapshot()) and not done["stale"]
    shown = house("intel", "show", code=0).out
    assert "days old" in shown and "2026-11-20 10:00:00Z" in shown and f"log entry {done['log_index']}" in shown
    assert "intel.import" in house("log", "show", "--last", "1", code=0).out
    (file,) = (house.keep / "intel").iterdir()
    assert oct(file.stat().st_mode)[-3:] == "600" and oct(file.parent.stat().st_mode)[-3:] == "700"


def test_only_a_newer_snapshot_takes_the_place_of_another_unless_told(house, zips):
    newer = zips("new.zip", snapshot("2026-11-24T00:00:00Z"))
    older = zips("old.zip", snapshot("2026-11-19T00:00:00Z"))
    house("intel", "import", newer, code=0)
    assert "--older" in house("intel", "import", older, code=1).line()
    assert "2026-11-24" in house("intel", "show", code=0).out
    house("intel", "import", newer, code=0)  # again
    house("intel", "import", older, "--older", code=0)
    assert "2026-11-19" in house("intel", "show", code=0).out
    for number in range(3):
        house("intel", "import", zips("next.zip", snapshot(f"2026-11-25T00:00:0{number}Z")), code=0)
    assert len(list((house.keep / "intel").iterdir())) == 2


def test_what_is_no_snapshot_leaves_the_one_in_force(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    before = house("--json", "intel", "show", code=0).json
    for data in (b"", b"PK\x03\x04", snapshot()[:-9], archive(record("X-\x1b[2J", affected("p")))):
        assert "\x1b" not in house("intel", "import", zips("bad.zip", data), code=2).line()
    assert "there is no file" in house("intel", "import", "nowhere.zip", code=2).line()
    assert house("--json", "intel", "show", code=0).json == before


def test_an_altered_snapshot_is_not_believed(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    (file,) = (house.keep / "intel").iterdir()
    file.write_bytes(file.read_bytes().replace(b'"critical"', b'"low"'))
    assert "was altered" in house("intel", "check", "--lock", zips("r.txt", b"torch==2.1.0"), code=1).line()
    house("intel", "import", zips("all.zip", snapshot()), code=0)  # mends it
    house("intel", "show", code=0)
    here = opened(house).premises
    found = here.records.get("intel", "current")
    from modelkeep.core.ports import Change

    wrong = found.body.replace(b'"log_index":', b'"log_index":1')
    here.records.commit([Change("intel", "current", wrong, found.revision)])
    assert "import it again" in house("intel", "show", code=1).line()


def test_lock_files_without_a_release_are_only_printed(house, zips):
    lock = zips("requirements.txt", b"numpy==2.1.0\nJinja2==3.1.5\n")
    before = house("--json", "status", code=0).json["log_size"]
    ran = house("intel", "check", "--lock", lock, code=1)
    assert "NOT CLEAN" in ran.out and "no advisory snapshot was imported" in ran.out
    assert house("--json", "status", code=0).json["log_size"] == before
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    assert "clean, 2 of 2 packages audited" in house("intel", "check", "--lock", lock, code=0).out
    bad = zips("bad.txt", b"torch==2.1.0+cu118\nJinja2==3.1.4\n")
    ran = house("intel", "check", "--lock", bad, code=1)
    assert "critical 9.8  torch 2.1.0+cu118  GHSA-aaaa-bbbb-cccc, mended in 2.2.0" in ran.out
    assert "2 known vulnerabilities, 1 critical, 1 medium" in ran.out
    assert house("--json", "status", code=0).json["log_size"] == before + 1  # the import


@pytest.mark.parametrize(
    "lock",
    [
        b"numpy",
        b"numpy>=2",
        b"-e ./mine\nnumpy==2.1.0",
        b"numpy @ git+https://example.org/n",
        b"odd==1\nnumpy==2.1.0",
        b"-r other.txt",
    ],
)
def test_what_was_not_audited_is_never_clean(house, zips, lock):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    ran = house("--json", "intel", "check", "--lock", zips("r.txt", lock), code=1).json
    assert not ran["clean"] and len(ran["unaudited"]) == 1 and ran["advisories"] == []
    assert any("could not be audited" in reason for reason in ran["reasons"])


def test_a_snapshot_that_is_too_old_makes_nothing_clean(cli, zips):
    cli("intel", "import", zips("all.zip", snapshot("2025-11-01T00:00:00Z")), code=0)
    found = cli("intel", "show", code=1).out
    assert "TOO OLD" in found and "import a newer one" in found
    ran = cli("intel", "check", "--lock", zips("r.txt", b"numpy==2.1.0"), code=1).out
    assert "older than allowed" in ran
    train(cli, {"numpy": "2.1.0"})
    assert not cli("--json", "intel", "check", "risk@1", code=1).json["clean"]
    (said,) = looked_up(cli)  # logged all the same: whoever judges it sees the age
    assert said.snapshot_at < 1_770_000_000 * 10**9


def test_an_interpreter_is_asked_for_its_packages(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    ran = house("--json", "intel", "check", "--python", sys.executable)
    assert ran.json["packages"] > 50 and ran.code == 1
    assert any(one.startswith("modelkeep: it comes from a folder, editable") for one in ran.json["unaudited"])
    assert "no interpreter" in house("intel", "check", "--python", "/nowhere/python", code=2).line()
    assert "no Python interpreter" in house("intel", "check", "--python", "/bin/true", code=2).line()


def test_a_release_is_checked_by_its_training_run_and_the_statement_logged(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    ran = house("--json", "intel", "check", "risk@1", code=1).json
    assert ran["log_index"] is None and "nothing says which packages" in ran["reasons"][0]
    train(house, {"numpy": "2.1.0", "torch": "2.1.0", "odd": "7"})
    ran = house("--json", "intel", "check", "risk@1", code=1).json
    (said,) = looked_up(house)
    assert [(one.id, one.severity) for one in said.advisories] == [("GHSA-aaaa-bbbb-cccc", "critical")]
    assert (said.audited, said.unaudited) == (2, ("odd==7: OSV-2024-1 cannot be compared with a version",))
    assert said.snapshot == digest_of(snapshot()) and said.lock == digest_of(b"numpy==2.1.0\nodd==7\ntorch==2.1.0\n")
    assert ran["new_critical"] == ["GHSA-aaaa-bbbb-cccc"]
    incidents = house("--json", "incident", "list", code=0).json
    assert [one["id"] for one in incidents] == ["vulnerability:risk@1:GHSA-aaaa-bbbb-cccc"]
    house("incident", "resolve", incidents[0]["id"], "--note", "accepted", code=0)
    assert house("--json", "intel", "check", "risk@1", code=1).json["new_critical"] == []
    assert [one["state"] for one in house("--json", "incident", "list", code=0).json] == ["resolved"]
    train(house, {"numpy": "2.1.0"}, at=2)  # the last run counts
    assert house("intel", "check", "risk@1", code=0).out.startswith("risk@1: clean, 1 of 1 packages audited")


def test_releases_are_checked_again_when_a_snapshot_is_imported(house, zips):
    house("intel", "check", "--all", code=1)
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    lock = zips("requirements.txt", b"numpy==2.1.0\nfresh==1.0\n-e ./mine\n")
    assert house("--json", "intel", "check", "risk@1", "--lock", lock, code=1).json["log_index"]
    control = opened(house).acting_as(CONTROL)
    done = control.intel_due("")
    assert done and control.intel_due(done) == done and len(looked_up(house)) == 1  # this snapshot was asked already
    worse = record("GHSA-new", affected("fresh", events(("introduced", "0"))), modified="2026-11-25T00:00:00Z",
                   severity=[{"type": "CVSS_V3", "score": "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H"}])  # fmt: skip
    house("intel", "import", zips("new.zip", archive(worse)), code=0)
    assert control.intel_due(done) != done
    before, after = looked_up(house)
    assert (before.advisories, [one.id for one in after.advisories]) == ((), ["GHSA-new"])
    assert before.unaudited == after.unaudited != ()  # what the lock file could not say, nobody can say now
    assert before.lock == after.lock
    assert "GHSA-new" in house("incident", "list", code=0).out
    assert not house("--json", "intel", "check", "--all", code=1).json[0]["clean"]
    house("retire", "risk@1", "--reason", "vulnerable", code=0)
    assert house("--json", "intel", "check", "--all", code=0).json == []


def test_a_lock_file_that_said_more_is_asked_about_again_until_the_model_is_trained_anew(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    train(house, {"numpy": "2.1.0"})
    house("intel", "check", "risk@1", "--lock", zips("all.txt", b"numpy==2.1.0\ntorch==2.1.0\n"), code=1)
    again = house("--json", "intel", "check", "--all", code=1).json[0]
    assert (again["packages"], again["new_critical"]) == (2, [])
    train(house, {"NumPy": "2.1.0"}, at=2)
    assert house("--json", "intel", "check", "--all", code=0).json[0]["packages"] == 1
    assert looked_up(house)[-1].lock == digest_of(b"NumPy==2.1.0\n")  # as the run has it
    assert house("--json", "intel", "check", "--all", code=0).json[0]["packages"] == 1


def test_a_run_without_packages_is_not_audited(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    train(house, {})
    ran = house("--json", "intel", "check", "risk@1", code=1).json
    assert ran["log_index"] is None and "nothing says which packages" in ran["reasons"][0] and not looked_up(house)
    assert house("--json", "intel", "check", "--all", code=1).json[0]["log_index"] is None


def test_what_a_lock_file_could_not_say_stays_unaudited_though_its_pins_are_those_of_the_run(house, zips):
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    train(house, {"numpy": "2.1.0"})
    house("intel", "check", "risk@1", "--lock", zips("r.txt", b"numpy==2.1.0\n-e ./mine\n"), code=1)
    again = house("--json", "intel", "check", "--all", code=1).json[0]
    assert again["unaudited"] == ["'./mine': it is editable, not from an index of published versions"]
    assert looked_up(house)[-1].unaudited == looked_up(house)[0].unaudited


def test_control_checks_again_with_the_keys_that_it_was_handed(house, zips):
    train(house, {"torch": "2.1.0"})
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    control = open_control(house.keep, open_for(opened(house).premises, FAMILIES), lambda _text: None)
    control._intel()
    control._intel()
    (said,) = looked_up(house)
    assert (said.actor, [one.id for one in said.advisories]) == ("control@local", ["GHSA-aaaa-bbbb-cccc"])
    control.stop()


def test_usage(house, zips):
    lock = zips("r.txt", b"numpy==1")
    for words in (("--all", "risk@1"), ("--all", "--lock", lock), (), ("risk@7",), ("risk@1", "--lock", "nowhere"), ("risk",)):
        house("intel", "check", *words, code=2).line()


def test_who_may(house):
    keep = opened(house)

    def as_(role):
        return keep.acting_as(Principal("x", "acc_x", (role,), "key:1"))

    for role in (Role.ANALYST, Role.ML_ENGINEER, Role.DATA_SCIENTIST):
        with pytest.raises(Denied):
            as_(role).intel_import(snapshot=snapshot())
    for refused in (lambda: as_(Role.ANALYST).intel_check(ref="risk@1"), lambda: as_(Role.ANALYST).intel_check_all(),
                    lambda: as_(Role.ANALYST).intel_due(""), lambda: as_(Role.ANALYST).bom_record(ref="risk@1")):  # fmt: skip
        with pytest.raises(Denied):
            refused()
    assert not as_(Role.ANALYST).intel_audit(locks={"r.txt": b"numpy==1"}).clean
    assert as_(Role.ANALYST).bom(ref="risk@1").components == 1
    assert as_(Role.DATA_SCIENTIST).intel_check(ref="risk@1", locks={"r.txt": b"numpy==1"}).log_index is None


def test_the_verbs_travel(house):
    keep, verbs = opened(house), table(Keep)

    def ask(name, **arguments):
        return msgspec.msgpack.decode(call(verbs, keep, name, msgspec.msgpack.encode(arguments)), type=verbs[name].result)

    assert ask("intel_import", snapshot=snapshot()) == ask("intel_show")
    locks = {"r.txt": b"torch==2.1.0"}
    found = ask("intel_audit", locks=locks)
    assert found == msgspec.structs.replace(
        ask("intel_check", ref="risk@1", locks=locks), ref="", log_index=None, new_critical=()
    )
    assert [one.id for one in found.advisories] == ["GHSA-aaaa-bbbb-cccc"]
    assert ask("intel_check_all")[0].advisories == found.advisories
    made = ask("bom", ref="risk@1")
    assert ask("bom_check", ref="risk@1", digest=made.digest, through=made.through).digest == digest_of(made.document)
    for digest, through in ((digest_of(b"x"), made.through), (made.digest, made.through - 1), (made.digest, made.through + 1)):
        with pytest.raises((NotTrusted, Conflict)):
            keep.bom_check(ref="risk@1", digest=digest, through=through)
    for through in (0, -5):
        with pytest.raises(Missing):
            keep.bom_check(ref="risk@1", digest=made.digest, through=through)


def test_a_lock_file_hides_nothing_that_the_model_was_trained_with(house, zips):
    train(house, {"numpy": "2.1.0", "torch": "2.1.0"})
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    found = house("--json", "intel", "check", "risk@1", "--lock", zips("r.txt", b"idna==3.7"), code=1).json
    assert (found["packages"], [one["package"] for one in found["advisories"]]) == (3, ["torch"])
    assert "critical" in house("policy", "check", "risk@1", code=1).out
    again = house("--json", "intel", "check", "--all", code=1).json  # nor the next time, when the lock file is not given again
    assert [one["packages"] for one in again] == [3]


def test_an_environment_without_packages_is_not_audited(house, zips):
    train(house, {})
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    house("intel", "check", "risk@1", code=1)
    facts = house("--json", "policy", "explain", "risk@1", code=0).json["facts"]
    assert (facts["audited"], facts["critical"]) == (False, 0)


def test_a_bill_of_materials_can_be_made_again_and_compared(house, zips, tmp_path):
    train(house, {"numpy": "2.1.0", "torch": "2.1.0"})
    house("intel", "import", zips("all.zip", snapshot()), code=0)
    house("intel", "check", "risk@1", code=1)
    out = str(tmp_path / "bom.json")
    first = house("--json", "bom", "risk@1", "--out", out, "--record", code=0).json
    document = (tmp_path / "bom.json").read_bytes()
    assert first["digest"] == digest_of(document) and json.loads(document)["serialNumber"] == first["serial"]
    assert house("bom", "risk@1", code=0).out.encode() == document  # recording it changed nothing
    assert (
        house("--json", "bom", "risk@1", "--out", str(tmp_path / "2"), "--record", code=0).json["log_index"]
        == first["log_index"]
    )
    said = house("bom", "risk@1", "--check", out, code=0).out
    assert "nothing was said since" in said and f"recorded: {first['log_index']}" in said
    house("intel", "check", "risk@1", "--lock", zips("r.txt", b"numpy==2.1.0"), code=1)
    again = house("--json", "bom", "risk@1", "--check", out, code=0).json
    assert again["later"] == 1 and again["recorded"] == [first["log_index"]]
    assert house("bom", "risk@1", code=0).out.encode() != document
    model = json.loads(document)["metadata"]["component"]
    assert (
        model["hashes"][0]["content"]
        == opened(house).premises.registry().book.dossier(opened(house).ref("risk@1")).release.about[7:]
    )
    for changed in (
        document.replace(b"torch", b"tarch"),
        document[:-1],
        document.replace(b'"through"', b'"through"')[:-2] + b" }\n",
    ):
        assert "is not what the first" in house("bom", "risk@1", "--check", zips("x", changed), code=1).line()
    far = document.replace(b'"modelkeep:log:through",\n        "value": "', b'"modelkeep:log:through",\n        "value": "99')
    assert far != document and "fewer here" in house("bom", "risk@1", "--check", zips("x", far), code=1).line()
    assert "modelkeep wrote" in house("bom", "risk@1", "--check", zips("x", b"{}"), code=2).line()
    house("bom", "risk@1", "--check", out, "--record", code=2)
    house("bom", "nobody@1", code=2)
    house("log", "verify", code=0)
