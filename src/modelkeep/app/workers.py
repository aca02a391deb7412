"""Several processes that serve one gateway: its workers, the owner of their extraction evidence, and who keeps them running."""

import contextlib
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from modelkeep.adapters.tls import Identity
from modelkeep.app.gateway import announce_gateway
from modelkeep.app.handover import LINK, Opened, encode, follow_ring, hand_link, send_leaf, send_ring
from modelkeep.app.owner import NAME as OWNER
from modelkeep.app.processes import Child, address_file, supervise, withdraw
from modelkeep.custody.keyring import Keyring
from modelkeep.custody.keys import GATEWAY_FAMILIES, OWNER_FAMILIES
from modelkeep.errors import ModelkeepError, Unavailable

MOST_WORKERS = 64


class Crew:
    """The owner and the workers, as children of this process, which holds their keys so that it can start each again."""

    def __init__(
        self,
        directory: Path,
        command: Sequence[str],
        opened: Opened,
        bound: socket.socket,
        *,
        workers: int,
        grpc: socket.socket | None = None,
    ) -> None:
        """``command``: starts any of them, with ``--part`` and the sockets' descriptors added; ``bound``, ``grpc``: the sockets
        that listen, the second where gRPC is spoken."""
        self._directory, self._bound, self._grpc = directory, bound, grpc
        shared = [each.fileno() for each in (bound, grpc) if each is not None]
        told = [part for fd in shared for part in ("--listen-fd", str(fd))]
        owner = [*command, "--part", OWNER]
        self.owner = Child("the owner of the evidence", owner, b"", address_file(directory, OWNER), follows=True)
        self.workers = [
            Child(
                f"worker {number}",
                [*command, "--part", f"worker-{number}/{workers}", *told],
                b"",
                address_file(directory, f"worker-{number}"),
                follows=True,
                shares=shared,
            )
            for number in range(1, workers + 1)
        ]
        self._leaf = opened.leaf
        self._hold(opened.keyring)

    def run(
        self,
        tell: Callable[[str], None],
        updates: int = -1,
        *,
        look: Callable[[], None] = lambda: None,
        up: Callable[[], None] = lambda: None,
    ) -> None:
        """Serve until SIGTERM or SIGINT. ``updates``: descriptor that changed keys and certificates come through.

        ``look``: called some twenty times a second; ``up``: called once they answer. Raises Unavailable, and what ``look``
        does.
        """
        host, port = self._bound.getsockname()[:2]
        url = f"https://{host}:{port}"
        grpc = "" if self._grpc is None else "{}:{}".format(*self._grpc.getsockname()[:2])

        def watch() -> None:
            self.relay()
            look()

        def begun() -> None:
            announce_gateway(self._directory, url, tell, grpc)
            up()

        if updates >= 0:
            follow_ring(updates, self.take, tell, show=self.show)
        try:
            supervise(
                [self.owner, *self.workers],
                tell,
                watch,
                at_once=True,
                up=begun,
                stop=self._stop,
            )
        finally:
            self._close()

    def take(self, changed: Keyring) -> None:
        """Give changed keys to all, also to those that are started later. Raises Unavailable: one of them is gone."""
        self._hold(changed)
        problem = ""
        for child, families in [(self.owner, OWNER_FAMILIES), *((worker, GATEWAY_FAMILIES) for worker in self.workers)]:
            try:
                if child.updates is not None:
                    send_ring(child.updates, _only(changed, families))
            except ModelkeepError as cause:  # it gets them when it is started again
                problem = str(cause)
        if problem:
            raise Unavailable(problem)

    def show(self, leaf: Identity) -> None:
        """Give a fresh certificate to all workers, also to those that are started later. Raises Unavailable: one is gone."""
        self._leaf = leaf
        self._hold(self._keyring)
        for worker in self.workers:
            if worker.updates is not None:
                send_leaf(worker.updates, leaf)

    def relay(self) -> None:
        """Hand the links that workers offer on to the owner. One that cannot be handed on is closed, and offered again."""
        for worker in self.workers:
            if worker.updates is not None:
                self._relay(worker.updates)

    def _relay(self, updates: socket.socket) -> None:
        try:
            sign, descriptors, _, _ = socket.recv_fds(updates, 1, 1)
        except OSError:  # nothing there, or gone
            return
        for descriptor in descriptors:
            with socket.socket(fileno=descriptor) as end:
                if sign == LINK and self.owner.updates is not None:
                    with contextlib.suppress(OSError):  # it is gone: its successor gets the next one
                        hand_link(self.owner.updates, end)

    def _hold(self, keyring: Keyring) -> None:
        """Keep what a child gets at its start."""
        self._keyring = keyring
        self.owner.secret = encode(Opened(_only(keyring, OWNER_FAMILIES), self._leaf._replace(key=b"", chain=b"")))
        for worker in self.workers:
            worker.secret = encode(Opened(_only(keyring, GATEWAY_FAMILIES), self._leaf))

    def _stop(self) -> None:
        withdraw(self._directory, "gateway")
        self._close()  # the workers have them too: nobody waits in their queues once these have closed them

    def _close(self) -> None:
        self._bound.close()
        if self._grpc is not None:
            self._grpc.close()


def _only(keyring: Keyring, families: Sequence[str]) -> Keyring:
    return Keyring.receive(keyring.hand_over(families))
