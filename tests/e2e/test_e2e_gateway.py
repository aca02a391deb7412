"""Bad requests to a running gateway, secrets in whatever it says or keeps, and races of verbs with requests.

Slow headers, slow bodies, a reader that does not read, framing that is ambiguous: tests/http/test_http_protocol.py, over real
sockets. Every malformed body with its words: tests/http/test_http_gateway.py.
"""

import base64
import json
import random
import threading
import time

import numpy as np
import pytest
from commandline import PASSPHRASE
from e2e_house import INFER, RECEIPT, Load, files_of, labels, question, wait_for

from modelkeep.app.keep import Keep
from modelkeep.container import KmsRecipient, unlock
from modelkeep.custody.keys import FAMILIES, MODEL_KEK, STATEMENT_SIGNING, WATERMARK
from modelkeep.errors import Conflict
from modelkeep.workflows.registry import MODEL, RECIPIENTS


@pytest.fixture(scope="module")
def token(open_house):
    return open_house.cli("key", "issue", "alice", "--quota", "1000000", "--json", code=0).json["token"]


def body(data="[" + "0," * 29 + "0]", shape="[1,30]", datatype="FP32", name="x", more=""):
    tensor = f'{{"name":"{name}","datatype":"{datatype}","shape":{shape},"data":{data}}}'
    return f'{{{more}"inputs":[{tensor}]}}'.encode()


row = lambda value: "[" + "0," * 29 + value + "]"  # noqa: E731
BAD = {
    "NaN": (body(row("NaN")), 400),
    "infinity": (body(row("Infinity")), 400),
    "minus infinity": (body(row("-Infinity")), 400),
    "1e39": (body(row("1e39")), 400),
    "1e999": (body(row("1e999")), 400),
    "wrong dtype": (body(datatype="INT64"), 400),
    "no dtype": (body(datatype="FP31"), 400),
    "bytes": (body(datatype="BYTES"), 400),
    "wrong shape": (body(shape="[1,29]"), 400),
    "negative shape": (body(shape="[-1,30]"), 400),
    "huge shape": (body(shape="[9223372036854775807,30]"), 400),
    "wrong rank": (body(shape="[30]"), 400),
    "wrong name": (body(name="../x"), 400),
    "null": (body(row("null")), 400),
    "text": (body(row('"1"')), 400),
    "duplicate keys": (body(more='"id":"1","id":"2",'), 400),
    "10,000 deep": (body("[" * 10_000 + "]" * 10_000), 400),
    "10,000 deep outside": (b"[" * 10_000 + b"]" * 10_000, 400),
    "not JSON": (b"{", 400),
    "no UTF-8": (b'{"id":"\xff"}', 400),
    "empty": (b"", 400),
    "100 MB": (b" " * 100_000_000, 413),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_requests_are_problem_documents(open_house, token, subject, what):
    wait_for(lambda: open_house.ask(token, subject.fresh[:1]).status_code == 200, 60)
    content, status = BAD[what]
    with open_house.client(token) as client:
        answer = client.post(INFER, content=content, headers={"content-type": "application/json"})
    problem = answer.json()
    assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json", answer.text
    assert problem["status"] == status and problem["code"] in ("invalid", "too-large") and "\n" not in problem["detail"]
    assert len(answer.content) < 2000 and RECEIPT not in answer.headers
    open_house.check_output()


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v2/models/../../etc/passwd/infer", 404),
        ("/v2/models/%2e%2e/infer", 404),
        ("/v2/models/nothing/infer", 403),
        ("/v2/models/risk/versions/9/infer", 404),
        ("/v2/models/risk/versions/0/infer", 404),
        ("/log/../keys/model-kek.keep", 404),
        ("/log/%2e%2e/keys/model-kek.keep", 404),
        ("/audit/../../keys/checkpoint", 404),
    ],
)
def test_addresses_that_lead_nowhere(open_house, token, subject, path, status):
    with open_house.client(token) as client:
        post = client.post(path, json=question(subject.fresh[:1]))
        got = client.get(path)
    assert post.status_code in (status, 404, 405) and got.status_code in (404, 405), (post.text, got.text)
    assert b"KEEP" not in got.content and post.headers["content-type"] == "application/problem+json"


def secrets_of(house, told):
    """Every secret of a keep by name: what was told once, the passphrase, key material, data keys."""
    keep = Keep.open(house.keep, PASSPHRASE.encode())
    keyring = keep.keyring(FAMILIES)
    found = {name: value.encode() for name, value in told.items()} | {"passphrase": PASSPHRASE.encode()}
    for family in FAMILIES:
        if family not in (STATEMENT_SIGNING, MODEL_KEK):
            found[family] = keyring.secret(family)
    desk = keep.premises.desk()
    for evidence in desk.registry.book.releases():
        block = keep.premises.records.get(RECIPIENTS, evidence.body.sealed).body
        openers = [KmsRecipient(wrapper) for wrapper in keyring.wrappers(MODEL_KEK)]
        found[f"DEK of {evidence.ref}"] = unlock(block, bytes.fromhex(evidence.body.header), openers, purpose=MODEL)
    return found


def forms(secret):
    yield secret
    yield secret.hex().encode()
    yield base64.b64encode(secret).rstrip(b"=")
    yield base64.urlsafe_b64encode(secret).rstrip(b"=")


def test_no_secret_is_said_or_kept(open_house, subject, desk, tmp_path):
    cli = open_house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path))
    made = cli("user", "add", "mole", "--role", "ml_engineer", "--json", code=0).json
    key = cli("key", "issue", "mole", "--json", code=0).json
    (tmp_path / "old").write_text(made["password"])
    (tmp_path / "new").write_text("the mole's second password")
    said = []
    for old, code in (("old", 0), ("new", 0), ("old", 1)):
        ran = cli(
            "--server", open_house.control, "login", "--user", "mole", "--ca", str(open_house.keep / "tls" / "ca.pem"),
            "--password-file", str(tmp_path / old), *(() if said else ("--new-password-file", str(tmp_path / "new"))),
            code=code,
        )  # fmt: skip
        said.append(ran.out + ran.err)
    session = json.loads((tmp_path / "modelkeep" / "sessions.json").read_bytes())[open_house.control]["token"]
    told = {
        "password": made["password"],
        "new password": "the mole's second password",
        "API key": key["token"],
        "session": session,
    }
    for credential in (key["token"], key["token"][:-1] + "x", session, session[:-3] + "abc", made["password"]):
        said.append(open_house.ask(credential, subject.fresh[:1]).text)
        with open_house.client(credential) as client:
            said.append(client.post(open_house.control + "/admin/v1/promote", content=credential.encode()).text)
            said.append(client.post(open_house.control + "/admin/v1/login", content=credential.encode()).text)
            said += [client.get("/metrics").text, client.get(f"/v2/models/{credential[:20]}").text]
    for verb in (("status",), ("key", "list"), ("user", "list"), ("log", "show"), ("keys", "list"), ("show", "risk@1")):
        said.append(cli(*verb, "--json", code=0).out + cli(*verb, code=0).out)
    said.append(cli("--server", open_house.control, "user", "disable", "mole", code=1).err)
    places = dict(files_of(open_house.keep, open_house.folder / "tmp"))
    places[open_house.output] = open_house.output.read_bytes()
    for name, secret in secrets_of(open_house, told).items():
        assert len(secret) >= 16, name
        for form in forms(secret):
            assert all(form not in text.encode() for text in said), f"{name} was said"
            kept = [str(path) for path, data in places.items() if form in data]
            assert not kept, f"{name} stands in {kept}"
    with open("/proc/%d/cmdline" % open_house.address("gateway")[1], "rb") as stream:  # noqa: PTH123, UP031
        assert PASSPHRASE.encode() not in stream.read()


def test_the_gateway_holds_only_what_serving_needs(open_house):
    """P: a broken gateway cannot forge a release: no signing secret is in its memory. Needs to read /proc as root."""
    keyring = Keep.open(open_house.keep, PASSPHRASE.encode()).keyring(FAMILIES)
    pid = open_house.address("gateway")[1]
    try:
        memory = memory_of(pid)
    except PermissionError:
        pytest.skip("the gateway is not dumpable, and only root may look into it all the same")
    assert any(keyring.secret(WATERMARK) in piece for piece in memory_of(pid)), "the test sees its memory"
    for family in ("log-signing", "token-signing"):
        secret = keyring.secret(family)
        assert not any(secret in piece or secret.hex().encode() in piece for piece in memory), family


def memory_of(pid):
    pieces = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        for line in maps:
            span, mode = line.split()[:2]
            start, end = (int(part, 16) for part in span.split("-"))
            if not mode.startswith("rw") or end - start > 256 << 20 or "[vv" in line:
                continue
            try:
                memory.seek(start)
                pieces.append(memory.read(end - start))
            except OSError:
                continue
    return pieces


# -- P3: promote, quarantine and requests race --


def test_no_request_that_starts_after_a_quarantine_is_answered(open_house, token, subject, desk):
    """Two versions, an operator on each in a random order of verbs, clients on both and on the newest; then the history."""
    house = open_house
    house.cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    history = {"1": [(0.0, 0.0, "promote")], "2": []}

    def operate(version):
        keep, choose = Keep.open(house.keep, PASSPHRASE.encode()), random.Random(int(version))
        for _ in range(5):
            verb = choose.choice(["promote", "quarantine", "reinstate"])
            start = time.monotonic()
            try:
                more = {} if verb == "promote" else {"reason": "race"}
                getattr(keep, verb)(ref=f"risk@{version}", **more)
            except Conflict:
                continue
            history[version].append((start, time.monotonic(), verb))
            time.sleep(choose.random() * 0.3)

    loads = [Load(house, token, subject.fresh, threads=1, where=where) for where in (INFER, *map(version_path, ("1", "2")))]
    operators = [threading.Thread(target=operate, args=(version,)) for version in history]
    for load in loads:
        load.__enter__()
    wait_for(lambda: sum(len(load.answered) for load in loads) > 20, 60, house.text)
    for one in operators:
        one.start()
    for one in operators:
        one.join()
    time.sleep(1.2)
    for load in loads:
        load.__exit__()
    events = [event for load in loads for event in load.events]
    assert sum(event.status == 200 for event in events) > 20
    for event in events:
        assert event.status in (200, 404, 423, 503), event
        if event.status == 200:
            assert may_answer(history[event.version], event), (event, history[event.version])
    for version in history:  # and leave it as it was
        state = house.cli("show", f"risk@{version}", "--json").json["release"]["state"]
        if state == "quarantined":
            house.cli("reinstate", f"risk@{version}", "--reason", "the race is over", code=0)
        if state != "promoted":
            house.cli("promote", f"risk@{version}", code=0)
    wait_for(lambda: house.ask(token, subject.fresh[:1]).json().get("model_version") == "2", 60)
    house.cli("log", "verify", code=0)
    house.check_output()


def version_path(version):
    return f"/v2/models/risk/versions/{version}/infer"


def may_answer(history, event):
    """Whether some moment within the request (or the lease before it) saw the version promoted."""
    promoted = [start for start, _, verb in history if verb == "promote" and start <= event.end]
    ended = [end for _, end, verb in history if verb == "quarantine" and end <= event.start]
    return bool(promoted) and (not ended or max(promoted) > max(ended) or promoted_within(history, max(ended), event))


def promoted_within(history, after, event):
    return any(verb == "promote" and end > after and start <= event.end for start, end, verb in history)


def test_two_operators_on_one_release_agree_with_the_log(open_house, token, subject):
    """Promotes and quarantines of one release at once: each either takes effect, once, or says that it did not."""
    house, said = open_house, []

    def operate(verb, number):
        keep = Keep.open(house.keep, PASSPHRASE.encode())
        try:
            getattr(keep, verb)(ref="risk@1", reason=f"operator {number}")
            said.append((verb, "ok"))
        except Conflict:
            said.append((verb, "conflict"))

    threads = [threading.Thread(target=operate, args=("quarantine", number)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(said) == [("quarantine", "conflict")] * 2 + [("quarantine", "ok")]
    assert house.cli("show", "risk@1", "--json").json["release"]["state"] == "quarantined"
    answer = house.ask(token, subject.fresh[:1], where=version_path("1"))
    assert answer.status_code == 423
    assert labels(house.ask(token, subject.fresh[:1])) == [int(np.int64(subject.top1[0]))], "the other version goes on"
    house.cli("reinstate", "risk@1", "--reason", "x", code=0)
    house.cli("promote", "risk@1", code=0)
