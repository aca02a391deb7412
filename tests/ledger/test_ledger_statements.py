"""Statements: the in-toto shape, round trips of every predicate, and what is refused."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.values import Digest, ModelSignature, Resource, Statement, TensorSpec, digest_of
from modelkeep.crypto.dsse import sign_envelope
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.errors import Invalid, NotTrusted, TooLarge
from modelkeep.ledger import attestations as a
from modelkeep.ledger import kinds as k
from modelkeep.ledger import predicates as p
from modelkeep.ledger import statements as s

SIGNER = StatementSigner("keep/1", bytes(32), bytes([1]) * 32)
OTHER = StatementSigner("keep/2", bytes([2]) * 32, bytes([3]) * 32)
D, E = digest_of(b"model"), digest_of(b"sealed")
MODEL = Resource("model.onnx", D)
BY = {"actor": "ada", "at": 1_800_000_000_000_000_000}
INTERFACE = ModelSignature((TensorSpec("x", "FP32", (-1, 30)),), (TensorSpec("p", "FP32", (-1, 2)),))
SAMPLES = [
    p.Scan(
        **BY,
        scanner="modelkeep 0.1",
        rules_version="1",
        format="onnx",
        size=7,
        clean=False,
        findings=(p.Finding("a", "b", "c"),),
    ),
    p.Sealing(**BY, release="m@1", sealed=E, root="ab" * 32, header="cd" * 32, size=9),
    p.Profile(**BY, release="m@1", sealed=E, root="ab" * 32, header="cd" * 32, size=9, rows=200, reference=D),
    p.Release(**BY, name="m", version=1, filename="m.onnx", format="onnx", size=7, interface=INTERFACE, evidence={"scan": D}),
    p.State(**BY, release="m@1", verb="promote", id="00" * 16, reason="ok"),
    p.Act(**BY, verb="user.add", about="bob", detail={"roles": "analyst"}),
    p.TraceCommitments(**BY, release="m@1", entries=(p.Commitment("sub_1", "ef" * 32),)),
    p.Calibration(**BY, release="m@1", id="00" * 16, replaces=-1, kappa=(0.5,), tools=(p.DeclaredTool(D, 90),), accounts=2),
    p.Alias(**BY, name="m", alias="champion", version=2, replaces=1, id="00" * 16),
    p.Metadata(
        **BY,
        release="m@1",
        id="00" * 16,
        owner="risk",
        classification="internal",
        licence="MIT",
        description="d",
        tags=("pd",),
        card=p.CardBody(E, "ab" * 32, "cd" * 32, 9),
    ),
    p.Hold(**BY, release="m@1", verb="add", id="00" * 16, reason="case 7"),
    p.AuditCheckpoint(**BY, origin="keep/audit/1", size=3, root="00" * 32, checkpoint="note", phase="final"),
    p.Policy(**BY, kind="admission", name="custom", text="permit", replaces=-1, id="00" * 16, reason="why"),
    p.Succession(**BY, origin="keep/releases", size=3, root="00" * 32, checkpoint="note", known="later note"),
    p.Trust(
        **BY,
        change="add",
        name="two",
        id="00" * 16,
        may_sign=("scan",),
        releases=("m-*",),
        identity=p.NamedIdentity("two", b"2" * 32, b"3" * 1952),
        reason="a second team",
    ),
    a.TrainingRun(
        **BY,
        run="00" * 16,
        command=("python", "train.py"),
        code=a.Code("git@example.org:m.git", "ab" * 20, True, "good", "ada", "cd" * 32),
        environment=a.Environment("3.11.7", "linux-x86_64", E, {"numpy": "2.4.6"}),
        machine=a.Machine("Linux 6.1", "x86_64", 2, 1 << 30, ("H100",)),
        started=1,
        ended=2,
        parameters={"lr": "0.1"},
        inputs=(a.Salted("loans@3", D),),
        outputs={"model.onnx": D},
    ),
    a.Conversion(
        **BY,
        source=E,
        filename="m.joblib",
        format="joblib",
        scanner="modelkeep/3",
        converter="skl2onnx",
        versions={"skl2onnx": "1.20.0"},
        rows=10,
        reference=D,
        difference=1e-7,
    ),
    a.Dataset(**BY, name="loans@3", format="csv", size=9, rows=3, licence="MIT", source="s3", personal=True, description="d"),
    a.Evaluation(
        **BY,
        suite="holdout",
        metrics={"accuracy": a.Measure(0.9, 0.88, 0.92, 1000)},
        dataset=a.Salted("loans@3", D),
        attack=a.Attack("apgd-ce", "linf", 0.1, 100),
    ),
    a.Hardening(
        **BY,
        method="pgd-at",
        attack=a.Attack("apgd-ce", "linf", 0.1, 100),
        robust=a.Measure(0.8, 0.78, 0.82, 1000),
        clean=a.Measure(0.9, 0.88, 0.92, 1000),
        parameters={"epochs": "30"},
    ),
    a.Privacy(**BY, epsilon=3.0, delta=1e-5, accountant="prv", noise_multiplier=1.1, sample_rate=0.01, steps=100),
    a.Watermark(**BY, scheme="neuralmark", commitment="ef" * 32),
    a.Fingerprint(**BY, scheme="modelkeep-fingerprint/1", commitment="ef" * 32, probes=4000),
    a.Approval(**BY, release="m@1", verdict="approve", id="00" * 16, reason="read it"),
    a.Vulnerabilities(
        **BY,
        source="osv",
        snapshot=E,
        snapshot_at=1,
        lock=D,
        audited=2,
        unaudited=("mine",),
        advisories=(a.Advisory("GHSA-1", "numpy", "1.0", "high", 7.5, ("1.1",), ("CVE-1",)),),
    ),
    a.Bom(**BY, release="m@1", format="CycloneDX 1.7", components=3, serial="urn:uuid:0"),
]


def test_every_predicate_has_a_sample_here():
    assert {type(sample).TYPE for sample in SAMPLES} == set(k.PREDICATES)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda p: k.short_type(p.TYPE))
def test_round_trip_through_a_signed_entry(sample):
    statement = s.make_statement(sample, MODEL)
    opened, identity = s.open_statement(s.sign_statement(statement, SIGNER), OTHER.public, SIGNER.public)
    assert (opened, identity.name) == (statement, "keep/1")
    assert s.predicate_of(opened, type(sample)) == sample
    assert s.statement_id(opened) == s.statement_id(statement)


def test_the_payload_is_an_in_toto_statement():
    """in-toto attestation framework, spec/v1/statement.md."""
    payload = json.loads(s.encode_statement(s.make_statement(SAMPLES[4], MODEL)))
    assert payload["_type"] == "https://in-toto.io/Statement/v1"
    assert payload["subject"] == [{"name": "model.onnx", "digest": {"sha256": D.removeprefix("sha256:")}}]
    assert payload["predicateType"] == "urn:x-modelkeep:state:v1"
    assert payload["predicate"]["verb"] == "promote"


def test_the_payload_is_canonical():
    statement = s.make_statement(SAMPLES[0], MODEL)
    payload = s.encode_statement(statement)
    assert json.dumps(json.loads(payload), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == payload


@given(st.text(max_size=40), st.text(max_size=200))
@settings(max_examples=50)
def test_any_text_survives(name, reason):
    said = p.State(**BY, release="m@1", verb="promote", id="00", reason=reason)
    statement = s.make_statement(said, Resource(name, D))
    assert s.parse_statement(s.encode_statement(statement)) == statement


PAYLOADS = {
    "another _type": b'{"_type":"https://in-toto.io/Statement/v0.1","subject":[{"digest":{"sha256":"%b"}}],"predicateType":"x"}'
    % (b"0" * 64),
    "no subject": b'{"_type":"https://in-toto.io/Statement/v1","subject":[],"predicateType":"x"}',
    "no sha256": b'{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"md5":"00"}}],"predicateType":"x"}',
    "upper-case digest": b'{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":"%b"}}],"predicateType":"x"}'
    % (b"A" * 64),
    "not JSON": b"{",
    "not UTF-8": b'{"_type":"\xff"}',
}


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS.keys())
def test_other_payloads_are_refused(payload):
    with pytest.raises(Invalid):
        s.parse_statement(payload)


def test_a_predicate_of_another_type_or_shape_is_refused():
    with pytest.raises(Invalid, match="expected"):
        s.predicate_of(s.make_statement(SAMPLES[0], MODEL), p.Sealing)
    with pytest.raises(Invalid, match="malformed"):
        s.predicate_of(Statement((MODEL,), p.State.TYPE, {"verb": 7}), p.State)


def test_unknown_signers_are_refused():
    entry = s.sign_statement(s.make_statement(SAMPLES[4], MODEL), SIGNER)
    with pytest.raises(NotTrusted, match="no identity"):
        s.open_statement(entry, OTHER.public)
    with pytest.raises(NotTrusted):
        s.open_statement(sign_envelope("text/plain", b"{}", SIGNER), SIGNER.public)


def test_an_entry_that_cannot_be_logged_is_refused():
    with pytest.raises(TooLarge, match="scan statement"):
        findings = tuple(p.Finding("rule", "where", "x" * 1000) for _ in range(60))
        said = p.Scan(**BY, scanner="m", rules_version="1", format="onnx", size=7, clean=False, findings=findings)
        s.sign_statement(s.make_statement(said, MODEL), SIGNER)
    with pytest.raises(Invalid, match="subject"):
        s.sign_statement(s.make_statement(SAMPLES[4]), SIGNER)


def test_commitments_are_cut_to_fit_entries():
    many = [p.Commitment(f"sub_{i:016x}", f"{i:064x}") for i in range(601)]
    made = list(s.commitment_statements(MODEL, "m@1", many, actor="keep", at=1))
    assert [len(statement.predicate["entries"]) for statement in made] == [250, 250, 101]
    assert all(len(s.sign_statement(statement, SIGNER)) < s.MAX_ENTRY for statement in made)
    assert list(s.commitment_statements(MODEL, "m@1", [], actor="keep", at=1)) == []


def test_names():
    assert k.short_type("urn:x-modelkeep:audit-checkpoint:v1") == "audit-checkpoint"
    assert k.short_type("https://slsa.dev/provenance/v1") == "https://slsa.dev/provenance/v1"
    assert s.keep_resource("keep.example") == Resource("keep.example", Digest(digest_of(b"keep.example")))
