"""A small conformance fake of the Transit engine's HTTP API: not Vault, and no proof that Vault behaves so.

It follows the documented API (versions, minimum versions for unwrapping, wrapping and keeping, trim, lists, upserts, error
texts and statuses), encrypts with real AES-256-GCM and real associated data, and refuses what the documents say is refused.
Source: the Transit API pages of Vault (developer.hashicorp.com/vault/api-docs/secret/transit) and OpenBao.
"""

import base64
import binascii
import json
import os
import re
import ssl
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

TOKEN = "hvs.CAESIJ-the-token-of-the-fake"
READER = "hvs.a-gateway-reads-and-decrypts"
MOUNT = "transit"


class Refusal(Exception):
    """An HTTP status and the errors that go with it."""

    def __init__(self, status: int, *errors: str) -> None:
        self.status, self.errors = status, errors


class TransitKey:
    """One named key with its versions; ``secrets[n - 1]`` is version n, None once trimmed."""

    def __init__(self, kind: str, *, exportable: bool = False, derived: bool = False, plaintext_backup: bool = False) -> None:
        self.kind, self.exportable, self.derived, self.plaintext_backup = kind, exportable, derived, plaintext_backup
        self.secrets: list[bytes | None] = []
        self.created: list[int] = []
        self.min_decryption, self.min_encryption, self.min_available = 1, 0, 0
        self.deletion_allowed = False
        self.rotate()

    @property
    def latest(self) -> int:
        return len(self.secrets)

    def rotate(self) -> None:
        self.secrets.append(os.urandom(32))
        self.created.append(int(time.time()))

    def show(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "type": self.kind,
            "deletion_allowed": self.deletion_allowed,
            "derived": self.derived,
            "exportable": self.exportable,
            "allow_plaintext_backup": self.plaintext_backup,
            "keys": {str(n): self.created[n - 1] for n in range(self.min_decryption, self.latest + 1)},
            "latest_version": self.latest,
            "min_decryption_version": self.min_decryption,
            "min_encryption_version": self.min_encryption,
            "min_available_version": self.min_available,
            "supports_encryption": True,
            "supports_decryption": True,
            "supports_derivation": True,
            "supports_signing": False,
        }

    def configure(self, body: dict[str, Any]) -> None:
        decryption = body.get("min_decryption_version", self.min_decryption) or 1
        encryption = body.get("min_encryption_version", self.min_encryption)
        if decryption > self.latest:
            raise Refusal(400, f"cannot set min decryption version of {decryption}, latest key version is {self.latest}")
        if encryption > self.latest:
            raise Refusal(400, f"cannot set min encryption version of {encryption}, latest key version is {self.latest}")
        if 0 < encryption < decryption:
            raise Refusal(400, "cannot set min encryption/decryption values; min encryption version must not be below it")
        if decryption < self.min_available:
            raise Refusal(400, f"cannot set min decryption version of {decryption}, it was trimmed")
        self.min_decryption, self.min_encryption = decryption, encryption
        self.deletion_allowed = body.get("deletion_allowed", self.deletion_allowed)

    def trim(self, version: int) -> None:
        if self.min_encryption == 0 or self.min_decryption == 0:
            raise Refusal(400, "minimum available version cannot be set when minimum encryption version is not set")
        if not self.min_available < version <= min(self.min_encryption, self.min_decryption):
            raise Refusal(400, "minimum available version cannot be higher than minimum encryption or decryption version")
        self.min_available = version
        self.secrets[: version - 1] = [None] * (version - 1)

    def encrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        version = body.get("key_version", 0) or self.latest
        if version > self.latest or version < self.min_encryption:
            raise Refusal(400, "requested version for encryption is less than the minimum encryption key version")
        nonce = os.urandom(12)
        secret = self.secrets[version - 1]
        assert secret is not None
        sealed = nonce + AESGCM(secret).encrypt(nonce, decoded(body, "plaintext"), decoded(body, "associated_data"))
        return {"ciphertext": f"vault:v{version}:{base64.b64encode(sealed).decode()}", "key_version": version}

    def decrypt(self, body: dict[str, Any]) -> dict[str, Any]:
        found = re.fullmatch(r"vault:v(\d+):(.*)", body.get("ciphertext", ""))
        if found is None:
            raise Refusal(400, "invalid ciphertext: no prefix")
        version = int(found[1])
        if version > self.latest:
            raise Refusal(400, "invalid ciphertext: version is too new")
        if version < self.min_decryption:
            raise Refusal(400, "ciphertext or signature version is disallowed by policy (too old)")
        try:
            sealed = base64.b64decode(found[2], validate=True)
        except binascii.Error:
            raise Refusal(400, "invalid ciphertext: could not decode base64") from None
        secret = self.secrets[version - 1]
        if secret is None:
            raise Refusal(400, "no such version")
        try:
            plain = AESGCM(secret).decrypt(sealed[:12], sealed[12:], decoded(body, "associated_data"))
        except (InvalidTag, ValueError):
            raise Refusal(400, "cipher: message authentication failed") from None
        return {"plaintext": base64.b64encode(plain).decode()}


def decoded(body: dict[str, Any], field: str) -> bytes:
    """A base64 field of a request; empty when it is not there."""
    try:
        return base64.b64decode(body.get(field, ""), validate=True)
    except binascii.Error:
        raise Refusal(400, f"failed to base64-decode {field}") from None


class Transit:
    """The server. ``sealed``: answer 503 to everything; ``keys``: what it holds; ``seen``: method and path of each request."""

    def __init__(self) -> None:
        self.sealed = False
        self.keys: dict[str, TransitKey] = {}
        self.seen: list[str] = []
        self.namespaces: set[str | None] = set()
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"transit": self}))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def over_tls(self, context: ssl.SSLContext) -> None:
        """Speak TLS from the next connection on."""
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, token: str | None, body: dict[str, Any]) -> dict[str, Any] | None:
        """What to say, None for 204. Raises Refusal."""
        if self.sealed:
            raise Refusal(503, "Vault is sealed")
        reads = token == READER and (method == "GET" or path.startswith(f"/v1/{MOUNT}/decrypt/"))
        if token != TOKEN and not reads:
            raise Refusal(403, "permission denied")
        if not path.startswith(f"/v1/{MOUNT}/"):
            raise Refusal(404, f"no handler for route {path!r}")
        room, _, rest = path.removeprefix(f"/v1/{MOUNT}/").partition("/")
        name, _, verb = rest.partition("/")
        if room in ("encrypt", "decrypt") and method == "POST":
            return self._crypt(room, name, body)
        if room != "keys":
            raise Refusal(404)
        if method == "LIST":
            if not self.keys:
                raise Refusal(404)
            return {"keys": sorted(self.keys)}
        return self._manage(method, name, verb, body)

    def _crypt(self, room: str, name: str, body: dict[str, Any]) -> dict[str, Any]:
        if name not in self.keys and room == "encrypt":  # as Vault does for whoever may create
            self.keys[name] = TransitKey(body.get("type") or "aes256-gcm96")
        if name not in self.keys:
            raise Refusal(400, "encryption key not found")
        key = self.keys[name]
        return key.encrypt(body) if room == "encrypt" else key.decrypt(body)

    def _manage(self, method: str, name: str, verb: str, body: dict[str, Any]) -> dict[str, Any] | None:
        if method == "POST" and not verb:
            if name not in self.keys:  # a second creation changes nothing, and is no error
                self.keys[name] = TransitKey(
                    body.get("type", "aes256-gcm96"),
                    exportable=body.get("exportable", False),
                    derived=body.get("derived", False),
                    plaintext_backup=body.get("allow_plaintext_backup", False),
                )
            return self.keys[name].show(name)
        if name not in self.keys:
            raise Refusal(404 if method == "GET" else 400, *([] if method == "GET" else ["no existing key named " + name]))
        key = self.keys[name]
        if method == "GET":
            return key.show(name)
        if method == "DELETE":
            if not key.deletion_allowed:
                raise Refusal(400, "error deleting policy: deletion is not allowed for this policy")
            del self.keys[name]
        elif verb == "rotate":
            key.rotate()
        elif verb == "config":
            key.configure(body)
        elif verb == "trim":
            key.trim(body["min_available_version"])
        else:
            raise Refusal(404)
        return None


class Handler(BaseHTTPRequestHandler):
    """HTTP around ``Transit.answer``."""

    transit: Transit
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet
    disable_nagle_algorithm = True

    def do_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        self.transit.seen.append(f"{self.command} {self.path}")
        self.transit.namespaces.add(self.headers.get("X-Vault-Namespace"))
        try:
            with self.transit.lock:
                said = self.transit.answer(self.command, self.path, self.headers.get("X-Vault-Token"), body)
            self._send(204 if said is None else 200, {"data": said} if said is not None else None)
        except Refusal as refusal:
            self._send(refusal.status, {"errors": list(refusal.errors)})

    do_GET = do_POST = do_PUT = do_LIST = do_DELETE = do_any  # noqa: N815 - http.server asks for these names

    def _send(self, status: int, body: dict[str, Any] | None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
