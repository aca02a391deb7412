"""A clock that the test moves, entropy that repeats, and a small keep with one account."""

from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.access.accounts import ACCOUNT, Account, add_account
from modelkeep.access.directory import Directory
from modelkeep.access.logins import Logins
from modelkeep.access.passwords import Passwords
from modelkeep.access.sessions import SessionIssuer
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.values import Role
from modelkeep.errors import Unavailable

NOW = 1_800_000_000
ORIGIN = "keep.example/test"
PASSWORD = "correct horse battery staple"


class FakeClock:
    """``Clock`` whose wall time can be set to anything, and whose monotonic time only advances."""

    def __init__(self) -> None:
        self.wall = float(NOW)
        self.up = 1_000.0

    def now_ns(self) -> int:
        return int(self.wall * 1_000_000_000)

    def monotonic(self) -> float:
        return self.up

    def sleep(self, seconds: float) -> None:
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        self.wall += seconds
        self.up += seconds


class CountingEntropy:
    """``Entropy`` without surprise: SHA-256 of a counter."""

    def __init__(self, seed: str = "") -> None:
        self.seed, self.count = seed, 0

    def token(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            self.count += 1
            found += sha256(f"{self.seed}{self.count}".encode()).digest()
        return found[:size]


class FlakyRecords(MemoryRecords):
    """``Records`` that can be switched off, and that count the calls that reach them."""

    def __init__(self) -> None:
        super().__init__()
        self.down = False
        self.calls = 0

    def _reach(self) -> None:
        self.calls += 1
        if self.down:
            raise Unavailable("the records are down")

    def get(self, kind, key):
        self._reach()
        return super().get(kind, key)

    def scan(self, kind, prefix=""):
        self._reach()
        return super().scan(kind, prefix)

    def commit(self, changes):
        self._reach()
        return super().commit(changes)

    def revision(self):
        self._reach()
        return super().revision()

    def since(self, revision):
        self._reach()
        return super().since(revision)


def cheap_passwords() -> Passwords:
    return Passwords(passes=1, memory_kib=8, lanes=1)


@dataclass
class House:
    """A keep with one analyst, anna, whose password has been replaced."""

    clock: FakeClock = field(default_factory=FakeClock)
    entropy: CountingEntropy = field(default_factory=CountingEntropy)
    records: FlakyRecords = field(default_factory=FlakyRecords)
    passwords: Passwords = field(default_factory=cheap_passwords)
    key: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"k" * 32))

    def __post_init__(self) -> None:
        self.logins = Logins(self.records, self.passwords, entropy=self.entropy, clock=self.clock)
        self.issuer = SessionIssuer(self.key, ORIGIN, entropy=self.entropy, clock=self.clock)
        self.anna = self.add("anna", Role.ANALYST)

    @property
    def public(self) -> bytes:
        return self.key.public_key().public_bytes_raw()

    def add(self, name: str, *roles: Role) -> Account:
        new = self.do(add_account(name, roles, passwords=self.passwords, entropy=self.entropy, clock=self.clock))
        return self.logins.prove(name, new.password, new_password=PASSWORD)

    def do(self, command):
        """Commit what a command returned, and give its result."""
        result, changes = command
        self.records.commit(changes)
        return result

    def accounts(self):
        return self.records.scan(ACCOUNT)

    def directory(self, **options) -> Directory:
        directory = Directory(self.records, self.clock, [self.public], ORIGIN, **options)
        directory.refresh()
        return directory
