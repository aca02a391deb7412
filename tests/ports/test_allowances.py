"""One conformance suite for ``Allowances``, run on every adapter; then what only Redis can do wrong."""

import itertools
import math
import threading
import time
from contextlib import closing

import pytest
from free_ports import free_port
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from services import Redis, certificate
from sharing import OwnersHouse, soon

from modelkeep.access.epochs import KeptEpoch
from modelkeep.adapters.clock import SystemEntropy
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.adapters.state import redis as state_redis
from modelkeep.adapters.state.memory import LEASE, MemoryAllowances, decide
from modelkeep.adapters.state.redis import RedisAllowances, parse_target
from modelkeep.core.ports import Change, Want
from modelkeep.errors import Invalid, Unavailable
from modelkeep.workflows.worker import SharedAllowances

_origins = itertools.count(1)


class Ticking:
    """This machine's clock, which can be made to stand still between two exchanges."""

    def __init__(self):
        self.behind = 0.0

    def __call__(self):
        return time.monotonic() - self.behind


class Place:
    """A place that counts, and replicas that lease from it."""

    def __init__(self, server: Redis | OwnersHouse | None) -> None:
        self.server, self.records, self.origin = server, MemoryRecords(), f"keep.example/limits-{next(_origins)}"
        self._shared = MemoryAllowances()
        self._made = []
        self._workers = []

    def _heard(self):
        def silent(worker):
            try:
                worker.check()
            except Unavailable:
                return True
            return False

        soon(lambda: not any(silent(worker) for worker in self._workers))

    def replica(self):
        if self.server is None:
            return self._shared
        if isinstance(self.server, OwnersHouse):
            self._workers.append(self.server.worker())
            self._heard()
            return SharedAllowances(self._workers[-1])
        self._made.append(RedisAllowances(self.server.url, self.origin, KeptEpoch(self.records), SystemEntropy()))
        return self._made[-1]

    def forget(self):
        if self.server is None:
            self._shared.forget()
        elif isinstance(self.server, OwnersHouse):
            self.server.die()
            self.server.start(lost=True)
            for worker in self._workers:
                self.server.link(worker)
            self._heard()
        else:
            self.server.flush()

    def close(self):
        for made in self._made:
            made.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """A server that gets no turn for a quarter of a second is not taken for one that hangs."""
    monkeypatch.setattr(state_redis, "ANSWER_SECONDS", 30.0)


@pytest.fixture(params=["memory", "redis", "workers"])
def place(request):
    server = None
    if request.param == "redis":
        server = request.getfixturevalue("redis_server")
    elif request.param == "workers":
        server = OwnersHouse().start()
    made = Place(server)
    yield made
    made.close()
    if request.param == "workers":
        server.stop()


@pytest.fixture
def on_redis(redis_server):
    made = Place(redis_server)
    yield made
    made.close()


def want(need=1.0, most=None, *, name="account/a", rate=0.001, burst=10.0):
    return Want(name, rate, burst, need, need if most is None else most)


def one(replica, asked):
    return replica.grant([asked]).given[0]


def test_the_burst_is_granted_and_not_one_unit_more(place):
    replica = place.replica()
    assert [one(replica, want(4)).units for _ in range(2)] == [4, 4]
    refused = one(replica, want(4))
    assert (refused.units, refused.lost) == (0, False)
    assert refused.wait == pytest.approx(2 / 0.001, rel=0.01)
    assert one(replica, want(1, 4)).units == 2
    assert one(replica, want(1)).units == 0


def test_what_was_granted_to_one_replica_is_gone_for_the_others(place):
    first, second = place.replica(), place.replica()
    assert one(first, want(1, 8)).units == 8
    assert one(second, want(1, 8)).units == 2
    assert one(first, want(1)).units == 0


def test_limits_are_apart_and_each_is_granted_by_itself(place):
    replica = place.replica()
    given = replica.grant([want(10), want(9, name="account/b"), want(10, name="account/c"), want(1)]).given
    assert [found.units for found in given] == [10, 9, 10, 0]


def test_units_come_back_at_the_rate(place):
    replica = place.replica()
    asked = want(1, rate=50.0, burst=5.0)
    assert one(replica, asked._replace(need=5.0, want=5.0)).units == 5
    began, found = time.monotonic(), 0
    while found < 15:
        found += one(replica, asked).units
        assert found <= 50 * (time.monotonic() - began) + 1
        assert time.monotonic() < began + 60


def test_nothing_is_needed_to_stay_in_touch(place):
    replica = place.replica()
    before = time.monotonic()
    found = replica.grant([])
    assert found.given == () and before <= found.until - LEASE <= time.monotonic()
    assert one(replica, want(0.0)).units == 0


def test_extra_units_are_whole(place):
    replica = place.replica()
    assert one(replica, want(0.5, 3.0)).units == 2.5
    assert one(replica, want(0.0, 9.0)).units == 7


def test_more_than_the_burst_is_never_granted(place):
    replica = place.replica()
    refused = one(replica, want(10.5))
    assert refused.units == 0 and refused.wait > 0
    assert one(replica, want(0.0, 99.0)).units == 10


def test_what_is_returned_can_be_granted_again(place):
    first, second = place.replica(), place.replica()
    found = first.grant([want(1, 10), want(1, 10, name="account/b")])
    first.give_back(found.epoch, [(want(), 6.0), (want(name="account/b"), 1.0), (want(name="account/never"), 1.0)])
    first.give_back(found.epoch, [])
    assert one(second, want(1, 10)).units == 6
    assert one(second, want(1, 10, name="account/b")).units == 1


def test_what_was_granted_before_everything_was_lost_is_not_returned(place):
    replica = place.replica()
    before = replica.grant([want(1, 10)])
    place.forget()
    after = replica.grant([want(1)])
    assert after.epoch != before.epoch
    replica.give_back(before.epoch, [(want(), 10.0)])
    assert one(replica, want(1)).lost


def test_after_a_loss_nothing_is_granted_until_a_full_window_has_passed(place):
    first, second = place.replica(), place.replica()
    asked, other = want(1, rate=10.0, burst=10.0), want(1, name="account/long", rate=0.1, burst=60.0)
    for replica in (first, second):
        replica.grant([asked, other])
    lost_at = time.monotonic()
    place.forget()
    epochs = set()
    while time.monotonic() < lost_at + 0.9:
        for replica in (first, second):
            found = replica.grant([asked, other])
            epochs.add(found.epoch)
            if time.monotonic() < lost_at + 1.0:  # else it may have been over when it was asked
                assert [(one.units, one.lost) for one in found.given] == [(0, True), (0, True)]
                assert 0 < found.given[0].wait <= 1.0 and 590 < found.given[1].wait <= 600
    assert len(epochs) == 1
    soon(lambda: one(first, asked._replace(want=10.0)).units == 10)
    assert one(second, other).lost


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25),
    st.integers(1, 12),
    st.sampled_from([0.001, 30.0]),
)
def test_no_sequence_is_ever_granted_more_than_burst_and_rate(place, steps, burst, rate):
    replicas = [place.replica() for _ in range(3)]
    name, granted, began = f"account/{next(_origins)}", 0.0, time.monotonic()
    for who, need, more in steps:
        asked = Want(name, rate, float(burst), float(min(need, burst)), float(min(need, burst) + more))
        found = one(replicas[who], asked)
        assert found.units == 0 or asked.need <= found.units <= asked.want
        granted += found.units
        assert granted <= burst + rate * (time.monotonic() - began) + 1e-3


def test_many_at_once_get_no_more_than_there_is(place):
    replicas = [place.replica() for _ in range(4)]
    replicas[0].grant([])
    found = []

    def lease(replica):
        found.extend([one(replica, want(1, 3, burst=100.0)).units for _ in range(40)])

    threads = [threading.Thread(target=lease, args=(replica,)) for replica in replicas]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 100


# -- the formula --------------------------------------------------------------------------------------------------------


def test_known_answers():
    """T = 0.5 s, a burst of 4: the schedule may run 2 s ahead."""
    asked = Want("x", 2.0, 4.0, 1.0, 3.0)
    assert decide(asked, -math.inf, 100.0, -math.inf) == (101.5, (3.0, 1.0, 0.0, False))
    assert decide(asked, 101.5, 100.0, -math.inf) == (102.0, (1.0, 0.0, 0.0, False))
    assert decide(asked, 102.0, 100.0, -math.inf) == (102.0, (0.0, 0.0, 0.5, False))
    assert decide(asked, 102.0, 100.25, -math.inf).given == (0.0, 0.5, 0.25, False)
    assert decide(asked, -math.inf, 100.0, 99.0) == (-math.inf, (0.0, 0.0, 1.0, True))
    assert decide(asked, -math.inf, 101.0, 99.0).given.units == 3.0


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    st.floats(0.1, 1e4), st.integers(1, 10_000), st.integers(0, 100), st.integers(0, 100), st.floats(-1.0, 1.0),
)  # fmt: skip
def test_the_script_is_the_formula(on_redis, rate, burst, need, more, share):
    """The same limit in Redis and by ``decide``: a schedule that runs ahead of now by ``share`` of the burst."""
    replica = on_redis.replica()
    asked = Want(f"account/{next(_origins)}", rate, float(burst), float(need), float(need + more))
    replica.grant([])
    ahead = share * burst / rate
    with on_redis.server.client() as client:
        seconds, micros = client.time()
        now = seconds * 1_000_000 + micros
        client.set(f"{{modelkeep:{on_redis.origin}}}:{asked.name}", f"{now + ahead * 1e6:.0f}")
        answer = one(replica, asked)
        seconds, micros = client.time()
    late = (seconds * 1_000_000 + micros - now) / 1e6
    low, high = decide(asked, ahead, 0.0, -math.inf).given, decide(asked, ahead, late, -math.inf).given
    assert low.units <= answer.units <= high.units
    assert high.wait - 1e-5 <= answer.wait <= low.wait + 1e-5
    if answer.units == low.units == high.units:
        assert low.room - 0.01 - burst * 1e-6 <= answer.room <= high.room + 0.01 + burst * 1e-6


# -- Redis --------------------------------------------------------------------------------------------------------------


def test_urls():
    found = parse_target("rediss://keep:hunter2@state.example/3?ca=/ca.pem", {})
    assert (str(found.name), found.options["db"], found.options["ssl_ca_certs"]) == (
        "Redis at rediss://state.example:6379", 3, "/ca.pem",
    )  # fmt: skip
    assert (found.options["username"], found.options["password"]) == ("keep", "hunter2") and "hunter2" not in repr(found)
    assert parse_target("unix:///run/redis.sock?db=2", {}).options["db"] == 2
    assert parse_target("redis://localhost", {"REDISCLI_AUTH": "hunter2"}).options["password"] == "hunter2"
    assert parse_target("redis://10.0.0.5:7000?tls=off", {}).options["port"] == 7000
    assert parse_target("redis://:p%40ss@[::1]:7000", {}).options["password"] == "p@ss"


@pytest.mark.parametrize(
    "url",
    [
        "", "http://u:hunter2@h", "redis://", "redis://u:hunter2@h:port", "redis://u:hunter2@10.0.0.5", "unix://",
        "redis://u:hunter2@localhost/x", "redis://u:hunter2@localhost?colour=red", "redis://u:hunter2@[::1", "redis://localhost#x",
        "unix://host/path", "redis://u:hunter2@localhost/1/2", "redis://u:hunter2@localhost?tls",
    ],
)  # fmt: skip
def test_what_is_no_url_is_refused_without_quoting_the_password(url):
    with pytest.raises(Invalid) as refusal:
        parse_target(url, {})
    assert "[state] url" in str(refusal.value) and "hunter2" not in str(refusal.value)


def test_the_first_ever_start_denies_nobody_and_a_second_on_an_empty_server_does(on_redis):
    assert one(on_redis.replica(), want(1)).units == 1
    on_redis.forget()
    assert one(on_redis.replica(), want(1)).lost, "a process that never saw what was lost knows of it from the records"


def test_who_died_before_the_first_answer_is_no_way_to_a_fresh_start(on_redis):
    assert KeptEpoch(on_redis.records).claim() == ("", True)
    ours = Ticking()
    replica = RedisAllowances(
        on_redis.server.url, on_redis.origin, KeptEpoch(on_redis.records), SystemEntropy(), monotonic=ours
    )
    with closing(replica):
        with pytest.raises(Unavailable, match="first time"):
            replica.grant([want(1)])
        ours.behind -= 2.0
        assert one(replica, want(1)).lost


def test_two_that_start_at_once_lose_nothing(on_redis):
    first, second = on_redis.replica(), on_redis.replica()
    with on_redis.server.client() as client:
        client.client_pause(1500)  # the first one has told the records that it is the first, and has no answer yet
        waiting = threading.Thread(target=lambda: first.grant([want(1)]))
        waiting.start()
        soon(lambda: list(on_redis.records.scan("limit-epoch")))
        with pytest.raises(Unavailable, match="first time"):
            second.grant([want(1)])
        waiting.join()
    assert one(second, want(1)).units == 1


def test_an_older_snapshot_put_back_is_noticed(on_redis):
    """As a restart from a snapshot, or a failover to a replica that lagged behind."""
    first, second = on_redis.replica(), on_redis.replica()
    first.grant([want(1)]), second.grant([want(1)])
    keys = f"{{modelkeep:{on_redis.origin}}}:"
    with on_redis.server.client() as client:
        older = {key: client.dump(key) for key in client.keys(f"{keys}*")}
        assert len(older) == 2
        first.grant([want(1, 5)])
        for key, value in older.items():
            client.restore(key, 0, value, replace=True)
    assert one(second, want(1)).units == 1, "it lost nothing of its own"
    found = first.grant([want(1)])
    assert found.given[0].lost
    assert second.grant([want(1)]).epoch == found.epoch


def test_another_server_that_knows_an_older_state_is_noticed(on_redis):
    replica = on_redis.replica()
    epoch = replica.grant([want(1)]).epoch
    key = f"{{modelkeep:{on_redis.origin}}}:known"
    with on_redis.server.client() as client:
        client.hset(key, mapping={"id": "another", "born": "1000000"})
    found = replica.grant([want(1)])
    assert found.given[0].lost and found.epoch not in {epoch, "another"}


def test_a_server_whose_clock_is_set_forward_is_not_believed(on_redis):
    ours = Ticking()
    replica = RedisAllowances(
        on_redis.server.url, on_redis.origin, KeptEpoch(on_redis.records), SystemEntropy(), monotonic=ours
    )
    with closing(replica):
        assert one(replica, want(1)).units == 1
        ours.behind += 10.0  # seen from here, its clock ran ten seconds ahead
        with pytest.raises(Unavailable, match="set forward"):
            replica.grant([want(1)])
        assert one(replica, want(1)).lost


def test_records_that_cannot_say_what_was_known_grant_nothing(on_redis):
    on_redis.records.commit([Change("limit-epoch", "shared", b"damaged")])
    with pytest.raises(Unavailable, match="damaged"):
        on_redis.replica().grant([want(1)])


def test_schedules_end_by_themselves_and_a_replica_leaves_nothing(on_redis):
    replica = on_redis.replica()
    replica.grant([want(5, rate=0.1), want(5, name="account/b")])
    with on_redis.server.client() as client:
        prefix = f"{{modelkeep:{on_redis.origin}}}:"
        assert 0 < client.pttl(f"{prefix}account/a") <= 50_002
        assert 4_900_000 < client.pttl(f"{prefix}account/b") <= 5_000_002
        replica.close()
        assert set(client.hgetall(f"{prefix}known")) == {b"id", b"born"}
    replica.close()


def test_a_script_that_the_server_forgot_is_sent_again(on_redis):
    replica = on_redis.replica()
    replica.grant([want(1)])
    with on_redis.server.client() as client:
        client.script_flush()
    assert one(replica, want(1, 10)).units == 9


@pytest.fixture
def own_server(request):
    made = Redis(*getattr(request, "param", ()))
    yield made
    made.close()


def test_a_server_that_is_gone_or_hangs_is_noticed_in_time_and_found_again(own_server, monkeypatch):
    monkeypatch.setattr(state_redis, "ANSWER_SECONDS", 1.5)
    place = Place(own_server)
    replica = place.replica()
    replica.grant([want(1)])
    own_server.pause()
    with pytest.raises(Unavailable, match="did not answer"):
        replica.grant([want(1)])
    own_server.pause(go_on=True)
    assert one(replica, want(1)).units == 1
    own_server.stop()
    with pytest.raises(Unavailable, match="did not answer"):
        replica.grant([want(1)])
    with pytest.raises(Unavailable):
        replica.give_back("x", [(want(), 1.0)])
    replica.close()
    own_server.start()
    replica = place.replica()
    assert one(replica, want(1)).lost
    place.close()


@pytest.mark.parametrize("own_server", [("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")], indirect=True)
def test_a_server_that_evicts_is_refused(own_server):
    replica = Place(own_server).replica()
    with pytest.raises(Unavailable, match="noeviction"):
        replica.grant([want(1)])
    with own_server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
    assert one(replica, want(1)).units == 1


LEAST = "+eval +evalsha +script|load +time +hmget +hget +hset +hdel +get +set +del +info"


def test_a_user_with_the_documented_rights_is_enough_and_a_wrong_password_is_not_told(own_server):
    with own_server.client() as client:
        client.execute_command("ACL", "SETUSER", "keep", "on", ">hunter2", "~{modelkeep:*", *LEAST.split())
    memory = KeptEpoch(MemoryRecords())
    address = f"unix://keep:{{}}@{own_server.socket}"
    good = RedisAllowances(address.format("hunter2"), "keep.example/acl", memory, SystemEntropy())
    with closing(good):
        found = good.grant([want(1)])
        good.give_back(found.epoch, [(want(), 1.0)])
    with closing(RedisAllowances(address.format("hunter3"), "keep.example/acl", memory, SystemEntropy())) as bad:
        with pytest.raises(Unavailable) as refusal:
            bad.grant([want(1)])
        assert "hunter3" not in str(refusal.value) and "hunter3" not in repr(bad)


def test_over_tls_only_with_a_certificate_that_is_trusted(tmp_path):
    for name, data in zip(("ca", "ca-key"), certificate("localhost")[:2], strict=True):
        (tmp_path / f"{name}.pem").write_bytes(data)
    (tmp_path / "other.pem").write_bytes(certificate("localhost")[0])
    files = ("--tls-cert-file", str(tmp_path / "ca.pem"), "--tls-key-file", str(tmp_path / "ca-key.pem"))
    port = free_port()
    server = Redis("--tls-port", str(port), *files, "--tls-ca-cert-file", str(tmp_path / "ca.pem"), "--tls-auth-clients", "no")
    try:
        for trusted, works in (("ca", True), ("other", False)):
            url = f"rediss://localhost:{port}?ca={tmp_path / trusted}.pem"
            with closing(RedisAllowances(url, "keep.example/tls", KeptEpoch(MemoryRecords()), SystemEntropy())) as replica:
                if works:
                    assert one(replica, want(1)).units == 1
                else:
                    with pytest.raises(Unavailable, match="certificate verify failed"):
                        replica.grant([want(1)])
    finally:
        server.close()
