"""The control process over HTTPS: login, the verbs of ``Keep`` for whoever policy lets, and the gateways' audit checkpoints.

Everything is MessagePack both ways; errors are problem documents. A request that names itself (login apart) is answered only
after a record of it is durable in control's own audit log.
"""

import asyncio
import ipaddress
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelkeep.app.control import MAX_SMALL, Control
from modelkeep.app.processes import announce, withdraw
from modelkeep.core.hidden import holds_secrets
from modelkeep.errors import Invalid, ModelkeepError, Unavailable
from modelkeep.http.door import Threads, address_of, body_of, presented_of
from modelkeep.http.hurried import UvicornListener
from modelkeep.http.oauth import TokenEndpoint
from modelkeep.http.passkeys import PasskeyPages
from modelkeep.http.problem import problem
from modelkeep.http.serve import listening
from modelkeep.workflows.service import Listen

MAX_NOTE = 16 << 10
"""Largest checkpoint that a gateway may hand over, bytes."""
LONG_THREADS = 8
LONG = frozenset(
    ("publish", "publish_upstream", "trace", "calibrate", "account_explain", "fingerprint_make", "fingerprint_make_file")
)
"""Verbs that wait for a model, an upstream or a converter, and how many run at once: no quarantine waits for those."""
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


@holds_secrets("account")
class LoginAsked(msgspec.Struct, frozen=True):
    """Credentials. ``new_password``: replaces a one-time password; ``code``: of the second factor; empty = none."""

    account: str
    password: str
    new_password: str = ""
    code: str = ""

    def __repr__(self) -> str:
        return f"LoginAsked({self.account!r})"


@holds_secrets("expires")
class LoginGiven(msgspec.Struct, frozen=True):
    """A session. ``expires``: Unix seconds."""

    token: str
    expires: int

    def __repr__(self) -> str:
        return "LoginGiven(…)"


def encode_login(asked: LoginAsked) -> bytes:
    """The body of a login request."""
    return msgspec.msgpack.encode(asked)


def decode_login(answer: bytes) -> LoginGiven:
    """The session in an answer. Raises Unavailable."""
    try:
        return msgspec.msgpack.decode(answer, type=LoginGiven)
    except msgspec.MsgspecError as cause:
        raise Unavailable(f"the server's answer to the login is malformed: {cause}") from cause


class Api:
    """The routes, as methods over one ``Control``."""

    def __init__(self, control: Control, threads: Threads) -> None:
        self._control, self._threads, self._long = control, threads, Threads(LONG_THREADS)

    async def health(self, _request: Request) -> Response:
        """Whether control is there."""
        return JSONResponse({"live": True})

    async def ready(self, _request: Request) -> Response:
        """Whether control can act: it can write a record of it."""
        self._control.check_ready()
        return JSONResponse({"ready": True, "settled": self._control.settled})

    async def login(self, request: Request) -> Response:
        """Password in, session token out."""
        body = await body_of(request, MAX_SMALL)
        try:
            asked = msgspec.msgpack.decode(body, type=LoginAsked)
        except _MALFORMED:  # `from None`: the cause could quote a password
            raise Invalid("the login is malformed: expected account, password, new_password and code") from None
        token, expires = await self._threads.run(
            self._control.login, asked.account, asked.password, asked.new_password or None, address_of(request), asked.code
        )
        return _packed(msgspec.msgpack.encode(LoginGiven(token, expires)))

    async def logout(self, request: Request) -> Response:
        """End the session that asks."""
        await run_in_threadpool(self._control.logout, presented_of(request))
        return _packed(b"")

    async def verb(self, request: Request) -> Response:
        """Run one verb as the principal whose credential came with the request."""
        presented, verb = presented_of(request), request.path_params["verb"]
        body = await body_of(request, await run_in_threadpool(self._control.room, presented, verb))
        run = self._long.run if verb in LONG else run_in_threadpool
        return _packed(await run(self._control.run, presented.proven(), verb, body))

    async def checkpoint(self, request: Request) -> Response:
        """A gateway hands over a checkpoint of its audit log; the signature on it is the credential."""
        await run_in_threadpool(self._control.log_checkpoint, await body_of(request, MAX_NOTE))
        return _packed(b"")

    async def fail(self, _request: Request, error: Exception) -> Response:
        """An error of the tree as a problem document."""
        if not isinstance(error, ModelkeepError):
            raise error
        found = problem(error)
        headers = {name.decode(): value.decode() for name, value in found.headers}
        return Response(found.body, found.status, headers, media_type=found.content_type.decode())


SECURE = (
    (b"strict-transport-security", b"max-age=31536000"),
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""On every answer that does not say otherwise."""


class SecureHeaders:
    """An ASGI application whose answers have the headers that keep browsers from doing what nobody wants."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer as the application within does."""

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(each for each in SECURE if each[0] not in there)]
            await send(message)

        await self._app(scope, receive, with_headers)


def application(control: Control) -> Starlette:
    """The ASGI application."""
    threads = Threads()
    api = Api(control, threads)
    routes = [
        Route("/health", api.health),
        Route("/ready", api.ready),
        Route("/admin/v1/login", api.login, methods=["POST"]),
        Route("/admin/v1/logout", api.logout, methods=["POST"]),
        Route("/admin/v1/{verb}", api.verb, methods=["POST"]),
        Route("/gateway/v1/checkpoint", api.checkpoint, methods=["POST"]),
        *TokenEndpoint(control, threads).routes(),
        *PasskeyPages(control, threads).routes(),
    ]
    return Starlette(routes=routes, exception_handlers={ModelkeepError: api.fail})


def _packed(body: bytes) -> Response:
    return Response(body, media_type="application/msgpack", headers={"cache-control": "no-store"})


def run_control(control: Control, tell: Callable[[str], None], beat: Callable[[], None] = lambda: None) -> None:
    """Serve until SIGTERM or SIGINT; ``beat``: called some ten times a second.

    Raises Conflict (the address is taken), Unavailable (cannot listen there).
    """
    asyncio.run(_run(control, tell, beat))


def configured(control: Control) -> uvicorn.Config:
    """What uvicorn is told, with the application as it runs it; TLS apart."""
    settings = control.settings.control
    config = uvicorn.Config(
        SecureHeaders(application(control)),
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # an address counts as it was seen, and not as a header says, from this machine either
        timeout_graceful_shutdown=10,
        lifespan="off",
        limit_concurrency=settings.max_connections + 1,  # requests whose clients left count, too
        ws="none",
    )
    config.load()
    return config


async def _run(control: Control, tell: Callable[[str], None], beat: Callable[[], None]) -> None:
    settings, served = control.settings.control, _Server(configured(control), beat)
    bounds = Listen(
        host=settings.host,
        port=settings.port,
        tls=control.shown.context,
        max_connections=settings.max_connections,
        max_per_address=settings.max_per_address,
    )
    with served.capture_signals():
        async with _stopping(control), listening(UvicornListener(served, bounds, asyncio.get_running_loop())) as (host, port):
            url = f"https://{host}:{port}"
            control.url = _for_browsers(host, port)
            control.start()
            announce(control.directory, "control", url)
            tell(f"control: {url}  (clients trust {control.directory / 'tls' / 'ca.pem'})")
            await served.main_loop()


@asynccontextmanager
async def _stopping(control: Control) -> AsyncIterator[None]:
    """Stop ``control`` at the end, when nothing is left to be answered."""
    try:
        yield
    finally:
        withdraw(control.directory, "control")
        await asyncio.to_thread(control.stop)


def _for_browsers(host: str, port: int) -> str:
    """The address as a browser has it: passkeys belong to a host name, and an IP address is none."""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = False
    return f"https://{'localhost' if local else host}:{port}"


class _Server(uvicorn.Server):
    """uvicorn's server without its sockets, which leaves what follows a signal to its caller."""

    def __init__(self, config: uvicorn.Config, beat: Callable[[], None]) -> None:
        super().__init__(config)
        self.servers, self.lifespan = [], config.lifespan_class(config)
        self._beat = beat

    async def on_tick(self, counter: int) -> bool:
        self._beat()
        return await super().on_tick(counter)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGTERM or SIGINT, and do not raise the signal again: control still has its last record to write."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield
