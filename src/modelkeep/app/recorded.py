"""What every account asked a release and was answered, as the audit logs have it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelkeep.app.histories import known_of, signups_of
from modelkeep.app.premises import Premises
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import AUDIT_SUBJECT
from modelkeep.errors import Missing
from modelkeep.extraction.ladder import Rung
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.serving.recovery import read_bodies
from modelkeep.workflows.covariates import network_covariate
from modelkeep.workflows.decisions import Review, decisions_of
from modelkeep.workflows.registry import Registry

Rows = NDArray[np.float64]
PREDICT, DECEIVED, FLIPPED = "predict", "deceived", "flipped"


@dataclass(frozen=True)
class Recorded:
    """What an account asked a release in one epoch of its keys, in order: ``x`` (n, d), ``served`` (n, k) as it left;
    ``first``: its first receipt; ``deceived``: the rows (m, d) that were answered falsely in a ``share`` of the regions, the
    last time that it was so; ``flipped``, ``flips``: the same of flipped labels; ``shared``: what others may share with it, its
    clusters' names."""

    x: Rows
    served: Rows
    first: str
    share: float
    deceived: Rows
    flips: float
    flipped: Rows
    shared: frozenset[str] = frozenset()


def recorded_answers(premises: Premises, registry: Registry, ref: ReleaseRef) -> dict[str, dict[int, Recorded]]:
    """What every account asked one release and was answered, by epoch of its keys.

    Accounts whose audit key was erased are left out, and so are answers that were recorded before the log committed to the key
    that marked them, by the clocks of two machines: nothing could be claimed by them. Needs the key family ``audit-subject``.
    Raises NotTrusted, Unavailable.
    """
    decisions = decisions_of(registry.view, premises.trust)
    keys = SubjectKeys(premises.records, premises.ring_keys(AUDIT_SUBJECT), premises.entropy, decisions.epochs())
    ladders = premises.ladder.history(registry.book)
    signed_up = known_of(signups_of(premises))
    found: dict[str, dict[int, list[_Part]]] = {}
    for instance in premises.audit_instances():
        origin = premises.audit_origin(instance)
        vkey = encode_vkey(origin, premises.trust.audit_key)
        for index, entry, sealed in read_bodies(premises.audit_files(instance), vkey, origin):
            if entry.kind != PREDICT or entry.release != str(ref):
                continue
            try:
                body = keys.open(sealed, entry.subject, str(ref))
            except Missing:
                continue
            committed = registry.book.committed(entry.subject, ref)[body.epoch : body.epoch + 1]
            if committed and entry.t < committed[0].at:
                continue
            share = flips = 0.0
            if entry.outcome == DECEIVED:
                share = [ruled.ladder for ruled in ladders if ruled.at <= entry.t][-1].steps[Rung.SANCTION].deceive
            elif entry.outcome == FLIPPED:
                flips = _flips(decisions.reviews.get(entry.subject, ()), entry.t)
            found.setdefault(entry.subject, {}).setdefault(body.epoch, []).append(
                _Part(entry.t, f"{instance}/{index}", body.inputs(), body.served_probs(), share, flips, body.network)
            )
    return {
        subject: {epoch: _joined(parts, signed_up(subject)) for epoch, parts in epochs.items()}
        for subject, epochs in found.items()
    }


class _Part(NamedTuple):
    """One record of an answer: time, receipt, questions, answers, the shares of false regions and of flipped labels, and the
    network's name."""

    t: int
    receipt: str
    x: Rows
    served: Rows
    share: float
    flips: float
    network: bytes


def _flips(reviews: Sequence[Review], t: int) -> float:
    """The share of flipped labels in force at ``t``: of the last review before it that said one, else of the first after it,
    for the clocks of two machines differ."""
    said = [review for review in reviews if review.flips]
    before = [review.flips for review in said if review.at <= t]
    return before[-1] if before else said[0].flips if said else 0.0


def _joined(parts: list[_Part], shared: Collection[str] = ()) -> Recorded:
    parts.sort(key=lambda part: part.t)  # in order over all gateways: an e-value looks at the first question of each region
    x, served = np.concatenate([part.x for part in parts]), np.concatenate([part.served for part in parts])
    share = next((part.share for part in reversed(parts) if part.share), 0.0)
    flips = next((part.flips for part in reversed(parts) if part.flips), 0.0)
    false = [part.x for part in parts if share and part.share == share]
    flipped = [part.x for part in parts if flips and part.flips == flips]
    return Recorded(
        x,
        served,
        parts[0].receipt,
        share,
        np.concatenate([x[:0], *false]),
        flips,
        np.concatenate([x[:0], *flipped]),
        frozenset(name for part in parts for name in network_covariate(part.network)).union(shared),
    )


def recorded_questions(premises: Premises, registry: Registry, ref: ReleaseRef) -> dict[str, Rows]:
    """Every account's recorded questions (n, d) to one release; as ``recorded_answers``."""
    found = recorded_answers(premises, registry, ref)
    return {subject: np.concatenate([one.x for _, one in sorted(epochs.items())]) for subject, epochs in found.items()}
