"""Receivers of audit records in this process: a syslog server over TLS and a webhook, which can be told to misbehave."""

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from free_ports import free_port

from modelkeep.adapters.tls import authority_certificate, issue, make_authority_key, server_context
from modelkeep.core.ports import SinkBatch, SinkPlace
from modelkeep.errors import Unavailable

SECRET = b"whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef")
NOW = 1_700_000_000 * 10**9


class Authority:
    """A certificate authority with one server certificate for 127.0.0.1; ``path``: its PEM."""

    def __init__(self, folder: Path, now: int) -> None:
        self.key = make_authority_key()
        self.pem = authority_certificate(self.key, "tests", now)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.pem)
        self.context = server_context(issue(self.key, self.pem, ["127.0.0.1", "localhost"], now))
        self.context.set_alpn_protocols(["http/1.1"])


class Receiver:
    """Accepts connections, each in a thread. ``mode``: "" = behave; "hang" = read nothing; "reset" = close at once.

    ``records``: what was received, by log and index.
    """

    def __init__(self, tls: ssl.SSLContext | None, port: int = 0) -> None:
        self.mode = ""
        self.records: dict[tuple[str, int], bytes] = {}
        self.notes: list[bytes] = []
        self.changed = threading.Condition()
        self.go = threading.Event()
        self._tls = tls
        self._open: set[socket.socket] = set()
        self._bound = socket.create_server(("127.0.0.1", port or free_port()))
        self.port = self._bound.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                plain, _ = self._bound.accept()
                threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        self._open.add(plain)
        try:
            if self.mode == "reset":
                return
            if self.mode == "hang":
                self.go.wait(20)
                return
            link = self._tls.wrap_socket(plain, server_side=True) if self._tls else plain
            self._open.add(link)
            with link:
                self.talk(link)
        except (OSError, ValueError, RuntimeError):  # gone, or it speaks something else
            pass
        finally:
            plain.close()
            self._open.discard(plain)

    def talk(self, link: socket.socket) -> None:
        raise NotImplementedError

    def keep(self, origin: str, first: int, entries: list[bytes]) -> None:
        with self.changed:
            self.records |= {(origin, index): entry for index, entry in enumerate(entries, first)}
            self.changed.notify_all()

    def wait(self, count: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.records) >= count, 10), f"{len(self.records)} of {count}"

    def stop(self) -> None:
        """As if its process had died."""
        self.go.set()
        with suppress(OSError):
            self._bound.shutdown(socket.SHUT_RDWR)
        self._bound.close()
        for link in list(self._open):
            with suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)


def read(link: socket.socket) -> Iterator[int]:
    while data := link.recv(65_536):
        yield from data


class SyslogReceiver(Receiver):
    """RFC 5425, section 4.3: ``MSG-LEN SP SYSLOG-MSG``. ``messages``: as they came."""

    def __init__(self, tls: ssl.SSLContext, port: int = 0) -> None:
        self.messages: list[bytes] = []
        super().__init__(tls, port)

    def talk(self, link: socket.socket) -> None:
        octets = read(link)
        while True:
            head = bytearray()
            for octet in octets:
                if octet == 32:
                    break
                head.append(octet)
            else:
                return
            message = bytes(next(octets) for _ in range(int(head)))
            self.take(message)

    def take(self, message: bytes) -> None:
        self.messages.append(message)
        header, text = message.split(b" - ", 2)[1:][0], message.split(b" - ", 2)[2]
        if header == b"checkpoint":
            self.notes.append(json.loads(text.removeprefix(b"- "))["checkpoint"].encode())
            return
        event = json.loads(text.removeprefix(b"- "))
        meta = event["metadata"]
        self.keep(meta["log_name"], meta["sequence"], [event["raw_data"].encode()])


class WebhookReceiver(Receiver):
    """HTTP/1.1 by hand, so that it can be bad at it. ``answer``: bytes of the answer to a POST.

    ``requests``: (headers, body) of every POST whose signature holds; ``slow``: seconds between two bytes of an answer.
    """

    def __init__(self, tls: ssl.SSLContext | None, port: int = 0) -> None:
        self.answer = b"HTTP/1.1 204 No Content\r\n\r\n"
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.bad: list[str] = []
        self.slow = 0.0
        super().__init__(tls, port)

    def talk(self, link: socket.socket) -> None:
        octets = read(link)
        while True:
            head = bytearray()
            while not head.endswith(b"\r\n\r\n"):
                octet = next(octets, None)
                if octet is None:
                    return
                head.append(octet)
            line, *rest = head.decode().strip().split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (row.partition(":") for row in rest)}
            body = bytes(next(octets) for _ in range(int(headers.get("content-length", "0"))))
            if self.mode == "hang":
                self.go.wait(20)
                return
            if line.startswith("HEAD"):
                link.sendall(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 12\r\n\r\n")
                continue
            if b" 20" in self.answer:
                self.take(headers, body)
            for at in range(0, len(self.answer), 1 if self.slow else len(self.answer)):
                link.sendall(self.answer[at : at + (1 if self.slow else len(self.answer))])
                if self.slow and self.go.wait(self.slow):
                    return
            if b"connection: close" in self.answer:
                return

    def take(self, headers: dict[str, str], body: bytes) -> None:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        key = base64.b64decode(SECRET.removeprefix(b"whsec_"))
        wanted = "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
        if not hmac.compare_digest(wanted, headers["webhook-signature"]):
            self.bad.append(headers["webhook-id"])
            return
        self.requests.append((headers, body))
        event = json.loads(body)
        if event["type"] == "modelkeep.audit.checkpoint":
            self.notes.append(event["data"]["note"].encode())
            return
        data = event["data"]
        text = body.decode()
        raw = text[text.index('"entries":[') + 11 : text.rindex("]")]
        entries = ["{" + part for part in raw.removeprefix("{").split(",{")]
        assert [json.loads(entry) for entry in entries] == data["entries"]
        self.keep(data["origin"], data["first"], [entry.encode() for entry in entries])


class MemorySink:
    """``Sink`` in memory, which fails and hangs as it is told.

    ``down``: why it fails, "" = it does not; ``open``: while it is clear, calls do not return.
    """

    def __init__(self, name: str = "memory:") -> None:
        self.name = name
        self.down = ""
        self.open = threading.Event()
        self.open.set()
        self.records: dict[tuple[str, int], bytes] = {}
        self.notes: list[bytes] = []
        self.calls = 0
        self.before = lambda: None

    def _call(self) -> None:
        self.calls += 1
        self.before()
        self.open.wait(60)
        if self.down:
            raise Unavailable(self.down)

    def resume(self, origin: str) -> SinkPlace | None:
        self._call()
        return None

    def accept(self, batch: SinkBatch) -> None:
        self._call()
        self.records |= {(batch.origin, index): entry for index, entry in enumerate(batch.entries, batch.first)}

    def checkpoint(self, origin: str, note: bytes) -> None:
        self._call()
        self.notes.append(note)

    def probe(self) -> None:
        self._call()

    def close(self) -> None:
        pass
