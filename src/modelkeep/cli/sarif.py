"""A scan as SARIF 2.1.0, the form that code hosts and dashboards read. Source: OASIS SARIF 2.1.0 (Errata 01), section 3."""

import datetime
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from modelkeep import __version__
from modelkeep.app.scanning import RULES
from modelkeep.app.scanresults import UNREADABLE, FileScan, ScanReport
from modelkeep.core.values import Opinion
from modelkeep.custody.opinions import rule_of
from modelkeep.ledger.predicates import Finding

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
FINGERPRINT = "modelkeep/finding/v1"
"""A finding is the same in another run when rule, place in the file and the file's bytes are."""

_SEVERITIES = {"critical": "9.5", "high": "8.0", "medium": "5.5"}
"""As code hosts grade them: within the bounds that CVSS 3.1 gives these words (section 5)."""


def sarif(report: ScanReport) -> dict[str, Any]:
    """The whole document: one run, a result for each finding, a notification for each file that could not be read."""
    read = [file for file in report.files if file.verdict != UNREADABLE]
    rules = sorted({finding.rule for file in read for finding in file.findings})
    driver = {
        "name": report.scanner,
        "version": __version__,
        "semanticVersion": __version__,
        "rules": [_rule(rule) for rule in rules],
        "properties": {"rulesVersion": report.rules_version},
    }
    run = {
        "tool": {"driver": driver, "extensions": _extensions(read)},
        "invocations": [_invocation(report)],
        "artifacts": [_artifact(file) for file in read],
        "results": [
            _result(file, finding, at, rules.index(finding.rule)) for at, file in enumerate(read) for finding in file.findings
        ],
        "columnKind": "unicodeCodePoints",
    }
    return {"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}


def _rule(rule: str) -> dict[str, Any]:
    known = RULES.get(rule) or rule_of(rule)
    return {
        "id": rule,
        "shortDescription": {"text": known.text},
        "defaultConfiguration": {"level": "error"},
        "properties": {"security-severity": _SEVERITIES[known.severity], "tags": ["security"]},
    }


def _extensions(files: Iterable[FileScan]) -> list[dict[str, str]]:
    """The other scanners that were asked, each once."""
    asked = sorted({(opinion.tool, opinion.version) for file in files for opinion in file.opinions})
    return [{"name": name, "version": version} for name, version in asked]


def _invocation(report: ScanReport) -> dict[str, Any]:
    unread = [file for file in report.files if file.verdict == UNREADABLE]
    notes = [
        {"level": "error", "message": {"text": file.problem}, "locations": [{"physicalLocation": _place(file)}]}
        for file in unread
    ]
    return {
        "executionSuccessful": not unread,
        "startTimeUtc": _moment(report.started),
        "endTimeUtc": _moment(report.ended),
        **({"toolExecutionNotifications": notes} if notes else {}),
    }


def _artifact(file: FileScan) -> dict[str, Any]:
    made: dict[str, Any] = {
        "location": _place(file)["artifactLocation"],
        "properties": {"format": file.format, "verdict": file.verdict, "opinions": [_opinion(one) for one in file.opinions]},
    }
    if file.digest:
        made |= {"length": file.size, "hashes": {"sha-256": _identity(file)}}
    return made


def _identity(file: FileScan) -> str:
    """The hex digits of a file's digest; of its path where it was not opened."""
    return file.digest.removeprefix("sha256:") or hashlib.sha256(file.path.encode()).hexdigest()


def _opinion(opinion: Opinion) -> dict[str, str]:
    return {"tool": opinion.tool, "version": opinion.version, "verdict": str(opinion.verdict), "detail": opinion.detail}


def _result(file: FileScan, finding: Finding, at: int, rule: int) -> dict[str, Any]:
    same = "\0".join((finding.rule, finding.where, _identity(file)))
    place = _place(file)
    place["artifactLocation"]["index"] = at
    return {
        "ruleId": finding.rule,
        "ruleIndex": rule,
        "level": "error",
        "message": {"text": finding.message},
        "locations": [{"physicalLocation": place, "logicalLocations": [{"name": finding.where, "kind": "member"}]}],
        "partialFingerprints": {FINGERPRINT: hashlib.sha256(same.encode()).hexdigest()},
    }


def _place(file: FileScan) -> dict[str, Any]:
    """Where a file is: relative as it was named, or an absolute file: URI (RFC 3986)."""
    path = Path(file.path)
    escaped = quote(path.as_posix())
    return {"artifactLocation": {"uri": f"file://{escaped}" if path.is_absolute() else escaped}}


def _moment(nanoseconds: int) -> str:
    at = datetime.datetime.fromtimestamp(nanoseconds / 1e9, datetime.UTC)
    return at.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
