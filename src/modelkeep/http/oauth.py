"""Control's token endpoint: OAuth 2.0 in its outer form, for those who have no identity provider of their own.

Sources: RFC 6749 (grants and errors; sections 4.3, 5.1, 5.2, 6), RFC 7009 (revocation), RFC 8414 (metadata), RFC 7517 (keys),
RFC 9068 (the token's form). Clients are public: whoever has the account's credentials is the account. A response is never
cached.
"""

from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from modelkeep.access.sessions import MULTI_FACTOR, PASSWORD_ONLY, public_jwk
from modelkeep.app.control import Control
from modelkeep.app.logins import Asked, Tokens
from modelkeep.app.people import check_actions
from modelkeep.core.values import parse_name
from modelkeep.errors import Conflict, Denied, Invalid, Missing, OverBudget, Unauthenticated, Unavailable
from modelkeep.http.door import Threads, address_of, body_of
from modelkeep.http.problem import problem

TOKEN, REVOKE, KEYS, METADATA = "/oauth/token", "/oauth/revoke", "/oauth/jwks", "/.well-known/oauth-authorization-server"
PASSWORD, REFRESH, STEP_UP = "password", "refresh_token", "urn:x-modelkeep:oauth:grant-type:step-up"
"""Grant types. The last exchanges a session in hand for one whose account has just shown a second factor."""
MAX_FORM = 64 << 10
"""Largest form, bytes: a passkey's answer is a few thousand."""
MAX_FIELDS = 32
NO_STORE = {"cache-control": "no-store", "pragma": "no-cache"}

Form = Mapping[str, str]


class Granted(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer of RFC 6749, section 5.1."""

    access_token: str
    token_type: str
    expires_in: int
    scope: str = ""
    refresh_token: str = ""

    def __repr__(self) -> str:
        return "Granted(…)"


class _Wrong(Exception):  # an answer of the protocol, and no error of the house
    """An error of RFC 6749, section 5.2, by its code."""

    def __init__(self, code: str, words: str) -> None:
        super().__init__(words)
        self.code = code


class TokenEndpoint:
    """The routes, as methods over one ``Control``."""

    def __init__(self, control: Control, threads: Threads) -> None:
        self._control, self._run = control, threads.run
        self._grants: dict[str, Callable[[Form, str], Tokens]] = {
            PASSWORD: self._password,
            REFRESH: self._refresh,
            STEP_UP: self._step_up,
        }

    def routes(self) -> list[Route]:
        """Everything below ``/oauth``, and the metadata."""
        return [
            Route(TOKEN, self.token, methods=["POST"]),
            Route(REVOKE, self.revoke, methods=["POST"]),
            Route(KEYS, self.keys),
            Route(METADATA, self.metadata),
        ]

    async def token(self, request: Request) -> Response:
        """Give tokens for one grant."""
        return await _answered(self._token(request))

    async def _token(self, request: Request) -> Response:
        form = await _form(request)
        grant = _needed(form, "grant_type")
        if grant not in self._grants:
            raise _Wrong("unsupported_grant_type", f"grant types are {', '.join(self._grants)}")
        found = await self._run(self._grants[grant], form, address_of(request))
        session = found.session
        given = Granted(found.access, "Bearer", session.exp - session.iat, _scope_text(found), found.refresh)
        return Response(msgspec.json.encode(given), 200, NO_STORE, media_type="application/json")

    def _password(self, form: Form, address: str) -> Tokens:
        asked = _asked(form) or Asked()
        name, password = _needed(form, "username"), _needed(form, "password")
        return self._control.identity.by_password(name, password, form.get("otp", ""), asked, address)

    def _refresh(self, form: Form, address: str) -> Tokens:
        token, asked = _needed(form, "refresh_token"), _asked(form)
        try:
            return self._control.identity.by_refresh(token, form.get("otp", ""), asked, address)
        except Invalid as cause:
            raise _Wrong("invalid_scope", str(cause)) from cause

    def _step_up(self, form: Form, address: str) -> Tokens:
        token, identity = _needed(form, "subject_token"), self._control.identity
        if "otp" in form:
            return identity.by_code(token, form["otp"], address)
        return identity.by_passkey(token, _needed(form, "challenge"), _needed(form, "assertion").encode(), address)

    async def revoke(self, request: Request) -> Response:
        """End a token, whichever kind it is; the answer is the same when there is nothing to end (RFC 7009, section 2.2)."""
        return await _answered(self._revoke(request))

    async def _revoke(self, request: Request) -> Response:
        form = await _form(request)
        await self._run(self._control.identity.revoke, _needed(form, "token"), address_of(request))
        return Response(b"", 200, NO_STORE)

    async def keys(self, _request: Request) -> Response:
        """The public keys that sign access tokens."""
        found = [public_jwk(public) for public in self._control.keep.premises.trust.token_keys]
        return JSONResponse(
            {"keys": found}, headers={"cache-control": "public, max-age=300"}, media_type="application/jwk-set+json"
        )

    async def metadata(self, _request: Request) -> Response:
        """Where everything is. Only a keep that has an address of its own can say who issues its tokens."""
        url = self._control.settings.access.url
        if not url:
            raise Missing("this keep has no address of its own to be found by: set access.url")
        return JSONResponse(
            {
                "issuer": url,
                "token_endpoint": url + TOKEN,
                "revocation_endpoint": url + REVOKE,
                "jwks_uri": url + KEYS,
                "grant_types_supported": list(self._grants),
                "response_types_supported": [],
                "token_endpoint_auth_methods_supported": ["none"],
                "revocation_endpoint_auth_methods_supported": ["none"],
                "acr_values_supported": [PASSWORD_ONLY, MULTI_FACTOR],
            }
        )


async def _answered(work: Awaitable[Response]) -> Response:
    """The answer, or the error in OAuth's form: what no code of it fits is a problem document, like everywhere."""
    try:
        return await work
    except _Wrong as wrong:
        return _error(400, wrong.code, str(wrong))
    except (OverBudget, Unavailable) as error:
        found = problem(error)
        again = {name.decode(): value.decode() for name, value in found.headers}
        return _error(found.status, "temporarily_unavailable", str(error), again)
    except (Unauthenticated, Denied, Conflict) as error:
        return _error(400, "invalid_grant", str(error))
    except Invalid as error:
        return _error(400, "invalid_request", str(error))


def _error(status: int, code: str, words: str, more: Mapping[str, str] = {}) -> Response:  # never changed
    said = "".join(char if " " <= char <= "~" and char not in '"\\' else "'" for char in words)  # RFC 6749, section 5.2
    return JSONResponse({"error": code, "error_description": said}, status, {**NO_STORE, **more})


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form, those without a value left out (RFC 6749, section 3.2). Raises Invalid, TooLarge."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise Invalid("send a form: content-type application/x-www-form-urlencoded")
    body = await body_of(request, MAX_FORM)
    try:
        pairs = parse_qsl(body.decode("ascii"), strict_parsing=bool(body), max_num_fields=MAX_FIELDS, keep_blank_values=True)
        text = [(name, value) for name, value in pairs if "\ufffd" not in name + value]
    except ValueError:  # `from None`: the cause could quote a password
        raise Invalid("the form is malformed") from None
    names = [name for name, _ in text]
    if len(text) < len(pairs) or len(set(names)) < len(names):
        raise Invalid("the form is not UTF-8, or has a field twice")
    return {name: value for name, value in text if value}


def _needed(form: Form, name: str) -> str:
    if name not in form:
        raise Invalid(f"the form lacks {name}")
    return form[name]


def _asked(form: Form) -> Asked | None:
    """What a client wants: ``scope`` is of ``model:NAME`` and ``action:NAME``, ``max_requests`` a number."""
    if "scope" not in form and "max_requests" not in form:
        return None
    found: dict[str, list[str]] = {"model": [], "action": []}
    for part in form.get("scope", "").split():
        kind, _, name = part.partition(":")
        if kind not in found:
            raise _Wrong("invalid_scope", "a scope is model:NAME or action:NAME")
        found[kind].append(name)
    try:
        models = tuple(parse_name(name, "model name") for name in found["model"])
        check_actions(tuple(found["action"]))
    except Invalid as cause:
        raise _Wrong("invalid_scope", str(cause)) from cause
    requests = form.get("max_requests", "0")
    if not requests.isascii() or not requests.isdigit() or len(requests) > 15:
        raise Invalid("max_requests is a number of requests")
    return Asked(models, tuple(found["action"]), int(requests))


def _scope_text(found: Tokens) -> str:
    models = [f"model:{name}" for name in found.session.models]
    return " ".join([*models, *(f"action:{name}" for name in found.session.operations)])
