"""Settings: the file, the environment over it, and clear refusals."""

import pytest

from modelkeep.app.settings import Settings, all_settings, load, parse, template, variable
from modelkeep.errors import Invalid, Missing


def test_the_template_is_valid_and_everything_has_a_default(tmp_path):
    (tmp_path / "modelkeep.toml").write_text(template("modelkeep.local/x"))
    settings = load(tmp_path, {})
    assert settings.keep.origin == "modelkeep.local/x"
    assert settings.gateway == Settings().gateway


def test_the_environment_wins_and_is_typed():
    settings = parse({"gateway": {"port": 1}}, {"MODELKEEP_GATEWAY_PORT": "9443", "MODELKEEP_GATEWAY_NAMES": "a,b"}, "x")
    assert (settings.gateway.port, settings.gateway.names) == (9443, ("a", "b"))


@pytest.mark.parametrize(
    ("said", "names"),
    [("a,b", ("a", "b")), ('["a", "b"]', ("a", "b")), ("[]", ()), ("", ()), ("a", ("a",))],
)
def test_a_list_is_said_with_commas_or_as_in_the_file(said, names):
    assert tuple(parse({}, {"MODELKEEP_GATEWAY_NAMES": said}, "x").gateway.names) == names


def test_a_list_that_is_not_closed_is_refused_by_its_name():
    with pytest.raises(Invalid, match="MODELKEEP_GATEWAY_NAMES is no array of TOML"):
        parse({}, {"MODELKEEP_GATEWAY_NAMES": '["a", "b"'}, "x")


def test_limits_of_single_accounts_and_models():
    table = {"limits": {"accounts": {"alice": {"rate": 5}}, "models": {"risk": {"cost": 3, "account_rate": 2.5}}}}
    found = parse(table, {"MODELKEEP_LIMITS_KEYS": "{ab12cd34 = {rate = 0, burst = 7}}"}, "x").limits
    assert (found.accounts["alice"].rate, found.accounts["alice"].burst) == (5.0, None)
    assert (found.models["risk"].cost, found.models["risk"].account_rate) == (3.0, 2.5)
    assert found.keys["ab12cd34"].burst == 7.0
    with pytest.raises(Invalid, match="MODELKEEP_LIMITS_KEYS is no inline table"):
        parse({}, {"MODELKEEP_LIMITS_KEYS": "{"}, "x")
    assert "hunter2" not in repr(parse({"state": {"url": "redis://:hunter2@localhost"}}, {}, "x"))


@pytest.mark.parametrize(
    ("table", "named"),
    [
        ({"limits": {"accounts": {"alice": {"speed": 1}}}}, "limits.accounts"),
        ({"limits": {"models": {"risk": {"cost": 0}}}}, "limits.models"),
        ({"gateway": {"prot": 1}}, "prot"),
        ({"gateway": {"port": 70_000}}, "gateway.port"),
        ({"gateway": 3}, "gateway"),
        ({"keep": {"admission": "none"}}, "admission"),
        ({"extraction": {"alpha": 0.5}}, "alpha"),
        ({"nonsense": {}}, "nonsense"),
    ],
)
def test_a_wrong_setting_is_named(table, named):
    with pytest.raises(Invalid, match=named):
        parse(table, {}, "modelkeep.toml")


ISSUER = {"alias": "corp", "issuer": "https://login.example", "audiences": ["keep"], "roles": {"a": "analyst"}}


def test_issuers_are_an_array_of_tables(tmp_path):
    (tmp_path / "modelkeep.toml").write_text(
        '[[issuers]]\nalias = "corp"\nissuer = "https://login.example"\naudiences = ["keep"]\nroles = { a = "analyst" }\n'
        '[[issuers]]\nalias = "club"\nissuer = "https://club.example"\naudiences = ["keep"]\nroles = {}\nbinding = "dpop"\n'
    )
    found = load(tmp_path, {}).issuers
    assert [one.alias for one in found] == ["corp", "club"] and found[0].types == ("at+jwt",) and found[1].binding == "dpop"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"alias": "local"}, "local"),
        ({"alias": "Corp"}, "alias"),
        ({"alias": "a@b"}, "alias"),
        ({"issuer": "ftp://x"}, "issuer"),
        ({"issuer": "https://login.example/?x"}, "issuer"),
        ({"audiences": []}, "audiences"),
        ({"algorithms": ["HS256"]}, "HS256"),
        ({"algorithms": ["none"]}, "none"),
        ({"algorithms": []}, "algorithms"),
        ({"roles": {"a": "No Role"}}, "No Role"),
        ({"tenants": ["t"]}, "tenant"),
        ({"tenant_claim": "tid"}, "tenant"),
        ({"binding": "maybe"}, "binding"),
        ({"secret": "x"}, "secret"),
        ({"clock_skew": 301}, "clock_skew"),
    ],
)
def test_a_wrong_issuer_is_named(change, named):
    with pytest.raises(Invalid, match=named):
        parse({"issuers": [ISSUER | change]}, {}, "modelkeep.toml")


@pytest.mark.parametrize("field", ["alias", "issuer"])
def test_two_issuers_differ(field):
    other = {"alias": "club", "issuer": "https://club.example"} | {field: ISSUER[field]}
    with pytest.raises(Invalid, match=field):
        parse({"issuers": [ISSUER, ISSUER | other]}, {}, "modelkeep.toml")
    assert len(parse({"issuers": [ISSUER, ISSUER | {"alias": "club", "issuer": "https://club.example"}]}, {}, "x").issuers) == 2


def test_a_folder_without_a_keep_and_a_broken_file(tmp_path):
    with pytest.raises(Missing, match="modelkeep init"):
        load(tmp_path, {})
    (tmp_path / "modelkeep.toml").write_text("[keep")
    with pytest.raises(Invalid, match="not TOML"):
        load(tmp_path, {})


def test_every_setting_has_its_variable():
    assert ("gateway", "port") in all_settings()
    assert variable("gateway", "max_body") == "MODELKEEP_GATEWAY_MAX_BODY"
