"""How evidence is rebuilt from what was recorded, by the settings of a keep: the same for gateways and for who explains it."""

from collections.abc import Callable, Sequence

from modelkeep.adapters.coldfile import ColdFile
from modelkeep.app.premises import Premises
from modelkeep.app.signups import Signups
from modelkeep.extraction.guard import Guard
from modelkeep.extraction.profile import Profile
from modelkeep.serving.bodies import SubjectKeys
from modelkeep.workflows.calibrations import calibrations_of
from modelkeep.workflows.decisions import Decisions
from modelkeep.workflows.evidence import AuditFolder, History
from modelkeep.workflows.registry import Registry


def history_of(
    here: Premises, logs: Callable[[], Sequence[AuditFolder]], keys: SubjectKeys, decisions: Decisions, registry: Registry
) -> History:
    """What ``logs`` hold, with all that was decided meanwhile."""
    return History(
        logs,
        keys,
        decisions.cleared_at,
        decisions.cases,
        lambda ref: calibrations_of(registry.book, ref),
        ladders=lambda: here.ladder.history(registry.book),
        networks="network" in here.settings.extraction.clusters,
    )


def guard_of(here: Premises) -> Callable[[Profile], Guard]:
    """What makes a fresh guard for a profile."""
    extraction, cold = here.settings.extraction, here.directory / "run"
    return lambda profile: Guard(profile, alpha=extraction.alpha, cold=ColdFile(cold), in_memory=extraction.accounts_in_memory)


def signups_of(here: Premises) -> Signups | None:
    """Who signed up by now, where that is a covariate. Raises Unavailable, NotTrusted."""
    if "signup" not in here.settings.extraction.clusters:
        return None
    signups = Signups(here.records)
    signups.look()
    return signups


def known_of(signups: Signups | None) -> Callable[[str], tuple[str, ...]]:
    """Covariates of an account that are not of its requests."""
    return signups.of if signups is not None else lambda _subject: ()
