"""CVSS base scores: FIRST's published examples, and every 3.x vector and many 4.0 ones beside another implementation."""

import itertools
import random

import pytest
from cvss import CVSS3, CVSS4

from modelkeep.custody.cvss import base_score, rank, severity_of
from modelkeep.errors import Invalid

# FIRST, "CVSS v3.1 Examples" and "CVSS v4.0 Examples"
PUBLISHED = {
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:R/S:C/C:L/I:L/A:N": 6.1,  # CVE-2013-1937
    "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N": 6.4,  # CVE-2013-0375
    "CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N": 3.1,  # CVE-2014-3566
    "CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:H/I:H/A:H": 9.9,  # CVE-2012-1516
    "CVSS:3.1/AV:L/AC:L/PR:H/UI:N/S:U/C:L/I:L/A:L": 4.2,  # CVE-2009-0783
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N": 7.5,  # CVE-2014-0160
    "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H": 9.8,  # CVE-2014-6271
    "CVSS:4.0/AV:L/AC:L/AT:P/PR:L/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N": 7.3,  # CVE-2022-41741
    "CVSS:4.0/AV:N/AC:L/AT:P/PR:N/UI:P/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N": 7.7,  # CVE-2020-3549
    "CVSS:4.0/AV:N/AC:L/AT:P/PR:N/UI:N/VC:H/VI:L/VA:L/SC:N/SI:N/SA:N": 8.3,  # CVE-2023-3089
    "CVSS:4.0/AV:L/AC:L/AT:N/PR:N/UI:A/VC:L/VI:N/VA:N/SC:N/SI:N/SA:N": 4.6,  # CVE-2021-44714
    "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:N/VA:N/SC:N/SI:N/SA:N": 8.7,  # CVE-2014-0160
    "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:H/SI:H/SA:H": 10.0,  # CVE-2021-44228
}


@pytest.mark.parametrize(("vector", "score"), PUBLISHED.items())
def test_published_scores(vector, score):
    assert base_score(vector) == score


def vectors(version, metrics):
    for values in itertools.product(*metrics.values()):
        yield f"{version}/" + "/".join(f"{name}:{value}" for name, value in zip(metrics, values, strict=True))


def test_every_base_vector_of_version_3_scores_as_elsewhere():
    metrics = {"AV": "NALP", "AC": "LH", "PR": "NLH", "UI": "NR", "S": "UC", "C": "HLN", "I": "HLN", "A": "HLN"}
    for vector in itertools.chain(vectors("CVSS:3.1", metrics), vectors("CVSS:3.0", metrics)):
        assert base_score(vector) == float(CVSS3(vector).base_score), vector


def test_base_vectors_of_version_4_score_as_elsewhere():
    metrics = {"AV": "NALP", "AC": "LH", "AT": "NP", "PR": "NLH", "UI": "NPA"}
    metrics |= dict.fromkeys(("VC", "VI", "VA", "SC", "SI", "SA"), "HLN")
    for vector in random.Random(4).sample(list(vectors("CVSS:4.0", metrics)), 2000):
        assert base_score(vector) == float(CVSS4(vector).base_score), vector


def test_threat_and_environment_make_nothing_milder():
    base = "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N"
    assert base_score(f"{base}/E:U/CR:L/MAV:P") == base_score(base)
    assert base_score("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H/E:U/RL:O/MC:N") == 9.8


@pytest.mark.parametrize(
    "vector",
    ["", "9.8", "CVSS:2.0/AV:N", "AV:N/AC:L/Au:N/C:P/I:P/A:P", "CVSS:3.1/AV:N", "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:Q",
     "CVSS:3.1/AV:N/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", "CVSS:3.1/AV:NA/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H",
     "CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:R/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", "CVSS:3.1/" + "X:" * 500,
     "CVSS:3.1///", "CVSS:3.1/\x1b"],
)  # fmt: skip
def test_what_is_no_vector_is_refused(vector):
    with pytest.raises(Invalid):
        base_score(vector)


def test_words():
    assert [severity_of(score) for score in (0.0, 3.9, 4.0, 6.9, 7.0, 8.9, 9.0, 10.0)] == [
        "low", "low", "medium", "medium", "high", "high", "critical", "critical",
    ]  # fmt: skip
    assert rank("critical") > rank("high") > rank("medium") > rank("low") > rank("unknown") == rank("dreadful")
