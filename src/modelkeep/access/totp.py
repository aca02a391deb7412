"""One-time codes by time: SHA-1, 6 digits, 30 seconds, which is what every authenticator app does.

Sources: RFC 6238 (TOTP), RFC 4226 (HOTP; section 5.3 truncation, section 4 R6: a secret of 160 bits), and the ``otpauth://``
key URI that the apps read. SHA-1 is safe here: HMAC needs no collision resistance.
"""

import base64
import hmac
from urllib.parse import quote, urlencode

DIGITS, PERIOD = 6, 30
SECRET_SIZE = 20
"""Bytes: the 160 bits that RFC 4226 recommends."""
WINDOW = 1
"""Steps before and after the present one whose code is taken, for clocks that differ and people who type slowly."""


def code_of(secret: bytes, step: int, *, digits: int = DIGITS, hash_name: str = "sha1") -> str:
    """The code of time step ``step``: HOTP with the step as counter. Source: RFC 4226, section 5.3; RFC 6238, section 4."""
    mac = hmac.digest(secret, step.to_bytes(8), hash_name)
    at = mac[-1] & 0x0F
    number = int.from_bytes(mac[at : at + 4]) & 0x7FFF_FFFF
    return f"{number % 10**digits:0{digits}d}"


def step_at(now: int) -> int:
    """The time step of Unix second ``now``."""
    return now // PERIOD


def matching_step(secret: bytes, code: str, now: int) -> int | None:
    """The step within the window that ``code`` is of, the latest if there are two; None when there is none.

    Every candidate is compared, in constant time each, so how long this takes says nothing about how near the code was.
    """
    given, found = code.encode("utf-8", "replace"), None
    for step in range(step_at(now) - WINDOW, step_at(now) + WINDOW + 1):
        if hmac.compare_digest(code_of(secret, step).encode(), given):
            found = step
    return found


def key_uri(secret: bytes, account: str, issuer: str) -> str:
    """The URI that an authenticator app reads, usually as a QR code."""
    label = f"{quote(issuer, safe='')}:{quote(account, safe='')}"
    query = urlencode(
        {"secret": text_of(secret), "issuer": issuer, "algorithm": "SHA1", "digits": DIGITS, "period": PERIOD}, quote_via=quote
    )
    return f"otpauth://totp/{label}?{query}"


def text_of(secret: bytes) -> str:
    """The secret as people type it: base 32 without padding."""
    return base64.b32encode(secret).decode().rstrip("=")
