"""Proof of work at the gateway, over HTTP and gRPC: refused, solved by what the documentation shows, told and recorded."""

import hashlib
import re
import socket
import ssl
from pathlib import Path

import numpy as np
import pytest
from gateway_support import PASSPHRASE, live, make_keep, question, records, train
from grpc_support import HEAD, Peer, message

from modelkeep.adapters.targets import HttpTarget
from modelkeep.app.keep import Keep
from modelkeep.core.values import ReleaseRef, Role
from modelkeep.errors import WorkRequired
from modelkeep.extraction.ladder import SHIPPED
from modelkeep.serving.protobuf import write_bytes, write_text

INFER, EXPLAIN = "/v2/models/iris/infer", "/v2/models/iris/explain"
PAGE = (Path(__file__).parents[2] / "docs" / "formats" / "puzzle.md").read_text("utf-8")
WORK = "[mark]\nwork = 8\n[alarm]\nanswer = 'refuse'\n"
EITHER = "[mark]\nwork = 8\nstep-up = true\n[alarm]\nanswer = 'refuse'\n"


@pytest.fixture(scope="module")
def trained():
    return train()


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    folder = tmp_path_factory.mktemp("work") / "keep"
    make_keep(folder, trained)
    settings = folder / "modelkeep.toml"
    settings.write_text(settings.read_text().replace("[gateway]\n", "[gateway]\ngrpc_port = 0\n"))
    made = Keep.open(folder, PASSPHRASE)
    for name in ("bob", "carol"):
        made.user_add(name=name, roles=(Role.ANALYST,))
    made.policy_set(kind="ladder", text=WORK.encode())
    return made


@pytest.fixture(scope="module")
def keys(keep):
    return {name: keep.key_issue(account=name, quota=100_000).token for name in ("alice", "bob", "carol")}


@pytest.fixture(scope="module")
def gateway(keep, keys):
    with live(keep) as running:
        yield running
    assert running.errors == []


@pytest.fixture(scope="module")
def documented():
    """The client that the page shows, as it stands there."""
    found = {}
    exec(re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1], found)  # our own page
    return found


def head(value):
    """A solution's first eight bytes as a number, computed here."""
    raw = bytes.fromhex(value)
    return lambda body: int.from_bytes(hashlib.sha256(raw[:32] + hashlib.sha256(body).digest() + raw[32:]).digest()[:8])


def told(answer):
    """What is to be solved: the number of hashes, and how long it is good."""
    assert (answer.status_code, answer.json()["code"]) == (403, "work-required"), answer.text
    found = re.fullmatch(r'"[0-9a-f]{64}";hashes=(\d+);seconds=(\d+)', answer.headers["modelkeep-puzzle"])
    return int(found[1]), int(found[2])


def test_the_known_answer_of_the_page(documented):
    found = documented["solution"]('"' + bytes(range(32)).hex() + '";hashes=4096;seconds=60', b"a question")
    assert found[64:] == "0000000000000645" == re.search(r"first nonce is ([0-9a-f]{16})", PAGE)[1]


def refusals(gateway):
    """How many there were for want of work."""
    with gateway.client(None) as client:
        found = re.search(
            r'modelkeep_requests_total\{model="iris",outcome="work-required"\} (\d+)', client.get("/metrics").text
        )
    return int(found[1]) if found else 0


def test_a_question_is_answered_for_its_own_work_and_no_other(gateway, keys, trained, documented):
    one, three = question(trained.fresh[:1]), question(trained.fresh[1:4])
    with gateway.client(keys["alice"]) as client, gateway.client(keys["bob"]) as other:
        refused = client.post(INFER, content=one)
        assert told(refused) == (256, 60) and "256 hashes" in refused.json()["detail"]
        assert "www-authenticate" not in refused.headers, "where work alone is asked for"
        solved = documented["solution"](refused.headers["modelkeep-puzzle"], one)
        assert head(solved)(one) < 1 << 56, "eight leading zero bits"
        show = {"modelkeep-solution": solved}
        answers = [client.post(INFER, content=one, headers=show) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 200], "the same again for the same work"
        assert answers[0].json() == answers[1].json()
        again = next(body for body in (question(row) for row in trained.fresh[4:]) if head(solved)(body) >= 1 << 56)
        assert told(client.post(INFER, content=again, headers=show)) == (256, 60), "another question"
        assert told(other.post(INFER, content=one, headers=show)) == (256, 60), "another account"
        assert told(client.post(EXPLAIN, content=one, headers=show)) == (7 * 256, 60), "an explanation"
        assert told(client.post(INFER, content=three)) == (3 * 256, 60), "three rows"
        assert documented["ask"](client, INFER, three).status_code == 200
        assert documented["ask"](client, EXPLAIN, one).status_code == 200


@pytest.mark.parametrize("value", ["", "0", "A" * 80, "0" * 79, "0" * 81, "0x" + "0" * 78, "0" * 10_000, "é" * 80])
def test_what_is_no_solution_is_refused_as_malformed(gateway, keys, trained, value):
    with gateway.client(keys["alice"]) as client:
        answer = client.post(
            INFER, content=question(trained.fresh[:1]), headers={"modelkeep-solution": value.encode("latin-1")}
        )
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid") and "modelkeep-solution" in answer.json()["detail"]


def test_one_that_is_too_long_or_stands_twice_ends_the_request(gateway, keys, trained):
    body = question(trained.fresh[:1])
    for fields, status in (([b"0" * 20_000], 431), ([b"0" * 80] * 2, 400)):
        with gateway.client(keys["alice"]) as client:
            headers = [(b"modelkeep-solution", value) for value in fields]
            assert client.post(INFER, content=body, headers=headers).status_code == status


def test_over_grpc(gateway, keep, keys, documented):
    one = write_text(1, "X") + write_text(2, "FP32") + write_bytes(3, bytes([1, 6]))
    asked = write_text(1, "iris") + write_bytes(5, one) + write_bytes(7, np.ones(6, dtype=np.float32).tobytes())
    tls = ssl.create_default_context(cafile=str(keep.premises.directory / "tls" / "ca.pem"))
    tls.set_alpn_protocols(["h2"])
    host, _, port = gateway.grpc.rpartition(":")
    with socket.create_connection((host, int(port)), 20) as plain, tls.wrap_socket(plain, server_hostname=host) as connection:
        peer = Peer(connection)

        def call(**more):
            who = {"authorization": f"Bearer {keys['alice']}"}
            number = peer.call(message(asked), "/inference.GRPCInferenceService/ModelInfer", **who, **more)
            status = peer.status(number)
            return status, {**peer.head[number], **peer.trailers.get(number, {})}

        status, said = call()
        assert (status, said["modelkeep-code"]) == (7, "work-required")
        assert re.fullmatch(r'"[0-9a-f]{64}";hashes=256;seconds=60', said["modelkeep-puzzle"])
        solved = documented["solution"](said["modelkeep-puzzle"], asked)
        status, said = call(**{"modelkeep-solution": solved})
        assert status == 0 and said["modelkeep-record"]
        status, said = call(**{"modelkeep-solution": "0" * 81})
        assert (status, said["modelkeep-code"]) == (3, "invalid")
        number, who = peer.h2.get_next_available_stream_id(), ("authorization", f"Bearer {keys['alice']}")
        fields = dict(HEAD) | {":path": "/inference.GRPCInferenceService/ModelInfer"}
        peer.h2.send_headers(number, [*fields.items(), who, *[("modelkeep-solution", solved)] * 2])
        peer.send(number, message(asked))
        assert peer.status(number) == 3, "one that stands twice"


def test_the_red_team_pays_the_price_and_counts_it(keep, gateway, keys, trained):
    ca = keep.premises.directory / "tls" / "ca.pem"
    with HttpTarget(gateway.url, ReleaseRef("iris", 1), keys["bob"], ca=ca) as target:
        before = refusals(gateway)
        answers = [target.predict(trained.fresh[at : at + 2]) for at in range(0, 12, 2)]
        assert all(answer.shape == (2, 3) for answer in answers)
        assert 6 <= target.hashes < 6 * 512 * 20
        assert refusals(gateway) == before + 1, "one puzzle for all of them"
        target.predict(trained.fresh[12:24])
        assert refusals(gateway) <= before + 2, "and another for a larger batch"


def test_an_account_comes_to_such_a_rung_alone_is_told_and_goes_on_by_either_way(keep, gateway, keys, trained, documented):
    rung = "[challenge]\nbudget = 4.0\nstep-up = true\nwork = 8\n\n[alarm]"
    table = SHIPPED.replace("[alarm]", rung, 1).replace("questions = 1000", "questions = 2")
    keep.policy_set(kind="ladder", text=table.encode())
    with gateway.client(keys["alice"]) as client, gateway.client(keys["carol"]) as other:
        for row in trained.fresh[20:60]:  # above four times the budget sooner or later
            answer = client.post(INFER, content=question(row))
            [watch.work() for watch in gateway.service.loader.watches()]
            if answer.status_code != 200:
                break
        assert told(answer) == (256, 60)
        assert "or show a second factor" in answer.json()["detail"]
        assert 'error="insufficient_user_authentication"' in answer.headers["www-authenticate"]
        said = documented["ask"](client, INFER, question(row)).headers["modelkeep-notice"]
        price = "answers are labels only, at 0.1 of the usual rate, for 256 hashes of work a row or a recent second factor"
        assert said.startswith(price)
        assert other.post(INFER, content=question(row)).status_code == 200, "nobody else is asked"
        assert client.post(INFER, content=question(row)).status_code == 403
        keep.step_up_approve(account="alice")
        assert client.post(INFER, content=question(row)).status_code == 200, "a second factor does instead"
    (found,) = keep.account_explain(account="alice").standings
    assert (found.rung, found.told) == ("challenge", price)


def test_puzzles_of_too_much_are_left_unsolved(gateway, keep, keys, trained):
    """A thief of this house does not hash for minutes, whoever asks."""
    keep.policy_set(kind="ladder", text=WORK.replace("8", "26").encode())
    ca = keep.premises.directory / "tls" / "ca.pem"
    with HttpTarget(gateway.url, ReleaseRef("iris", 1), keys["bob"], ca=ca) as target:
        with pytest.raises(WorkRequired, match="536,870,912 hashes"):
            target.predict(trained.fresh[:8])
        assert target.hashes == 0


def test_every_refusal_for_want_of_work_is_counted_and_on_record(keep, gateway):
    told = refusals(gateway)
    gateway.stop()
    denied = [entry.outcome for entry, _, _ in records(keep, "deny")]
    assert told >= 8 and denied == ["work-required"] * told
