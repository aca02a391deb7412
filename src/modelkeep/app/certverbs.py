"""Verbs about client certificates: which account one speaks for."""

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.certificates import (
    CERTIFICATE,
    CertificateKey,
    add_certificate,
    certificate_name,
    parse_certificate,
    remove_certificate,
)
from modelkeep.access.credentials import KeyTerms
from modelkeep.app.acting import Acts
from modelkeep.app.results import CertificateRow
from modelkeep.app.verbs import verb
from modelkeep.errors import Conflict, Missing

SECOND = 1_000_000_000


class CertificateVerbs(Acts):
    """cert add/remove/list."""

    @verb("key.issue")
    def cert_add(
        self,
        *,
        account: str,
        certificate: str,
        quota: int | None = None,
        days: int | None = None,
        models: tuple[str, ...] = (),
    ) -> CertificateRow:
        """Let a client certificate speak for ``account``: its PEM, ``sha256:<hex>``, ``uri:<URI>`` or ``dns:<name>``.

        Raises Missing (no such account), Conflict (it is disabled, or the certificate speaks for one already), Invalid.
        """
        here = self.premises
        try:
            owner = parse_account(self.record(ACCOUNT, account))
        except Missing:
            raise Missing(f"there is no account {account[:64]!r}") from None
        if owner.disabled:
            raise Conflict(f"{account} is disabled: enable it before it gets a certificate")
        limits = here.settings.limits
        terms = KeyTerms(models=models, quota=quota or limits.key_requests, lifetime=(days or limits.key_days) * 86_400)
        try:
            made = self.change(lambda: add_certificate(account, certificate, terms, entropy=here.entropy, clock=here.clock))
        except Conflict:
            raise Conflict(f"{certificate_name(certificate)} speaks for an account already: remove it first") from None
        self.act("key.issue", owner.subject, key=made.quota_id)
        return _row(made)

    @verb("key.revoke")
    def cert_remove(self, *, certificate: str) -> CertificateRow:
        """Let a certificate speak for nobody; nothing that it asks after this returns is answered. Raises Missing, Invalid."""
        name = certificate_name(certificate)
        try:
            removed = self.change(lambda: remove_certificate(self.record(CERTIFICATE, name)))
        except Missing:
            raise Missing(f"{name[:80]} speaks for no account") from None
        owner = parse_account(self.record(ACCOUNT, removed.account))
        self.act("key.revoke", owner.subject, key=removed.quota_id)
        self.premises.settle_lease()
        return _row(removed)

    @verb("key.list")
    def cert_list(self) -> tuple[CertificateRow, ...]:
        """Every certificate that speaks for an account."""
        return tuple(_row(parse_certificate(record)) for record in self.premises.records.scan(CERTIFICATE))


def _row(found: CertificateKey) -> CertificateRow:
    return CertificateRow(found.name, found.account, found.expires * SECOND, found.quota or 0, found.models)
