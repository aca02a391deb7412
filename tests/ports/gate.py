"""A TCP gate before a server: lets bytes through, holds them, or shuts, so that tests can take a server away and back."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Gate:
    """Listens on a port of its own and forwards to ``port``. ``state``: open, hold (accept and forward nothing) or shut."""

    def __init__(self, port: int) -> None:
        self._port, self._state = port, threading.Condition()
        self._open, self._shut = True, False
        self._pairs: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Connections are accepted, and nothing comes back."""
        self._open = False
        try:
            yield
        finally:
            with self._state:
                self._open = True
                self._state.notify_all()

    @contextmanager
    def shut(self) -> Iterator[None]:
        """Connections are cut, old and new."""
        self._shut = True
        for end in self._pairs:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()
        try:
            yield
        finally:
            self._shut = False

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._shut:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._port))
            except OSError:  # it is gone, and so the gate is of no more use
                near.close()
                continue
            self._pairs += [near, far]
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, sink in ((near, far), (far, near)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                with self._state:
                    self._state.wait_for(lambda: self._open)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
