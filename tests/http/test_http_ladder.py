"""What happens to an account, end to end: a keep on disk, a real model, a gateway that is never restarted, the audit log."""

import base64
import datetime
import re
import time

import msgspec
import numpy as np
import pytest
from gateway_support import live, make_keep, question, records, soon, watch_of

from modelkeep.access.totp import code_of, step_at
from modelkeep.adapters.clock import SystemClock
from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, Role
from modelkeep.errors import Denied, Invalid, Missing, NotTrusted
from modelkeep.extraction.evidence import fingerprints
from modelkeep.extraction.ladder import SHIPPED, Ladder, Rung
from modelkeep.serving.bodies import open_body
from modelkeep.workflows.moves import open_move
from modelkeep.workflows.policies import LadderInForce
from modelkeep.workflows.rules import Rules
from modelkeep.workflows.watch import Agreed, Today

INFER = "/v2/models/iris/infer"


@pytest.fixture
def keep(tmp_path, trained):
    keep = make_keep(tmp_path / "keep", trained)
    with (tmp_path / "keep" / "modelkeep.toml").open("a") as file:
        file.write('[extraction]\ncontact = "security@acme.example"\n')
    return type(keep).open(tmp_path / "keep", keep.premises.passphrase())


def subject_of(keep, name="alice"):
    return next(row.subject for row in keep.user_list() if row.name == name)


def ask(client, rows):
    """Probabilities and labels of an answer."""
    answer = client.post(INFER, content=question(rows))
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    return np.array(outputs["probabilities"]).reshape(len(np.atleast_2d(rows)), -1), outputs["label"]


def decimals(probs):
    return max(len(repr(float(value)).partition(".")[2]) for value in np.ravel(probs))


def test_a_gateway_takes_up_a_new_ladder_and_the_old_one_again_without_a_restart(keep, trained):
    key = keep.key_issue(account="alice", quota=100_000).token
    with live(keep) as running, running.client(key) as client:
        before, _ = ask(client, trained.fresh[:8])
        assert decimals(before) == 4
        done = keep.policy_set(kind="ladder", text=b"[mark]\ndecimals = 1\n[alarm]\nanswer = 'refuse'\n", reason="a trial")
        coarse, labels = ask(client, trained.fresh[:8])
        assert decimals(coarse) == 1 and coarse.argmax(axis=1).tolist() == before.argmax(axis=1).tolist() == labels
        assert decimals(ask(client, trained.fresh[0])[0]) == 1, "one row goes its own way"
        small = SHIPPED.replace("questions = 1000", "questions = 0.5").encode()
        assert "modelkeep-notice" not in client.post(INFER, content=question(trained.fresh[0])).headers
        keep.policy_set(kind="ladder", text=small)  # what was asked so far is far above this
        told = client.post(INFER, content=question(trained.fresh[0])).headers["modelkeep-notice"]
        said = r"answers are labels only, at 0.1 of the usual rate; the information budget begins anew on (\S+); ask \S+example"
        begins = datetime.date.fromisoformat(re.fullmatch(said, told)[1])
        assert 0 < (begins - datetime.datetime.now(datetime.UTC).date()).days <= 30
        assert set(np.ravel(ask(client, trained.fresh[:8])[0])) == {0.0, 1.0}
        keep.policy_set(kind="ladder", profile="default")
        assert decimals(ask(client, trained.fresh[:8])[0]) == 4, "reversible"
        with pytest.raises(Invalid, match="consequence"):
            keep.policy_set(kind="ladder", text=b"[alarm]\nanswer = 'confidences'\n")
    names = [(row.name, row.by) for row in keep.policy_history(kind="ladder")]
    assert names == [("custom", "operator@local"), ("custom", "operator@local"), ("default", "operator@local")]
    assert done.kind == "ladder" and keep.policy_show(kind="ladder").text == SHIPPED
    assert running.errors == []


def test_a_review_can_deceive_an_account_says_so_in_the_record_and_takes_it_back(keep, trained):
    rows, subject = trained.fresh[:120], subject_of(keep)
    key = keep.key_issue(account="alice", quota=100_000).token
    with live(keep) as running, running.client(key) as client:
        truth, labels = ask(client, rows)
        keep.review(account="alice", outcome="deceived", reason="her copy is on sale")
        false, false_labels = ask(client, rows)
        wrong = truth.argmax(axis=1) != false.argmax(axis=1)
        assert "modelkeep-notice" not in client.post(INFER, content=question(rows[0])).headers, "and no word of it"
        assert 0.05 < wrong.mean() < 0.7 and false.argmax(axis=1).tolist() == false_labels
        assert np.array_equal(ask(client, rows)[0], false), "asking again is told the same"
        assert np.array_equal(ask(client, rows[0])[0][0], false[0])
        keep.review(account="alice", outcome="cleared", reason="it was another", false_alarm=True)
        again, labels_again = ask(client, rows)
        assert np.array_equal(again, truth) and labels_again == labels
    told = [(e.outcome, open_body(key, sealed, subject, "iris@1")) for e, key, sealed in records(keep, "predict")]
    assert [outcome for outcome, _ in told] == ["ok", *4 * ["deceived"], "ok"]
    moves = [(entry.outcome, open_move(key, sealed, subject, "iris@1")) for entry, key, sealed in records(keep, "rung")]
    assert [(outcome, move.before, move.after, move.queries) for outcome, move in moves] == [
        ("sanction", "mark", "sanction", 120),
        ("mark", "sanction", "mark", 362),
    ]
    assert [body.rung for _, body in told] == [Rung.MARK, *4 * [Rung.SANCTION], Rung.MARK]
    body = told[1][1]
    assert np.array_equal(body.served_probs(), false) and body.raw_probs().argmax(axis=1).tolist() == labels
    decisions = keep.premises.decisions()
    assert [one.subject for one in decisions.false_alarms] == [subject] and not decisions.sanctioned
    assert running.errors == []


def test_a_restart_finds_the_same_rung_again_and_writes_no_change(keep, trained):
    key = keep.key_issue(account="alice", quota=100_000).token
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 5").encode())
    for _ in range(2):
        with live(keep) as running, running.client(key) as client:
            ask(client, trained.fresh[:20])
            soon(lambda: not watch_of(running).rows_behind())
            for _ in range(2):
                running.look()
            live_verdict = running.service.loader.watches()[0].verdict(subject_of(keep))
    moves = [(entry.outcome, open_move(key, sealed, entry.subject, "iris@1")) for entry, key, sealed in records(keep, "rung")]
    assert [outcome for outcome, _ in moves] == ["labels"] and moves[0][1].limit == 5
    (row,) = keep.account_list()
    assert (row.account, row.release, row.rung) == ("alice", "iris@1", "labels") and "labels only" in row.told
    (found,) = keep.account_explain(account="alice", release="").standings
    assert (found.rung, found.queries, found.effective) == ("labels", 40, 20)
    assert found.learnt == pytest.approx(live_verdict.budget.equivalent) and found.limit == 5
    assert found.forecast.startswith("the budget is spent; it begins anew in ")
    assert [(move.before, move.after) for move in found.history] == [("mark", "labels")] and found.history[0].share > 2


def test_a_larger_budget_is_for_an_account_with_a_second_factor_and_ends(keep, trained):
    key, subject = keep.key_issue(account="alice", quota=100_000).token, subject_of(keep)
    keep.policy_set(kind="ladder", text=SHIPPED.replace("questions = 1000", "questions = 5").encode())
    with pytest.raises(Denied, match="no second factor"):
        keep.account_allow(account="alice", times=50, days=1, reason="batch scoring")
    enrol(keep, "alice")
    for times, days in ((0, 1), (float("nan"), 1), (1e9, 1), (2, 0), (2, 10_000)):
        with pytest.raises(Invalid, match="more than 0 and at most 1000 times the usual, for 1 to 366 days"):
            keep.account_allow(account="alice", times=times, days=days, reason="batch scoring")
    with live(keep) as running, running.client(key) as client:
        assert set(np.ravel(ask(client, trained.fresh[:20])[0])) != {0.0, 1.0}
        assert set(np.ravel(ask(client, trained.fresh[20:24])[0])) == {0.0, 1.0}
        keep.account_allow(account="alice", times=50, days=1, reason="batch scoring")
        assert decimals(ask(client, trained.fresh[24:28])[0]) == 4
        (watch,) = running.service.loader.watches()
        watch.work()
        assert watch.verdict(subject).budget.limit == 250 and watch.verdict(subject).queries == 28, "recorded as before"
        keep.account_allow(account="alice", times=1, days=1, reason="taken back")
        assert set(np.ravel(ask(client, trained.fresh[28:32])[0])) == {0.0, 1.0}
    assert len(list(records(keep, "predict"))) == 4
    keep.account_allow(account="alice", times=50, days=1, reason="batch scoring")
    clock, taken = Tick(), []
    rules = Rules(keep.premises.decisions(), LadderInForce(), clock)
    for days in (0, 0, 2):
        clock.wall += days * 86_400_000_000_000
        rules.hand_over(taken.append)
    assert [one.terms.budget for one in taken if isinstance(one, Agreed)] == [50.0, 1.0]
    assert [type(one) for one in taken] == [Ladder, Today, Agreed, Today, Agreed], "what did not change is not told again"


def test_a_match_of_threat_intelligence_lends_less_is_shown_and_accuses_nobody(keep, trained):
    key, subject = keep.key_issue(account="alice", quota=100_000).token, subject_of(keep)
    rows = trained.fresh[:4]
    queries = b"".join(b"query,%016x\n" % name for name in fingerprints(rows.astype(np.float64)).tolist())
    files = {
        "own": b"kind,value\naddress,127.0.0.0/8\n",
        "misp": b"kind,value\nagent,Thief/1.0\n",
        "lab": b"kind,value\n" + queries,
    }
    with live(keep) as running, running.client(key) as client:
        (watch,) = running.service.loader.watches()

        def lent(limit, why=""):
            """The budget becomes ``limit``, and the account's row says so."""

            def found():
                watch.work()
                return watch.verdict(subject).budget.limit == limit and [row.account for row in keep.account_list()]

            return soon(lambda: found() == (["alice"] if why else []))

        ask(client, rows)
        assert lent(1000)
        for source, data in files.items():
            taken = keep.intel_indicate(data=data, source=source)
            assert taken.in_force == data.count(b"\n") - 1
            client.headers["user-agent"] = "thief/1.0" if source == "misp" else "other"
            ask(client, rows + np.float32(0.0))
            assert lent(500, source)
            (row,) = keep.account_list()
            assert (row.account, row.release, row.rung) == ("alice", "", "mark") and f"({source}, line" in row.cautions[0]
            assert keep.intel_forget(source=source).in_force == 0
            assert lent(1000), "reversible"
        keep.intel_indicate(data=files["own"], source="own")
        for row in trained.fresh[:60]:
            assert client.post(INFER, content=question(row)).status_code == 200
        assert lent(500, "own")
        verdict = watch.verdict(subject)
        assert verdict.rung < Rung.ALARM and verdict.alarmed_at is None and verdict.odds == "none"
    explained = keep.account_explain(account="alice")
    assert explained.factor == 0.5 and len(explained.cautions) == 1 and explained.standings[0].limit == 500
    assert running.errors == []


def test_a_list_of_indicators_that_somebody_altered_is_not_believed(keep):
    assert keep.intel_indicators() == ()
    keep.intel_indicate(
        data=b"kind,value,valid_until\nagent,a,2020-01-01T00:00:00Z\nagent,b,2199-01-01T00:00:00Z\n", source="own"
    )
    (row,) = keep.intel_indicators()
    assert (row.value, row.source, row.id, row.holds) == ("b", "own", "line 3", True)
    keep.intel_indicate(data=b"kind,value\nagent,c\n", source="other")
    assert [one.value for one in keep.intel_indicators()] == ["b", "c"]
    keep.intel_indicate(data=b"kind,value\nagent,d\n", source="own")
    assert [one.value for one in keep.intel_indicators()] == ["c", "d"], "a source's file replaces its earlier one"
    records = keep.premises.records
    assert len(list(records.scan("indicators"))) == 2, "the one in force, and the one before"
    digest = keep.premises.decisions().indicators
    record = records.get("indicators", digest)
    records.commit([Change("indicators", digest, record.body.replace(b'"d"', b'"e"'), record.revision)])
    with pytest.raises(NotTrusted):
        keep.intel_indicators()
    records.commit([Change("indicators", digest, record.body, records.get("indicators", digest).revision)])
    with pytest.raises(Missing):
        keep.intel_forget(source="nobody")


class Tick(SystemClock):
    """A clock whose time of day is set by hand."""

    def __init__(self) -> None:
        self.wall = super().now_ns()

    def now_ns(self) -> int:
        return self.wall


def enrol(keep, name):
    """Give an account codes as its second factor."""
    owner = Keep(keep.premises, Principal(name, subject_of(keep, name), (Role.ANALYST,), "session:1"))
    secret = base64.b32decode(owner.mfa_enrol(account=name).secret)
    owner.mfa_confirm(account=name, code=code_of(secret, step_at(int(time.time()))))


def test_deceiving_is_for_a_ladder_that_has_it_and_a_false_alarm_is_cleared(keep):
    keep.policy_set(kind="ladder", text=b"[alarm]\nanswer = 'refuse'\n")
    for outcome, false_alarm, why in (("deceived", False, "no \\[sanction\\]"), ("confirmed", True, "no other outcome")):
        with pytest.raises(Invalid, match=why):
            keep.review(account="alice", outcome=outcome, reason="a test", false_alarm=false_alarm)


def test_whoever_waits_for_a_review_is_told_how_to_ask_for_one(keep, trained):
    key = keep.key_issue(account="alice", quota=100_000).token
    rng = np.random.default_rng(3)
    with live(keep) as running, running.client(key) as client:
        for _ in range(400):
            answer = client.post(INFER, content=question(rng.uniform(-3, 3, (1, 6)).astype(np.float32)))
            [watch.work() for watch in running.service.loader.watches()]
            if answer.status_code != 200:
                break
        running.look()
    (*_, last) = [
        (entry.outcome, open_move(key, sealed, entry.subject, "iris@1")) for entry, key, sealed in records(keep, "rung")
    ]
    assert last[0] == "alarm" and last[1].log_m >= np.log(1000) and last[1].odds.endswith("against an honest account")
    said = msgspec.json.decode(answer.content)
    assert (answer.status_code, said["code"]) == (403, "review-required")
    assert said["detail"].endswith("it waits for a review; ask for one at security@acme.example")
