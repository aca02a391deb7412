"""Bills of materials: valid CycloneDX 1.7 by its official schema, whatever the statements say; the same bytes every time."""

import datetime
import json
from importlib.resources import files

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator, FormatChecker
from referencing import Registry
from referencing import Resource as SchemaResource

from modelkeep.core.values import ModelSignature, ReleaseRef, Resource, Statement, TensorSpec, digest_of, to_json
from modelkeep.custody.bom import made_through, write_bill
from modelkeep.custody.dossier import Told, compile_dossier
from modelkeep.errors import Invalid, Missing
from modelkeep.ledger import attestations as a
from modelkeep.ledger import predicates as p
from modelkeep.ledger.statements import statement_id

MODEL, OTHER = digest_of(b"model"), digest_of(b"another model")
REF = ReleaseRef("credit", 1)
ORIGIN = "modelkeep.local/abc"
TRAIN = a.Salted("loans@3", digest_of(b"salted loans"))
TEST = a.Salted("holdout.csv", digest_of(b"salted holdout"))
WHO = {"actor": "acc_1", "at": 1_800_000_000 * 10**9}
SIDES = ModelSignature((TensorSpec("x", "FP32", (-1, 30)),), (TensorSpec("label", "INT64", (-1,)),))
RELEASE = p.Release(
    name="credit", version=1, filename="model.onnx", format="onnx", size=900, interface=SIDES, evidence={}, **WHO
)
APGD = a.Attack("apgd-ce", "linf", 0.03, 100)
ACCURACY = a.Measure(0.93, 0.91, 0.95, 400)


def run(**more):
    packages = {"numpy": "2.1.0", "torch": "2.1.0+cu118", "bad name!": "1"}
    environment = a.Environment("3.11.9", "linux", digest_of(b"lock"), packages)
    facts = dict(  # noqa: C408  # these are arguments
        run="ab" * 16,
        command=("python", "train.py", "--name", "it's"),
        code=a.Code("ssh://git", "cd" * 20),
        environment=environment,
        machine=a.Machine("Linux", "x86", 2, 1 << 33, ("A100",)),
        started=1_799_999_000 * 10**9,
        ended=1_799_999_900 * 10**9,
        parameters={"lr": "0.1"},
        inputs=(TRAIN, TRAIN),
        outputs={"model.onnx": MODEL},
    )
    return a.TrainingRun(**{**facts, **more}, **WHO)


FOUND = a.Advisory("GHSA-1", "torch", "2.1.0+cu118", "critical", 9.8, ("2.2.0",), ("CVE-1",))
LOOKED = a.Vulnerabilities(
    source="OSV PyPI",
    snapshot=digest_of(b"zip"),
    snapshot_at=1_799_000_000 * 10**9,
    lock=digest_of(b"lock"),
    audited=1,
    unaudited=("odd==1: X cannot be compared with a version",),
    advisories=(FOUND, a.Advisory("PYSEC-2", "jinja2", "3.1", "unknown")),
    **WHO,
)
TAGS = (
    "user:underwriters",
    "limitation:not-for-minors",
    "task:tabular-classification",
    "approach:supervised",
    "approach2:x",
    "pd",
)
FULL = (
    (RELEASE, MODEL),
    (p.Scan(scanner="modelkeep", rules_version="1", format="onnx", size=900, clean=True, **WHO), MODEL),
    (
        p.Metadata(
            release="credit@1",
            id="ab" * 16,
            owner="risk",
            classification="internal",
            licence="Apache-2.0",
            description="Scores",
            tags=TAGS,
            card=p.CardBody(digest_of(b"card"), "00", "00", 9),
            **WHO,
        ),
        MODEL,
    ),
    (run(), MODEL),
    (
        a.Dataset(name="loans@3", format="csv", size=9, rows=3, licence="CC0-1.0", source="bank", personal=True, **WHO),
        TRAIN.digest,
    ),
    (
        a.Evaluation(
            suite="holdout", metrics={"accuracy": ACCURACY, "auc": a.Measure(0.98, 0.97, 0.99, 400)}, dataset=TEST, **WHO
        ),
        MODEL,
    ),
    (a.Hardening(method="pgd-at", attack=APGD, robust=a.Measure(0.61, 0.58, 0.64, 400), clean=ACCURACY, **WHO), MODEL),
    (a.Privacy(epsilon=3.0, delta=1e-5, accountant="prv", **WHO), MODEL),
    (a.Watermark(scheme="trigger-set", commitment="ef" * 32, **WHO), MODEL),
    (a.Approval(release="credit@1", verdict="approve", id="cd" * 16, **(WHO | {"actor": "acc_2"})), MODEL),
    (LOOKED, MODEL),
)


def bill(*said, start=5):
    return write_bill(compile_dossier(REF, [told(index, *one) for index, one in enumerate(said, start)]), ORIGIN)


def told(index, said, about):
    statement = Statement((Resource("model.onnx", about),), said.TYPE, msgspec.json.decode(to_json(said)))
    return Told(index, statement_id(statement), "keep/1", about, None, said)


@pytest.fixture(scope="module")
def check():
    """The official schema, with those that it refers to; and that every reference inside the document leads somewhere."""
    folder = files("cyclonedx.schema") / "_res"
    registry = Registry()
    for name in ("spdx", "jsf-0.82", "cryptography-defs"):
        schema = json.loads((folder / f"{name}.SNAPSHOT.schema.json").read_text("utf-8"))
        for uri in (f"{name}.SNAPSHOT.schema.json", f"http://cyclonedx.org/schema/{name}.SNAPSHOT.schema.json"):
            registry = registry.with_resource(uri, SchemaResource.from_contents(schema))
    formats = FormatChecker(())
    formats.checks("date-time", ValueError)(lambda text: bool(datetime.datetime.fromisoformat(text).tzinfo))
    schema = json.loads((folder / "bom-1.7.SNAPSHOT.schema.json").read_text("utf-8"))
    validator = Draft7Validator(schema, registry=registry, format_checker=formats)

    def valid(document):
        read = json.loads(document)
        assert [error.message for error in validator.iter_errors(read)] == []
        own = [one["bom-ref"] for one in walk(read) if "bom-ref" in one]
        assert len(own) == len(set(own))
        used = {one["ref"] for one in walk(read) if "ref" in one}
        used |= {below for one in read["dependencies"] for below in one.get("dependsOn", ())}
        assert used <= set(own)
        return read

    return valid


def walk(node):
    if isinstance(node, dict):
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from walk(child)


def test_the_schema_is_one_that_can_say_no(check):
    document = json.loads(bill(*FULL).document)
    for change in ({"specVersion": 9}, {"serialNumber": "x"}, {"surprise": 1}, {"components": [{"type": "library"}]}):
        with pytest.raises(AssertionError):
            check(json.dumps({**document, **change}))
    document["metadata"]["component"]["modelCard"]["modelParameters"]["approach"] = {"type": "by magic"}
    with pytest.raises(AssertionError):
        check(json.dumps(document))
    document = json.loads(bill(*FULL).document)
    document["vulnerabilities"][0]["affects"][0]["ref"] = "pkg:pypi/nowhere@1"
    with pytest.raises(AssertionError):
        check(json.dumps(document))


def test_a_release_of_which_everything_is_known(check):
    made = bill(*FULL)
    read = check(made.document)
    model = read["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "credit", "1")
    assert model["hashes"] == [{"alg": "SHA-256", "content": MODEL[7:]}] and model["licenses"] == [{"expression": "Apache-2.0"}]
    assert read["metadata"]["timestamp"] == "2027-01-15T08:00:00Z"
    card = model["modelCard"]
    assert card["modelParameters"] == {
        "approach": {"type": "supervised"},
        "task": "tabular-classification",
        "datasets": [{"ref": f"data:{TRAIN.digest[7:]}"}],
        "inputs": [{"format": "x FP32[-1, 30]"}],
        "outputs": [{"format": "label INT64[-1]"}],
    }
    metrics = {
        (one["type"], one["slice"].partition(",")[0], one["value"])
        for one in card["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert metrics == {
        ("accuracy", "holdout on holdout.csv", "0.93"),
        ("auc", "holdout on holdout.csv", "0.98"),
        ("accuracy", "hardening by pgd-at", "0.93"),
        ("accuracy", "hardening by pgd-at", "0.61"),
    }
    assert card["quantitativeAnalysis"]["performanceMetrics"][0]["confidenceInterval"] == {
        "lowerBound": "0.91",
        "upperBound": "0.95",
    }
    assert card["considerations"]["users"] == ["underwriters"]
    assert card["considerations"]["technicalLimitations"] == ["not-for-minors"]
    assert "(3, 1e-05)-differential privacy" in card["considerations"]["performanceTradeoffs"][1]
    by_ref = {one["bom-ref"]: one for one in read["components"]}
    assert set(by_ref) == {
        f"data:{TRAIN.digest[7:]}",
        f"data:{TEST.digest[7:]}",
        "pkg:pypi/numpy@2.1.0",
        "pkg:pypi/torch@2.1.0%2Bcu118",
        "pkg:pypi/jinja2@3.1",
    }
    data = by_ref[f"data:{TRAIN.digest[7:]}"]
    assert data["type"] == "data" and data["data"][0]["sensitiveData"] == ["personal data"] and "hashes" not in data
    assert {"name": "modelkeep:salted-digest", "value": TRAIN.digest} in data["properties"]
    flaw = next(one for one in read["vulnerabilities"] if one["id"] == "GHSA-1")
    assert flaw["ratings"] == [{"severity": "critical", "score": 9.8, "method": "other"}]
    assert flaw["affects"][0]["ref"] == "pkg:pypi/torch@2.1.0%2Bcu118" and flaw["recommendation"] == "mended in torch 2.2.0"
    workflow = read["formulation"][0]["workflows"][0]
    assert workflow["steps"][0]["commands"] == [{"executed": """python train.py --name 'it'"'"'s'"""}]
    assert (workflow["timeStart"], workflow["uid"]) == ("2027-01-15T07:43:20Z", "ab" * 16)
    assert {"name": "modelkeep:code:commit", "value": "cd" * 20} in workflow["properties"]
    assert "'bad name!'" in next(one["value"] for one in workflow["properties"] if one["name"].endswith(":unlisted"))
    kinds = [one["comment"].split(" ")[0] for one in model["externalReferences"]]
    assert kinds == [
        "release",
        "scan",
        "metadata",
        "training-run",
        "dataset",
        "evaluation",
        "hardening",
        "privacy",
        "watermark",
        "approval",
        "vulnerabilities",
    ]
    assert model["externalReferences"][3]["url"] == "urn:x-modelkeep:log:modelkeep.local/abc:8"
    properties = [(one["name"], one["value"]) for one in read["metadata"]["properties"]]
    assert ("modelkeep:dependencies:unaudited", "odd==1: X cannot be compared with a version") in properties
    assert made.through == made_through(made.document) == 16
    assert (made.components, made.vulnerabilities, made.serial) == (6, 2, read["serialNumber"])


def test_a_release_of_which_little_is_known(check):
    read = check(bill((RELEASE, MODEL)).document)
    assert read["components"] == [] and "vulnerabilities" not in read and "formulation" not in read
    assert {"name": "modelkeep:dependencies:audited", "value": "never"} in read["metadata"]["properties"]
    assert "considerations" not in read["metadata"]["component"]["modelCard"]


def test_the_same_statements_give_the_same_bytes_and_others_do_not():
    assert bill(*FULL) == bill(*FULL)
    assert bill(*FULL).document.endswith(b"}\n") and b"\r" not in bill(*FULL).document
    serials = {bill(*FULL[:count]).serial for count in range(1, len(FULL) + 1)}
    assert len(serials) == len(FULL)
    assert bill(*FULL, start=6).document != bill(*FULL).document
    elsewhere = write_bill(compile_dossier(REF, [told(5, RELEASE, MODEL)]), "other.example/x")
    assert elsewhere.serial != bill(FULL[0]).serial


def test_a_number_under_an_alarm_is_not_told_without_it():
    measured = a.Evaluation(
        suite="s", metrics={"accuracy": ACCURACY}, attack=msgspec.structs.replace(APGD, knowledge="white-box"),
        alarms=("zero-gradient: at 9 rows",), **WHO,
    )  # fmt: skip
    assert b"white-box, and 1 alarms rang: not to be trusted" in bill(*FULL, (measured, MODEL)).document


def test_the_last_word_stands():
    later = msgspec.structs.replace(LOOKED, advisories=(), at=WHO["at"] + 1)
    assert bill(*FULL, (later, MODEL)).vulnerabilities == 0
    with pytest.raises(Missing):
        compile_dossier(REF, [told(6, LOOKED, MODEL)])


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{}",
        b"[]",
        b"\xff",
        b'{"metadata": {"properties": [5]}}',
        b"[" * 90_000,
        b'"x"',
        b'{"metadata":{"properties":[{"name":"modelkeep:log:through"}]}}',
        b'{"metadata":{"properties":[{"name":"modelkeep:log:through","value":"many"}]}}',
    ],
)
def test_what_is_no_document_of_ours(document):
    with pytest.raises(Invalid):
        made_through(document)


WORDS = st.text(max_size=12)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TIMES = st.integers(-(2**63), 2**63 - 1)
MEASURES = st.builds(a.Measure, NUMBERS, NUMBERS, NUMBERS, st.integers(0, 2**40))
DATA = st.builds(a.Salted, WORDS, st.sampled_from([TRAIN.digest, TEST.digest]))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_whatever_is_said_the_document_is_valid(check, data):
    draw = data.draw
    who = {"actor": draw(WORDS), "at": draw(TIMES)}
    words = st.lists(WORDS, max_size=3).map(tuple)
    packages = draw(
        st.dictionaries(
            st.sampled_from(["numpy", "NumPy", "a-b", "a.b", "é"]) | WORDS, st.sampled_from(["1", "1.0", "x"]) | WORDS
        )
    )
    environment = a.Environment(draw(WORDS), draw(WORDS), MODEL, packages)
    facts = dict(  # noqa: C408  # these are arguments
        run=draw(WORDS),
        command=draw(words),
        code=a.Code(*(draw(WORDS) for _ in range(2))),
        environment=environment,
        machine=a.Machine(draw(WORDS), accelerators=draw(words)),
        started=draw(TIMES),
        ended=draw(TIMES),
        parameters=draw(st.dictionaries(WORDS, WORDS, max_size=3)),
        inputs=draw(st.lists(DATA, max_size=3).map(tuple)),
        outputs=draw(st.dictionaries(WORDS, st.just(MODEL), max_size=2)),
    )
    interface = ModelSignature((TensorSpec(draw(WORDS), draw(WORDS), (1,)),) * 2, ())
    advisories = st.builds(a.Advisory, WORDS, WORDS, WORDS, WORDS, NUMBERS, words, words)
    attack = a.Attack(draw(WORDS), draw(WORDS), draw(NUMBERS), 3)
    said = (
        (msgspec.structs.replace(RELEASE, filename=draw(WORDS), interface=interface, **who), MODEL),
        (
            p.Metadata(
                release="credit@1",
                id="x",
                owner=draw(WORDS),
                classification=draw(WORDS),
                licence=draw(WORDS),
                description=draw(WORDS),
                tags=draw(words),
                **who,
            ),
            MODEL,
        ),
        (a.TrainingRun(**facts, **who), MODEL),
        (
            a.Dataset(name=draw(WORDS), format=draw(WORDS), size=1, licence=draw(WORDS), description=draw(WORDS), **who),
            TEST.digest,
        ),
        (
            a.Evaluation(
                suite=draw(WORDS),
                metrics=draw(st.dictionaries(WORDS, MEASURES, max_size=2)),
                dataset=draw(DATA),
                attack=attack,
                **who,
            ),
            MODEL,
        ),
        (a.Privacy(epsilon=draw(NUMBERS), delta=draw(NUMBERS), accountant=draw(WORDS), **who), MODEL),
        (
            msgspec.structs.replace(
                LOOKED, advisories=draw(st.lists(advisories, max_size=3).map(tuple)), unaudited=draw(words), **who
            ),
            MODEL,
        ),
    )
    check(bill(*said).document)
