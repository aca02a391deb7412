"""What a principal costs in memory, and what 100,000 of them do: the coldest go to disk and come back when they ask again.

``python -m benchmarks principals -- [COUNT]``. Everything that a gateway holds about an account that has asked: its records,
its API key and the remembered credential, its audit key and sealer, its limits, its mark, and its evidence.
"""

import asyncio
import gc
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks import Row, report
from modelkeep.access.accounts import Account
from modelkeep.access.credentials import KeyTerms, issue_key
from modelkeep.access.directory import Directory
from modelkeep.access.limits import Limits
from modelkeep.access.presented import Presented
from modelkeep.access.rates import Rates
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.coldfile import ColdFile
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.ports import Change
from modelkeep.core.values import Principal, to_json
from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.guard import IN_MEMORY, Guard
from modelkeep.extraction.perturb import Marker
from modelkeep.extraction.profile import Profile
from modelkeep.serving.bodies import SubjectKeys

QUERIES = 4
BATCH = 64


class _Kek:
    """A wrapping key in memory."""

    key_id = "file:audit-subject/1"

    def wrapper(self) -> "_Kek":
        return self

    def opens(self, _key_id: str) -> "_Kek":
        return self

    def wrap(self, key: bytes, _context: bytes) -> bytes:
        return bytes(80) + key

    def unwrap(self, wrapped: bytes, _context: bytes) -> bytes:
        return wrapped[80:]


def run(args: list[str]) -> None:
    """``args``: how many principals, 100,000 by default."""
    count = int(args[0]) if args else 100_000
    x, profile = _profile()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        began = _rss()
        held = [_credentials(count, rows), _keys(count, rows), _limits(count, rows), _marks(min(count, 4096), profile, rows)]
        guard = Guard(profile, cold=ColdFile(Path(folder)))
        for at in range(0, count, IN_MEMORY // 2):
            part = range(at, min(at + IN_MEMORY // 2, count))
            _ask(guard, part, x, f"evidence: principals {at + 1:,} to {part.stop:,}", rows)
        _ask(guard, range(min(count, 2000)), x, "evidence: 2,000 of the coldest ask again", rows)
        whole = _rss() - began
    known = guard.held()
    assert len(rows) >= 7
    report(f"{count:,} principals", rows)
    print(f"{known.known:,} principals, the evidence of {known.hot:,} in memory: {whole / 1024:.2f} GiB in all (wanted: < 4)")
    one = sum(float(str(row["KiB_each"])) for row in rows[1:6])
    print(f"one whose evidence is in memory: {one:.1f} KiB, without its records, which lie on disk (wanted: <= 32)")
    del held


def _profile() -> tuple[np.ndarray, Profile]:
    from sklearn.datasets import load_digits
    from sklearn.neural_network import MLPClassifier

    x, y = load_digits(return_X_y=True)
    model = MLPClassifier((64,), max_iter=60, random_state=0, early_stopping=True).fit(x[:600], y[:600])
    return x, fit_profile(x[600:1200], model.predict_proba, seed=0, train_rows=x[:600])


def _measured(case: str, count: int, rows: list[Row], began: float, memory: float) -> None:
    grown = _rss() - memory
    seconds = time.perf_counter() - began
    rows.append(
        {
            "bench": "principals",
            "case": case,
            "count": count,
            "MiB": round(grown, 1),
            "KiB_each": round(grown * 1024 / count, 2),
            "us_each": round(seconds / count * 1e6, 1),
        }
    )


def _credentials(count: int, rows: list[Row]) -> object:
    records, clock, entropy = MemoryRecords(), SystemClock(), SystemEntropy()
    memory, began = _rss(), time.perf_counter()
    tokens = []
    for number in range(count):
        account = Account(
            name=f"user-{number}",
            subject=f"sub_{number:016x}",
            roles=("analyst",),
            password="x" * 97,
            one_time=False,
            created=1,
        )
        made, changes = issue_key(account.name, KeyTerms(), entropy=entropy, clock=clock)
        records.commit([Change("account", account.name, to_json(account), 0), *changes])
        tokens.append(made.text)
    directory = Directory(records, clock, [], "keep.example")
    _measured("the records themselves (in memory here, elsewhere on disk)", count, rows, began, memory)
    memory, began = _rss(), time.perf_counter()
    directory.refresh()
    for at, token in enumerate(tokens):
        if at % 1000 == 0:
            directory.refresh()
        directory.authenticate(Presented(token, ""))
    _measured("accounts, API keys, remembered credentials", count, rows, began, memory)
    return directory, tokens


def _keys(count: int, rows: list[Row]) -> object:
    memory, began = _rss(), time.perf_counter()
    keys = SubjectKeys(MemoryRecords(), _Kek(), SystemEntropy())
    for number in range(count):
        keys.key(f"sub_{number:016x}")
        sealer = keys.sealer(f"sub_{number:016x}", "digits@1")
        assert sealer is not None
    _measured("audit keys and what seals with them (records included)", count, rows, began, memory)
    return keys


def _limits(count: int, rows: list[Row]) -> object:
    memory, began = _rss(), time.perf_counter()
    limits = Limits(SystemClock().monotonic, Rates(cost=(1000.0, 8192.0)))

    async def ask() -> None:
        for number in range(count):
            asking = Principal(f"user-{number}", f"sub_{number:016x}", ("analyst",), f"key:{number}")
            await limits.admit(asking, asking.credential)
            await limits.take(asking, "digits", 1.0)

    asyncio.run(ask())
    _measured("limits on requests and rows", count, rows, began, memory)
    return limits


def _marks(count: int, profile: Profile, rows: list[Row]) -> object:
    memory, began = _rss(), time.perf_counter()
    markers = [Marker(number.to_bytes(32), profile) for number in range(count)]
    _measured("marks (no more than this many are kept)", count, rows, began, memory)
    return markers


def _ask(guard: Guard, numbers: range, x: np.ndarray, case: str, rows: list[Row]) -> None:
    rng = np.random.default_rng(numbers.start)
    memory, began = _rss(), time.perf_counter()
    answers = np.full((BATCH, 10), 0.05) + 0.5 * np.eye(10)[rng.integers(10, size=BATCH)]
    for at in range(0, len(numbers), BATCH // QUERIES):
        subjects = [f"sub_{number:016x}" for number in numbers[at : at + BATCH // QUERIES] for _ in range(QUERIES)]
        chosen = rng.permutation(len(x))[: len(subjects)]
        guard.observe_many(subjects, x[chosen], answers[: len(subjects)])
    _measured(case, len(numbers), rows, began, memory)


def _rss() -> float:
    """Resident memory of this process, MiB."""
    gc.collect()
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024
