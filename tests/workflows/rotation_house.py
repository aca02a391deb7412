"""A house whose keys live and die: its own ring over a key store whose every replacement can be the last, and a provider."""

import copy
import shutil

from workflow_house import CountingEntropy, Faulty, House

from modelkeep.adapters.keys.file import FileKeys
from modelkeep.core.ports import KeyInfo
from modelkeep.crypto.kdf import Argon2Params
from modelkeep.crypto.wrap import unwrap_key, wrap_key
from modelkeep.custody import keys
from modelkeep.custody.keyring import Custodian, Keyring
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.ringkeys import RingCustody, RingKeys
from modelkeep.errors import Conflict, Denied, Missing
from modelkeep.workflows.acts import log_act
from modelkeep.workflows.holdings import Bodies, Subjects
from modelkeep.workflows.key_rotation import Wheel
from modelkeep.workflows.registry import KeysOpener

DAY = 86_400 * 10**9
WORD = b"word"
HSM = "hsm:models"


class Hsm:
    """A provider in memory, with the states that the port names; it may be called by many threads at once."""

    uri = HSM

    def __init__(self, clock, faults):
        self.clock, self.faults, self.made = clock, faults, {}

    def create(self):
        if self.made:
            raise Conflict("the key exists")
        return self.faults.step(self._fresh)

    def rotate(self):
        self.versions()
        return self.faults.step(self._fresh)

    def _fresh(self):
        for version, (secret, state, due) in self.made.items():
            self.made[version] = (secret, keys.DECRYPT_ONLY if state == keys.PRIMARY else state, due)
        number = len(self.made) + 1
        self.made[number] = (bytes([number]) * 32, keys.PRIMARY, 0)
        return self.wrapper(number)

    def versions(self):
        if not self.made:
            raise Missing("the key was never made")
        return tuple(KeyInfo(f"{HSM}/{v}", v, state, v, due) for v, (_, state, due) in sorted(self.made.items()))

    def wrapper(self, version=None):
        found = [v for v, (_, state, _) in self.made.items() if (state == keys.PRIMARY if version is None else v == version)]
        if not found:
            raise (Missing if version or not self.made else Denied)("there is no such key")
        return _HsmKey(self, found[0])

    def opens(self, key_id):
        name, _, version = key_id.rpartition("/")
        return self.wrapper(int(version)) if name == HSM else None

    def disable(self, version):
        return self._let(version, keys.DISABLE)

    def enable(self, version):
        return self._let(version, keys.ENABLE)

    def cancel(self, version):
        return self._let(version, keys.CANCEL)

    def destroy(self, version, *, grace_days):
        if self.made[version][1] == keys.PENDING_DESTRUCTION:
            return self._let(version, keys.DESTROY)
        return self._let(version, keys.SCHEDULE, self.clock.now_ns() + grace_days * DAY)

    def _let(self, version, event, due=0):
        secret, state, _ = self.made[version]
        after = keys.next_key_state(keys.MODEL_KEK, state, event)
        self.faults.step(lambda: self.made.update({version: (secret, after, due)}))
        return self.versions()[version - 1]


class _HsmKey:
    def __init__(self, hsm, version):
        self.hsm, self.version, self.key_id = hsm, version, f"{HSM}/{version}"

    def wrap(self, key, context):
        if self.hsm.made[self.version][1] != keys.PRIMARY:
            raise Denied("not the primary")
        return wrap_key(self.hsm.made[self.version][0], key, context)

    def unwrap(self, wrapped, context):
        if self.hsm.made[self.version][1] not in keys.MAY_UNWRAP:
            raise Denied("it may not open")
        return unwrap_key(self.hsm.made[self.version][0], wrapped, context)


def _copied(port):
    """A memory port with the same content and a lock of its own."""
    made = type(port)()
    for name, value in vars(port).items():
        if not name.endswith("lock"):
            setattr(made, name, copy.copy(value))
    return made


class RotationHouse(House):
    """Every method is a fresh process's view: nothing is kept but what lies in the ports."""

    def __init__(self, root, ring):
        super().__init__(root, ring)
        self.hsm = Hsm(self.clock, self.faults)
        self.store = FileKeys(root / "keys")

    def copy(self, root):
        """The same house in another folder."""
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        made = object.__new__(RotationHouse)
        made.__dict__.update(self.__dict__)
        made.faults = type(self.faults)()
        made.root, made.clock = root, copy.copy(self.clock)
        made.records, made.blobs = _copied(self.records), _copied(self.blobs)
        made.files, made.store = type(self.files)(root / "log"), FileKeys(root / "keys")
        made.hsm = Hsm(made.clock, made.faults)
        return made

    def read_ring(self):
        """The ring as it lies on disk."""
        self.ring = Keyring.open(self.store, keys.FAMILIES, WORD)
        return self.ring

    def ring_keys(self, family=MODEL_KEK):
        custodian = Custodian(Faulty(self.store, self.faults, "replace"), CountingEntropy(), Argon2Params(64, 1, 1))

        def adopt(ring):
            self.ring = ring

        return RingKeys(family, lambda: self.ring, RingCustody(custodian, lambda: WORD, self.clock, adopt))

    def at(self, place, family=MODEL_KEK):
        return self.hsm if place == HSM else self.ring_keys(family)

    def providers(self, family=MODEL_KEK):
        return tuple(self.at(place, family) for place in reversed(self.ring.places(family)))

    @property
    def keys(self):
        return self.providers()[0]

    def registry(self, *, keyless=False):
        found = super().registry(keyless=keyless)
        return found if keyless else type(found)(
            found.records, found.blobs, found.view, found.book, [KeysOpener(self.providers)]
        )  # fmt: skip

    def wheel(self, family=MODEL_KEK, **more):
        self.read_ring()
        desk = self.desk()
        custodian = Custodian(Faulty(self.store, self.faults, "replace"), CountingEntropy(), Argon2Params(64, 1, 1))

        def move(place):
            self.ring = custodian.move(WORD, family, place)

        return Wheel(
            family=family,
            desk=desk,
            holdings=Bodies(desk.registry)
            if family == keys.MODEL_KEK
            else Subjects(desk.registry.records, self.providers(family)[0]),
            providers=lambda: self.providers(family),
            at=lambda place: self.at(place, family),
            move=move,
            act=lambda verb, about, detail: log_act(desk, self.trust.origin, verb, about, actor="ada", detail=detail),
            actor="ada",
            grace_days=7,
            **more,
        )
