import hashlib

import numpy as np
import pytest

from modelkeep.container import BytesReader, KmsRecipient, seal
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.formats import safetensors


class RingWrapper:
    """A ``Wrapper`` whose key is derived from its name."""

    def __init__(self, key_id: str) -> None:
        self.key_id = key_id
        self._kek = hashlib.sha256(key_id.encode()).digest()

    def wrap(self, key: bytes, context: bytes) -> bytes:
        return wrap_key(self._kek, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        return unwrap_key(self._kek, wrapped, context)


@pytest.fixture
def kms():
    return KmsRecipient(RingWrapper("file:model-kek/1"))


@pytest.fixture
def other_kms():
    return KmsRecipient(RingWrapper("file:model-kek/2"))


@pytest.fixture
def tensors() -> bytes:
    """A safetensors file: an empty tensor, a scalar, and one of more than one Cobblestone chunk."""
    rng = np.random.default_rng(7)
    arrays = {
        "layer.weight": rng.normal(size=(100, 60)).astype(np.float32),
        "layer.bias": rng.normal(size=60).astype(np.float16),
        "empty": np.zeros((0, 4), np.int64),
        "scalar": np.array(3.5),
    }
    return safetensors.dump(arrays, {"made": "for a test"})


@pytest.fixture
def sealed():
    """(body, SealedModel) of some source bytes."""

    def make(source: bytes, dek: bytes | None = None):
        sealing = seal(BytesReader(source), dek=dek)
        body = b"".join(bytes(chunk) for chunk in sealing.chunks())
        return body, sealing.model

    return make
