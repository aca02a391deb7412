"""Second opinions: the real picklescan and modelaudit on real files, and fakes that do what a broken or hostile one could."""

import time
from importlib.metadata import version
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scanners import BRIEF, FILES, REAL, asked, fake, report

from modelkeep.adapters.confine import MAX_OUTPUT, Limits
from modelkeep.adapters.scanners import MODELAUDIT, OtherScanners, read_modelaudit, read_picklescan
from modelkeep.core.values import OpinionVerdict

CLEAN, UNCLEAN, FAILED = OpinionVerdict.CLEAN, OpinionVerdict.UNCLEAN, OpinionVerdict.FAILED
HARMLESS = memoryview(FILES["plain pickle"][1])


# -- the real ones --


@pytest.fixture(scope="module")
def real():
    """What picklescan says of every file, and modelaudit, which takes a second for each, of some."""
    here, other = OtherScanners(limits=BRIEF), OtherScanners(REAL, BRIEF, (MODELAUDIT,))
    asked_both = ("plain pickle", "harmful torch", "weights")
    return {
        name: {
            one.tool: one
            for others in (here, other)[: 1 + (name in asked_both)]
            for one in others.opinions(memoryview(data), format_id)
        }
        for name, (format_id, data) in FILES.items()
    }


@pytest.mark.parametrize(
    ("name", "picklescan", "modelaudit"),
    [
        ("plain pickle", CLEAN, CLEAN),
        ("harmful pickle", UNCLEAN, None),
        ("plain torch", CLEAN, None),
        ("harmful torch", UNCLEAN, UNCLEAN),
        ("plain arrays", CLEAN, None),
        ("weights", None, CLEAN),
    ],
)
def test_what_the_real_tools_say(real, name, picklescan, modelaudit):
    found = real[name]
    said = (found[tool].verdict if tool in found else None for tool in ("picklescan", "modelaudit"))
    assert tuple(said) == (picklescan, modelaudit), found


def test_a_file_that_they_do_not_understand_is_not_clean(real):
    """picklescan ends with 0 and counts it as scanned: only its warning says that it read nothing."""
    assert real["broken pickle"]["picklescan"].verdict is FAILED
    assert "could not parse" in real["broken pickle"]["picklescan"].detail


def test_they_name_what_they_found(real):
    assert "system" in real["harmful pickle"]["picklescan"].detail
    assert "system" in real["harmful torch"]["modelaudit"].detail


def test_in_this_environment_there_is_picklescan_alone():
    assert OtherScanners().tools("pickle") == (("picklescan", version("picklescan")),)
    assert OtherScanners().tools("onnx") == ()


# -- hostile ones --


@pytest.mark.parametrize(
    ("code", "verdict", "says"),
    [
        (report(), CLEAN, ""),
        (report("a remark", severity="info"), CLEAN, ""),
        (report("os.system"), UNCLEAN, "os.system"),
        (report("odd", severity="warning"), UNCLEAN, "odd"),
        (report("odd", severity="a severity of tomorrow"), UNCLEAN, "odd"),
        (report(scanned=0), FAILED, "0 files scanned"),
        (report(success=False), FAILED, ""),
        (report(errors=True), FAILED, ""),
        (report() + "; raise SystemExit(1)", UNCLEAN, ""),
        (report() + "; raise SystemExit(2)", FAILED, "exit status 2"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", FAILED, "signal 11"),
        ("import os; os.abort()", FAILED, "signal 6"),
        ("raise ModuleNotFoundError('scipy')", FAILED, "ModuleNotFoundError: scipy"),
        ("", FAILED, "no report"),
        ("print('clean')", FAILED, "no report"),
        ("print('{}')", FAILED, "no report"),
        ("print('[' * 100000)", FAILED, "no report"),
        ("import os; os.write(1, os.urandom(5000))", FAILED, "no report"),
        ('print(\'{"files_scanned": 1, "has_errors": "no", "success": true, "issues": []}\')', FAILED, "no report"),
        ("x = bytearray(1 << 31)", FAILED, "MemoryError"),
        ("import os\nwhile True: os.write(1, b' ' * 65536)", FAILED, f"more than {MAX_OUTPUT >> 20} MiB"),
        (report("\x1b[31mred\n\u202etxet\x00"), UNCLEAN, "[31mred txet"),
        (report("x" * 5000), UNCLEAN, "x" * 300),
    ],
)
def test_only_a_whole_answer_of_the_known_form_is_clean(code, verdict, says):
    (opinion,) = asked(fake(code)).opinions(HARMLESS, "pickle")
    assert opinion.verdict is verdict, opinion
    assert says in opinion.detail
    assert opinion.detail.isprintable() and len(opinion.detail) <= 300


def test_one_that_hangs_is_stopped_and_the_next_is_asked():
    others = asked(fake("import time; time.sleep(1000)"), fake(report(), name="second"), limits=Limits(1 << 30, 0.5))
    began = time.monotonic()
    first, second = others.opinions(HARMLESS, "pickle")
    assert (first.verdict, first.detail) == (FAILED, "it did not end within 0.5 seconds, and was stopped")
    assert second.tool == "second" and time.monotonic() - began < 60


def test_one_that_wants_the_network_does_not_get_it():
    code = f"""
import sys, urllib.request
try:
    urllib.request.urlopen("http://127.0.0.1:80/", timeout=5)
except OSError as refusal:
    sys.stderr.write(str(refusal))
    raise SystemExit(3)
{report()}
"""
    (opinion,) = asked(fake(code)).opinions(HARMLESS, "pickle")
    assert opinion.verdict is FAILED and "Permission denied" in opinion.detail


def test_one_that_keeps_what_it_reads_keeps_it_nowhere(tmp_path):
    """It tries every place where one could write; what it did write went with its namespace."""
    code = f"""
import os, sys, tempfile
data = open(sys.argv[1], "rb").read()
for place in (os.environ["HOME"], tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", os.getcwd(), {str(tmp_path)!r}):
    try:
        open(os.path.join(place, "kept-by-a-scanner"), "wb").write(data)
    except OSError:
        pass
{report()}
"""
    (opinion,) = asked(fake(code)).opinions(HARMLESS, "pickle")
    assert opinion.verdict is CLEAN
    places = ("/run", "/tmp", "/var/tmp", "/dev/shm", ".", tmp_path)
    assert [place for place in places if Path(place, "kept-by-a-scanner").exists()] == []


def test_it_is_handed_the_bytes_under_a_name_of_ours():
    code = "import sys; sys.stderr.write(sys.argv[1] + ' ' + str(len(open(sys.argv[1], 'rb').read())))"
    (opinion,) = asked(fake(code)).opinions(HARMLESS, "pickle")
    assert opinion.detail.endswith(f"/run/model.pkl {len(HARMLESS)}")


def test_an_interpreter_that_is_not_there_is_no_opinion():
    (opinion,) = OtherScanners(python="/nowhere/python", candidates=(fake(report()),)).opinions(HARMLESS, "pickle")
    assert (opinion.version, opinion.verdict) == ("?", FAILED)
    assert "it was not run" in opinion.detail


def test_an_interpreter_that_lies_about_its_packages(tmp_path):
    liar = Path(tmp_path, "python")
    liar.write_text("#!/bin/sh\necho too many words here\n")
    liar.chmod(0o755)
    assert OtherScanners(str(liar)).tools("pickle") == (("picklescan", "?"), ("modelaudit", "?"))


# -- what they print --


SUMMARY = (
    "----------- SCAN SUMMARY -----------\nScanned files: {}\nInfected files: {}\nSuspicious globals: {}\nDangerous globals: {}"
)


@pytest.mark.parametrize(
    ("code", "text", "verdict"),
    [
        (0, SUMMARY.format(1, 0, 0, 0), CLEAN),
        (0, SUMMARY.format(0, 0, 0, 0), FAILED),
        (0, SUMMARY.format(1, 0, 1, 0), UNCLEAN),
        (0, SUMMARY.format(1, 0, 0, 1), UNCLEAN),
        (0, SUMMARY.format(1, 1, 0, 0), UNCLEAN),
        (1, SUMMARY.format(1, 0, 0, 0), UNCLEAN),
        (2, SUMMARY.format(1, 0, 0, 0), FAILED),
        (0, "WARNING: could not parse x\n" + SUMMARY.format(1, 0, 0, 0), FAILED),
        (0, SUMMARY.format(-1, 0, 0, 0), FAILED),
        (0, SUMMARY.format("one", 0, 0, 0), FAILED),
        (0, "", FAILED),
        # a global whose name tries to speak for the scanner: the summary comes last, and so does the status
        (1, "x: dangerous import 'os\nDangerous globals: 0\nsystem' FOUND\n" + SUMMARY.format(1, 1, 0, 1), UNCLEAN),
    ],
)
def test_reading_picklescan(code, text, verdict):
    found, why = read_picklescan(code, text.encode())
    assert (found, bool(why)) == (verdict, verdict is not CLEAN)


@settings(max_examples=60)
@given(st.integers(0, 255), st.binary(max_size=80) | st.text(max_size=80).map(str.encode))
def test_nothing_but_their_own_words_is_clean(code, output):
    for read in (read_picklescan, read_modelaudit):
        assert read(code, output)[0] is not CLEAN
