"""Fixtures of the stories about releases: a keep, and models to put in it."""

import numpy as np
import pytest
from workflow_house import ORIGIN, CountingEntropy, House, safetensors

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.core.values import digest_of
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.xwing import generate_identity, recipient_of
from modelkeep.custody.keyring import Custodian
from modelkeep.workflows.publish import Calibration, ModelFile


@pytest.fixture
def custodian(tmp_path):
    (tmp_path / "keys").mkdir(mode=0o700)
    return Custodian(FileKeys(tmp_path / "keys"), CountingEntropy(), Argon2Params(64, 1, 1))


@pytest.fixture(scope="session")
def ring(tmp_path_factory):
    """Made once, since no test but those about keys changes it."""
    custodian = Custodian(FileKeys(tmp_path_factory.mktemp("keys")), CountingEntropy(), Argon2Params(64, 1, 1))
    return custodian.create(b"word", recipient_of(generate_identity()), origin=ORIGIN, now_ns=1)


@pytest.fixture
def house(tmp_path, ring):
    return House(tmp_path, ring)


@pytest.fixture
def model():
    return ModelFile(safetensors(), "credit.safetensors")


@pytest.fixture
def another():
    return lambda seed: ModelFile(safetensors(seed), "credit.safetensors")


@pytest.fixture
def calibration():
    return Calibration(lambda data, interface: {"kappa": np.arange(3.0)}, 200, digest_of(b"ref.npz"))
