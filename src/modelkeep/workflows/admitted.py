"""What may be served right now: releases that are loaded and admitted, under a lease of one second."""

from collections.abc import Mapping

import msgspec
import numpy as np
from numpy.typing import NDArray

from modelkeep.core.values import ModelSignature, ReleaseRef
from modelkeep.errors import Missing, ModelkeepError, Unavailable
from modelkeep.extraction.layer import Layer
from modelkeep.extraction.profile import Profile
from modelkeep.policy.engine import Target
from modelkeep.serving.runtime import OutputPlan, RemoteRuntime, Runtime
from modelkeep.serving.validate import InputPlan, Usual
from modelkeep.workflows.marks import Marking
from modelkeep.workflows.watch import Watching

LEASE = 1.0
"""Seconds for which one look at the releases log allows serving (promises P3 and P5)."""


class Served(msgspec.Struct, frozen=True):
    """A release that is loaded and admitted, with everything that is computed once.

    ``text``: the reference in words; ``row_seconds``: what a row costs to run, measured at load; ``remote``: the
    runtime, when another server runs the model; ``profile`` and ``watch`` are None when it has no extraction profile (only an
    admission policy that allows that lets it get here); ``markers``: the watermark by subject, filled as accounts come;
    ``usual``: what inputs usually look like; ``background``: reference rows that explanations are measured against, shape
    (rows, features). Both are None when the release has none. ``layer``: the inner layer that evidence looks at, None when it
    looks at none.
    """

    ref: ReleaseRef
    text: str
    target: Target
    interface: ModelSignature
    inputs: InputPlan
    outputs: OutputPlan
    runtime: Runtime
    profile: Profile | None
    watch: Watching | None
    row_seconds: float
    remote: RemoteRuntime | None
    markers: dict[str, Marking]
    usual: Usual | None = None
    background: NDArray[np.float64] | None = None
    layer: Layer | None = None


class Admitted(msgspec.Struct, frozen=True):
    """What may be served, replaced as a whole by the follower.

    ``newest``: the highest served version by name; ``refused``: releases that the log knows and that may not be served, with
    the reason; ``until``: monotonic second at which the lease ends; ``aliases``: what each (name, alias) is answered by.
    """

    models: Mapping[ReleaseRef, Served]
    newest: Mapping[str, ReleaseRef]
    refused: Mapping[ReleaseRef, ModelkeepError]
    until: float
    aliases: Mapping[tuple[str, str], ReleaseRef] = {}

    def check_lease(self, now: float) -> None:
        """Raise Unavailable when the lease is over."""
        if now > self.until:
            raise Unavailable("what may be served could not be checked within the last second: see the gateway's log")

    def find(self, name: str, version: int | str | None, now: float) -> Served:
        """The release to ask; ``version``: a number, an alias, or None for the newest.

        Raises Unavailable (lease over, being loaded), Missing (also: an alias of what is not served), Quarantined, NotAdmitted,
        NotTrusted.
        """
        self.check_lease(now)
        if isinstance(version, str):
            return self._named(name, version)
        ref = self.newest.get(name) if version is None else ReleaseRef(name, version)
        found = self.models.get(ref) if ref is not None else None
        if found is None:
            raise self._why_not(name, ref)
        return found

    def _named(self, name: str, alias: str) -> Served:
        ref = self.aliases.get((name, alias))
        found = self.models.get(ref) if ref is not None else None
        if found is None:
            reason = self.refused.get(ref) if ref is not None else None
            if isinstance(reason, Unavailable):
                raise type(reason)(*reason.args)
            raise Missing(f"{name[:64]}@{alias[:64]} names no release that is served here{f': {reason}' if reason else ''}")
        return found

    def _why_not(self, name: str, ref: ReleaseRef | None) -> ModelkeepError:
        known = sorted(known for known in self.refused if (known == ref if ref else known.name == name))
        if known:
            reason = self.refused[known[-1]]
            return type(reason)(*reason.args)  # a fresh one: an exception object carries the traceback of its last raise
        return Missing(f"no release {ref} is served here" if ref else f"no model {name[:64]!r} is served here")


NOTHING = Admitted({}, {}, {}, float("-inf"))
"""What is served before the first look at the log."""
