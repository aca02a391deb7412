"""Where requests come from, as something that accounts can share: the network of an address, under a name that says nothing.

Recorded with answers, so that accounts of one network can be judged together. The address itself is kept nowhere.
"""

import hashlib
import ipaddress

from modelkeep.core.hidden import never_pickled

PREFIX = {4: 24, 6: 48}
"""Bits of the network that an address belongs to: what one site is usually given."""
NAME_BYTES = 8
_CACHED = 65_536


@never_pickled
class Networks:
    """Names of networks under a secret key: the same network has the same name, and whoever lacks the key can try none."""

    def __init__(self, key: bytes) -> None:
        """``key``: 32 bytes, the same in every gateway of a keep."""
        self._key = key
        self._names: dict[str, bytes] = {}

    def name(self, address: str) -> bytes:
        """Eight bytes for the network of an IP address; nothing for this machine itself, and for what is no address."""
        found = self._names.get(address)
        if found is None:
            if len(self._names) >= _CACHED:
                self._names.clear()
            found = self._names[address] = self._make(address)
        return found

    def _make(self, address: str) -> bytes:
        try:
            parsed = ipaddress.ip_address(address)
        except ValueError:
            return b""
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        if parsed.is_loopback or parsed.is_unspecified:
            return b""
        network = ipaddress.ip_network((parsed.packed, PREFIX[parsed.version]), strict=False)
        return hashlib.blake2b(str(network).encode(), digest_size=NAME_BYTES, key=self._key).digest()
