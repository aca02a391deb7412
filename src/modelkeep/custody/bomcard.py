"""The model card in a bill of materials: what the model takes and gives, how well it does, and for whom it is.

What nobody said is left out. Task, approach, architecture, users, uses and limitations come from tags of the metadata, such as
``task:tabular-classification`` or ``limitation:not-for-minors``; the sealed card is not for everyone who reads the log, so
nothing of it stands here but its digest. Source: CycloneDX 1.7, ``modelCard``.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from modelkeep.core.values import TensorSpec, digest_hex
from modelkeep.custody.dossier import Dossier, Told
from modelkeep.ledger.attestations import Attack, Evaluation, Hardening, Measure, Privacy, Salted

DATA = "data"
APPROACHES = ("supervised", "unsupervised", "reinforcement-learning", "semi-supervised", "self-supervised")
_TAGS = {"user": "users", "use": "useCases", "limitation": "technicalLimitations"}
"""Tags of the metadata that are considerations of the card."""


def prop(name: str, value: str) -> dict[str, str]:
    """A property."""
    return {"name": name, "value": value}


def data_reference(one: Salted) -> str:
    """The ``bom-ref`` of a data set."""
    return f"{DATA}:{digest_hex(one.digest)}"


def model_card(found: Dossier) -> dict[str, Any]:
    """The card of a release, from its statements."""
    card: dict[str, Any] = {"bom-ref": "model-card", "modelParameters": _parameters(found)}
    metrics = list(_metrics(found))
    if metrics:
        card["quantitativeAnalysis"] = {"performanceMetrics": metrics}
    if considerations := _considerations(found):
        card["considerations"] = considerations
    if properties := list(_properties(found)):
        card["properties"] = properties
    return card


def _parameters(found: Dossier) -> dict[str, Any]:
    interface = found.release.said.interface
    made: dict[str, Any] = {"inputs": _tensors(interface.inputs), "outputs": _tensors(interface.outputs)}
    tags = dict(_tagged(found, ("task", "approach", "architecture")))
    if tags.get("approach") in APPROACHES:
        made["approach"] = {"type": tags["approach"]}
    if "task" in tags:
        made["task"] = tags["task"]
    if "architecture" in tags:
        made["architectureFamily"] = tags["architecture"]
    if found.run is not None and found.run.said.inputs:
        made["datasets"] = [{"ref": ref} for ref in dict.fromkeys(map(data_reference, found.run.said.inputs))]
    return made


def _tensors(specs: Iterable[TensorSpec]) -> list[dict[str, str]]:
    return [{"format": f"{spec.name} {spec.datatype}{list(spec.shape)}"} for spec in specs]


def _tagged(found: Dossier, names: Iterable[str]) -> Iterator[tuple[str, str]]:
    wanted = set(names)
    for tag in found.metadata.said.tags if found.metadata else ():
        name, colon, value = tag.partition(":")
        if colon and value and name in wanted:
            yield name, value


def _metrics(found: Dossier) -> Iterator[dict[str, Any]]:
    for one in found.evaluations:
        for name, measure in sorted(one.said.metrics.items()):
            yield _metric(name, measure, _slice(one.said))
    if found.hardening is not None:
        said = found.hardening.said
        yield _metric("accuracy", said.clean, f"hardening by {said.method}, not attacked")
        yield _metric("accuracy", said.robust, f"hardening by {said.method}, under {_words(said.attack)}")


def _metric(name: str, measure: Measure, where: str) -> dict[str, Any]:
    return {
        "type": name,
        "value": repr(measure.value),
        "slice": f"{where}, {measure.examples} examples, {measure.confidence:g} confidence",
        "confidenceInterval": {"lowerBound": repr(measure.low), "upperBound": repr(measure.high)},
    }


def _slice(said: Evaluation) -> str:
    data = f" on {said.dataset.name}" if said.dataset else ""
    alarms = f", and {len(said.alarms)} alarms rang: not to be trusted" if said.alarms else ""
    return f"{said.suite}{data}{f', under {_words(said.attack)}' if said.attack else ''}{alarms}"


def _words(attack: Attack) -> str:
    norm = f" {attack.norm}" if attack.norm else ""
    steps, knowledge = f", {attack.steps} steps" if attack.steps else "", f", {attack.knowledge}" if attack.knowledge else ""
    return f"{attack.name}{norm} {attack.epsilon:g}{steps}{knowledge}"


def _considerations(found: Dossier) -> dict[str, Any]:
    made: dict[str, list[Any]] = {}
    for name, value in _tagged(found, _TAGS):
        made.setdefault(_TAGS[name], []).append(value)
    tradeoffs = [*_hardened(found.hardening), *_private(found.privacy)]
    return {**made, "performanceTradeoffs": tradeoffs} if tradeoffs else dict(made)


def _hardened(told: Told[Hardening] | None) -> Iterator[str]:
    if told is not None:
        said = told.said
        yield f"hardened by {said.method}: accuracy {said.clean.value:g}, and {said.robust.value:g} under {_words(said.attack)}"


def _private(told: Told[Privacy] | None) -> Iterator[str]:
    if told is not None:
        said = told.said
        yield f"trained with ({said.epsilon:g}, {said.delta:g})-differential privacy for each {said.unit}, {said.mechanism}"


def _properties(found: Dossier) -> Iterator[dict[str, str]]:
    if found.scan is not None:
        said = found.scan.said
        verdict = "clean" if said.clean else "not clean"
        yield prop("modelkeep:scan", f"{verdict}, by {said.scanner}, rules {said.rules_version}")
    if found.privacy is not None:
        privacy = found.privacy.said
        yield prop("modelkeep:privacy:epsilon", repr(privacy.epsilon))
        yield prop("modelkeep:privacy:delta", repr(privacy.delta))
        yield prop("modelkeep:privacy:accountant", privacy.accountant)
    if found.watermark is not None:
        yield prop("modelkeep:watermark", f"{found.watermark.said.scheme} {found.watermark.said.commitment}")
    for approval in found.approvals:
        yield prop("modelkeep:approval", f"{approval.said.verdict} by {approval.said.actor}")
    if found.metadata is not None and found.metadata.said.card is not None:
        yield prop("modelkeep:sealed-card", found.metadata.said.card.sealed)
