"""Identity from outside, wired: the issuers of the settings, their keys, and how proofs are judged."""

import threading
from collections.abc import Callable
from pathlib import Path

from modelkeep.access.directory import Directory
from modelkeep.access.dpop import Proofs, ProofTerms
from modelkeep.access.issuerkeys import IssuerKeys
from modelkeep.access.issuers import Issuer, Issuers, IssuerTerms
from modelkeep.access.limits import Limiter
from modelkeep.adapters.identity.oidc import HttpKeySource, check_address
from modelkeep.app.sections import IssuerSettings
from modelkeep.app.settings import Settings
from modelkeep.app.witnessing import inside
from modelkeep.core.ports import Clock
from modelkeep.errors import Invalid, Missing, ModelkeepError, Unavailable


def open_issuers(directory: Path, settings: Settings, clock: Clock) -> Issuers:
    """The issuers whose tokens are taken; nothing is fetched yet. Raises Invalid (an address or a file that is none)."""
    return Issuers([_issuer(directory, one, clock) for one in settings.issuers], settings.access.url)


def client_authorities(directory: Path, settings: Settings) -> tuple[bytes, bool]:
    """The authorities whose client certificates count (PEM, empty = none), and whether a client must show one.

    Raises Missing (the file), Invalid, Unavailable.
    """
    gateway = settings.gateway
    if not gateway.client_ca:
        if gateway.client_certificates == "required":
            raise Invalid("gateway.client_certificates is required, and gateway.client_ca names no authorities")
        return b"", False
    path = inside(directory, gateway.client_ca, "gateway.client_ca")
    try:
        return path.read_bytes(), gateway.client_certificates == "required"
    except FileNotFoundError:
        raise Missing(f"{path} is missing, and the setting gateway.client_ca asks for it") from None
    except OSError as cause:
        raise Unavailable(f"cannot read {path}: {cause.strerror}") from cause


def open_proofs(settings: Settings, clock: Clock, nonce_key: bytes) -> Proofs:
    """The judge of proofs of possession. ``nonce_key``: 32 bytes that all replicas share."""
    terms = ProofTerms(
        window=settings.dpop.window_seconds,
        nonce_seconds=settings.dpop.nonce_seconds,
        nonce_key=nonce_key,
        hosts=frozenset(name.lower() for name in settings.gateway.names),
    )
    limits = settings.limits
    rate = Limiter(clock.monotonic, rate=limits.rate, burst=limits.burst, what="proofs of possession of this key")
    return Proofs(terms, clock.monotonic, rate)


def _issuer(directory: Path, settings: IssuerSettings, clock: Clock) -> Issuer:
    for url in (settings.issuer, *filter(None, [settings.jwks_uri])):
        check_address(url, plain=settings.allow_http)
    terms = IssuerTerms(
        alias=settings.alias,
        issuer=settings.issuer,
        audiences=settings.audiences,
        algorithms=settings.algorithms,
        types=settings.types,
        account_claim=settings.account_claim,
        roles_claim=settings.roles_claim,
        roles=settings.roles,
        tenant_claim=settings.tenant_claim,
        tenants=settings.tenants,
        clock_skew=settings.clock_skew,
        max_lifetime=settings.max_lifetime,
        binding=settings.binding,
        token_requests=settings.token_requests or None,
        max_accounts=settings.max_accounts,
    )
    ca = str(inside(directory, settings.ca, "issuers.ca")) if settings.ca else ""
    source = HttpKeySource(settings.issuer, settings.jwks_uri, ca, settings.allow_http)
    keys = IssuerKeys(
        source,
        settings.algorithms,
        clock.monotonic,
        refresh_seconds=settings.refresh_seconds,
        stale_seconds=settings.stale_seconds,
        retry_seconds=settings.retry_seconds,
    )
    return Issuer(terms, keys)


class KeyReader:
    """Reads the keys of issuers when they are due, each in a thread of its own, so that none holds up another or the caller."""

    def __init__(self, issuers: Issuers, report: Callable[[str], None]) -> None:
        """``report``: told when an issuer's keys cannot be read, and when they can again."""
        self._issuers, self._report = issuers, report
        self._failing: dict[str, str] = {}

    def look(self) -> None:
        """Begin what is due. Returns at once."""
        for issuer in self._issuers:
            if issuer.keys.due():
                threading.Thread(target=self._read, args=(issuer,), name=f"keys-{issuer.terms.alias}", daemon=True).start()

    def _read(self, issuer: Issuer) -> None:
        alias = issuer.terms.alias
        try:
            issuer.keys.refresh()
        except ModelkeepError as cause:
            if self._failing.get(alias) != str(cause):
                self._report(f"the keys of {alias} could not be read, those in hand go on counting for a while: {cause}")
            self._failing[alias] = str(cause)
        else:
            if self._failing.pop(alias, ""):
                self._report(f"the keys of {alias} can be read again")


class Visitors:
    """What a server does about accounts of other issuers, beside answering them: reads keys, announces newcomers."""

    def __init__(self, directory: Directory, keys: KeyReader, report: Callable[[str], None]) -> None:
        self._directory, self._keys, self._report = directory, keys, report

    def look(self) -> None:
        """One round, about four a second. What cannot be announced now is at the next."""
        self._keys.look()
        try:
            self._directory.announce()
        except Unavailable as cause:
            self._report(f"a newcomer could not be announced: {cause}")
