"""Settings as somebody asks about them: origins, everything wrong at once, tables of every shape, and no secrets shown."""

import os
import socket
import tomllib
from typing import Annotated, Literal

import msgspec
import pytest
from commandline import copy_keep
from msgspec import Meta

from modelkeep.app import configuration
from modelkeep.app.configuration import Problem, problems, rows, set_flag
from modelkeep.app.settings import Settings, all_settings, load, variable
from modelkeep.errors import Invalid, Missing


@pytest.fixture
def folder(template, tmp_path):
    return copy_keep(template, tmp_path / "keep")


def write(folder, text):
    settings = folder / "modelkeep.toml"
    settings.write_text(settings.read_text() + text)


def of(found, level="error"):
    return {each.setting: each.message for each in found if each.level == level}


def test_flags_win_over_the_environment_over_the_file_over_defaults(folder):
    write(folder, '[gateway]\nport = 1111\nnames = ["a.example"]\n[control]\nport = 2222\n')
    environment = {"MODELKEEP_GATEWAY_PORT": "3333", "MODELKEEP_CONTROL_PORT": "4444"}
    set_flag("gateway.port=5555", environment)
    found = {row.name: row for row in rows(folder, environment)}
    said = [
        (found[name].value, found[name].origin) for name in ("gateway.port", "control.port", "gateway.names", "limits.rate")
    ]
    assert said == [(5555, "flag"), (4444, "environment"), (["a.example"], "file"), (100.0, "default")]
    assert found["control.port"].where == "MODELKEEP_CONTROL_PORT" and found["gateway.names"].where.endswith("modelkeep.toml")
    assert {f"{section}.{field}" for section, field in all_settings()} <= {*found}


@pytest.mark.parametrize("text", ["gateway.prot=1", "port=1", "gateway.port", "=", "gateway.=1"])
def test_a_flag_that_names_nothing_is_refused_and_sets_nothing(text):
    environment = {}
    with pytest.raises(Invalid) as refusal:
        set_flag(text, environment)
    assert environment == {}
    assert text != "gateway.prot=1" or "did you mean gateway.port?" in str(refusal.value)


def test_everything_that_is_wrong_is_said_at_once(folder):
    write(
        folder,
        """
[gatway]
port = 1
[gateway]
prot = 8
port = 70000
certificate = "chain.pem"
integrity_seconds = 3
drain_seconds = 30.0
[audit]
require = 3
sinks = ["ftp://x", "disk:relative"]
break_glass = "for ever"
[witness]
policy = "none.txt"
[keys]
model_kek = "hsm:x"
[blobs]
url = "gs://bucket"
[scan]
python = "relative"
[extraction]
alpha = "much"
[limits]
burst = 0
""",
    )
    found = of(problems(folder, {"MODELKEEP_RECORDS_URL": "mysql://x"}))
    assert found["gatway"].endswith("did you mean gateway?")
    assert found["gateway.prot"].endswith("did you mean port?")
    assert "there is one in [control]" in found["gateway.integrity_seconds"]
    assert {
        *("gateway.port", "gateway.certificate", "gateway.drain_seconds", "audit.require", "audit.sinks", "audit.break_glass"),
        *("witness.policy", "keys.model_kek", "blobs.url", "records.url", "scan.python", "extraction.alpha", "limits.burst"),
    } <= {*found}, found
    assert sum(each.setting == "audit.sinks" for each in problems(folder, {})) == 2
    with pytest.raises(Invalid):
        rows(folder, {})


def test_a_keep_as_init_makes_it_is_in_order(folder):
    assert [each for each in problems(folder, {}) if not each.setting.endswith(".port")] == []


def test_what_is_weak_and_what_contradicts_itself(folder):
    write(
        folder,
        '[gateway]\ntls_minimum = "1.2"\nport = 9443\n[control]\nport = 9443\nhost = "0.0.0.0"\n[intel]\nmax_age_days = 90\n',
    )
    settings = folder / "modelkeep.toml"
    settings.write_text(settings.read_text().replace('"standard"', '"open"'))
    found = problems(folder, {"MODELKEEP_RECORDS_URL": "postgresql://me:word@h/d", "MODELKEEP_GATEWAY_PRT": "1"})
    assert {"keep.admission", "gateway.tls_minimum", "intel.max_age_days", "records.url", ""} <= {*of(found, "warning")}
    assert "MODELKEEP_GATEWAY_PORT?" in of(found, "warning")[""]
    assert "control.port" in of(found)
    assert found == tuple(sorted(found, key=lambda each: each.level))


def test_a_port_that_is_taken_is_a_warning(folder):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = problems(folder, {"MODELKEEP_GATEWAY_PORT": str(taken.getsockname()[1])})
    assert "cannot be listened on now" in of(found, "warning")["gateway.port"]


def test_no_secret_is_shown(folder):
    urls = {
        "MODELKEEP_RECORDS_URL": "postgresql://me:canary-word@host/db?sslpassword=canary-two",
        "MODELKEEP_AUDIT_SINKS": "https://h/x?token=canary-three&a=b,disk:/tmp",
    }
    said = msgspec.json.encode(rows(folder, urls)).decode()
    assert "canary" not in said
    assert "postgresql://me:…@host/db?sslpassword=…" in said and "token=…&a=b" in said


def test_a_password_is_hidden_whatever_is_in_it(folder):
    said = msgspec.json.encode(
        rows(folder, {"MODELKEEP_RECORDS_URL": "postgresql://me:canary/one@canary-two@host/db"})
    ).decode()
    assert "canary" not in said and "postgresql://me:…@host/db" in said


def test_an_inline_table_of_the_environment_is_checked_and_shown_as_one(folder):
    environment = {}
    set_flag("limits.accounts={alice={rate=5}}", environment)
    assert problems(folder, environment) == ()
    (found,) = (row for row in rows(folder, environment) if row.name == "limits.accounts.alice.rate")
    assert (found.value, found.origin, found.where) == (5.0, "flag", "--set")
    assert "no inline table" in of(problems(folder, {"MODELKEEP_LIMITS_ACCOUNTS": "alice"}))["limits.accounts"]


@pytest.mark.parametrize(
    ("text", "environment", "setting"),
    [
        ("gateway = 5\n", {"MODELKEEP_GATEWAY_PORT": "1"}, "gateway"),
        ("", {"MODELKEEP_GATEWAY_HOST": "\udcff"}, "gateway.host"),
        ("a = " + "[" * 5000, {}, ""),
    ],
)
def test_what_is_no_setting_at_all_is_said_and_no_traceback(folder, text, environment, setting):
    (folder / "modelkeep.toml").write_text(text)
    for ask in (rows, load):
        with pytest.raises(Invalid):
            ask(folder, environment)
    assert setting in of(problems(folder, environment))


def test_what_processes_would_refuse_at_their_start_is_said_before(folder):
    write(
        folder,
        """
[gateway]
host = "a..b"
port = 4443
grpc_port = 4443
certificate = "a\\u0000b"
key = "c"
client_certificates = "required"
[upstream]
origins = ["https://models.example/"]
[state]
url = "rediss://host?timeout=3"
[[issuers]]
alias = "corp"
issuer = "https://id.example"
audiences = ["keep"]
roles = {a = "user"}
ca = "none.pem"
""",
    )
    found = problems(folder, {})
    assert {*of(found)} == {
        *("gateway.grpc_port", "gateway.certificate", "gateway.client_ca", "upstream.origins", "state.url", "issuers[0].ca")
    }
    assert "https://models.example" in of(found)["upstream.origins"]
    assert "no host" in of(found, "warning")["gateway.port"]


def test_a_file_that_is_no_toml_and_no_keep(folder, tmp_path):
    (folder / "modelkeep.toml").write_text("[keep")
    (only,) = problems(folder, {})
    assert only.level == "error" and "not TOML" in only.message
    with pytest.raises(Missing, match="init"):
        problems(tmp_path, {})


# -- tables of every shape, as sections may have them --


class Inner(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rate: Annotated[float, Meta(gt=0)] | None = None


class Issuer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    alias: str
    roles: dict[str, str] = {}
    mode: Literal["a", "b"] = "a"

    def __post_init__(self):
        if self.alias == "local":
            raise ValueError("no issuer may be called local")


class Some(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    accounts: dict[str, Inner] = {}
    burst: int = 1


class Whole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    limits: Some = Some()
    issuers: tuple[Issuer, ...] = ()


def check(text):
    found = []
    cleaned = configuration._check(tomllib.loads(text), Whole, (), lambda *each: found.append(Problem(*each)))
    return {each.setting: each.message for each in found}, cleaned


def test_arrays_of_tables_and_tables_by_name_are_looked_into():
    found, cleaned = check(
        """
[[issuers]]
alias = "one"
mode = "c"
[[issuers]]
alais = "two"
[[issuers]]
alias = "local"
[limits]
burst = "x"
[limits.accounts.alice]
rate = -1
[limits.accounts.bob]
rat = 1
"""
    )
    assert set(found) == {
        *("issuers[0].mode", "issuers[1].alais", "issuers[1].alias", "issuers[2]", "limits.burst"),
        *("limits.accounts.alice.rate", "limits.accounts.bob.rat"),
    }
    assert "called local" in found["issuers[2]"] and "did you mean alias" in found["issuers[1].alais"]
    msgspec.convert(cleaned, Whole)


@pytest.mark.parametrize("text", ["limits = 3", "issuers = 3", "[issuers]\nalias = 'x'", "[limits]\naccounts = 3"])
def test_a_table_that_is_none(text):
    found, _ = check(text)
    assert len(found) == 1


def test_what_is_right_is_right():
    found, cleaned = check("[[issuers]]\nalias = 'a'\n[issuers.roles]\nx = 'admin'\n[limits.accounts.bob]\nrate = 2\n")
    assert found == {} and msgspec.convert(cleaned, Whole).issuers[0].roles == {"x": "admin"}


# -- the command line --


def test_the_commands(cli):
    assert cli("config", "check").code in (0,)
    shown = cli("--set", "gateway.port=9", "--json", "config", "show", code=0).json
    assert {"name": "gateway.port", "value": 9, "origin": "flag", "where": "--set"} in shown
    assert "default" in cli("config", "show", "--origin", code=0).out
    bad = cli("--set", "gateway.port=99999", "config", "check", code=2)
    assert "gateway.port" in bad.out
    assert "did you mean" in cli("--set", "gateway.prot=1", "config", "check", code=2).line()
    assert "MODELKEEP_SET" not in os.environ and variable("gateway", "port") not in os.environ
    assert cli("--server", "https://x", "config", "show", code=2).line()
    assert Settings().gateway.port == 8443


def test_a_wrong_word_is_said_with_those_that_are_right_and_where_it_stands(folder):
    write(folder, '[validation]\nranges = "refse"\n[gateway]\nport = 1')
    environment = {"MODELKEEP_GATEWAY_PORT": "99999", "MODELKEEP_LIMITS_RATE": "-1"}
    set_flag("limits.rate=-2", environment)
    found = of(problems(folder, environment))
    assert found["validation.ranges"] == "expected refuse, record or off, got 'refse'"
    assert found["gateway.port"] == "Expected int <= 65535 (MODELKEEP_GATEWAY_PORT)"
    assert found["limits.rate"] == "Expected float > 0.0 (--set)"


@pytest.mark.parametrize(
    ("text", "environment", "said"),
    [
        ("[gatway]\nport = 1", {}, "modelkeep.toml: gatway: there is no such section;"),
        ("[gateway]\nprot = 1", {}, "modelkeep.toml: gateway.prot: there is no such setting;"),
        ('[validation]\ntell = "x"', {}, "modelkeep.toml: validation.tell: expected nothing, feature or bounds, got 'x';"),
        ("", {"MODELKEEP_GATEWAY_PORT": "x"}, "MODELKEEP_GATEWAY_PORT: gateway.port: Expected int, got str;"),
        ("", {"MODELKEEP_GATEWAY_PORT": "x", "MODELKEEP_SET": "gateway.port"}, "--set: gateway.port: Expected int, got str;"),
        ("[limits.accounts.a]\nraet = 1", {}, "modelkeep.toml: limits.accounts[...].raet: there is no such setting;"),
        ("[[issuers]]\nalias = 5", {}, "modelkeep.toml: issuers[0].alias: Expected str, got int;"),
    ],
)
def test_whoever_reads_wrong_settings_says_which_and_where_they_were_set(folder, text, environment, said):
    write(folder, text)
    with pytest.raises(Invalid) as refusal:
        load(folder, environment)
    assert said in str(refusal.value) and str(refusal.value).endswith("'modelkeep config check' says everything that is wrong")
    assert str(refusal.value).startswith(("/", "MODELKEEP_", "--set"))


def test_a_name_of_the_keep_that_is_not_its_own_is_told(folder):
    settings = folder / "modelkeep.toml"
    settings.write_text(settings.read_text().replace('origin = "', 'origin = "x'))
    assert "the name of this keep is" in of(problems(folder, {}), "warning")["keep.origin"]
