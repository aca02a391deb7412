"""The gateway end to end: a keep on disk, onnxruntime, TLS sockets, every defence on."""

import socket
import ssl
import sys
import threading
import time

import httpx
import msgspec
import numpy as np
import pytest
from gateway_support import Live, live, make_keep, make_service, question, soon, watch_of

from modelkeep.adapters.runtime.onnx import OnnxRuntime
from modelkeep.app.keep import Keep
from modelkeep.app.offline import Access, verify_source
from modelkeep.core.values import Role
from modelkeep.crypto.notes import encode_vkey, open_checkpoint
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.errors import Denied, NotTrusted, Quarantined, Unauthenticated, Unavailable
from modelkeep.http.serve import run_gateway
from modelkeep.serving.audit import read_bodies, verify_audit
from modelkeep.serving.bodies import SubjectKeys, open_body
from modelkeep.workflows.acts import log_audit_checkpoint

INFER = "/v2/models/iris/infer"


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained) -> Keep:
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained, ("iris", "other"))


@pytest.fixture(scope="module")
def alice(keep) -> str:
    return keep.key_issue(account="alice", quota=100_000).token


@pytest.fixture(scope="module")
def gateway(keep, alice):  # alice's key is issued before the directory is read
    with live(keep) as running:
        yield running
    assert running.errors == []


def outputs(answer) -> dict:
    return {o["name"]: np.array(o["data"]).reshape(o["shape"]) for o in answer.json()["outputs"]}


def test_an_answer_is_right_marked_rounded_and_recorded(gateway, keep, alice, trained):
    row = trained.fresh[:1]
    bare = OnnxRuntime(trained.onnx).run({"X": row})
    with gateway.client(alice) as client:
        answer = client.post(INFER, content=question(row, id="q1"))
    assert answer.status_code == 200 and answer.headers["modelkeep-record"].startswith(gateway.instance + "/")
    assert "server" not in answer.headers
    said = answer.json()
    assert (said["model_name"], said["model_version"], said["id"]) == ("iris", "1", "q1")
    probs = outputs(answer)["probabilities"]
    assert outputs(answer)["label"] == bare["label"] == probs.argmax()
    assert np.abs(probs - bare["probabilities"]).sum() <= 0.0503 and np.allclose(probs * 1e4, np.round(probs * 1e4))


def test_the_label_never_contradicts_the_probabilities(gateway, alice, trained):
    with gateway.client(alice) as client:
        answer = client.post(INFER, content=question(trained.fresh))
    found = outputs(answer)
    assert (found["probabilities"].argmax(axis=1) == found["label"]).all()
    assert (found["label"] == OnnxRuntime(trained.onnx).run({"X": trained.fresh})["label"]).all()


def test_the_same_question_gets_the_same_answer_and_another_account_another(gateway, keep, alice, trained):
    other = keep.user_add(name="bob", roles=("analyst",)) and keep.key_issue(account="bob").token
    gateway.look()
    body = question(trained.fresh[:64])
    with gateway.client(alice) as one, gateway.client(other) as two:
        first, again, theirs = (c.post(INFER, content=body) for c in (one, one, two))
    assert first.content == again.content != theirs.content


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"nonsense", "not JSON"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,1],"data":[NaN]}]}', "not JSON"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,Infinity]}]}', "not JSON"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,1e39]}]}', "does not fit FP32"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,1e999]}]}', "out of range"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,"6"]}]}', "Expected"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5]}]}', "needs 6"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,5],"data":[1,2,3,4,5]}]}', "the model takes [any, 6]"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[6],"data":[1,2,3,4,5,6]}]}', "1 dimensions"),
        (b'{"inputs":[{"name":"X","datatype":"FP64","shape":[1,6],"data":[1,2,3,4,5,6]}]}', "the model takes FP32"),
        (b'{"inputs":[{"name":"Y","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,6]}]}', "has no input 'Y'"),
        (b'{"inputs":[]}', "length >= 1"),
        (b'{"inputs":[{"name":"X","name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,6]}]}', "'name' twice"),
        (b'{"id":"a","id":"b","inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,6]}]}', "twice"),
        (b'{"extra":1,"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":[1,2,3,4,5,6]}]}', "unknown field"),
        (b'{"inputs":' + b"[" * 10_000 + b"]" * 10_000 + b"}", "not an inference request"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[1,6],"data":' + b"[" * 10_000 + b"]" * 10_000 + b"}]}", "nested"),
        (b'{"inputs":[{"name":"X","datatype":"FP32","shape":[0,6],"data":[]}]}', "no rows"),
        (question(np.zeros((1, 6)), outputs=[{"name": "nothing"}]), "does not exist"),
    ],
    ids=lambda value: value[:40].decode("latin-1") if isinstance(value, bytes) else value,
)
def test_bad_input_is_one_clear_problem(gateway, alice, body, words):
    with gateway.client(alice) as client:
        answer = client.post(INFER, content=body)
    problem = answer.json()
    assert answer.status_code == 400 and answer.headers["content-type"] == "application/problem+json"
    assert words in problem["detail"] and problem["code"] == "invalid" and problem["error"] == problem["detail"]
    assert "Traceback" not in answer.text and "\n" not in problem["detail"]


def test_too_many_rows(gateway, alice):
    with gateway.client(alice) as client:
        answer = client.post(INFER, content=question(np.zeros((1025, 6))))
    assert answer.status_code == 413 and answer.json()["code"] == "too-large"


def test_who_may_not(gateway, keep):
    eve = keep.key_issue(account="eve").token
    scoped = keep.key_issue(account="alice", models=("other",)).token
    gateway.look()
    body = question(np.zeros(6))
    for key, expected in ((None, 401), ("mk_nothing", 401), (eve, 403), (scoped, 403)):
        with gateway.client(key) as client:
            answer = client.post(INFER, content=body)
        assert answer.status_code == expected, answer.text
        assert ("www-authenticate" in answer.headers) == (expected == 401)


def test_a_quota_is_never_exceeded(gateway, keep):
    key = keep.key_issue(account="alice", quota=5).token
    gateway.look()
    with gateway.client(key) as client:
        codes = [client.post(INFER, content=question(np.zeros(6))).status_code for _ in range(8)]
    assert codes == [200] * 5 + [429] * 3


def test_metadata_health_metrics_and_the_static_log(gateway, keep, alice):
    with gateway.client(alice) as client:
        assert client.get("/v2").json()["name"] == "modelkeep"
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        meta = client.get("/v2/models/iris/versions/1").json()
        assert meta["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 6]}] and meta["versions"] == ["1"]
        assert client.get("/v2/models/iris/ready").json()["ready"] is True
        metrics = client.get("/metrics").text
        assert 'modelkeep_requests_total{model="iris",outcome="ok"}' in metrics and "modelkeep_lease_seconds" in metrics
        note = client.get("/log/checkpoint")
        assert note.content == keep.premises.releases_files().read("checkpoint")
        assert (note.headers["content-type"], note.headers["cache-control"]) == ("text/plain; charset=utf-8", "no-cache")
        tile = next(path for path in keep.premises.releases_files().paths("tile/0/"))
        found = client.get(f"/log/{tile}")
        assert found.content == keep.premises.releases_files().read(tile)
        assert found.headers["content-type"] == "application/octet-stream"
        assert found.headers["cache-control"] == "public, max-age=31536000, immutable"
        assert client.get("/log/checkpoint.witnessed").status_code == 404  # no witness is asked for
        keep.premises.releases_files().write("checkpoint.witnessed", note.content)
        assert client.get("/log/checkpoint.witnessed").content == note.content
        keep.premises.releases_files().delete("checkpoint.witnessed")
        assert client.get(f"/audit/{gateway.instance}/checkpoint").status_code == 403
        assert client.get("/log/../records.db").status_code == 404 and client.get("/log/journal/000000").status_code == 404
        assert client.get("/nothing").status_code == 404 and client.delete(INFER).status_code == 405
    with gateway.client(None) as client:
        assert client.get("/v2/models/iris").status_code == 401


def test_a_stranger_checks_the_releases_log_and_an_auditor_the_audit_logs_over_the_web(gateway, keep, alice, tmp_path):
    folder = keep.premises.directory
    trust, ca = str(folder / "trust.toml"), str(folder / "tls" / "ca.pem")
    kept = tmp_path / "seen"
    keep.user_add(name="auditor", roles=(Role.ADMIN,))
    auditor = keep.key_issue(account="auditor").token
    origin = keep.premises.audit_origin(gateway.instance)
    note = keep.premises.audit_files(gateway.instance).read("checkpoint")  # in place of control, which does not run here
    found = open_checkpoint(note, encode_vkey(origin, keep.premises.trust.audit_key), origin)
    log_audit_checkpoint(keep.premises.desk(), note, found, actor="test", phase="running")
    releases = keep.log_verify()[0]
    for address in (f"{gateway.url}/log/", gateway.url):
        (one,) = verify_source(address, trust=trust, kept=str(kept), access=Access(ca=ca))
        assert (one.origin, one.root) == (releases.origin, releases.root) and "not read: 1 audit log" in one.detail
    gateway.look()
    for address in (f"{gateway.url}/log/", gateway.url):
        first, second = verify_source(address, trust=trust, kept=str(kept), access=Access(auditor, ca))
        assert first.root == releases.root and second.origin == origin and "1 checkpoints kept" in second.detail
        with pytest.raises(Denied, match="auditors only"):
            verify_source(address, trust=trust, access=Access(alice, ca))
        with pytest.raises(Unauthenticated, match="token of an auditor"):
            verify_source(address, trust=trust, access=Access("mk_nothing", ca))
    with pytest.raises(Unavailable, match="certificate"):
        verify_source(f"{gateway.url}/log/", trust=trust)


def test_only_tls_1_3(gateway):
    host, port = "127.0.0.1", int(gateway.url.rpartition(":")[2])
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    with socket.create_connection((host, port), 5) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw)
    with socket.create_connection((host, port), 5) as raw, gateway.tls.wrap_socket(raw, server_hostname="localhost") as secure:
        assert secure.version() == "TLSv1.3"


def test_quarantine_locks_one_model_and_leaves_the_other(gateway, keep, alice):
    body = question(np.zeros(6))
    keep.quarantine(ref="other@1", reason="a test")
    with gateway.client(alice) as client:
        locked = client.post("/v2/models/other/infer", content=body)
        assert locked.status_code == 423 and "quarantine" in locked.json()["detail"] and locked.json()["code"] == "quarantined"
        assert client.post(INFER, content=body).status_code == 200
        assert client.post("/v2/models/nobody/infer", content=body).status_code == 404
        assert client.post("/v2/models/iris/versions/9/infer", content=body).status_code == 404


def test_stopping_under_load_loses_nothing_and_every_answer_is_recorded(keep, alice, trained):
    answered: dict[int, list] = {}
    with live(keep, drain_seconds=5.0) as running:

        def ask(number: int) -> None:
            with running.client(alice) as client:
                for row in range(10_000):
                    try:
                        answer = client.post(INFER, content=question(trained.fresh[row % 300]))
                    except Exception:
                        return
                    assert answer.status_code == 200, answer.text
                    answered[int(answer.headers["modelkeep-record"].partition("/")[2])] = outputs(answer)[
                        "probabilities"
                    ].tolist()

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        soon(lambda: len(answered) > 20)
        running.begin_stop()
        for thread in threads:
            thread.join()
        running.stop()
        assert running.errors == []
    here = keep.premises
    origin, files = here.audit_origin(running.instance), here.audit_files(running.instance)
    vkey = encode_vkey(origin, here.trust.audit_key)
    assert verify_audit(files, vkey, origin).closed
    keys = SubjectKeys(here.records, here.ring_keys(AUDIT_SUBJECT), here.entropy)
    recorded = {
        index: open_body(keys.key(entry.subject), sealed, entry.subject, entry.release).served_probs().tolist()
        for index, entry, sealed in read_bodies(files, vkey, origin)
        if entry.kind == "predict"
    }
    assert len(answered) > 20 and {index: recorded.get(index) for index in answered} == answered


def test_a_thief_is_stopped_and_stays_stopped_after_a_restart(keep, trained):
    key = keep.user_add(name="thief", roles=("analyst",)) and keep.key_issue(account="thief", quota=100_000).token
    rng = np.random.default_rng(1)
    with live(keep) as running, running.client(key) as client:
        for _ in range(300):
            answer = client.post(INFER, content=question(rng.uniform(-8, 8, (16, 6)).astype(np.float32)))
            if answer.status_code == 403:
                break
            assert answer.status_code in (200, 429), answer.text
        assert answer.json()["code"] == "review-required"
    with live(keep) as running, running.client(key) as client:
        answer = client.post(INFER, content=question(trained.fresh[0]))
        assert answer.status_code == 403 and answer.json()["code"] == "review-required"
        keep.review(account="thief", outcome="cleared", reason="a test")
        running.look()
        assert client.post(INFER, content=question(trained.fresh[0])).status_code == 200


def test_evidence_rebuilt_at_restart_is_the_evidence_that_was(keep, trained):
    """Found in review: what came before a review was left out, and so its budget and the higher bar after it were forgotten."""
    keep.user_add(name="judged", roles=("analyst",))
    (subject,) = (row.subject for row in keep.user_list() if row.name == "judged")
    key = keep.key_issue(account="judged", quota=100_000).token
    rng = np.random.default_rng(8)
    with live(keep) as running, running.client(key) as client:
        watch = watch_of(running)

        def ask(rows):
            answer = client.post(INFER, content=question(rows.astype(np.float32)))
            assert answer.status_code in (200, 403), answer.text
            return answer.status_code

        for at in range(2):
            while ask(rng.uniform(-8, 8, (16, 6))) == 200:
                pass
            assert watch.verdict(subject).alarmed_at
            keep.review(account="judged", outcome="cleared", reason="a test")
            running.look()
            assert watch.verdict(subject).alarmed_at is None
            assert ask(trained.fresh[30 * at : 30 * at + 30]) == 200
        was = guard_state(watch, subject)
        assert was["reviews"] == 2
    with live(keep) as running:
        assert guard_state(watch_of(running), subject) == was


def guard_state(watch, subject) -> dict:
    """Everything that the guard keeps of an account, exactly."""
    account = watch._guard._accounts.get(subject)
    found = {name: getattr(account, name) for name in account.__slots__}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in found.items()}


def test_a_gateway_whose_audit_log_failed_for_good_ends(keep, alice):
    service = make_service(keep)
    found, withdrawn, moved = [], [], []

    def fail(text: str) -> None:
        url = text.rpartition(" ")[2]
        (journal,) = (keep.premises.directory / "log" / "audit" / service.audit.current.instance / "journal").iterdir()
        moved.append((journal, journal.rename(journal.with_name("gone"))))

        def ask() -> None:
            tls = ssl.create_default_context(cafile=str(keep.premises.directory / "tls" / "ca.pem"))
            with httpx.Client(base_url=url, verify=tls, headers={"authorization": f"Bearer {alice}"}, timeout=60) as client:
                try:
                    found.append(client.post(INFER, content=question(np.zeros(6))).status_code)
                except httpx.TransportError:
                    found.append(0)  # it had ended already

        asker.append(threading.Thread(target=ask))
        asker[0].start()

    asker: list[threading.Thread] = []
    interval = sys.getswitchinterval()
    service = msgspec.structs.replace(service, withdraw=lambda: withdrawn.append(True))
    try:
        with pytest.raises(Unavailable, match="has failed and takes nothing more"):
            run_gateway(service, fail)
    finally:
        sys.setswitchinterval(interval)
        for journal, gone in moved:
            gone.rename(journal)
    asker[0].join()
    assert found in ([503], [0]) and withdrawn == [True]


def test_a_model_that_breaks_its_loader_stays_out_alone(keep, alice):
    service = make_service(keep)
    whole, broken = service.loader._start, []

    def start(found, data: bytes):
        if not broken:
            broken.append(True)
            raise ZeroDivisionError("in a runtime")
        return whole(found, data)

    service.loader._start = start
    running = Live(service, keep.premises.directory)
    try:
        admitted = service.gateway.admitted
        ((ref, reason),) = ((r, e) for r, e in admitted.refused.items() if not isinstance(e, Quarantined))
        assert isinstance(reason, NotTrusted) and "ZeroDivisionError" in str(reason)
        assert ref not in admitted.models
        for _ in range(2):
            running.look()
        assert service.gateway.lease_left(time.monotonic()) > 0 and service.follower._thread.is_alive()
    finally:
        running.stop()


def test_a_batch_does_not_run_ahead_of_its_own_evidence(keep, trained):
    """All rows of a request would be answered before any of them was examined: a whole theft in one request."""
    keep.user_add(name="greedy", roles=("analyst",))
    key = keep.key_issue(account="greedy").token
    rng = np.random.default_rng(3)
    with live(keep) as house, house.client(key) as client:
        honest = client.post("/v2/models/iris/infer", content=question(trained.fresh[:100]))
        assert honest.status_code == 200
        stolen = client.post("/v2/models/iris/infer", content=question(rng.uniform(-8, 8, (512, 6)).astype(np.float32)))
        assert (stolen.status_code, stolen.json()["code"]) == (403, "review-required")
        assert "outputs" not in stolen.json()


def test_refusals_of_known_accounts_are_recorded(gateway, keep):
    gateway.service.audit.publish()
    here = keep.premises
    origin = here.audit_origin(gateway.instance)
    found = list(read_bodies(here.audit_files(gateway.instance), encode_vkey(origin, here.trust.audit_key), origin))
    outcomes = {entry.outcome for _, entry, _ in found if entry.kind == "deny"}
    assert {"invalid", "denied", "over-budget", "quarantined"} <= outcomes
    assert all(msgspec.json.encode(entry).find(b"alice") < 0 for _, entry, _ in found)


def test_without_the_audit_log_nothing_is_answered(keep, alice):
    with live(keep) as running, running.client(alice) as client:
        assert client.post(INFER, content=question(np.zeros(6))).status_code == 200
        (journal,) = (keep.premises.directory / "log" / "audit" / running.instance / "journal").iterdir()
        journal.rename(journal.with_name("gone"))
        for _ in range(3):
            answer = client.post(INFER, content=question(np.ones(6)))
            assert answer.status_code == 503 and "audit" in answer.json()["detail"]
        assert client.get("/v2/health/ready").status_code == 503 and client.get("/v2/health/live").status_code == 200
        journal.with_name("gone").rename(journal)
        assert client.post(INFER, content=question(np.ones(6))).status_code == 503


def test_without_the_releases_log_nothing_is_answered_for_longer_than_the_lease(keep, alice, short_lease):
    checkpoint = keep.premises.directory / "log" / "releases" / "checkpoint"
    with live(keep) as running, running.client(alice) as client:
        true = checkpoint.read_bytes()
        try:
            for damage in (true.replace(b"\n", b"\n9", 1), b""):  # another size under the same signature; nothing at all
                checkpoint.write_bytes(damage)
                time.sleep(1.6)  # a lease, and the look that was under way
                answer = client.post(INFER, content=question(np.zeros(6)))
                assert answer.status_code == 503 and "lease" not in answer.text
        finally:
            checkpoint.write_bytes(true)
        soon(lambda: client.post(INFER, content=question(np.zeros(6))).status_code == 200)
