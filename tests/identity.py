"""A real identity provider (node-oidc-provider) on this machine, and the keys and proofs of its clients, made by PyJWT."""

import base64
import fcntl
import hashlib
import json
import shutil
import subprocess
import sys
import time
import uuid
from pathlib import Path

import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

SOURCE = Path(__file__).with_name("identity_provider")
PLACE = Path(sys.prefix) / "node" / "identity"
RESOURCE = "https://keep.example"


def installed() -> Path:
    """The folder with the packages of ``package-lock.json``, installed once for each content of it."""
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE.parent / "identity.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        wanted = hashlib.sha256((SOURCE / "package-lock.json").read_bytes()).hexdigest()
        stamp = PLACE / "installed"
        if not stamp.exists() or stamp.read_text() != wanted:
            for name in ("package.json", "package-lock.json", ".npmrc"):
                shutil.copy(SOURCE / name, PLACE / name)
            subprocess.run(["npm", "ci", "--no-progress"], cwd=PLACE, check=True, capture_output=True, timeout=300)
            stamp.write_text(wanted)
        for script in SOURCE.glob("*.mjs"):
            if not (PLACE / script.name).exists() or (PLACE / script.name).read_bytes() != script.read_bytes():
                shutil.copy(script, PLACE / script.name)
    return PLACE


def private_jwk(key, kid: str, alg: str) -> dict:
    """A private key as a JWK."""
    kinds = {ec.EllipticCurvePrivateKey: ECAlgorithm, rsa.RSAPrivateKey: RSAAlgorithm, Ed25519PrivateKey: OKPAlgorithm}
    maker = next(maker for kind, maker in kinds.items() if isinstance(key, kind))
    return {**json.loads(maker.to_jwk(key)), "kid": kid, "alg": alg, "use": "sig"}


def public_jwk(key, kid: str = "", alg: str = "") -> dict:
    """Its public half, as an issuer publishes it."""
    found = {name: value for name, value in private_jwk(key, kid, alg).items() if name in {"kty", "crv", "x", "y", "n", "e"}}
    return found | ({"kid": kid, "use": "sig"} if kid else {}) | ({"alg": alg} if alg else {})


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


class Provider:
    """The provider, as a process."""

    def __init__(self, kid: str = "first", key=None) -> None:
        self.key = key or ec_key()
        keys = json.dumps({"keys": [private_jwk(self.key, kid, "ES256")]})
        command = ["node", "provider.mjs", keys]
        self.process = subprocess.Popen(command, cwd=installed(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(self.process.communicate()[1])
        self.issuer = json.loads(line)["issuer"]

    def rotate(self, kid: str, *others: dict) -> None:
        """Sign with a fresh key from now on; ``others``: private JWKs that are published beside it."""
        self.key = ec_key()
        keys = {"keys": [private_jwk(self.key, kid, "ES256"), *others]}
        httpx.post(f"{self.issuer}/test/keys", json=keys, trust_env=False).raise_for_status()

    def token(
        self, client: str = "scoring", *, key: "DpopKey | None" = None, certificate=None, resource: str = RESOURCE
    ) -> str:
        """An access token by client credentials, bound to ``key`` or ``certificate`` if one is given."""
        url, form = f"{self.issuer}/token", {"grant_type": "client_credentials", "resource": resource, "scope": "predict"}
        headers = {}
        if certificate is not None:
            pem = certificate.public_bytes(Encoding.PEM)
            headers["x-test-certificate"] = base64.b64encode(pem).decode()
        nonce = ""
        for _ in range(2):
            if key is not None:
                headers["dpop"] = key.proof("POST", url, nonce=nonce)
            answer = httpx.post(url, data=form, auth=(client, f"{client}-secret"), headers=headers, trust_env=False)
            nonce = answer.headers.get("dpop-nonce", "")
            if answer.status_code == 200:
                return answer.json()["access_token"]
        raise RuntimeError(answer.text)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


class DpopKey:
    """A client's key and the proofs that it makes (RFC 9449, section 4.2)."""

    def __init__(self, key=None, alg: str = "ES256") -> None:
        self.key, self.alg = key or ec_key(), alg
        self.jwk = public_jwk(self.key)

    @property
    def thumbprint(self) -> str:
        """RFC 7638, written out again here."""
        text = json.dumps(self.jwk, sort_keys=True, separators=(",", ":")).encode()
        return base64.urlsafe_b64encode(hashlib.sha256(text).digest()).rstrip(b"=").decode()

    def proof(self, method: str, url: str, token: str = "", *, nonce: str = "", at: float | None = None, **other) -> str:
        claims = {"jti": uuid.uuid4().hex, "htm": method, "htu": url, "iat": int(time.time() if at is None else at)}
        if token:
            claims["ath"] = base64.urlsafe_b64encode(hashlib.sha256(token.encode()).digest()).rstrip(b"=").decode()
        if nonce:
            claims["nonce"] = nonce
        header = {"typ": "dpop+jwt", "jwk": self.jwk} | other.pop("header", {})
        return jwt.encode(claims | other, self.key, algorithm=self.alg, headers=header)
