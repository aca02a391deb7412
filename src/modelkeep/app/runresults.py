"""What the verbs about training runs answer."""

from msgspec import Struct


class CodeChecked(Struct, frozen=True):
    """How the keep finds the code signed: ``good``, ``bad``, ``unknown`` or ``none``, and by whom."""

    signature: str
    signer: str


class RunModel(Struct, frozen=True):
    """One model that came out of a run, and the statement about it: where it stands in the log, and its DSSE envelope."""

    name: str
    digest: str
    log_index: int
    envelope: bytes


class RunRecorded(Struct, frozen=True):
    """A recorded training run. ``command`` and ``inputs`` as the log has them; ``run``: 32 hex digits."""

    run: str
    command: tuple[str, ...]
    repository: str
    commit: str
    dirty: bool
    signature: str
    signer: str
    inputs: tuple[str, ...]
    models: tuple[RunModel, ...]
