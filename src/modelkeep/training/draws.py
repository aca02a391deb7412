"""Random numbers from a secret key, the same on every machine and with every version of a library."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def uniform(key: bytes, what: bytes, count: int) -> NDArray[np.float64]:
    """Numbers (count,) in [0, 1): the upper 53 bits of each 8 bytes, little-endian, of SHAKE-256 over ``what``, a NUL, the key.

    ``what``: a domain tag without a NUL at its end, which separates draws.
    """
    raw = hashlib.shake_256(what + b"\0" + key).digest(8 * count)
    return (np.frombuffer(raw, dtype="<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
