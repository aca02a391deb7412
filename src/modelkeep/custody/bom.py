"""A bill of materials of one release: CycloneDX 1.7 with a model card, made from the statements in the log and nothing else.

The same statements give the same bytes on every machine, so whoever has the log can make the document again and compare.
Source: ECMA-424 / CycloneDX 1.7 (cyclonedx.org/docs/1.7/json); docs/bom.md says what becomes of each statement.
"""

import datetime
import json
import shlex
import uuid
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

import msgspec

from modelkeep.core.values import Digest, digest_hex, digest_of
from modelkeep.custody.bomcard import DATA, data_reference, model_card, prop
from modelkeep.custody.cvss import SEVERITIES, UNKNOWN, rank
from modelkeep.custody.dossier import Dossier, Told
from modelkeep.custody.evidence import custody_of
from modelkeep.custody.lockfiles import Packages, installed
from modelkeep.errors import Invalid
from modelkeep.ledger.attestations import Advisory, Dataset, Salted, TrainingRun, Vulnerabilities
from modelkeep.ledger.kinds import short_type
from modelkeep.ledger.predicates import Predicate

FORMAT = "CycloneDX 1.7"
MODEL, RUN = "model", "training-run"
"""``bom-ref`` of the model and of its training run; data sets and packages are called by digest and purl."""
THROUGH = "modelkeep:log:through"
"""Property with the number of log entries that the document was made from."""
_SPACE = uuid.UUID("6f0c2d6e-58a0-5a53-9f0e-6d3c2f1f2b7a")
_LARGEST = 64 << 20


class Bill(msgspec.Struct, frozen=True):
    """A finished document. ``through``: it was made from the first so many entries of the log."""

    document: bytes
    serial: str
    components: int
    vulnerabilities: int
    through: int

    @property
    def digest(self) -> Digest:
        """The SHA-256 of its bytes."""
        return digest_of(self.document)


def write_bill(found: Dossier, origin: str) -> Bill:
    """The bill of materials of a release of the keep ``origin``."""
    everything = found.everything()
    through = everything[-1].index + 1
    named = ",".join((origin, str(found.ref), *(one.id for one in everything)))
    serial = uuid.uuid5(_SPACE, named).urn
    packages = _packages(found)
    libraries = [_library(name, version) for name, version in packages]
    data = [_data(one, found.datasets.get(one.digest)) for one in _salted(found)]
    vulnerabilities = list(_vulnerabilities(found.vulnerabilities))
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.7.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.7",
        "serialNumber": serial,
        "version": 1,
        "metadata": _metadata(found, origin, through),
        "components": [*data, *libraries],
        "dependencies": _dependencies([one["bom-ref"] for one in (*data, *libraries)]),
    }
    if vulnerabilities:
        document["vulnerabilities"] = vulnerabilities
    if found.run is not None:
        document["formulation"] = [_formula(found.run)]
    text = json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"  # ASCII: any terminal bears it
    return Bill(text, serial, 1 + len(data) + len(libraries), len(vulnerabilities), through)


def made_through(document: bytes) -> int:
    """How many log entries a document says it was made from. Raises Invalid (it is no bill of materials of ours)."""
    if len(document) > _LARGEST:
        raise Invalid("this is no bill of materials that modelkeep wrote: it is far too large")
    try:
        found = msgspec.json.decode(document)
        said = {one["name"]: one.get("value") for one in found["metadata"]["properties"]}
        return int(said[THROUGH])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError, TypeError, ValueError, AttributeError) as cause:
        raise Invalid("this is no bill of materials that modelkeep wrote: it does not say what it was made from") from cause


def _metadata(found: Dossier, origin: str, through: int) -> dict[str, Any]:
    release = found.release.said
    made: dict[str, Any] = {
        "tools": {"components": [{"type": "application", "name": "modelkeep"}]},
        "component": _model(found, origin),
        "lifecycles": [{"phase": "post-build"}],
        "properties": [prop("modelkeep:log:origin", origin), prop(THROUGH, str(through)), *_audit(found)],
    }
    if when := _moment(release.at):
        made["timestamp"] = when
    return made


def _audit(found: Dossier) -> Iterator[dict[str, str]]:
    """How far the packages were audited: a reader of no ``vulnerabilities`` must know whether anybody looked."""
    audit = found.vulnerabilities
    if audit is None:
        yield prop("modelkeep:dependencies:audited", "never")
        return
    said = audit.said
    yield prop("modelkeep:dependencies:audited", str(said.audited))
    yield prop("modelkeep:dependencies:snapshot", f"{said.source} {said.snapshot} of {_moment(said.snapshot_at)}")
    yield from (prop("modelkeep:dependencies:unaudited", one) for one in said.unaudited)


def _model(found: Dossier, origin: str) -> dict[str, Any]:
    release, metadata = found.release.said, found.metadata.said if found.metadata else None
    made: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": MODEL,
        "name": release.name,
        "version": str(release.version),
        "hashes": [_sha256(found.release.about)],
        "modelCard": model_card(found),
        "externalReferences": [_reference(one, origin) for one in found.everything()],
        "properties": [
            prop("modelkeep:file:name", release.filename),
            prop("modelkeep:file:size", str(release.size)),
            prop("modelkeep:file:format", release.format),
            prop("modelkeep:custody", custody_of(release.format)),
        ],
    }
    if metadata is None:
        return made
    if metadata.licence:
        made["licenses"] = [{"expression": metadata.licence}]
    if metadata.description:
        made["description"] = metadata.description
    if metadata.tags:
        made["tags"] = list(metadata.tags)
    made["supplier"] = {"name": metadata.owner}
    made["properties"].append(prop("modelkeep:classification", metadata.classification))
    return made


def _reference(one: Told[Predicate], origin: str) -> dict[str, Any]:
    """A statement in the log, by its place; the hash is that of its payload, which is what other statements call it by."""
    return {
        "type": "attestation",
        "url": f"urn:x-modelkeep:log:{quote(origin)}:{one.index}",
        "comment": f"{short_type(one.said.TYPE)} statement, log entry {one.index}, signed by {one.signer}",
        "hashes": [_sha256(one.id)],
    }


def _packages(found: Dossier) -> list[tuple[str, str]]:
    """Of the training run, and of the vulnerabilities, which may have been looked up in lock files."""
    run = installed(found.run.said.environment.packages) if found.run else Packages(())
    advised = found.vulnerabilities.said.advisories if found.vulnerabilities else ()
    return sorted({*run.pins, *((one.package, one.version) for one in advised)})


def _purl(name: str, version: str) -> str:
    """Source: package-url, type ``pypi``."""
    return f"pkg:pypi/{quote(name, safe='')}@{quote(version, safe='')}"


def _library(name: str, version: str) -> dict[str, Any]:
    purl = _purl(name, version)
    return {"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl}


def _salted(found: Dossier) -> list[Salted]:
    """Every data set that is named, each once."""
    inputs = found.run.said.inputs if found.run else ()
    measured = (one.said.dataset for one in found.evaluations)
    named = {one.digest: one for one in (*inputs, *(one for one in measured if one is not None))}
    return [named[digest] for digest in sorted(named)]


def _data(one: Salted, told: Told[Dataset] | None) -> dict[str, Any]:
    """A data set. The digest is of salted data: as a hash it would say something false."""
    content: dict[str, Any] = {"type": "dataset", "name": one.name}
    properties = [prop("modelkeep:salted-digest", one.digest)]
    made: dict[str, Any] = {"type": DATA, "bom-ref": data_reference(one), "name": one.name, "data": [content]}
    if told is not None:
        said = told.said
        properties += [prop(f"modelkeep:data:{name}", value) for name, value in _facts(said)]
        if said.description:
            made["description"] = said.description
        if said.licence:
            made["licenses"] = [{"expression": said.licence}]
        if said.personal:
            content["sensitiveData"] = ["personal data"]
    return {**made, "properties": properties}


def _facts(said: Dataset) -> Iterator[tuple[str, str]]:
    facts = {"format": said.format, "size": str(said.size), "rows": str(said.rows or ""), "source": said.source}
    return ((name, value) for name, value in facts.items() if value)


def _dependencies(below: list[str]) -> list[dict[str, Any]]:
    return [{"ref": MODEL, "dependsOn": below}, *({"ref": one} for one in below)]


def _vulnerabilities(told: Told[Vulnerabilities] | None) -> Iterator[dict[str, Any]]:
    """One for each advisory, which may affect several packages."""
    by_id: dict[str, list[Advisory]] = {}
    for advisory in told.said.advisories if told else ():
        by_id.setdefault(advisory.id, []).append(advisory)
    for identifier, found in sorted(by_id.items()):
        worst = max(found, key=lambda one: (rank(one.severity), one.score))
        rating: dict[str, Any] = {"severity": worst.severity if worst.severity in SEVERITIES else UNKNOWN}
        if worst.score >= 0:
            rating |= {"score": worst.score, "method": "other"}
        made: dict[str, Any] = {
            "bom-ref": f"vulnerability:{identifier}",
            "id": identifier,
            "source": {"name": told.said.source if told else ""},
            "ratings": [rating],
            "affects": [_affects(package, version) for package, version in sorted({(a.package, a.version) for a in found})],
        }
        if aliases := sorted({alias for one in found for alias in one.aliases}):
            made["references"] = [{"id": alias, "source": {}} for alias in aliases]
        if fixed := sorted({f"{one.package} {version}" for one in found for version in one.fixed}):
            made["recommendation"] = f"mended in {', '.join(fixed)}"
        yield made


def _affects(package: str, version: str) -> dict[str, Any]:
    return {"ref": _purl(package, version), "versions": [{"version": version, "status": "affected"}]}


def _formula(told: Told[TrainingRun]) -> dict[str, Any]:
    """How the model was made."""
    run = told.said
    outputs = [prop(f"modelkeep:output:{name}", digest) for name, digest in sorted(run.outputs.items())]
    unlisted = [prop("modelkeep:environment:unlisted", one) for one in installed(run.environment.packages).beyond]
    workflow: dict[str, Any] = {
        "bom-ref": RUN,
        "uid": run.run or "unknown",
        "name": "training run",
        "taskTypes": ["build"],
        "steps": [{"name": "train", "commands": [{"executed": shlex.join(run.command)}]}],
        "outputs": [{"type": "artifact", "resource": {"ref": MODEL}}],
        "properties": [*(prop(name, value) for name, value in _circumstances(run)), *outputs, *unlisted],
    }
    inputs: list[dict[str, Any]] = [{"resource": {"ref": ref}} for ref in _once(data_reference(one) for one in run.inputs)]
    if run.parameters:
        inputs.append({"parameters": [{"name": name, "value": value} for name, value in sorted(run.parameters.items())]})
    if inputs:
        workflow["inputs"] = inputs
    for name, at in (("timeStart", run.started), ("timeEnd", run.ended)):
        if when := _moment(at):
            workflow[name] = when
    return {"bom-ref": "formula", "workflows": [workflow]}


def _circumstances(run: TrainingRun) -> Iterator[tuple[str, str]]:
    code, machine = run.code, run.machine
    facts = {
        "code:repository": code.repository,
        "code:commit": code.commit,
        "code:dirty": "yes" if code.dirty else "no",
        "code:changes": code.changes,
        "code:signature": code.signature,
        "code:signer": code.signer,
        "environment:python": run.environment.python,
        "environment:platform": run.environment.platform,
        "environment:lock": run.environment.lock,
        "machine:system": machine.system,
        "machine:processor": machine.processor,
        "machine:cores": str(machine.cores or ""),
        "machine:memory": str(machine.memory or ""),
        "machine:accelerators": ", ".join(machine.accelerators),
    }
    return ((f"modelkeep:{name}", value) for name, value in facts.items() if value)


def _once(refs: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(refs))


def _sha256(digest: Digest) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest_hex(digest)}


def _moment(nanoseconds: int) -> str:
    """RFC 3339, to the second; "" for a time that is none."""
    if not 0 < nanoseconds < 253_402_300_799 * 10**9:  # the year 9999 is the last that this can be said of
        return ""
    return datetime.datetime.fromtimestamp(nanoseconds // 10**9, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
