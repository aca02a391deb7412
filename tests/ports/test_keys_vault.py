"""What only Vault can do wrong, against a fake of Transit's API: tokens, seals, keys made by others, the order of versions."""

import base64
import datetime
import hashlib
import http.server
import ipaddress
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from key_providers import Vault
from transit_fake import READER, TOKEN, TransitKey

from modelkeep.adapters.keys.uri import open_keys
from modelkeep.errors import Conflict, Denied, Missing, NotTrusted, Unavailable

KEY, CONTEXT = bytes(range(32)), b"context"


@pytest.fixture
def vault(tmp_path, monkeypatch):
    monkeypatch.delenv("VAULT_TOKEN_FILE", raising=False)
    monkeypatch.delenv("VAULT_NAMESPACE", raising=False)
    made = Vault(tmp_path, monkeypatch)
    yield made
    made.close()


@pytest.fixture
def keys(vault):
    found = vault.open()
    found.create()
    return found


@pytest.fixture
def held(vault):
    """The key as the server has it."""
    return lambda: vault.transit.keys["kek-0"]


def test_what_is_sent_is_transits_api_and_the_context_is_its_associated_data(keys, vault, held):
    """Independent check: the server's secret opens the ciphertext with AES-GCM and SHA-512(context)."""
    vault.transit.seen.clear()
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    assert vault.transit.seen == ["GET /v1/transit/keys/kek-0", "POST /v1/transit/encrypt/kek-0"]
    head, version, body = wrapped.decode().split(":")
    assert (head, version) == ("vault", "v1")
    sealed = base64.b64decode(body)
    assert AESGCM(held().secrets[0]).decrypt(sealed[:12], sealed[12:], hashlib.sha512(CONTEXT).digest()) == KEY


def test_it_makes_keys_that_cannot_be_exported(keys, held):
    assert (held().kind, held().exportable, held().plaintext_backup, held().derived) == ("aes256-gcm96", False, False, False)
    assert not held().deletion_allowed


@pytest.mark.parametrize(
    "other",
    [
        TransitKey("aes256-gcm96", exportable=True),
        TransitKey("aes256-gcm96", plaintext_backup=True),
        TransitKey("aes256-gcm96", derived=True),
        TransitKey("rsa-4096"),
    ],
    ids=["exportable", "backup", "derived", "rsa"],
)
def test_a_key_of_others_that_could_leave_or_does_not_bind_is_refused(keys, vault, other):
    held = keys.wrapper()
    vault.transit.keys["kek-0"] = other
    for use in (keys.versions, keys.wrapper, keys.rotate):
        with pytest.raises(NotTrusted, match="not fit"):
            use()
    assert held.key_id == "vault:transit/kek-0/1"


def test_a_refused_token_is_denied_and_not_shown(keys, vault):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    vault.patch.setenv("VAULT_TOKEN", "hvs.wrong-token-97531")
    for use in (keys.versions, keys.rotate, lambda: wrapper.wrap(KEY, CONTEXT), lambda: wrapper.unwrap(wrapped, CONTEXT)):
        with pytest.raises(Denied, match="token") as raised:
            use()
        assert "97531" not in str(raised.value)


def test_a_gateway_needs_to_read_and_to_decrypt_and_nothing_else(keys, vault):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    keys.rotate()
    vault.patch.setenv("VAULT_TOKEN", READER)
    held = vault.open().opens("vault:transit/kek-0/1")
    assert held.unwrap(wrapped, CONTEXT) == KEY
    with pytest.raises(NotTrusted):
        held.unwrap(wrapped, b"other")
    vault.transit.keys["kek-0"].min_decryption = 2
    with pytest.raises(Denied, match="disabled"):
        held.unwrap(wrapped, CONTEXT)
    for use in (vault.open().rotate, lambda: vault.open().wrapper().wrap(KEY, CONTEXT)):
        with pytest.raises(Denied, match="token"):
            use()


def test_a_token_file_wins_and_is_read_anew(keys, vault, tmp_path):
    (tmp_path / "token").write_text("hvs.expired\n")
    vault.patch.setenv("VAULT_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(Denied):
        keys.versions()
    (tmp_path / "token").write_text(TOKEN + "\n")
    assert len(keys.versions()) == 1
    (tmp_path / "token").unlink()
    with pytest.raises(Unavailable, match="token"):
        keys.versions()


def test_a_sealed_vault_is_unavailable_and_comes_back(keys, vault):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    vault.transit.sealed = True
    for use in (keys.versions, lambda: wrapper.wrap(KEY, CONTEXT), lambda: wrapper.unwrap(wrapped, CONTEXT)):
        with pytest.raises(Unavailable, match="sealed"):
            use()
    vault.transit.sealed = False
    assert wrapper.unwrap(wrapped, CONTEXT) == KEY


def test_the_namespace_goes_with_every_request(keys, vault):
    vault.transit.namespaces.clear()
    vault.patch.setenv("VAULT_NAMESPACE", "team/models")
    vault.open().wrapper().wrap(KEY, CONTEXT)
    assert vault.transit.namespaces == {"team/models"}


def test_another_mount_is_missing(keys, vault):
    with pytest.raises(Missing):
        open_keys("vault:elsewhere/kek-0").versions()


def test_a_key_that_is_gone_is_not_made_again_by_wrapping(keys, vault):
    """Transit makes a key that is missing when somebody encrypts; asking for the wrapper does not."""
    del vault.transit.keys["kek-0"]
    with pytest.raises(Missing):
        keys.wrapper()
    assert vault.transit.keys == {}


def test_versions_are_disabled_enabled_and_destroyed_in_their_order(keys, held):
    for _ in range(3):
        keys.rotate()
    with pytest.raises(Conflict, match="oldest"):
        keys.disable(2)
    keys.disable(1)
    keys.disable(2)
    with pytest.raises(Conflict, match="newest"):
        keys.enable(1)
    with pytest.raises(Conflict, match="oldest"):
        keys.destroy(2, grace_days=0)
    keys.destroy(1, grace_days=0)
    keys.destroy(2, grace_days=0)
    assert held().secrets[:2] == [None, None]
    assert [info.state for info in keys.versions()] == ["destroyed", "destroyed", "decrypt-only", "primary"]


def test_a_rotation_by_others_is_followed(keys, held):
    """As by ``vault write -f transit/keys/…/rotate``: nothing raised the minimum version for wrapping."""
    wrapper = keys.wrapper()
    held().rotate()
    held().rotate()
    with pytest.raises(Denied, match="no longer the primary"):
        wrapper.wrap(KEY, CONTEXT)
    keys.disable(1)
    keys.disable(2)
    keys.destroy(1, grace_days=0)
    assert [info.state for info in keys.versions()] == ["destroyed", "disabled", "primary"]


def test_a_pending_destruction_is_a_marker_that_goes_with_it(keys, vault):
    keys.rotate()
    keys.disable(1)
    due = keys.destroy(1, grace_days=2).due
    (marker,) = set(vault.transit.keys) - {"kek-0"}
    assert marker == f"kek-0.destroy-1-{due // 10**9}"
    assert due % 10**9 == 0
    keys.cancel(1)
    assert set(vault.transit.keys) == {"kek-0"}
    keys.destroy(1, grace_days=2)
    vault.when_due(2)
    keys.destroy(1, grace_days=2)
    assert set(vault.transit.keys) == {"kek-0"}


def test_markers_of_other_keys_are_not_ours(keys, vault):
    keys.rotate()
    keys.disable(1)
    for name in ("kek-00.destroy-1-1", "other.destroy-1-1", "kek-0.destroy-1", "kek-0.destroy-1-1-1", "kek-0.destroy-2-9"):
        vault.transit.keys[name] = TransitKey("aes256-gcm96")
    assert keys.versions()[0].state == "disabled"


def test_the_version_in_the_ciphertext_must_be_the_one_of_the_stanza(keys):
    first = keys.wrapper()
    wrapped = first.wrap(KEY, CONTEXT)
    second = keys.rotate()
    later, odd = wrapped.replace(b":v1:", b":v2:"), wrapped.replace(b":v1:", b":v01:")
    for wrapper, forged in ((second, wrapped), (second, later), (first, odd)):
        with pytest.raises(NotTrusted):
            wrapper.unwrap(forged, CONTEXT)


def serve(vault, status, headers, body):
    """A server in the place of Vault that always answers the same."""

    class Same(http.server.BaseHTTPRequestHandler):
        seen: list[str] = []  # noqa: RUF012

        def answer(self):
            self.seen.append(self.headers.get("X-Vault-Token") or "")
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_LIST = answer  # noqa: N815

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Same)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    vault.patch.setenv("VAULT_ADDR", f"http://127.0.0.1:{server.server_address[1]}")
    return server, Same


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>sign in</html>"),
        (200, b"{}"),
        (200, b'{"data":{}}'),
        (200, b'{"data":{"type":"aes256-gcm96","latest_version":0}}'),
        (200, b'{"data":{"type":"aes256-gcm96","latest_version":1000000000}}'),
        (200, b"[]"),
        (204, b""),
        (429, b'{"errors":["slow down"]}'),
        (500, b'{"errors":["internal"]}'),
        (501, b'{"errors":["not initialized"]}'),
        (502, b"bad gateway"),
        (418, b"teapot"),
    ],
)
def test_answers_that_vault_would_not_give_are_unavailable(vault, status, body):
    server, _ = serve(vault, status, {}, body)
    keys = vault.open()
    asking = (lambda: keys.encrypt(1, KEY, CONTEXT), lambda: keys.decrypt(1, b"vault:v1:AAAA", CONTEXT))
    for use in (keys.versions, keys.wrapper, *asking):
        with pytest.raises(Unavailable):
            use()
    server.shutdown()
    server.server_close()


def test_the_token_follows_no_redirect(keys, vault):
    other, seen = serve(vault, 200, {}, b"{}")
    elsewhere = f"http://127.0.0.1:{other.server_address[1]}/v1/transit/keys/kek-0"
    first, _ = serve(vault, 307, {"Location": elsewhere}, b"")
    with pytest.raises(Unavailable):
        vault.open().versions()
    assert seen.seen == []
    for server in (first, other):
        server.shutdown()
        server.server_close()


def test_proxies_of_the_environment_are_not_asked(keys, vault):
    vault.patch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    vault.patch.setenv("NO_PROXY", "")
    assert len(vault.open().versions()) == 1


@pytest.fixture
def authority(tmp_path):
    """A certificate for 127.0.0.1 that is its own authority, as PEM files: certificate and key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vault of a test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, SHA256())
    )
    (tmp_path / "ca.pem").write_bytes(made.public_bytes(Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return tmp_path / "ca.pem", tmp_path / "key.pem"


def test_the_certificate_of_vault_is_checked(vault, authority):
    certificate, key = authority
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    vault.transit.over_tls(context)
    vault.patch.setenv("VAULT_ADDR", f"https://127.0.0.1:{vault.transit.port}")
    vault.patch.setenv("REQUESTS_CA_BUNDLE", str(certificate))  # another program's setting, and not asked
    with pytest.raises(Unavailable, match="SSLError"):
        vault.open().versions()
    vault.patch.setenv("VAULT_CACERT", str(certificate))
    keys = vault.open()
    keys.create()
    assert keys.wrapper().unwrap(keys.wrapper().wrap(KEY, CONTEXT), CONTEXT) == KEY
