"""What accounts may share that the evidence does not look at, and the names of it, which are those of cases."""

import hashlib
import re

NETWORK, SIGNUP = "net", "signup"
"""The network that an account asks from; who vouches for it (this keep, or another issuer), and the hour it first came."""
KINDS = {
    NETWORK: "asked from one network",
    SIGNUP: "came from one issuer in the same hour",
}
_CASE = re.compile(rf"(?:{NETWORK}|{SIGNUP})-[0-9a-f]{{16}}\Z")
_HOUR = 3600


def network_covariate(name: bytes) -> tuple[str, ...]:
    """The covariate of a network's recorded name; none when there is no name."""
    return (f"{NETWORK}-{name.hex()}",) if len(name) == 8 else ()


def signup_covariate(issuer: str, created: int) -> str:
    """The covariate of an account of ``issuer`` ("" = this keep) that first came at Unix second ``created``."""
    said = f"modelkeep/signup/1\0{issuer}\0{created // _HOUR}"
    return f"{SIGNUP}-{hashlib.blake2b(said.encode(), digest_size=8).hexdigest()}"


def is_case(name: str) -> bool:
    """Whether ``name`` is that of a covariate, and so of a case; no account's is."""
    return _CASE.match(name) is not None
