import pytest

from modelkeep.errors import Invalid, NotAdmitted
from modelkeep.policy.admission import PROFILES, AdmissionPolicy

GOOD = {
    "name": "credit-risk",
    "version": 1,
    "state": "promoted",
    "format": "onnx",
    "size": 1000,
    "custody": "sealed",
    "signer": "keep",
    "scanned": True,
    "scan_clean": True,
    "scanner": "modelkeep/1",
    "profile": True,
}
OPEN, STANDARD = AdmissionPolicy.profile("open"), AdmissionPolicy.profile("standard")


@pytest.mark.parametrize("name", PROFILES)
def test_good_evidence_is_admitted(name):
    policy = AdmissionPolicy.profile(name)
    assert policy.decide(GOOD) == ("promoted-release",)
    assert policy.explain(GOOD) == f"credit-risk@1 is admitted by the {name} policy"


@pytest.mark.parametrize("policy", [OPEN, STANDARD], ids=PROFILES)
@pytest.mark.parametrize("state", ["pending", "published", "quarantined", "retired", "", "PROMOTED"])
def test_only_promoted_releases_are_admitted(policy, state):
    with pytest.raises(NotAdmitted, match=f"credit-risk@1 is {state} and not admitted"):
        policy.decide(GOOD | {"state": state})


@pytest.mark.parametrize(
    ("change", "words", "open_too"),
    [
        ({"signer": ""}, "signed by an identity", True),
        ({"scanned": False}, "a trusted scan", False),
        ({"scan_clean": False}, "found nothing", False),
        ({"custody": "external"}, "sealed in this keep", False),
    ],
)
def test_each_rule_says_what_failed_and_what_would_mend_it(change, words, open_too):
    with pytest.raises(NotAdmitted, match=words):
        STANDARD.decide(GOOD | change)
    assert OPEN.judge(GOOD | change).admitted is not open_too
    assert all(rule.mend for rule in STANDARD.judge(GOOD | change).rules)


def test_every_failed_rule_is_named_at_once():
    failed = STANDARD.judge(GOOD | {"signer": "", "scanned": False, "custody": "external"}).rules
    assert [rule.id for rule in failed] == ["signed", "sealed-custody", "scanned"]


@pytest.mark.parametrize("policy", [OPEN, STANDARD], ids=PROFILES)
@pytest.mark.parametrize("missing", GOOD)
def test_missing_evidence_is_never_admitted(policy, missing):
    evidence = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(NotAdmitted, match="could not be evaluated"):
        policy.decide(evidence)


@pytest.mark.parametrize("change", [{"scanned": "yes"}, {"version": "1"}, {"signer": None}, {"surprise": 1}, {"size": 2**70}])
def test_evidence_of_the_wrong_type_is_never_admitted(change):
    with pytest.raises(NotAdmitted, match="could not be evaluated"):
        OPEN.decide(GOOD | change)


def test_an_operator_may_write_a_policy_but_not_one_that_does_not_fit():
    small = AdmissionPolicy('@id("mine") permit (principal, action, resource) when { resource.size < 10 };')
    assert small.decide(GOOD | {"size": 9}) == ("mine",)
    with pytest.raises(NotAdmitted):
        small.decide(GOOD)
    with pytest.raises(Invalid, match="accuracy"):
        AdmissionPolicy('@id("mine") permit (principal, action, resource) when { resource.accuracy > 1 };')
    with pytest.raises(Invalid, match="no admission profile"):
        AdmissionPolicy.profile("lenient")
