"""A real browser with an authenticator in it: Chromium, driven over the WebDriver protocol.

Source: W3C WebDriver; W3C Web Authentication Level 3, section 11 (WebDriver extension: virtual authenticators).
"""

import base64
import hashlib
import re
import shutil
import ssl
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


def key_pin(url):
    """The pin of the key that the server at ``url`` shows: SHA-256 of its SubjectPublicKeyInfo, base 64."""
    place = urlsplit(url)
    certificate = x509.load_pem_x509_certificate(ssl.get_server_certificate((place.hostname, place.port)).encode())
    info = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return base64.b64encode(hashlib.sha256(info).digest()).decode()


class Browser:
    """One window. Raises AssertionError with what the driver said."""

    def __init__(self, driver, profile, pin):
        self._http = httpx.Client(base_url=driver, timeout=30, trust_env=False)
        arguments = [
            "--headless=new",
            "--no-sandbox",  # tests may run as root, and the only page is our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            f"--user-data-dir={profile}",
            f"--ignore-certificate-errors-spki-list={pin}",  # the keep's authority, which no store of this machine knows
        ]
        wanted = {"goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL"}}
        self._path = ""
        self._path = f"/session/{self._call('/session', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def _call(self, path, method="POST", **body):
        answer = self._http.request(method, self._path + path, **({"json": body} if method == "POST" else {}))
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def add_authenticator(self, *, verified=True):
        """A passkey provider inside the machine; ``verified``: its user's finger is the right one."""
        said = {
            "protocol": "ctap2",
            "transport": "internal",
            "hasResidentKey": True,
            "hasUserVerification": True,
            "isUserVerified": verified,
        }
        return self._call("/webauthn/authenticator", **said)

    def verify_user(self, authenticator, verified):
        self._call(f"/webauthn/authenticator/{authenticator}/uv", isUserVerified=verified)

    def credentials(self, authenticator):
        return self._call(f"/webauthn/authenticator/{authenticator}/credentials", "GET")

    def go(self, url):
        self._call("/url", url=url)

    def run(self, script, *arguments):
        return self._call("/execute/sync", script=script, args=list(arguments))

    def fill(self, **values):
        self.run("for (const [id, value] of Object.entries(arguments[0])) document.getElementById(id).value = value", values)

    def click(self, selector):
        self.run("document.querySelector(arguments[0]).click()", selector)

    def said(self, seconds=60.0):
        """What the page tells its user, once it tells something."""
        end = time.monotonic() + seconds
        while (words := self.run("return document.getElementById('said').textContent")) == "…":
            assert time.monotonic() < end, "the page never answered"
            time.sleep(0.02)
        return words

    def complaints(self):
        """What the browser itself wrote to its console: breaches of the page's policy, among others."""
        return [row["message"] for row in self._call("/se/log", type="browser")]

    def close(self):
        self._call("", "DELETE")
        self._http.close()


@contextmanager
def browser(url):
    """A browser that takes the certificate of the server at ``url``, for the length of the block."""
    driver = shutil.which("chromedriver")
    assert driver, "chromedriver is missing: make test installs it"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        process = subprocess.Popen(
            [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, text=True
        )
        try:
            found = None
            while found is None:
                line = process.stdout.readline()
                assert line, "chromedriver ended before it listened"
                found = re.search(r"on port (\d+)\.", line)
            window = Browser(f"http://127.0.0.1:{found[1]}", Path(folder) / "profile", key_pin(url))
            try:
                yield window
            finally:
                window.close()
        finally:
            process.terminate()
            process.wait(60)
            process.stdout.close()
