"""A credential as a client presented it, with everything that may bind it to that client: one frozen value.

The edge builds it once a request, so it holds what the request holds already and computes nothing. Who presents a bearer token
pays for three fields; only a DPoP proof needs to know what was asked of which host.
"""

from typing import NamedTuple

import msgspec

from modelkeep.core.hidden import never_pickled


class Proof(NamedTuple):
    """A DPoP proof and the request it must have been made for (RFC 9449, section 4.3), all as they came.

    ``jwt``: the ``dpop`` header, "" when it was missing; ``host``: the ``host`` header; ``target``: path and query;
    ``accepted``: it was checked already, for this very request.
    """

    jwt: str
    method: bytes
    host: bytes
    target: bytes
    accepted: bool = False


class Certificate(NamedTuple):
    """A client certificate that the TLS handshake checked against the client authorities.

    ``digest``: SHA-256 of its DER form, 32 bytes; ``names``: its subject alternative names, as ``uri:…`` and ``dns:…``;
    ``expires``: Unix seconds.
    """

    digest: bytes
    names: tuple[str, ...]
    expires: int


@never_pickled
class Presented(msgspec.Struct, frozen=True):
    """What came with one request to say who asks.

    ``token``: an API key or a token, "" when only a certificate was shown; ``address``: the client's IP address;
    ``certificate``: what it proved in the TLS handshake; ``proof``: of the DPoP scheme, None for a bearer token.
    """

    token: str
    address: str = ""
    certificate: Certificate | None = None
    proof: Proof | None = None

    def proven(self) -> "Presented":
        """The same, to ask once more about one request that was let in: a proof passes once, and it did."""
        return (
            self
            if self.proof is None
            else Presented(self.token, self.address, self.certificate, self.proof._replace(accepted=True))
        )

    def __repr__(self) -> str:
        return f"Presented(…, {self.address!r})"
