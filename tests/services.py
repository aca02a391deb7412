"""Servers that tests start themselves: PostgreSQL and Redis from Debian's packages, and S3 as moto plays it.

Each runs at most once a test process, is started by the first test that asks, and ends with the process however that ends.
The fixtures stand in tests/conftest.py: ``postgres``, ``redis_server`` and ``s3``.
"""

import atexit
import datetime
import getpass
import itertools
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

import psycopg
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from free_ports import free_port

READY_SECONDS = 30.0
S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",
    "AWS_DEFAULT_REGION": "us-east-1",
}
"""What a process needs to speak to ``S3``: the example key of Amazon's documentation."""

_QUICK = ("-c", "fsync=off", "-c", "full_page_writes=off")
_ALWAYS = ("-c", "listen_addresses=", "-c", "max_connections=60", "-c", "autovacuum=off", "-c", "shared_buffers=16MB")


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    assert found, "PostgreSQL is not installed: run tools/packages.sh"
    return found[-1].parent


class Postgres:
    """A PostgreSQL server on a socket in a folder of its own, with no TCP port.

    ``durable``: with fsync, for benchmarks; without it a killed server still recovers, only a killed machine would not.
    ``options``: further ones of the server; ``port``: also a part of its socket's name; ``files``: more files for its data
    folder, by name.
    """

    def __init__(
        self, *options: str, port: int = 5432, durable: bool = False, files: Mapping[str, bytes] = MappingProxyType({})
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mkpg-", dir="/tmp"))  # short: a socket's path has 107 bytes
        self.user = getpass.getuser()
        self._port = port
        self._options = (*_ALWAYS, "-c", f"port={port}", *(() if durable else _QUICK), *options)
        self._free: list[str] = []
        self._as: tuple[str, ...] = ()
        self._process: subprocess.Popen[bytes] | None = None
        self._names = itertools.count(1)
        if os.geteuid() == 0:  # initdb and postgres refuse root
            shutil.chown(self.folder, "postgres", "postgres")
            self.user = "postgres"
            self._as = ("--reuid=postgres", "--regid=postgres", "--clear-groups")
        atexit.register(self.close)
        self._call(str(_programs() / "initdb"), "-D", "data", "-U", self.user, "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        for name, data in files.items():
            path = self.folder / "data" / name
            path.write_bytes(data)
            path.chmod(0o600)
            shutil.chown(path, self.user)
        self.start()

    def _command(self, *arguments: str) -> list[str]:
        return ["setpriv", *self._as, "--pdeathsig=INT", *arguments]

    def _call(self, *arguments: str) -> None:
        done = subprocess.run(self._command(*arguments), cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        """Start the server and wait until it answers."""
        command = self._command(str(_programs() / "postgres"), "-D", "data", "-k", str(self.folder), *self._options)
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _wait(self._answers, (self.folder / "log").read_text)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            psycopg.connect(self.url("postgres")).close()
        except psycopg.OperationalError:
            return False
        return True

    def url(self, database: str) -> str:
        """The URL of a database of this server."""
        return f"postgresql://{self.user}@/{database}?host={self.folder}&port={self._port}"

    def database(self) -> str:
        """The URL of an empty database."""
        if self._free:
            return self.url(self._free.pop())
        name = f"test{os.getpid()}_{next(self._names)}"
        self.run("postgres", f"CREATE DATABASE {name}")
        return self.url(name)

    def copy(self, url: str) -> str:
        """The URL of a copy of the database at ``url``, whose connections are ended."""
        original, name = _name_in(url), f"test{os.getpid()}_{next(self._names)}"
        self.run("postgres", _end(original), f"CREATE DATABASE {name} TEMPLATE {original}")
        return self.url(name)

    def take_back(self, url: str) -> None:
        """Empty a database that nobody needs any more; ``database`` gives it out again."""
        name = _name_in(url)
        self.run("postgres", f"ALTER DATABASE {name} RESET ALL", _end(name))
        self.run(name, "DROP SCHEMA IF EXISTS modelkeep CASCADE")
        self._free.append(name)

    def run(self, database: str, *statements: str) -> list[tuple[object, ...]]:
        """Run statements as the superuser; the rows of the last one. ``database``: its name or its URL."""
        url = database if database.startswith("postgresql:") else self.url(database)
        with psycopg.connect(url, autocommit=True) as connection:
            for statement in statements:
                cursor = connection.execute(statement)  # type: ignore[arg-type]
            return list(cursor.fetchall()) if cursor.description else []

    def pause(self, *, go_on: bool = False) -> None:
        """Stop every process of the server where it stands (or let them go on): it accepts connections and answers nothing."""
        assert self._process is not None
        for pid in (*self._children(), self._process.pid):
            os.kill(pid, signal.SIGCONT if go_on else signal.SIGSTOP)

    def _children(self) -> list[int]:
        assert self._process is not None
        pid = self._process.pid
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    def stop(self, how: int = signal.SIGINT) -> None:
        """End the server: SIGINT is an orderly end that waits for nobody, SIGQUIT as if it crashed."""
        if self._process is not None and self._process.poll() is None:
            pid = self._process.pid
            children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
            self._process.send_signal(how)
            try:
                self._process.wait(READY_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            _wait(
                lambda: not any(map(lives, children)), (self.folder / "log").read_text
            )  # one that lost its server still answers until it notices
        self._process = None

    def close(self) -> None:
        """End the server and remove its folder."""
        atexit.unregister(self.close)
        self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder, ignore_errors=True)


class Redis:
    """A Redis server on a socket in a folder of its own, with no TCP port unless ``options`` say so. Nothing is on disk."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mkred-", dir="/tmp"))
        self.socket = self.folder / "socket"
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)
        self.start()

    @property
    def url(self) -> str:
        """Its URL."""
        return f"unix://{self.socket}"

    def client(self) -> redis.Redis:
        """A client, for looking at what is there and for damaging it."""
        return redis.Redis(unix_socket_path=str(self.socket), socket_timeout=READY_SECONDS, protocol=2)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        fixed = ("--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", "", "--daemonize", "no")
        command = ["setpriv", "--pdeathsig=KILL", "redis-server", *fixed, *self._options]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        _wait(self._answers, (self.folder / "log").read_text)

    def _answers(self) -> bool:
        assert self._process is not None and self._process.poll() is None, (self.folder / "log").read_text()
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.ConnectionError:
            return False

    def flush(self) -> None:
        """Forget everything."""
        with self.client() as client:
            client.flushall()

    def pause(self, *, go_on: bool = False) -> None:
        """Stop the server where it stands (or let it go on): it accepts connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT if go_on else signal.SIGSTOP)

    def stop(self, how: int = signal.SIGKILL) -> None:
        """End the server; what it knew is gone."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)
            self._process.wait(READY_SECONDS)
        self._process = None

    def close(self) -> None:
        """End the server and remove its folder."""
        atexit.unregister(self.close)
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)


class S3:
    """moto's S3 on a free port of this machine. What is stored outlives ``stop`` and ``start``."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # one line a request otherwise
        self._make = ThreadedMotoServer
        self._names = itertools.count(1)
        self.port = free_port()
        self.start()
        atexit.register(self.stop)

    def start(self) -> None:
        """Listen, on the same port as before."""
        self._server = self._make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()

    def stop(self) -> None:
        """Listen no more."""
        if self._server is not None:
            self._server.stop()
        self._server = None

    @property
    def endpoint(self) -> str:
        """Its URL."""
        return f"http://127.0.0.1:{self.port}"

    def client(self):  # type: ignore[no-untyped-def]  # boto3 makes its classes at run time
        """A client of boto3, for looking at what is there and for damaging it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
            region_name=S3_ENVIRONMENT["AWS_DEFAULT_REGION"],
        )

    def bucket(self) -> str:
        """The name of a new, empty bucket."""
        name = f"mk-{os.getpid()}-{next(self._names)}"
        self.client().create_bucket(Bucket=name)
        return name

    def copy(self, bucket: str) -> str:
        """The name of a new bucket with the same objects."""
        name, client = self.bucket(), self.client()
        for item in client.list_objects_v2(Bucket=bucket).get("Contents", []):
            client.copy_object(Bucket=name, Key=item["Key"], CopySource={"Bucket": bucket, "Key": item["Key"]})
        return name

    def url(self, bucket: str, prefix: str = "keep") -> str:
        """The URL of a place in a bucket."""
        return f"s3://{bucket}/{prefix}?endpoint={self.endpoint}"


def certificate(
    name: str, authority: x509.Certificate | None = None, key: ec.EllipticCurvePrivateKey | None = None
) -> tuple[bytes, bytes, x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A certificate for the host ``name``, by ``authority`` (and its ``key``) or by itself; PEM of both, and the objects."""
    mine, now = ec.generate_private_key(ec.SECP256R1()), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    made = (
        x509.CertificateBuilder(
            authority.subject if authority else subject, subject, mine.public_key(), x509.random_serial_number()
        )
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(authority is None, None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key or mine, hashes.SHA256())
    )
    pem = mine.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return made.public_bytes(Encoding.PEM), pem, made, mine


def _name_in(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _end(database: str) -> str:
    """The statement that ends every connection to ``database``."""
    return f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"


def lives(pid: int) -> bool:
    """Whether the process runs: one that nobody has waited for yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _wait(reached: Callable[[], bool], explain: Callable[[], str]) -> None:
    end = time.monotonic() + READY_SECONDS
    while not reached():
        assert time.monotonic() < end, explain()
        time.sleep(0.02)
