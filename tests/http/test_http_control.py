"""The admin API, without sockets: what it takes before it knows who asks, and what it does with bad bodies."""

import asyncio

import httpx
import msgspec
import pytest
from control_support import Admin, pack

from modelkeep.app.control import MAX_SMALL
from modelkeep.core.values import Role
from modelkeep.errors import OverBudget
from modelkeep.http.control import MAX_NOTE, configured, encode_login
from modelkeep.http.control import LoginAsked as Asked


@pytest.fixture(scope="module")
def admin(tmp_path_factory):
    made = Admin(tmp_path_factory.mktemp("control") / "keep")
    yield made
    made.control.stop()


@pytest.fixture(scope="module")
def analyst(admin):
    return admin.member("ann", Role.ANALYST)


BAD = {
    "no text": b"\x82\xa7account\xa1a\xa8password\xa1\xff",
    "nested without end": b"\x83\xa7account\xa1a\xa8password\xa1b\xa1z" + b"\x91" * 100_000,
    "cut": b"\x82\xa7account",
    "of another type": b"\xc0",
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
def test_a_malformed_body_is_refused_in_one_line(admin, analyst, body):
    status, said = admin.post("/admin/v1/login", body)
    assert (status, b'"code":"invalid"' in said) == (400, True)
    status, said = admin.post("/admin/v1/show", body, analyst)
    assert (status, b'"code":"invalid"' in said) == (400, True)


def test_only_who_may_publish_has_room_for_a_model(admin, analyst):
    large = bytes(MAX_SMALL + 1)
    assert admin.post("/admin/v1/publish", large, analyst)[0] == 403
    assert ("admin:publish", admin.keep.user_list()[1].subject, "", "denied") in admin.records()
    assert admin.post("/admin/v1/show", large, analyst)[0] == 413
    assert admin.post("/admin/v1/nonsense", large, analyst)[0] == 413
    scientist = admin.member("sid", Role.DATA_SCIENTIST)
    assert admin.post("/admin/v1/publish", large, scientist)[0] == 400  # read whole, and no MessagePack
    assert admin.post("/gateway/v1/checkpoint", bytes(MAX_NOTE + 1))[0] == 413


RULES = b"""
@id("validators") @says("validators publish one model")
permit (principal in Role::"validator", action == Action::"publish", resource == Model::"theirs");
@id("testers") @says("testers attest about any model, and not the keep")
permit (principal in Role::"tester", action == Action::"attest", resource is Model);
@id("office") @says("only from the office network")
forbid (principal in Role::"validator", action, resource)
unless { context has address && context.address.isInRange(ip("192.0.2.0/24")) };
"""


def test_rules_about_one_model_and_about_addresses_hold_for_the_admin_api(admin):
    admin.keep.policy_set(kind="access", text=RULES, extend=True)
    try:
        validator, tester = admin.member("val", "validator"), admin.member("tess", "tester")
        said = pack(name="theirs", filename="m.onnx", model=b"not a model")
        assert admin.post("/admin/v1/publish", said, validator)[0] == 400  # it has room, may, and the model is none
        assert admin.post("/admin/v1/publish", pack(name="ours", filename="m.onnx", model=b""), validator)[0] == 403
        status, why = admin.post("/admin/v1/publish", said, validator, address="198.51.100.1")
        assert (status, b"only from the office network" in why) == (403, True)
        assert admin.post("/admin/v1/attest", pack(ref="m@1", kind="privacy", predicate=b"{}"), tester)[0] == 404
        large = bytes(MAX_SMALL + 1)
        assert admin.post("/admin/v1/publish", large, tester)[0] == 403
    finally:
        admin.keep.policy_set(kind="access", profile="default")


def test_a_credential_that_ended_while_its_body_came_does_nothing(admin):
    token = admin.member("eve", Role.ADMIN)

    async def slowly():
        yield pack(name="mallory", roles=["admin"])[:5]
        await asyncio.to_thread(admin.keep.user_disable, name="eve")
        yield pack(name="mallory", roles=["admin"])[5:]

    status, said = admin.post("/admin/v1/user_add", slowly(), token)
    assert (status, b'"code":"unauthenticated"' in said) == (401, True)
    assert "mallory" not in [row.name for row in admin.keep.user_list()]


@pytest.mark.parametrize("path", ["/gateway/v1/checkpoint", "/admin/v1/login"])
def test_a_client_that_dies_in_the_middle_of_its_body_is_no_failure_of_control(admin, path):
    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": path,
        "query_string": b"",
        "headers": [(b"content-length", b"100")],
        "client": ("192.0.2.7", 1),
        "server": ("control", 443),
    }
    came = iter([{"type": "http.request", "body": b"half a", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(came)

    async def send(message):
        sent.append(message)

    asyncio.run(admin.application(scope, receive, send))
    assert sent[0]["status"] == 400


def test_what_was_typed_as_a_name_is_not_recorded(admin):
    subject = admin.keep.user_list()[0].subject
    for name in ("my password by mistake", "admin"):
        assert admin.post("/admin/v1/login", encode_login(Asked(name, "wrong", "")), address="198.51.100.7")[0] == 401
    assert admin.records()[-2:] == [("login", "", "", "unauthenticated"), ("login", subject, "", "unauthenticated")]


def spend(admin, key):
    """Use up every login that an address has."""
    for _ in range(100):
        try:
            admin.control.addresses.take(key)
        except OverBudget:
            return


def test_a_network_of_addresses_is_one_guesser(admin):
    """Whoever has an IPv6 network has 2^64 addresses in it."""
    spend(admin, "2001:db8::/64")
    assert admin.post("/admin/v1/login", encode_login(Asked("ann", "wrong", "")), address="2001:db8::77:1")[0] == 429
    assert admin.post("/admin/v1/login", encode_login(Asked("ann", "wrong", "")), address="2001:db8:1::1")[0] == 401


def test_no_header_says_where_somebody_calls_from(admin):
    """Whoever is on this machine, or behind a proxy on it, would evade the limits of his address and rules about it."""
    served = configured(admin.control)

    async def ask(number):
        transport = httpx.ASGITransport(served.loaded_app, client=("127.0.0.1", 1))
        async with httpx.AsyncClient(transport=transport, base_url="https://control") as client:
            headers = {"x-forwarded-for": f"203.0.113.{number}", "forwarded": f"for=203.0.113.{number}"}
            form = {"grant_type": "refresh_token", "refresh_token": f"mkr_{number}"}
            return (await client.post("/oauth/token", headers=headers, data=form)).status_code

    burst = admin.control.settings.limits.failures_burst
    assert 429 in [asyncio.run(ask(number)) for number in range(3 * burst)]


def test_bad_logins_do_not_keep_a_gateway_from_handing_over(admin):
    spend(admin, "203.0.113.9")
    assert admin.post("/gateway/v1/checkpoint", admin.control.audit.publish(), address="203.0.113.9")[0] == 200
    assert admin.post("/gateway/v1/checkpoint", b"nonsense", address="203.0.113.9")[0] == 423


def test_models_are_judged_again_through_the_admin_api(admin):
    member, analyst = admin.member("mel", Role.ML_ENGINEER), admin.member("abe", Role.ANALYST)
    for verb in ("stale_scans", "rescan_stale"):
        status, body = admin.post(f"/admin/v1/{verb}", pack(), member)
        assert (status, msgspec.msgpack.decode(body)) == (200, [])
    assert admin.post("/admin/v1/rescan", pack(ref="nothing@1"), member)[0] == 404
    assert admin.post("/admin/v1/rescan_stale", pack(), analyst)[0] == 403
    assert admin.post("/admin/v1/rescan", pack(ref="nothing@1"), analyst)[0] == 403


def test_no_number_of_publications_at_a_silent_server_keeps_anybody_else_waiting(admin):
    publisher, reader = admin.member("pub", Role.DATA_SCIENTIST), admin.member("rea", Role.DATA_SCIENTIST)
    arrived = []

    async def silent(_reader, writer):
        arrived.append(writer)
        await asyncio.sleep(60)

    async def story():
        server = await asyncio.start_server(silent, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        body = pack(name="far", at={"url": url})
        asking = [
            asyncio.create_task(admin._post("/admin/v1/publish_upstream", body, publisher, "192.0.2.1")) for _ in range(60)
        ]
        try:
            while len(arrived) < 8:
                await asyncio.sleep(0.01)
            status, said = await asyncio.wait_for(admin._post("/admin/v1/releases", pack(), reader, "192.0.2.1"), 30)
            assert status == 200, said
        finally:
            for task in asking:
                task.cancel()
            for writer in arrived:
                writer.transport.abort()
            server.close()

    asyncio.run(story())
