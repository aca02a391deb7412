"""Limits over HTTPS: what is counted, what clients are told, and that nothing stays counted that has ended."""

import asyncio
import contextlib
import socket
import time
from contextlib import contextmanager

import httpx
import pytest
from gateway_support import Live, make_keep, make_service, question, soon

from modelkeep.access.presented import Presented
from modelkeep.app.keep import Keep
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Invalid
from modelkeep.workflows.doors import Call

INFER = "/v2/models/iris/infer"


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained) -> Keep:
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)


@contextmanager
def limited(keep, **limits):
    """A gateway with these limits and no others, and a client of alice."""
    token = keep.key_issue(account="alice", quota=1000).token
    with pytest.MonkeyPatch.context() as patch:
        for name, value in limits.items():
            patch.setenv(f"MODELKEEP_LIMITS_{name.upper()}", str(value))
        running = Live(make_service(keep), keep.premises.directory)
    try:
        with running.client(token) as client:
            yield running, client
    finally:
        running.stop()
    assert running.errors == []


def ask(client, trained, rows=1):
    return client.post(INFER, content=question(trained.fresh[:rows]))


def test_an_answer_says_how_much_is_left_and_a_refusal_which_limit_it_was(keep, trained):
    """Source: draft-ietf-httpapi-ratelimit-headers-11, sections 3.2, 4.2 and 5.1."""
    with limited(keep, rate=0.01, burst=3) as (_, client):
        said = [ask(client, trained) for _ in range(4)]
        assert [answer.status_code for answer in said] == [200, 200, 200, 429]
        assert [answer.headers["ratelimit-policy"] for answer in said] == ['"account";q=3;w=300'] * 4
        assert said[0].headers["ratelimit"] in ('"account";r=2;t=100', '"account";r=1;t=100')
        assert said[2].headers["ratelimit"].startswith('"account";r=0;t=')
        wait = int(said[3].headers["retry-after"])
        assert 90 <= wait <= 100 and said[3].headers["ratelimit"] == f'"account";r=0;t={wait}'
        problem = said[3].json()
        assert (problem["code"], problem["violated-policies"]) == ("over-budget", ["account"])
        assert wait - 1 <= problem["retry_after"] <= wait
        assert client.get("/v2/models/iris").status_code == 200, "what there is is counted apart"


def test_without_limits_nothing_is_said(keep, trained):
    with limited(keep) as (_, client):
        answer = ask(client, trained)
        assert answer.status_code == 200
        assert answer.headers["ratelimit-policy"] == '"account";q=100000;w=1'


def test_a_batch_costs_its_rows(keep, trained):
    with limited(keep, cost_rate=0.01, cost_burst=20) as (_, client):
        assert ask(client, trained, 15).status_code == 200
        refused = ask(client, trained, 6)
        assert refused.status_code == 429 and refused.json()["violated-policies"] == ["rows"]
        assert refused.headers["ratelimit-policy"] == '"rows";q=20;w=2000;modelkeep-unit="rows"'
        assert ask(client, trained, 5).status_code == 200
        large = ask(client, trained, 21)
        assert large.status_code == 413 and "20 at most" in large.json()["detail"]


def test_a_row_may_cost_what_it_takes_the_model(keep, trained):
    with limited(keep, cost="time", cost_rate=0.0001, cost_burst=1000, models="{iris = {cost = 1000}}") as (running, client):
        seconds = running.service.gateway.admitted.models[ReleaseRef("iris", 1)].row_seconds
        answer = ask(client, trained, 8)
        left = 1000 - 8 * seconds * 1000 * 1000
        assert answer.status_code == 200 and answer.headers["ratelimit"].startswith(f'"time";r={int(left)};')


def test_a_quota_is_counted_in_rows(keep, trained):
    with limited(keep) as (running, _):
        token = keep.key_issue(account="alice", quota=40).token
        running.look()
        with running.client(token) as client:
            codes = [ask(client, trained, rows).status_code for rows in (30, 11, 8, 3, 2, 1)]
        assert codes == [200, 429, 200, 429, 200, 429]
        (row,) = (row for row in keep.key_list() if row.quota == 40)
        assert row.used == 40


def test_an_exception_for_one_model_and_one_account(keep, trained):
    special = {"accounts": "{alice = {burst = 5}}", "models": "{iris = {rate = 0.01, burst = 4}}"}
    with limited(keep, rate=0.01, burst=2, **special) as (_, client):
        said = [ask(client, trained) for _ in range(6)]
        assert [answer.status_code for answer in said] == [200] * 4 + [429] * 2
        assert [answer.json()["violated-policies"] for answer in said[4:]] == [["model"], ["account"]]


def test_too_many_from_one_address_are_turned_away_before_anything_else(keep, trained):
    with limited(keep, address_rate=0.5, address_burst=6) as (running, _):
        with httpx.Client(base_url=running.url, verify=running.tls, timeout=60) as stranger:
            said = [stranger.post(INFER, content=b"x", headers={"authorization": "Bearer mk_junk"}) for _ in range(3)]
            assert [answer.status_code for answer in said] == [401] * 3
        with httpx.Client(base_url=running.url, verify=running.tls, timeout=60) as stranger:
            refused = stranger.get("/v2/health/live")
            while refused.status_code == 200:
                refused = stranger.get("/v2/health/live")
        assert refused.status_code == 429 and refused.headers["ratelimit-policy"] == '"address";q=6;w=12'
        host, port = running.url.removeprefix("https://").split(":")

        def closed_at_once():
            with socket.create_connection((host, int(port)), timeout=2) as connection, contextlib.suppress(TimeoutError):
                return connection.recv(1) == b""  # not even TLS is agreed
            return False

        soon(closed_at_once)  # every other second one comes in
        time.sleep(4.1)
        with httpx.Client(base_url=running.url, verify=running.tls, timeout=60) as client:
            assert client.get("/v2/health/live").status_code == 200


def test_what_is_cut_off_is_in_flight_no_longer(keep, trained):
    with limited(keep, in_flight=2) as (running, client):
        gateway, loop = running.service.gateway, running._loop
        token = client.headers["authorization"].removeprefix("Bearer ")
        call = Call("iris", None, Presented(token), question(trained.fresh[:1]))

        async def cut_off():
            tasks = [asyncio.ensure_future(gateway.predict(call)) for _ in range(3)]
            await asyncio.sleep(0)
            flying = dict(gateway.limits._flying)
            for task in tasks:
                task.cancel()
            return flying, await asyncio.gather(*tasks, return_exceptions=True)

        flying, ended = asyncio.run_coroutine_threadsafe(cut_off(), loop).result(20)
        assert list(flying.values()) == [2] and len(ended) == 3
        assert gateway.limits._flying == {} and gateway.limits._flying_in_all == 0
        assert ask(client, trained).status_code == 200


def test_a_store_of_limits_that_cannot_be_spoken_to_is_named_at_the_start(keep, monkeypatch):
    monkeypatch.setenv("MODELKEEP_STATE_URL", "memcached://localhost")
    with pytest.raises(Invalid, match=r"\[state\] url"):
        make_service(keep)


def test_two_gateways_on_one_redis_share_every_limit(keep, trained, redis_server, monkeypatch):
    monkeypatch.setenv("MODELKEEP_STATE_URL", redis_server.url)
    shared = {"rate": 0.001, "burst": 24, "key_rate": 0.001, "key_burst": 20}
    with limited(keep, **shared) as (first, client), limited(keep, **shared) as (second, _):
        token = client.headers["authorization"].removeprefix("Bearer ")
        with second.client(token) as other:
            codes = [ask((client, other)[turn % 2], trained).status_code for turn in range(40)]
        assert set(codes) == {200, 429} and 20 - 2 * 3 <= codes.count(200) <= 20
        assert client.get("/v2/health/ready").status_code == 200
        said = client.get("/metrics").text
        assert "modelkeep_limits_counted 1" in said and "modelkeep_requests_in_flight 0" in said
        assert first.instance != second.instance
        with redis_server.client() as found:
            assert any(b"}:account/sub_" in key for key in found.keys("{modelkeep:*"))
