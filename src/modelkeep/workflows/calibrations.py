"""Calibrations of a release's null: logged beside its profile, and what gateways take in."""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ReleaseRef, Resource
from modelkeep.custody.book import EvidenceBook
from modelkeep.errors import Conflict, Missing
from modelkeep.ledger.predicates import Calibration, DeclaredTool
from modelkeep.ledger.statements import make_statement
from modelkeep.workflows.registry import PROFILE, Desk
from modelkeep.workflows.watch import Calibrated

_DIGITS = 6


class Basis(msgspec.Struct, frozen=True, kw_only=True):
    """What a calibration was fitted over; fields as in the statement."""

    tools: tuple[DeclaredTool, ...] = ()
    accounts: int = 0
    rows: int = 0
    since: int = 0
    until: int = 0
    afresh: bool = False
    reason: str = ""


def calibrations_of(book: EvidenceBook, ref: ReleaseRef) -> tuple[Calibrated, ...]:
    """Every calibration of a release, oldest first, each later than the one before: the log's order stands when a clock went
    backwards."""
    found: list[Calibrated] = []
    for _, said in book.calibrations(ref):
        at = max(said.at, found[-1].at + 1) if found else said.at
        found.append(Calibrated(ref, at, said.kappa))
    return tuple(found)


def bounds_in_force(book: EvidenceBook, ref: ReleaseRef) -> tuple[float, ...] | None:
    """The bounds of the last calibration; None when those of the profile itself stand."""
    found = book.calibrations(ref)
    return found[-1][1].kappa if found else None


def log_calibration(desk: Desk, ref: ReleaseRef, kappa: NDArray[np.float64], basis: Basis, *, actor: str, replaces: int) -> int:
    """Log the bounds ``kappa`` (streams,), rounded up; the log index of the statement. ``replaces``: that of the calibration
    they were fitted on, -1 = none.

    Raises Missing (no release, or no profile), Conflict (somebody calibrated meanwhile), NotTrusted, Unavailable.
    """
    known = desk.registry.release(ref)
    if known.profile_digest is None:
        raise Missing(f"{ref} has no extraction profile: there is nothing to calibrate")
    said = Calibration(
        actor=actor,
        at=desk.clock.now_ns(),
        release=str(ref),
        id=desk.entropy.token(16).hex(),
        replaces=replaces,
        kappa=rounded_up(kappa),
        **msgspec.structs.asdict(basis),
    )
    about = [Resource(known.filename, known.model), Resource(PROFILE, known.profile_digest)]
    (index,) = desk.log_statements([make_statement(said, *about)])
    problem = next((each for each in desk.registry.refresh().problems if each.index == index), None)
    if problem is not None:
        raise Conflict(f"it was logged at {index} and does not count: {problem.why}")
    return index


def rounded_up(kappa: NDArray[np.float64] | Sequence[float]) -> tuple[float, ...]:
    """Bounds as a statement carries them: six decimals, never lower than they are."""
    scale = 10.0**_DIGITS
    return tuple(min(float(np.ceil(round(bound * scale, 3))) / scale, 1.0 - 1.0 / scale) for bound in kappa)
