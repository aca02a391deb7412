"""TLS as a stranger sees it: the versions and ciphers of openssl s_client, and certificates that change under load."""

import contextlib
import http.client
import socket
import ssl
import subprocess
import threading
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from http_support import Running

from modelkeep.adapters.certificates import CertificateFiles, Certificates, CertificateWatch, ending, renewal_due
from modelkeep.adapters.tls import Identity, authority_certificate, issue, make_authority_key, server_context
from modelkeep.errors import Invalid, Missing, NotTrusted

NOW = int(time.time() * 1e9)
CA_KEY = make_authority_key()
CA = authority_certificate(CA_KEY, "keep.example/1", NOW)


def leaf(name="localhost", **more):
    return issue(CA_KEY, CA, [name, "127.0.0.1"], NOW, **more)


def trusting():
    return ssl.create_default_context(cadata=CA.decode())


@contextlib.contextmanager
def running(shown, **listen):
    server = Running(tls=shown.context, **listen)
    try:
        yield server
    finally:
        server.stop()
        assert server.errors == []


def s_client(port, *arguments):
    """What openssl says of a handshake; "" where none came about."""
    ran = subprocess.run(
        ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", "localhost", *arguments],
        input=b"",
        capture_output=True,
        timeout=60,
        check=False,
    )
    return ran.stdout.decode(errors="replace") if ran.returncode == 0 else ""


def names_of(port):
    """The subject of the certificate that is shown now."""
    plain = socket.create_connection(("127.0.0.1", port), 30)
    with trusting().wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        found = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
    return found.subject.rfc4514_string().removeprefix("CN=")


def test_tls_13_and_nothing_older_by_default():
    with running(Certificates(leaf())) as server:
        assert "TLSv1.3" in s_client(server.port)
        assert "ALPN protocol: http/1.1" in s_client(server.port, "-alpn", "h2,http/1.1")
        for old in ("-tls1_2", "-tls1_1", "-tls1"):
            assert s_client(server.port, old, "-cipher", "ALL:@SECLEVEL=0") == ""


def test_tls_12_where_it_is_let_in_has_forward_secrecy_and_authenticated_encryption_only():
    with running(Certificates(leaf(), minimum="1.2")) as server:
        assert "ECDHE-ECDSA-AES256-GCM-SHA384" in s_client(server.port, "-tls1_2")
        assert "ECDHE-ECDSA-CHACHA20-POLY1305" in s_client(server.port, "-tls1_2", "-cipher", "CHACHA20")
        assert "TLSv1.3" in s_client(server.port)
        for weak in (
            "AES128-SHA",
            "ECDHE-ECDSA-AES128-SHA",
            "AES128-GCM-SHA256",
            "DHE-RSA-AES256-GCM-SHA384",
            "ALL:!AESGCM:!CHACHA20",
        ):
            assert s_client(server.port, "-tls1_2", "-cipher", f"{weak}:@SECLEVEL=0") == ""
        assert "TLS session ticket:" not in s_client(server.port, "-tls1_2")
        for old in ("-tls1_1", "-tls1"):
            assert s_client(server.port, old, "-cipher", "ALL:@SECLEVEL=0") == ""


def test_a_post_quantum_handshake_where_openssl_has_one():
    listed = subprocess.run(["openssl", "list", "-kem-algorithms"], capture_output=True, text=True, check=False).stdout
    if "X25519MLKEM768" not in listed or ssl.OPENSSL_VERSION_INFO < (3, 5):
        pytest.skip("this OpenSSL has no X25519MLKEM768: it begins with 3.5")
    with running(Certificates(leaf())) as server:
        assert "X25519MLKEM768" in s_client(server.port)


def test_answers_over_tls_say_hsts_and_name_no_server():
    with running(Certificates(leaf())) as server:
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusting(), timeout=30)
        connection.request("GET", "/x")
        headers = dict(connection.getresponse().getheaders())
        assert headers["strict-transport-security"] == "max-age=31536000"
        assert headers["x-content-type-options"] == "nosniff" and "server" not in headers
        connection.close()
    plain = Running()
    assert b"strict-transport" not in plain.ask(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
    plain.stop()


# -- certificates that change --


def write(folder: Path, identity: Identity, word: bytes = b"") -> CertificateFiles:
    key = identity.key
    if word:
        key = load_pem_private_key(key, None).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(word))
        (folder / "word").write_bytes(word + b"\n")
    (folder / "chain.pem").write_bytes(identity.chain)
    (folder / "key.pem").write_bytes(key)
    (folder / "key.pem").chmod(0o600)
    return CertificateFiles(folder / "chain.pem", folder / "key.pem", folder / "word" if word else None)


def rsa_leaf(name, key_of_ca=CA_KEY, ca=CA, without=None):
    """The same authority and an RSA key: another kind of key must not leave the former certificate in use."""
    signer = issue(key_of_ca, ca, [name, "127.0.0.1"], NOW)
    template, key = x509.load_pem_x509_certificate(signer.chain), rsa.generate_private_key(65537, 2048)
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import load_der_private_key

    builder = x509.CertificateBuilder(
        template.issuer,
        template.subject,
        key.public_key(),
        x509.random_serial_number(),
        template.not_valid_before_utc,
        template.not_valid_after_utc,
        [each for each in template.extensions if not isinstance(each.value, without or ())],
    )
    chain = builder.sign(load_der_private_key(key_of_ca, None), hashes.SHA256()).public_bytes(Encoding.PEM)
    return Identity(chain, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_a_new_certificate_is_shown_under_load_and_no_request_is_dropped(tmp_path):
    files, said = write(tmp_path, leaf("first")), []
    shown = Certificates(files.read())
    watch = CertificateWatch(files, shown, said.append, poll=0.02).start()
    stop, answered, failed = threading.Event(), [], []

    def ask(fresh):
        connection = http.client.HTTPSConnection("127.0.0.1", server.port, context=trusting(), timeout=30)
        while not stop.is_set():
            try:
                connection.request("GET", "/x")
                answered.append(connection.getresponse().read())
                if fresh:
                    connection.close()
            except OSError as cause:
                failed.append(cause)
        connection.close()

    with running(shown) as server:
        threads = [threading.Thread(target=ask, args=(fresh,)) for fresh in (True, False, True)]
        for thread in threads:
            thread.start()
        for name, made in [("second", leaf), ("third", rsa_leaf), ("fourth", leaf)]:
            before = len(answered)
            write(tmp_path, made(name))
            while names_of(server.port) != name or len(answered) < before + 20:
                time.sleep(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        assert failed == [] and len(answered) > 60
    watch.stop()
    assert [line for line in said if "taken over" in line], said


@pytest.mark.parametrize("case", ["half", "junk", "gone", "expired", "open", "locked"])
def test_a_broken_pair_keeps_the_former_one_and_is_reported_once(tmp_path, case):
    files, said = write(tmp_path, leaf("first")), []
    shown = Certificates(files.read())
    watch = CertificateWatch(files, shown, said.append)
    watch.look()
    assert said == []
    other = leaf("second")
    if case == "half":
        (tmp_path / "chain.pem").write_bytes(other.chain)
    elif case == "junk":
        (tmp_path / "chain.pem").write_bytes(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
    elif case == "gone":
        (tmp_path / "key.pem").unlink()
    elif case == "expired":
        write(tmp_path, issue(CA_KEY, CA, ["second"], NOW - 400 * 86_400 * 10**9))
    elif case == "open":
        write(tmp_path, other)
        (tmp_path / "key.pem").chmod(0o644)
    elif case == "locked":
        write(tmp_path, other, b"a word that nobody set")
    for _ in range(4):
        watch.look()
    assert len(said) == 1 and "the former one is shown on" in said[0], said
    with running(shown) as server:
        assert names_of(server.port) == "first"
        write(tmp_path, other)
        (tmp_path / "key.pem").chmod(0o600)
        watch.poke()
        watch.look()
        assert names_of(server.port) == "second"


def test_a_key_with_a_passphrase(tmp_path):
    files = write(tmp_path, leaf(), b"of the key")
    server_context(files.read())
    (tmp_path / "word").write_bytes(b"another")
    with pytest.raises(Invalid, match="passphrase is wrong"):
        files.read()
    with pytest.raises(Invalid, match="needs a passphrase"):
        CertificateFiles(tmp_path / "chain.pem", tmp_path / "key.pem").read()
    with pytest.raises(Missing, match="no TLS passphrase"):
        CertificateFiles(tmp_path / "chain.pem", tmp_path / "key.pem", tmp_path / "none").read()
    (tmp_path / "chain.pem").write_bytes(b"no certificate")
    with pytest.raises(Invalid, match="no certificate in PEM"):
        write(tmp_path, Identity(b"no certificate", leaf().key)).read()


def test_an_end_that_comes_near_is_spoken_of():
    now = NOW / 1e9
    assert ending(now + 15 * 86_400, now) == ""
    assert "in 3.0 days" in ending(now + 3 * 86_400, now)
    assert "clients refuse it" in ending(now - 1, now)
    chain = leaf(days=90).chain
    assert not renewal_due(chain, now + 59 * 86_400) and renewal_due(chain, now + 61 * 86_400)
    with pytest.raises(Invalid):
        renewal_due(b"", now)


def test_a_process_that_may_not_look_into_its_own_proc_can_still_exchange_its_certificate(tmp_path, monkeypatch):
    """A hardened one that is not root: the kernel then refuses /proc/self/fd."""
    monkeypatch.setattr("modelkeep.adapters.tls.os.access", lambda *_: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = set(threading.enumerate())
    with running(Certificates(leaf("first"))) as server:
        assert names_of(server.port) == "first"
    for chain, key in [(leaf().chain, b"no key" * 30_000), (b"no chain", leaf().key), (leaf().chain, leaf().key)]:
        with pytest.raises(NotTrusted):
            server_context(Identity(chain, key))
    assert list(tmp_path.iterdir()) == [] and set(threading.enumerate()) <= before


def test_what_does_not_belong_together_is_never_shown():
    shown = Certificates(leaf("first"))
    with pytest.raises(NotTrusted):
        shown.show(Identity(leaf("second").chain, leaf("third").key))
    with running(shown) as server:
        assert names_of(server.port) == "first"


def test_what_is_asked_of_clients_and_which_protocol_is_offered_stay_when_the_certificate_changes(tmp_path):
    """The context that a handshake changes to brings its own store of authorities and its own ALPN along."""
    client_key = make_authority_key()
    client_ca = authority_certificate(client_key, "clients", NOW)
    write(tmp_path, rsa_leaf("a-client", client_key, client_ca, without=x509.ExtendedKeyUsage))  # else it is a server's
    shown = Certificates(leaf("first"), client_ca, True)
    h2 = shown.listen("h2")
    shown.show(leaf("second"))
    with running(shown) as server:
        pair = ("-cert", str(tmp_path / "chain.pem"), "-key", str(tmp_path / "key.pem"))
        said = s_client(server.port, *pair, "-alpn", "h2,http/1.1")
        assert "ALPN protocol: http/1.1" in said and "CN = second" in said
        # TLS 1.3 tells a client that it was refused only after its own handshake: so it asks something
        plain = socket.create_connection(("127.0.0.1", server.port), 5)
        with trusting().wrap_socket(plain, server_hostname="127.0.0.1") as connection, pytest.raises(OSError):
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
            if connection.recv(100) == b"":
                raise OSError("closed")
        known = trusting()
        known.load_cert_chain(tmp_path / "chain.pem", tmp_path / "key.pem")
        plain = socket.create_connection(("127.0.0.1", server.port), 5)
        with known.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
    other = Running(tls=h2)
    assert "ALPN protocol: h2" in s_client(other.port, *pair, "-alpn", "h2,http/1.1")
    other.stop()
