"""A control process without its sockets, and what asks it."""

import asyncio
from urllib.parse import urlencode

import httpx
import msgspec

from modelkeep.access.passwords import Passwords
from modelkeep.adapters.clock import SystemClock
from modelkeep.app.control import open_control
from modelkeep.app.handover import open_for
from modelkeep.app.keep import Keep
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.keys import FAMILIES
from modelkeep.http.control import LoginAsked as Asked
from modelkeep.http.control import application, decode_login, encode_login
from modelkeep.serving.recovery import read_bodies

PASSPHRASE = b"a passphrase for tests"
PASSWORD = "four quite ordinary words"


class NoGateways(SystemClock):
    """There is no gateway whose lease would have to be waited out."""

    def sleep(self, seconds):
        pass


class Admin:
    """A control process without its sockets, and clients at addresses of their choice."""

    def __init__(self, folder, passphrase=b""):
        """``passphrase``: of the keep that is in ``folder`` already; without it one is made there."""
        if not passphrase:
            self.first = Keep.init(folder, PASSPHRASE).password
        self.keep = Keep.open(folder, passphrase or PASSPHRASE)
        self.control = open_control(folder, open_for(self.keep.premises, FAMILIES), lambda _text: None)
        self.keep.premises.clock = self.control.keep.premises.clock = NoGateways()
        self.application = application(self.control)

    def quicken(self):
        """Hash passwords with parameters that cost nothing: what is tested is not how hard they are."""
        cheap = Passwords(passes=1, memory_kib=8, lanes=1)
        self.keep.premises.__dict__["passwords"] = self.control.logins._passwords = cheap
        return self

    def post(self, path, body, token="", address="192.0.2.1"):
        """The status, and the body: bytes, or what a problem says."""
        return asyncio.run(self._post(path, body, token, address))

    def form(self, path, address="192.0.2.1", **fields):
        """The status, and the JSON that answers a form."""
        answer = self.send("POST", path, urlencode(fields).encode(), address, "application/x-www-form-urlencoded")
        return answer.status_code, answer.json() if answer.content else {}

    def send(self, method, path, body=b"", address="192.0.2.1", kind="application/json", token=""):
        """The whole response."""
        headers = {"content-type": kind, **({"authorization": f"Bearer {token}"} if token else {})}
        return asyncio.run(self._send(method, path, body, address, headers))

    async def _send(self, method, path, body, address, headers):
        transport = httpx.ASGITransport(self.application, client=(address, 1), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="https://control") as client:
            return await client.request(method, path, content=body, headers=headers)

    def verb(self, verb, token, **arguments):
        """The status of a verb, and what it answers or its problem."""
        status, body = self.post(f"/admin/v1/{verb}", pack(**arguments), token)
        return status, msgspec.msgpack.decode(body) if status == 200 else msgspec.json.decode(body)

    async def _post(self, path, body, token, address):
        transport = httpx.ASGITransport(self.application, client=(address, 1), raise_app_exceptions=True)
        async with httpx.AsyncClient(transport=transport, base_url="https://control") as client:
            answer = await client.post(path, content=body, headers={"authorization": f"Bearer {token}"} if token else {})
        return answer.status_code, answer.content

    def login(self, name, password, new="", code=""):
        status, body = self.post("/admin/v1/login", encode_login(Asked(name, password, new, code)))
        assert status == 200, body
        return decode_login(body).token

    def member(self, name, role):
        """The session of a new account."""
        made = self.keep.user_add(name=name, roles=(role,))
        return self.login(name, made.password, PASSWORD)

    def records(self):
        """(kind, subject, request, outcome) of everything recorded so far."""
        self.control.audit.publish()
        here, origin = self.keep.premises, self.control.audit.current.log.origin
        found = read_bodies(
            here.audit_files(self.control.audit.current.instance), encode_vkey(origin, here.trust.audit_key), origin
        )
        return [(entry.kind, entry.subject, entry.request, entry.outcome) for _, entry, _ in found]


def pack(**arguments):
    return msgspec.msgpack.encode(arguments)
