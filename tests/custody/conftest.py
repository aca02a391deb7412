"""Key rings that cost next to nothing, and logs of signed statements."""

import itertools

import pytest

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody.keyring import Custodian


class CountingEntropy:
    """``Entropy`` whose tokens differ and repeat from run to run."""

    def __init__(self):
        self._numbers = itertools.count(1)

    def token(self, size):
        return next(self._numbers).to_bytes(size)


@pytest.fixture
def store(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    return FileKeys(tmp_path / "keys")


@pytest.fixture
def custodian(store):
    return Custodian(store, CountingEntropy(), Argon2Params(64, 1, 1))


@pytest.fixture(scope="session")
def identity():
    return generate_identity()


@pytest.fixture
def ring(custodian, identity):
    return custodian.create(b"correct horse", recipient_of(identity), origin="keep.example", now_ns=1)
