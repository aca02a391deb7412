"""Verbs about who may sign: trust show/add/limit/remove/resign, and the rotation and compromise of the keys that sign."""

import datetime

from modelkeep.access.refresh import REFRESH
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.adapters.tls import authority_certificate, belongs, first_certificate
from modelkeep.app.keyresults import IdentityRow, KeyRotated, TrustChanged
from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.premises import CA_FILE
from modelkeep.app.results import StateChanged
from modelkeep.app.tokens import SCHEME, check_token_uri, in_token
from modelkeep.app.verbs import verb
from modelkeep.core.ports import Change
from modelkeep.core.values import ReleaseRef
from modelkeep.crypto.signatures import SOFTWARE
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import COMPROMISE, FAMILIES, STATEMENT_SIGNING, TLS_CA, TOKEN_SIGNING
from modelkeep.custody.succession import MakeMaterial, software, token_key_begun, token_key_ended
from modelkeep.custody.trust import Rights, TrustedIdentity, parse_identities
from modelkeep.errors import Invalid
from modelkeep.workflows.resign import resign
from modelkeep.workflows.trust_changes import (
    Fallen,
    add_identity,
    compromise_identity,
    index_of_time,
    limit_identity,
    remove_identity,
    rotate_identity,
)

CA_NAME = CA_FILE.rpartition("/")[2]
KEYS = "keys"
"""Kind of an incident about keys."""


class TrustVerbs(OversightVerbs):
    """Who may sign what. Each change is a statement in the log before the trust root says it, but for a compromise."""

    @verb("trust.show")
    def trust_show(self) -> tuple[IdentityRow, ...]:
        """Every identity of the trust root, a row for each stretch of the log, and where the keys of our own live."""
        places = self.premises.keyring([STATEMENT_SIGNING]).identity_places()
        root = self.premises.registry().book.signatories.root
        return tuple(_row(each, places.get(each.name)) for each in root.identities)

    @verb("trust.change")
    def trust_add(
        self,
        *,
        identity: bytes,
        name: str = "",
        may_sign: tuple[str, ...] = ("*",),
        releases: tuple[str, ...] = ("*",),
        reason: str = "",
    ) -> TrustChanged:
        """Let an identity made elsewhere sign, from the next log entry on.

        ``identity``: an identity file or another keep's ``trust.toml``; ``name``: which one of it, if there are several;
        ``may_sign``: short statement types; ``releases``: patterns of model names.
        Raises Invalid, Conflict (its name or key is known), NotTrusted, Unavailable.
        """
        found = {each.name: each for each in parse_identities(identity)}
        if not name and len(found) > 1:
            raise Invalid(f"the file names several identities: say which one with --name ({', '.join(sorted(found))})")
        chosen = found.get(name or next(iter(found)))
        if chosen is None:
            raise Invalid(f"the file names no identity {name[:80]!r}: it has {', '.join(sorted(found))}")
        rights = Rights(may_sign, releases)
        index = add_identity(self.premises.desk(), self.premises.amend, chosen, rights, actor=self.actor.subject, reason=reason)
        return self._changed(chosen.name, index)

    @verb("trust.change")
    def trust_limit(
        self, *, name: str, may_sign: tuple[str, ...] = (), releases: tuple[str, ...] = (), reason: str = ""
    ) -> TrustChanged:
        """Give an identity other rights from the next log entry on; what it said before stays. What is not given stays.

        Raises Missing, Invalid (our own identity, or nothing given), Conflict (it ended), NotTrusted, Unavailable.
        """
        self._check_other(name)
        desk = self.premises.desk()
        known = desk.registry.book.signatories.stretches(name)
        if not may_sign and not releases:
            raise Invalid("say what the identity may sign: give --may-sign or --releases")
        rights = Rights(may_sign or (known[-1].may_sign if known else ()), releases or (known[-1].releases if known else ()))
        index = limit_identity(desk, self.premises.amend, name, rights, actor=self.actor.subject, reason=reason)
        return self._changed(name, index)

    @verb("trust.change")
    def trust_remove(self, *, name: str, reason: str = "") -> TrustChanged:
        """End an identity: what it signed so far stays, nothing later counts.

        Raises Missing, Invalid (our own identity), Conflict (it ended), NotTrusted, Unavailable.
        """
        self._check_other(name)
        index = remove_identity(self.premises.desk(), self.premises.amend, name, actor=self.actor.subject, reason=reason)
        self.premises.settle_lease()
        return self._changed(name, index)

    @verb("trust.change")
    def trust_resign(self, *, ref: str) -> StateChanged:
        """Sign a release again that fell away with a compromised key, once its body is opened, digested and scanned anew.

        It is then published, to be promoted; or in quarantine, if it was ever taken away.
        Raises Conflict (its statements stand), Missing, NotTrusted, Denied, Unavailable.
        """
        after = resign(self.premises.desk(), ReleaseRef.parse(ref), actor=self.actor.subject)
        return StateChanged(ref, str(after.state), after.index)

    def rotate_statement_signing(self) -> KeyRotated:
        """Announce a fresh statement identity and take it into use. Rerun to resume. Raises Conflict, Denied, Unavailable."""
        here = self.premises
        pending = here.keyring([STATEMENT_SIGNING]).pending_signer(here.token_halves)
        desk = here.desk()  # finishes a rotation that was cut off after its announcement
        signer = here.keyring([STATEMENT_SIGNING]).statement_signer(here.token_halves)
        if pending is not None and signer.public == pending.public:
            return KeyRotated(STATEMENT_SIGNING, signer.name)
        done = rotate_identity(desk, here.amend, self._make(), actor=self.actor.subject, tokens=here.token_halves)
        here.settle_lease()
        return KeyRotated(STATEMENT_SIGNING, done.name)

    def compromise_statement_signing(self, version: str, reason: str, since: str) -> KeyRotated:
        """What one version signed counts only before ``since`` (a log index, or a time); a fresh identity is in use.

        Raises Missing, Invalid, Conflict, NotTrusted, Unavailable.
        """
        here = self.premises
        ring, number = here.keyring(FAMILIES), _number(version)
        if not since:
            raise Invalid("say from when on its statements no longer count: give --since with a log index or a time")
        view = here.view()
        index = int(since) if since.isdecimal() else index_of_time(view, _moment(since))
        after, lost = compromise_identity(
            view, ring, here.amend, self._make(), version=number, since=index, now_ns=here.clock.now_ns()
        )
        self.raise_incident(KEYS, f"{STATEMENT_SIGNING}/{number}", f"may be in other hands since log index {index}: {reason}")
        self.act("keys.compromise", f"{STATEMENT_SIGNING}/{number}", reason=reason, since=str(index), **_said(lost))
        here.settle_lease()
        gone, held = tuple(map(str, lost.gone)), tuple(map(str, lost.held))
        name = after.statement_signer(here.token_halves).name
        return KeyRotated(STATEMENT_SIGNING, name, gone=gone, held=held, policies=lost.policies)

    def rotate_token_signing(self) -> KeyRotated:
        """A fresh key for sessions and signed records; every record is signed again, and every session ends.

        Rerun to resume. Raises NotTrusted (a record was not written by this keep), Conflict, Unavailable.
        """
        here = self.premises
        here.keyring(FAMILIES)
        here.amend(token_key_begun(here.entropy, here.clock.now_ns()))
        here.settle_lease()  # running processes take the new key before anything is signed with it
        signed = here.sign_records_again()
        here.amend(token_key_ended)
        self.act("keys.rotate", TOKEN_SIGNING, records=str(signed))
        return KeyRotated(TOKEN_SIGNING, self._primary(TOKEN_SIGNING), changed=signed)

    def compromise_token_signing(self, version: str, reason: str, since: str) -> KeyRotated:
        """Rotate the key of sessions and signed records, and open an incident: who is an account has to be looked at."""
        number = _number(version)
        if since:
            raise Invalid("--since is for statement-signing: a session or a record does not say when it was signed")
        about = f"{TOKEN_SIGNING}/{number}"
        self.raise_incident(KEYS, about, f"may be in other hands, look through 'user list' and 'key list': {reason}")
        known = self._primary(TOKEN_SIGNING)
        if self.premises.trust.token_key_before:  # a rotation was cut off: until it ends, the former key is trusted, too
            known = self.rotate_token_signing().primary
        done = self.rotate_token_signing() if known == about else KeyRotated(TOKEN_SIGNING, known)
        records = self.premises.records
        for record in records.scan(REFRESH):  # whoever had the key may have written some, and they would be signed again
            records.commit([Change(REFRESH, record.key, None)])
        self._mark_compromised(TOKEN_SIGNING, number, reason)
        return done

    def rotate_tls_ca(self) -> KeyRotated:
        """A fresh certificate authority. ``ca.pem`` then holds its certificate and the former one, for clients to change over.

        Servers have a certificate of the new authority once they are started again. Rerun to resume. Raises Unavailable.
        """
        here, files = self.premises, self._tls()
        ring, former = here.keyring(FAMILIES), files.read(CA_NAME)
        if belongs(ring.secret(TLS_CA), former):  # else: cut off between the key and its certificate
            now = here.clock.now_ns()
            ring = here.custody(lambda custodian, word: custodian.rotate(word, TLS_CA, now_ns=now, log_size=0))
        fresh = authority_certificate(ring.secret(TLS_CA), here.trust.origin, here.clock.now_ns())
        files.write(CA_NAME, fresh + first_certificate(former))
        self.act("keys.rotate", TLS_CA)
        return KeyRotated(TLS_CA, self._primary(TLS_CA))

    def compromise_tls_ca(self, version: str, reason: str, since: str) -> KeyRotated:
        """A fresh certificate authority, and no word of the former one."""
        number, known = _number(version), self._primary(TLS_CA)
        if since:
            raise Invalid("--since is for statement-signing: a certificate does not stand in the log")
        self.raise_incident(KEYS, f"{TLS_CA}/{number}", f"may be in other hands, give clients the new ca.pem: {reason}")
        known, files = self._primary(TLS_CA), self._tls()
        if not belongs(self.premises.keyring(FAMILIES).secret(TLS_CA), files.read(CA_NAME)):
            self.rotate_tls_ca()  # one was cut off between the key and its certificate
        done = self.rotate_tls_ca() if known == f"{TLS_CA}/{number}" else KeyRotated(TLS_CA, known)
        files.write(CA_NAME, first_certificate(files.read(CA_NAME)))
        self._mark_compromised(TLS_CA, number, reason)
        return done

    def _mark_compromised(self, family: str, number: int, reason: str) -> None:
        here = self.premises
        states = {info.version: info.state for info in here.keyring(FAMILIES).inventory() if info.family == family}
        if states.get(number) != "compromised":
            here.custody(lambda custodian, word: custodian.set_state(word, family, number, COMPROMISE, log_size=0))
        self.act("keys.compromise", f"{family}/{number}", reason=reason)
        here.settle_lease()

    def _tls(self) -> FolderLogFiles:
        return FolderLogFiles(self.premises.directory / CA_FILE.rpartition("/")[0])

    def _make(self) -> MakeMaterial:
        uri, entropy = self.premises.settings.keys.statement_signing, self.premises.entropy
        if uri.partition("?")[0] in ("", SCHEME):  # no token is named: at most how one is reached that is in use still
            return software(entropy)
        return in_token(check_token_uri(uri), entropy)

    def _primary(self, family: str) -> str:
        ring: Keyring = self.premises.keyring(FAMILIES)
        return next(f"{family}/{info.version}" for info in ring.inventory() if (info.family, info.state) == (family, "primary"))

    def _check_other(self, name: str) -> None:
        if name in self.premises.keyring([STATEMENT_SIGNING]).identity_places():
            raise Invalid(f"{name} is this keep's own: 'modelkeep keys rotate {STATEMENT_SIGNING}' ends it and has a successor")

    def _changed(self, name: str, index: int) -> TrustChanged:
        last = self.premises.registry().book.signatories.stretches(name)[-1]
        return TrustChanged(name, index, last.may_sign, last.releases, last.until is None)


def _row(each: TrustedIdentity, place: str | None) -> IdentityRow:
    ended = "compromised" if each.compromised else "ended"
    state = "in force" if each.until is None else ended
    halves = ("elsewhere", "elsewhere") if place is None else (place, f"{SOFTWARE}, wrapped by the token")
    ed25519, mldsa65 = (SOFTWARE, SOFTWARE) if place == SOFTWARE else ("destroyed", "destroyed") if place == "" else halves
    return IdentityRow(
        each.name, state, each.may_sign, each.releases, each.first, each.until, each.public.key_ids[0], ed25519, mldsa65
    )


def _said(lost: Fallen) -> dict[str, str]:
    return {"gone": str(len(lost.gone)), "held": str(len(lost.held)), "policies": ",".join(lost.policies)}


def _number(version: str) -> int:
    if not version.isdecimal() or len(version) > 9:
        raise Invalid(f"{version[:40]!r} is no version of a key: give its number")
    return int(version)


def _moment(text: str) -> int:
    """Unix nanoseconds of an ISO 8601 time, UTC unless it says otherwise. Raises Invalid."""
    try:
        found = datetime.datetime.fromisoformat(text)
    except ValueError:
        raise Invalid(f"{text[:40]!r} is neither a log index nor a time such as 2026-11-22T18:00:00Z") from None
    return int((found if found.tzinfo else found.replace(tzinfo=datetime.UTC)).timestamp()) * 10**9
