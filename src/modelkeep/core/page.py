"""Reports as one page of HTML that stands alone: no script, nothing asked of a network, light and dark. Text is escaped here.

``page`` puts blocks under each other; ``paragraph``, ``facts``, ``table``, ``bars``, ``lines`` and ``charts`` make blocks.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import NamedTuple

STYLE = """
:root { --paper: #fbfaf7; --card: #fff; --ink: #1d2228; --soft: #5d6670; --rule: #e3e1da; --accent: #b4431c;
  --bare: #9aa2aa; --s1: #1f6f8b; --s2: #6a8d3a; --s3: #8d5aa8; --s4: #b8860b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14171a; --card: #1b1f23; --ink: #e8e6e1; --soft: #a8afb6; --rule: #2d3237; --accent: #f08a5d;
  --bare: #78818a; --s1: #63b3cf; --s2: #a5c878; --s3: #c39bdc; --s4: #e0b64a; } }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 3rem 1.5rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; } h2 { font-size: 1.2rem; margin: 2.4rem 0 .5rem; }
p, li { max-width: 46rem; }
.soft, figcaption, dt { color: var(--soft); } code, pre { font: .86rem/1.5 ui-monospace, monospace; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .8rem 1rem; overflow-x: auto; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .3rem 1rem; } dd { margin: 0; overflow-wrap: anywhere; }
figure { margin: 1rem 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; padding: .8rem; }
svg { display: block; width: 100%; height: auto; } svg text { font: 11px ui-monospace, monospace; fill: var(--soft); }
"""
_TABLES = """
table { border-collapse: collapse; width: 100%; font-size: .92rem; background: var(--card); }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--soft); font-weight: 600; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
.axis { stroke: var(--rule); } .whisker { stroke: var(--ink); stroke-width: 1.5; } .bar { fill: var(--bare); }
.limit { stroke: var(--accent); stroke-dasharray: 4 3; } .line { fill: none; stroke-width: 2; } .ink { fill: var(--ink); }
"""
_COLOURS = ("--accent", "--s1", "--s2", "--s3", "--s4", "--bare")
_WIDTH, _LEFT, _HEIGHT = 720, 190, 300


class Bar(NamedTuple):
    """One horizontal bar: ``value``, and the ends of its interval where it has one."""

    label: str
    value: float
    low: float = math.nan
    high: float = math.nan


class Chart(NamedTuple):
    """A small histogram: ``shares`` of its bins, and those of something ``beside`` it; ``low``, ``high``: what the ends are."""

    label: str
    shares: Sequence[float]
    beside: Sequence[float] = ()
    low: str = ""
    high: str = ""


def page(title: str, blocks: Iterable[str], *, style: str = "") -> bytes:
    """The page, UTF-8. ``blocks``: HTML, as the functions of this file give it; ``style``: more CSS."""
    head = f"<title>{escape(title)}</title><style>{STYLE}{_TABLES}{style}</style>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{head}'
    body = f"<h1>{escape(title)}</h1>{''.join(blocks)}"
    return f'<!doctype html>\n<html lang="en"><head>{head}</head><body><main>{body}</main></body></html>\n'.encode()


def heading(text: str) -> str:
    """The title of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str, *, soft: bool = False) -> str:
    """``soft``: said in a lower voice."""
    kind = ' class="soft"' if soft else ""
    return f"<p{kind}>{escape(text)}</p>"


def facts(pairs: Mapping[str, object]) -> str:
    """What is what, one a line."""
    return f"<dl>{''.join(f'<dt>{escape(name)}</dt><dd>{escape(str(said))}</dd>' for name, said in pairs.items())}</dl>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Floats are shown with four digits, and numbers to the right."""
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{''.join(f'<th>{escape(one)}</th>' for one in head)}</tr></thead><tbody>{body}</tbody></table>"


def bars(rows: Sequence[Bar], *, caption: str, top: float = 1.0, limit: float | None = None) -> str:
    """Horizontal bars from 0 to ``top``, with whiskers; ``limit``: where a dashed line stands."""
    width, high = _WIDTH - _LEFT - 80, 26 * len(rows) + 24
    at = [_LEFT + width * min(max(share / top, 0.0), 1.0) for share in (0.0, top)]

    def x(value: float) -> float:
        return _LEFT + width * min(max(value / top, 0.0), 1.0)

    drawn = [f'<line class="axis" x1="{one:.1f}" x2="{one:.1f}" y1="4" y2="{high - 20}"/>' for one in at]
    for row, bar in enumerate(rows):
        y = 8 + 26 * row
        drawn.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(bar.label[:28])}</text>')
        drawn.append(f'<rect class="bar" x="{_LEFT}" y="{y}" width="{x(bar.value) - _LEFT:.1f}" height="16" rx="2"/>')
        if not math.isnan(bar.low + bar.high):
            drawn.append(f'<line class="whisker" x1="{x(bar.low):.1f}" x2="{x(bar.high):.1f}" y1="{y + 8}" y2="{y + 8}"/>')
        drawn.append(f'<text class="ink" x="{_WIDTH - 72}" y="{y + 12}">{bar.value:.4g}</text>')
    if limit is not None:
        drawn.append(f'<line class="limit" x1="{x(limit):.1f}" x2="{x(limit):.1f}" y1="4" y2="{high - 20}"/>')
    drawn += [
        f'<text x="{one:.1f}" y="{high - 4}" text-anchor="middle">{said:g}</text>'
        for one, said in zip(at, (0, top), strict=True)
    ]
    return _figure(high, drawn, caption)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str, caption: str) -> str:
    """Lines through points (x, y), one colour a series; ``x``, ``y``: what the axes are. What is no number is left out."""
    kept = {name: [one for one in points if all(map(math.isfinite, one))] for name, points in series.items()}
    every = [one for points in kept.values() for one in points]
    if not every:
        return _figure(40, [f'<text x="20" y="24">{escape(y)}: nothing to draw</text>'], caption)
    left, right, low, high = 64, _WIDTH - 150, _HEIGHT - 40, 30
    spans = [(min(part), max(part)) for part in zip(*every, strict=True)]
    (x0, x1), (y0, y1) = ((a, b if b > a else a + 1.0) for a, b in spans)

    def place(one: tuple[float, float]) -> tuple[float, float]:
        return left + (right - left) * (one[0] - x0) / (x1 - x0), low - (low - high) * (one[1] - y0) / (y1 - y0)

    drawn = [f'<path class="axis" fill="none" d="M{left},{high} V{low} H{right}"/>']
    for share in (0.0, 0.5, 1.0):
        across, up = x0 + share * (x1 - x0), y0 + share * (y1 - y0)
        px, py = place((across, up))
        drawn.append(f'<text x="{px:.1f}" y="{low + 15}" text-anchor="middle">{across:.4g}</text>')
        drawn.append(f'<text x="{left - 6}" y="{py + 4:.1f}" text-anchor="end">{up:.3g}</text>')
    drawn.append(f'<text x="{(left + right) / 2}" y="{low + 32}" text-anchor="middle">{escape(x)}</text>')
    drawn.append(f'<text x="{left}" y="{high - 12}">{escape(y)}</text>')
    for number, (name, points) in enumerate(kept.items()):
        colour = f"var({_COLOURS[number % len(_COLOURS)]})"
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in map(place, points))
        drawn.append(f'<polyline class="line" stroke="{colour}" points="{path}"/>')
        drawn.append(f'<rect x="{right + 12}" y="{high + 20 * number}" width="10" height="10" fill="{colour}"/>')
        drawn.append(f'<text class="ink" x="{right + 28}" y="{high + 20 * number + 9}">{escape(name[:18])}</text>')
    return _figure(_HEIGHT, drawn, caption)


def charts(rows: Sequence[Chart], *, caption: str, across: int = 4) -> str:
    """Small histograms, so many ``across``, each as high as its fullest bin; what is beside one is drawn as a line."""
    wide, tall, gap = (_WIDTH - 16 * (across - 1)) / across, 62, 108
    drawn = []
    for number, chart in enumerate(rows):
        left, top = (number % across) * (wide + 16), 18 + gap * (number // across)
        bins, most = max(len(chart.shares), 1), max([*chart.shares, *chart.beside, 1e-9])
        step = wide / bins
        drawn.append(f'<text class="ink" x="{left:.1f}" y="{top - 5}">{escape(chart.label[:24])}</text>')
        for at, share in enumerate(chart.shares):
            high, place = tall * share / most, f'x="{left + at * step + 0.5:.1f}" width="{max(step - 1, 0.5):.1f}"'
            drawn.append(f'<rect class="bar" {place} y="{top + tall - high:.1f}" height="{high:.1f}"/>')
        ends = [
            (left + at * step, left + (at + 1) * step, top + tall * (1 - one / most)) for at, one in enumerate(chart.beside)
        ]
        path = " ".join(f"{x0:.1f},{y:.1f} {x1:.1f},{y:.1f}" for x0, x1, y in ends)
        drawn.append(f'<polyline class="line" stroke="var(--accent)" points="{path}"/>' if path else "")
        drawn.append(f'<path class="axis" d="M{left:.1f},{top + tall} h{wide:.1f}"/>')
        drawn.append(f'<text x="{left:.1f}" y="{top + tall + 13}">{escape(chart.low[:12])}</text>')
        end = f'x="{left + wide:.1f}" y="{top + tall + 13}" text-anchor="end"'
        drawn.append(f"<text {end}>{escape(chart.high[:12])}</text>")
    return _figure(gap * -(-len(rows) // across), drawn, caption)


def _figure(height: float, drawn: Iterable[str], caption: str) -> str:
    picture = f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(caption)}">{"".join(drawn)}</svg>'
    return f"<figure>{picture}<figcaption>{escape(caption)}</figcaption></figure>"


def _cell(said: object) -> str:
    if isinstance(said, bool) or not isinstance(said, int | float):
        return f"<td>{escape(str(said))}</td>"
    return f'<td class="n">{said:,}</td>' if isinstance(said, int) else f'<td class="n">{said:.4g}</td>'
