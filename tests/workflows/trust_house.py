"""A keep with the custodian of its keys, for stories about who may sign; every durable step can be the last one."""

from workflow_house import CountingEntropy, Faulty, House

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody import keys
from modelkeep.custody.book import EvidenceBook
from modelkeep.custody.keyring import Custodian, Keyring
from modelkeep.custody.succession import software
from modelkeep.custody.trust import TrustRoot
from modelkeep.ledger import predicates
from modelkeep.ledger import statements as s
from modelkeep.workflows.release_state import change_state
from modelkeep.workflows.trust_changes import (
    catch_up,
    compromise_identity,
    rotate_identity,
)

FIRST = ReleaseRef("credit", 1)
TEAM = StatementSigner("team-b", bytes([7]) * 32, bytes([8]) * 32)
OTHER = StatementSigner("other", bytes([3]) * 32, bytes([4]) * 32)


class Office:
    """A house with the custodian of its keys; every durable step of both is counted."""

    def __init__(self, folder):
        (folder / "keys").mkdir(mode=0o700)
        self.store = FileKeys(folder / "keys")
        self.entropy = CountingEntropy()
        made = Custodian(self.store, self.entropy, Argon2Params(64, 1, 1))
        ring = made.create(b"word", recipient_of(generate_identity()), origin="keep.example", now_ns=1)
        self.house = House(folder, ring)
        (folder / "trust.toml").write_bytes(ring.trust.encode())
        self.folder = folder
        store = Faulty(self.store, self.house.faults, "replace")
        self.custodian = Custodian(store, self.entropy, Argon2Params(64, 1, 1))

    def amend(self, change):
        self.house.ring = self.custodian.amend(b"word", change)
        return self.house.ring

    def restart(self):
        """What a fresh process does before it signs: open the keys, and let the sealed root catch up with the log."""
        self.house.ring = Keyring.open(self.store, keys.FAMILIES, b"word")
        view = self.house.registry().view
        view.refresh()
        catch_up(view, self.amend)
        return self

    def rotate(self):
        return rotate_identity(self.house.desk(), self.amend, software(self.entropy), actor="ops")

    def view(self):
        view = self.house.registry().view
        view.refresh()
        return view

    @property
    def size(self):
        return self.house.registry().refresh().size

    def compromise(self, version, since):
        ring, lost = compromise_identity(
            self.view(), self.house.ring, self.amend, software(self.entropy), version=version, since=since, now_ns=5
        )
        self.house.ring = ring
        return lost

    def reader(self, root):
        """The log as somebody sees it who holds ``root``."""
        book = EvidenceBook(root)
        view = self.view()
        book.catch_up(view, view.checkpoint.size)
        return book

    def check_agrees(self):
        """The sealed root, the public copy and the log say one thing."""
        ring = Keyring.open(self.store, keys.FAMILIES, b"word")
        assert TrustRoot.parse((self.folder / "trust.toml").read_bytes()) == ring.trust
        assert self.reader(ring.trust).signatories.root == ring.trust
        return ring.trust


def log_raw(office, *entries):
    """Append as somebody who has the log key alone."""
    return office.house.desk().log.append(entries)


def promote(office, ref=FIRST):
    return change_state(office.house.desk(), ref, "promote", actor="mel")


def announcement(signer, successor, *, co=None, **more):
    said = predicates.Trust(
        **{
            "actor": "eve", "at": 1, "change": "rotate", "name": signer.name, "id": "00" * 16, "may_sign": ("*",),
            "releases": ("*",), "identity": predicates.NamedIdentity.of(successor.public), **more,
        }
    )  # fmt: skip
    statement = s.make_statement(said, s.keep_resource("keep.example"))
    return s.sign_statement(statement, signer, *([successor] if co is None else co))
