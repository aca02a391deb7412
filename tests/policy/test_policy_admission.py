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
    "logged": True,
    "witnesses": 1,
    "owner": "risk",
    "classification": "internal",
    "tags": ["pd"],
    "approvals": 2,
    "rejections": 0,
    "trained": True,
    "code_commit": "ab" * 20,
    "code_clean": True,
    "code_signed": True,
    "isolated": True,
    "accuracy": "0.9000",
    "hardened": True,
    "robust_accuracy": "0.5000",
    "robust_linf": "0.1000",
    "robust_l2": "0.0000",
    "robust_white_box": True,
    "robust_alarms": 0,
    "private": True,
    "epsilon": "8.0000",
    "delta_ppb": 10_000,
    "dataset_epsilon": "3.0000",
    "watermark": True,
    "marked": True,
    "bom": True,
    "audited": True,
    "unaudited": 0,
    "critical": 0,
    "high": 0,
    "ungraded": 0,
    "snapshot_age_days": 30,
}
OPEN, STANDARD, STRICT = (AdmissionPolicy.profile(name) for name in PROFILES)


@pytest.mark.parametrize("name", PROFILES)
def test_good_evidence_is_admitted(name):
    policy = AdmissionPolicy.profile(name)
    assert policy.decide(GOOD) == ("promoted-release",)
    assert policy.explain(GOOD) == f"credit-risk@1 is admitted by the {name} policy"


@pytest.mark.parametrize("policy", [OPEN, STANDARD, STRICT], ids=PROFILES)
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


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("two-approvals", {"approvals": 1}),
        ("provenance", {"trained": False}),
        ("provenance", {"code_clean": False}),
        ("dependencies-audited", {"audited": False}),
        ("dependencies-audited", {"unaudited": 1}),
        ("dependencies-audited", {"snapshot_age_days": 31}),
        ("no-severe-vulnerability", {"high": 1}),
        ("no-severe-vulnerability", {"ungraded": 1}),
        ("robust", {"robust_accuracy": "0.4999"}),
        ("private", {"private": False}),
        ("private", {"epsilon": "8.0001"}),
        ("private", {"delta_ppb": 10_001}),
        ("watermark-committed", {"watermark": False}),
        ("witnessed", {"witnesses": 0}),
    ],
)
def test_strict_asks_for_more_than_standard(rule, change):
    judgement = STRICT.judge(GOOD | change)
    assert not judgement.admitted and [found.id for found in judgement.rules] == [rule]
    assert STANDARD.judge(GOOD | change).admitted


@pytest.mark.parametrize(
    ("change", "rule"), [({"critical": 1}, "no-critical-vulnerability"), ({"rejections": 1}, "not-rejected")]
)
def test_what_standard_and_strict_refuse_and_open_serves(change, rule):
    for policy in (STANDARD, STRICT):
        assert [found.id for found in policy.judge(GOOD | change).rules] == [rule]
    assert OPEN.judge(GOOD | change).admitted


def test_no_profile_serves_what_is_not_logged():
    assert not any(AdmissionPolicy.profile(name).judge(GOOD | {"logged": False}).admitted for name in PROFILES)


def test_a_review_shows_every_rule_and_whether_it_holds():
    review = STRICT.review(GOOD | {"state": "published", "approvals": 0})
    assert [held.rule.id for held in review if not held.satisfied] == ["promoted-release", "two-approvals"]
    assert len(review) == 16 and all(held.satisfied for held in STRICT.review(GOOD))
    assert {held.rule.needs for held in review if not held.satisfied} == {"state", "approval"}
    with pytest.raises(Invalid, match="could not be judged"):
        STRICT.review({"name": "m", "version": 1})


def test_every_rule_that_ships_says_what_it_asks_and_what_to_do():
    for name in PROFILES:
        for held in AdmissionPolicy.profile(name).review(GOOD):
            assert held.rule.says != held.rule.id and held.rule.mend, held.rule.id


def test_every_failed_rule_is_named_at_once():
    failed = STANDARD.judge(GOOD | {"signer": "", "scanned": False, "custody": "external"}).rules
    assert [rule.id for rule in failed] == ["signed", "sealed-custody", "scanned"]


@pytest.mark.parametrize("policy", [OPEN, STANDARD, STRICT], ids=PROFILES)
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
    with pytest.raises(Invalid, match="precision"):
        AdmissionPolicy('@id("mine") permit (principal, action, resource) when { resource.precision > 1 };')
    with pytest.raises(Invalid, match="no admission profile"):
        AdmissionPolicy.profile("lenient")


def test_a_policy_that_only_forbids_is_explained_as_it_is():
    policy = AdmissionPolicy('@id("never") @says("nothing is served") forbid (principal, action, resource);')
    assert [(held.rule.id, held.satisfied) for held in policy.review(GOOD)] == [("never", False)]
    assert "nothing is served" in policy.explain(GOOD)
    narrow = AdmissionPolicy('@id("no") forbid (principal, action, resource) when { resource.name == "" };')
    assert [held.satisfied for held in narrow.review(GOOD)] == [True]
    assert "no rule of it permits anything" in narrow.explain(GOOD)
