"""Compartments, sealed trust roots and trust.toml change together: cut off at every step of the disk, all of it or none."""

import pytest
from test_custody_keyring import WORD, opened

from modelkeep.adapters.keys import file as module
from modelkeep.adapters.keys.file import FileKeys
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody import keys
from modelkeep.custody.identities import place_of, public_of, signer_of, token_material
from modelkeep.custody.keys import KeyVersion
from modelkeep.custody.succession import followed, prepared, software, token_key_begun, token_key_ended
from modelkeep.custody.trust import TrustedIdentity, TrustRoot
from modelkeep.errors import Denied, NotTrusted, Unavailable


class Cut(BaseException):
    """The power fails."""


def counted(patch, step):
    """Have every step on the disk go through ``step``."""

    def around(act):
        return lambda *args, **kwargs: step(lambda: act(*args, **kwargs))

    patch.setattr(module, "sync_folder", around(module.sync_folder))
    patch.setattr(FileKeys, "_write", staticmethod(around(FileKeys._write)))
    for name in ("mkdir", "rename", "rmdir"):
        patch.setattr(module.Path, name, around(getattr(module.Path, name)))


def successor(trust, public, index):
    first = TrustedIdentity(trust.identities[0].public, until=index)
    return TrustRoot(
        trust.origin, trust.releases_log, trust.audit_key, trust.token_key, (first, TrustedIdentity(public, first=index)),
        oms=trust.oms,
    )  # fmt: skip


@pytest.fixture
def ready(ring, custodian, tmp_path):
    """A ring with a pending identity, its trust.toml, and the change that takes it into use."""
    (tmp_path / "trust.toml").write_bytes(ring.trust.encode())
    after = custodian.amend(WORD, prepared(software(custodian.entropy), 2))
    pending = after.pending_signer()
    assert pending.name == "keep.example/statement-signing/2"
    assert after.trust == ring.trust
    assert (tmp_path / "trust.toml").read_bytes() == ring.trust.encode()
    return followed(lambda trust: successor(trust, pending.public, 7)), pending


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("at", range(1, 45))
def test_a_succession_cut_off_anywhere_is_done_or_has_not_begun(ready, custodian, store, monkeypatch, tmp_path, at, after):
    change, pending = ready
    left = [at]

    def step(act):
        left[0] -= 1
        if left[0] == 0 and not after:
            raise Cut
        done = act()
        if left[0] == 0:
            raise Cut
        return done

    with monkeypatch.context() as patch:
        counted(patch, step)
        try:
            custodian.amend(WORD, change)
            assert left[0] > 0
        except Cut:
            pass
    ring = opened(FileKeys(tmp_path / "keys"))
    assert TrustRoot.parse((tmp_path / "trust.toml").read_bytes()) == ring.trust
    done = ring.statement_signer().public == pending.public
    assert (ring.pending_signer() is None, len(ring.trust.identities) == 2) == (done, done)
    assert opened(FileKeys(tmp_path / "keys")).inventory() == custodian.amend(WORD, change).inventory() if done else True
    assert custodian.amend(WORD, change).statement_signer().public == pending.public  # again, or now
    names = {path.name for path in (tmp_path / "keys").iterdir()}
    assert names == {".lock", *(f"{family}.keep" for family in keys.FAMILIES)}


def test_the_steps_above_cover_a_whole_change(ready, custodian, monkeypatch):
    done = []
    with monkeypatch.context() as patch:
        counted(patch, lambda act: (done.append(1), act())[1])
        custodian.amend(WORD, ready[0])
    assert 20 < len(done) < 45


def test_preparing_twice_makes_one_identity(ring, custodian):
    first = custodian.amend(WORD, prepared(software(custodian.entropy), 2)).pending_signer()
    assert custodian.amend(WORD, prepared(software(custodian.entropy), 3)).pending_signer().public == first.public


def test_a_token_key_verifies_until_its_rotation_ends(ring, custodian):
    begun = custodian.amend(WORD, token_key_begun(custodian.entropy, 2))
    assert begun.trust.token_keys == (begun.token_key().public_key().public_bytes_raw(), ring.trust.token_key)
    assert custodian.amend(WORD, token_key_begun(custodian.entropy, 3)).trust == begun.trust  # under way: nothing new
    ended = custodian.amend(WORD, token_key_ended)
    assert ended.trust.token_keys == (begun.trust.token_key,)


class Half:
    """An Ed25519 key elsewhere. ``lie``: it signs with another key than it says."""

    where = "pkcs11:token=t;object=o/1"

    def __init__(self, lie=False):
        self._key = StatementSigner("x", bytes([5]) * 32, bytes(32))._ed25519
        self._signs = StatementSigner("x", bytes([6]) * 32, bytes(32))._ed25519 if lie else self._key
        self.public = self._key.public

    def sign(self, message):
        return self._signs.sign(message)


def test_half_an_identity_elsewhere(ring):
    wrapper = ring.wrapper()
    material = token_material("keep", 3, Half.where, Half(), wrapper, bytes([9]) * 32)
    key = KeyVersion(3, keys.PRIMARY, 1, material)
    assert place_of(key) == Half.where
    signer = signer_of("keep", key, lambda uri: (Half(), wrapper))
    assert (signer.public, signer.where) == (public_of("keep", key), Half.where)
    signer.public.check(b"message", signer.sign(b"message"))
    with pytest.raises(Unavailable, match="no way to the token"):
        signer_of("keep", key)
    with pytest.raises(NotTrusted):
        signer_of("keep", KeyVersion(4, keys.PRIMARY, 1, material), lambda uri: (Half(), wrapper))
    with pytest.raises(NotTrusted, match="its own public key refuses"):
        signer_of("keep", key, lambda uri: (Half(lie=True), wrapper)).sign(b"message")
    gone = KeyVersion(3, keys.DESTROYED, 1, {})
    assert place_of(gone) == ""
    with pytest.raises(Denied):
        signer_of("keep", gone)
