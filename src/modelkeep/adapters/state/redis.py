"""Limits counted in Redis (or Valkey): one script grants leases, by the server's clock, and notices when the server forgot.

A keep's keys: ``{modelkeep:ORIGIN}:known`` (a hash: ``id`` and birth of what is known, and how often each replica was
answered), and for each limit that is not whole ``{modelkeep:ORIGIN}:NAME``, its schedule in microseconds of the server, which
ends by itself when it is whole. The braces keep a keep in one slot of a cluster.

State is lost when ``known`` is gone (restart without persistence, FLUSHALL, failover to an empty replica), when it is another
than this replica knew and not younger than its last contact (another server), when a replica was answered less often than it
remembers (a snapshot, a replica that lagged behind), or when the server's clock was set forward. Then nothing is granted of a
limit until a window that was full at that moment has passed.
"""

import contextlib
import math
import os
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from modelkeep.adapters.state.memory import LEASE
from modelkeep.core.ports import Entropy, Given, Grants, Want
from modelkeep.errors import Invalid, ModelkeepError, Unavailable

ANSWER_SECONDS = 0.25
"""The longest wait for a connection, and for an answer: a request may be waiting for it."""
FIRST_SECONDS = 2.0
"""How long to wait for whoever asks for the first time ever, before it is taken to have died."""
JUMP = 0.5
"""Seconds by which the server's clock may run ahead of this machine's between two exchanges before it counts as set forward."""

_NEVER = 9_000_000_000_000_000  # microseconds: later than every contact there was
_HERE = ("localhost", "127.0.0.1", "::1")
_EVICTING = re.compile(r"(?:allkeys|volatile)-")

_GRANT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local fresh_id, known_id, replica = ARGV[1], ARGV[2], ARGV[3]
local answered, contact, first = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local found = redis.call('HMGET', KEYS[1], 'id', 'born', replica)
local id, born, count = found[1], tonumber(found[2]), tonumber(found[3]) or 0
local gone = not id or not born
if gone or (id ~= known_id and born <= contact) or (id == known_id and count < answered) then
    id, count, born = fresh_id, 0, now
    if gone and first == '1' then born = 0 end
    redis.call('DEL', KEYS[1])
    redis.call('HSET', KEYS[1], 'id', id, 'born', string.format('%.0f', born))
end
redis.call('HSET', KEYS[1], replica, count + 1)
local answer = {id, string.format('%.0f', now), count + 1}
for i = 2, #KEYS do
    local at = 6 + (i - 2) * 4
    local rate, burst = tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local need, want = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
    local interval = 1000000 / rate
    local opens = born + burst * interval
    local units, room, wait, lost = 0, 0, 0, 0
    if born > 0 and now < opens then
        wait, lost = opens - now, 1
    else
        local start = math.max(tonumber(redis.call('GET', KEYS[i]) or '0'), now)
        room = burst - (start - now) / interval
        if room < need - 0.000001 then
            wait = (need - room) * interval
        else
            units = need + math.max(0, math.floor(math.min(want, room) - need + 0.000001))
            if units > 0 then
                start = math.ceil(start + units * interval)
                local life = math.ceil((start - now) / 1000) + 1
                redis.call('SET', KEYS[i], string.format('%.0f', start), 'PX', string.format('%.0f', life))
            end
            room = room - units
        end
    end
    answer[#answer + 1] = string.format('%.9g %.9g %.0f %d', units, room, math.ceil(wait), lost)
end
return answer
"""

_GIVE_BACK = """
if redis.call('HGET', KEYS[1], 'id') ~= ARGV[1] then return 0 end
for i = 2, #KEYS do
    local tat = redis.call('GET', KEYS[i])
    if tat then
        tat = tonumber(tat) - math.floor(tonumber(ARGV[i]))
        redis.call('SET', KEYS[i], string.format('%.0f', tat), 'KEEPTTL')
    end
end
return 1
"""

_LEAVE = "if redis.call('HGET', KEYS[1], 'id') == ARGV[1] then redis.call('HDEL', KEYS[1], ARGV[2]) end"


class Target(NamedTuple):
    """A parsed URL: what the client is made with, and how the server is called, without its password."""

    options: Mapping[str, Any]
    name: str

    def __repr__(self) -> str:
        return f"Target({self.name!r})"


class Memory(Protocol):
    """What outlives the store: the id of what it knew."""

    def claim(self) -> tuple[str, bool]:
        """The id that was kept last, and whether there never was one, which is so for one caller only. Raises Unavailable."""
        ...

    def keep(self, epoch: str) -> None:
        """Remember ``epoch``. Raises Unavailable."""
        ...


def parse_target(url: str, environment: Mapping[str, str] = os.environ) -> Target:
    """Parse ``redis[s]://[USER[:PASSWORD]@]HOST[:PORT][/DB][?ca=FILE|tls=off]`` or ``unix:///SOCKET[?db=N]``.

    A password that the URL lacks is that of ``REDISCLI_AUTH``. Raises Invalid, which never quotes the URL.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 6379
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        raise Invalid("[state] url is no URL that can be understood: expected rediss://USER@HOST:PORT") from None
    if parts.scheme not in {"redis", "rediss", "unix"} or parts.fragment:
        raise Invalid("[state] url begins neither with rediss:// nor with redis:// or unix://: see docs/limits.md")
    if unknown := given.keys() - {"ca", "tls", "db"}:
        raise Invalid(f"[state] url has a parameter that is not known: {sorted(unknown)[0][:20]!r}")
    options: dict[str, Any] = {
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else environment.get("REDISCLI_AUTH"),
        "db": _database(given.get("db") or ("" if parts.scheme == "unix" else parts.path.strip("/"))),
    }
    if parts.scheme == "unix":
        if not parts.path or parts.netloc.rpartition("@")[2]:
            raise Invalid("[state] url names no socket: expected unix:///PATH")
        return Target({**options, "unix_socket_path": unquote(parts.path)}, f"Redis at unix://{parts.path}")
    if not parts.hostname:
        raise Invalid("[state] url names no host: expected rediss://USER@HOST:PORT")
    options |= {"host": parts.hostname, "port": port}
    if parts.scheme == "rediss":
        options |= {"ssl": True, "ssl_ca_certs": given.get("ca"), "ssl_min_version": ssl.TLSVersion.TLSv1_2}
    elif parts.hostname not in _HERE and given.get("tls") != "off":
        raise Invalid("[state] url is not encrypted and leaves this machine: use rediss://, or say ?tls=off")
    return Target(options, f"Redis at {parts.scheme}://{parts.hostname}:{port}")


def _database(text: str) -> int:
    if not re.fullmatch(r"[0-9]{0,4}", text):
        raise Invalid("[state] url names a database that is no number")
    return int(text or 0)


class RedisAllowances:
    """``Allowances`` in Redis. ``origin``: the keep's name; ``memory``: remembers, outside Redis, what Redis knew.

    Nothing is asked of the server before the first grant. Raises Invalid (the URL).
    """

    def __init__(
        self, url: str, origin: str, memory: Memory, entropy: Entropy, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        target = parse_target(url)
        self._name, self._memory, self._entropy, self._monotonic = target.name, memory, entropy, monotonic
        self._client = redis.Redis(
            **target.options,
            protocol=2,
            socket_timeout=ANSWER_SECONDS,
            socket_connect_timeout=ANSWER_SECONDS,
            retry=Retry(NoBackoff(), 0),  # a repeated grant would be debited twice, and somebody is waiting
            max_connections=2,
        )
        self._grant, self._return = self._client.register_script(_GRANT), self._client.register_script(_GIVE_BACK)
        self._prefix = f"{{modelkeep:{origin}}}:"
        self._replica = f"at:{entropy.token(8).hex()}"
        self._known, self._first, self._claimed, self._kept = "", False, False, ""
        self._answered, self._contact, self._asked_at = 0, _NEVER, math.inf
        self._seen: tuple[float, float] | None = None  # of the last answer: the server's seconds, and ours when it was asked
        self._checked = False
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"RedisAllowances({self._name!r})"

    def grant(self, wants: Sequence[Want]) -> Grants:
        """Lease units of several limits, in one script."""
        with self._lock:
            self._claim()
            sent = self._monotonic()
            keys = [f"{self._prefix}known", *(self._prefix + want.name for want in wants)]
            head: list[str | int] = [
                self._entropy.token(8).hex(),
                self._known,
                self._replica,
                self._answered,
                self._contact,
                int(self._first),
            ]
            told = [f"{part:.9g}" for want in wants for part in (want.rate, want.burst, want.need, want.want)]
            answer = self._ask(lambda: self._grant(keys=keys, args=[*head, *told]))
            epoch, now, count = answer[0].decode(), int(answer[1]), int(answer[2])
            changed = epoch != self._known
            self._known, self._answered, self._contact, self._first = epoch, count, now, False
            if not changed and self._jumped(now / 1e6):
                self._known, self._contact = "", _NEVER  # the next exchange finds an id that it does not know: lost
                raise Unavailable(f"the clock of {self._name} was set forward: what it granted since is not known")
            self._seen = (now / 1e6, sent)
            self._keep(epoch)
            return Grants(sent + LEASE, epoch, tuple(_given(line) for line in answer[3:]))

    def give_back(self, epoch: str, units: Sequence[tuple[Want, float]]) -> None:
        """Return what was not used."""
        if units:
            keys = [f"{self._prefix}known", *(self._prefix + want.name for want, _ in units)]
            told = [f"{count / want.rate * 1e6:.0f}" for want, count in units]
            with self._lock:
                self._ask(lambda: self._return(keys=keys, args=[epoch, *told]))

    def close(self) -> None:
        """Say goodbye, if the server can hear it."""
        with self._lock:
            with contextlib.suppress(redis.RedisError, OSError):
                self._client.eval(_LEAVE, 1, f"{self._prefix}known", self._known, self._replica)
            self._client.close()

    def _jumped(self, now: float) -> bool:
        if self._seen is None:
            return False
        before, asked = self._seen
        return now - before > self._monotonic() - asked + JUMP

    def _claim(self) -> None:
        """Find out, once, what the server knew last."""
        if self._claimed:
            return
        try:
            known, first = self._memory.claim()
        except ModelkeepError as cause:
            raise Unavailable(f"what {self._name} knew before cannot be looked up: {cause}") from cause
        now = self._monotonic()
        self._asked_at = min(self._asked_at, now)
        if not known and not first and now < self._asked_at + FIRST_SECONDS:
            raise Unavailable(f"another gateway is asking {self._name} for the first time: ask again in a moment")
        self._known, self._first, self._kept, self._claimed = known, first, known, True

    def _keep(self, epoch: str) -> None:
        """Remember what the server knows now. When that fails, a restart takes the state for lost, which is safe."""
        if epoch != self._kept:
            try:
                self._memory.keep(epoch)
            except Unavailable:
                return
            self._kept = epoch

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            self._check_eviction()
            return call()
        except (redis.RedisError, OSError) as cause:
            self._checked = False
            self._client.connection_pool.disconnect()
            raise Unavailable(f"{self._name} did not answer, so nothing is granted of any limit: {_why(cause)}") from cause

    def _check_eviction(self) -> None:
        """At the beginning and after each failure: a server that throws keys away to make room forgets unnoticed."""
        if not self._checked:
            memory = self._client.info("memory")
            policy = str(memory.get("maxmemory_policy", "noeviction"))
            if memory.get("maxmemory") and _EVICTING.match(policy):
                raise Unavailable(f"{self._name} evicts keys ({policy}): set its maxmemory-policy to noeviction")
            self._checked = True


def _given(line: bytes) -> Given:
    units, room, wait, lost = line.split()
    return Given(float(units), float(room), float(wait) / 1e6, lost == b"1")


def _why(cause: Exception) -> str:
    """The reason in a few words, which hold no password: redis-py quotes none, and only its first line is told."""
    return (str(cause).splitlines() or [type(cause).__name__])[0][:160]
