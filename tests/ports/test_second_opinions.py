"""The port ``SecondOpinions``: one suite for whoever implements it, those included that cannot be asked."""

import pytest
from scanners import BRIEF, FILES, REAL, asked, fake, report

from modelkeep.adapters.scanners import OtherScanners
from modelkeep.core.values import Opinion, OpinionVerdict
from modelkeep.custody.opinions import Nobody

ADAPTERS = {
    "nobody": Nobody(),
    "this environment": OtherScanners(limits=BRIEF),
    "another environment": OtherScanners(REAL, BRIEF),
    "no environment": OtherScanners("/nowhere/python", BRIEF),
    "a fake that agrees": asked(fake(report())),
    "a fake that crashes": asked(fake("1 / 0"), fake(report("bad"), name="other")),
}


@pytest.mark.parametrize("others", ADAPTERS.values(), ids=ADAPTERS)
def test_each_that_knows_the_format_has_one_opinion(others):
    format_id, data = FILES["harmful pickle"]
    found = others.opinions(memoryview(data), format_id)
    assert tuple((opinion.tool, opinion.version) for opinion in found) == others.tools(format_id)
    for opinion in found:
        assert isinstance(opinion, Opinion) and opinion.tool and opinion.version
        assert (opinion.verdict is OpinionVerdict.CLEAN) == (not opinion.detail)
        assert len(opinion.detail) <= 300 and opinion.detail.isprintable()
    if others is not ADAPTERS["a fake that agrees"]:
        assert all(opinion.verdict is not OpinionVerdict.CLEAN for opinion in found)


@pytest.mark.parametrize("format_id", ["unknown", "keep", "special", "", "../pickle"])
@pytest.mark.parametrize("others", ADAPTERS.values(), ids=ADAPTERS)
def test_nobody_is_asked_about_a_format_that_nobody_knows(others, format_id):
    assert others.tools(format_id) == () == others.opinions(memoryview(b"x"), format_id)
