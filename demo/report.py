"""The report: one HTML file that needs nothing else, light or dark as the reader prefers."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from demo.findings import Check, ClientRow, Findings, ModelCard, Stand, Suspect, ThiefRow
from demo.plots import fidelity_plot, stand_plot, trace_plot

SIGNIFICANCE = 1e-3
"""An account is named below this corrected p-value."""

_STYLE = Path(__file__).with_name("style.css")


def render(found: Findings, *, seconds: float, when: str) -> str:
    """The whole page. ``seconds``: how long the demo took; ``when``: the date, as the reader shall see it."""
    good = sum(check.held for check in found.checks)
    verdict = f"All {good} checks held" if found.held else f"{len(found.checks) - good} of {len(found.checks)} checks failed"
    sections = [
        _section("What had to hold", "", _checks(found.checks)),
        _section("Before the model file", _LEARNT, _stands(found.stands) + _facts(found.learnt)),
        _section("Thieves", _THIEVES, _thieves(found.thieves)),
        _section("Honest accounts", _HONEST, _clients(found.clients)),
        _section("Whose copy is it?", _TRACE, _suspects(found.suspects)),
        _section("What happened", "", _timeline(found)),
        _section("Under protection", "", _models(found.models) + _facts(found.facts)),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" content="light dark">'
        f"<title>modelkeep demo: {escape(verdict.lower())}</title><style>{_STYLE.read_text('utf-8')}</style></head><body><main>"
        f'<header class="{"good" if found.held else "bad"}"><p class="brand">modelkeep demo</p><h1>{verdict}</h1>'
        f"<p>{_summary(found)}</p>"
        f'<p class="meta">{escape(when)} · {seconds:.0f} seconds from training to this page</p></header>'
        + "".join(sections)
        + "<footer>Made by <code>make demo</code>. Every figure on this page was measured in that run; those of accounts and "
        "copies over HTTPS, against the same gateway that <code>modelkeep up</code> starts.</footer></main></body></html>\n"
    )


_LEARNT = (
    "The training rows are sealed, checked, and handed to the training in memory. The model that came out is attacked without "
    "a look inside: each pixel of an unseen digit may change by a tenth of its range. It is hardened on the same sealed rows, "
    "and attacked again. Bars are intervals at 95 %."
)
_THIEVES = (
    "Each thief owns 40 natural rows and an API key, asks through the gateway and trains a copy on the answers. "
    "<em>Fidelity</em> is how often the copy and the model agree on rows that neither the thief nor the training saw. "
    "The grey curve is the same attack with no defence."
)
_HONEST = (
    "Twenty accounts with different habits ask rows that the model never saw. An alarm on any of them, or a single top answer "
    "that differs from the bare model's, fails the demo. Waits are those of clients that share two cores with the "
    "gateway, with control and with the thieves; <code>make bench</code> measures the gateway by itself."
)
_TRACE = (
    "One account asks only natural questions, so nothing about it looks like theft, and trains a copy on what it was answered. "
    "But every account's answers carry a keyed mark of its own, and the copy has learnt it. The dashed line is where an "
    "accusation begins; accounts left of it are never named."
)


def _section(title: str, lead: str, body: str) -> str:
    introduction = f'<p class="lead">{lead}</p>' if lead else ""
    return f"<section><h2>{escape(title)}</h2>{introduction}{body}</section>" if body else ""


def _summary(found: Findings) -> str:
    answered = sum(client.answered for client in found.clients)
    alarms = sum(client.alarms for client in found.clients)
    changed = sum(client.changed for client in found.clients)
    stopped = [thief.queries for thief in found.thieves if thief.stopped == "review-required"]
    parts = [
        f"{len(found.clients)} honest accounts got {answered:,} answers, {alarms} alarms and {changed} changed top answers"
    ]
    if stopped:
        parts.append(f"{len(stopped)} of {len(found.thieves)} thieves were stopped, after {_spread(stopped)} queries")
    named = [suspect for suspect in found.suspects if suspect.owner]
    if named:
        parts.append(
            f"the stolen copy was traced to {escape(named[0].owner)} (p = {_p(dict(named[0].p_values)[named[0].owner])})"
        )
    return "; ".join(parts) + "."


def _spread(numbers: Sequence[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _checks(checks: Sequence[Check]) -> str:
    items = "".join(
        f'<li class="{"good" if check.held else "bad"}">'
        f'<span class="mark" role="img" aria-label="{"held" if check.held else "failed"}">{"✓" if check.held else "✗"}</span>'
        f"<div><strong>{escape(check.claim)}</strong><span>{escape(check.seen)}</span></div></li>"
        for check in checks
    )
    return f'<ul class="checks">{items}</ul>'


def _thieves(rows: Sequence[ThiefRow]) -> str:
    figures = "".join(
        f"<figure><figcaption><strong>{escape(row.attack)}</strong> on {escape(row.model)}</figcaption>"
        f"{fidelity_plot(row)}</figure>"
        for row in rows
    )
    table = _table(
        (
            "account",
            "attack",
            "model",
            "#queries answered",
            "ended by",
            "#fidelity then",
            "#with no defence",
            "#commonest class",
        ),
        [
            (
                row.name,
                row.attack,
                row.model,
                f"{row.queries:,}",
                _ENDS.get(row.stopped, row.stopped),
                f"<b>{row.reached:.1%}</b>",
                f"{row.undefended:.1%}",
                f"{row.majority:.1%}",
            )
            for row in rows
        ],
    )
    return f'{_KEY}<div class="figures">{figures}</div>{table}' if rows else ""


_KEY = (
    '<p class="key"><span><i class="swatch kept"></i>through the gateway</span>'
    '<span><i class="swatch bare"></i>with no defence</span></p>'
)
_ENDS = {
    "review-required": "alarm",
    "budget": "its own budget",
    "exhausted": "nothing more to ask",
    "over-budget": "rate or quota",
}


def _clients(rows: Sequence[ClientRow]) -> str:
    most = max((row.answered for row in rows), default=1) or 1
    return _table(
        ("account", "habit", "model", "#answers", "", "#changed", "#alarms", "#p50 ms", "#p99 ms"),
        [
            (
                row.name,
                escape(row.habit),
                row.model,
                f"{row.answered:,}",
                f'<i class="bar" style="width:{row.answered / most:.0%}"></i>',
                f"{row.changed}",
                f"{row.alarms}",
                f"{row.p50_ms:.1f}",
                f"{row.p99_ms:.1f}",
            )
            for row in rows
        ],
    )


def _suspects(suspects: Sequence[Suspect]) -> str:
    figures = "".join(
        f"<figure><figcaption><strong>{escape(suspect.title)}</strong><br>agrees with the model on {suspect.fidelity:.1%}; "
        f"traced to {escape(suspect.owner) or 'nobody'}</figcaption>"
        f"{trace_plot(suspect, SIGNIFICANCE)}</figure>"
        for suspect in suspects
    )
    return f'<div class="figures two">{figures}</div>' if suspects else ""


def _stands(stands: Sequence[Stand]) -> str:
    figures = "".join(
        f"<figure><figcaption><strong>{escape(stand.title)}</strong></figcaption>{stand_plot(stand)}</figure>"
        for stand in stands
    )
    return f'<div class="figures two">{figures}</div>' if stands else ""


def _timeline(found: Findings) -> str:
    items = "".join(f"<li><time>{moment.at:.1f} s</time><span>{escape(moment.what)}</span></li>" for moment in found.timeline)
    return f'<ol class="timeline">{items}</ol>' if items else ""


def _models(models: Sequence[ModelCard]) -> str:
    return _table(
        ("release", "what it is", "#accuracy", "source digest", "#log entry", "#sealed bytes"),
        [
            (
                f"<b>{escape(card.release)}</b>",
                escape(card.title),
                f"{card.accuracy:.1%}",
                f'<code title="{escape(card.digest)}">{escape(card.digest[:19])}…</code>',
                f"{card.log_index:,}",
                f"{card.sealed_bytes:,}",
            )
            for card in models
        ],
    )


def _facts(facts: dict[str, str]) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(said)}</dd>" for name, said in facts.items())
    return f"<dl>{items}</dl>" if items else ""


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """``rows`` hold HTML; a head that begins with # names a column of numbers."""
    numeric = [' class="n"' if head.startswith("#") else "" for head in heads]
    top = "".join(f'<th scope="col"{kind}>{escape(head.lstrip("#"))}</th>' for head, kind in zip(heads, numeric, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, numeric, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>' if rows else ""


def _p(value: float) -> str:
    """A p-value as a reader writes it."""
    if value >= 1e-3:
        return f"{value:.3f}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f'<span class="p">{mantissa} &times; 10<sup>&minus;{abs(int(exponent))}</sup></span>'
