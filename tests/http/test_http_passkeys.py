"""Passkeys over control's routes, with an authenticator in software that tells the truth and lies."""

import itertools
import json
import re
from base64 import b32decode

import jwt
import pytest
from control_support import PASSWORD, Admin
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from software_passkey import UP, UV, SoftwarePasskey, text

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.challenges import CHALLENGE, SECONDS
from modelkeep.access.factors import FACTOR, parse_factors
from modelkeep.access.logins import FREE_ATTEMPTS
from modelkeep.access.sessions import MULTI_FACTOR, PASSWORD_ONLY
from modelkeep.access.totp import code_of, step_at
from modelkeep.core.ports import Change
from modelkeep.core.values import Role
from modelkeep.http.oauth import STEP_UP, TOKEN
from modelkeep.http.passkeys import PAGE

ORIGIN, PARTY = "https://localhost:8444", "localhost"
NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    made = Admin(tmp_path_factory.mktemp("passkeys") / "keep").quicken()
    made.control.addresses._tolerance = made.control.failures._tolerance = 1e9
    made.control.url = ORIGIN
    yield made
    made.control.stop()


class User:
    """An account with a session, and what its browser does."""

    def __init__(self, admin):
        self.admin, self.name = admin, f"user-{next(NUMBERS)}"
        admin.member(self.name, Role.ANALYST)
        self.passkey = SoftwarePasskey(ORIGIN, PARTY)
        self.login()

    def login(self):
        fields = {"grant_type": "password", "username": self.name, "password": PASSWORD}
        self.token = self.admin.form(TOKEN, **fields)[1]["access_token"]

    def json(self, path, **fields):
        answer = self.admin.send("POST", f"/webauthn/v1/{path}", json.dumps(fields).encode(), token=self.token)
        return answer.status_code, answer.json() if answer.content else {}

    def options(self, purpose):
        status, said = self.json("options", purpose=purpose)
        assert status == 200, said
        return said["challenge"], said["options"]

    def register(self, **lies):
        challenge, options = self.options("register")
        return self.json("register", challenge=challenge, credential=self.passkey.create(options, **lies), label="laptop")

    def approve(self, **lies):
        challenge, options = self.options("approve")
        return self.json("approve", challenge=challenge, credential=self.passkey.get(options, **lies))

    def step_up(self, **lies):
        challenge, options = self.options("step-up")
        return self.exchange(challenge, self.passkey.get(options, **lies))

    def exchange(self, challenge, answer):
        fields = {"grant_type": STEP_UP, "subject_token": self.token, "challenge": challenge, "assertion": json.dumps(answer)}
        return self.admin.form(TOKEN, **fields)

    @property
    def account(self):
        return parse_account(self.admin.keep.premises.records.get(ACCOUNT, self.name))

    @property
    def kept(self):
        return parse_factors(self.admin.keep.premises.records.get(FACTOR, self.name))


@pytest.fixture
def user(admin):
    return User(admin)


@pytest.fixture
def keyed(user):
    assert user.register() == (204, {})
    return user


def claims(said):
    return jwt.decode(said["access_token"], options={"verify_signature": False})


def test_a_passkey_is_registered_and_makes_a_step_up(keyed):
    status, said = keyed.step_up()
    assert status == 200
    assert (claims(said)["acr"], claims(said)["amr"]) == (MULTI_FACTOR, ["pwd", "hwk", "user", "mfa"])
    assert keyed.kept.passkeys[0].signed == keyed.passkey.count == 6
    assert [each.label for each in keyed.kept.passkeys] == ["laptop"]
    assert keyed.account.stepped_up == 0, "a fresh token is for whoever holds it"


def test_what_the_browser_is_asked(user):
    _, options = user.options("register")
    assert options["rp"]["id"] == PARTY and options["attestation"] == "none"
    assert options["authenticatorSelection"]["userVerification"] == "required"
    assert options["user"]["id"] == text(user.account.subject.encode()), "not the account's name"
    assert len(options["challenge"]) == 43 and options["challenge"] != user.options("register")[1]["challenge"]


def test_an_approval_lets_the_whole_account_go_on(keyed):
    assert keyed.approve() == (204, {})
    assert keyed.account.stepped_up >= keyed.admin.control.now() - 5


LIES = {
    "another site": {"origin": "https://localhost.evil.example:8444"},
    "another port": {"origin": "https://localhost:8443"},
    "plain http": {"origin": "http://localhost:8444"},
    "another party": {"party": "evil.example"},
    "in a frame of another site": {"cross": True},
    "nobody there": {"flags": UV},
    "nobody verified": {"flags": UP},
    "another challenge": {"challenge": text(b"x" * 32)},
}
AT_USE = {
    "a counter that did not rise": {"step": 0},
    "a counter that fell": {"step": -1},
    "a broken signature": {"broken": True},
    "another key": {"key": generate_private_key(SECP256R1())},
    "a registration": {"type": "webauthn.create"},
}
AT_MAKING = {
    "an assertion": {"type": "webauthn.get"},
    "an attestation that nobody asked for": {"fmt": "tpm", "statement": {"ver": "2.0"}},
    "an attestation with something in it": {"statement": {"alg": -7}},
}


@pytest.mark.parametrize("lies", (LIES | AT_MAKING).values(), ids=LIES | AT_MAKING)
def test_a_registration_that_lies_is_refused(user, lies):
    assert user.register(**lies)[0] == 401
    with pytest.raises(Exception, match=user.name):
        user.admin.keep.premises.records.get(FACTOR, user.name)


@pytest.mark.parametrize("lies", (LIES | AT_USE).values(), ids=LIES | AT_USE)
def test_an_assertion_that_lies_is_refused(keyed, lies):
    status, said = keyed.step_up(**lies)
    assert (status, said["error"]) == (400, "invalid_grant")
    assert keyed.approve(**lies)[0] == 401 and keyed.account.stepped_up == 0
    assert keyed.step_up(step=3)[0] == 200, "and the truth is taken after that"


def test_a_challenge_is_good_once(keyed):
    challenge, options = keyed.options("step-up")
    answer = keyed.passkey.get(options)
    assert keyed.exchange(challenge, answer)[0] == 200
    assert keyed.exchange(challenge, answer)[0] == 400
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400, "not even for a fresh signature"


def test_a_wrong_answer_uses_its_challenge_up(keyed):
    challenge, options = keyed.options("step-up")
    assert keyed.exchange(challenge, keyed.passkey.get(options, broken=True))[0] == 400
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400


def test_a_challenge_is_for_what_it_was_asked_for_and_for_whom(keyed, admin):
    challenge, options = keyed.options("approve")
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400, "an approval is no step-up"
    other = User(admin)
    challenge, options = keyed.options("step-up")
    keyed.token, mine = other.token, keyed.token
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400, "nor is it another session's"
    keyed.token = mine
    keyed.login()
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400, "nor a later session's of the same account"


def test_a_challenge_ends(keyed, monkeypatch):
    challenge, options = keyed.options("step-up")
    now = keyed.admin.control.now()
    monkeypatch.setattr(keyed.admin.control, "now", lambda: now + SECONDS + 1, raising=False)
    assert keyed.exchange(challenge, keyed.passkey.get(options))[0] == 400
    unanswered, _ = keyed.options("approve")
    monkeypatch.setattr(keyed.admin.control, "now", lambda: now + 3 * SECONDS, raising=False)
    keyed.admin.control.identity.tidy()
    assert unanswered not in [record.key for record in keyed.admin.keep.premises.records.scan(CHALLENGE)]


def test_another_accounts_passkey_is_nobodys_here(keyed, admin):
    other = User(admin)
    assert other.register() == (204, {})
    other.passkey, keyed.passkey = keyed.passkey, other.passkey
    assert other.step_up()[0] == 400 and keyed.step_up()[0] == 400


def test_who_has_a_passkey_shows_it_before_adding_another(keyed):
    second = SoftwarePasskey(ORIGIN, PARTY)
    assert keyed.json("options", purpose="register")[0] == 401, "a stolen password adds no passkey of its own"
    keyed.token = keyed.step_up()[1]["access_token"]
    challenge, options = keyed.options("register")
    assert [each["id"] for each in options["excludeCredentials"]] == [text(keyed.passkey.id)]
    assert keyed.json("register", challenge=challenge, credential=second.create(options))[0] == 204
    assert len(keyed.kept.passkeys) == 2


def test_who_has_a_passkey_shows_it_before_enrolling_codes(keyed):
    status, said = keyed.admin.verb("mfa_enrol", keyed.token, account=keyed.name)
    assert (status, said["code"]) == (401, "unauthenticated")
    assert keyed.admin.verb("mfa_enrol", keyed.step_up()[1]["access_token"], account=keyed.name)[0] == 200


def test_codes_that_were_begun_before_the_passkey_count_only_once_it_is_shown(user):
    """Else who has the password begins, waits until its owner has a passkey, and then adds codes of his own."""
    begun = user.admin.verb("mfa_enrol", user.token, account=user.name)[1]
    assert user.register() == (204, {})
    code = code_of(b32decode(begun["secret"]), step_at(user.admin.control.now()))
    assert user.admin.verb("mfa_confirm", user.token, account=user.name, code=code)[0] == 401
    shown = user.step_up()[1]["access_token"]
    assert user.admin.verb("mfa_confirm", shown, account=user.name, code=code)[0] == 200


def test_wrong_passkeys_lock_the_account_like_wrong_codes(keyed):
    for _ in range(FREE_ATTEMPTS):
        assert keyed.step_up(broken=True)[0] == 400
    assert keyed.step_up()[0] == 400
    form = {"grant_type": "password", "username": keyed.name, "password": PASSWORD}
    assert keyed.admin.form(TOKEN, **form)[0] == 400


def test_who_must_use_a_factor_steps_up_with_a_passkey(user):
    user.admin.keep.mfa_require(account=user.name)
    user.login()
    assert user.admin.verb("releases", user.token)[0] == 403
    assert user.register() == (204, {})
    said = user.step_up()[1]
    assert claims(said)["operations"] == []
    assert user.admin.verb("releases", said["access_token"])[0] == 200
    user.login()
    assert user.admin.verb("releases", user.token)[0] == 403, "the passkey is shown at every login"


def test_a_key_has_no_second_factor(user):
    key = user.admin.keep.key_issue(account=user.name).token
    assert user.admin.verb("mfa_enrol", key, account=user.name)[0] == 403, "nor does it add one"
    user.token = user.admin.keep.key_issue(account=user.name).token
    status, said = user.json("options", purpose="step-up")
    assert (status, said["code"]) == (400, "invalid")


def test_a_session_that_may_only_predict_steps_up_and_does_no_more(keyed):
    fields = {"grant_type": "password", "username": keyed.name, "password": PASSWORD, "scope": "action:predict"}
    keyed.token = keyed.admin.form(TOKEN, **fields)[1]["access_token"]
    assert keyed.json("options", purpose="register")[0] == 403
    assert keyed.json("options", purpose="approve")[0] == 403
    status, said = keyed.step_up()
    assert (status, claims(said)["operations"], claims(said)["acr"]) == (200, ["predict"], MULTI_FACTOR)


def test_the_records_are_signed(keyed):
    """Whoever writes the database gives nobody a passkey."""
    raw = keyed.admin.keep.premises.records._inner
    record = raw.get(FACTOR, keyed.name)
    forged = record.body[:64] + record.body[64:].replace(b"laptop", b"thiefs")
    raw.commit([Change(FACTOR, keyed.name, forged, record.revision)])
    status, said = keyed.json("options", purpose="step-up")
    assert (status, said["code"]) == (423, "not-trusted")
    raw.commit([Change(FACTOR, keyed.name, record.body)])


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["id", "rawId", "type", "response", "clientDataJSON", "attestationObject", "authenticatorData", "signature"]
                ),
                inner,
                max_size=6,
            )
        ),
        max_leaves=12,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_whatever_a_browser_answers_is_refused_in_one_line(admin, answer):
    user = admin.__dict__.setdefault("fuzzed", None) or User(admin)
    admin.fuzzed = user
    challenge, _ = user.options("register")
    status, said = user.json("register", challenge=challenge, credential=answer)
    assert (status, said["code"]) in {(401, "unauthenticated"), (400, "invalid")}


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_no_damaged_registration_is_taken(admin, data):
    user = admin.__dict__.setdefault("damaged", None) or User(admin)
    admin.damaged = user
    challenge, options = user.options("register")
    answer = user.passkey.create(options)
    field = data.draw(st.sampled_from(["clientDataJSON", "attestationObject"]))
    said = answer["response"][field]
    at = data.draw(st.integers(0, len(said) - 1))
    answer["response"][field] = data.draw(
        st.sampled_from([said[:at], said[:at] + data.draw(st.text(max_size=3)) + said[at + 1 :]])
    )
    status, _ = user.json("register", challenge=challenge, credential=answer)
    if status == 204:  # a letter that the format says nothing about: the name of a field that nobody reads, or the key itself
        assert user.kept.passkeys
        user.admin.keep.mfa_reset(account=user.name)
        user.login()
    else:
        assert status == 401


def test_the_page_runs_nothing_of_others_and_is_framed_by_nobody(admin):
    for path, kind in ((PAGE, "text/html"), (PAGE + ".js", "text/javascript"), (PAGE + ".css", "text/css")):
        answer = admin.send("GET", path)
        assert answer.status_code == 200 and answer.headers["content-type"].startswith(kind)
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and answer.headers["x-content-type-options"] == "nosniff"
        assert "http" not in answer.text.replace("https://control", "") and "innerHTML" not in answer.text
    page = admin.send("GET", PAGE).text
    assert "<script>" not in page and "style=" not in page and not re.search(r" on\w+=", page)


def test_acr_is_password_without_a_factor(user):
    assert claims({"access_token": user.token})["acr"] == PASSWORD_ONLY
