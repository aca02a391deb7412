"""A few connections to one PostgreSQL server, for ``PostgresRecords``: bounded in number and in time, replaced when they break.

PostgreSQL's defaults are changed where they would be less than a keep promises: a server that is not on this machine must prove
who it is (``sslmode=verify-full``) unless the URL says otherwise; a standby is never read, since it may lag behind; commits are
on disk when they return.
"""

import contextlib
import os
import re
import select
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import psycopg
from psycopg import errors
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict

from modelkeep.errors import Invalid, NotTrusted, Unavailable

SIZE = 4
"""Connections of one process at most."""
ANSWER_SECONDS = 5.0
"""The longest wait for a free connection, for making one, for a lock and for an answer, each."""

_HOLD_SECONDS = 15
_SETUP = f"""
    SELECT set_config('statement_timeout', '{int(ANSWER_SECONDS * 1000)}', FALSE),
           set_config('lock_timeout', '{int(ANSWER_SECONDS * 1000)}', FALSE),
           set_config('idle_in_transaction_session_timeout', '{_HOLD_SECONDS * 1000}', FALSE),
           set_config('search_path', 'pg_catalog', FALSE),
           set_config('default_transaction_isolation', 'read committed', FALSE),
           set_config('synchronous_commit',
                      CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') THEN 'on'
                           ELSE current_setting('synchronous_commit') END, FALSE)
"""
_WEAK_TLS = ("allow", "prefer")
_HERE = ("", "localhost", "127.0.0.1", "::1")
R = TypeVar("R")


class Target(NamedTuple):
    """A parsed database URL: libpq's parameters, and how it is called (``str()``), without its password."""

    parameters: Mapping[str, Any]
    name: str

    def __str__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"Target({self.name!r})"


def parse_target(url: str, environment: Mapping[str, str] = os.environ) -> Target:
    """Parse ``postgresql://[USER[:PASSWORD]@][HOST][:PORT]/DATABASE[?…]``. Raises Invalid, which never quotes the URL."""
    if not url.startswith(("postgresql://", "postgres://")):
        raise Invalid("[records] url is not a PostgreSQL URL: expected postgresql://USER@HOST/DATABASE")
    try:
        given = conninfo_to_dict(url)
    except (
        psycopg.Error,
        UnicodeDecodeError,
    ):  # `from None`: the cause quotes parts of the URL, of which one may be the password
        raise Invalid("[records] url is not a PostgreSQL URL that libpq understands: see docs/stores.md") from None
    server, _, rest = url.partition("://")[2].partition("?")[0].partition("/")
    if server.count("@") > 1 or "@" in rest:  # libpq takes what follows for the host or the database, which errors name
        raise Invalid("[records] url holds an @ or / that is part of a name or password: write it as %40 or %2F")
    if not given.get("dbname"):
        raise Invalid("[records] url names no database: expected postgresql://USER@HOST/DATABASE")
    if not re.fullmatch(r"[0-9,]*", str(given.get("port") or "")):
        raise Invalid("[records] url has a port that is no number")
    hosts = [str(given.get(part) or environment.get(f"PG{part.upper()}", "")) for part in ("host", "hostaddr", "service")]
    where = next(filter(None, hosts), "")
    port = f":{given['port']}" if given.get("port") else ""
    user = f"{given['user']}@" if given.get("user") else ""
    name = f"the database postgresql://{user}{where}{port}/{given['dbname']}"
    return Target({**given, **_fixed(given, hosts, environment, name)}, name)


def _fixed(given: Mapping[str, Any], hosts: Sequence[str], environment: Mapping[str, str], name: str) -> dict[str, Any]:
    """What is said to libpq beside the URL. ``hosts``: everything that may say where the server is."""
    fixed: dict[str, Any] = {
        "connect_timeout": int(ANSWER_SECONDS),
        "tcp_user_timeout": int(ANSWER_SECONDS * 1000),
        "keepalives_idle": 5,
        "keepalives_interval": 2,
        "keepalives_count": 2,
        "target_session_attrs": "read-write",
        "client_encoding": "UTF8",
        "application_name": given.get("application_name") or "modelkeep",
    }
    if all(host.startswith("/") or host in _HERE for each in hosts for host in each.split(",")):
        return fixed
    mode = given.get("sslmode") or environment.get("PGSSLMODE")
    if mode in _WEAK_TLS:
        raise Invalid(f"{name} is asked with sslmode={mode}, which gives way to a liar: use verify-full")
    if mode is None:
        fixed["sslmode"] = mode = "verify-full"
    if mode == "verify-full" and not given.get("sslrootcert") and "PGSSLROOTCERT" not in environment:
        fixed["sslrootcert"] = "system"
    return fixed


class Connection(psycopg.Connection[tuple[Any, ...]]):
    """A connection that waits a bounded time for an answer. libpq itself waits for ever on a server that hangs."""

    patience: float | None = None
    """Seconds; None = twice as long as the server may take."""

    def wait(self, gen: PQGen[R], *args: Any, **kwargs: Any) -> R:
        seconds = 2 * ANSWER_SECONDS if self.patience is None else self.patience
        return super().wait(_bounded(gen, time.monotonic() + seconds), *args, **kwargs)


def _bounded(gen: PQGen[R], until: float) -> Generator[Any, Any, R]:
    """``gen``, given up at its next step after ``until``; psycopg makes a step ten times a second while nothing arrives."""
    try:
        wanted = next(gen)
        while True:
            ready = yield wanted
            if time.monotonic() > until:
                raise psycopg.OperationalError("no answer")
            wanted = gen.send(ready)
    except StopIteration as done:
        value: R = done.value
        return value


class Pool:
    """Up to ``SIZE`` connections, made when needed. Thread-safe."""

    def __init__(self, target: Target, check: Callable[[Connection], None]) -> None:
        """``check``: what a new connection must pass; it raises what is wrong."""
        self._target = target
        self.check = check
        self._room = threading.BoundedSemaphore(SIZE)
        self._idle: list[Connection] = []
        self._closed = weakref.finalize(self, _close_all, self._idle)

    @contextlib.contextmanager
    def connection(self) -> Iterator[Connection]:
        """A connection in autocommit for the length of the block. Raises Unavailable, Invalid, NotTrusted."""
        if not self._room.acquire(timeout=ANSWER_SECONDS):
            raise Unavailable(f"{self._target} is slow: all {SIZE} connections are busy; try again")
        try:
            with self._failures():
                connection = self._idle_one() or self._connect()
                try:
                    yield connection
                except BaseException:
                    if connection.broken or connection.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                        connection.close()
                    raise
                finally:
                    if not connection.closed:
                        self._idle.append(connection)
        finally:
            self._room.release()

    def close(self) -> None:
        """Close the idle connections; idempotent."""
        _close_all(self._idle)

    def _idle_one(self) -> Connection | None:
        """An idle connection that the server did not end meanwhile: nothing but its end comes in unasked."""
        while self._idle:
            with contextlib.suppress(IndexError):  # another thread was quicker
                connection = self._idle.pop()
                poll = select.poll()
                poll.register(connection.fileno(), select.POLLIN)
                if not poll.poll(0):
                    return connection
                connection.close()
        return None

    def _connect(self) -> Connection:
        connection = Connection.connect(**self._target.parameters, autocommit=True)
        try:
            connection.execute(_SETUP)
            self.check(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextlib.contextmanager
    def _failures(self) -> Iterator[None]:
        """PostgreSQL's errors in our words; `from None`, since what it says may quote the URL."""
        try:
            yield
        except (errors.QueryCanceled, errors.LockNotAvailable):
            raise Unavailable(f"{self._target} was locked or busy for more than {ANSWER_SECONDS:g} s: try again") from None
        except errors.InsufficientPrivilege as cause:
            raise Unavailable(f"{self._target} forbids it ({self._words(cause)}): grant what docs/stores.md lists") from None
        except (errors.DataCorrupted, errors.IndexCorrupted) as cause:
            raise NotTrusted(f"{self._target} is damaged ({self._words(cause)}): restore it from a backup") from None
        except (psycopg.DataError, UnicodeEncodeError) as cause:
            raise Invalid(f"{self._target} cannot hold this ({self._words(cause)})") from None
        except psycopg.Error as cause:
            raise Unavailable(f"{self._target} failed: {self._words(cause)}") from None

    def _words(self, cause: Exception) -> str:
        """The first line of an error, without the password."""
        said = cause.diag.message_primary if isinstance(cause, psycopg.Error) else None
        line = (said or str(cause)).strip().partition("\n")[0][:200] or type(cause).__name__
        password = str(self._target.parameters.get("password") or "")
        return line.replace(password, "***") if password else line


def _close_all(idle: list[Connection]) -> None:
    while idle:
        with contextlib.suppress(IndexError, psycopg.Error):
            idle.pop().close()
