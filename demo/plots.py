"""Plots as inline SVG, by hand: no script, no font, no colour of their own (the style sheet gives those, light or dark)."""

import math
from collections.abc import Sequence
from html import escape

from demo.findings import Stand, Suspect, ThiefRow

_LOG_TICKS = (10, 30, 100, 300, 1_000, 3_000, 10_000)


def fidelity_plot(row: ThiefRow, *, width: int = 340, height: int = 242) -> str:
    """Fidelity against queries spent (log scale): with no defence, and as far as the gateway let the thief come."""
    left, right, top, bottom = 40, 14, 26, 40
    most = max([row.budget, *(q for q, _ in row.undefended_curve)])
    least = min([10, max(row.queries, 2), *(q for q, _ in row.undefended_curve)])

    def at(queries: float, fidelity: float) -> tuple[float, float]:
        along = math.log(max(queries, least) / least) / math.log(most / least)
        return left + along * (width - left - right), top + (1 - fidelity) * (height - top - bottom)

    base, end = at(least, 0)[1], at(most, 0)[0]
    parts = [_open(width, height, f"Fidelity of the copy made by {row.name} against queries spent")]
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = at(least, level)[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{end:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{left - 7}" y="{y + 3.5:.1f}" text-anchor="end">{level:.0%}</text>')
    for tick in _LOG_TICKS:
        if least <= tick <= most:
            x = at(tick, 0)[0]
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{base:.1f}" y2="{base + 4:.1f}"/>')
            parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16:.1f}" text-anchor="middle">{tick:,}</text>')
    parts.append(f'<text class="axis" x="{(left + end) / 2:.1f}" y="{height - 4}" text-anchor="middle">queries answered</text>')
    chance = at(least, row.majority)[1]
    parts.append(f'<line class="chance" x1="{left}" x2="{end:.1f}" y1="{chance:.1f}" y2="{chance:.1f}"/>')
    parts.append(f'<text class="tick" x="{end:.1f}" y="{chance - 5:.1f}" text-anchor="end">commonest class only</text>')
    parts.append(_path("bare", [at(*point) for point in row.undefended_curve]))
    parts += [_dot("bare", *at(*point), 2.6) for point in row.undefended_curve]
    stop_x, stop_y = at(row.queries, row.reached)
    parts.append(f'<line class="stop" x1="{stop_x:.1f}" x2="{stop_x:.1f}" y1="{top}" y2="{base:.1f}"/>')
    if len(row.curve) > 1:
        parts.append(_path("kept", [at(*point) for point in row.curve]))
    parts.append(_dot("kept", stop_x, stop_y, 5))
    label = min(max(stop_x, left + 52), end - 52)  # above the frame, where no curve can be
    parts.append(f'<text class="label kept" x="{label:.1f}" y="{top - 8}" text-anchor="middle">')
    parts.append(f"stopped after {row.queries:,}</text></svg>")
    return "".join(parts)


def trace_plot(suspect: Suspect, significance: float, *, width: int = 340, row_height: int = 13) -> str:
    """One dot an account at its evidence, -log10 of the corrected p-value; the line is where an accusation begins."""
    left, right, top, bottom = 92, 16, 8, 40
    accounts = suspect.p_values
    height = top + bottom + row_height * max(len(accounts), 1)
    strength = [(name, -math.log10(max(p, 1e-300))) for name, p in accounts]
    line = -math.log10(significance)
    most = max([line * 2, *(value for _, value in strength)]) * 1.05

    def x_at(value: float) -> float:
        return left + value / most * (width - left - right)

    base = height - bottom
    parts = [_open(width, height, f"Evidence against each account for {suspect.title}")]
    for tick in _round_ticks(most):
        x = x_at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"/>')
        label = "p = 1" if tick == 0 else f'10<tspan dy="-4" class="power">&minus;{tick:g}</tspan>'
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{label}</text>')
    parts.append(f'<line class="stop" x1="{x_at(line):.1f}" x2="{x_at(line):.1f}" y1="{top}" y2="{base}"/>')
    for number, (name, value) in enumerate(strength):
        y = top + row_height * (number + 0.5)
        kind = "kept" if name == suspect.owner else "bare"
        parts.append(f'<text class="tick {kind}" x="{left - 8}" y="{y + 3.5:.1f}" text-anchor="end">{escape(name)}</text>')
        if value > 0.02:
            parts.append(f'<line class="stem {kind}" x1="{left}" x2="{x_at(value):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_dot(kind, x_at(value), y, 4.5 if kind == "kept" else 2.6))
    middle = (left + width - right) / 2
    parts.append(f'<text class="axis" x="{middle:.1f}" y="{height - 5}" text-anchor="middle">p-value, corrected</text></svg>')
    return "".join(parts)


def stand_plot(stand: Stand, *, width: int = 340, row_height: int = 44) -> str:
    """Accuracy without and under attack, each as a bar with its interval."""
    left, right, top, bottom = 92, 16, 8, 26
    height = top + bottom + 2 * row_height
    base = height - bottom

    def x_at(share: float) -> float:
        return left + share * (width - left - right)

    parts = [_open(width, height, f"Accuracy of the {stand.title}, clean and under attack")]
    for level in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = x_at(level)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{base}"/>')
        parts.append(f'<text class="tick" x="{x:.1f}" y="{base + 16}" text-anchor="middle">{level:.0%}</text>')
    for number, (name, kind, (value, low, high)) in enumerate(
        (
            ("clean", "bare", stand.clean),
            ("under attack", "kept", stand.attacked),
        )
    ):
        y = top + row_height * (number + 0.5)
        parts.append(f'<text class="tick {kind}" x="{left - 8}" y="{y + 3.5:.1f}" text-anchor="end">{name}</text>')
        parts.append(f'<line class="stem {kind}" x1="{x_at(low):.1f}" x2="{x_at(high):.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_dot(kind, x_at(value), y, 5))
        where = min(max(x_at(value), left + 20), width - right - 20)
        parts.append(f'<text class="label {kind}" x="{where:.1f}" y="{y - 10:.1f}" text-anchor="middle">{value:.1%}</text>')
    return "".join(parts) + "</svg>"


def _round_ticks(most: float) -> list[float]:
    """Up to five round numbers from 0 to ``most``."""
    step = next((s for s in (1, 2, 5, 10, 20, 50, 100) if most / s <= 4.5), 100)
    return [tick * step for tick in range(int(most / step) + 1)]


def _open(width: int, height: int, title: str) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>'


def _path(kind: str, points: Sequence[tuple[float, float]]) -> str:
    return f'<path class="curve {kind}" d="M' + " L".join(f"{x:.1f} {y:.1f}" for x, y in points) + '"/>' if points else ""


def _dot(kind: str, x: float, y: float, radius: float) -> str:
    return f'<circle class="dot {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>'
