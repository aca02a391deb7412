"""Two gateways on one keep: each judges an account by what it asked at both."""

import time
from dataclasses import replace

import numpy as np
import pytest
from gateway_support import Live, live, make_keep, make_service, predict, question, soon, watch_of

from modelkeep.adapters.clock import SystemClock
from modelkeep.app import evidence
from modelkeep.app.premises import Premises
from modelkeep.extraction.ladder import SHIPPED
from modelkeep.workflows import siblings
from modelkeep.workflows.watch import day_of

INFER = "/v2/models/iris/infer"


@pytest.fixture
def keep(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(evidence, "EVERY", 0.1)
    return make_keep(tmp_path / "keep", trained)


def test_what_one_gateway_recorded_is_evidence_at_the_other(keep, trained):
    keep.user_add(name="thief", roles=("analyst",))
    subjects = {row.name: row.subject for row in keep.user_list()}
    thief, alice = (keep.key_issue(account=name, quota=100_000).token for name in ("thief", "alice"))
    rng = np.random.default_rng(8)
    with live(keep) as one:
        with one.client(thief) as client:
            assert client.post(INFER, content=question(trained.fresh[:3])).status_code == 200
        with live(keep) as two, one.client(thief) as here, two.client(thief) as there:
            codes = []
            while 403 not in codes:
                rows = rng.uniform(-8, 8, (4, 6)).astype(np.float32)
                codes.append((here, there)[len(codes) % 2].post(INFER, content=question(rows)).status_code)
                assert codes[-1] in (200, 403) and len(codes) < 100
            soon(lambda: here.post(INFER, content=question(trained.fresh[:1])).status_code == 403)
            soon(lambda: there.post(INFER, content=question(trained.fresh[:1])).status_code == 403)
            verdicts = lambda: [watch_of(running).verdict(subjects["thief"]) for running in (one, two)]  # noqa: E731
            soon(lambda: verdicts()[0].budget.spent == pytest.approx(verdicts()[1].budget.spent, rel=0.01))
            assert verdicts()[0].queries == verdicts()[1].queries
            with two.client(alice) as honest:
                assert honest.post(INFER, content=question(trained.fresh[:1])).status_code == 200
            soon(lambda: watch_of(one).rows_behind() == watch_of(two).rows_behind() == 0)
            keep.review(account="thief", outcome="cleared", reason="a test")
            soon(lambda: there.post(INFER, content=question(trained.fresh[:1])).status_code == 200)
            assert verdicts()[1].queries >= 3 + 4 * codes.count(200)
        queries = watch_of(one).verdict(subjects["thief"]).queries
        time.sleep(0.5)
        assert watch_of(one).verdict(subjects["thief"]).queries >= queries, "a closed log is taken in to its end, once"
    with live(keep) as again:
        assert watch_of(again).verdict(subjects["thief"]).queries >= queries


def test_while_the_log_of_another_gateway_cannot_be_read_nothing_is_answered(keep, trained, monkeypatch, short_lease):
    monkeypatch.setattr(siblings, "LATEST", 0.5)
    alice = keep.key_issue(account="alice", quota=100_000).token
    with live(keep) as one, live(keep) as two, two.client(alice) as client:
        with one.client(alice) as other:
            assert other.post(INFER, content=question(trained.fresh[:1])).status_code == 200
        assert client.post(INFER, content=question(trained.fresh[:1])).status_code == 200
        soon(lambda: [watch_of(two).verdict(one).queries for one in watch_of(two).subjects()] == [2])
        checkpoint = keep.premises.directory / "log" / "audit" / one.instance / "checkpoint"
        checkpoint.chmod(0)
        checkpoint.rename(checkpoint.with_name("aside"))
        checkpoint.mkdir()  # a reader gets an error, whoever it is
        soon(lambda: client.post(INFER, content=question(trained.fresh[:1])).status_code == 503)
        assert client.get("/v2/health/ready").status_code == 503
        checkpoint.rmdir()
        checkpoint.with_name("aside").rename(checkpoint)
        checkpoint.chmod(0o600)
        soon(lambda: client.post(INFER, content=question(trained.fresh[:1])).status_code == 200)


class Moved(SystemClock):
    """A clock that is set by hand, and goes on."""

    def __init__(self, at):
        self.set(at)

    def set(self, at):
        self.ahead = at - super().now_ns()

    def now_ns(self):
        return super().now_ns() + self.ahead


def test_gateways_whose_clocks_differ_lend_one_budget_a_period(keep, trained, monkeypatch):
    """What was asked where the period had begun was charged to the old one elsewhere, and forgotten with it."""
    keep.policy_set(kind="ladder", text=SHIPPED.replace("days = 30 ", "days = 1 ").encode())
    token = keep.key_issue(account="alice", quota=100_000).token
    subject = next(row.subject for row in keep.user_list() if row.name == "alice")
    minute = 60_000_000_000
    midnight = (day_of(keep.premises.clock.now_ns()) + 1) * 86_400_000_000_000
    usual = Premises.open
    clocks = [Moved(midnight - 10 * minute), Moved(midnight + 10 * minute)]
    services = []
    for clock in clocks:
        with monkeypatch.context() as patch:
            patch.setattr(Premises, "open", lambda *given, clock=clock: replace(usual(*given), clock=clock))
            services.append(make_service(keep))
    slow, fast = (Live(service, keep.premises.directory) for service in services)
    try:
        budgets = lambda: [watch_of(one).learnt(subject) for one in (slow, fast)]  # noqa: E731
        predict(slow, token, "192.0.2.1", trained.fresh[:20])
        soon(lambda: watch_of(fast).verdict(subject).queries == 20)
        predict(fast, token, "192.0.2.1", trained.fresh[20:40])
        soon(lambda: watch_of(slow).verdict(subject).queries == 40)
        assert [one.begins for one in budgets()] == [day_of(midnight)] * 2
        asked = budgets()[0].budget.equivalent
        assert 0.0 < asked < budgets()[1].budget.equivalent
        predict(slow, token, "192.0.2.1", trained.fresh[40:60])
        soon(lambda: watch_of(fast).verdict(subject).queries == 60)
        clocks[0].set(midnight + minute)
        soon(lambda: slow.service.gateway.renews == fast.service.gateway.renews)
        assert budgets()[0].budget.equivalent > asked, "its own midnight forgets nothing of the new period"
    finally:
        slow.stop()
        fast.stop()
