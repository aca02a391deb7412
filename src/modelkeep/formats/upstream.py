"""An upstream document: where a model runs that this house does not hold, in place of a model file.

Canonical JSON (sorted keys, no spaces) that begins with its ``_type``, so that one upstream has one digest. It holds no secret:
``token`` only names where one is found.
"""

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, NamedTuple
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from modelkeep.core.values import ModelSignature, TensorSpec, to_json
from modelkeep.errors import Invalid

TYPE = "urn:x-modelkeep:upstream:v1"
MAGIC = b'{"_type":"' + TYPE.encode() + b'",'
MAX_DOCUMENT = 256 << 10
MAX_ENDS = 64
SCHEMES = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 8001}
"""Schemes that are spoken, and their ports; of gRPC the one that Triton has."""

_HOST = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?\Z")
_PATH = re.compile(r"(?:/[A-Za-z0-9._~-]{1,100}){0,8}\Z")
_MODEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?\Z")
_PIN = re.compile(r"[0-9a-f]{64}\Z")
_TOKEN = re.compile(r"(env:MODELKEEP_UPSTREAM_TOKEN_[A-Z0-9_]{1,64}|file:[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?)\Z")

Text = Annotated[str, Meta(max_length=2000)]


class Place(NamedTuple):
    """A URL in parts. ``path``: what stands before ``/v2``, without a slash at its end."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in ("https", "grpcs")

    @property
    def grpc(self) -> bool:
        """Whether gRPC is spoken."""
        return self.scheme in ("grpc", "grpcs")

    @property
    def origin(self) -> str:
        """Scheme, host and port, as the setting ``upstream.origins`` has them."""
        return f"{self.scheme}://{self.authority}"

    @property
    def authority(self) -> str:
        """Host and port as the header ``host`` has them: a port only when it is not the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == SCHEMES[self.scheme] and not self.grpc else f"{host}:{self.port}"


class Upstream(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="_type", tag=TYPE):
    """A model of an Open Inference Protocol v2 server.

    ``url``: of the server, without ``/v2``; ``model``, ``version``: what it calls the model ("" = its own choice of version).
    ``inputs``, ``outputs``, ``platform``: its metadata, as read at publish; ``binary``: it speaks the binary tensor extension.
    ``authority``: PEM certificates that its own must descend from, "" = the public ones; ``pins``: hex SHA-256 of public keys
    (SubjectPublicKeyInfo), one of which its certificate must have, () = any. ``token``: ``env:NAME`` or ``file:NAME``, where
    the bearer token is found, "" = none is sent.
    """

    url: Text
    model: Text
    version: Text = ""
    platform: Annotated[str, Meta(max_length=100)] = ""
    binary: bool = False
    inputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=MAX_ENDS)]
    outputs: Annotated[tuple[TensorSpec, ...], Meta(min_length=1, max_length=MAX_ENDS)]
    authority: Annotated[str, Meta(max_length=64 << 10)] = ""
    pins: Annotated[tuple[str, ...], Meta(max_length=8)] = ()
    token: Text = ""

    @property
    def place(self) -> Place:
        """Where it is. Raises Invalid."""
        return parse_url(self.url)

    @property
    def signature(self) -> ModelSignature:
        """What the model takes and gives."""
        return ModelSignature(self.inputs, self.outputs)

    def encode(self) -> bytes:
        """The document. Raises Invalid, saying what cannot be."""
        self.check()
        data = to_json(self)
        if len(data) > MAX_DOCUMENT:
            raise Invalid(
                f"an upstream document has at most {MAX_DOCUMENT:,} bytes: this model has too many inputs and outputs"
            )
        return data

    def check(self) -> None:
        """Raises Invalid, saying what cannot be."""
        place = self.place
        for what, text in (("model", self.model), ("version", self.version)):
            if not (_MODEL.match(text) or (what == "version" and not text)) or ".." in text:
                raise Invalid(f"{text[:80]!r} is not a {what} of an upstream: use 1-128 of A-Z a-z 0-9 . _ -")
        if not self.platform.isprintable():
            raise Invalid("the platform of an upstream is not printable text")
        if (self.authority or self.pins) and not place.secure:
            raise Invalid("an authority or pins go with https or grpcs: without TLS nobody shows a certificate")
        if not all(map(_PIN.match, self.pins)):
            raise Invalid("a pin is 64 lower-case hex digits: the SHA-256 of a public key")
        if self.token and not _TOKEN.match(self.token):
            raise Invalid(
                "this names no token, and a token itself does not belong there: use env:MODELKEEP_UPSTREAM_TOKEN_NAME or "
                "file:NAME, a file in the keep's folder upstream/"
            )
        if self.token and not (place.secure or is_loopback(place.host)):
            raise Invalid("a token is sent over TLS, or to this machine, and nowhere else: give an https or grpcs URL")
        _check_ends(self.inputs, "input")
        _check_ends(self.outputs, "output")


_DECODER = msgspec.json.Decoder(Upstream)


def parse_upstream(data: bytes | bytearray | memoryview) -> Upstream:
    """The document in ``data``, whole and canonical. Raises Invalid."""
    raw = bytes(data)
    if len(raw) > MAX_DOCUMENT:
        raise Invalid(f"an upstream document has at most {MAX_DOCUMENT:,} bytes")
    try:
        found = _DECODER.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as cause:
        raise Invalid(f"this is no upstream document: {cause}") from None
    if found.encode() != raw:
        raise Invalid("the upstream document is not in its canonical form: it would have two digests")
    return found


def looks_like_upstream(prefix: bytes) -> bool:
    """Whether ``prefix`` is how such a document begins."""
    return prefix.startswith(MAGIC)


def parse_url(url: str) -> Place:
    """A URL in parts: scheme, host, port, path, and nothing else. Raises Invalid."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
    except ValueError as cause:
        raise Invalid(f"{url[:80]!r} is not a URL: {cause}") from None
    path = parts.path.rstrip("/").removesuffix("/v2")
    if parts.scheme not in SCHEMES:
        raise Invalid(f"an upstream has a URL of {' or '.join(SCHEMES)}, not {parts.scheme[:20]!r}")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment or not url.isascii():
        raise Invalid("the URL of an upstream has no user, password, query or fragment: name a token with --upstream-token")
    if not _is_host(host) or not _PATH.match(path) or any(part in (".", "..") for part in path.split("/")):
        raise Invalid(f"{url[:80]!r} is not the URL of an upstream: expected such as https://models.acme.eu:8443")
    if path and parts.scheme in ("grpc", "grpcs"):
        raise Invalid("the URL of a gRPC upstream has a host and a port, and no path")
    return Place(parts.scheme, host, port if port else SCHEMES[parts.scheme], path)


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine by its very name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_host(host: str) -> bool:
    if ":" in host:
        try:
            return "%" not in host and bool(ipaddress.IPv6Address(host))
        except ValueError:
            return False
    return bool(_HOST.match(host)) and ".." not in host


def _check_ends(specs: Sequence[TensorSpec], what: str) -> None:
    names = [spec.name for spec in specs]
    if len(set(names)) != len(names):
        raise Invalid(f"the upstream has two {what}s of one name")
    for spec in specs:
        if not 1 <= len(spec.name) <= 256 or not spec.name.isprintable():
            raise Invalid(f"an {what} of the upstream has a name that cannot be served: {spec.name[:60]!a}")
        if len(spec.shape) > 8 or not all(-1 <= size < 2**31 for size in spec.shape):
            raise Invalid(f"{what} {spec.name!r} of the upstream has the shape {list(spec.shape)}, which cannot be served")
