"""The JSON Schemas under docs/formats/schemas: they say what the structs say; samples satisfy them, broken ones do not."""

import copy
import json
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator
from test_ledger_statements import MODEL, SAMPLES

from modelkeep.core.values import Statement
from modelkeep.errors import Invalid
from modelkeep.ledger import attestations as a
from modelkeep.ledger import kinds as k
from modelkeep.ledger import statements as s

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "docs" / "formats" / "schemas"
KINDS = {type(sample): s.make_statement(sample, MODEL).predicate for sample in SAMPLES}
IDS = [k.short_type(kind.TYPE) for kind in KINDS]


def validator(kind):
    return Draft202012Validator(json.loads((SCHEMAS / f"{k.short_type(kind.TYPE)}.json").read_text("utf-8")))


def decodes(kind, predicate):
    try:
        s.predicate_of(Statement((MODEL,), kind.TYPE, predicate), kind)
    except Invalid:
        return False
    return True


def test_the_committed_schemas_are_the_generated_ones(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.delitem(sys.modules, "schemas", raising=False)
    import schemas

    committed = {path.name: path.read_text("utf-8") for path in SCHEMAS.iterdir()}
    assert committed == schemas.texts(), "run python tools/schemas.py"


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_a_sample_satisfies_its_schema_which_is_one(kind):
    found = validator(kind)
    found.check_schema(found.schema)
    found.validate(KINDS[kind])
    assert found.schema["$id"] == kind.TYPE
    assert found.schema["description"]


@pytest.mark.parametrize("kind", KINDS, ids=IDS)
def test_broken_samples_do_not_and_are_not_read_either(kind):
    """Every required field left out, and every field, at every depth, given a type that it never has."""
    found, tried = validator(kind), 0
    for broken in wrecks(KINDS[kind], found.schema, found.schema.get("$defs", {})):
        assert not found.is_valid(broken), broken
        assert not decodes(kind, broken), broken
        tried += 1
    assert tried > len(found.schema["required"])


def wrecks(value, schema, known):
    """Copies of ``value`` with one thing broken in each."""
    schema = known[schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    if isinstance(value, dict) and "properties" in schema:
        for name in schema["required"]:
            yield {key: kept for key, kept in value.items() if key != name}
        for name, field in schema["properties"].items():
            yield {**value, name: [[]]}
            for wreck in wrecks(value[name], field, known):
                yield {**value, name: wreck}
    elif isinstance(value, list) and isinstance(schema.get("items"), dict):
        for wreck in (wreck for item in value[:1] for wreck in wrecks(item, schema["items"], known)):
            yield [wreck]


BOUNDS = {
    "a verdict that is none": (a.Approval, ("verdict",), "maybe"),
    "a share above one": (a.Evaluation, ("metrics", "accuracy", "confidence"), 1.5),
    "a negative epsilon": (a.Privacy, ("epsilon",), -0.1),
    "a delta above one": (a.Privacy, ("delta",), 2.0),
    "a commitment that is too short": (a.Watermark, ("commitment",), "ef"),
    "a severity that is none": (a.Vulnerabilities, ("advisories", 0, "severity"), "grave"),
    "a commit that is none": (a.TrainingRun, ("code", "commit"), "main"),
    "a negative count": (a.Vulnerabilities, ("audited",), -1),
}


@pytest.mark.parametrize(("kind", "path", "value"), BOUNDS.values(), ids=BOUNDS.keys())
def test_values_out_of_bounds_are_refused_by_the_schema_and_by_the_reader(kind, path, value):
    broken = copy.deepcopy(KINDS[kind])
    place = broken
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    assert not validator(kind).is_valid(broken)
    assert not decodes(kind, broken)


def test_a_digest_has_the_form_of_one():
    broken = {**KINDS[a.TrainingRun], "outputs": {"model.onnx": "sha256:short"}}
    assert not validator(a.TrainingRun).is_valid(broken)


def test_what_no_reader_would_take_is_never_said():
    with pytest.raises(Invalid, match="malformed"):
        s.make_statement(a.Privacy(actor="ada", at=1, epsilon=-1.0, delta=0.0, accountant="prv"), MODEL)
    with pytest.raises(Invalid, match="malformed"):
        s.make_statement(a.Privacy(actor="ada", at=1, epsilon=float("nan"), delta=0.0, accountant="prv"), MODEL)
