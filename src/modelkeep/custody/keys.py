"""Key families, versions and their states, as tables; and the plain content of a key compartment.

Nothing here is sealed: custody/keyring opens and closes the compartments. Secrets never appear in a representation.
"""

from typing import Any

import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, derive_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from modelkeep.core import keystates as wrapping
from modelkeep.core.hidden import never_pickled
from modelkeep.core.ports import Entropy
from modelkeep.core.values import to_json
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted

MODEL_KEK, AUDIT_SUBJECT, WATERMARK = "model-kek", "audit-subject", "watermark"
STATEMENT_SIGNING, LOG_SIGNING, AUDIT_LOG, TOKEN_SIGNING = "statement-signing", "log-signing", "audit-log", "token-signing"
TLS_CA, OMS_SIGNING, SECOND_FACTOR, DATA_KEK = "tls-ca", "oms-signing", "second-factor", "data-kek"

WRAPPING_FAMILIES = (MODEL_KEK, AUDIT_SUBJECT, WATERMARK, SECOND_FACTOR, DATA_KEK)
TURNING = (MODEL_KEK, AUDIT_SUBJECT, SECOND_FACTOR, DATA_KEK)
"""Families that wrap something that can be wrapped again. The watermark's key is committed to in the log and stays."""
SIGNING_FAMILIES = (STATEMENT_SIGNING, LOG_SIGNING, AUDIT_LOG, TOKEN_SIGNING, TLS_CA, OMS_SIGNING)
FAMILIES = WRAPPING_FAMILIES + SIGNING_FAMILIES
LATER_FAMILIES = (OMS_SIGNING, SECOND_FACTOR, DATA_KEK)
"""What keeps of earlier versions lack; ``modelkeep upgrade`` makes them."""
GATEWAY_FAMILIES = (MODEL_KEK, AUDIT_SUBJECT, AUDIT_LOG, WATERMARK)
"""What serving needs. Never data sets, statement signing, the releases log, session tokens or the certificate authority."""
OWNER_FAMILIES = (MODEL_KEK, AUDIT_SUBJECT, AUDIT_LOG)
"""What the process that keeps the evidence of several workers needs: profiles, recorded answers, the end of dead logs."""
ROTATABLE = (*TURNING, STATEMENT_SIGNING, TOKEN_SIGNING, TLS_CA, OMS_SIGNING)
"""A log keeps its key for its life (a successor log gets another), and watermark keys are committed to in the log."""

PENDING, PRIMARY, DISABLED, DESTROYED = wrapping.PENDING, wrapping.PRIMARY, wrapping.DISABLED, wrapping.DESTROYED
COMPROMISED, DECRYPT_ONLY, VERIFY_ONLY = wrapping.COMPROMISED, wrapping.DECRYPT_ONLY, "verify-only"
PENDING_DESTRUCTION = wrapping.PENDING_DESTRUCTION
ENTER, SUPERSEDE, DISABLE, ENABLE = wrapping.ENTER, wrapping.SUPERSEDE, wrapping.DISABLE, wrapping.ENABLE
DESTROY, COMPROMISE, SCHEDULE, CANCEL = wrapping.DESTROY, wrapping.COMPROMISE, wrapping.SCHEDULE, wrapping.CANCEL

WRAPPING_STATES, MAY_UNWRAP = wrapping.WRAPPING_STATES, wrapping.MAY_UNWRAP
SIGNING_STATES: dict[tuple[str, str], str] = {
    (PENDING, ENTER): PRIMARY,
    (PRIMARY, SUPERSEDE): VERIFY_ONLY,
    (VERIFY_ONLY, DESTROY): DESTROYED,
    **{(state, COMPROMISE): COMPROMISED for state in (PENDING, PRIMARY, VERIFY_ONLY)},
    (COMPROMISED, DESTROY): DESTROYED,
}


def next_key_state(family: str, state: str, event: str) -> str:
    """Where ``event`` takes a key of ``family`` in ``state``. Raises Conflict when the table has no such arrow."""
    table = WRAPPING_STATES if family in WRAPPING_FAMILIES else SIGNING_STATES
    try:
        return table[state, event]
    except KeyError:
        raise Conflict(f"a {state} key of {family} cannot {event}") from None


@never_pickled
class KeyVersion(msgspec.Struct, frozen=True):
    """One version of a family's key. ``created``: Unix nanoseconds; ``material``: secret bytes by part, {} once destroyed.

    ``due``: when a pending destruction happens, Unix nanoseconds, 0 = none. ``tainted``: it was compromised once, so that
    cancelling its destruction makes it compromised again, never merely disabled.
    """

    version: int
    state: str
    created: int
    material: dict[str, bytes]
    due: int = 0
    tainted: bool = False

    def __repr__(self) -> str:
        return f"KeyVersion({self.version}, {self.state!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("version", self.version), ("state", self.state)]

    def after(self, family: str, event: str, due: int = 0) -> "KeyVersion":
        """This version once ``event`` happened; destroying drops the material. ``due``: of a scheduled one. Raises Conflict."""
        state = next_key_state(family, self.state, event)
        if event == CANCEL and self.tainted:
            state = COMPROMISED
        return msgspec.structs.replace(
            self,
            state=state,
            material={} if state == DESTROYED else self.material,
            due=(due or self.due) if state == PENDING_DESTRUCTION else 0,
            tainted=self.tainted or event == COMPROMISE,
        )


@never_pickled
class Compartment(msgspec.Struct, frozen=True):
    """The plain content of ``keys/<family>.keep``: the family's versions, oldest first, and the keep's trust root.

    ``recovery``: the public recovery recipient that the file is sealed for besides the passphrase. ``places``: where else the
    family's keys live or lived, as provider URIs, oldest first: the last one is used now, "" is this compartment, and so is
    none at all. They are sealed because whoever could change them could have the next models wrapped under a key of his own.
    """

    family: str
    recovery: str
    trust: TrustRoot
    versions: tuple[KeyVersion, ...]
    places: tuple[str, ...] = ()
    format: int = 1

    def __repr__(self) -> str:
        return f"Compartment({self.family!r}, {self.versions!r})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("family", self.family), ("versions", self.versions)]

    def encode(self) -> bytes:
        """Its bytes. They hold secrets in the clear: seal them, or write them to a pipe."""
        return to_json(self)

    @classmethod
    def parse(cls, data: bytes, family: str) -> "Compartment":
        """Raises NotTrusted: malformed, of a later format, or of another family."""
        try:
            found = msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError, Invalid):  # `from None`: the cause could quote a secret
            raise NotTrusted(f"the content of compartment {family} is malformed") from None
        if found.format != 1:
            raise NotTrusted(f"compartment {family} has format {found.format}; this modelkeep knows format 1")
        if found.family != family:
            raise NotTrusted(f"the file of compartment {family} holds {found.family}: the files were swapped")
        return found

    def primary(self) -> KeyVersion:
        """The version in use. Raises Denied when there is none (compromised, not yet rotated)."""
        for key in self.versions:
            if key.state == PRIMARY:
                return key
        raise Denied(f"{self.family} has no primary key: rotate it")

    def at(self, version: int) -> KeyVersion:
        """One version. Raises Missing."""
        for key in self.versions:
            if key.version == version:
                return key
        raise Missing(f"{self.family} has no key version {version}")

    @property
    def place(self) -> str:
        """Where new keys of the family are made: a provider URI, or "" for this compartment."""
        return self.places[-1] if self.places else ""

    def moved(self, place: str) -> "Compartment":
        """The same with its keys made at ``place`` from now on; a primary that is left behind can still decrypt."""
        versions = self.versions
        if place:
            versions = tuple(key.after(self.family, SUPERSEDE) if key.state == PRIMARY else key for key in versions)
        places = tuple(known for known in (self.places or ("",)) if known != place)
        return msgspec.structs.replace(self, versions=versions, places=(*places, place))

    def with_event(self, version: int, event: str, due: int = 0) -> "Compartment":
        """The same with ``event`` happened to one version. Raises Missing, Conflict."""
        changed = self.at(version).after(self.family, event, due)
        versions = tuple(changed if key.version == version else key for key in self.versions)
        return msgspec.structs.replace(self, versions=versions)

    def rotated(self, entropy: Entropy, now_ns: int) -> "Compartment":
        """The same with a fresh primary; the former one can still decrypt or be verified."""
        versions = tuple(key.after(self.family, SUPERSEDE) if key.state == PRIMARY else key for key in self.versions)
        number = max((key.version for key in versions), default=0) + 1
        fresh = KeyVersion(number, PENDING, now_ns, new_material(self.family, entropy)).after(self.family, ENTER)
        return msgspec.structs.replace(self, versions=(*versions, fresh))


def new_material(family: str, entropy: Entropy) -> dict[str, bytes]:
    """Fresh secrets for one key version.

    statement-signing: ``ed25519`` and ``mldsa65`` seeds; tls-ca and oms-signing: ``key``, a P-256 key as PKCS #8 DER; else
    ``key``, 32 bytes.
    """
    if family == STATEMENT_SIGNING:
        return {"ed25519": entropy.token(32), "mldsa65": entropy.token(32)}
    if family in (TLS_CA, OMS_SIGNING):
        # FIPS 186-5, A.2.1: 64 bits more than the order, so the reduction's bias is negligible.
        order = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
        scalar = int.from_bytes(entropy.token(40)) % (order - 1) + 1
        key = derive_private_key(scalar, SECP256R1())
        return {"key": key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())}
    return {"key": entropy.token(32)}
