"""WebAuthn, as py_webauthn does it: what a browser is asked, and whether what it answers holds.

Source: W3C Web Authentication Level 3, sections 7.1 and 7.2. User verification is required, origin and relying party are
pinned, an answer from within another site's frame is refused, and no attestation is asked for: which make a passkey is says
nothing here.
"""

import base64
from typing import NamedTuple

import msgspec
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from webauthn import (
    generate_authentication_options,
    generate_registration_options,
    options_to_json,
    verify_authentication_response,
    verify_registration_response,
)
from webauthn.helpers import parse_attestation_object
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.exceptions import WebAuthnException
from webauthn.helpers.structs import (
    AuthenticatorSelectionCriteria,
    PublicKeyCredentialDescriptor,
    ResidentKeyRequirement,
    UserVerificationRequirement,
)

from modelkeep.core.values import Party
from modelkeep.errors import Unauthenticated

ALGORITHMS = [
    COSEAlgorithmIdentifier.EDDSA,
    COSEAlgorithmIdentifier.ECDSA_SHA_256,
    COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256,
]
FORMATS = ("none", "packed")
"""Attestation statements that are parsed; a browser that is asked for none sends no other."""

_REFUSED = "the passkey's answer does not hold: begin again"
# What the library raises over hostile input, its parsers' errors among it: all of it means no.
_WRONG = (
    WebAuthnException,
    InvalidSignature,
    UnsupportedAlgorithm,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RecursionError,
)


class Registered(NamedTuple):
    """A passkey: credential id, COSE key, signature counter."""

    id: bytes
    public: bytes
    signed: int


class _Response(msgspec.Struct):
    client: str = msgspec.field(name="clientDataJSON", default="")
    attestation: str = msgspec.field(name="attestationObject", default="")


class _Answer(msgspec.Struct):
    raw: str = msgspec.field(name="rawId", default="")
    response: _Response = msgspec.field(default_factory=_Response)


class _Client(msgspec.Struct):
    cross: bool = msgspec.field(name="crossOrigin", default=False)


def creation_options(party: Party, account: str, subject: str, challenge: bytes, known: list[bytes], *, seconds: int) -> bytes:
    """What ``navigator.credentials.create`` is asked, as JSON. ``subject``: a name of the
    account that says nothing; ``seconds``: how long the browser waits for its user."""
    options = generate_registration_options(
        rp_id=party.id,
        rp_name="modelkeep",
        user_name=account,
        user_id=subject.encode(),
        challenge=challenge,
        timeout=seconds * 1000,
        authenticator_selection=AuthenticatorSelectionCriteria(
            resident_key=ResidentKeyRequirement.PREFERRED, user_verification=UserVerificationRequirement.REQUIRED
        ),
        exclude_credentials=[PublicKeyCredentialDescriptor(id=each) for each in known],
        supported_pub_key_algs=ALGORITHMS,
    )
    return options_to_json(options).encode()


def request_options(party: Party, challenge: bytes, known: list[bytes], *, seconds: int) -> bytes:
    """What ``navigator.credentials.get`` is asked, as JSON."""
    options = generate_authentication_options(
        rp_id=party.id,
        challenge=challenge,
        timeout=seconds * 1000,
        allow_credentials=[PublicKeyCredentialDescriptor(id=each) for each in known],
        user_verification=UserVerificationRequirement.REQUIRED,
    )
    return options_to_json(options).encode()


def check_registration(answer: bytes, challenge: bytes, party: Party) -> Registered:
    """The passkey that a browser registered. Raises Unauthenticated."""
    try:
        _check_frame(answer)
        attestation = msgspec.json.decode(answer, type=_Answer).response.attestation
        if parse_attestation_object(_bytes(attestation)).fmt not in FORMATS:
            raise Unauthenticated(_REFUSED)
        found = verify_registration_response(
            credential=answer.decode(),
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            require_user_verification=True,
            supported_pub_key_algs=ALGORITHMS,
        )
    except _WRONG as cause:
        raise Unauthenticated(_REFUSED) from cause
    return Registered(found.credential_id, found.credential_public_key, found.sign_count)


def credential_of(answer: bytes) -> bytes:
    """Which passkey an answer says it is of. Raises Unauthenticated."""
    try:
        return _bytes(msgspec.json.decode(answer, type=_Answer).raw)
    except _WRONG as cause:
        raise Unauthenticated(_REFUSED) from cause


def check_assertion(answer: bytes, challenge: bytes, party: Party, passkey: Registered) -> int:
    """The signature counter after a passkey signed ``challenge``. Raises Unauthenticated (also: the counter did not rise)."""
    try:
        _check_frame(answer)
        found = verify_authentication_response(
            credential=answer.decode(),
            expected_challenge=challenge,
            expected_rp_id=party.id,
            expected_origin=party.origin,
            credential_public_key=passkey.public,
            credential_current_sign_count=passkey.signed,
            require_user_verification=True,
        )
    except _WRONG as cause:
        raise Unauthenticated(_REFUSED) from cause
    return found.new_sign_count


def _check_frame(answer: bytes) -> None:
    """Refuse an answer that was given within another site's page: the library does not look."""
    client = msgspec.json.decode(_bytes(msgspec.json.decode(answer, type=_Answer).response.client), type=_Client)
    if client.cross:
        raise Unauthenticated(_REFUSED)


def _bytes(text: str) -> bytes:
    """Base 64 URL without padding. Raises ValueError."""
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
