"""People and control, as they really meet: a browser with a passkey, and the command line with one-time codes."""

import json
import time
from base64 import b32decode

from browser import browser
from codes import code_before, wrong_code

from modelkeep.access.accounts import ACCOUNT, parse_account
from modelkeep.access.factors import FACTOR, parse_factors
from modelkeep.access.totp import code_of, step_at
from modelkeep.app.keep import Keep

WORDS = "four quite ordinary words of paula"


def test_a_browser_registers_a_passkey_and_approves_with_it(open_house, tmp_path):
    here = open_house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    added = here("user", "add", "paula", "--role", "analyst", "--json", code=0).json
    (tmp_path / "old").write_text(added["password"])
    (tmp_path / "new").write_text(WORDS)
    ca = str(open_house.keep / "tls" / "ca.pem")
    passwords = ("--password-file", str(tmp_path / "old"), "--new-password-file", str(tmp_path / "new"))
    here("--server", open_house.control, "login", "--user", "paula", "--ca", ca, *passwords, code=0)
    records = Keep.open(open_house.keep, here.passphrase_file.read_bytes()).premises.records

    def account():
        return parse_account(records.get(ACCOUNT, "paula"))

    page = open_house.control.replace("127.0.0.1", "localhost") + "/step-up"
    with browser(open_house.control) as window:
        device = window.add_authenticator()
        window.go(page)
        window.fill(account="paula", password="not her password")
        window.click("#login button")
        assert "wrong or missing" in window.said() and window.run("return document.getElementById('known').hidden")
        window.fill(account="paula", password=WORDS)
        window.click("#login button")
        assert window.said() == ""
        window.fill(label="laptop")
        window.click("#register")
        assert window.said() == "The passkey is registered."
        kept = parse_factors(records.get(FACTOR, "paula")).passkeys
        assert [each.label for each in kept] == ["laptop"] and len(window.credentials(device)) == 1

        window.verify_user(device, False)
        window.click("#approve")
        assert window.said() not in ("", "The account may go on.") and account().stepped_up == 0
        window.verify_user(device, True)
        window.click("#approve")
        assert window.said() == "The account may go on." and account().stepped_up > 0
        assert parse_factors(records.get(FACTOR, "paula")).passkeys[0].signed > kept[0].signed

        assert window.run("return document.cookie + JSON.stringify([localStorage, sessionStorage])") == "[{},{}]"
        breaches = [line for line in window.complaints() if "Content Security Policy" in line or "step-up.js" in line]
        assert breaches == []
        window.run("const s = document.createElement('script'); s.append('window.hit = 1'); document.body.append(s)")
        assert window.run("return window.hit") is None, "no script that stands in the page runs"

    shown = here("mfa", "show", "paula", "--json", code=0).json
    assert shown["passkeys"] == ["laptop"]
    log = json.dumps(here("log", "show", "--json", code=0).json)
    assert "mfa.passkey" in log and "step-up.approve" in log


def test_codes_from_the_command_line(open_house, tmp_path):
    """Enrol, log in with a code, approve a machine, see and end sessions, turn the key of the secrets, reset."""
    here = open_house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    added = here("user", "add", "olga", "--role", "admin", "--json", code=0).json
    files = {name: tmp_path / name for name in ("old", "new", "code")}
    files["old"].write_text(added["password"])
    files["new"].write_text(WORDS)
    server = ("--server", open_house.control)

    def login(password, *more, code=0):
        ca = str(open_house.keep / "tls" / "ca.pem")
        words = ("login", "--user", "olga", "--ca", ca, "--password-file", str(files[password]))
        return here(*server, *words, *more, code=code)

    def code(off=0):
        files["code"].write_text(code_of(secret, step_at(int(time.time())) + off))
        return ("--code-file", str(files["code"]))

    login("old", "--new-password-file", str(files["new"]))
    begun = here(*server, "mfa", "enrol", code=0)
    assert "otpauth://totp/modelkeep:olga?secret=" in begun.out and "\u2588" in begun.out, "an address, and its picture"
    secret = b32decode(begun.out.strip().rpartition(" ")[2])
    assert here(*server, "mfa", "confirm", wrong_code(secret)).code == 2
    done = here(*server, "--json", "mfa", "confirm", code_before(secret), code=0).json
    assert len(done["recovery"]) == 10
    assert here(*server, "session", "list").code == 1, "enrolment ended the session"
    assert "wrong or missing" in login("new", code=1).err
    shown = code()
    login("new", *shown)
    assert "wrong or missing" in login("new", *shown, code=1).err, "a code is good once"

    rows = here(*server, "--json", "session", "list", "--account", "olga", code=0).json
    assert [(row["state"], row["amr"]) for row in rows if row["state"] == "active"] == [("active", ["pwd", "otp", "mfa"])]
    assert here(*server, "step-up", "approve", "olga").code == 2, "a code is asked for"
    here(*server, "step-up", "approve", "olga", *code(1), code=0)

    turned = here("keys", "rotate", "second-factor", "--json", code=0).json
    assert turned["primary"] == "file:second-factor/2" and turned["changed"] == 1
    files["code"].write_text(done["recovery"][0])
    login("new", "--code-file", str(files["code"]))
    assert len(here(*server, "--json", "session", "revoke", "olga", code=0).json) >= 2
    assert here(*server, "session", "list").code == 1
    assert here("mfa", "show", "olga", code=0).out == "olga: one-time codes, 9 recovery codes\n"
    here("mfa", "reset", "olga", code=0)
    here("mfa", "require", "olga", code=0)
    login("new")
    assert "may only mfa.own" in here(*server, "status").err
    here("mfa", "require", "olga", "--off", code=0)
    login("new")
    assert here(*server, "user", "list", code=0).out
