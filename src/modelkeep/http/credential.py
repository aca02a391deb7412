"""The credential that came with a request, as ``Presented``: nothing is judged here but its form."""

from modelkeep.access.presented import Presented, Proof
from modelkeep.errors import Unauthenticated
from modelkeep.http.protocol import Request

_HOW = "send an API key or a token in the header 'authorization: Bearer …'"


def presented(request: Request) -> Presented:
    """What says who asks: a bearer token (RFC 6750, section 2.1), a token with a DPoP proof (RFC 9449, section 7.1), or the
    client certificate alone where there is no ``authorization`` header. Raises Unauthenticated (none of these).
    """
    value = request.headers.get(b"authorization", b"")
    if (value[:7] == b"Bearer " or value[:7].lower() == b"bearer ") and value.isascii():
        return Presented(value[7:].decode("ascii").strip(), request.address, request.certificate)
    if not value and request.certificate is not None:
        return Presented("", request.address, request.certificate)
    if value[:5].lower() != b"dpop " or not value.isascii():
        raise Unauthenticated(_HOW)
    headers = request.headers
    jwt = headers.get(b"dpop", b"").decode("latin-1")
    proof = Proof(jwt, request.method, headers.get(b"host", b""), request.target)
    return Presented(value[5:].decode("ascii").strip(), request.address, request.certificate, proof)
