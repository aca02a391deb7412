"""One keep on disk, opened: folder, settings, stores, logs and keys, from which the facade and the servers are wired."""

import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from modelkeep.access.accounts import ACCOUNT, OPERATOR
from modelkeep.access.credentials import KEY
from modelkeep.access.passwords import Passwords
from modelkeep.adapters.blobs.local import LocalBlobs
from modelkeep.adapters.claims import FolderClaims
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.signed import SignedRecords
from modelkeep.adapters.records.sqlite import SqliteRecords
from modelkeep.adapters.tls import Identity, issue
from modelkeep.app.settings import FILE_NAME, Settings, load
from modelkeep.core.ports import Clock, Entropy, Records, Wrapper
from modelkeep.core.values import Principal
from modelkeep.custody.admission import EvidenceBook
from modelkeep.custody.keyring import Custodian, Keyring, releases_origin
from modelkeep.custody.keys import LOG_SIGNING, MODEL_KEK, STATEMENT_SIGNING, TLS_CA, TOKEN_SIGNING
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.policy.admission import AdmissionPolicy
from modelkeep.policy.engine import Engine
from modelkeep.workflows.registry import Desk, Registry, kept_head

TRUST_FILE, RECORDS_FILE, CA_FILE = "trust.toml", "records.db", "tls/ca.pem"
OPERATOR_ACCOUNT: Principal = OPERATOR
SIGNED_KINDS = (ACCOUNT, KEY)
"""Records that say who may come in: signed with ``token-signing``, which the gateway does not hold."""
DESK_FAMILIES = (MODEL_KEK, STATEMENT_SIGNING, LOG_SIGNING)
"""What changing releases needs."""
LEASE_SECONDS = 1.0
"""A gateway acts on what it read at most this long ago; a verb that takes something away waits it out before it returns."""


def check_private(directory: Path) -> None:
    """Check that a keep belongs to this user and is closed to everyone else. Raises NotTrusted, Unavailable."""
    for name in ("", FILE_NAME, RECORDS_FILE, TRUST_FILE, "keys", "blobs", "log"):
        path = directory / name
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        except OSError as cause:
            raise Unavailable(f"cannot look at {path}: {cause.strerror}") from cause
        if stat.S_IMODE(found.st_mode) & 0o077 or found.st_uid != os.geteuid():
            wanted = "700" if stat.S_ISDIR(found.st_mode) else "600"
            raise NotTrusted(
                f"{path} is open to others: make it your own and 'chmod {wanted}' it, after finding out who read it"
            )


@dataclass
class Premises:
    """An opened keep. ``passphrase`` is asked for only when a compartment is needed; each is opened once."""

    directory: Path
    settings: Settings
    records: Records
    blobs: LocalBlobs
    trust: TrustRoot
    passphrase: Callable[[], bytes]
    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=SystemEntropy)
    access: Engine = field(default_factory=Engine)
    _keyring: Keyring | None = None
    _registry: Registry | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, directory: Path, passphrase: Callable[[], bytes], keyring: Keyring | None = None) -> "Premises":
        """Open the keep in ``directory``.

        ``keyring``: compartments that were handed over already. Raises Missing (no keep), NotTrusted (open to others, or
        ``trust.toml`` is not the sealed one), Invalid (settings), Unavailable.
        """
        settings = load(directory)
        check_private(directory)
        trust = TrustRoot.parse(_read(directory / TRUST_FILE))
        made = cls(
            directory=directory,
            settings=settings,
            records=SignedRecords(
                SqliteRecords(directory / RECORDS_FILE),
                SIGNED_KINDS,
                trust.token_key,
                lambda: made.keyring([TOKEN_SIGNING]).token_key(),
            ),
            blobs=LocalBlobs(directory / "blobs"),
            trust=trust,
            passphrase=passphrase,
        )
        if keyring is not None:
            made.adopt(keyring)
        return made

    def adopt(self, keyring: Keyring) -> None:
        """Use opened compartments, whose sealed trust root decides. Raises NotTrusted when ``trust.toml`` says otherwise."""
        keyring.trust.check_same(_read(self.directory / TRUST_FILE))
        self.trust, self._keyring = keyring.trust, keyring

    @cached_property
    def passwords(self) -> Passwords:
        """How passwords are hashed. Making it costs one Argon2id hash, so it is made once."""
        return Passwords()

    @property
    def keys(self) -> FileKeys:
        """The sealed compartments."""
        return FileKeys(self.directory / "keys")

    @property
    def custodian(self) -> Custodian:
        """The one who may change the key ring."""
        return Custodian(self.keys, self.entropy)

    def keyring(self, families: Sequence[str]) -> Keyring:
        """These compartments, opened with the passphrase unless they are already. Raises NotTrusted, Missing, Unavailable."""
        if self._keyring is None or not set(families) <= set(self._keyring.families):
            wanted = set(families) | set(self._keyring.families if self._keyring else ())
            self.adopt(Keyring.open(self.keys, sorted(wanted), self.passphrase()))
        assert self._keyring is not None
        return self._keyring

    def releases_files(self) -> FolderLogFiles:
        """The static files of the releases log."""
        return FolderLogFiles(self.directory / "log" / "releases")

    def audit_files(self, instance: str) -> FolderLogFiles:
        """The static files of one audit log."""
        return FolderLogFiles(self.directory / "log" / "audit" / instance)

    def audit_instances(self) -> list[str]:
        """Names of the audit logs here, oldest first."""
        folder = self.directory / "log" / "audit"
        return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []

    def audit_origin(self, instance: str) -> str:
        """The origin of one audit log."""
        return f"{self.trust.origin}/audit/{instance}"

    def releases_log(self) -> ReleasesLog:
        """The writer of the releases log. Opens ``log-signing``."""
        origin = releases_origin(self.trust.origin)
        return ReleasesLog(self.releases_files(), self.keyring([LOG_SIGNING]).note_signer(LOG_SIGNING, origin), origin)

    def _view(self) -> LogView:
        origin = releases_origin(self.trust.origin)
        known = kept_head(self.records, origin)  # read before the log is: the log is never behind it
        return LogView(self.releases_files(), self.trust.releases_log, origin, known)

    def view(self) -> LogView:
        """A fresh reader of the releases log, already refreshed. Raises NotTrusted, Missing, Unavailable."""
        view = self._view()
        view.refresh()
        return view

    def registry(self, wrappers: Sequence[Wrapper] = ()) -> Registry:
        """The reader of releases, refreshed; ``wrappers`` may open bodies. Raises NotTrusted, Missing, Unavailable."""
        with self._reading:
            if self._registry is None:
                view = self._view()
                self._registry = Registry(self.records, self.blobs, view, EvidenceBook(self.trust))
        self._registry.refresh()
        return replace(self._registry, wrappers=wrappers)

    def desk(self) -> Desk:
        """Whoever may change releases. Opens ``model-kek``, ``statement-signing`` and ``log-signing``."""
        keyring = self.keyring(DESK_FAMILIES)
        return Desk(
            registry=self.registry(keyring.wrappers(MODEL_KEK)),
            log=self.releases_log(),
            signer=keyring.statement_signer(),
            wrapper=keyring.wrapper(MODEL_KEK),
            claims=FolderClaims(self.directory / "claims"),
            clock=self.clock,
            entropy=self.entropy,
            lease=LEASE_SECONDS,
        )

    def issue_leaf(self, keyring: Keyring, extra: tuple[str, ...] = ()) -> Identity:
        """A fresh certificate of this keep's authority, with its key, for one server process.

        ``keyring`` has ``tls-ca``; ``extra``: names beside those of the settings.

        Raises Missing, NotTrusted (``ca.pem`` is damaged or of another keep), Unavailable.
        """
        authority = _read(self.directory / CA_FILE)
        try:
            return issue(keyring.secret(TLS_CA), authority, (*self.settings.gateway.names, *extra), self.clock.now_ns())
        except (Invalid, NotTrusted) as cause:
            raise NotTrusted(f"{self.directory / CA_FILE} is not this keep's certificate authority: {cause}") from cause

    def admission(self) -> AdmissionPolicy:
        """The admission policy in force."""
        return AdmissionPolicy.profile(self.settings.keep.admission)

    def settle_lease(self) -> None:
        """Wait until no gateway acts on what it knew before now."""
        self.clock.sleep(LEASE_SECONDS)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"{path} is missing: restore it from a copy") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
