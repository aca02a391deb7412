"""How a server process comes to its keys, and how it gives them up: it waits sealed, and ``modelkeep lock`` seals it again.

To give keys up, a process becomes a new one in place (exec): its whole memory goes, and nothing has to be wiped.
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from modelkeep.adapters.localsocket import LocalSocket, Peer
from modelkeep.adapters.logs import Log
from modelkeep.adapters.systemd import Notifier
from modelkeep.adapters.tls import server_context, throwaway
from modelkeep.app.gateway import own_certificate
from modelkeep.app.sections import ControlSettings, GatewaySettings
from modelkeep.app.settings import Settings
from modelkeep.app.unsealing import Unsealing
from modelkeep.cli.context import Context
from modelkeep.errors import Invalid, ModelkeepError, NotTrusted, Unavailable
from modelkeep.http.sealed import run_sealed
from modelkeep.workflows.service import Listen

SEALED_FLAG = "--sealed"
_DRAIN_SECONDS = 0.5
_PAUSE = 0.1
_LOCK_SECONDS = 60.0


class Switch:
    """What a process with keys hears: ``status``, and ``seal``, after which it has none.

    ``check``: raises NotTrusted when what the process holds opens the key ring no more; a gateway alone holds no such thing.
    """

    def __init__(self, role: str, socket: LocalSocket, lock: Callable[[], None] | None = None) -> None:
        """``lock``: stops what uses the keys, called at once; None = the main thread looks at ``asked`` and sets ``locked``."""
        self._role, self._socket, self._lock = role, socket, lock
        self.asked, self.locked = threading.Event(), threading.Event()
        self.by = -1
        self.check: Callable[[], None] = lambda: None
        socket.handle = self.hear

    def hear(self, asked: dict[str, Any], peer: Peer) -> dict[str, Any]:
        """Answer one line of the local socket."""
        if asked.get("do") == "seal":
            self.by = peer.uid
            self.asked.set()
            if self._lock is None:
                if not self.locked.wait(_LOCK_SECONDS):
                    return {"code": Unavailable.code, "message": f"{self._role} has not given its keys up yet: try again"}
            else:
                self._lock()
                threading.Timer(_PAUSE, self.start_sealed).start()  # this answer leaves first
            return {"role": self._role, "sealed": self._lock is None}
        if asked.get("do") == "status":
            return {"role": self._role, "sealed": False, "shares": [], "needed": 0, "locked_out": self._locked_out()}
        return {"code": "conflict", "message": f"{self._role} is not sealed"}

    def _locked_out(self) -> bool:
        try:
            self.check()
        except NotTrusted:
            return True
        except ModelkeepError:  # the ring cannot be read now: nothing is known
            return False
        return False

    def start_sealed(self) -> None:
        """Become a process without keys, which waits sealed. Does not return."""
        self._socket.close()
        words = [word for word in sys.orig_argv[1:] if word != SEALED_FLAG]
        os.execv(sys.executable, [sys.executable, *words, SEALED_FLAG])  # noqa: S606  # ourselves, as we were called


def enter(
    ctx: Context,
    role: str,
    systemd: Notifier,
    log: Log,
    *,
    by_hand: bool,
    lock: Callable[[], None] | None = None,
    auto: bool = False,
) -> Switch | None:
    """Return once the keys can be opened: at once with a passphrase, else after an unsealing. None = stopped meanwhile.

    ``by_hand``: wait for a person in any case; ``systemd``: told once it listens, sealed; ``lock``: as of ``Switch``;
    ``auto``: no certificate of one's own is shown, whatever the settings say.

    Raises Conflict (a port is taken), Missing, NotTrusted, Invalid, Unavailable.
    """
    unsealing = Unsealing(ctx.directory, role, log.report, by_hand=by_hand)
    socket = LocalSocket(ctx.directory / "run", f"{role}-{os.getpid()}", unsealing.hear)
    if by_hand or not ctx.may_ask() or (unsealing.automatic and not ctx.passphrase_given):
        listeners = listeners_of(ctx.directory, unsealing.settings, role, auto=auto)
        ready = lambda: systemd.ready("sealed: waits for 'modelkeep unseal'")  # noqa: E731
        if not run_sealed(unsealing, listeners, log.tell, ready, systemd.beat):
            socket.close()
            return None
        if unsealing.unlocked is None:
            raise Invalid("this process was told that it is unsealed, and has nothing that opens the key ring")
        ctx.unsealed(unsealing.unlocked)
    return Switch(role, socket, lock)


def listeners_of(directory: Path, settings: Settings, role: str, *, auto: bool = False) -> Sequence[tuple[str, Listen]]:
    """Where a sealed process listens, in the place of the servers that it will start or be, and what it shows there.

    Raises Missing, Invalid, NotTrusted, Unavailable: of the certificate that the settings name.
    """
    gateway = settings.gateway
    strange, own = throwaway(gateway.names, _now()), own_certificate(directory, auto)
    shown = {"control": strange, "gateway": own.read() if own else strange}
    tls = {name: server_context(identity, minimum=gateway.tls_minimum) for name, identity in shown.items()}
    places: dict[str, GatewaySettings | ControlSettings] = {"control": settings.control, "gateway": settings.gateway}
    roles = {"up": ("control", "gateway"), "control": ("control",), "serve": ("gateway",)}[role]
    return [
        (name, Listen(host=places[name].host, port=places[name].port, tls=tls[name], drain_seconds=_DRAIN_SECONDS))
        for name in roles
    ]


def _now() -> int:
    from modelkeep.adapters.clock import SystemClock

    return SystemClock().now_ns()
