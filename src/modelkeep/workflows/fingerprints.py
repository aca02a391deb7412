"""Fingerprints as files: their bytes, what commits to them in the releases log, and who is heard in a comparison.

A fingerprint is a safetensors file: ``points`` F32 (m, d), ``classes`` I64 (m, 2), ``told`` I64 (m,), ``key`` U8 (32,) and
``about``, JSON as U8. It is secret until a claim is made, for who has it can train a copy to answer it otherwise.
"""

import hashlib
from dataclasses import dataclass

import msgspec
import numpy as np

from modelkeep.core.hidden import holds_secrets
from modelkeep.core.values import Digest, Resource, parse_digest
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.formats.safetensors import dump, load
from modelkeep.ledger.attestations import Fingerprint
from modelkeep.training.fingerprint import KEY_BYTES, LEAST_PROBES, VERSION, Floats, Predict, Probes, draw_probes

SCHEMES = {1: "modelkeep-fingerprint/1", VERSION: "modelkeep-fingerprint/2"}
"""What a statement calls a fingerprint of each version."""
_TAG = b"modelkeep/fingerprint-commitment/1\0"


class _About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    model: str
    reference: str
    version: int = 1


@holds_secrets("model", "reference")
@dataclass(frozen=True, eq=False)
class Made:
    """A fingerprint: of which ``model`` file, by which ``key``, between the rows of which file (``reference``); ``version``:
    of what is computed from its answers."""

    model: Resource
    reference: Digest
    key: bytes
    probes: Probes
    version: int = VERSION

    def encode(self) -> bytes:
        """The bytes of its file; ``parse_fingerprint`` reads them."""
        about = msgspec.json.encode(_About(self.model.name, self.model.digest, self.reference, self.version))
        return dump(
            {
                "about": np.frombuffer(about, dtype=np.uint8),
                "key": np.frombuffer(self.key, dtype=np.uint8),
                "points": np.ascontiguousarray(self.probes.points, dtype=np.float32),
                "classes": np.ascontiguousarray(self.probes.classes),
                "told": np.ascontiguousarray(self.probes.told),
            }
        )


def commitment(data: bytes) -> str:
    """64 hex digits that bind the owner to the fingerprint file ``data``; they say nothing about it, for it holds a key."""
    return hashlib.sha256(_TAG + data).hexdigest()


def parse_fingerprint(data: bytes) -> Made:
    """A fingerprint from its file. Raises Invalid."""
    arrays = load(data)
    try:
        about = msgspec.json.decode(arrays["about"].tobytes(), type=_About)
        key, points, classes, told = (arrays[name] for name in ("key", "points", "classes", "told"))
    except (KeyError, msgspec.MsgspecError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is no fingerprint: {cause}") from cause
    fits = points.ndim == 2 and classes.shape == (len(points), 2) and told.shape == (len(points),)
    kinds = [one.dtype.str for one in (points, classes, told, key)] == ["<f4", "<i8", "<i8", "|u1"]
    if (
        not fits
        or not kinds
        or key.shape != (KEY_BYTES,)
        or len(points) < LEAST_PROBES
        or not np.isfinite(points).all()
        or about.version not in SCHEMES
    ):
        raise Invalid("this is no fingerprint: its arrays do not fit together")
    probes = Probes(points.astype(np.float64), classes, told)
    model = Resource(about.name, parse_digest(about.model))
    return Made(model, parse_digest(about.reference), key.tobytes(), probes, about.version)


def statement_of(data: bytes, probes: int, *, actor: str, at: int) -> Fingerprint:
    """What the log says of the fingerprint file ``data``."""
    return Fingerprint(actor=actor, at=at, scheme=SCHEMES[VERSION], commitment=commitment(data), probes=probes)


def check_older(at: int, seen: int, words: str) -> None:
    """Raises NotTrusted unless the commitment, logged ``at``, is older than the suspect, ``seen`` first; Unix nanoseconds."""
    if at >= seen:
        raise NotTrusted(
            f"the commitment is younger than the suspect: {words}. What was committed to with the suspect in hand proves "
            "nothing"
        )


def check_drawn(made: Made, model: Predict, reference: Floats) -> None:
    """Draw the probes again from the model, the rows and the key. Raises NotTrusted (the file has others), Invalid."""
    again = draw_probes(model, reference, made.key, len(made.probes.told))
    if again.points.shape != made.probes.points.shape:
        raise NotTrusted("the fingerprint was not made with these rows: they have another width")
    close = np.isclose(again.points, made.probes.points, rtol=1e-4, atol=1e-4).all(axis=1)
    same = close & (again.classes == made.probes.classes).all(axis=1) & (again.told == made.probes.told)
    if same.mean() < _SAME:
        raise NotTrusted(f"only {same.mean():.1%} of the probes are those that the key draws from this model and these rows")


_SAME = 0.99
"""Share of probes that must come out again: another processor rounds a boundary to the other side at times."""
