"""Talking to a control process: the admin API from the caller's side, and the session that ``login`` keeps."""

import contextlib
import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import httpx
import msgspec

from modelkeep import errors
from modelkeep.app.handover import CONTROL_NAME
from modelkeep.core.hidden import holds_secrets
from modelkeep.errors import Invalid, ModelkeepError, NotTrusted, OverBudget, Unauthenticated, Unavailable

_BY_CODE: dict[str, type[ModelkeepError]] = {
    kind.code: kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ModelkeepError)
}


@holds_secrets("server", "account", "expires")
class Session(msgspec.Struct, frozen=True):
    """What ``login`` remembers for one server. ``expires``: Unix seconds; ``ca``: PEM text, empty = the system's roots."""

    server: str
    account: str
    token: str
    expires: int
    ca: str


class Problem(msgspec.Struct):
    """An RFC 9457 problem document, as far as we read it."""

    code: str = "error"
    detail: str = ""
    retry_after: float = 1.0


def sessions_file() -> Path:
    """Where sessions are kept: $XDG_CONFIG_HOME/modelkeep/sessions.json, mode 0600."""
    home = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(home) / "modelkeep" / "sessions.json"


def load_sessions() -> dict[str, Session]:
    """Sessions by server URL; none when the file is not there. Raises Invalid when it is damaged."""
    path = sessions_file()
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Session])
    except FileNotFoundError:
        return {}
    except (OSError, msgspec.MsgspecError) as cause:
        raise Invalid(f"cannot read {path}: {cause}; remove it and log in again") from cause


def save_sessions(sessions: dict[str, Session]) -> None:
    """Replace the sessions file. Raises Unavailable."""
    path = sessions_file()
    fresh = path.with_suffix(f".{os.getpid()}.new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(msgspec.json.encode(sessions))
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    except OSError as cause:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise Unavailable(f"cannot write {path}: {cause.strerror}") from cause


def session_account(server: str) -> str:
    """The account that is logged in to ``server``. Raises Unauthenticated, Invalid."""
    session = load_sessions().get(server.rstrip("/"))
    if session is None:
        raise Unauthenticated(f"not logged in to {server}: run 'modelkeep --server {server} login'")
    return session.account


class Remote:
    """One control process, reached over HTTPS."""

    def __init__(self, server: str, *, token: str = "", ca: str = "") -> None:
        if not server.startswith("https://"):
            raise Invalid(f"{server} is not an https:// address: the admin API is served over TLS only")
        try:
            context = ssl.create_default_context(cadata=ca or None)
        except ssl.SSLError as cause:
            raise Invalid("the certificate authority to trust (--ca) is not a PEM certificate") from cause
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._trust = context
        # A keep's own authority also certifies its gateways, for the same hosts: only control has this name.
        self._ask_for = {"sni_hostname": CONTROL_NAME} if ca else {}
        self._headers = {"content-type": "application/msgpack", **({"authorization": f"Bearer {token}"} if token else {})}
        self._server = server.rstrip("/")
        try:
            httpx.URL(self._server)
        except httpx.InvalidURL as cause:
            raise Invalid(f"{server[:200]} is not an address: {cause}") from cause

    @classmethod
    def of_session(cls, server: str) -> "Remote":
        """With the session kept for ``server``. Raises Unauthenticated when there is none."""
        session = load_sessions().get(server.rstrip("/"))
        if session is None:
            raise Unauthenticated(f"not logged in to {server}: run 'modelkeep --server {server} login'")
        return cls(server, token=session.token, ca=session.ca)

    def call(self, verb: Callable[..., Any], arguments: dict[str, Any]) -> Any:
        """Run one verb of the facade there. Raises what it raises there, and Unavailable."""
        answer = self.post(f"/admin/v1/{verb.__name__}", msgspec.msgpack.encode(arguments))
        return msgspec.msgpack.decode(answer, type=get_type_hints(verb)["return"])

    def post(self, path: str, body: bytes) -> bytes:
        """POST MessagePack, get MessagePack. Raises the error that the answer's problem document names, Unavailable."""
        try:
            timeout = httpx.Timeout(600.0, connect=10.0)
            with httpx.Client(verify=self._trust, headers=self._headers, timeout=timeout, trust_env=False) as client:
                response = client.post(self._server + path, content=body, extensions=self._ask_for)
        except httpx.HTTPError as cause:
            raise self._unreached(cause) from cause
        if response.status_code == httpx.codes.OK:
            return response.content
        raise _error(response)

    def _unreached(self, cause: httpx.HTTPError) -> ModelkeepError:
        """Why there was no answer, as what to do: a certificate that does not hold is no server that comes back."""
        below: BaseException | None = cause
        while below is not None and not isinstance(below, ssl.SSLCertVerificationError):
            below = below.__cause__ or below.__context__
        if below is None:
            return Unavailable(f"cannot reach {self._server}: {cause}")
        if not self._ask_for:
            why = "is signed by nobody this machine trusts: name the keep's authority with 'login --ca', its tls/ca.pem"
        else:
            why = "is not that of control, by the authority that --ca named: is it another keep's, or the port of a gateway?"
        return NotTrusted(f"the certificate of {self._server} {why} ({below.verify_message})")


def _error(response: httpx.Response) -> ModelkeepError:
    try:
        problem = msgspec.json.decode(response.content, type=Problem)
    except msgspec.MsgspecError:
        url, status = response.request.url, response.status_code
        return Unavailable(f"{url} answered {status}, and not as control does: --server takes its https://HOST:PORT alone")
    kind = _BY_CODE.get(problem.code, Unavailable)
    if kind is OverBudget:
        return OverBudget(problem.detail, problem.retry_after)
    return kind(problem.detail)
