"""The keys of one token issuer: fetched in the background, remembered, rotated, and believed for a stated time only.

Nobody who asks ever waits for a fetch, and nobody can cause many: a key id that is not known makes one fetch due, and then
none until ``retry_seconds`` are over, however often it is asked for. When the issuer cannot be reached its keys go on counting
for ``stale_seconds`` after they were last read, and then nobody of it is let in.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from modelkeep.core.ports import KeySource
from modelkeep.crypto.jose import Jwk, PublicKey, algorithms_of, public_key
from modelkeep.errors import ModelkeepError, NotTrusted, Unauthenticated, Unavailable

MAX_KEYS = 64
"""Keys of one issuer; a set with more is refused."""

_LONGEST_ID = 256


class PinnedKey(NamedTuple):
    """A public key and the one algorithm that it is used with (RFC 8725, sections 3.1 and 3.2)."""

    key: PublicKey
    algorithm: str


class _KeySet(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


def parse_key_set(raw: bytes, algorithms: Sequence[str]) -> Mapping[str, PinnedKey]:
    """The keys of a JWK set (RFC 7517, section 5) that may sign tokens, by key id.

    ``algorithms``: those allowed, in order of preference. A key that names its algorithm is used with that one; one that names
    none, with the first allowed one that fits its type. Keys that fit none, or are of no use here, are left out, and so are two
    that share an id. Raises NotTrusted (no key set, too many keys, or not one of use).
    """
    try:
        found = msgspec.json.decode(raw, type=_KeySet).keys
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise NotTrusted("this is not a JWK set") from cause
    if len(found) > MAX_KEYS:
        raise NotTrusted(f"this JWK set has {len(found)} keys, and at most {MAX_KEYS} are taken")
    usable: dict[str, PinnedKey] = {}
    seen: set[str] = set()
    for one in found:
        try:
            jwk = msgspec.json.decode(one, type=Jwk)
            pinned = _pinned(jwk, algorithms)
        except (msgspec.MsgspecError, NotTrusted):
            continue  # RFC 7517, section 5: keys that are not understood are ignored
        if jwk.kid in seen:
            usable.pop(jwk.kid, None)
        else:
            seen.add(jwk.kid)
            usable[jwk.kid] = pinned
    if not usable:
        raise NotTrusted("no key of this JWK set can sign tokens with an algorithm that is allowed")
    return usable


def _pinned(jwk: Jwk, algorithms: Sequence[str]) -> PinnedKey:
    if not 0 < len(jwk.kid) <= _LONGEST_ID or jwk.use != "sig" or "verify" not in jwk.key_ops:
        raise NotTrusted("this key does not sign tokens")
    key = public_key(jwk)
    fitting = [alg for alg in algorithms if alg in algorithms_of(key) and jwk.alg in ("", alg)]
    if not fitting:
        raise NotTrusted("this key fits no algorithm that is allowed")
    return PinnedKey(key, fitting[0])


class IssuerKeys:
    """What is known of one issuer's keys. ``find`` belongs to the thread that authenticates, ``refresh`` to any other."""

    def __init__(
        self,
        source: KeySource,
        algorithms: Sequence[str],
        monotonic: Callable[[], float],
        *,
        refresh_seconds: float,
        stale_seconds: float,
        retry_seconds: float = 10.0,
    ) -> None:
        """``refresh_seconds``: between two reads; ``retry_seconds``: at least so much, also after a failure; ``stale_seconds``:
        how long the keys count after they were last read."""
        self._source, self._algorithms, self._monotonic = source, tuple(algorithms), monotonic
        self._refresh, self._stale, self._retry = refresh_seconds, stale_seconds, retry_seconds
        self._keys: Mapping[str, PinnedKey] = {}
        self._raw = b""
        self._until = self._read_at = self._tried = float("-inf")
        self._wanted = False
        self._busy = threading.Lock()
        self.failure = "its keys were not read yet"
        self.version = 0
        """Rises when the keys change: what was accepted under the keys of before is judged anew."""

    @property
    def until(self) -> float:
        """Monotonic second at which the keys in hand stop counting."""
        return self._until

    def find(self, kid: str) -> PinnedKey:
        """The key that ``kid`` names. Raises Unauthenticated (none), Unavailable (the keys are too old to be believed)."""
        if self._monotonic() >= self._until:
            raise Unavailable("the keys of this token's issuer could not be read for too long: try again later")
        found = self._keys.get(kid)
        if found is None:
            self._wanted = True  # perhaps a new key; asked for at most once in retry_seconds
            raise Unauthenticated(f"its issuer has no key {kid[:40]!r}")
        return found

    def due(self) -> bool:
        """Whether the keys should be read now."""
        now = self._monotonic()
        if now < self._tried + self._retry or self._busy.locked():
            return False
        return self._wanted or now >= self._read_at + self._refresh

    def refresh(self) -> None:
        """Read the keys now, in seconds. Raises Unavailable, NotTrusted, and then the keys in hand stay as they are."""
        if not self._busy.acquire(blocking=False):
            return
        try:
            began = self._tried = self._monotonic()
            self._wanted = False
            raw = self._source.fetch()
            keys = self._keys if raw == self._raw else parse_key_set(raw, self._algorithms)
        except ModelkeepError as cause:
            self.failure = str(cause)
            raise
        else:
            changed = raw != self._raw
            self._keys, self._raw, self.failure = keys, raw, ""
            self._read_at, self._until = began, began + self._stale
            self.version += changed
        finally:
            self._busy.release()
