"""The ``traceparent`` of the request that is being handled, for what is asked of others meanwhile; empty when it is not traced.

Apart from ``traces``, so that who asks others needs none of OpenTelemetry.
"""

from contextvars import ContextVar

TRACEPARENT: ContextVar[bytes] = ContextVar("traceparent", default=b"")
