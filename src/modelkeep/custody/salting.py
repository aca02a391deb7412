"""Salted data-set digests: a statement names the data, and nobody can confirm a guess at it once the salt is dropped.

The salt of a data set is 32 random bytes, kept in the records wrapped by the ``audit-subject`` family, made when it is first
asked for. Whoever is given the salt and the data can check a statement about it; dropping the salt takes that away for good.
"""

import hashlib

from modelkeep.core.epochs import Epochs, epoch_key, never_erased, split_epoch
from modelkeep.core.ports import Change, Entropy, Record, Records, Wrapper, WrappingKeys
from modelkeep.core.values import Digest, digest_bytes
from modelkeep.crypto.wrap import join_wrapped, split_wrapped
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted

DATA_SALT = "data-salt"
"""Record kind: the wrapped salt of one data set; the key is its name (and epoch, core/epochs)."""

SALT_SIZE = 32
MAX_NAME = 200


def salted(salt: bytes, digest: Digest) -> Digest:
    """The salted digest of data whose SHA-256 is ``digest``: SHA-256(salt ‖ digest). ``salt``: 32 bytes. Raises Invalid."""
    if len(salt) != SALT_SIZE:
        raise Invalid(f"a salt has {SALT_SIZE} bytes, not {len(salt)}")
    return Digest("sha256:" + hashlib.sha256(salt + digest_bytes(digest)).hexdigest())


def parse_dataset(name: str) -> str:
    """Check what a data set is called: 1 to 200 printable characters. Raises Invalid."""
    if not 1 <= len(name) <= MAX_NAME or not name.isprintable() or name != name.strip():
        raise Invalid(f"{name[:80]!r} is no name of a data set: use 1 to {MAX_NAME} printable characters")
    return name


class DataSalts:
    """The salts of all data sets."""

    def __init__(self, records: Records, keys: WrappingKeys, entropy: Entropy, epochs: Epochs = never_erased) -> None:
        """``keys``: the ``audit-subject`` family; ``epochs``: of data sets, as the releases log says."""
        self._records, self._keys, self._entropy, self._epochs = records, keys, entropy, epochs

    def salt(self, name: str) -> bytes:
        """The salt of the data set ``name``, made and kept when there is none.

        Raises Invalid, NotTrusted, Denied, Unavailable.
        """
        try:
            return self.existing(name)
        except Missing:
            return self._make(name)

    def existing(self, name: str) -> bytes:
        """The salt of ``name``. Raises Missing (there is none, or it was erased), Invalid, NotTrusted, Denied, Unavailable."""
        key = epoch_key(parse_dataset(name), self._epochs(name))
        return _unwrap(self._records.get(DATA_SALT, key), self._keys)

    def erase(self, name: str) -> None:
        """Drop every salt of ``name``; silent when there is none. Say so in the releases log first.

        Raises Invalid, NotTrusted (a record is malformed), Unavailable.
        """
        found = [
            record.key for record in self._records.scan(DATA_SALT, parse_dataset(name)) if split_epoch(record.key)[0] == name
        ]
        if found:
            self._records.commit([Change(DATA_SALT, key, None) for key in found])

    def _make(self, name: str) -> bytes:
        key, salt = epoch_key(name, self._epochs(name)), self._entropy.token(SALT_SIZE)
        wrapper = self._keys.wrapper()
        body = join_wrapped(wrapper.key_id, wrapper.wrap(salt, _context(key)))
        try:
            self._records.commit([Change(DATA_SALT, key, body, 0)])
        except Conflict:  # another process made it first
            return self.existing(name)
        return salt


def salt_key_id(record: Record) -> str:
    """Which key a salt is wrapped under. Raises NotTrusted (malformed)."""
    return split_wrapped(record.body or b"", f"the salt of {record.key[:80]}")[0]


def rewrapped_salt(record: Record, keys: WrappingKeys, wrapper: Wrapper) -> bytes:
    """The record's body with the same salt wrapped by ``wrapper``. Raises NotTrusted, Denied, Missing, Unavailable."""
    return join_wrapped(wrapper.key_id, wrapper.wrap(_unwrap(record, keys), _context(record.key)))


def _unwrap(record: Record, keys: WrappingKeys) -> bytes:
    key_id, wrapped = split_wrapped(record.body or b"", f"the salt of {record.key[:80]}")
    found = keys.opens(key_id)
    if found is None:
        raise NotTrusted(f"the salt of {record.key[:80]} is wrapped under {key_id[:80]}, which this keep does not know")
    return found.unwrap(wrapped, _context(record.key))


def _context(key: str) -> bytes:
    return b"modelkeep/data-salt/1\0" + key.encode()
