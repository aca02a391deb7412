"""The whole error tree, grouped by what the caller does next.

``code`` is stable and documented in docs/errors.md; the message is one sentence for the operator: what, where, what to do.
No HTTP status and no exit code here: ``http/`` and ``cli/`` map the classes.
"""

from typing import ClassVar


class ModelkeepError(Exception):
    """Base class of everything that modelkeep raises on purpose."""

    code: ClassVar[str] = "error"


class Refused(ModelkeepError):
    """A check said no: never retry, never fall back."""

    code = "refused"


class Unauthenticated(Refused):
    """Who you are was not proven: no credential, or one that is unknown, expired, revoked or forged.

    ``fault``: what the client's protocol calls it (RFC 6750, section 3.1; RFC 9449, section 12.2), "" = nothing; ``nonce``:
    what the next proof of possession must contain.
    """

    code = "unauthenticated"

    def __init__(self, message: str, *, fault: str = "", nonce: str = "") -> None:
        super().__init__(message)
        self.fault, self.nonce = fault, nonce


class StepUpRequired(Unauthenticated):
    """Who you are is known; before more is answered, show a second factor again (RFC 9470).

    ``max_age``: how many seconds old it may be; ``link``: a page where to, "" = none is known.
    """

    code = "step-up-required"

    def __init__(self, message: str, max_age: int = 0, link: str = "") -> None:
        super().__init__(message)
        self.max_age, self.link = max_age, link


class Denied(Refused):
    """Who you are is known, and you may not do this."""

    code = "denied"


class ReviewRequired(Denied):
    """The account is held until a person has looked at its extraction evidence."""

    code = "review-required"


class WorkRequired(Denied):
    """Who you are is known; this question is answered for a proof of work (docs/formats/puzzle.md).

    ``challenge``: what the puzzle is made from; ``hashes``: that solving it takes on average; ``seconds``: how long it is good;
    ``factor``: the second factor that does instead, None = none does.
    """

    code = "work-required"

    def __init__(
        self, message: str, challenge: bytes = b"", hashes: int = 0, seconds: int = 0, factor: StepUpRequired | None = None
    ) -> None:
        super().__init__(message)
        self.challenge, self.hashes, self.seconds, self.factor = challenge, hashes, seconds, factor


class NotTrusted(Refused):
    """A signature, digest, proof or container does not hold."""

    code = "not-trusted"


class NotAdmitted(Refused):
    """The release is not promoted, or the admission policy does not accept its evidence."""

    code = "not-admitted"


class Quarantined(Refused):
    """The release is in quarantine."""

    code = "quarantined"


class OverBudget(ModelkeepError):
    """A limit, quota or budget is spent; ``retry_after`` is the seconds until asking again can help.

    ``policy``: name of the limit, "" = it has none; ``terms``: what it allows, such as ``q=200;w=2`` (units, seconds).
    """

    code = "over-budget"

    def __init__(self, message: str, retry_after: float, policy: str = "", terms: str = "") -> None:
        super().__init__(message)
        self.retry_after, self.policy, self.terms = retry_after, policy, terms


class Invalid(ModelkeepError):
    """The input is malformed: mend it."""

    code = "invalid"


class TooLarge(Invalid):
    """The input is larger than a stated bound."""

    code = "too-large"


class Missing(ModelkeepError):
    """The thing named does not exist."""

    code = "missing"


class Conflict(ModelkeepError):
    """The thing changed meanwhile, exists already, or is held by another process."""

    code = "conflict"


class Unavailable(ModelkeepError):
    """A backend failed: retrying may help."""

    code = "unavailable"


class Sealed(Unavailable):
    """The key compartment that this needs has not been opened with its passphrase."""

    code = "sealed"
