"""Errors as HTTP: the one place that knows status codes.

Every error answer is problem+json (RFC 9457) with the stable ``code`` of the error tree, and ``error`` beside ``detail``
because clients of the Open Inference Protocol read that. Nothing else of the error leaves the process.
"""

import math

import msgspec

from modelkeep import errors
from modelkeep.access.dpop import INVALID, NONCE
from modelkeep.access.sessions import MULTI_FACTOR
from modelkeep.crypto.jose import ALGORITHMS
from modelkeep.http.protocol import BadRequest, Response
from modelkeep.http.work import puzzle

STATUS: dict[type[errors.ModelkeepError], int] = {
    errors.Unauthenticated: 401,
    errors.StepUpRequired: 401,
    errors.Denied: 403,
    errors.ReviewRequired: 403,
    errors.WorkRequired: 403,
    errors.Refused: 403,
    errors.NotTrusted: 423,
    errors.Quarantined: 423,
    errors.NotAdmitted: 423,
    errors.OverBudget: 429,
    errors.Invalid: 400,
    errors.TooLarge: 413,
    errors.Missing: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
    errors.Sealed: 503,
    errors.ModelkeepError: 500,
}
"""HTTP status by class; a class that is not listed takes its nearest base."""

TITLE = {
    400: "The request is malformed",
    401: "Not authenticated",
    403: "Not permitted",
    404: "Not found",
    405: "Method not allowed",
    408: "The request came too slowly",
    409: "Conflict",
    413: "The request is too large",
    417: "The expectation cannot be met",
    423: "Locked",
    429: "Over the limit",
    431: "The request's headers are too large",
    500: "Internal error",
    501: "Not implemented",
    503: "Not available now",
    505: "HTTP version not supported",
}


class _Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    type: str
    title: str
    status: int
    detail: str
    code: str
    error: str
    retry_after: float = 0.0
    violated_policies: tuple[str, ...] = msgspec.field(default=(), name="violated-policies")


_ENCODER = msgspec.json.Encoder()
_CONTENT_TYPE = b"application/problem+json"


def status_of(error: errors.ModelkeepError) -> int:
    """The HTTP status of an error."""
    return next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)


def problem(error: errors.ModelkeepError) -> Response:
    """The answer that tells a client about ``error``."""
    status = status_of(error)
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, errors.OverBudget):
        return _over(error, status)
    if isinstance(error, errors.Unauthenticated | errors.WorkRequired):
        headers = challenge(error)
    elif status == 503:
        headers = ((b"retry-after", b"1"),)
    return _answer(status, error.code, str(error), headers)


def challenge(error: errors.Unauthenticated | errors.WorkRequired) -> tuple[tuple[bytes, bytes], ...]:
    """What to solve, or how to authenticate: RFC 6750, section 3; RFC 9449, sections 7.1, 8 and 9; RFC 9470, section 3."""
    if isinstance(error, errors.WorkRequired):  # any answer may say which credentials would help: RFC 9110, section 11.6.1
        return (*puzzle(error), *(() if error.factor is None else _step_up(error.factor)))
    if isinstance(error, errors.StepUpRequired):
        return _step_up(error)
    fault, nonce = error.fault, error.nonce
    if fault in (INVALID, NONCE):
        algorithms = " ".join(ALGORITHMS)
        challenge = (b"www-authenticate", f'DPoP realm="modelkeep", error="{fault}", algs="{algorithms}"'.encode())
        return (challenge, (b"dpop-nonce", nonce.encode())) if nonce else (challenge,)
    extra = f', error="{fault}"' if fault else ""
    return ((b"www-authenticate", f'Bearer realm="modelkeep"{extra}'.encode()),)


def _over(error: errors.OverBudget, status: int) -> Response:
    """With Retry-After, and the name and terms of the limit as draft-ietf-httpapi-ratelimit-headers-11 has them (sections 3, 4
    and 5.1; the type stays ours)."""
    wait = b"%d" % max(1, math.ceil(min(error.retry_after, 86_400.0)))
    headers: tuple[tuple[bytes, bytes], ...] = ((b"retry-after", wait),)
    if error.policy and error.terms:
        name = error.policy.encode()
        headers += (
            (b"ratelimit-policy", b'"%s";%s' % (name, error.terms.encode())),
            (b"ratelimit", b'"%s";r=0;t=%s' % (name, wait)),
        )
    violated = (error.policy,) if error.policy else ()
    return _answer(status, error.code, str(error), headers, round(min(error.retry_after, 86_400.0), 3), violated)


def _step_up(error: errors.StepUpRequired) -> tuple[tuple[bytes, bytes], ...]:
    """The challenge of RFC 9470, section 3: which authentication would do, and how recent it must be."""
    asked = f'Bearer realm="modelkeep", error="insufficient_user_authentication", acr_values="{MULTI_FACTOR}"'
    age = f', max_age="{error.max_age}"' if error.max_age else ""
    link = ((b"link", f'<{error.link}>; rel="authenticate"'.encode()),) if error.link else ()
    return ((b"www-authenticate", (asked + age).encode()), *link)


def bad_request(refusal: BadRequest) -> Response:
    """The answer to a request that broke the protocol itself."""
    again = ((b"retry-after", b"1"),) if refusal.status == 503 else ()
    return _answer(refusal.status, refusal.code, refusal.detail, again)


def _answer(
    status: int,
    code: str,
    detail: str,
    headers: tuple[tuple[bytes, bytes], ...],
    retry_after: float = 0.0,
    violated: tuple[str, ...] = (),
) -> Response:
    kind = f"urn:x-modelkeep:error:{code}"
    body = _Problem(kind, TITLE.get(status, "Error"), status, detail, code, detail, retry_after, violated)
    return Response(status, _ENCODER.encode(body), _CONTENT_TYPE, headers)
