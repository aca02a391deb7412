"""``Keep``: everything that can be done with a keep, as one object. The command line and the admin API call nothing else."""

import contextlib
import os
import secrets
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

from modelkeep.access.accounts import add_account
from modelkeep.access.passwords import Passwords
from modelkeep.adapters.clock import SystemClock, SystemEntropy
from modelkeep.adapters.keys.escrows import FolderEscrows
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.records.signed import SignedRecords
from modelkeep.adapters.tls import authority_certificate
from modelkeep.app.accountverbs import AccountVerbs
from modelkeep.app.bomverbs import BomVerbs
from modelkeep.app.calibrating import CalibrationVerbs
from modelkeep.app.caseverbs import CaseVerbs
from modelkeep.app.catalogueverbs import CatalogueVerbs
from modelkeep.app.certverbs import CertificateVerbs
from modelkeep.app.dataverbs import DataVerbs
from modelkeep.app.factorverbs import FactorVerbs
from modelkeep.app.fingerprints import FingerprintVerbs
from modelkeep.app.indicatorverbs import IndicatorVerbs
from modelkeep.app.keyverbs import KeyVerbs
from modelkeep.app.lifeverbs import LifeVerbs
from modelkeep.app.markverbs import MarkVerbs
from modelkeep.app.omsverbs import OmsVerbs
from modelkeep.app.policyverbs import PolicyVerbs
from modelkeep.app.premises import CA_FILE, SIGNED_KINDS, TRUST_FILE, Premises, check_private
from modelkeep.app.privacy import PrivacyVerbs
from modelkeep.app.provenanceverbs import ProvenanceVerbs
from modelkeep.app.registry import RegistryVerbs
from modelkeep.app.results import Initialised
from modelkeep.app.scanverbs import ScanVerbs
from modelkeep.app.settings import FILE_NAME, load, parse, template
from modelkeep.app.stores import create_blobs, create_records, upgrade_records
from modelkeep.app.trustverbs import TrustVerbs
from modelkeep.app.unsealverbs import UnsealVerbs, drop_escrows, renewed_escrows
from modelkeep.app.witnessverbs import WitnessVerbs
from modelkeep.core.ports import Records
from modelkeep.core.values import Principal, Role, parse_name
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody.keyring import Custodian, Keyring, Unlocked, releases_origin
from modelkeep.custody.keys import LATER_FAMILIES, LOG_SIGNING, TLS_CA
from modelkeep.errors import Conflict, Invalid, ModelkeepError, Unavailable
from modelkeep.ledger.log import ReleasesLog
from modelkeep.workflows.publish import settle

FOLDERS = ("keys", "blobs", "log", "log/releases", "log/audit", "tls", "run")


class Keep(
    RegistryVerbs,
    CatalogueVerbs,
    PolicyVerbs,
    FactorVerbs,
    CertificateVerbs,
    KeyVerbs,
    TrustVerbs,
    OmsVerbs,
    ScanVerbs,
    BomVerbs,
    ProvenanceVerbs,
    LifeVerbs,
    CalibrationVerbs,
    WitnessVerbs,
    UnsealVerbs,
    CaseVerbs,
    AccountVerbs,
    IndicatorVerbs,
    MarkVerbs,
    FingerprintVerbs,
    DataVerbs,
    PrivacyVerbs,
):
    """One keep, and who acts on it. Make one with ``init`` or ``open``."""

    @classmethod
    def init(
        cls,
        directory: str | Path,
        passphrase: bytes,
        *,
        admin: str = "admin",
        blobs: str = "",
        records: str = "",
        model_kek: str = "",
    ) -> Initialised:
        """Make a keep in ``directory``. The password and the recovery identity in the result exist nowhere else.

        ``blobs``, ``records``: URLs of stores outside the folder (docs/stores.md), "" = in it. ``model_kek``: URI of where
        model keys are made (docs/keys.md), "" = in the key ring, or where the settings in the environment pin them.
        Raises Conflict (something is there already, in the folder or in a store: nothing is touched), Invalid, Unavailable.
        """
        root = Path(directory)
        parse_name(admin, "account name")
        made_folder = _claim_folder(root)
        try:
            return cls._fill(root, passphrase, admin, blobs=blobs, records=records, model_kek=model_kek)
        except ModelkeepError:
            _clear_folder(root, made_folder)
            raise

    @classmethod
    def _fill(cls, root: Path, passphrase: bytes, admin: str, *, blobs: str, records: str, model_kek: str) -> Initialised:
        origin = f"modelkeep.local/{secrets.token_hex(6)}"
        written = template(origin, blobs, records)
        settings = parse(tomllib.loads(written), os.environ, FILE_NAME)
        with contextlib.ExitStack() as undo:  # what is outside the folder is taken back when anything fails
            undo.callback(create_blobs(settings, origin))
            stored, forget = create_records(root, settings, origin)
            undo.callback(forget)
            made = cls._furnish(root, passphrase, admin, origin, stored, written)
            cls._place_keys(root, passphrase, model_kek or settings.keys.model_kek)
            undo.pop_all()
        return made

    @classmethod
    def _furnish(cls, root: Path, passphrase: bytes, admin: str, origin: str, stored: Records, written: str) -> Initialised:
        clock, entropy = SystemClock(), SystemEntropy()
        identity = generate_identity()
        custodian = Custodian(FileKeys(root / "keys"), entropy)
        keyring = custodian.create(passphrase, recipient_of(identity), origin=origin, now_ns=clock.now_ns())
        _write(root / TRUST_FILE, keyring.trust.encode())
        log_origin = releases_origin(origin)
        log = ReleasesLog(FolderLogFiles(root / "log" / "releases"), keyring.note_signer(LOG_SIGNING, log_origin), log_origin)
        log.create()
        _write(root / CA_FILE, authority_certificate(keyring.secret(TLS_CA), origin, clock.now_ns()))
        records = SignedRecords(stored, SIGNED_KINDS, lambda: keyring.trust.token_keys, keyring.token_key)
        made, changes = add_account(admin, [Role.ADMIN], passwords=Passwords(), entropy=entropy, clock=clock)
        records.commit(changes)
        _write(root / FILE_NAME, written.encode())  # last: a folder without it is no keep yet
        keep = cls(Premises.open(root, lambda: passphrase, keyring))
        keep.premises.moving = True  # nobody asks yet whether model keys are made where the settings say
        keep.act("init", made.account.subject)
        return Initialised(str(root), origin, admin, made.password, identity)

    @classmethod
    def _place_keys(cls, root: Path, passphrase: bytes, place: str) -> None:
        if place:
            cls.open(root, passphrase).keys_move(place)

    @classmethod
    def open(cls, directory: str | Path, passphrase: bytes | Callable[[], bytes]) -> Self:
        """Open the keep in ``directory`` as ``operator@local``; a callable is asked when a key is first needed.

        What a publisher that died left behind is settled by the first verb that holds the keys.
        Raises Missing, NotTrusted (open to others), Invalid, Unavailable.
        """
        if not isinstance(passphrase, bytes | Callable):  # text would be found out deep inside, when a key is first needed
            raise Invalid("the passphrase of a keep is bytes, or what gives them: encode text first")
        ask = passphrase if callable(passphrase) else lambda: passphrase
        return cls(Premises.open(Path(directory), ask))

    @classmethod
    def upgrade(cls, directory: str | Path) -> tuple[int, int, str]:
        """Migrate the records to this version's schema: versions before and after, and the backup made ("" when none)."""
        root = Path(directory)
        settings = load(root)
        check_private(root)
        return upgrade_records(root, settings)

    @classmethod
    def complete_keys(cls, directory: str | Path, passphrase: Callable[[], bytes]) -> tuple[str, ...]:
        """Make the key compartments that a keep of an earlier version lacks; which. Asks for no passphrase when none is.

        Raises Missing (no keep), NotTrusted (wrong passphrase), Unavailable.
        """
        root = Path(directory)
        load(root)
        check_private(root)
        store = FileKeys(root / "keys")
        with store.lock():
            if set(LATER_FAMILIES) <= set(store.families()):
                return ()
        word = passphrase()
        _, made = Custodian(store, SystemEntropy()).complete(word, now_ns=SystemClock().now_ns())
        keep = cls.open(root, word)
        for family in made:
            keep.act("keys.new", family)
        return made

    @classmethod
    def keys_recover(cls, directory: str | Path, identity: str, new: bytes) -> tuple[str, ...]:
        """Set a new passphrase with the recovery identity; families resealed. Raises NotTrusted, Invalid, Unavailable."""
        root = Path(directory)
        load(root)
        check_private(root)
        families = Custodian(FileKeys(root / "keys"), SystemEntropy()).recover(identity, new).families
        drop_escrows(FolderEscrows(root / "unseal"))  # made with the lost passphrase: nothing can tell whether they are ours
        return families

    def keys_passwd(self, new: bytes) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Change the passphrase of every compartment, all or none; the families, and what could not be renewed, in words.

        Shares and a provider go on unsealing the keep: what they open changes in the same step. Raises NotTrusted (the old one
        is wrong, or an escrow is open to others), Unavailable.
        """
        self.authorize("keys.passwd", {})
        here, late = self.premises, list[str]()

        def renew(before: Unlocked, after: Unlocked) -> dict[str, bytes]:
            renewed, others = renewed_escrows(here, before, after)
            late.extend(others)
            return renewed

        families = here.custodian.change_passphrase(here.passphrase(), new, renew)
        return families, tuple(late)

    def acting_as(self, actor: Principal, address: str = "") -> Self:
        """The same keep, acted on by somebody else, from the IP address ``address`` ("" at the machine itself)."""
        return type(self)(self.premises, actor, address)

    def keyring(self, families: Sequence[str]) -> Keyring:
        """These key compartments, opened. Raises NotTrusted (wrong passphrase), Missing, Unavailable."""
        return self.premises.keyring(families)

    def settle(self) -> None:
        """Complete or collect what publishers that died left behind, and finish erasures."""
        settle(self.premises.desk())
        self.sweep_erased()


def _claim_folder(root: Path) -> bool:
    """Make the folders of a keep, or refuse to touch what is there; whether ``root`` itself is new.

    Raises Conflict, Unavailable.
    """
    try:
        new = not root.exists()
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(root.iterdir()):
            what = "a keep" if (root / FILE_NAME).exists() else "something else"
            raise Conflict(f"{root} holds {what} already; nothing was touched: name a new folder")
        root.chmod(0o700)
        for name in FOLDERS:
            (root / name).mkdir(mode=0o700)
    except OSError as cause:
        raise Unavailable(f"cannot make a keep in {root}: {cause.strerror}") from cause
    return new


def _clear_folder(root: Path, new: bool) -> None:
    """Remove what a failed ``init`` made; the folder was empty, or ``new``."""
    with contextlib.suppress(OSError):  # what cannot be removed is no keep: modelkeep.toml was never written
        for path in root.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        if new:
            root.rmdir()


def _write(path: Path, data: bytes) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as cause:
        raise Unavailable(f"cannot write {path}: {cause.strerror}") from cause
