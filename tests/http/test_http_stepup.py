"""Step-up at the gateway: two of them on one keep, people with codes, machines with keys, and a thief at the ladder."""

import itertools
import time
from base64 import b32decode

import jwt
import numpy as np
import pytest
from codes import code_before
from control_support import PASSWORD, Admin
from gateway_support import PASSPHRASE, live, make_keep, question

from modelkeep.access.totp import code_of, step_at
from modelkeep.app.keep import Keep
from modelkeep.core.values import ReleaseRef, Role
from modelkeep.errors import Unavailable
from modelkeep.http.oauth import STEP_UP, TOKEN

INFER = "/v2/models/iris/infer"
ALLOWED = 9
NUMBERS = itertools.count()


def with_access(folder, trained, text):
    make_keep(folder, trained)
    with (folder / "modelkeep.toml").open("a") as file:
        file.write(f"[access]\n{text}\n")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, trained):
    settings = f'step_up_requests = {ALLOWED}\nurl = "https://keep.acme.example"'
    return with_access(tmp_path_factory.mktemp("stepup") / "keep", trained, settings)


@pytest.fixture(scope="module")
def admin(folder):
    made = Admin(folder, PASSPHRASE).quicken()
    made.control.addresses._tolerance = made.control.failures._tolerance = 1e9
    yield made
    made.control.stop()


@pytest.fixture(scope="module")
def gateways(folder):
    with live(Keep.open(folder, PASSPHRASE)) as one, live(Keep.open(folder, PASSPHRASE)) as other:
        yield one, other


@pytest.fixture
def ask(gateways, trained):
    """Ask both gateways in turn, so often: the answers."""

    def ask(token, times):
        with gateways[0].client(token) as one, gateways[1].client(token) as other:
            turns = itertools.islice(itertools.cycle((one, other)), times)
            return [each.post(INFER, content=question(trained.fresh[at : at + 1])) for at, each in enumerate(turns)]

    return ask


def statuses(answers):
    """Sorted: which of the two gateways runs out of its lease first is a matter of time."""
    return sorted(answer.status_code for answer in answers)


@pytest.fixture
def name(admin):
    made = f"user-{next(NUMBERS)}"
    admin.member(made, Role.ANALYST)
    return made


@pytest.fixture
def settled(admin, gateways, name):
    """Have both gateways see what was done; they look by themselves four times a second."""
    subject = next(row.subject for row in admin.keep.user_list() if row.name == name)

    def marked(gateway):
        try:
            return gateway._marks.key(subject, ReleaseRef("iris", 1))
        except Unavailable:
            return None

    def look():
        for running in gateways:
            running.service.gateway._entrance._directory.refresh()
            while marked(running.service.gateway) is None:
                time.sleep(0.02)

    return look


def grant(admin, name, **more):
    status, said = admin.form(TOKEN, grant_type="password", username=name, password=PASSWORD, **more)
    assert status == 200, said
    return said


def enrol(admin, name):
    token = grant(admin, name)["access_token"]
    begun = admin.verb("mfa_enrol", token, account=name)[1]
    secret = b32decode(begun["secret"])
    code = code_before(secret, seconds=3)
    return secret, admin.verb("mfa_confirm", token, account=name, code=code)[1]["recovery"]


def test_a_machine_goes_on_once_a_person_approves(admin, ask, settled, name):
    key = admin.keep.key_issue(account=name).token
    settled()
    answers = ask(key, ALLOWED + 2)
    assert statuses(answers) == [200] * ALLOWED + [401] * 2, "over both gateways together"
    last = answers[-1]
    assert last.json()["code"] == "step-up-required" and "modelkeep step-up approve" in last.json()["detail"]
    challenge = last.headers["www-authenticate"]
    assert 'error="insufficient_user_authentication"' in challenge and 'max_age="900"' in challenge
    assert last.headers["link"] == '<https://keep.acme.example/step-up>; rel="authenticate"'
    admin.keep.step_up_approve(account=name)
    settled()
    assert statuses(ask(key, ALLOWED + 1)) == [200] * ALLOWED + [401]


def test_a_person_goes_on_with_a_fresh_second_factor_and_with_nothing_else(admin, ask, settled, name):
    secret, recovery = enrol(admin, name)
    settled()
    first = grant(admin, name, otp=recovery[0])
    assert statuses(ask(first["access_token"], ALLOWED + 1)) == [200] * ALLOWED + [401]
    second = admin.form(TOKEN, grant_type="refresh_token", refresh_token=first["refresh_token"])[1]
    assert statuses(ask(second["access_token"], 1)) == [401], "a refresh shows no second factor"
    while admin.control.now() <= auth_time(first):  # an event is named by its second
        time.sleep(0.05)
    code = code_of(secret, step_at(admin.control.now()))
    status, third = admin.form(TOKEN, grant_type=STEP_UP, subject_token=second["access_token"], otp=code)
    assert status == 200, third
    assert statuses(ask(third["access_token"], ALLOWED + 1)) == [200] * ALLOWED + [401]
    assert statuses(ask(first["access_token"], 1)) == [401], "the session of before gets nothing by it"


def auth_time(said):
    return jwt.decode(said["access_token"], options={"verify_signature": False})["auth_time"]


def test_logging_in_again_with_the_password_alone_gives_nothing_more(admin, ask, settled, name):
    settled()
    assert statuses(ask(grant(admin, name)["access_token"], ALLOWED + 1)) == [200] * ALLOWED + [401]
    assert statuses(ask(grant(admin, name)["access_token"], 1)) == [401]
    key = admin.keep.key_issue(account=name).token
    settled()
    assert statuses(ask(key, 1)) == [401], "nor does a key of the same account"


def test_an_explanation_is_asked_for_a_second_factor_too(admin, gateways, ask, settled, trained, name):
    settled()
    token = grant(admin, name)["access_token"]
    price = trained.fresh.shape[1] + 1
    assert statuses(ask(token, ALLOWED - price - 1)) == [200] * (ALLOWED - price - 1)
    with gateways[0].client(token) as client:
        first, refused = (client.post("/v2/models/iris/explain", content=question(trained.fresh[:1])) for _ in range(2))
    assert first.status_code == 200, first.text
    assert (refused.status_code, refused.json()["code"]) == (401, "step-up-required"), refused.text
    assert statuses(ask(token, 2)) == [200, 401], "it counts as the rows that it is charged"


def test_a_refusal_is_recorded(admin, gateways, ask, settled, name):
    settled()
    answers = ask(grant(admin, name)["access_token"], ALLOWED + 1)
    assert statuses(answers)[-1] == 401
    with gateways[0].client(None) as client:
        assert 'outcome="step-up-required"' in client.get("/metrics").text


def test_a_key_for_one_action_does_no_other_and_its_last_use_is_told(admin, gateways, trained, settled, name):
    key = admin.keep.key_issue(account=name, actions=("show",))
    assert [row.last_used for row in admin.keep.key_list() if row.id == key.id] == [0]
    settled()
    with gateways[0].client(key.token) as client:
        refused = client.post(INFER, content=question(trained.fresh[:1]))
        assert (refused.status_code, refused.json()["code"]) == (403, "denied")
        assert "may only show" in refused.json()["detail"]
        assert client.get("/v2/models/iris").status_code == 200
    gateways[0].service.gateway._entrance._uses.flush()
    row = next(row for row in admin.keep.key_list() if row.id == key.id)
    assert row.actions == ("show",) and abs(row.last_used / 1e9 - admin.control.now()) < 30
    successor = admin.keep.key_rotate(key_id=key.id).id
    used = next(row for row in admin.keep.key_list() if row.id == successor)
    assert (used.actions, used.last_used) == (("show",), 0), "a rotation keeps the scope"


def test_whoever_climbs_the_ladder_is_asked_and_goes_on_after_an_approval(tmp_path, trained):
    folder = with_access(tmp_path / "keep", trained, 'step_up_rung = "coarse"')
    keep = Keep.open(folder, PASSPHRASE)
    key = keep.key_issue(account="alice", quota=100_000).token
    rng = np.random.default_rng(3)
    with live(keep) as running, running.client(key) as client:

        def climb():
            """Questions from nowhere, until something else than an answer comes."""
            for _ in range(400):
                answer = client.post(INFER, content=question(rng.uniform(-3, 3, (1, 6)).astype(np.float32)))
                [watch.work() for watch in running.service.loader.watches()]  # one question, one step of the evidence
                if answer.status_code != 200:
                    return answer
            return answer

        asked = climb()
        assert (asked.status_code, asked.json()["code"]) == (401, "step-up-required"), asked.text
        assert "unusual" in asked.json()["detail"]
        keep.step_up_approve(account="alice")
        assert client.post(INFER, content=question(trained.fresh[:1])).status_code == 200
        assert climb().json()["code"] == "review-required", "a second factor does not stop the alarm"
