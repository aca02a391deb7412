"""What a server process starts with: the key compartments that it needs, and a certificate of its own.

Control also gets what opens and seals the key ring, because it rotates keys; not the passphrase, which may open other things.
A gateway gets changed compartments while it runs, through a socket that only ``up`` holds the other end of.

The key of the authority (``tls-ca``) goes to no gateway, and control's certificate has a name of its own: a broken gateway must
not be able to pose as control.
"""

import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec

from modelkeep.adapters.certificates import renewal_due
from modelkeep.adapters.process import pipe_with, read_pipe
from modelkeep.adapters.tls import Identity
from modelkeep.app.premises import Premises
from modelkeep.core.hidden import holds_secrets, never_pickled
from modelkeep.custody.keyring import Keyring, Unlocked
from modelkeep.custody.keys import TLS_CA
from modelkeep.errors import ModelkeepError, NotTrusted, Unavailable

CONTROL_NAME = "control.modelkeep.internal"
"""The name that only control's certificate carries, beside the host names; who trusts this keep's authority asks for it."""


RING, LINK, LEAF = b"k", b"l", b"t"
"""What comes through the socket of a process: a key ring, an end of a link to another process, or a certificate."""
LOOK_SECONDS = 0.25
"""Pause between two looks at the key ring."""
LEAF_SECONDS = 60.0
"""Pause between two looks whether a certificate ends soon."""


@never_pickled
class Opened(NamedTuple):
    """Opened compartments, the certificate and key to serve TLS with, and for control what opens the key ring."""

    keyring: Keyring
    leaf: Identity
    unlocked: Unlocked | None = None


@holds_secrets()
class _Wire(msgspec.Struct, frozen=True):
    keys: bytes
    chain: bytes
    key: bytes
    unlocked: bytes

    def __repr__(self) -> str:
        return "_Wire(…)"


def open_for(premises: Premises, families: Sequence[str]) -> Opened:
    """Open exactly ``families`` and issue a fresh certificate, with control's own name for whoever gets ``tls-ca``.

    Raises NotTrusted (wrong passphrase), Missing, Unavailable.
    """
    whole = premises.keyring([*families, TLS_CA])
    control = TLS_CA in families
    leaf = premises.issue_leaf(whole, (CONTROL_NAME,) if control else ())
    return Opened(Keyring.receive(whole.hand_over(families)), leaf, premises.unlocked if control else None)


def encode(opened: Opened) -> bytes:
    """For a child process. It holds secrets in the clear: for memory that no disk backs, and nothing else."""
    keyring, leaf, unlocked = opened
    ring = keyring.hand_over(keyring.families)
    return msgspec.msgpack.encode(_Wire(ring, leaf.chain, leaf.key, unlocked.hand_over() if unlocked else b""))


def decode(data: bytes) -> Opened:
    """Undo ``encode``. Raises NotTrusted."""
    try:
        wire = msgspec.msgpack.decode(data, type=_Wire)
    except msgspec.MsgspecError:  # `from None`: the cause could quote a secret
        raise NotTrusted("what this process was handed at its start is malformed") from None
    unlocked = Unlocked.receive(wire.unlocked) if wire.unlocked else None
    return Opened(Keyring.receive(wire.keys), Identity(wire.chain, wire.key), unlocked)


class LeafWatch:
    """Issues a fresh certificate for a gateway before the one that it shows ends. ``renew`` is given it."""

    def __init__(
        self, premises: Premises, leaf: Identity, renew: Callable[[Identity], None], tell: Callable[[str], None]
    ) -> None:
        self.leaf = leaf
        self._premises, self._renew, self._tell = premises, renew, tell
        self._next, self._told = 0.0, ""

    def look(self) -> None:
        """Look, unless it is too soon. What goes wrong is told once, and tried again."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LEAF_SECONDS
        if not renewal_due(self.leaf.chain, self._premises.clock.now_ns() / 1e9):
            return
        try:
            fresh = self._premises.issue_leaf(self._premises.keyring([TLS_CA]))
            self._renew(fresh)
        except ModelkeepError as cause:
            if str(cause) != self._told:
                self._told = str(cause)
                self._tell(f"the certificate could not be renewed: {cause}")
        else:
            self.leaf, self._told = fresh, ""
            self._tell("the certificate was renewed")


class RingWatch:
    """Notices that the key ring of a keep changed. ``renew`` is told then; make it before anything is opened for others."""

    def __init__(self, premises: Premises, tell: Callable[[str], None]) -> None:
        self.renew: Callable[[], None] = lambda: None
        self._premises, self._tell = premises, tell
        self._seen = self._told = premises.keys.stamp()
        self._next = 0.0

    def look(self) -> None:
        """Look, unless it is too soon. What goes wrong is told once for every change, and tried again."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + LOOK_SECONDS
        stamp: tuple[tuple[str, int, int], ...] = ()
        try:
            stamp = self._premises.keys.stamp()
            if stamp == self._seen:
                return
            self.renew()
        except ModelkeepError as cause:
            if stamp != self._told:
                self._told = stamp
                self._tell(f"the key ring changed and could not be opened: {cause}")
        else:
            self._seen = self._told = stamp
            self._tell("the key ring changed: the running processes have it")


def send_ring(through: socket.socket, keyring: Keyring) -> None:
    """Hand compartments to the process at the other end. Raises Unavailable: it is gone."""
    _send(through, RING, keyring.hand_over(keyring.families))


def _send(through: socket.socket, sign: bytes, secret: bytes) -> None:
    descriptor = pipe_with(secret)
    try:
        socket.send_fds(through, [sign], [descriptor])
    except OSError as cause:
        raise Unavailable(f"the process that should get the changed keys is gone: {cause.strerror}") from cause
    finally:
        os.close(descriptor)


def _leaf(data: bytes) -> Identity:
    try:
        chain, key = msgspec.msgpack.decode(data, type=tuple[bytes, bytes])
    except msgspec.MsgspecError:  # `from None`: the cause could quote a secret
        raise NotTrusted("the certificate that this process was handed is malformed") from None
    return Identity(chain, key)


def send_leaf(through: socket.socket, leaf: Identity) -> None:
    """Hand a fresh certificate and its key to the process at the other end. Raises Unavailable: it is gone."""
    _send(through, LEAF, msgspec.msgpack.encode((leaf.chain, leaf.key)))


def follow_ring(
    descriptor: int,
    take: Callable[[Keyring], None],
    report: Callable[[str], None],
    *,
    show: Callable[[Identity], None] = lambda _leaf: None,
    link: Callable[[socket.socket], None] = socket.socket.close,
    ended: Callable[[], None] = lambda: None,
) -> threading.Thread:
    """Begin to give ``take`` every key ring that comes through ``descriptor``, until its other end is closed.

    ``show``: given every certificate that comes; ``link``: given the ends of links to other processes, which come the same way;
    ``ended``: told when the other end is closed.
    """

    def run() -> None:
        with socket.socket(fileno=descriptor) as end:
            while True:
                sign, descriptors, _, _ = socket.recv_fds(end, 1, 1)
                if not sign:
                    break
                if sign == LINK:
                    link(socket.socket(fileno=descriptors[0]))
                    continue
                what = "certificate was" if sign == LEAF else "keys were"
                try:
                    if sign == LEAF:
                        show(_leaf(read_pipe(descriptors[0])))
                    else:
                        take(Keyring.receive(read_pipe(descriptors[0])))
                except ModelkeepError as cause:
                    report(f"the changed {what} not taken over: {cause}")
        ended()

    thread = threading.Thread(target=run, name="keys", daemon=True)
    thread.start()
    return thread


def hand_link(through: socket.socket, end: socket.socket) -> None:
    """Hand on an end of a link between two processes that have the one at the other end in common. Raises OSError."""
    socket.send_fds(through, [LINK], [end.fileno()])
