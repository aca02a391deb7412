"""What of a run may stand in a log: masks, URLs, digests that a stranger can make again, and statements that fit."""

import hashlib
import subprocess

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.core.ports import ChangedFile
from modelkeep.core.values import Digest, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody import provenance as p
from modelkeep.custody.salting import salted
from modelkeep.errors import Invalid, TooLarge
from modelkeep.ledger.attestations import Environment, Isolation, Machine, TrainingRun
from modelkeep.ledger.statements import predicate_of, sign_statement

D = digest_of(b"model")
REPORT = p.RunReport(
    command=("python", "train.py", "--token=abc"),
    code=p.CodeReport("https://ada:secret@git.acme.eu/m.git?x=1", "ab" * 20, b"raw", "cd" * 32),
    environment=Environment("3.11.7", "linux", Digest("sha256:" + "0" * 64), {"numpy": "2.4.6", "a": "1"}),
    machine=Machine("Linux 6.1"),
    started=5,
    ended=9,
    parameters={"lr": "0.1", "api_key": "abc"},
    inputs=(p.DataReport("loans/b.csv", digest_of(b"b")), p.DataReport("loans/a.csv", digest_of(b"a"))),
    outputs=(p.OutputReport("model.onnx", D), p.OutputReport("side.onnx", digest_of(b"side"))),
)
SIGNER = StatementSigner("keep/1", bytes(32), bytes([1]) * 32)


def hide(data):
    return salted(b"s" * 32, data.digest)


def statements(report):
    return p.run_statements(report, p.Verified("good", "ada"), hide, run=bytes(16), actor="ada", at=10)


def said(report):
    return predicate_of(statements(report)[0], TrainingRun)


# -- secrets --

SECRET = "s3cr3t-value"
HIDDEN = [
    ["--token=" + SECRET], ["--hf-token", SECRET], ["--apiKey=" + SECRET], ["--db.password", SECRET], ["--api-key", SECRET],
    ["--AWS_SECRET_ACCESS_KEY=" + SECRET], ["-passphrase", SECRET], ["env", "WANDB_API_KEY=" + SECRET, "python"],
    ["--url", "postgresql://ada:" + SECRET + "@db/x"], ["https://" + SECRET + "@git.acme.eu/x"], ["--privateKey", SECRET],
    ["--x", "hf_" + SECRET.replace("-", "")], ["ghp_" + SECRET], ["sk-" + SECRET], ["--key", "AKIA" + SECRET.upper()],
    ["-c", "-----BEGIN RSA PRIVATE KEY-----\n" + SECRET], ["--credentials=a b " + SECRET + "\nnext"], ["password=" + SECRET],
    ["sh", "-c", "export HF_TOKEN=" + SECRET + "; python train.py"],
    ["+wandb.api_key=" + SECRET],
    ["sh", "-c", "python train.py --password " + SECRET + " --lr 1"], ['{"apiKey": "' + SECRET + '", "lr": 1}'],
    ["--header", "Authorization: Bearer " + SECRET], ["https://host/x?lr=1&access_token=" + SECRET],
]  # fmt: skip
SHOWN = [
    ["python", "train.py", "--lr", "0.1"], ["--tokenizer", "bert-base"], ["--max-tokens", "100"], ["--keys=a,b"],
    ["--monkey", "see"], ["--passes", "3"], ["git@host:m.git"], ["https://host/@scope/x"], ["--token", "--lr", "0.1"],
    ["--secretary", "ann"], ["sh", "-c", "lr=0.1 python --tokenizer bert 'a: b'"], ["https://host/x?lr=1&y=2"],
    ["--key", "x"], ["token"],
]  # fmt: skip


@pytest.mark.parametrize("words", HIDDEN, ids=" ".join)
def test_what_looks_like_a_secret_is_masked(words):
    shown = p.masked(["python", *words, "--epochs", "3"])
    assert SECRET.lower() not in "\n".join(shown).lower()
    assert SECRET.replace("-", "") not in "\n".join(shown)
    assert p.MASK in "\n".join(shown)
    assert shown[-2:] == ("--epochs", "3")
    assert len(shown) == len(words) + 3


@pytest.mark.parametrize("words", SHOWN, ids=" ".join)
def test_everything_else_stays_as_it_is(words):
    assert p.masked(words) == tuple(words)


@given(st.lists(st.text(max_size=30), max_size=6))
@settings(max_examples=100)
def test_masking_keeps_the_number_of_words_and_is_done_once(words):
    once = p.masked(words)
    assert len(once) == len(words)
    assert p.masked(once) == once


URLS = {
    "https://ada:secret@git.acme.eu/m.git": "https://git.acme.eu/m.git",
    "https://token@git.acme.eu:8443/m.git?access_token=1#x": "https://git.acme.eu:8443/m.git",
    "ssh://git@git.acme.eu/m.git": "ssh://git@git.acme.eu/m.git",
    "ssh://ada:pw@git.acme.eu/m.git": "ssh://git.acme.eu/m.git",
    "git@git.acme.eu:team/m.git": "git@git.acme.eu:team/m.git",
    "/srv/ada/code": "",
    "file:///srv/code": "",
    "ext::sh -c evil": "",
    "https://[broken": "",
    "": "",
}


@pytest.mark.parametrize(("url", "shown"), URLS.items())
def test_urls_lose_their_credentials(url, shown):
    assert p.public_url(url) == shown


# -- digests --


def test_a_manifest_is_what_sha256sum_prints(tmp_path):
    files = {"b.csv": b"b", "a.csv": b"a", "deep/c d.csv": b"c"}
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    printed = subprocess.run(
        ["sh", "-c", "find * -type f | xargs -d '\\n' sha256sum | LC_ALL=C sort"], cwd=tmp_path, capture_output=True, check=True
    ).stdout
    assert p.manifest_digest((name, digest_of(data)) for name, data in files.items()) == digest_of(printed)


def test_the_digest_of_changes():
    changes = {"z.py": ChangedFile("100644", "11" * 32, True), "a.py": ChangedFile("000000", "0" * 64, True)}
    expected = f"000000 {'0' * 64} a.py\x00100644 {'11' * 32} z.py\x00".encode()
    assert p.changes_digest(changes) == hashlib.sha256(expected).hexdigest()
    assert p.changes_digest(dict(reversed(changes.items()))) == p.changes_digest(changes)
    assert p.changes_digest({}) == ""
    assert p.changes_digest({"\udcff": ChangedFile("100644", "11" * 32, False)})


def test_the_lock_is_that_of_the_packages():
    found = said(REPORT).environment
    assert found.lock == digest_of(b"a==1\nnumpy==2.4.6\n")
    assert found.packages == {"a": "1", "numpy": "2.4.6"}


# -- statements --


def test_one_statement_about_each_output():
    made = statements(REPORT)
    assert [one.subject[0].digest for one in made] == [D, digest_of(b"side")]
    assert made[0].predicate == made[1].predicate
    run = said(REPORT)
    assert run.command == ("python", "train.py", "--token=***")
    assert run.parameters == {"lr": "0.1", "api_key": "***"}
    assert (run.code.repository, run.code.dirty, run.code.changes) == ("https://git.acme.eu/m.git", True, "cd" * 32)
    assert (run.code.signature, run.code.signer) == ("good", "ada")
    assert run.outputs == {"model.onnx": D, "side.onnx": digest_of(b"side")}


def test_data_is_named_by_salted_digests():
    run = said(REPORT)
    assert [(one.name, one.digest) for one in run.inputs] == [
        (f"loans/{name}.csv", salted(b"s" * 32, digest_of(name.encode()))) for name in "ab"
    ]
    assert digest_of(b"a") not in msgspec.json.encode(run).decode()


def test_many_inputs_are_said_in_one_line_a_data_set():
    many = tuple(p.DataReport(f"images/{i:05}.png", digest_of(b"%d" % i)) for i in range(5000))
    one = p.DataReport("labels.csv", digest_of(b"labels"))
    run = said(msgspec.structs.replace(REPORT, inputs=(*many, one)))
    manifest = p.manifest_digest((f"{i:05}.png", digest_of(b"%d" % i)) for i in range(5000))
    assert [(found.name, found.files) for found in run.inputs] == [("images/", 5000), ("labels.csv", 0)]
    assert run.inputs[0].digest == salted(b"s" * 32, manifest)


def test_many_packages_leave_their_lock():
    packages = {f"package-with-a-long-name-{i:05}": "1.2.3" for i in range(2000)}
    run = said(msgspec.structs.replace(REPORT, environment=Environment.of("3.11.7", "linux", packages)))
    assert run.environment.packages == {}
    assert run.environment.lock == Environment.of("3.11.7", "linux", packages).lock


@pytest.mark.parametrize("count", [300, 360, 420, 1000])
def test_whatever_is_said_fits_a_log_entry(count):
    many = tuple(p.DataReport(f"images/{i:05}.png", digest_of(b"%d" % i)) for i in range(count))
    for one in statements(msgspec.structs.replace(REPORT, inputs=many)):
        sign_statement(one, SIGNER)


WRONG = {
    "no command": {"command": ()},
    "an empty command": {"command": ("",)},
    "a long command": {"command": ("x" * 9000,)},
    "a command that is no text": {"command": ("\udcff",)},
    "no outputs": {"outputs": ()},
    "two outputs of one name": {"outputs": (p.OutputReport("m", D), p.OutputReport("m", D))},
    "an end before the start": {"started": 9, "ended": 5},
    "no start": {"started": 0},
    "a digest that is none": {"outputs": (p.OutputReport("m", Digest("sha256:0")),)},
    "an input whose digest is none": {"inputs": (p.DataReport("m", Digest("md5:0")),)},
    "a name over two lines": {"inputs": (p.DataReport("a\nb", D),)},
    "a name that turns around": {"outputs": (p.OutputReport("a\u202eb", D),)},
    "too many outputs": {"outputs": tuple(p.OutputReport(f"m{i}", D) for i in range(201))},
    "too many parameters": {"parameters": {str(i): "" for i in range(201)}},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG.keys())
def test_reports_that_cannot_be(change):
    with pytest.raises(Invalid):
        statements(msgspec.structs.replace(REPORT, **change))


def test_what_never_fits_is_refused():
    sets = tuple(p.DataReport(f"{'long' * 40}{i}", D) for i in range(900))
    with pytest.raises(TooLarge):
        statements(msgspec.structs.replace(REPORT, inputs=sets))


ISOLATION = Isolation("bubblewrap 0.8.0", "none", digest_of(b"filter"), digest_of(b"mounts"), "watched", environment=("A",))


def test_what_held_a_run_is_said_as_it_was_reported():
    assert said(msgspec.structs.replace(REPORT, isolation=ISOLATION)).isolation == ISOLATION
    assert said(REPORT).isolation is None


TOO_MUCH = [{"engine": "x" * 201}, {"environment": ("A",) * 201}, {"environment": ("A" * 201,)}]


@pytest.mark.parametrize("change", [{"seccomp": "sha256:0"}, {"mounts": ""}, *TOO_MUCH], ids=str)
def test_isolation_that_cannot_be(change):
    report = msgspec.structs.replace(REPORT, isolation=msgspec.structs.replace(ISOLATION, **change))
    with pytest.raises(Invalid):
        report.check()
