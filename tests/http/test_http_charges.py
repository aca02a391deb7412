"""What a request was charged and then got no answer for because of us is put back."""

import pytest
from gateway_support import live, make_keep, question, watch_of

from modelkeep.access.credentials import key_id_of
from modelkeep.workflows.watch import ROWS_BEHIND

INFER, EXPLAIN = "/v2/models/iris/infer", "/v2/models/iris/explain"


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)


@pytest.fixture
def token(keep):
    return keep.key_issue(account="alice", quota=20).token


@pytest.fixture(params=[0, 24], ids=["quota", "quota and second factor"])
def step_up(request, monkeypatch):
    monkeypatch.setenv("MODELKEEP_ACCESS_STEP_UP_REQUESTS", str(request.param))


def used(keep, token):
    return next(row.used for row in keep.key_list() if row.id == key_id_of(token))


def test_what_was_not_recorded_costs_no_rows(keep, token, trained, step_up):
    with live(keep) as running, running.client(token) as client:
        assert client.post(INFER, content=question(trained.fresh[:2])).status_code == 200
        (journal,) = (keep.premises.directory / "log" / "audit" / running.instance / "journal").iterdir()
        journal.rename(journal.with_name("gone"))
        for address, rows in ((INFER, 18), (EXPLAIN, 1), (INFER, 12), (EXPLAIN, 1), (INFER, 18)):
            answer = client.post(address, content=question(trained.fresh[:rows]))
            assert answer.status_code == 503, answer.text
        journal.with_name("gone").rename(journal)
    assert used(keep, token) == 2


def test_who_must_wait_for_the_evidence_has_spent_nothing(keep, token, trained, step_up):
    subject = next(row.subject for row in keep.user_list() if row.name == "alice")
    with live(keep) as running, running.client(token) as client:
        watch = watch_of(running)
        watch.reserve(subject, ROWS_BEHIND)
        for _ in range(5):
            refused = client.post(INFER, content=question(trained.fresh[:9]))
            assert refused.status_code == 429 and "wait to be examined" in refused.json()["detail"]
        watch.release(subject, ROWS_BEHIND)
        assert client.post(INFER, content=question(trained.fresh[:20])).status_code == 200
        assert watch.rows_behind() in (0, 20)
    assert used(keep, token) == 20
