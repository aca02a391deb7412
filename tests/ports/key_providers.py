"""Every provider of wrapping keys, set up for the contract suite: how to open its key, and how to take the provider away.

A new provider is one more class here and one more name in PROVIDERS.
"""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gate import Gate
from moto.kms.models import kms_backends
from moto.server import ThreadedMotoServer
from softhsm import Token
from transit_fake import TOKEN, Transit

from modelkeep.adapters.clock import SystemClock
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.keys.ring import RingFile
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.core.ports import WrappingKeys
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody.keyring import Custodian, Keyring
from modelkeep.custody.ringkeys import RingCustody, RingKeys

DAY_NS = 86_400 * 10**9
SHORT = 1.2
"""Seconds that a provider may take in the tests of slow ones."""


class Clock(SystemClock):
    """The machine's clock, put forward by ``ahead_ns``."""

    ahead_ns = 0

    def now_ns(self) -> int:
        return super().now_ns() + self.ahead_ns


class Entropy:
    """Fresh randomness."""

    def token(self, size: int) -> bytes:
        return os.urandom(size)


class Provider:
    """What the suite needs to know. ``secrets``: texts that must never be shown; ``lag``: seconds until others see a change."""

    name = ""
    creates = True  # begins without a key
    live = True  # a wrapper in hand follows the state of its key
    slow = True  # there is something that can hang
    shortest_days = 0
    lag = 0.0
    secrets: tuple[str, ...] = ()

    def __init__(self, folder: Path, patch) -> None:
        self.folder, self.patch, self.clock, self.number = folder, patch, Clock(), 0

    def begin(self) -> None:
        """A test begins: it gets keys that no other has."""
        self.number += 1

    def open(self, what: str = "kek", **options) -> WrappingKeys:
        """A handle of its own, as another process would have."""
        uri = self.uri(f"{what}-{self.number}")
        return open_keys(uri, clock=self.clock, **{"timeout": 60.0, **options})

    def uri(self, name: str) -> str:
        raise NotImplementedError

    def when_due(self, days: int) -> None:
        """Time passes."""
        self.clock.ahead_ns += days * DAY_NS + 10**9

    @contextmanager
    def away(self) -> Iterator[None]:
        """The provider cannot be reached meanwhile."""
        raise NotImplementedError

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """The provider takes what it is asked and does not answer meanwhile."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of what was started."""


class Ring(Provider):
    name = "ring"
    secrets = ("file-ring passphrase",)

    def open(self, what="kek", *, timeout=60.0):
        """As ``open_keys``, with a passphrase that costs next to nothing."""
        uri = self.uri(f"{what}-{self.number}")
        return RingFile(uri, self.secrets[0].encode, timeout=timeout, clock=self.clock, params=Argon2Params(64, 1, 1))

    def uri(self, name):
        return f"file:{self.folder}/{name}.keep"

    @contextmanager
    def away(self):
        path = self.folder / f"kek-{self.number}.keep"
        path.rename(self.folder / "elsewhere")
        yield
        (self.folder / "elsewhere").rename(path)

    @contextmanager
    def hanging(self):
        with (self.folder / f".kek-{self.number}.keep.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class Pkcs11(Provider):
    name = "pkcs11"
    secrets = (Token.pin,)

    def __init__(self, folder, patch):
        super().__init__(folder, patch)
        self.token = Token()

    def uri(self, name):
        return self.token.uri(name)

    def away(self):
        return self.token.pulled()

    def hanging(self):
        return self.token.stuck()


class Vault(Provider):
    name = "vault"
    secrets = (TOKEN,)

    def __init__(self, folder, patch):
        super().__init__(folder, patch)
        self.transit = Transit()
        self.gate = Gate(self.transit.port)
        patch.setenv("VAULT_ADDR", f"http://127.0.0.1:{self.gate.port}")
        patch.setenv("VAULT_TOKEN", TOKEN)

    def uri(self, name):
        return f"vault:transit/{name}"

    def away(self):
        return self.gate.shut()

    def hanging(self):
        return self.gate.held()

    def close(self):
        self.gate.close()
        self.transit.close()


class Aws(Provider):
    name = "aws"
    shortest_days = 7
    lag = 1.1
    secrets = ("wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY",)
    region, account = "eu-central-1", "123456789012"

    def __init__(self, folder, patch):
        super().__init__(folder, patch)
        logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for every request
        self._moto = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.backend.reset()  # moto keeps what it holds in this process, whichever server was asked
        _, port = self._moto.get_host_and_port()
        self.gate = Gate(port)
        for variable, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.gate.port}",
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
            "AWS_SECRET_ACCESS_KEY": self.secrets[0],
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": str(folder / "no-config"),
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "no-credentials"),
        }.items():
            patch.setenv(variable, value)
        patch.delenv("AWS_PROFILE", raising=False)

    @property
    def backend(self):
        return kms_backends[self.account][self.region]

    def uri(self, name):
        return f"aws-kms:alias/{name}"

    def when_due(self, days):
        """What AWS does by itself, and moto never: keys that are due go, and their aliases with them."""
        for key_id, key in list(self.backend.keys.items()):
            if key.key_state == "PendingDeletion":
                self.backend.delete_key(key_id)
                for alias in [a for a in self.backend.list_aliases() if a.target_key_id == key_id]:
                    self.backend.delete_alias(alias.alias_name)

    def away(self):
        return self.gate.shut()

    def hanging(self):
        return self.gate.held()

    def close(self):
        self.gate.close()
        self._moto.stop()


class Keep(Provider):
    """The keep's own key ring: made with its keys in it, and opened in memory."""

    name = "keep"
    creates = live = slow = False
    secrets = ("keep-ring passphrase",)

    def __init__(self, folder, patch):
        super().__init__(folder, patch)
        self._custodian: Custodian
        self._ring: Keyring

    def begin(self):
        super().begin()
        self._folder = self.folder / str(self.number)
        self._folder.mkdir(mode=0o700)
        self._custodian = Custodian(FileKeys(self._folder), Entropy(), Argon2Params(64, 1, 1))
        self._ring = self._custodian.create(
            self.secrets[0].encode(), recipient_of(generate_identity()), origin="keep.example", now_ns=1
        )

    def open(self, what="kek", **options):
        family = {"kek": "model-kek", "other": "audit-subject"}[what]
        custody = RingCustody(self._custodian, self.secrets[0].encode, self.clock, self._adopt)
        return RingKeys(family, lambda: self._ring, custody)

    def _adopt(self, ring):
        self._ring = ring

    @contextmanager
    def away(self):
        self._folder.rename(self.folder / "elsewhere")
        yield
        (self.folder / "elsewhere").rename(self._folder)


PROVIDERS = {each.name: each for each in (Ring, Pkcs11, Vault, Aws, Keep)}
