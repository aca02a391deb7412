"""What every room may use: a model to protect, a finished keep to copy, and the command line."""

import os
import sys

# Before numpy comes in: several processes share the cores here. OpenMP's threads spin while they wait for one that has no turn:
# a fit of two seconds took minutes.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Images of containers often forbid bytecode files: each of our many processes would compile the whole package again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import functools
import gc
import hashlib
import json
import subprocess
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commandline import PASSPHRASE, Cli, Outside, Subject, copy_keep, tabular
from hypothesis import HealthCheck, settings
from services import S3, S3_ENVIRONMENT, Postgres, Redis

from modelkeep.container import recipients
from modelkeep.crypto.kdf import argon2id
from modelkeep.custody import keyring
from modelkeep.extraction import fitting

settings.register_profile("explore", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("suite", settings.get_profile("explore"), derandomize=True)
settings.load_profile("suite")
"""Properties are tried on the same examples every time, and no clock judges them: a loaded machine, or luck, fails no test.

``pytest --hypothesis-profile=explore`` draws new examples.
"""

LONGEST_FIRST = ("e2e", "workflows", "app", "http", "ports", "cli", "extraction", "house", "custody")
"""Rooms whose files take long begin first, so that several processes end at about the same time (see Makefile)."""


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Nothing of what is collected is garbage: to look through it again and again was a third of the time that this takes."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by room, and leave files and tests in the order that they have."""
    rank = {room: at for at, room in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(item.path.parent.name, len(rank)))


@pytest.fixture(scope="session", autouse=True)
def stretched_once() -> Iterator[None]:
    """Argon2id gives one key for one passphrase, salt and cost: what this process stretched before is remembered.

    Most tests open copies of the same keep in this process, and half of their work was to stretch its passphrase again.
    """
    remembered = functools.lru_cache(maxsize=None)(argon2id)
    with pytest.MonkeyPatch.context() as patch:
        for room in (keyring, recipients):
            patch.setattr(room, "argon2id", remembered)
        yield


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_disks() -> Iterator[None]:
    """What this process has written outlives it when it is killed, synced or not; only a killed machine would lose it.

    A keep syncs some dozens of times, at milliseconds each on most disks. Processes that tests start sync as ever.
    """
    with pytest.MonkeyPatch.context() as patch:
        for call in ("fsync", "fdatasync"):
            patch.setattr(os, call, lambda descriptor: os.fstat(descriptor) and None)
        yield


@pytest.fixture(scope="session", autouse=True)
def fitted_once() -> Iterator[None]:
    """What tells real rows from synthetic ones, learnt once from the same rows with the same generator.

    Both fits are deterministic, which tests/extraction asks of themselves, and take most of the time of a publish; most tests
    publish the same model with the same reference rows.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("fit_discriminator", "fit_trees"):
            patch.setattr(fitting, name, _remembered(getattr(fitting, name)))
        yield


def _remembered(fit: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[object, Any] = {}

    def fitted(real: np.ndarray, fake: np.ndarray, rng: np.random.Generator) -> Any:
        rows = [(side.shape, side.dtype.str, hashlib.sha256(np.ascontiguousarray(side)).digest()) for side in (real, fake)]
        key = (*rows, json.dumps(rng.bit_generator.state))
        if key not in known:
            known[key] = fit(real, fake, rng), rng.bit_generator.state
        found, rng.bit_generator.state = known[key]
        return found

    return fitted


@pytest.fixture(scope="module", autouse=True)
def no_gateway(request) -> Iterator[None]:
    """In these rooms no gateway runs whose lease a verb would have to wait out; tests/http and tests/e2e have some."""
    with pytest.MonkeyPatch.context() as patch:
        if request.path.parent.name in ("app", "cli"):
            patch.setattr("modelkeep.app.premises.LEASE_SECONDS", 0.0)
        yield


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The model to protect."""
    return tabular()


@pytest.fixture(scope="session")
def desk(tmp_path_factory, subject) -> Path:
    """A folder with what a user has: model.onnx, ref.npz, pass, and two passwords."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "model.onnx").write_bytes(subject.onnx)
    (folder / "ref.npz").write_bytes(subject.reference)
    (folder / "pass").write_text(PASSPHRASE + "\n")
    (folder / "wrong").write_text("not the passphrase at all\n")
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory, desk) -> Path:
    """A keep with risk@1 published and promoted, the analyst alice and the engineer bob. Copy it; never change it."""
    keep = tmp_path_factory.mktemp("template") / "keep"
    cli = Cli(keep, desk / "pass")
    made = cli("--json", "init", str(keep), code=0).json
    (keep.parent / "init.json").write_text(json.dumps(made))
    cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    cli("promote", "risk@1", code=0)
    cli("user", "add", "alice", "--role", "analyst", code=0)
    cli("user", "add", "bob", "--role", "ml_engineer", code=0)
    return keep


@pytest.fixture
def cli(template, desk, tmp_path) -> Cli:
    """The command line on a keep of this test's own."""
    return Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")


@pytest.fixture
def bare(desk, tmp_path) -> Cli:
    """The command line where there is no keep."""
    return Cli(tmp_path / "nothing", desk / "pass")


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of 6 MiB. Only root may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=6m,mode=0700", "tmpfs", str(place)], check=False, capture_output=True
    )
    if done.returncode:
        pytest.skip("only root may mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server of this test process; ``postgres.database()`` is the URL of a new database."""
    server = Postgres()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Redis]:
    """A Redis server of this test process."""
    server = Redis()
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_process() -> Iterator[S3]:
    """moto's S3 for this test process."""
    server = S3()
    yield server
    server.stop()


@pytest.fixture
def s3_server(s3_process, monkeypatch) -> S3:
    """S3, with its credentials in the environment; ``s3_server.url(s3_server.bucket())`` is the URL of a new place."""
    for name, value in S3_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    return s3_process


@pytest.fixture(scope="session")
def outside_template(postgres, s3_process, desk, tmp_path_factory) -> Outside:
    """As ``template``, with its stores in PostgreSQL and S3. Copy it; never change it."""
    bucket, database = s3_process.bucket(), postgres.database()
    cli = Cli(tmp_path_factory.mktemp("outside") / "keep", desk / "pass", tuple(S3_ENVIRONMENT.items()))
    cli("init", str(cli.keep), "--blobs", s3_process.url(bucket), "--records", database, code=0)
    cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    cli("promote", "risk@1", code=0)
    cli("user", "add", "alice", "--role", "analyst", code=0)
    return Outside(cli, bucket, database)


@pytest.fixture
def outside(outside_template, postgres, s3_server, tmp_path) -> Outside:
    """A keep of this test's own whose stores are in PostgreSQL and S3."""
    return outside_template.copy(postgres, s3_server, tmp_path)
