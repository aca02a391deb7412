"""Requests to witnesses over HTTP."""

import ssl
import threading
import time
from pathlib import Path

import httpx

from modelkeep.errors import Invalid, Unavailable

SECONDS = 5.0
"""How long a witness may take."""
MAX_ANSWER = 64 << 10


class HttpWitnesses:
    """``Calls`` of ``workflows/cosign.py`` with httpx. No redirect is followed and no proxy is taken from the environment."""

    def __init__(self, trust: ssl.SSLContext | None = None, seconds: float = SECONDS) -> None:
        """``trust``: whose certificates are believed, None = those of public authorities."""
        self._seconds, self._trust = seconds, trust

    def add_checkpoint(self, url: str, body: bytes) -> tuple[int, str, bytes]:
        """Ask the witness whose submission prefix is ``url``. Raises Unavailable, Invalid (the URL)."""
        address = _address(url)
        ends = time.monotonic() + self._seconds
        answer = bytearray()
        headers = {"content-type": "text/plain; charset=utf-8"}
        client = httpx.Client(timeout=self._seconds, trust_env=False, verify=self._trust or True)
        late = threading.Timer(self._seconds, client.close)  # its own timeouts begin anew with every byte of a header
        late.daemon = True
        late.start()
        try:
            with client, client.stream("POST", address, content=body, headers=headers) as response:
                for chunk in response.iter_raw(4096):
                    answer += chunk
                    if len(answer) > MAX_ANSWER or time.monotonic() > ends:
                        raise Unavailable(f"the answer of {address} is too long or too slow")
                return response.status_code, response.headers.get("content-type", ""), bytes(answer)
        except UnicodeError as cause:
            raise Invalid(f"{url[:120]!r} is not the address of a witness: its host cannot be looked up") from cause
        except httpx.HTTPError as cause:
            why = "too slow" if time.monotonic() > ends else str(cause) or type(cause).__name__
            raise Unavailable(f"{address} cannot be reached: {why}") from cause
        finally:
            late.cancel()


def trust_of(path: Path) -> ssl.SSLContext:
    """Trust in the authorities of a PEM file and nobody else. Raises Invalid."""
    try:
        return ssl.create_default_context(cafile=str(path))
    except (OSError, ssl.SSLError) as cause:  # SSLError is an OSError: named, because it is the usual one
        raise Invalid(f"{path} holds no certificates in PEM form, or cannot be read: {cause}") from cause


def _address(url: str) -> str:
    try:
        parsed = httpx.URL(url)
        plain = bool(parsed.host) and not (parsed.userinfo or parsed.query or parsed.fragment or (parsed.port or 0) > 65535)
    except (httpx.InvalidURL, UnicodeError) as cause:
        raise Invalid(f"{url[:120]!r} is not an address: {cause}") from cause
    if parsed.scheme not in ("http", "https") or not plain:
        raise Invalid(f"{url[:120]!r} is not the address of a witness: expected https://HOST[:PORT][/PREFIX]")
    return str(parsed).rstrip("/") + "/add-checkpoint"
