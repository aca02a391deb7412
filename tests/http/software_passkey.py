"""An authenticator in software, ES256, that can also be told to lie. Source: WebAuthn Level 3, sections 6.1, 6.5.4 and 7."""

import base64
import json
from hashlib import sha256

import cbor2
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256

UP, UV, AT = 1, 4, 64


def text(data):
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def raw(said):
    return base64.urlsafe_b64decode(said + "=" * (-len(said) % 4))


class SoftwarePasskey:
    """One credential; ``count`` is its signature counter."""

    def __init__(self, origin, party):
        self.origin, self.party = origin, party
        self.key, self.id, self.count = generate_private_key(SECP256R1()), sha256(repr(id(self)).encode()).digest(), 5

    def create(self, options, **lies):
        """What ``navigator.credentials.create`` gives for ``options``."""
        numbers = self.key.public_key().public_numbers()
        cose = {1: 2, 3: -7, -1: 1, -2: numbers.x.to_bytes(32), -3: numbers.y.to_bytes(32)}
        credential = bytes(16) + len(self.id).to_bytes(2) + self.id + cbor2.dumps(cose)
        data = self._data(lies, AT) + credential
        attestation = cbor2.dumps({"fmt": lies.get("fmt", "none"), "attStmt": lies.get("statement", {}), "authData": data})
        client = self._client("webauthn.create", options, lies)
        return self._answer({"clientDataJSON": text(client), "attestationObject": text(attestation)})

    def get(self, options, **lies):
        """What ``navigator.credentials.get`` gives for ``options``."""
        self.count += lies.get("step", 1)
        client, data = self._client("webauthn.get", options, lies), self._data(lies, 0)
        signed = lies.get("key", self.key).sign(data + sha256(client).digest(), ECDSA(SHA256()))
        if lies.get("broken"):
            signed = signed[:-1] + bytes([signed[-1] ^ 1])
        return self._answer({"clientDataJSON": text(client), "authenticatorData": text(data), "signature": text(signed)})

    def _client(self, kind, options, lies):
        said = {
            "type": lies.get("type", kind),
            "challenge": lies.get("challenge", options["challenge"]),
            "origin": lies.get("origin", self.origin),
            "crossOrigin": lies.get("cross", False),
        }
        return json.dumps(said).encode()

    def _data(self, lies, flags):
        party = sha256(lies.get("party", self.party).encode()).digest()
        return party + bytes([lies.get("flags", UP | UV) | flags]) + self.count.to_bytes(4)

    def _answer(self, response):
        return {"id": text(self.id), "rawId": text(self.id), "type": "public-key", "response": response}
