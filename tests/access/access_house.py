"""A clock that the test moves, entropy that repeats, and a small keep with one account."""

from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from modelkeep.access.accounts import ACCOUNT, Account, add_account, set_codes
from modelkeep.access.directory import Directory
from modelkeep.access.factors import NONE, begin_codes, confirm_codes, write_factors
from modelkeep.access.logins import Logins
from modelkeep.access.passwords import Passwords
from modelkeep.access.sessions import SessionIssuer
from modelkeep.access.totp import code_of, step_at
from modelkeep.adapters.records.memory import MemoryRecords
from modelkeep.core.keystates import version_named
from modelkeep.core.values import Role
from modelkeep.custody.keyring import RingWrapper
from modelkeep.custody.keys import PRIMARY, SECOND_FACTOR, SUPERSEDE, KeyVersion
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


class FactorKeys:
    """``WrappingKeys`` over key versions in memory, as the key ring has them; ``turn`` makes a new primary."""

    uri = f"file:{SECOND_FACTOR}"

    def __init__(self) -> None:
        self.made = [KeyVersion(1, PRIMARY, 0, {"key": b"1" * 32})]

    def turn(self) -> None:
        former = self.made[-1].after(SECOND_FACTOR, SUPERSEDE)
        self.made[-1:] = [former, KeyVersion(former.version + 1, PRIMARY, 0, {"key": b"2" * 32})]

    def wrapper(self, version: int | None = None) -> RingWrapper:
        return RingWrapper(SECOND_FACTOR, self.made[-1] if version is None else self.made[version - 1])

    def opens(self, key_id: str) -> RingWrapper | None:
        version = version_named(key_id, self.uri)
        return None if version is None else self.wrapper(version)


@dataclass
class House:
    """A keep with one analyst, anna, whose password has been replaced."""

    clock: FakeClock = field(default_factory=FakeClock)
    entropy: CountingEntropy = field(default_factory=CountingEntropy)
    records: FlakyRecords = field(default_factory=FlakyRecords)
    passwords: Passwords = field(default_factory=cheap_passwords)
    factor_keys: FactorKeys = field(default_factory=FactorKeys)
    key: Ed25519PrivateKey = field(default_factory=lambda: Ed25519PrivateKey.from_private_bytes(b"k" * 32))

    def __post_init__(self) -> None:
        self.logins = self.new_logins()
        self.issuer = SessionIssuer(self.key, ORIGIN, entropy=self.entropy, clock=self.clock)
        self.anna = self.add("anna", Role.ANALYST)

    def new_logins(self) -> Logins:
        """Another process's."""
        keys = lambda: self.factor_keys  # noqa: E731
        return Logins(self.records, self.passwords, entropy=self.entropy, clock=self.clock, factor_keys=keys)

    def enrol(self, name: str) -> tuple[bytes, tuple[str, ...]]:
        """Put one-time codes in force for an account: the secret, and the recovery codes. The step of now is used by it."""
        secret, begun = begin_codes(NONE, name, keys=self.factor_keys, entropy=self.entropy)
        now = int(self.clock.wall)
        codes, kept = confirm_codes(
            begun, name, code_of(secret, step_at(now)), now, keys=self.factor_keys, entropy=self.entropy
        )
        _, changes = set_codes(self.accounts(), name, True)
        self.records.commit([write_factors(name, kept, 0), *changes])
        return secret, codes

    def code(self, secret: bytes) -> str:
        """What the app shows now."""
        return code_of(secret, step_at(int(self.clock.wall)))

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
