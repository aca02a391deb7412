"""The token endpoint: grants, errors as RFC 6749 has them, refreshing, revocation, keys, and what a flood costs."""

import itertools
import threading
from base64 import b32decode
from urllib.parse import parse_qs, urlsplit

import argon2
import jwt
import msgspec
import pytest
from codes import code_before
from control_support import PASSPHRASE, PASSWORD, Admin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.sessions import MULTI_FACTOR, PASSWORD_ONLY
from modelkeep.access.totp import code_of, step_at
from modelkeep.app.keep import Keep
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.http.control import LoginAsked, encode_login
from modelkeep.http.oauth import KEYS, METADATA, REVOKE, STEP_UP, TOKEN

NUMBERS = itertools.count()
FORM = "application/x-www-form-urlencoded"


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    made = Admin(tmp_path_factory.mktemp("oauth") / "keep").quicken()
    made.control.addresses._tolerance = 1e9  # the limit has a test of its own
    made.control.failures._tolerance = 1e9
    made.boss = made.login("admin", made.first, PASSWORD)
    yield made
    made.control.stop()


@pytest.fixture
def name(admin):
    """A fresh analyst, by name."""
    made = f"user-{next(NUMBERS)}"
    admin.member(made, Role.ANALYST)
    return made


def grant(admin, name, **more):
    status, said = admin.form(TOKEN, grant_type="password", username=name, password=PASSWORD, **more)
    assert status == 200, said
    return said


def claims(said):
    return jwt.decode(said["access_token"], options={"verify_signature": False})


def whoami(admin, said):
    """The status of a verb that everybody may use."""
    return admin.verb("releases", said["access_token"])[0]


def test_a_password_gives_an_access_token_and_a_refresh_token(admin, name):
    said = grant(admin, name)
    found = claims(said)
    assert (said["token_type"], said["expires_in"]) == ("Bearer", 600)
    assert (found["sub"], found["acr"], found["amr"], found["exp"] - found["iat"]) == (name, PASSWORD_ONLY, ["pwd"], 600)
    assert found["auth_time"] == found["iat"]
    assert whoami(admin, said) == 200
    answer = admin.send("POST", TOKEN, f"grant_type=password&username={name}&password=".encode() + b"x", kind=FORM)
    assert (answer.status_code, answer.headers["cache-control"]) == (400, "no-store")


def test_the_scope_that_was_asked_for_is_the_scope(admin, name):
    said = grant(admin, name, scope="model:iris action:predict action:show", max_requests="7")
    found = claims(said)
    assert (found["models"], found["operations"], found["max_requests"]) == (["iris"], ["predict", "show"], 7)
    assert said["scope"] == "model:iris action:predict action:show"
    status, problem = admin.verb("releases", said["access_token"])
    assert (status, problem["code"]) == (403, "denied") and "may only predict, show" in problem["detail"]


def test_no_policy_widens_the_operations_of_a_session(admin):
    """An administrator's session that may only predict may only predict."""
    said = grant(admin, "admin", scope="action:predict")
    for verb, arguments in (("user_add", {"name": "eve", "roles": ["admin"]}), ("session_list", {}), ("status", {})):
        status, problem = admin.verb(verb, said["access_token"], **arguments)
        assert (status, problem["code"]) == (403, "denied")
    assert admin.post("/admin/v1/publish", b"x" * (1 << 21), said["access_token"])[0] == 403


WRONG = {
    "no grant": ({}, "invalid_request"),
    "unknown grant": ({"grant_type": "implicit"}, "unsupported_grant_type"),
    "no name": ({"grant_type": "password", "password": "x"}, "invalid_request"),
    "empty value": ({"grant_type": "password", "username": "ann", "password": ""}, "invalid_request"),
    "wrong password": ({"grant_type": "password", "username": "ann", "password": "x"}, "invalid_grant"),
    "unknown scope": ({"grant_type": "password", "username": "a", "password": "x", "scope": "all"}, "invalid_scope"),
    "unknown action": ({"grant_type": "password", "username": "a", "password": "x", "scope": "action:fly"}, "invalid_scope"),
    "bad model": ({"grant_type": "password", "username": "a", "password": "x", "scope": "model:../x"}, "invalid_scope"),
    "bad number": ({"grant_type": "password", "username": "a", "password": "x", "max_requests": "1e3"}, "invalid_request"),
    "no refresh token": ({"grant_type": "refresh_token"}, "invalid_request"),
    "junk refresh token": ({"grant_type": "refresh_token", "refresh_token": "junk"}, "invalid_grant"),
    "unknown family": ({"grant_type": "refresh_token", "refresh_token": f"mkr_{'0' * 24}_{'0' * 64}"}, "invalid_grant"),
    "step-up of nothing": ({"grant_type": STEP_UP, "subject_token": "junk", "otp": "123456"}, "invalid_grant"),
    "step-up with nothing": ({"grant_type": STEP_UP, "subject_token": "junk"}, "invalid_request"),
}


@pytest.mark.parametrize(("fields", "code"), WRONG.values(), ids=WRONG)
def test_errors_are_those_of_rfc_6749(admin, fields, code):
    status, said = admin.form(TOKEN, **fields)
    assert (status, said["error"]) == (400, code)
    assert said["error_description"].isascii() and '"' not in said["error_description"]


@pytest.mark.parametrize(
    "body",
    [
        b"grant_type=password&grant_type=password",
        b"grant_type=%ff",
        b"grant_type=\xff",
        b"a" * (65 << 10),
        b"&".join([b"a=1"] * 99),
        b"=",
    ],
    ids=["twice", "no UTF-8", "no ASCII", "long", "many", "empty name"],
)
def test_a_bad_form_is_refused(admin, body):
    answer = admin.send("POST", TOKEN, body, kind=FORM)
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")


def test_only_a_form_is_a_form(admin):
    assert admin.send("POST", TOKEN, b"{}", kind="application/json").json()["error"] == "invalid_request"
    assert admin.send("GET", TOKEN).status_code == 405


@given(st.binary(max_size=200))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_comes_is_answered_in_form(admin, body):
    for path in (TOKEN, REVOKE):
        answer = admin.send("POST", path, body, kind=FORM)
        assert answer.status_code == 400 and set(answer.json()) == {"error", "error_description"}


# -- refreshing --


def refresh(admin, token, **more):
    return admin.form(TOKEN, grant_type="refresh_token", refresh_token=token, **more)


def test_a_refresh_gives_new_tokens_for_the_same_login(admin, name):
    first = grant(admin, name, scope="model:iris")
    status, second = refresh(admin, first["refresh_token"])
    assert status == 200 and second["refresh_token"] != first["refresh_token"]
    old, new = claims(first), claims(second)
    assert new["jti"] != old["jti"]
    assert [new[key] for key in ("sub", "auth_time", "amr", "models")] == [
        old[key] for key in ("sub", "auth_time", "amr", "models")
    ]
    assert refresh(admin, second["refresh_token"])[0] == 200


def test_a_refresh_token_that_is_shown_twice_ends_everything_it_led_to(admin, name):
    first = grant(admin, name)
    second = refresh(admin, first["refresh_token"])[1]
    third = refresh(admin, second["refresh_token"])[1]
    assert [whoami(admin, said) for said in (first, second, third)] == [200] * 3
    status, said = refresh(admin, first["refresh_token"])
    assert (status, said["error"]) == (400, "invalid_grant") and "used before" in said["error_description"]
    assert [whoami(admin, said) for said in (first, second, third)] == [401] * 3
    assert refresh(admin, third["refresh_token"])[0] == 400
    subject = parse_account(admin.keep.premises.records.get(ACCOUNT, name)).subject
    assert f"refresh-reuse:{subject}" in [row.id for row in admin.keep.incidents()]
    assert ("refresh", subject, "", "reused") in admin.records()


def test_of_refreshes_at_once_at_most_one_answers_and_the_family_ends(admin, name):
    first, answers, start = grant(admin, name), [], threading.Barrier(4)

    def try_it():
        start.wait()
        answers.append(refresh(admin, first["refresh_token"]))

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    good = [said for status, said in answers if status == 200]
    assert len(good) == 1, "the first of them, and no other"
    assert whoami(admin, good[0]) == 401 and refresh(admin, good[0]["refresh_token"])[0] == 400


def test_no_client_gives_its_session_more_than_the_settings_do(admin, name, monkeypatch):
    settings = admin.control.settings
    most = settings.limits.key_requests
    first = grant(admin, name, max_requests="999999999")
    assert claims(first)["max_requests"] == claims(grant(admin, name))["max_requests"] == most
    more = msgspec.structs.replace(settings, limits=msgspec.structs.replace(settings.limits, session_requests=5 * most))
    monkeypatch.setattr(admin.control.keep.premises, "settings", more)
    asked = {str(number): claims(grant(admin, name, max_requests=str(number)))["max_requests"] for number in (7, 10 * most)}
    assert asked == {"7": 7, str(10 * most): 5 * most}
    assert claims(grant(admin, name))["max_requests"] == most, "what nobody asked for stays as it was"
    less = msgspec.structs.replace(settings, limits=msgspec.structs.replace(settings.limits, session_requests=3))
    monkeypatch.setattr(admin.control.keep.premises, "settings", less)
    assert claims(refresh(admin, first["refresh_token"])[1])["max_requests"] == 3, "of what was begun before, too"


def test_a_refresh_may_narrow_and_never_widen(admin, name):
    first = grant(admin, name, scope="model:iris model:wine action:predict", max_requests="5")
    status, second = refresh(admin, first["refresh_token"], scope="model:iris", max_requests="999")
    assert (status, claims(second)["models"], claims(second)["operations"]) == (200, ["iris"], ["predict"])
    assert claims(second)["max_requests"] == 5
    status, said = refresh(admin, second["refresh_token"], scope="model:other")
    assert (status, said["error"]) == (400, "invalid_scope")
    assert claims(refresh(admin, second["refresh_token"])[1])["models"] == ["iris", "wine"], "and the refusal used nothing up"


@pytest.mark.parametrize("what", ["password", "disabled", "roles"])
def test_a_change_of_the_account_ends_its_refresh_tokens(admin, name, what):
    first = grant(admin, name)
    if what == "password":
        admin.login(name, PASSWORD, PASSWORD + "!")
    elif what == "roles":
        admin.keep.user_role(name=name, roles=(Role.ML_ENGINEER,))
    else:
        admin.keep.user_disable(name=name)
    assert refresh(admin, first["refresh_token"])[0] == 400
    assert whoami(admin, first) == 401


# -- ending --


def test_either_token_can_be_revoked_and_takes_the_other_with_it(admin, name):
    for which in ("access_token", "refresh_token"):
        said = grant(admin, name)
        assert admin.form(REVOKE, token=said[which]) == (200, {})
        assert whoami(admin, said) == 401
        assert refresh(admin, said["refresh_token"])[0] == 400
    assert admin.form(REVOKE, token="unknown") == (200, {}), "RFC 7009, section 2.2"


def test_logout_ends_the_refresh_token_too(admin, name):
    said = grant(admin, name)
    assert admin.post("/admin/v1/logout", b"", said["access_token"])[0] == 200
    assert refresh(admin, said["refresh_token"])[0] == 400


def test_sessions_are_listed_and_ended_by_their_owner_and_by_nobody_else(admin, name):
    mine, theirs = grant(admin, name, scope="action:predict"), grant(admin, "admin")
    token = grant(admin, name)["access_token"]
    status, rows = admin.verb("session_list", token, account=name)
    assert status == 200
    row = next(row for row in rows if row["id"] == claims(mine)["jti"])
    assert (row["state"], row["operations"], row["amr"], row["used"]) == ("active", ["predict"], ["pwd"], 0)
    assert admin.verb("session_list", token)[0] == 403
    assert admin.verb("session_list", token, account="admin")[0] == 403
    assert admin.verb("session_revoke", token, account="admin")[0] == 403
    stolen = claims(theirs)["jti"]
    assert admin.verb("session_revoke", token, account=name, session_id=stolen)[0] == 404, "its id does not say whose it is"
    status, ended = admin.verb("session_revoke", token, account=name, session_id=row["id"])
    assert (status, ended) == (200, [row["id"]])
    assert admin.verb("session_list", mine["access_token"])[0] == 401
    assert refresh(admin, mine["refresh_token"])[0] == 400
    assert admin.verb("session_revoke", token, account=name)[0] == 200
    assert admin.verb("session_list", token, account=name)[0] == 401
    assert whoami(admin, theirs) == 200
    ids = {each["id"]: each["state"] for each in admin.verb("session_list", admin.boss)[1]}
    assert ids[row["id"]] == "ended" and stolen in ids


def test_api_keys_are_rotated_and_revoked_by_their_owner_and_by_no_other(admin, name):
    mine, theirs = admin.keep.key_issue(account=name), admin.keep.key_issue(account="admin")
    token = grant(admin, name)["access_token"]
    status, fresh = admin.verb("key_rotate", token, key_id=mine.id)
    assert status == 200 and admin.verb("releases", fresh["token"])[0] == 200
    assert admin.verb("key_revoke", token, key_id=fresh["id"])[0] == 200
    assert admin.verb("releases", fresh["token"])[0] == 401
    for verb in ("key_rotate", "key_revoke"):
        assert admin.verb(verb, token, key_id=theirs.id)[0] == 403
        refused = admin.verb(verb, token, key_id=theirs.id)
        assert refused == admin.verb(verb, token, key_id="nobodys0"), "whose it is, is not told"
    narrow = grant(admin, name, scope="action:predict")["access_token"]
    assert admin.verb("key_revoke", narrow, key_id=mine.id)[0] == 403
    assert admin.verb("key_revoke", admin.boss, key_id=mine.id)[0] == 200


# -- second factors --


def enrol(admin, name):
    """One-time codes for an account: its secret, and a code that was not used yet."""
    token = grant(admin, name)["access_token"]
    status, begun = admin.verb("mfa_enrol", token, account=name)
    assert status == 200, begun
    query = parse_qs(urlsplit(begun["uri"]).query)
    secret = b32decode(query["secret"][0])
    status, done = admin.verb("mfa_confirm", token, account=name, code=code_before(secret, seconds=3))
    assert status == 200, done
    assert admin.verb("releases", token)[0] == 401, "enrolment ends the sessions of before"
    return secret, done["recovery"]


def code(admin, secret, off=0):
    return code_of(secret, step_at(admin.control.now()) + off)


def test_a_code_is_needed_used_once_and_said_in_the_token(admin, name):
    secret, recovery = enrol(admin, name)
    without = admin.form(TOKEN, grant_type="password", username=name, password=PASSWORD)
    wrong = admin.form(TOKEN, grant_type="password", username=name, password="wrong", otp=code(admin, secret))
    assert without == wrong and without[1]["error"] == "invalid_grant", "which factor was wrong is not told"
    right = code(admin, secret)
    said = grant(admin, name, otp=right)
    assert (claims(said)["acr"], claims(said)["amr"]) == (MULTI_FACTOR, ["pwd", "otp", "mfa"])
    again = admin.form(TOKEN, grant_type="password", username=name, password=PASSWORD, otp=right)
    assert again == without
    assert claims(grant(admin, name, otp=recovery[0]))["acr"] == MULTI_FACTOR
    assert admin.login(name, PASSWORD, code=recovery[1])
    assert admin.form(TOKEN, grant_type="password", username=name, password=PASSWORD, otp=recovery[0]) == without
    row = admin.verb("mfa_show", said["access_token"], account=name)[1]
    assert (row["codes"], row["recovery"], row["required"]) == (True, 8, False)


def test_a_refresh_or_a_session_with_a_code_is_a_step_up(admin, name):
    _, recovery = enrol(admin, name)
    first = grant(admin, name, otp=recovery[0], scope="action:predict model:iris")
    status, stepped = admin.form(TOKEN, grant_type=STEP_UP, subject_token=first["access_token"], otp=recovery[1])
    assert status == 200 and "refresh_token" not in stepped
    assert claims(stepped)["auth_time"] >= claims(first)["auth_time"]
    assert (claims(stepped)["operations"], claims(stepped)["models"]) == (["predict"], ["iris"]), "no wider than before"
    status, said = admin.form(TOKEN, grant_type=STEP_UP, subject_token=first["access_token"], otp=recovery[1])
    assert (status, said["error"]) == (400, "invalid_grant")
    status, second = refresh(admin, first["refresh_token"], otp=recovery[2])
    assert status == 200 and claims(second)["acr"] == MULTI_FACTOR
    assert refresh(admin, first["refresh_token"])[0] == 400
    assert admin.verb("session_list", stepped["access_token"], account=name)[0] == 401, "the family's end is its end, too"


def test_who_must_use_a_factor_may_do_nothing_but_add_one(admin, name):
    admin.keep.mfa_require(account=name)
    said = grant(admin, name)
    assert claims(said)["operations"] == ["mfa.own"] and "refresh_token" not in said
    assert whoami(admin, said) == 403
    secret, _ = enrol(admin, name)
    full = grant(admin, name, otp=code(admin, secret))
    assert (whoami(admin, full), claims(full)["operations"]) == (200, [])


def test_an_administrator_resets_and_nobody_enrols_for_another(admin, name):
    secret, _ = enrol(admin, name)
    token = grant(admin, name, otp=code(admin, secret))["access_token"]
    assert admin.verb("mfa_enrol", admin.boss, account=name)[0] == 403
    assert admin.verb("mfa_reset", token, account=name)[0] == 403
    assert admin.verb("mfa_enrol", token, account=name)[0] == 401, "a code of the factor in force is needed for another"
    assert admin.verb("mfa_enrol", token, account=name, code=code(admin, secret, 1))[0] == 200
    assert admin.verb("mfa_reset", admin.boss, account="admin")[0] == 403
    assert admin.verb("mfa_reset", admin.boss, account=name)[0] == 200
    assert admin.verb("releases", token)[0] == 401
    assert claims(grant(admin, name))["acr"] == PASSWORD_ONLY


def test_approval_takes_a_code_of_whoever_approves(admin, name):
    secret, _ = enrol(admin, name)
    token = grant(admin, name, otp=code(admin, secret))["access_token"]
    assert admin.verb("step_up_approve", token, account=name)[0] == 401
    status, done = admin.verb("step_up_approve", token, account=name, code=code(admin, secret, 1))
    assert status == 200 and done["at"] >= admin.control.now() - 5
    assert admin.verb("step_up_approve", token, account="admin", code=code(admin, secret, 1))[0] == 403
    status, said = admin.verb("step_up_approve", admin.boss, account=name)
    assert (status, said["code"]) == (403, "denied"), "an administrator without codes cannot"
    assert admin.keep.step_up_approve(account=name).account == name, "who holds the folder and the passphrase can"


def test_a_step_up_widens_no_session_that_its_client_asked_to_be_narrow(admin, name):
    _, recovery = enrol(admin, name)
    for at, scope in enumerate(("action:mfa.own", "action:mfa.own model:iris")):
        first = grant(admin, name, otp=recovery[2 * at], scope=scope)["access_token"]
        stepped = admin.form(TOKEN, grant_type=STEP_UP, subject_token=first, otp=recovery[2 * at + 1])[1]
        assert claims(stepped)["operations"] == ["mfa.own"] and stepped["scope"].endswith("action:mfa.own")


def test_a_refresh_stops_when_a_factor_is_required_meanwhile(admin, name, monkeypatch):
    first = grant(admin, name)
    settings = admin.control.settings
    required = msgspec.structs.replace(settings, access=msgspec.structs.replace(settings.access, mfa_roles=("analyst",)))
    monkeypatch.setattr(admin.control.keep.premises, "settings", required)
    status, said = refresh(admin, first["refresh_token"])
    assert (status, said["error"]) == (400, "invalid_grant") and "second factor" in said["error_description"]
    assert claims(grant(admin, name))["operations"] == ["mfa.own"]


def test_what_is_over_is_forgotten_and_leaves_nothing_behind(admin, name, monkeypatch):
    said = grant(admin, name)
    admin.form(TOKEN, grant_type="refresh_token", refresh_token=said["refresh_token"])
    records, now = admin.keep.premises.records, admin.control.now()
    records.commit([Change("quota", f"session:{claims(said)['jti']}", b'{"granted":3}')])
    assert records.scan("session") and records.scan("refresh")
    monkeypatch.setattr(admin.control, "now", lambda: now + 9 * 86_400, raising=False)
    for _ in range(2):
        admin.control.identity.tidy()
    for kind in ("session", "refresh", "challenge"):
        assert [record for record in records.since(0) if record.kind == kind] == []
    assert f"session:{claims(said)['jti']}" not in [record.key for record in records.since(0)]


# -- what others can check --


def test_anybody_can_check_a_token_with_the_published_keys(admin, name):
    said = grant(admin, name)
    answer = admin.send("GET", KEYS)
    assert answer.headers["content-type"] == "application/jwk-set+json"
    keys = jwt.PyJWKSet.from_dict(answer.json())
    key = keys[jwt.get_unverified_header(said["access_token"])["kid"]]
    origin = admin.keep.premises.trust.origin
    found = jwt.decode(said["access_token"], key, algorithms=["EdDSA"], audience=origin, issuer=origin)
    assert found["sub"] == name
    assert "d" not in answer.text.replace("Ed25519", "").replace("EdDSA", "").replace('"kid"', "").partition("[")[0]
    assert admin.send("GET", METADATA).status_code == 404, "a keep without an address of its own has no metadata"


# -- a flood costs the one who makes it --


def test_the_metadata_are_those_of_rfc_8414_and_lead_to_what_is_there(tmp_path):
    url = "https://keep.example:8444"
    assert Keep.init(tmp_path / "keep", PASSPHRASE).origin
    with (tmp_path / "keep" / "modelkeep.toml").open("a") as file:
        file.write(f'\n[access]\nurl = "{url}"\n')
    admin = Admin(tmp_path / "keep", PASSPHRASE).quicken()
    try:
        answer = admin.send("GET", METADATA)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
        assert answer.json() == {
            "issuer": url,
            "token_endpoint": url + TOKEN,
            "revocation_endpoint": url + REVOKE,
            "jwks_uri": url + KEYS,
            "grant_types_supported": ["password", "refresh_token", STEP_UP],
            "response_types_supported": [],
            "token_endpoint_auth_methods_supported": ["none"],
            "revocation_endpoint_auth_methods_supported": ["none"],
            "acr_values_supported": [PASSWORD_ONLY, MULTI_FACTOR],
        }
        for path, method in ((TOKEN, "POST"), (REVOKE, "POST"), (KEYS, "GET")):
            assert admin.send(method, path).status_code in {200, 400}
        admin.member("ann", Role.ANALYST)
        assert claims(grant(admin, "ann"))["iss"] == url
    finally:
        admin.control.stop()


@pytest.fixture
def flooded(tmp_path, monkeypatch):
    made = Admin(tmp_path / "keep").quicken()
    ran, verify = [], argon2.PasswordHasher.verify

    def counted(self, hash, password):
        ran.append(1)
        return verify(self, hash, password)

    monkeypatch.setattr(argon2.PasswordHasher, "verify", counted)
    yield made, ran
    made.control.stop()


def test_a_flood_of_logins_runs_argon2_as_often_as_its_address_may(flooded):
    """Counted, not timed: however many come, each address gets its burst, known and unknown accounts alike."""
    made, ran = flooded
    made.control.addresses._monotonic = lambda: 1_000.0
    burst = made.control.settings.limits.failures_burst
    statuses = []
    for number in range(burst + 30):
        name = ("admin", "nobody")[number % 2]
        if number % 3:
            statuses.append(made.form(TOKEN, grant_type="password", username=name, password="x", otp="123456")[0])
        else:
            statuses.append(made.post("/admin/v1/login", encode_login(LoginAsked(name, "x")))[0])
    assert len(ran) == burst
    assert set(statuses[:burst]) == {400, 401} and set(statuses[burst:]) == {429}
    assert made.form(TOKEN, address="198.51.100.9", grant_type="password", username="admin", password="x")[0] == 400
    assert len(ran) == burst + 1, "another address is not held up"


def test_bad_tokens_run_neither_argon2_nor_a_signature_once_their_address_is_over_its_limit(flooded, monkeypatch):
    made, ran = flooded
    made.control.failures._monotonic = lambda: 1_000.0
    checked, verify = [], made.control.directory_of_accounts._verifier.verify
    monkeypatch.setattr(
        made.control.directory_of_accounts._verifier,
        "verify",
        lambda token: (checked.append(1), verify(token))[1],
        raising=False,
    )
    burst = made.control.settings.limits.failures_burst
    for number in range(3 * burst):
        made.form(TOKEN, grant_type="refresh_token", refresh_token=f"mkr_{number:024x}_{'0' * 64}")
        made.form(TOKEN, grant_type=STEP_UP, subject_token=f"junk{number}", otp="123456")
        made.form(REVOKE, token=f"junk{number}")
    assert not ran and len(checked) <= burst
    assert made.form(TOKEN, grant_type="refresh_token", refresh_token="mkr_x")[0] == 429
