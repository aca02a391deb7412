"""One keep on disk, opened: folder, settings, stores, logs and keys, from which the facade and the servers are wired."""

import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path

from modelkeep.access.accounts import ACCOUNT, OPERATOR
from modelkeep.access.certificates import CERTIFICATE
from modelkeep.access.credentials import KEY
from modelkeep.access.externals import EXTERNAL
from modelkeep.access.factors import FACTOR
from modelkeep.access.logins import Logins
from modelkeep.access.passwords import Passwords
from modelkeep.access.refresh import REFRESH
from modelkeep.adapters.claims import FolderClaims
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.signed import SignedRecords
from modelkeep.adapters.tls import Identity, issue
from modelkeep.app.scanning import open_scanner
from modelkeep.app.settings import FILE_NAME, Settings, authority_files, load
from modelkeep.app.stores import RECORDS_FILE, open_blobs, open_records
from modelkeep.app.tokens import open_token_identity
from modelkeep.app.witnessing import PolicyFile
from modelkeep.container.recipients import Opener
from modelkeep.core.ports import Blobs, Clock, Entropy, Records, Wrapper, WrappingKeys
from modelkeep.core.values import Principal
from modelkeep.crypto.signatures import Ed25519Signing
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.keyring import Amendment, Custodian, Keyring, Unlocked, Word
from modelkeep.custody.keys import (
    AUDIT_SUBJECT,
    DATA_KEK,
    LOG_SIGNING,
    MODEL_KEK,
    OMS_SIGNING,
    SECOND_FACTOR,
    STATEMENT_SIGNING,
    TLS_CA,
    TOKEN_SIGNING,
)
from modelkeep.custody.opinions import Scanner
from modelkeep.custody.ringkeys import RingCustody, RingKeys
from modelkeep.custody.salting import DataSalts
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable
from modelkeep.ledger.cosigned import Cosigned
from modelkeep.ledger.log import LogView, ReleasesLog
from modelkeep.policy.engine import Engine
from modelkeep.workflows.budgets import Spent
from modelkeep.workflows.decisions import ERASE_DATA, Decisions, decisions_of
from modelkeep.workflows.policies import AccessInForce, AdmissionInForce, LadderInForce
from modelkeep.workflows.registry import Desk, KeysOpener, Registry, kept_head
from modelkeep.workflows.trust_changes import catch_up, fold

TRUST_FILE, CA_FILE = "trust.toml", "tls/ca.pem"
SINKS_FOLDER = "sinks"
"""How far each audit sink has accepted each audit log."""
OPERATOR_ACCOUNT: Principal = OPERATOR
SIGNED_KINDS = (ACCOUNT, KEY, CERTIFICATE, EXTERNAL, FACTOR, REFRESH)
"""Records that say who may come in: signed with ``token-signing``, which the gateway does not hold."""
DESK_FAMILIES = (MODEL_KEK, STATEMENT_SIGNING, LOG_SIGNING)
"""What changing releases needs."""
LEASE_SECONDS = 1.0
"""A gateway acts on what it read at most this long ago; a verb that takes something away waits it out before it returns."""


def check_private(directory: Path, *more: str) -> None:
    """Check that a keep belongs to this user and is closed to everyone else. ``more``: files of it that its settings name.

    Raises NotTrusted, Unavailable.
    """
    for name in ("", FILE_NAME, RECORDS_FILE, TRUST_FILE, "keys", "blobs", "log", *more):
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
    """An opened keep. ``passphrase`` is asked for once, when a compartment is needed.

    What was opened is opened again when the key ring on disk is another (a rotation by another process); a process that was
    handed its compartments and no way to open more has those, until it is handed others. ``moving``: model keys are on their
    way to the place that the settings name, so nobody asks whether they are there. ``scanner``: judges model files.
    """

    directory: Path
    settings: Settings
    records: Records
    blobs: Blobs
    trust: TrustRoot
    passphrase: Callable[[], bytes]
    clock: Clock = field(default_factory=SystemClock)
    entropy: Entropy = field(default_factory=SystemEntropy)
    access_in_force: AccessInForce = field(default_factory=lambda: AccessInForce(Engine()))
    _keyring: Keyring | None = None
    moving: bool = False
    scanner: Scanner = field(default_factory=Scanner)
    _unlocked: Unlocked | None = None
    _stamp: object = None
    _providers: dict[str, WrappingKeys] = field(default_factory=dict)
    _registry: Registry | None = None
    _spent: Spent | None = None
    _reading: threading.Lock = field(default_factory=threading.Lock)
    logged: threading.Event = field(default_factory=threading.Event)
    """Set by every append to the releases log: witnesses have something to cosign."""

    @classmethod
    def open(
        cls,
        directory: Path,
        passphrase: Callable[[], bytes],
        keyring: Keyring | None = None,
        unlocked: Unlocked | None = None,
    ) -> "Premises":
        """Open the keep in ``directory``.

        ``keyring``: compartments that were handed over already; ``unlocked``: what opens the key ring. Raises Missing (no
        keep), NotTrusted (open to others, or ``trust.toml`` is not the sealed one), Invalid (settings), Unavailable.
        """
        settings = load(directory)
        check_private(directory, settings.witness.policy, settings.witness.ca, *authority_files(settings))
        trust = TrustRoot.parse(_read(directory / TRUST_FILE))
        made = cls(
            directory=directory,
            settings=settings,
            records=SignedRecords(
                open_records(directory, settings, trust.origin),
                SIGNED_KINDS,
                lambda: made.trust.token_keys,
                lambda: made.keyring([TOKEN_SIGNING]).token_key(),
            ),
            blobs=open_blobs(directory, settings, trust.origin),
            trust=trust,
            passphrase=passphrase,
            scanner=open_scanner(settings.scan),
            _unlocked=unlocked,
        )
        if keyring is not None:
            made.adopt(keyring)
        return made

    def adopt(self, keyring: Keyring) -> None:
        """Use opened compartments, whose sealed trust root decides.

        Raises NotTrusted when ``trust.toml`` says otherwise and the releases log does not lead from one to the other.
        """
        public = self.public_trust()
        if public != keyring.trust and public not in fold(self._refreshed(keyring.trust), keyring.trust).roots:
            raise NotTrusted(
                "trust.toml differs from the trust root sealed in the key compartments: if it was changed since this process "
                "got its keys, start it again; else restore the file from a copy"
            )
        if self._registry is not None and keyring.trust not in self._registry.refresh().signatories.roots:
            self._registry = self._spent = None  # a root made by hand: the log has to be read anew under it
        self.trust, self._keyring = keyring.trust, keyring

    def public_trust(self) -> TrustRoot:
        """What ``trust.toml`` says now. Raises Missing, Invalid, NotTrusted, Unavailable."""
        return TrustRoot.parse(_read(self.directory / TRUST_FILE))

    def trust_stamp(self) -> tuple[int, int]:
        """Changes whenever ``trust.toml`` does; reads nothing of it. Raises Unavailable."""
        try:
            found = (self.directory / TRUST_FILE).stat()
        except OSError as cause:
            raise Unavailable(f"cannot look at {self.directory / TRUST_FILE}: {cause.strerror}") from cause
        return found.st_ino, found.st_mtime_ns

    def amend(self, change: Amendment) -> Keyring:
        """Change the key ring and the trust root together; the whole ring. Raises NotTrusted, Missing, Unavailable."""
        return self.custody(lambda custodian, word: custodian.amend(word, change))

    def custody(self, act: Callable[[Custodian, Word], Keyring]) -> Keyring:
        """Let ``act`` change the key ring, and use what it became; the whole ring. Raises what ``act`` raises, NotTrusted."""
        changed = act(self.custodian, self._word())
        self._adopt_part(changed)
        return changed

    def sign_records_again(self) -> int:
        """Sign every signed record with the ``token-signing`` key of now; how many. Rerun to resume.

        Raises NotTrusted (one was not written by this keep), Conflict (it changed meanwhile), Unavailable.
        """
        assert isinstance(self.records, SignedRecords)
        return self.records.sign_again()

    @cached_property
    def passwords(self) -> Passwords:
        """How passwords are hashed. Its first check costs one Argon2id hash more, so it is made once."""
        return Passwords()

    @cached_property
    def logins(self) -> Logins:
        """Who checks passwords and second factors."""
        keys = partial(self.ring_keys, SECOND_FACTOR)
        return Logins(self.records, self.passwords, entropy=self.entropy, clock=self.clock, factor_keys=keys)

    @cached_property
    def witness_policy(self) -> PolicyFile:
        """Which witnesses must have cosigned the releases log."""
        return PolicyFile(self.directory, self.settings.witness.policy)

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
        held = self._keyring.families if self._keyring else ()
        stamp = self.keys.stamp() if self._unlocked else None
        if self._keyring is None or not set(families) <= set(held) or stamp != self._stamp:
            self._open_compartments(sorted({*families, *held}))
        assert self._keyring is not None
        return self._keyring

    def _open_compartments(self, families: Sequence[str]) -> None:
        stamp = self.keys.stamp()  # before they are read: if they change meanwhile, they are read again
        if self._unlocked is None:
            found, self._unlocked = Keyring.unlock(self.keys, families, self.passphrase())
        else:
            found = Keyring.open(self.keys, families, self._unlocked)
        try:
            self.adopt(found)
        except NotTrusted:
            if self.keys.stamp() == stamp:
                raise
            found, stamp = Keyring.open(self.keys, families, self._unlocked), self.keys.stamp()  # changed at this very moment
            self.adopt(found)
        self._stamp = stamp

    @property
    def unlocked(self) -> Unlocked:
        """What opens the key ring, for a child process that may change it. Asks for the passphrase unless it was given."""
        if self._unlocked is None:
            self._open_compartments(self._keyring.families if self._keyring else [MODEL_KEK])
        assert self._unlocked is not None
        return self._unlocked

    def check_unlocked(self) -> None:
        """Check that what opened the key ring still does. Raises NotTrusted: the passphrase was changed since."""
        if self._unlocked is not None:
            Keyring.open(self.keys, [MODEL_KEK], self._unlocked)

    def _word(self) -> Word:
        return self._unlocked or self.passphrase()

    def ring_keys(self, family: str) -> RingKeys:
        """A wrapping family of the keep's own key ring."""
        custody = RingCustody(self.custodian, self._word, self.clock, self._adopt_part)
        return RingKeys(family, lambda: self.keyring([family]), custody)

    def _adopt_part(self, changed: Keyring) -> None:
        """Take over a changed ring, of which this process keeps the compartments that it had open."""
        held = self._keyring.families if self._keyring else changed.families
        self.adopt(Keyring.receive(changed.hand_over(held)))
        self._stamp = None  # another process may have changed it, too: it is read again

    def providers(self, family: str = MODEL_KEK) -> tuple[WrappingKeys, ...]:
        """Where keys of a wrapping family live or lived, the place of now first; each may open what it wrapped.

        Raises Invalid (the settings name another place), NotTrusted, Unavailable.
        """
        places = self.keyring([family]).places(family)
        pinned = self.settings.keys.model_kek if family == MODEL_KEK and not self.moving else ""
        if pinned and same_place(pinned, places[-1]):
            places = (*places[:-1], pinned)
        elif pinned:
            raise Invalid(
                f"keys.model_kek in {FILE_NAME} is {pinned}, and the key ring says that model keys are made "
                f"{'at ' + places[-1] if places[-1] else 'in the ring itself'}: run 'modelkeep keys move', or mend the setting"
            )
        return tuple(self.provider(place, family) for place in reversed(places))

    def provider(self, place: str, family: str = MODEL_KEK) -> WrappingKeys:
        """The keys at ``place``, a provider URI, "" for the keep's own ring. Raises Invalid, Unavailable."""
        if not place:
            return self.ring_keys(family)
        if place not in self._providers:
            self._providers[place] = open_keys(place, passphrase=self.passphrase)
        return self._providers[place]

    def move_keys(self, family: str, place: str) -> None:
        """Have the keys of a wrapping family made at ``place`` from now on. Raises NotTrusted, Invalid, Unavailable."""
        self._adopt_part(self.custodian.move(self._word(), family, place))

    def wrapping(self, family: str = MODEL_KEK) -> WrappingKeys:
        """The keys that wrap what is new in a family. Raises what ``providers`` raises."""
        return self.providers(family)[0]

    def openers(self) -> tuple[Opener, ...]:
        """Who opens sealed bodies."""
        return (KeysOpener(self.providers),)

    def data_openers(self) -> tuple[Opener, ...]:
        """Who opens sealed data sets. Opens ``data-kek`` when one is opened."""
        return (KeysOpener(partial(self.providers, DATA_KEK)),)

    def data_salts(self) -> DataSalts:
        """The salts of data sets. Opens ``audit-subject`` when one is read or made."""
        epochs = self.decisions().epochs(ERASE_DATA)
        return DataSalts(self.records, self.ring_keys(AUDIT_SUBJECT), self.entropy, epochs)

    def decisions(self) -> Decisions:
        """Reviews and erasures, as the releases log says now. Raises NotTrusted, Missing, Unavailable."""
        return decisions_of(self.view(), self.trust)

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
        origin = self.trust.releases_origin
        return ReleasesLog(self.releases_files(), self.keyring([LOG_SIGNING]).note_signer(LOG_SIGNING, origin), origin)

    def _view(self, trust: TrustRoot | None = None) -> LogView:
        root = trust or self.trust
        origin = root.releases_origin
        known = kept_head(self.records, origin)  # read before the log is: the log is never behind it
        return LogView(self.releases_files(), root.releases_log, origin, known)

    def _refreshed(self, trust: TrustRoot) -> LogView:
        view = self._view(trust)
        view.refresh()
        return view

    def view(self) -> LogView:
        """A fresh reader of the releases log, already refreshed. Raises NotTrusted, Missing, Unavailable."""
        view = self._view()
        view.refresh()
        return view

    def registry(self, openers: Sequence[Opener] = ()) -> Registry:
        """The reader of releases, refreshed; ``openers`` may open bodies. Raises NotTrusted, Missing, Unavailable."""
        with self._reading:
            if self._registry is None:
                view = self._view()
                cosigned = Cosigned(self.releases_files(), self.trust.releases_log, self.witness_policy.read)
                self._registry = Registry(self.records, self.blobs, view, EvidenceBook(self.trust), cosigned=cosigned)
        self._registry.refresh()
        return replace(self._registry, openers=openers)

    def spent(self) -> Spent:
        """What all private runs on each data set have cost, as the releases log says now. Raises as ``registry``."""
        view = self.registry().view
        with self._reading:
            if self._spent is None:
                self._spent = Spent(view, lambda: self.trust, clock=self.clock)
        return self._spent.look()

    def desk(self) -> Desk:
        """Whoever may change releases. Opens ``model-kek``, ``statement-signing`` and ``log-signing``."""
        keyring = self.keyring(DESK_FAMILIES)
        registry = self.registry(self.openers())
        if registry.book.signatories.root != keyring.trust:  # a change that was cut off, or one that another process is making
            catch_up(registry.view, self.amend)
            keyring, registry = self.keyring(DESK_FAMILIES), self.registry(self.openers())
        return Desk(
            registry=registry,
            log=self.releases_log(),
            signer=keyring.statement_signer(self.token_halves),
            keys=self.wrapping(),
            claims=FolderClaims(self.directory / "claims"),
            clock=self.clock,
            entropy=self.entropy,
            lease=LEASE_SECONDS,
            bundles=lambda: self.keyring([OMS_SIGNING]).bundle_signer(),
            logged=self.logged.set,
            scanner=self.scanner,
        )

    def token_halves(self, uri: str) -> tuple[Ed25519Signing, Wrapper]:
        """The Ed25519 key at a token's URI, and the token's key that wraps the other half. Raises Missing, Denied, Unavailable.

        The query of the setting ``keys.statement_signing`` says how tokens are reached; the key ring says which key it is.
        """
        return open_token_identity(uri, self.settings.keys.statement_signing)

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

    @cached_property
    def admission(self) -> AdmissionInForce:
        """The admission policy, as the log says it."""
        return AdmissionInForce(self.settings.keep.admission)

    @cached_property
    def ladder(self) -> LadderInForce:
        """The ladder of the extraction defence, as the log says it."""
        return LadderInForce(self.settings.extraction.on_alarm)

    @property
    def access(self) -> Engine:
        """The access policy that the log says now. Raises NotTrusted, Unavailable."""
        return self.access_in_force.follow(self.registry().book)

    @cached_property
    def shipped_access(self) -> Engine:
        """The access policy that ships, by which whoever holds the folder and the keep's own processes are judged.

        A policy in the log binds accounts; it can lock nobody out of the machine itself.
        """
        return Engine()

    def settle_lease(self) -> None:
        """Wait until no gateway acts on what it knew before now."""
        self.clock.sleep(LEASE_SECONDS)


def same_place(one: str, other: str) -> bool:
    """Whether two provider URIs name the same keys: what follows the question mark only says how to reach them."""
    return one.partition("?")[0] == other.partition("?")[0]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise Missing(f"{path} is missing: restore it from a copy") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause
