"""The dossier of a release: what counts of what was attested, and what does not."""

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_custody_admission import EVIL, KEEP, MODEL, PLAIN, REF, SCANNER, STRANGER, TRUST, Log, facts

from modelkeep.core.values import ReleaseRef, Resource, Statement, digest_of, to_json
from modelkeep.custody.admission import attributes
from modelkeep.custody.dossier import check_attestation
from modelkeep.custody.signing import release_statements
from modelkeep.custody.trust import TrustedIdentity
from modelkeep.errors import Invalid
from modelkeep.ledger import attestations as a
from modelkeep.ledger import predicates as p
from modelkeep.ledger import statements as s
from modelkeep.ledger.cosigned import Witnessed
from modelkeep.policy.admission import AdmissionPolicy

BY = {"actor": "ada", "at": 10**18}
APGD = a.Attack("apgd-ce", "linf", 0.1, 100)
DAY = 86_400 * 10**9


def measure(low, high=0.99):
    return a.Measure((low + high) / 2, low, high, 1000)


def hardening(low):
    return a.Hardening(**BY, method="pgd-at", attack=APGD, robust=measure(low), clean=measure(0.9))


def evaluation(low, attack=None, suite="holdout"):
    return a.Evaluation(**BY, suite=suite, metrics={"accuracy": measure(low)}, attack=attack)


def approval(actor, verdict="approve", ref=REF, nonce="00"):
    return a.Approval(actor=actor, at=1, release=str(ref), verdict=verdict, id=nonce * 16)


def audit(*severities, unaudited=(), at=10**18, snapshot_at=10**18):
    found = tuple(a.Advisory(f"GHSA-{i}", "numpy", "1.0", severity) for i, severity in enumerate(severities))
    said = {"source": "osv", "snapshot": EVIL, "snapshot_at": snapshot_at, "lock": EVIL, "audited": 3}
    return a.Vulnerabilities(actor="ada", at=at, **said, unaudited=unaudited, advisories=found)


def training(**code):
    said = {"run": "00" * 16, "command": ("python", "train.py"), "started": 1, "ended": 2}
    where = {"environment": a.Environment("3.11", "linux", EVIL), "machine": a.Machine("Linux")}
    return a.TrainingRun(**BY, **said, **where, code=a.Code(**code))


def say(log, *said, model=MODEL, signer=KEEP):
    about = (Resource("m", model),)
    return log.add(*(Statement(about, one.TYPE, msgspec.json.decode(to_json(one))) for one in said), signer=signer)


def later(ref):
    return msgspec.structs.replace(facts(ref), at=2)


@pytest.fixture
def log():
    return Log().add(*release_statements(facts()))


def seen(log, ref=REF, spent=None):
    return attributes(log.book, ref, spent=spent)


def test_evidence_may_come_before_the_release_and_after_it():
    log = say(Log(), a.Privacy(**BY, epsilon=3.0, delta=1e-5, accountant="prv"))
    log.add(*release_statements(facts()))
    assert seen(log)["private"] and (seen(log)["epsilon"], seen(log)["delta_ppb"]) == ("3.0000", 10_000)
    assert seen(log)["dataset_epsilon"] == "922337203685477.0000"  # nobody knows what else was trained on its data
    data = a.Salted("loans@3", digest_of(b"loans"))
    say(log, a.Privacy(**BY, epsilon=3.0, delta=1e-5, accountant="pld", dataset=data, dataset_epsilon=4.00001))
    assert seen(log)["dataset_epsilon"] == "922337203685477.0000"  # what a statement says was so when it was logged
    assert seen(log, spent=lambda said: said.epsilon + 2.00001)["dataset_epsilon"] == "5.0001"
    assert seen(log, spent=lambda _said: math.inf)["dataset_epsilon"] == "922337203685477.0000"
    assert data.digest in log.book.dossier(REF).data()
    say(log, a.Watermark(**BY, scheme="neuralmark", commitment="ab" * 32), training(commit="ab" * 20, signature="good"))
    assert [seen(log)[name] for name in ("watermark", "trained", "code_clean", "code_signed")] == [True] * 4
    assert seen(log)["code_commit"] == "ab" * 20 and log.why == []


@pytest.mark.parametrize("code", [{}, {"commit": "ab" * 20, "dirty": True}])
def test_code_that_no_commit_has_is_not_clean(log, code):
    assert not seen(say(log, training(**code)))["code_clean"]


@pytest.mark.parametrize("signature", ["none", "unknown", "bad", "GOOD"])
def test_only_a_good_signature_is_one(log, signature):
    assert not seen(say(log, training(commit="ab" * 20, signature=signature)))["code_signed"]


@pytest.mark.parametrize(("network", "isolated"), [("none", True), ("host", False)])
def test_a_run_that_had_the_network_was_not_isolated(log, network, isolated):
    assert not seen(say(log, training()))["isolated"]
    said = a.Isolation("bubblewrap 0.8.0", network, digest_of(b"filter"), digest_of(b"mounts"), "watched")
    assert seen(say(log, msgspec.structs.replace(training(), isolation=said)))["isolated"] is isolated


def test_what_is_said_of_another_file_or_by_a_stranger_counts_for_nothing(log):
    before = seen(log)
    said = hardening(0.8)
    say(log, said, model=EVIL)
    say(log, said, signer=STRANGER)
    say(log, said, signer=SCANNER)  # may sign scans only
    assert seen(log) == before


def test_the_last_word_of_a_type_counts(log):
    say(
        log,
        a.Privacy(**BY, epsilon=1.0, delta=0.0, accountant="prv"),
        a.Privacy(**BY, epsilon=9.5, delta=0.0, accountant="prv"),
    )
    assert seen(log)["epsilon"] == "9.5000"


def test_the_lowest_lower_bound_counts(log):
    say(log, hardening(0.81234), evaluation(0.7, APGD), evaluation(0.9), evaluation(0.85, suite="shifted"))
    assert (seen(log)["robust_accuracy"], seen(log)["accuracy"]) == ("0.7000", "0.8500")
    say(log, evaluation(0.9, APGD))  # the same suite and attack, measured again
    assert seen(log)["robust_accuracy"] == "0.8123"  # rounded down


def test_an_accuracy_under_an_alarm_counts_as_none(log):
    masked = msgspec.structs.replace(evaluation(0.9, APGD), alarms=("zero-gradient: at 80 of 100 rows",))
    say(log, evaluation(0.8, a.Attack("square", "linf", 0.1)), masked)
    assert (seen(log)["robust_accuracy"], seen(log)["robust_alarms"]) == ("0.0000", 1)
    say(log, evaluation(0.7, APGD))  # measured again, and no alarm rang
    assert (seen(log)["robust_accuracy"], seen(log)["robust_alarms"]) == ("0.7000", 0)


def test_an_accuracy_counts_with_the_radius_that_it_was_measured_at(log):
    """Else one under an attack that may change nothing would be robust."""

    def radii():
        return tuple(seen(log)[name] for name in ("robust_linf", "robust_l2", "robust_white_box"))

    assert radii() == ("0.0000", "0.0000", False)
    say(log, evaluation(0.9, a.Attack("square", "linf", 8 / 255, knowledge="black-box")))
    assert radii() == ("0.0313", "0.0000", False)
    say(log, hardening(0.8), evaluation(0.8, a.Attack("apgd-ce", "l2", 0.5, knowledge="white-box")))
    assert radii() == ("0.0313", "0.5000", True)
    say(log, msgspec.structs.replace(hardening(0.8), parameters={"rules": "sha256:" + "ab" * 32}))  # all columns frozen, say
    assert radii() == ("0.0000", "0.0000", True)
    say(log, hardening(0.79), evaluation(0.95, a.Attack("apgd-ce", "linf", 1e-9, 100)))
    assert radii() == ("0.0000", "0.5000", True)


def test_approvals_are_the_last_word_of_each_person(log):
    say(log, approval("bo"), approval("cy"), approval("bo", nonce="11"))
    assert (seen(log)["approvals"], seen(log)["rejections"]) == (2, 0)
    say(log, approval("cy", "reject"), approval("bo", "withdraw"))
    assert (seen(log)["approvals"], seen(log)["rejections"]) == (0, 1)
    assert log.book.dossier(REF).rejected_by == ("cy",)


@pytest.mark.parametrize("actor", ["ada", "operator@local", "control@local"])
def test_the_publisher_and_the_keep_itself_approve_nothing(log, actor):
    assert log.book.release(REF).history[0].actor == "ada"
    assert seen(say(log, approval(actor)))["approvals"] == 0


def test_the_publisher_may_reject_what_he_published(log):
    assert seen(say(log, approval("ada", "reject")))["rejections"] == 1
    assert seen(say(log, approval("keep@local", "reject", nonce="22")))["rejections"] == 1
    found = seen(say(log, approval("ada", nonce="33")))
    assert (found["approvals"], found["rejections"]) == (0, 0), "his last word is one that does not count"


def test_data_that_nothing_standing_names_is_not_looked_at(log):
    data = [digest_of(b"%d" % number) for number in range(3)]
    for number, digest in enumerate(data):
        log.add(s.make_statement(a.Dataset(**BY, name=f"d{number}", format="csv", size=9), Resource("d", digest)))
    for digest in data[:2]:
        say(log, msgspec.structs.replace(training(), inputs=(a.Salted("d", digest),)))
    say(log, msgspec.structs.replace(evaluation(0.9), dataset=a.Salted("d", data[2])))
    assert set(log.book.dossier(REF).datasets) == {data[1], data[2]}


def test_an_approval_is_of_one_release(log):
    again = ReleaseRef("m", 2)
    log.add(*release_statements(later(again)))  # the same file, released again
    say(log, approval("bo"))
    assert (seen(log)["approvals"], seen(log, again)["approvals"]) == (1, 0)
    say(log, approval("bo", ref=ReleaseRef("m", 9)), approval("bo", nonce="22"), model=EVIL)
    assert "no release m@9" in log.why[0] and "another model" in log.why[1]


def test_a_copy_of_an_approval_does_not_come_back(log):
    entry = s.sign_statement(s.make_statement(approval("bo"), PLAIN), KEEP)
    log.add_raw(entry)
    say(log, approval("bo", "withdraw"))
    log.add_raw(entry)
    assert seen(log)["approvals"] == 0 and "logged before" in log.why[-1]


def test_vulnerabilities_are_counted_by_severity_and_the_snapshot_has_an_age(log):
    say(log, audit("critical", "high", "high", "unknown", "low", unaudited=("mine",), at=31 * DAY + 1, snapshot_at=DAY))
    assert [seen(log)[name] for name in ("audited", "critical", "high", "ungraded", "unaudited")] == [True, 1, 2, 1, 1]
    assert seen(log)["snapshot_age_days"] == 31  # 30 days and a moment: rounded up
    assert seen(say(log, audit()))["critical"] == 0


def test_a_snapshot_from_the_future_is_no_fresh_one(log):
    assert seen(say(log, audit(at=DAY, snapshot_at=41 * DAY)))["snapshot_age_days"] == 40
    assert seen(say(log, audit(at=DAY, snapshot_at=10**22)))["snapshot_age_days"] == 1_000_000


def test_a_later_scan_takes_the_place_of_the_one_named_at_release(log):
    bad = p.Scan(
        **BY, scanner="modelkeep", rules_version="9", format="onnx", size=90, clean=False, findings=(p.Finding("a", "b", "c"),)
    )
    log.state("promote").add(s.make_statement(bad, PLAIN))
    found = log.book.release(REF)
    assert (found.scan, found.entries["scan"]) == (bad, 5) and seen(log)["scanner"] == "modelkeep/9"
    assert not AdmissionPolicy.profile("standard").judge(seen(log)).admitted
    log.add(*release_statements(later(ReleaseRef("m", 2))))  # published again: its scan is the newest
    assert seen(log, ReleaseRef("m", 2))["scan_clean"] and seen(log)["scan_clean"]
    other = s.make_statement(msgspec.structs.replace(bad, rules_version="10"), Resource("m", EVIL))
    assert log.add(other, signer=SCANNER).book.release(REF).scan.clean
    assert log.add(s.make_statement(bad, PLAIN), signer=STRANGER).book.release(REF).scan.clean


def test_an_old_clean_scan_does_not_hide_a_newer_finding():
    first, *rest = release_statements(facts())
    bad = p.Scan(**BY, scanner="modelkeep", rules_version="9", format="onnx", size=90, clean=False)
    log = Log().add(first, s.make_statement(bad, PLAIN), *rest)  # the release names the clean one
    assert log.book.release(REF).scan == bad and not seen(log)["scan_clean"]


def test_what_no_quorum_covers_is_not_logged(log):
    log.state("promote")  # entry 4
    for size, logged in ((0, False), (4, False), (5, True)):
        found = attributes(log.book, REF, Witnessed(size, ("w1", "w2")))
        assert (found["logged"], found["witnesses"]) == (logged, 2 if logged else 0)
    log.state("quarantine").state("reinstate").state("promote")  # entry 7: the promotion in force must be covered
    assert not attributes(log.book, REF, Witnessed(7, ("w1",)))["logged"]
    say(log, approval("bo"))  # what is said later may wait for its witnesses
    assert attributes(log.book, REF, Witnessed(8, ("w1",)))["logged"]


def test_no_scanner_takes_back_what_another_found(log):
    told = {**BY, "rules_version": "9", "format": "onnx", "size": 90}

    def scanned(scanner, clean, signer):
        log.add(s.make_statement(p.Scan(**told | {"at": len(log.list)}, scanner=scanner, clean=clean), PLAIN), signer=signer)
        return seen(log)["scan_clean"]

    assert not scanned("theirs", False, SCANNER)
    assert not scanned("modelkeep", True, KEEP), "by itself the keep judges again what another scanner judged last"
    assert not scanned("theirs", True, KEEP), "nor in its name"
    assert scanned("theirs", True, SCANNER)
    assert not scanned("modelkeep", False, KEEP)
    assert not scanned("modelkeep", True, SCANNER), "whoever may sign scans hides no finding of the keep"
    assert scanned("modelkeep", True, KEEP)
    assert not scanned("theirs", False, SCANNER)
    remove = p.Trust(actor="ada", at=1, change="remove", name=SCANNER.name, id="ab" * 16)
    log.add(s.make_statement(remove, s.keep_resource(TRUST.origin)))
    assert not seen(log)["scan_clean"] and scanned("modelkeep", True, KEEP), "its signer was ended, by somebody"


def test_a_scan_that_confirms_what_is_served_may_wait_for_its_witnesses(log):
    log.state("promote")  # entry 4
    told = {"scanner": "modelkeep", "format": "onnx", "size": 90}
    clean = p.Scan(**BY, **told, rules_version="9", clean=True)
    log.add(s.make_statement(clean, PLAIN))
    found = attributes(log.book, REF, Witnessed(5, ("w1",)))
    assert (found["scanner"], found["logged"], found["witnesses"]) == ("modelkeep/9", True, 1)
    log.add(s.make_statement(p.Scan(**BY, **told, rules_version="10", clean=False), PLAIN))
    assert not attributes(log.book, REF, Witnessed(5, ("w1",)))["scan_clean"], "a finding waits for nobody"
    log.add(s.make_statement(msgspec.structs.replace(clean, rules_version="11"), PLAIN))  # entry 7 clears it
    assert [attributes(log.book, REF, Witnessed(size, ("w1",)))["logged"] for size in (7, 8)] == [False, True]


BAD = {
    "a probability above 1": hardening(1.5),
    "no examples": a.Evaluation(**BY, suite="s", metrics={"accuracy": a.Measure(0.5, 0.4, 0.6, 0)}),
    "an interval that does not hold its value": a.Evaluation(
        **BY, suite="s", metrics={"accuracy": a.Measure(0.5, 0.6, 0.7, 9)}
    ),
    "a confidence of 1": a.Evaluation(**BY, suite="s", metrics={"accuracy": a.Measure(0.5, 0.4, 0.6, 9, 1.0)}),
    "negative epsilon": a.Privacy(**BY, epsilon=-1.0, delta=0.0, accountant="prv"),
    "endless epsilon": a.Privacy(**BY, epsilon=float("inf"), delta=0.0, accountant="prv"),
    "delta of 1": a.Privacy(**BY, epsilon=1.0, delta=1.0, accountant="prv"),
    "no accountant": a.Privacy(**BY, epsilon=1.0, delta=0.0, accountant=""),
    "a short commitment": a.Watermark(**BY, scheme="s", commitment="ab"),
    "an unknown verdict": approval("bo", "maybe"),
    "an unknown severity": audit("grave"),
    "an attack without a name": evaluation(0.5, a.Attack("", "linf", 0.1)),
    "a negative radius": evaluation(0.5, a.Attack("apgd", "linf", -0.1)),
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
def test_values_beyond_their_bounds_count_for_nothing(log, said):
    with pytest.raises(Invalid):
        check_attestation(said)
    before = seen(log)
    assert seen(say(log, said)) == before and len(log.why) == 1


@given(st.lists(st.sampled_from(["approve", "reject", "withdraw"]), max_size=12), st.data())
@settings(max_examples=40, deadline=None)
def test_people_count_once_whatever_they_say(verdicts, data):
    log, last = Log().add(*release_statements(facts())), {}
    for number, verdict in enumerate(verdicts):
        who = data.draw(st.sampled_from(["bo", "cy", "di"]))
        last[who] = verdict
        say(log, approval(who, verdict, nonce=f"{number:02x}"))
    found = seen(log)
    assert found["approvals"] == list(last.values()).count("approve")
    assert found["rejections"] == list(last.values()).count("reject")


def test_a_limited_identity_attests_only_about_its_models():
    trusted = [
        msgspec.structs.replace(each, may_sign=("*",), releases=("other-*",)) if each.name == SCANNER.name else each
        for each in TRUST.identities
    ]
    log = Log(msgspec.structs.replace(TRUST, identities=tuple(trusted)))
    log.add(*release_statements(facts()))
    log.add(*release_statements(later(ReleaseRef("other-m", 1))))
    say(log, hardening(0.8), signer=SCANNER)
    assert (seen(log)["hardened"], seen(log, ReleaseRef("other-m", 1))["hardened"]) == (False, True)
    say(log, approval("bo"), signer=SCANNER)
    assert seen(log)["approvals"] == 0 and log.why


def test_a_stolen_key_takes_away_no_more_than_it_ever_spoke_about():
    for may_sign, releases, state in (
        (("scan",), ("*",), "published"),
        (("*",), ("other-*",), "published"),
        (("scan", "state"), ("m",), "quarantined"),
    ):
        stolen = TrustedIdentity(SCANNER.public, may_sign, until=0, releases=releases, compromised=True)
        kept = tuple(each for each in TRUST.identities if each.name != SCANNER.name)
        log = Log(msgspec.structs.replace(TRUST, identities=(*kept, stolen))).add(*release_statements(facts()))
        log.state("quarantine", signer=SCANNER)
        assert log.book.release(REF).state == state


def test_attestations_about_one_file_are_bounded_and_the_newest_count(monkeypatch, log):
    monkeypatch.setattr("modelkeep.custody.dossier.MAX_ATTESTATIONS", 3)
    for number in range(5):
        say(log, evaluation(0.9, suite=f"suite-{number}"))
    say(log, evaluation(0.2, suite="suite-9"))
    assert seen(log)["accuracy"] == "0.2000" and log.why == []
    say(log, *(a.Privacy(actor="ada", at=number, epsilon=float(number), delta=0.0, accountant="prv") for number in range(9)))
    assert seen(log)["epsilon"] == "8.0000"  # what is said again takes a place that it has
    kept = [one.said.epsilon for one in log.book.attestations.about(MODEL, REF.name) if isinstance(one.said, a.Privacy)]
    assert kept == [5.0, 6.0, 7.0, 8.0]


def test_however_much_was_said_a_vulnerability_and_a_rejection_count(monkeypatch, log):
    monkeypatch.setattr("modelkeep.custody.dossier.MAX_ATTESTATIONS", 3)
    say(log, *(evaluation(0.9, suite=f"suite-{number}") for number in range(5)), *(audit(at=10**18 + n) for n in range(5)))
    say(log, audit("critical"), approval("bo", "reject"))
    assert (seen(log)["critical"], seen(log)["rejections"]) == (1, 1)


def test_who_may_not_speak_about_a_model_fills_nothing_up(monkeypatch):
    monkeypatch.setattr("modelkeep.custody.dossier.MAX_ATTESTATIONS", 3)
    trusted = [
        msgspec.structs.replace(each, may_sign=("*",), releases=("other-*",)) if each.name == SCANNER.name else each
        for each in TRUST.identities
    ]
    log = Log(msgspec.structs.replace(TRUST, identities=tuple(trusted))).add(*release_statements(facts()))
    for number in range(9):
        say(log, evaluation(0.9, suite=f"s{number}"), signer=SCANNER)
    say(log, evaluation(0.4, suite="ours"))
    assert (seen(log)["accuracy"], log.why) == ("0.4000", [])


def test_a_flood_drowns_nothing_that_others_said(monkeypatch, log):
    monkeypatch.setattr("modelkeep.custody.dossier.MAX_ATTESTATIONS", 3)
    say(log, approval("bo", "reject"), audit("critical"))
    for number in range(5):
        say(log, evaluation(0.9, suite=f"s{number}"), approval("cy", nonce=f"{number:02x}"))
    say(log, approval("di"), hardening(0.3))
    assert [seen(log)[name] for name in ("rejections", "critical", "approvals")] == [1, 1, 2]
    assert seen(log)["robust_accuracy"] == "0.3000"


def test_data_sets_are_about_themselves(log):
    data = digest_of(b"salted")
    said = a.Dataset(**BY, name="loans@3", format="csv", size=9)
    log.add(s.make_statement(said, Resource("loans@3", data)))
    assert [each.said for each in log.book.attestations.about(data, "m")] == [said]
    assert log.why == []
