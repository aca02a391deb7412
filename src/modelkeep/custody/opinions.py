"""The verdict on a model file: the built-in rules, and second opinions, which can make it worse and never better.

A scanner of others that errs, hangs, is killed, says what nobody understands, or skips the file has not called it clean: so the
file is not. What it said is in the verdict either way, so that a disagreement is on record.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from modelkeep.core.ports import SecondOpinions
from modelkeep.core.values import Opinion, OpinionVerdict
from modelkeep.custody import scan as builtin
from modelkeep.custody.scan import RULES_VERSION, SCANNER, ScanVerdict, scan
from modelkeep.ledger.predicates import Finding, Scan

SECOND_OPINION, FAILED_OPINION, NO_OPINION = "second-opinion", "second-opinion-failed", "second-opinion-missing"


class Rule(NamedTuple):
    """What a finding is about. ``severity``: critical, high or medium."""

    severity: str
    text: str


RULES = {
    SECOND_OPINION: Rule("high", "Another scanner does not call the file clean."),
    FAILED_OPINION: Rule("medium", "Another scanner could not be asked, or gave no answer that can be relied on."),
    NO_OPINION: Rule("medium", "The settings want a second opinion, and no scanner at hand gave one."),
}

Rules = Callable[[memoryview, str], ScanVerdict]
"""Judges a whole file under its name. The verdict names the rules' version."""


class Nobody:
    """No second opinion."""

    def tools(self, format_id: str) -> tuple[tuple[str, str], ...]:  # noqa: ARG002  # there are none for any format
        """None."""
        return ()

    def opinions(self, data: memoryview, format_id: str) -> tuple[Opinion, ...]:  # noqa: ARG002
        """None."""
        return ()


@dataclass(frozen=True)
class Scanner:
    """Whoever judges model files. ``required``: without a second opinion that can be relied on, no file is clean.

    ``rules`` are those called ``name`` in ``rules_version``.
    """

    rules: Rules = scan
    name: str = SCANNER
    rules_version: str = RULES_VERSION
    others: SecondOpinions = field(default_factory=Nobody)
    required: bool = False

    def judge(self, data: bytes | bytearray | memoryview, filename: str) -> ScanVerdict:
        """The verdict on a whole file called ``filename``. Malformed input is a finding, never an error."""
        view = memoryview(data).cast("B")
        found = self.rules(view, filename)
        return weigh(found, self.others.opinions(view, found.format), required=self.required)

    def staleness(self) -> Callable[[Scan | None], bool]:
        """Tells whether a file was judged by other rules or scanners than would judge it now, of any number of files.

        An opinion of a tool that is no longer here still stands. What is installed is looked up once for each format.
        """
        tools = functools.cache(self.others.tools)

        def is_stale(said: Scan | None) -> bool:
            if said is None or said.scanner != self.name or _older(said.rules_version, self.rules_version):
                return True
            heard = {(opinion.tool, opinion.version) for opinion in said.opinions}
            return not heard.issuperset(tools(said.format))

        return is_stale


def weigh(verdict: ScanVerdict, opinions: tuple[Opinion, ...], *, required: bool) -> ScanVerdict:
    """``verdict`` once others were heard: clean only if it was, and each of them says so."""
    findings = [
        Finding(
            FAILED_OPINION if opinion.verdict is OpinionVerdict.FAILED else SECOND_OPINION,
            f"{opinion.tool} {opinion.version}"[:255],
            opinion.detail or "it does not call the file clean, and does not say why",
        )
        for opinion in opinions
        if opinion.verdict is not OpinionVerdict.CLEAN
    ]
    if required and all(opinion.verdict is OpinionVerdict.FAILED for opinion in opinions):
        findings.append(
            Finding(
                NO_OPINION,
                verdict.format,
                "no second opinion was had, and the settings want one: install a scanner that knows the format",
            )
        )
    all_findings = (*verdict.findings, *findings)
    return msgspec.structs.replace(verdict, clean=verdict.clean and not all_findings, findings=all_findings, opinions=opinions)


def undecided(verdict: ScanVerdict) -> bool:
    """Whether the only thing against a file is that another scanner failed: that says something of the scanner."""
    failures = (FAILED_OPINION, NO_OPINION)
    return not verdict.clean and all(finding.rule in failures for finding in verdict.findings)


def rule_of(rule: str) -> Rule:
    """How grave a rule is and what it means, by its id; of one that nobody described, a guess."""
    described: dict[str, tuple[str, str]] = {**getattr(builtin, "RULES", {}), **RULES}
    return Rule(*described.get(rule, ("medium", rule.replace("-", " ").capitalize() + ".")))


def _older(said: str, now: str) -> bool:
    """Versions of rules are whole numbers. Of one that is none nobody knows whether it is older: so it is."""
    return not (said.isdecimal() and now.isdecimal()) or int(said) < int(now)
