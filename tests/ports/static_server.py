"""A plain web server over a folder, as ``python -m http.server`` is one, and the misbehaving ones."""

import contextlib
import functools
import itertools
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class _Quiet(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(handler) -> Iterator[str]:
    """The address of a server with ``handler``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def static(folder: Path):
    """A server of the files in ``folder``."""
    return serve(functools.partial(_Quiet, directory=str(folder)))


def answering(status: int, headers: dict[str, str], body: bytes | Iterator[bytes] = b""):
    """A server that answers everything so, and ``seen`` what it was asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append((self.path, dict(self.headers)))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                for chunk in [body] if isinstance(body, bytes) else body:
                    self.wfile.write(chunk)
            except OSError:
                pass  # the reader had enough

        def log_message(self, *_):
            pass

    seen: list[tuple[str, dict[str, str]]] = []
    return serve(Handler), seen


@contextmanager
def trickling(start: bytes, piece: bytes) -> Iterator[str]:
    """The address of a server that says ``start``, and ``piece`` over and over, until nobody listens."""
    over = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            for said in itertools.chain([start], itertools.repeat(piece)):
                if over.wait(0.005):
                    return
                connection.sendall(said)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=drip, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)


ENDLESS = {
    "headers": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "interim answers": (b"", b"HTTP/1.1 103 Early Hints\r\n\r\n"),
    "one header": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "the body": (b"HTTP/1.1 200 OK\r\n\r\n", b"z"),
}
"""What a server can go on with for ever, each piece long before any timeout."""
