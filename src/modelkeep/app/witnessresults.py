"""What verbs about witnesses return."""

from msgspec import Struct


class WitnessMade(Struct, frozen=True):
    """A witness: its name, and its verifier keys (Ed25519 first, then ML-DSA-44)."""

    directory: str
    name: str
    vkeys: tuple[str, ...]


class WitnessSaw(Struct, frozen=True):
    """What a witness remembers of one log: the last checkpoint it cosigned, ``at`` in Unix nanoseconds. ``folder``: the SHA-256
    of the origin; ``refused``: it keeps a request that contradicts this; ``problem``: why the memory cannot be used, "" = none.
    """

    folder: str
    origin: str
    size: int
    root: str
    at: int
    refused: bool
    problem: str


class WitnessRow(Struct, frozen=True):
    """One witness of the policy. ``key``: the name of its key; ``size``, ``at`` (Unix nanoseconds): of its last cosignature;
    ``problem``: why it did not cosign the newest checkpoint, "" = it did; ``contradicts``: because the log is not what it saw.
    """

    name: str
    key: str
    url: str
    size: int
    at: int
    problem: str
    contradicts: bool


class WitnessReport(Struct, frozen=True):
    """Who witnesses the releases log ``origin``, whose verifier key is ``vkey``. ``quorum``: the name in the policy, "" = no
    witness is asked; ``witnessed``: entries that a quorum covers, cosigned by ``names``.
    """

    origin: str
    vkey: str
    log_size: int
    quorum: str
    witnessed: int
    names: tuple[str, ...]
    witnesses: tuple[WitnessRow, ...]
