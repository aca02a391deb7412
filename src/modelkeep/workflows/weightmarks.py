"""The keys of weight marks: one for each marking, from the keep's secret, committed to in the releases log before the release.

The commitment is an attestation of type ``watermark`` about the marked file. Its scheme ``modelkeep-weight-mark/1:SALT`` says
how it is opened: the key is HKDF of the secret of the family ``watermark``, with that salt, for a model name.
"""

from typing import NamedTuple

from modelkeep.core.values import Digest, Resource
from modelkeep.crypto.dsse import parse_envelope
from modelkeep.crypto.kdf import hkdf
from modelkeep.custody.dossier import Told
from modelkeep.errors import Invalid, Missing, NotTrusted
from modelkeep.ledger.attestations import Attestation, Watermark
from modelkeep.ledger.statements import parse_statement
from modelkeep.training.weightmark import Layout, commitment
from modelkeep.workflows.attest import attest
from modelkeep.workflows.registry import Desk, Registry
from modelkeep.workflows.trust_changes import entries_of

SCHEME = "modelkeep-weight-mark/1"
SALT = 16


class Committed(NamedTuple):
    """A mark that the log commits to. ``key``: opened here; ``entry``, ``at``: of the statement, Unix nanoseconds;
    ``marks``: watermark commitments in the log up to it, which corrects p."""

    key: bytes
    commitment: str
    entry: int
    at: int
    marks: int


class Sighting(NamedTuple):
    """When the suspect was there at the latest: Unix nanoseconds, and who says so: ``given``, ``log`` or ``now``."""

    at: int
    how: str


def mark_key(master: bytes, name: str, salt: bytes) -> bytes:
    """The key of one marking of a model called ``name``, 32 bytes: it can be opened to a judge without any other.

    ``master``: the secret of the ``watermark`` family; ``salt``: 16 random bytes, public.
    """
    return hkdf(master, salt=salt, info=f"modelkeep/weight-mark/1\0{name}".encode())


def owner_of(origin: str, name: str) -> str:
    """The statement that the bits are derived from: which keep says that it made which model."""
    return f"{origin} {name}"


def commit_mark(desk: Desk, file: Resource, salt: bytes, committed: bytes, *, actor: str) -> int:
    """Log the commitment to a weight mark of ``file``; its index. Raises as ``attest``."""
    scheme = f"{SCHEME}:{salt.hex()}"
    return attest(desk, file, Watermark(actor=actor, at=desk.clock.now_ns(), scheme=scheme, commitment=committed.hex()))


def committed_mark(registry: Registry, model: Digest, name: str, master: bytes, owner: str, layout: Layout) -> Committed:
    """The first commitment to a weight mark in ``model`` that this keep can open.

    Raises Missing (there is none), NotTrusted (there are, and none opens), Unavailable.
    """
    attestations = registry.refresh().attestations
    told = [salted for one in attestations.about(model, name) if (salted := _salted(one)) is not None]
    if not told:
        raise Missing("the releases log commits to no weight mark in this model: mark the next one with 'watermark embed'")
    for salt, index, said in told:
        key = mark_key(master, name, salt)
        if commitment(key, owner, layout).hex() == said.commitment:
            return Committed(key, said.commitment, index, said.at, attestations.count(Watermark, index + 1))
    raise NotTrusted("the releases log commits to a weight mark in this model that the key of this keep does not open")


def _salted(told: Told[Attestation]) -> tuple[bytes, int, Watermark] | None:
    said = told.said
    if not isinstance(said, Watermark) or not said.scheme.startswith(f"{SCHEME}:"):
        return None
    try:
        return bytes.fromhex(said.scheme.removeprefix(f"{SCHEME}:")), told.index, said
    except ValueError:
        return None


def sighting(registry: Registry, suspect: Digest, given: int, now: int) -> Sighting:
    """When a suspect file was seen first: as ``given`` (0 = nobody says), or as the log says, else ``now``.

    The earlier of what is given and what the log says counts. Raises NotTrusted, Unavailable.
    """
    said = [Sighting(given, "given")] if given else []
    logged = next((at for at in (_names(entry, suspect) for _, entry in entries_of(registry.view)) if at), 0)
    said += [Sighting(logged, "log")] if logged else []
    return min(said, default=Sighting(now, "now"))


def check_order(committed: Committed, seen: Sighting) -> None:
    """Raises NotTrusted unless the log committed to the mark before the suspect was seen."""
    if committed.at > seen.at:
        raise NotTrusted(
            f"the log committed to this mark {(committed.at - seen.at) / 1e9:,.0f} s after the suspect was seen: "
            "a commitment that is younger than the suspect proves nothing, so there is no claim"
        )


def _names(entry: bytes, suspect: Digest) -> int:
    """When a statement that names the file was made; 0 when it does not."""
    try:
        payload = parse_envelope(entry).unverified_payload()  # the log's own integrity was checked; who signed it matters not
        if suspect.removeprefix("sha256:").encode() not in payload:
            return 0
        at = parse_statement(payload).predicate.get("at", 0)
    except (Invalid, NotTrusted):
        return 0
    return at if isinstance(at, int) else 0
