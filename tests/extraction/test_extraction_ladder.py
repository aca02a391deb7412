import itertools
import math
import re

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from modelkeep.errors import Invalid
from modelkeep.extraction.ladder import DEFAULT, LABEL_ONLY, SHIPPED, Rung, parse_ladder, respond, respond_one

STEPS = DEFAULT.steps
ALARM = "\n[alarm]\nanswer = 'refuse'\n"


@pytest.mark.parametrize(
    ("evidence", "spent", "alarmed", "rung"),
    [
        (0.5, 0.0, False, Rung.MARK),
        (29.0, 0.79, False, Rung.MARK),
        (30.0, 0.0, False, Rung.COARSE),
        (0.0, 0.8, False, Rung.COARSE),
        (200.0, 0.0, False, Rung.QUANTISED),
        (0.0, 1.9, False, Rung.QUANTISED),
        (0.0, 50.0, False, Rung.LABELS),
        (999.0, math.inf, False, Rung.LABELS),
        (0.0, 0.0, True, Rung.ALARM),
    ],
)
def test_known_rungs(evidence, spent, alarmed, rung):
    assert DEFAULT.rung(evidence, spent, alarmed=alarmed) is rung


def test_known_answers():
    p = np.array([[0.12344, 0.87656], [0.5, 0.5]])
    assert respond(STEPS[Rung.MARK], p).tolist() == [[0.1234, 0.8766], [0.5, 0.5]]
    assert respond(STEPS[Rung.COARSE], p).tolist() == [[0.12, 0.88], [0.5, 0.5]]
    assert respond(STEPS[Rung.QUANTISED], p).tolist() == [[0.0, 1.0], [0.5, 0.5]]
    for rung in (Rung.LABELS, Rung.ALARM):
        assert respond(STEPS[rung], p).tolist() == [[0.0, 1.0], [1.0, 0.0]]


def test_a_tie_made_by_rounding_is_broken_for_the_true_top():
    p = np.array([[0.49999, 0.50001]])
    assert respond(STEPS[Rung.MARK], p).tolist() == [[0.5, 0.5001]]
    assert respond(STEPS[Rung.QUANTISED], p).argmax(axis=1).tolist() == [1]


def test_the_shipped_ladder_says_what_the_alarm_does_in_both_ways():
    assert STEPS[Rung.ALARM].refuse and not LABEL_ONLY.steps[Rung.ALARM].refuse
    assert LABEL_ONLY._replace(steps=()) == DEFAULT._replace(steps=())
    assert [s.told for s in STEPS[:4]] == [
        "confidences have 4 decimals",
        "confidences have 2 decimals",
        "confidences are multiples of 1/4, at 0.1 of the usual rate",
        "answers are labels only, at 0.1 of the usual rate",
    ]
    assert not any(step.step_up or step.work for step in (*STEPS, *LABEL_ONLY.steps))
    challenge = parse_ladder(re.sub(r"^# (?=\[ch|odds|bud|step-up|work)", "", SHIPPED, flags=re.MULTILINE))
    step = challenge.steps[Rung.CHALLENGE]
    assert challenge.rung(700.0, 0.0, alarmed=False) is Rung.CHALLENGE
    assert (step.step_up, step.work, step.asks_factor) == (True, 20, False)
    price = "at 0.1 of the usual rate, for 1,048,576 hashes of work a row or a recent second factor"
    assert step.told == f"answers are labels only, {price}" and step.tells(confidences=False) == f"answers come {price}"


def test_what_is_told_of_work():
    ladder = parse_ladder("[mark]\nwork = 8\n[coarse]\nodds = 30\nrate = 0.5\nwork = 26\n" + ALARM)
    assert [step.told for step in ladder.steps[:2]] == [
        "confidences have 6 decimals, for 256 hashes of work a row",
        "confidences have 6 decimals, at 0.5 of the usual rate, for 67,108,864 hashes of work a row",
    ]
    assert ladder.steps[Rung.MARK].tells(confidences=False) == "answers come for 256 hashes of work a row"
    assert STEPS[Rung.COARSE].tells(confidences=False) == ""
    assert "work" not in ladder.steps[Rung.ALARM].told and ladder.steps[Rung.CHALLENGE].work == 26


ROWS = st.fixed_dictionaries(
    {},
    optional={
        "odds": st.integers(2, 10**6),
        "budget": st.floats(0.01, 100.0),
        "rate": st.floats(0.001, 1.0),
        "step-up": st.booleans(),
        "work": st.sampled_from([0, 8, 20]),
        "answer": st.sampled_from(["confidences", "label-only"]),
    },
)
GRAINS = st.one_of(
    st.just({}),
    st.builds(lambda n: {"decimals": n}, st.integers(1, 6)),
    st.builds(lambda n: {"levels": n}, st.integers(2, 1000)),
)


def table(rows):
    """The TOML text of a table."""
    said = {True: "true", False: "false"}
    return "\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {said[v] if isinstance(v, bool) else repr(v)}" for key, v in row.items())
        for name, row in rows.items()
    )


@st.composite
def tables(draw):
    """Tables that an owner may write: any rows at all, or sorted ones, of which more pass."""
    names = [rung.text for rung in Rung if Rung.MARK < rung < Rung.ALARM and draw(st.booleans())]
    rows = {name: draw(ROWS) | draw(GRAINS) for name in names}
    if draw(st.booleans()):
        for key, falling in (("odds", False), ("budget", False), ("rate", True), ("levels", True), ("decimals", True)):
            ordered = sorted((row[key] for row in rows.values() if key in row), reverse=falling)
            for row in rows.values():
                if key in row:
                    row[key] = ordered.pop(0)
                if key == "odds" and "budget" not in row:
                    row.setdefault("odds", max((r["odds"] for r in rows.values() if "odds" in r), default=5))
    rows["alarm"] = {"answer": draw(st.sampled_from(["refuse", "label-only"]))}
    if draw(st.booleans()):
        rows["sanction"] = {"deceive": draw(st.floats(0.01, 1.0))}
    return table(rows)


def accepted(text):
    try:
        return parse_ladder(text)
    except Invalid:
        return None


PROBS = arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 12)), elements=st.floats(0, 1))


@given(tables(), PROBS, st.integers(1, 6))
@example(SHIPPED, np.array([[0.49999, 0.50001]]), 4)
def test_no_table_that_is_accepted_changes_a_top_1_answer_below_the_last_rung(text, raw, decimals):
    ladder = accepted(text)
    assume(ladder is not None)
    total = raw.sum(axis=1, keepdims=True)
    probs = np.where(total > 0, raw / np.where(total > 0, total, 1), 1 / raw.shape[1])
    for rung in Rung:
        step = ladder.steps[rung]
        assert step.deceive == 0.0 or rung is Rung.SANCTION
        found = respond(step, probs, decimals)
        assert (found.argmax(axis=1) == probs.argmax(axis=1)).all()
        assert [respond_one(step, row, decimals) for row in probs.tolist()] == found.tolist()


@given(tables(), st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 200)), min_size=2, max_size=2))
def test_more_evidence_or_a_greater_share_never_gets_more(text, points):
    ladder = accepted(text)
    assume(ladder is not None)
    low, high = (tuple(f(pair) for pair in zip(*points, strict=True)) for f in (min, max))
    less, more = (ladder.steps[ladder.rung(*each, alarmed=False)] for each in (low, high))
    assert more.grain <= less.grain and more.rate <= less.rate and paid(more) <= paid(less)
    alarm = ladder.steps[Rung.ALARM]
    assert alarm.refuse or (alarm.grain == 0 and alarm.rate <= more.rate and paid(alarm) <= paid(more))


def paid(step):
    """What an account may bring (a second factor or none, work of so many bits) and gets its answer for."""
    brought = itertools.product((False, True), (0, 8, 20))
    asks = step.step_up or step.work > 0
    return {(factor, bits) for factor, bits in brought if not asks or (step.step_up and factor) or bits >= step.work > 0}


LABELS = "[labels]\nodds = 500\nanswer = 'label-only'\n"


@pytest.mark.parametrize(
    ("text", "most"),
    [
        (SHIPPED, Rung.QUANTISED),
        ("[coarse]\nodds = 30\ndecimals = 2\n" + LABELS + ALARM, Rung.COARSE),
        ("[coarse]\nodds = 30\n[quantised]\nodds = 200\nanswer = 'label-only'\n" + ALARM, Rung.COARSE),
        ("[quantised]\nodds = 200\nanswer = 'label-only'\n" + ALARM, Rung.MARK),
        (LABELS + "[challenge]\nodds = 700\nstep-up = true\n" + ALARM, Rung.MARK),
        (ALARM, Rung.MARK),
    ],
)
def test_how_far_evidence_leads_while_the_population_drifts(text, most):
    ladder = parse_ladder(text)
    assert ladder.drifting is most
    assert ladder.rung(1e9, 0.0, alarmed=False, drifting=True) is most
    assert ladder.rung(1e9, math.inf, alarmed=False, drifting=True) is ladder.rung(0.0, math.inf, alarmed=False)
    assert ladder.rung(1e9, 0.0, alarmed=True, drifting=True) is Rung.ALARM


@given(tables(), st.lists(st.tuples(st.floats(0, 1e7), st.floats(0, 200)), min_size=2, max_size=2))
def test_more_evidence_or_a_greater_share_never_leads_lower_while_the_population_drifts(text, points):
    ladder = accepted(text)
    assume(ladder is not None)
    low, high = (tuple(f(pair) for pair in zip(*points, strict=True)) for f in (min, max))
    assert ladder.rung(*low, alarmed=False, drifting=True) <= ladder.rung(*high, alarmed=False, drifting=True)
    assert ladder.rung(*low, alarmed=False, drifting=True) <= ladder.rung(*low, alarmed=False)
    assert ladder.steps[ladder.rung(high[0], 0.0, alarmed=False, drifting=True)].grain or not ladder.steps[Rung.MARK].grain


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "required field `alarm`"),
        ("[alarm]", "consequence"),
        ("[alarm]\nanswer = 'confidences'", "consequence"),
        ("[alarm]\nanswer = 'refuse'\nodds = 5", "no condition of its own"),
        ("[coarse]\ndecimals = 2" + ALARM, "nothing leads to"),
        ("[coarse]\nodds = 30\nanswer = 'refuse'" + ALARM, "slowed and told less"),
        ("[labels]\nodds = 30\ndeceive = 0.5" + ALARM, "only for"),
        ("[coarse]\nodds = 30\n[quantised]\nodds = 20" + ALARM, "less odds"),
        ("[coarse]\nbudget = 1.0\n[labels]\nbudget = 0.5" + ALARM, "less budget"),
        ("[coarse]\nodds = 30\ndecimals = 2\n[labels]\nodds = 40\ndecimals = 3" + ALARM, "coarser upwards"),
        ("[coarse]\nodds = 30\nanswer = 'label-only'\n[labels]\nodds = 40\nlevels = 2" + ALARM, "coarser upwards"),
        ("[coarse]\nodds = 30\nrate = 0.1\n[labels]\nodds = 40\nrate = 0.2" + ALARM, "higher rate"),
        ("[coarse]\nodds = 30\nstep-up = true\n[labels]\nodds = 40\nstep-up = false" + ALARM, "second factor"),
        ("[coarse]\nodds = 30\nstep-up = true\n[labels]\nodds = 40\nwork = 20" + ALARM, "below it does not: give that"),
        ("[coarse]\nodds = 30\nwork = 20\n[labels]\nodds = 40\nwork = 19" + ALARM, "below it does not: give that"),
        ("[coarse]\nodds = 30\nwork = 20\n[labels]\nodds = 40\nwork = 0" + ALARM, "asks for no work"),
        ("[coarse]\nodds = 30\nwork = 20\n[labels]\nodds = 40\nstep-up = true" + ALARM, "let both, or neither"),
        ("[coarse]\nodds = 30\nwork = 20\n[labels]\nodds = 40\nwork = 0\nstep-up = true" + ALARM, "let both, or neither"),
        ("[coarse]\nodds = 30\nwork = 7" + ALARM, "costs nothing"),
        ("[coarse]\nodds = 30\nwork = 27" + ALARM, "no ladder"),
        ("[coarse]\nodds = 30\nwork = -1" + ALARM, "no ladder"),
        ("[coarse]\nodds = 30\nwork = 20.5" + ALARM, "no ladder"),
        ("[coarse]\nodds = 30\nwork = true" + ALARM, "no ladder"),
        ("[sanction]\ndeceive = 0.3\nwork = 20" + ALARM, "which share"),
        ("[coarse]\nodds = 30\ndecimals = 2\nlevels = 4" + ALARM, "one of them"),
        ("[coarse]\nodds = nan" + ALARM, "no ladder"),
        ("[coarse]\nodds = inf" + ALARM, "no ladder"),
        ("[coarse]\nodds = 30\nrate = 0" + ALARM, "no ladder"),
        ("[mark]\nodds = 30" + ALARM, "no condition of its own"),
        ("[coarse]\nodds = 30\ncolour = 'red'" + ALARM, "no ladder"),
        ("[sanction]\nanswer = 'refuse'" + ALARM, "which share"),
        ("[sanction]\ndeceive = 0.3\nodds = 2000" + ALARM, "no condition of its own"),
        ("[budget]\nquestions = 0" + ALARM, "no ladder"),
        ("[alarm", "no ladder"),
    ],
)
def test_what_is_refused(text, why):
    with pytest.raises(Invalid, match=why):
        parse_ladder(text)


@pytest.mark.parametrize(
    ("lower", "upper"),
    [
        ("step-up = true\nwork = 20", ""),
        ("step-up = true\nwork = 20", "work = 22"),
        ("step-up = true\nwork = 20", "work = 0"),
        ("step-up = true\nwork = 20", "step-up = false"),
        ("work = 20", "work = 20"),
        ("", "work = 8\nstep-up = true"),
    ],
)
def test_a_rung_may_ask_for_more_than_the_one_below(lower, upper):
    ladder = parse_ladder(f"[coarse]\nodds = 30\n{lower}\n[labels]\nodds = 40\n{upper}" + ALARM)
    assert paid(ladder.steps[Rung.LABELS]) <= paid(ladder.steps[Rung.COARSE])


def test_without_a_last_rung_a_sanctioned_account_is_refused():
    assert parse_ladder(ALARM).steps[Rung.SANCTION].refuse
    assert not STEPS[Rung.SANCTION].refuse and STEPS[Rung.SANCTION].deceive == 0.3
