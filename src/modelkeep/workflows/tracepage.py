"""The page of a trace report: what was found, how it was computed, what it does not prove. It asks nothing of a network."""

import datetime
import math
from collections.abc import Mapping
from html import escape

from modelkeep.core.page import STYLE
from modelkeep.extraction.accusation import Together
from modelkeep.workflows.tracereport import Claim, Opened, caveats

PAGE = "report.html"
_SHOWN = 40
"""Accounts in the plot: those with the smallest p-values."""
_STYLE = """
.bar { fill: var(--bare); } .accused .bar { fill: var(--accent); } .accused text { fill: var(--ink); }
.line { stroke: var(--accent); stroke-dasharray: 4 3; }
"""


_IDEA = """<p>Each answer of the model carried a small mark by a secret key of the account that it was given to. The log
committed to that key before the first answer. A model that learnt from an account's answers learnt its mark, too; one that did
not agrees with the mark no more than chance has it, and the p-value says how rarely chance would agree this well.</p>"""
_METHOD = """<h2>How p is computed</h2>
<p>For a suspect made without the key, the symbols a<sub>i</sub> that the key places on distinct questions are uniform and
independent. M<sub>i</sub>[a] is how much more of class a the suspect answers to question i than a fit on its answers to the
probes expects, clipped to ±1; no key is in it. For every λ,</p>
<pre>e(λ) = Π<sub>i</sub> exp(λ M<sub>i</sub>[a<sub>i</sub>]) / mean<sub>a</sub> exp(λ M<sub>i</sub>[a])</pre>
<p>has mean 1. So has the mean over a fixed grid of λ, three ways to read an answer, the fresh symbols of the questions, the
shared symbols of the probes and both together, and so have the ways that came later, which have a twenty-fifth of the weight;
by Markov's inequality p = 1 / e. It is multiplied by the number of accounts. With two classes M<sub>i</sub> is, with a weight
of .005, also how much the answer differs from what boosted trees foresee that learnt the clean answers to the questions before
it; no later question is in it.</p>
<p>Of an account that a review had answered falsely, F<sub>i</sub> says whether the key made the answer to question i false,
which it does for a share q of them, and S<sub>i</sub> how much the suspect looks as if it had been taught that; then</p>
<pre>e(λ) = Π<sub>i</sub> exp(λ S<sub>i</sub> F<sub>i</sub>) / (1 - q + q exp(λ S<sub>i</sub>))</pre>
<h2>Run it again</h2><p>With this folder and the keep's public <code>trust.toml</code>, and no database:</p>
<pre>modelkeep trace-check FOLDER --trust trust.toml --suspect suspect.onnx</pre>"""


def render(claim: Claim, p_values: Mapping[str, float], origin: str) -> bytes:
    """One page of HTML, UTF-8. ``p_values``: corrected, of every account, by pseudonym; ``origin``: the keep's name."""
    accused = claim.accused
    names = ", ".join(dict.fromkeys(one.subject for one in accused if one.corrected <= claim.significance))
    names = names or "; ".join(f"one of {', '.join(one.members)}" for one in claim.together)
    title = f"The suspect was taught by answers to {names}" if accused else "The suspect is traced to no account"
    probes = {
        "data": "rows that the owner handed in",
        "theirs": "rows that the other side handed in",
        "beacon": "drawn by a beacon",
        "log": "drawn by the suspect's digest",
    }
    facts = {
        "Suspect": f"{claim.suspect.name} ({claim.kind}), {claim.suspect.digest}",
        "Model": f"{claim.release}, {claim.model.digest}",
        "Keep": origin,
        "Accounts tested": f"{claim.accounts:,}",
        "Probes": f"{len(claim.probes.x):,}, {probes[claim.how]}" + (f" ({claim.said})" if claim.said else ""),
        **_pool(claim),
        "Mark": f"at most {claim.epsilon:g} in L1, {claim.decimals} decimals",
        **({"Seen by": _moment(claim.seen)} if claim.seen else {}),
        "Accused at": f"p ≤ {claim.significance:g} after Bonferroni",
    }
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    parts = [
        f"{head}<style>{STYLE}{_STYLE}</style></head><body><main>",
        f'<p class="soft">modelkeep trace report, {_moment(claim.at)}</p><h1>{escape(title)}</h1>{_IDEA}<dl>',
        *(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
        "</dl><h2>Every account</h2>",
        _plot(p_values, {one.subject for one in accused}, claim.significance),
        *(_account(one) for one in accused),
        *(_group(one) for one in claim.together),
        _METHOD,
        "<h2>What this does not prove</h2><ul>",
        *(f"<li>{escape(one)}</li>" for one in caveats(claim.shown)),
        "</ul></main></body></html>\n",
    ]
    return "\n".join(parts).encode()


def _pool(claim: Claim) -> dict[str, str]:
    if claim.pooled is None:
        return {}
    by = f"the value {claim.beacon.hex()} and the suspect's digest" if claim.beacon else "the suspect's digest alone"
    said = f"{claim.pooled.rows:,} rows, Merkle root {claim.pooled.root}, in entry {claim.pooled.entry:,} of the releases log"
    return {"Drawn of": f"{said}; by {by}"}


def _moment(ns: int) -> str:
    return datetime.datetime.fromtimestamp(ns / 1e9, datetime.UTC).strftime("%d %B %Y, %H:%M UTC")


def _account(one: Opened) -> str:
    fine = max(value for name, value in one.statistics.items() if name.startswith("fine-"))
    smooth = max(value for name, value in one.statistics.items() if name.startswith("smooth-"))
    title = f"{one.subject}, epoch {one.epoch}" if one.epochs > 1 else one.subject
    whole = (
        f" This is of the run of its {one.epochs} epochs that says most, and corrected for how many runs there are."
        if one.epochs > 1
        else ""
    )
    return (
        f"<h2>{escape(title)}</h2><p>p = {one.p:.2g}, {one.corrected:.2g} after Bonferroni.{whole} It asked "
        f"{len(one.heard.x):,} distinct questions. Its fresh symbols alone are worth e = 10<sup>{fine:.1f}</sup>, the shared "
        f"ones, read on the probes, 10<sup>{smooth:.1f}</sup>. {_lied(one)}Entry {one.entry:,} of the releases log commits to "
        "this key, which this report opens.</p>"
    )


def _group(one: Together) -> str:
    shared = (
        f"They share {escape(one.name)}. " if one.name else "That they have to do with each other was not known beforehand. "
    )
    lower = f" {one.others} other members of that cluster count one half each." if one.others else ""
    return (
        f"<h2>{escape(', '.join(one.members))}, together</h2><p>p = {one.p:.2g} after Bonferroni over {one.tests:.3g} groups "
        f"that could have been named, by the product of their e-values. {shared}It says that somebody among them taught the "
        f"suspect, and not that everybody did.{lower}</p>"
    )


def _lied(one: Opened) -> str:
    """What was false for a deceived account, and what that is worth."""
    parts = []
    if one.lied is not None:
        parts.append(
            f"After a review {one.lied.share:.1%} of its regions were answered falsely, which is worth "
            f"10<sup>{one.statistics['false']:.1f}</sup>. "
        )
    if one.flipped is not None:
        parts.append(
            f"After a review {one.flipped.share:.1%} of its labels were flipped, which is worth "
            f"10<sup>{one.statistics['flips']:.1f}</sup>. "
        )
    return "".join(parts)


def _plot(p_values: Mapping[str, float], accused: set[str], significance: float) -> str:
    """One bar an account at -log10 of its corrected p; the line is where an accusation begins."""
    shown = sorted(p_values.items(), key=lambda item: (item[1], item[0]))[:_SHOWN]
    row, left, width, foot = 16, 190, 720, 26
    line = -math.log10(significance)
    strengths = [(name, max(0.0, -math.log10(max(p, 1e-300)))) for name, p in shown]
    most = max([2 * line, *(value for _, value in strengths)]) * 1.02
    height = row * len(shown) + foot

    def at(value: float) -> float:
        return left + max(value, 0.0) / most * (width - left - 60)

    parts = [f'<figure><svg viewBox="0 0 {width} {height}" role="img" aria-label="Evidence against every account">']
    for number, (name, value) in enumerate(strengths):
        y = number * row
        marked, label = (' class="accused"', name[:24]) if name in accused else ("", "another account")
        parts.append(
            f'<g{marked}><text x="{left - 8}" y="{y + 11}" text-anchor="end">{escape(label)}</text>'
            f'<rect class="bar" x="{left}" y="{y + 3}" width="{max(at(value) - left, 0.5):.1f}" height="10"/>'
            f'<text x="{at(value) + 5:.1f}" y="{y + 12}">{value:.1f}</text></g>'
        )
    parts.append(f'<line class="line" x1="{at(line):.1f}" x2="{at(line):.1f}" y1="0" y2="{height - foot + 4}"/>')
    parts.append(f'<text x="{at(line) + 5:.1f}" y="{height - 8}">accused from here on: {line:g}</text></svg>')
    more = f" The {_SHOWN} with the smallest of {len(p_values):,}." if len(p_values) > _SHOWN else ""
    return "".join(parts) + f"<figcaption>-log10 of p, corrected.{more}</figcaption></figure>"
