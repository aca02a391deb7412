"""Sinks from settings, what a start finds unfinished, and the act that a break-glass needs."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from modelkeep.app.audits import new_audit, recover_all
from modelkeep.app.control import CONTROL
from modelkeep.app.keep import Keep
from modelkeep.app.sections import AuditSettings
from modelkeep.app.settings import Settings, parse
from modelkeep.app.sinks import open_sink, open_sinks, sink_limits
from modelkeep.app.sinktroubles import log_break_glass
from modelkeep.custody.keys import AUDIT_LOG
from modelkeep.errors import Invalid
from modelkeep.workflows.breakglass import Glass, GlassWatch, parse_break_glass

SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def test_each_scheme_makes_its_sink_under_a_name_without_secrets(tmp_path, secret):
    (tmp_path / "second").mkdir()
    settings = AuditSettings()
    names = [
        open_sink(url, settings, tmp_path).name
        for url in (
            f"disk:{tmp_path}/second?same-disk=yes",
            "syslog+tls://siem.example",
            "syslog+tls://siem.example:7000?",
            f"https://siem.example/hook?tenant=7#secret={secret}",
            f"http://127.0.0.1:8000/hook#secret={secret}",
        )
    ]
    assert names == [
        f"disk:{tmp_path}/second",
        "syslog+tls://siem.example:6514",
        "syslog+tls://siem.example:7000",
        "https://siem.example:443/hook",
        "http://127.0.0.1:8000/hook",
    ]


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "names no host"),
        ("https://sïem.example/hook#secret={secret}", "ASCII"),
        ("disk:relative", "absolute path"),
        ("disk://host/path", "absolute path"),
        ("disk:/tmp?same-dsik=yes", "no option"),
        ("syslog+tls://", "names no host"),
        ("syslog+tls://user:hunter2@siem.example", "no password"),
        ("syslog+tls://siem.example:70000", "malformed"),
        ("syslog+tls://siem.example?ca=/nowhere.pem", "cannot use the certificates"),
        ("syslog://siem.example", "none of"),
        ("http://siem.example/hook#secret={secret}", "this machine alone"),
        ("http://127.0.0.1.example/hook#secret={secret}", "this machine alone"),
        ("https://siem.example/hook", "needs '#secret=FILE'"),
        ("https://siem.example/hook#secret=/nowhere", "cannot read the secret"),
        ("https://siem.example/ho ok#secret={secret}", "without spaces"),
        ("https://siem.example/hook#secret={secret}&colour=red", "no option"),
        ("ftp://siem.example/hook", "none of"),
    ],
)
def test_a_url_that_is_wrong_is_one_clear_line(tmp_path, secret, url, why):
    with pytest.raises(Invalid, match=why) as caught:
        open_sink(url.replace("{secret}", str(secret)), AuditSettings(), tmp_path)
    assert "hunter2" not in str(caught.value) and SECRET not in str(caught.value)


def test_a_url_adds_no_header(tmp_path, secret):
    sink = open_sink(f"https://siem.example/hook?a=\r\nx:y#secret={secret}", AuditSettings(), tmp_path)
    assert sink._target == "/hook?a=x:y"  # line breaks are taken out, as browsers do


def test_a_secret_that_others_may_read_is_refused(tmp_path, secret):
    secret.chmod(0o644)
    with pytest.raises(Invalid, match="open to others"):
        open_sink(f"https://siem.example/#secret={secret}", AuditSettings(), tmp_path)


def test_deadlines_of_required_sinks_fit_into_the_second_in_which_trouble_must_be_known():
    limits = sink_limits(AuditSettings(require=1))
    tick = AuditSettings().hang_seconds / 4
    assert limits.probe + limits.slow + tick <= 1.0 + 1e-9 and limits.hang < 1.0


def test_settings_take_sinks_as_a_list(tmp_path):
    found = parse({}, {"MODELKEEP_AUDIT_SINKS": "disk:/a,disk:/b", "MODELKEEP_AUDIT_REQUIRE": "2"}, "here").audit
    assert found.sinks == ("disk:/a", "disk:/b") and found.require == 2
    assert Settings().audit.sinks == ()
    with pytest.raises(Invalid):
        parse({"audit": {"require": -1}}, {}, "here")


# -- on a keep --


def opened(cli, **audit):
    keep = Keep.open(cli.keep, cli.passphrase_file.read_bytes().strip())
    keep.premises.settings = Settings(keep=keep.premises.settings.keep, audit=AuditSettings(**audit))
    return keep


def test_more_required_than_named_or_one_named_twice_is_refused(cli, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    for audit, why in (
        ({"require": 1}, "require is 1, and sinks names 0"),
        ({"sinks": (f"disk:{tmp_path}?same-disk=yes", f"disk:{tmp_path}/link?same-disk=yes"), "require": 2}, "twice"),
        ({"sinks": (f"disk:{tmp_path}?same-disk=yes",) * 2, "require": 2}, "twice"),
        ({"sinks": (f"disk:{tmp_path}",)}, "same disk"),
    ):
        with pytest.raises(Invalid, match=why):
            open_sinks(opened(cli, **audit).premises, "x", str)
    assert open_sinks(opened(cli).premises, "x", str) is None


def until(hours):
    return (datetime.now(UTC) + timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%MZ")


def seen_by_a_gateway(keep, setting):
    """Whether a gateway that starts now would do without sinks."""
    here = keep.premises
    glass, view = Glass(parse_break_glass(setting), here.clock.now_ns), here.view()
    GlassWatch(glass, here.trust).catch_up(view, view.checkpoint.size)
    return glass()


def test_a_break_glass_is_logged_once_and_only_then_believed(cli):
    keep, told = opened(cli), []
    setting = f"until {until(3)}: the disk is away"
    glass = Glass(parse_break_glass(setting), time.time_ns)
    assert seen_by_a_gateway(keep, setting) == ""
    log_break_glass(keep.acting_as(CONTROL), glass, told.append)
    size = keep.premises.view().checkpoint.size
    assert glass() and seen_by_a_gateway(keep, setting) == setting
    again = Glass(parse_break_glass(setting), time.time_ns)
    log_break_glass(keep.acting_as(CONTROL), again, told.append)
    assert keep.premises.view().checkpoint.size == size and again(), "control started again: no second act"
    for other in (f"until {until(4)}: the disk is away", f"until {until(3)}: another reason"):
        assert seen_by_a_gateway(keep, other) == "", "what was not logged is not in force"
    assert [one.detail for one in keep.incidents()] == [f"required audit sinks may be done without, {setting}"]
    assert told[0].startswith("BREAK-GLASS")


def test_a_break_glass_of_more_than_24_hours_is_refused_and_one_that_ended_is_nothing(cli):
    keep, told = opened(cli), []
    size = keep.premises.view().checkpoint.size
    with pytest.raises(Invalid, match="at most 24 hours"):
        log_break_glass(keep.acting_as(CONTROL), Glass(parse_break_glass(f"until {until(25)}: why"), time.time_ns), told.append)
    log_break_glass(keep.acting_as(CONTROL), Glass(parse_break_glass(f"until {until(-1)}: why"), time.time_ns), told.append)
    assert "ended" in told[0] and keep.premises.view().checkpoint.size == size and not keep.incidents()


def test_a_break_glass_that_somebody_else_writes_into_the_log_files_counts_for_nothing(cli):
    """Acts of other verbs, and of people, are not it."""
    keep = opened(cli)
    setting = f"until {until(3)}: the disk is away"
    keep.act("incident.resolve", until(3), reason="the disk is away")
    keep.act("break-glass", "somewhere", reason="the disk is away")
    assert seen_by_a_gateway(keep, setting) == ""


def test_a_cursor_stays_while_another_process_finishes_its_log(cli, tmp_path):
    (tmp_path / "second").mkdir()
    keep = opened(cli, sinks=(f"disk:{tmp_path}/second?same-disk=yes",))
    here = keep.premises
    instance, audit = new_audit(here, here.keyring([AUDIT_LOG]), "gateway", Glass(None, time.time_ns))
    audit.stop()
    (cursor,) = (cli.keep / "sinks").glob(f"*/{instance}")
    cursor.mkdir(exist_ok=True)
    size = int(here.audit_files(instance).read("checkpoint").split(b"\n")[1])
    (cursor / "accepted").write_bytes(b"%d" % size)
    with here.audit_files(instance).lock(wait=False):  # it may still become longer
        open_sinks(here, "next", str).close(0)
        assert cursor.is_dir()
    open_sinks(here, "next", str).close(0)
    assert not cursor.exists()


def test_a_log_that_comes_back_from_a_mirror_gets_its_tiles_and_dead_reserves_go(cli, tmp_path):
    import shutil

    from modelkeep.app.offline import check_logs
    from modelkeep.app.shelf import keep_shelf

    (tmp_path / "second").mkdir()
    keep = opened(cli, sinks=(f"disk:{tmp_path}/second?same-disk=yes",), require=1)
    here = keep.premises
    ring = here.keyring([AUDIT_LOG])
    instance, audit = new_audit(here, ring, "gateway", Glass(None, time.time_ns))
    audit.stop()
    folder = cli.keep / "log" / "audit" / instance
    shutil.rmtree(folder)  # the first disk is lost
    shutil.copytree(tmp_path / "second" / instance, folder)
    (folder / ".reserve").write_bytes(b"left by kill -9")
    assert not (folder / "tile").exists()
    told = []
    recover_all(here, ring, told.append)
    assert any("anew" in line for line in told) and not (folder / ".reserve").exists()
    assert any(row.origin.endswith(instance) for row in check_logs(keep_shelf(cli.keep / "log"), here.trust, []))
