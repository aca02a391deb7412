"""Where Vault is, and the token to show it: from the environment, with the names that its own command line knows."""

import os
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from modelkeep.errors import Invalid, Unavailable

_LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Server(NamedTuple):
    """Where Vault is, from the environment. ``ca``: a PEM bundle, or True for those of the system."""

    address: str
    namespace: str
    ca: str | bool


def find_server() -> Server:
    """Raises Invalid: no address, one without TLS that is not this machine, or one with a password in it."""
    address = os.environ.get("VAULT_ADDR", "")
    if not address:
        raise Invalid("no Vault: set VAULT_ADDR, such as https://vault.example:8200")
    parts = urlsplit(address)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        raise Invalid("VAULT_ADDR must begin with https://: keys go over this wire (http:// only to this machine)")
    if parts.username or parts.password or parts.query:
        raise Invalid("VAULT_ADDR is an address alone: no user, no password, no query")
    ca = os.environ.get("VAULT_CACERT", "")
    if ca and not Path(ca).is_file():
        raise Invalid(f"VAULT_CACERT names {ca}, which is not a file: name a PEM bundle of authorities")
    return Server(address.rstrip("/"), os.environ.get("VAULT_NAMESPACE", ""), ca or True)


def read_token() -> str:
    """The token as it is now: an agent may have renewed its file. Raises Invalid (none), Unavailable."""
    token, source = os.environ.get("VAULT_TOKEN", ""), os.environ.get("VAULT_TOKEN_FILE", "")
    if source:
        try:
            token = Path(source).read_text("ascii").strip()
        except OSError as cause:
            raise Unavailable(f"cannot read Vault's token from {source}: {cause.strerror}") from cause
        except UnicodeDecodeError:  # `from None`: the cause quotes what it could not decode
            raise Invalid(f"the file {source} holds no Vault token") from None
    if not token or not token.isascii() or not token.isprintable():
        raise Invalid("no token for Vault: set VAULT_TOKEN_FILE or VAULT_TOKEN")
    return token
