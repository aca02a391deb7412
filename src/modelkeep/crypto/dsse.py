"""DSSE envelopes that need both signatures of an identity.

Source: DSSE protocol 1.0.2 and its JSON envelope (github.com/secure-systems-lab/dsse). The envelope is an ordinary one with
two ordinary signatures over the standard PAE, so stock tools read it; our rule, threshold 2 of 2 of one identity, is stricter
than theirs.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from typing import Annotated

import msgspec
from msgspec import Meta

from modelkeep.core.values import to_json
from modelkeep.crypto.signatures import PairSignature, PublicIdentity, StatementSigner
from modelkeep.errors import Invalid, NotTrusted

MAX_SIGNATURES = 8


class Signature(msgspec.Struct, frozen=True):
    """One signature of an envelope; ``sig`` is standard base64, ``keyid`` a hint that nothing authenticates."""

    sig: str
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename={"payload_type": "payloadType"}):
    """A parsed DSSE envelope, checked for shape only: ``payload`` is still base64 and still unverified."""

    payload: str
    payload_type: str
    signatures: Annotated[tuple[Signature, ...], Meta(min_length=1, max_length=MAX_SIGNATURES)]

    def unverified_payload(self) -> bytes:
        """The payload's bytes, which nobody has vouched for. Raises Invalid (not base64)."""
        return _unbase64(self.payload)


_DECODER = msgspec.json.Decoder(Envelope)


def pae(payload_type: str, payload: bytes) -> bytes:
    """The pre-authentication encoding, which is what gets signed. Source: DSSE protocol 1.0.2, "Signature definition"."""
    name = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(name), name, len(payload), payload)


def sign_envelope(payload_type: str, payload: bytes, *signers: StatementSigner) -> bytes:
    """The canonical JSON of an envelope around ``payload`` with both signatures of each of ``signers`` (one to four)."""
    signatures: list[Signature] = []
    for signer in signers:
        pair = signer.sign(pae(payload_type, payload))
        ed25519_id, mldsa65_id = signer.public.key_ids
        signatures += [Signature(_base64(pair.ed25519), ed25519_id), Signature(_base64(pair.mldsa65), mldsa65_id)]
    if not 1 <= len(signers) <= MAX_SIGNATURES // 2:
        raise Invalid(f"an envelope has one to {MAX_SIGNATURES // 2} signers, not {len(signers)}")
    return to_json(Envelope(_base64(payload), payload_type, tuple(signatures)))


def parse_envelope(data: bytes) -> Envelope:
    """Parse without verifying anything. Raises Invalid."""
    try:
        return _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise Invalid(f"this is not a DSSE envelope: {cause}") from cause


def check_envelope(envelope: Envelope, identity: PublicIdentity, payload_type: str) -> bytes:
    """The payload of ``envelope``, once both keys of ``identity`` are seen to have signed it as a ``payload_type``.

    Raises NotTrusted when the type is another, when a signature is missing or does not hold; Invalid when it is not base64.
    """
    if envelope.payload_type != payload_type:
        raise NotTrusted(f"the envelope holds {envelope.payload_type[:80]!r}, not {payload_type!r}")
    found = {signature.keyid: signature.sig for signature in envelope.signatures}
    ed25519_id, mldsa65_id = identity.key_ids
    if ed25519_id not in found or mldsa65_id not in found:
        have = sum(key in found for key in (ed25519_id, mldsa65_id))
        raise NotTrusted(f"the envelope carries {have} of the 2 signatures that {identity.name} must give")
    payload = envelope.unverified_payload()
    pair = PairSignature(_unbase64(found[ed25519_id]), _unbase64(found[mldsa65_id]))
    identity.check(pae(envelope.payload_type, payload), pair)
    return payload


def open_envelope(data: bytes, identity: PublicIdentity, payload_type: str) -> bytes:
    """Parse and check in one step; the payload's bytes. Raises NotTrusted, Invalid."""
    return check_envelope(parse_envelope(data), identity, payload_type)


def _base64(data: bytes) -> str:
    return b64encode(data).decode("ascii")


def _unbase64(text: str) -> bytes:
    try:
        return b64decode(text.encode("ascii"), validate=True)
    except (Base64Error, ValueError) as cause:
        raise Invalid("the envelope carries something that is not standard base64") from cause
