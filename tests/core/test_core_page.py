import math
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from modelkeep.core.page import Bar, Chart, bars, charts, facts, heading, lines, page, paragraph, table

HOSTILE = "<script>alert('x')</script> & \"more\""


def figures(text):
    """Every picture of a page, parsed as XML."""
    return [ElementTree.fromstring(part.split("</svg>")[0] + "</svg>") for part in text.split("<figure>")[1:]]


def test_text_is_text_wherever_it_stands():
    blocks = [
        heading(HOSTILE),
        paragraph(HOSTILE),
        facts({HOSTILE: HOSTILE}),
        table([HOSTILE], [[HOSTILE]]),
        bars([Bar(HOSTILE, 0.5)], caption=HOSTILE),
        lines({HOSTILE: [(0, 1), (1, 2)]}, x=HOSTILE, y=HOSTILE, caption=HOSTILE),
        charts([Chart(HOSTILE, [1.0], [0.5], HOSTILE, HOSTILE)], caption=HOSTILE),
    ]
    told = page(HOSTILE, blocks).decode()
    assert "<script" not in told
    tags = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)
    parser.feed(told)
    assert set(tags) <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "h2", "p", "dl", "dt", "dd", "table", "thead"),
        *("tbody", "tr", "th", "td", "figure", "svg", "text", "rect", "line", "path", "polyline", "figcaption"),
    }
    assert len(figures(told)) == 3


def test_a_page_asks_nothing_of_a_network():
    told = page("t", [lines({"a": [(0.0, 1.0)]}, x="x", y="y", caption="c")]).decode()
    assert "http" not in told and "url(" not in told and "@import" not in told


def test_bars_end_where_their_values_are():
    drawn = bars([Bar("none", 0.0), Bar("half", 0.5, 0.4, 0.6), Bar("all", 1.0), Bar("beyond", 3.0)], caption="c", limit=0.7)
    (svg,) = figures(drawn)
    widths = [float(one.get("width")) for one in svg.iter("rect")]
    assert widths[0] == 0.0 and widths[1] == pytest.approx(widths[2] / 2, abs=0.1) and widths[3] == widths[2]
    (whisker,) = [one for one in svg.iter("line") if one.get("class") == "whisker"]
    assert float(whisker.get("x2")) - float(whisker.get("x1")) == pytest.approx(0.2 * widths[2], abs=0.2)


def test_lines_keep_their_points_in_order_and_leave_out_what_is_no_number():
    (svg,) = figures(lines({"a": [(0, 0), (1, math.nan), (2, 4)], "b": []}, x="x", y="y", caption="c"))
    first, second = (one.get("points") for one in svg.iter("polyline"))
    (x0, y0), (x1, y1) = (tuple(map(float, one.split(","))) for one in first.split())
    assert x0 < x1 and y0 > y1 and second == ""


def test_the_word_beside_the_axis_stands_clear_of_lines_that_begin_at_the_top():
    (svg,) = figures(lines({"a": [(0.0, 1.0), (1.0, 0.2)]}, x="radius", y="accuracy", caption="c"))
    (word,) = [one for one in svg.iter("text") if one.text == "accuracy"]
    (line,) = svg.iter("polyline")
    top = min(float(point.split(",")[1]) for point in line.get("points").split())
    assert float(word.get("y")) + 4 < top  # a g hangs so far below
    assert float(word.get("y")) >= 12  # and is not cut off above


def test_a_plot_of_nothing_says_so():
    assert "nothing to draw" in lines({"a": []}, x="x", y="loss", caption="c")


def test_charts_are_as_high_as_their_fullest_bin_and_stand_in_rows():
    (svg,) = figures(charts([Chart("a", [0.5, 0.25, 0.0], [0.25, 0.5, 0.25]), *[Chart("b", [1.0])] * 4], caption="c"))
    bins = [(float(one.get("y")), float(one.get("height"))) for one in svg.iter("rect")]
    assert bins[1][1] == pytest.approx(bins[0][1] / 2, abs=0.1) and bins[2][1] == 0.0
    assert bins[3] == bins[0] and bins[-1][0] > bins[0][0] + bins[0][1]
    (line,) = svg.iter("polyline")
    heights = [float(one.split(",")[1]) for one in line.get("points").split()]
    assert heights[2] == heights[3] == pytest.approx(bins[0][0], abs=0.1) and heights[0] == heights[4] > heights[2]
