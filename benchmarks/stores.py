"""Stores: commits a second of every ``Records`` beside a bare fsync and INSERT; MB/s of every ``Blobs`` beside a bare copy.

S3 is moto's server on this machine, in Python: its rows say what the adapter costs beside the bare client, not what S3 gives.
"""

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import obstore
import psycopg
from obstore.store import S3Store

from benchmarks import Row, report
from modelkeep.adapters.blobs.local import LocalBlobs
from modelkeep.adapters.blobs.s3 import PART, REQUEST, S3Blobs
from modelkeep.adapters.records.postgres import PostgresRecords
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.core.ports import Blobs, Change, Records

ORIGIN = "bench.example/stores"
BODY = os.urandom(600)
COMMITS, ROUNDS = 200, 5
SIZE = 64 << 20


def run(args: list[str]) -> None:
    """``args``: a folder on the disk to measure; the system's temporary folder by default."""
    with tempfile.TemporaryDirectory(dir=args[0] if args else None) as folder, _servers() as (postgres, s3):
        report("records: one client, one record of 600 bytes a commit", _records(Path(folder), postgres.database()))
        report(f"blobs: {SIZE >> 20} MiB, one at a time", _blobs(Path(folder), s3))


@contextmanager
def _servers() -> Iterator[tuple]:
    """The servers of the tests, PostgreSQL with fsync."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from services import S3, S3_ENVIRONMENT, Postgres

    os.environ.update(S3_ENVIRONMENT)
    postgres, s3 = Postgres(durable=True), S3()
    try:
        yield postgres, s3
    finally:
        postgres.close()
        s3.stop()


def _records(folder: Path, url: str) -> list[Row]:
    with (
        closing(SqliteRecords.create(folder / "records.db")) as sqlite,
        closing(PostgresRecords.create(url, ORIGIN)) as ours,
        closing(psycopg.connect(url, autocommit=True)) as bare,
        (folder / "bare").open("ab", buffering=0) as file,
    ):
        bare.execute("CREATE TABLE bare (body BYTEA)")
        cases: dict[str, Callable[[int], object]] = {
            "bare write + fsync": lambda _: (file.write(BODY), os.fsync(file.fileno())),
            "SqliteRecords.commit": _committing(sqlite),
            "bare psycopg INSERT": lambda _: bare.execute("INSERT INTO bare VALUES (%s)", (BODY,)),
            "PostgresRecords.commit": _committing(ours),
        }
        found = {name: _each(act, COMMITS) for name, act in cases.items()}
        found["SqliteRecords.revision"] = _each(lambda _: sqlite.revision(), COMMITS)
        found["PostgresRecords.revision"] = _each(lambda _: ours.revision(), COMMITS)
    peers = {
        "SqliteRecords.commit": "bare write + fsync",
        "PostgresRecords.commit": "bare psycopg INSERT",
    }
    return [
        {
            "bench": "stores",
            "case": name,
            "per_s": round(1 / seconds),
            "us": round(seconds * 1e6, 1),
            "of_bare": f"{found[peers[name]] / seconds:.2f}" if name in peers else "",
        }
        for name, seconds in found.items()
    ]


def _committing(records: Records) -> Callable[[int], object]:
    return lambda number: records.commit([Change("bench", str(number % 50), BODY + str(number).encode())])


def _each(act: Callable[[int], object], count: int) -> float:
    """Seconds of one ``act``: the median of the rounds' means."""
    means, number = [], 0
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        for _ in range(count):
            number += 1
            act(number)
        means.append((time.perf_counter() - begun) / count)
    return statistics.median(means)


def _blobs(folder: Path, s3) -> list[Row]:
    data = os.urandom(SIZE)
    bucket, plain = s3.bucket(), s3.bucket()
    bare = S3Store(plain, endpoint=s3.endpoint, client_options={"allow_http": True})
    local, ours = LocalBlobs(folder / "blobs"), S3Blobs.create(s3.url(bucket), ORIGIN)
    into = memoryview(bytearray(SIZE))
    target = folder / "copy"

    def write() -> None:
        with target.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    def read() -> None:
        with target.open("rb", buffering=0) as file:
            file.readinto(into)

    def s3_put() -> None:
        obstore.put(bare, "x", (data[at : at + PART] for at in range(0, SIZE, PART)), use_multipart=True, chunk_size=PART)

    def s3_get() -> None:  # moto reads the whole object for each range, so a get of the whole is no limit for ranges
        for at in range(0, SIZE, REQUEST):
            into[at : at + REQUEST] = memoryview(obstore.get_range(bare, "x", start=at, length=REQUEST))

    rows = [
        _rate("bare write + fsync", write),
        _rate("LocalBlobs.put", lambda: local.put(_pieces(data))),
        _rate("bare readinto", read),
        _rate("LocalBlobs.read_into", _reading(local, data, into)),
        _rate("bare obstore multipart put", s3_put),
        _rate("S3Blobs.put", lambda: ours.put(_pieces(data))),
        _rate(f"bare obstore get_range, {REQUEST >> 20} MiB each", s3_get),
        _rate("S3Blobs.read_into", _reading(ours, data, into)),
    ]
    for limit, row in zip(rows[::2], rows[1::2], strict=True):
        row["of_bare"] = f"{float(str(row['MB_per_s'])) / float(str(limit['MB_per_s'])):.2f}"
    return rows


def _reading(blobs: Blobs, data: bytes, into: memoryview) -> Callable[[], object]:
    digest = blobs.put([data])
    return lambda: blobs.read_into(digest, 0, into)


def _pieces(data: bytes) -> Iterator[memoryview]:
    """2 MiB at a time, as sealing makes them."""
    view = memoryview(data)
    return (view[at : at + (2 << 20)] for at in range(0, len(view), 2 << 20))


def _rate(name: str, act: Callable[[], object]) -> Row:
    seconds = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        act()
        seconds.append(time.perf_counter() - begun)
    return {"bench": "stores", "case": name, "MB_per_s": round(SIZE / statistics.median(seconds) / 1e6)}
