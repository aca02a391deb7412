"""Second opinions make a verdict worse and never better; and when a judgement is out of date."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.values import Opinion, OpinionVerdict
from modelkeep.custody.opinions import Nobody, Scanner, rule_of, undecided, weigh
from modelkeep.custody.scan import RULES_VERSION, SCANNER, ScanVerdict
from modelkeep.ledger.predicates import Finding, Scan

CLEAN, UNCLEAN, FAILED = OpinionVerdict.CLEAN, OpinionVerdict.UNCLEAN, OpinionVerdict.FAILED
FOUND = Finding("format", "m.pkl", "it is a pickle")
GOOD, BAD = ScanVerdict(True, "pickle", ()), ScanVerdict(False, "pickle", (FOUND,))


def opinion(verdict, tool="picklescan", version="1.0.5"):
    return Opinion(tool, version, verdict, "" if verdict is CLEAN else "os.system")


class Said(Nobody):
    """Others that say what they were told to, in an order that never changes."""

    def __init__(self, *opinions):
        self.said = opinions

    def tools(self, format_id):
        return tuple((one.tool, one.version) for one in self.said)

    def opinions(self, data, format_id):
        return self.said


@pytest.mark.parametrize(
    ("mine", "theirs", "clean", "rules"),
    [
        (GOOD, (), True, []),
        (GOOD, (CLEAN,), True, []),
        (GOOD, (CLEAN, UNCLEAN), False, ["second-opinion"]),
        (GOOD, (FAILED,), False, ["second-opinion-failed"]),
        (BAD, (CLEAN, CLEAN), False, ["format"]),
        (BAD, (UNCLEAN, FAILED), False, ["format", "second-opinion", "second-opinion-failed"]),
    ],
)
def test_the_verdict_of_all(mine, theirs, clean, rules):
    opinions = tuple(map(opinion, theirs))
    found = weigh(mine, opinions, required=False)
    assert (found.clean, [finding.rule for finding in found.findings]) == (clean, rules)
    assert found.opinions == opinions and found.findings[: len(mine.findings)] == mine.findings


@settings(max_examples=50)
@given(st.booleans(), st.lists(st.sampled_from(OpinionVerdict), max_size=4), st.booleans())
def test_others_never_make_it_better(mine, theirs, required):
    found = weigh(GOOD if mine else BAD, tuple(map(opinion, theirs)), required=required)
    assert found.clean == (mine and all(one is CLEAN for one in theirs) and (bool(theirs) or not required))
    assert found.clean == (not found.findings)
    assert undecided(found) == (mine and not found.clean and UNCLEAN not in theirs)


@pytest.mark.parametrize(
    ("theirs", "rules"), [((), 1), ((FAILED,), 2), ((FAILED, FAILED), 3), ((CLEAN,), 0), ((FAILED, CLEAN), 1)]
)
def test_where_a_second_opinion_is_required(theirs, rules):
    found = weigh(GOOD, tuple(map(opinion, theirs)), required=True)
    assert len(found.findings) == rules
    assert any(finding.rule == "second-opinion-missing" for finding in found.findings) == (CLEAN not in theirs)


def test_a_scanner_asks_about_the_format_that_it_found(subject):
    scanner = Scanner(others=Said(opinion(CLEAN)))
    found = scanner.judge(subject.onnx, "m.onnx")
    assert (found.clean, found.format, found.opinions) == (True, "onnx", (opinion(CLEAN),))


def said(*opinions, scanner=SCANNER, rules_version=RULES_VERSION):
    return Scan(
        actor="a", at=1, scanner=scanner, rules_version=rules_version, format="pickle", size=1, clean=True, opinions=opinions
    )


@pytest.mark.parametrize(
    ("known", "now", "stale"),
    [
        (None, Scanner(), True),
        (said(), Scanner(), False),
        (said(scanner="another"), Scanner(), True),
        (said(rules_version="9"), Scanner(rules_version="10"), True),
        (said(rules_version="10"), Scanner(rules_version="9"), False),
        (said(rules_version="ten"), Scanner(rules_version="10"), True),
        (said(rules_version=""), Scanner(), True),
        (said(), Scanner(others=Said(opinion(CLEAN))), True),
        (said(opinion(CLEAN)), Scanner(others=Said(opinion(CLEAN))), False),
        (said(opinion(CLEAN, version="1.0.4")), Scanner(others=Said(opinion(CLEAN))), True),
        (said(opinion(CLEAN)), Scanner(), False),
        (said(opinion(CLEAN)), Scanner(others=Said(opinion(CLEAN), opinion(CLEAN, "modelaudit", "1"))), True),
    ],
)
def test_when_a_judgement_is_out_of_date(known, now, stale):
    assert now.staleness()(known) is stale


def test_every_rule_has_words():
    for rule in ("second-opinion", "second-opinion-failed", "second-opinion-missing"):
        assert rule_of(rule).severity in ("high", "medium") and rule_of(rule).text.endswith(".")
    assert rule_of("a-rule-of-tomorrow") == ("medium", "A rule of tomorrow.")
