"""Proofs of possession (DPoP): whoever presents a bound token shows, for this very request, that he holds its key.

Source: RFC 9449; the numbers in comments are the checks of its section 4.3. What is cheap is looked at first: the signature, at
the price of tens of microseconds, only of a proof whose key is the one that the token is bound to, so that nobody but the
token's owner can make us pay for it, and he at most as often as ``proofs`` lets him.
"""

import hashlib
import hmac
import threading
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import unquote_to_bytes

import msgspec

from modelkeep.access.limits import Limiter
from modelkeep.access.presented import Proof
from modelkeep.crypto.jose import (
    ALGORITHMS,
    Jwk,
    Jws,
    check_signature,
    decode_part,
    encode_part,
    public_key,
    split_jws,
    thumbprint,
)
from modelkeep.errors import NotTrusted, OverBudget, Unauthenticated

MAX_PROOF = 4_096
"""Characters; a longer proof is refused unread."""
CLOCK_SKEW = 5
"""Seconds that a proof's ``iat`` may be ahead of this machine, and a nonce of another replica, too."""
REPLAYS = 131_072
"""Proofs remembered in each of two generations; when one is full, no further proof is taken until the next begins."""
_LONGEST_ID = 256
_NONCE_MAC = 16

INVALID, NONCE = "invalid_dpop_proof", "use_dpop_nonce"


class _Header(msgspec.Struct, frozen=True):
    typ: str
    alg: str
    jwk: Jwk
    crit: Any = msgspec.UNSET
    b64: Any = msgspec.UNSET


class _Claims(msgspec.Struct, frozen=True):
    jti: str
    htm: str
    htu: str
    iat: int
    ath: str
    nonce: str = ""


class ProofTerms(msgspec.Struct, frozen=True, kw_only=True):
    """How proofs are judged. ``window``: seconds that one is good for from its ``iat``; ``nonce_seconds``: how old our nonce in
    it may be, 0 = none is asked for; ``nonce_key``: shared by all replicas; ``hosts``: names that clients call this server by.
    """

    window: int = 60
    nonce_seconds: int = 300
    nonce_key: bytes
    hosts: Collection[str]

    def __repr__(self) -> str:
        return f"ProofTerms({self.window}, {self.nonce_seconds})"


class Replays:
    """Ids of proofs that were taken: two generations, of which the older is dropped once nothing in it could pass any more.

    Safe to use from several threads: of two that bring one proof at once, one passes.
    """

    def __init__(self, period: float, size: int = REPLAYS) -> None:
        self._period, self._size = period, size
        self._now: set[bytes] = set()
        self._before: set[bytes] = set()
        self._began = float("-inf")
        self._lock = threading.Lock()

    def add(self, proof: bytes, at: float) -> bool:
        """Remember ``proof`` at monotonic second ``at``; False if it was there. Raises OverBudget (no room)."""
        with self._lock:
            return self._add(proof, at)

    def _add(self, proof: bytes, at: float) -> bool:
        if at >= self._began + self._period:
            self._before = self._now if at < self._began + 2 * self._period else set()
            self._now, self._began = set(), at
        if proof in self._now or proof in self._before:
            return False
        if len(self._now) >= self._size:
            raise OverBudget("too many proofs of possession at once: try again in a moment", self._began + self._period - at)
        self._now.add(proof)
        return True


class Proofs:
    """Judges proofs. Safe to use from several threads."""

    def __init__(self, terms: ProofTerms, monotonic: Callable[[], float], rate: Limiter | None = None) -> None:
        """``rate``: proofs a second whose signature is looked at, per key."""
        self._terms, self._monotonic, self._rate = terms, monotonic, rate
        self._replays = Replays(terms.window + CLOCK_SKEW)

    def check(self, proof: Proof, token: str, key: str, now: int) -> None:
        """Check that ``proof`` was made for this request and ``token`` by the key of thumbprint ``key``; ``now``: Unix seconds.

        Raises Unauthenticated (with the fault of RFC 9449, and a nonce where one is needed), OverBudget.
        """
        try:
            parts, header, claims = _parse(proof.jwt)
            if thumbprint(header.jwk) != key:  # 12
                raise NotTrusted("the proof was made with another key than the token is bound to")
            self._check_request(claims, proof, token)
            self._check_time(claims, now)
            if self._rate is not None:
                self._rate.take(key)
            check_signature(header.alg, public_key(header.jwk), parts)  # 6, 7
        except NotTrusted as cause:
            raise Unauthenticated(str(cause), fault=INVALID, nonce=self.nonce(now)) from cause
        seen = hashlib.sha256(f"{key}\0{claims.jti}".encode("utf-8", "surrogatepass")).digest()[:16]
        if not self._replays.add(seen, self._monotonic()):
            raise Unauthenticated("the proof was used before", fault=INVALID, nonce=self.nonce(now))

    def nonce(self, now: int) -> str:
        """A nonce to hand out; "" when none is asked for. Nothing is kept of it (RFC 9449, section 8)."""
        if not self._terms.nonce_seconds:
            return ""
        at = now.to_bytes(8)
        return encode_part(at + self._mac(at))

    def _mac(self, at: bytes) -> bytes:
        return hmac.digest(self._terms.nonce_key, b"modelkeep/dpop-nonce/1" + at, "sha256")[:_NONCE_MAC]

    def _check_request(self, claims: _Claims, proof: Proof, token: str) -> None:
        if claims.htm.encode() != proof.method:  # 8
            raise NotTrusted("the proof is for another method")
        host = proof.host.decode("latin-1")
        if host_name(host) not in self._terms.hosts:
            raise NotTrusted("this server is not called by the name that was asked for: see gateway.names")
        asked = normal_url(f"https://{host}{proof.target.decode('latin-1')}")
        if normal_url(claims.htu) != asked:  # 9
            raise NotTrusted("the proof is for another address")
        expected = encode_part(hashlib.sha256(token.encode()).digest())
        if not hmac.compare_digest(claims.ath.encode(), expected.encode()):  # 12
            raise NotTrusted("the proof is for another token")

    def _check_time(self, claims: _Claims, now: int) -> None:  # 10, 11
        if not -CLOCK_SKEW <= now - claims.iat <= self._terms.window:
            raise NotTrusted("the proof is too old or of the future")
        if self._terms.nonce_seconds and not self._is_ours(claims.nonce, now):
            raise Unauthenticated("the proof needs a nonce of this server", fault=NONCE, nonce=self.nonce(now))

    def _is_ours(self, nonce: str, now: int) -> bool:
        try:
            raw = decode_part(nonce)
        except NotTrusted:
            return False
        at, mac = raw[:8], raw[8:]
        return hmac.compare_digest(mac, self._mac(at)) and -CLOCK_SKEW <= now - int.from_bytes(at) <= self._terms.nonce_seconds


def _parse(jwt: str) -> tuple[Jws, _Header, _Claims]:
    if not 0 < len(jwt) <= MAX_PROOF or not jwt.isascii():
        raise NotTrusted("there is no proof in one header 'dpop'")  # 1, 2
    parts = split_jws(jwt)
    try:
        header = msgspec.json.decode(parts.header, type=_Header)
        claims = msgspec.json.decode(parts.payload, type=_Claims)  # 3
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise NotTrusted("the proof lacks what RFC 9449 asks for") from cause
    if header.typ != "dpop+jwt" or header.alg not in ALGORITHMS:  # 4, 5
        raise NotTrusted("the proof is of another type, or its algorithm is not taken")
    if header.crit is not msgspec.UNSET or header.b64 is not msgspec.UNSET or header.jwk.kty not in ("OKP", "EC", "RSA"):
        raise NotTrusted("the proof's header has what is not taken")
    if not 0 < len(claims.jti) <= _LONGEST_ID or header.jwk.d is not None:
        raise NotTrusted("the proof has no usable id, or shows a private key")
    return parts, header, claims


def host_name(authority: str) -> str:
    """The name or address in ``host[:port]``, in lower case; an IPv6 address without its brackets."""
    if authority.startswith("["):
        return authority[1:].partition("]")[0].lower()
    return authority.partition(":")[0].lower()


def normal_url(url: str) -> str:
    """An https address as all its spellings are compared: RFC 3986, sections 6.2.2 and 6.2.3; query and fragment dropped.

    Raises NotTrusted (it is none).
    """
    scheme, colon, rest = url.partition("://")
    authority, slash, path = rest.partition("#")[0].partition("?")[0].partition("/")
    if not colon or scheme.lower() != "https" or not authority or "@" in authority or not url.isascii():
        raise NotTrusted("the proof's htu is no https address")
    return f"https://{authority.lower().removesuffix(':443')}{_without_dots(_unescaped(slash + path) or '/')}"


_UNRESERVED = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


def _unescaped(path: str) -> str:
    """``%41`` becomes A, ``%2f`` becomes %2F: only what is unreserved loses its escape."""
    head, *escaped = path.split("%")
    found = [head]
    for part in escaped:
        byte = unquote_to_bytes("%" + part[:2])
        if len(part) < 2 or len(byte) != 1:
            raise NotTrusted("the proof's htu has a broken escape")
        found.append((chr(byte[0]) if byte[0] in _UNRESERVED else f"%{byte[0]:02X}") + part[2:])
    return "".join(found)


def _without_dots(path: str) -> str:
    """RFC 3986, section 5.2.4, for a path that begins with a slash."""
    kept: list[str] = []
    segments = path.split("/")[1:]
    for segment in segments:
        if segment == "..":
            kept = kept[:-1]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in {".", ".."}:
        kept.append("")
    return "/" + "/".join(kept)
