"""Verbs about the key of OpenSSF signatures: its public half, its rotation, and what follows when it may be in other hands."""

from modelkeep.app.keyresults import KeyRotated
from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.verbs import verb
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import COMPROMISE, COMPROMISED, OMS_SIGNING, PRIMARY
from modelkeep.custody.oms import BundleKey
from modelkeep.errors import Conflict, Invalid, Missing


class OmsVerbs(OversightVerbs):
    """The family ``oms-signing``: signatures that ``model_signing`` verifies (docs/formats/oms.md)."""

    @verb("trust.show")
    def oms_key(self) -> str:
        """The public key, PEM, that checks the OpenSSF signatures made now. Raises Missing (every one was compromised)."""
        usable = [key for key in self.premises.trust.oms if key.until is None]
        if not usable:
            raise Missing(f"there is no key of OpenSSF signatures in use: 'modelkeep keys rotate {OMS_SIGNING}' makes one")
        return BundleKey(usable[-1].public).pem.decode()

    def rotate_oms_signing(self) -> KeyRotated:
        """A fresh key for OpenSSF signatures; what the former one signed still verifies. Raises NotTrusted, Unavailable."""
        here = self.premises
        ring = here.custody(lambda custodian, word: custodian.rotate(word, OMS_SIGNING, now_ns=here.clock.now_ns(), log_size=0))
        self.act("keys.rotate", OMS_SIGNING)
        return KeyRotated(OMS_SIGNING, _primary(ring))

    def compromise_oms_signing(self, version: str, reason: str, since: str) -> KeyRotated:
        """What one version signed counts only where it stands in the log by now; a fresh key is in use. Rerun to resume.

        Raises Missing, Invalid (``since``: the log says when each release was signed), NotTrusted, Unavailable.
        """
        here = self.premises
        if since or not version.isdecimal() or len(version) > 9:
            raise Invalid(
                f"give the number of a version of {OMS_SIGNING}, and no --since: what stands in the log by now counts"
            )
        number, ring = int(version), here.keyring([OMS_SIGNING])
        states = {info.version: info.state for info in ring.inventory() if info.family == OMS_SIGNING}
        if number not in states:
            raise Missing(f"{OMS_SIGNING} has no key version {number}")
        about, size = f"{OMS_SIGNING}/{number}", here.view().checkpoint.size
        self.raise_incident("keys", about, f"may be in other hands, tell whoever has its public key: {reason}")
        if states[number] == PRIMARY:
            self.rotate_oms_signing()
        if states[number] != COMPROMISED:
            here.custody(lambda custodian, word: custodian.set_state(word, OMS_SIGNING, number, COMPROMISE, log_size=size))
        self.act("keys.compromise", about, reason=reason)
        return KeyRotated(OMS_SIGNING, _primary(here.keyring([OMS_SIGNING])))


def _primary(ring: Keyring) -> str:
    found = [info for info in ring.inventory() if (info.family, info.state) == (OMS_SIGNING, PRIMARY)]
    if not found:
        raise Conflict(f"{OMS_SIGNING} has no primary key: rotate it")
    return f"{OMS_SIGNING}/{found[0].version}"
