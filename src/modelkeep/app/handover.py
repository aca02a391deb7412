"""What a server process starts with: the key compartments that it needs, and a certificate of its own.

The key of the authority (``tls-ca``) goes to no gateway, and control's certificate has a name of its own:
a broken gateway must not be able to pose as control.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from modelkeep.adapters.tls import Identity
from modelkeep.app.premises import Premises
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import TLS_CA
from modelkeep.errors import NotTrusted

CONTROL_NAME = "control.modelkeep.internal"
"""The name that only control's certificate carries, beside the host names; who trusts this keep's authority asks for it."""


class Opened(NamedTuple):
    """Opened compartments, and the certificate and key to serve TLS with."""

    keyring: Keyring
    leaf: Identity


class _Wire(msgspec.Struct, frozen=True):
    keys: bytes
    chain: bytes
    key: bytes

    def __repr__(self) -> str:
        return "_Wire(…)"


def open_for(premises: Premises, families: Sequence[str]) -> Opened:
    """Open exactly ``families`` and issue a fresh certificate, with control's own name for whoever gets ``tls-ca``.

    Raises NotTrusted (wrong passphrase), Missing, Unavailable.
    """
    whole = premises.keyring([*families, TLS_CA])
    extra = (CONTROL_NAME,) if TLS_CA in families else ()
    return Opened(Keyring.receive(whole.hand_over(families)), premises.issue_leaf(whole, extra))


def encode(opened: Opened) -> bytes:
    """For a child process. It holds secrets in the clear: for memory that no disk backs, and nothing else."""
    keyring, leaf = opened
    return msgspec.msgpack.encode(_Wire(keyring.hand_over(keyring.families), leaf.chain, leaf.key))


def decode(data: bytes) -> Opened:
    """Undo ``encode``. Raises NotTrusted."""
    try:
        wire = msgspec.msgpack.decode(data, type=_Wire)
    except msgspec.MsgspecError:  # `from None`: the cause could quote a secret
        raise NotTrusted("what this process was handed at its start is malformed") from None
    return Opened(Keyring.receive(wire.keys), Identity(wire.chain, wire.key))
