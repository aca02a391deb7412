"""The scanner over its corpus: no attack is clean, files as people have them are, and damage neither crashes nor hangs it."""

import io
import pickle
import re
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from modelkeep.custody.scan import RULES, SCANNED_FORMATS, SERVED_FORMATS, refusal, scan
from modelkeep.custody.scanning.onnx import STANDARD
from modelkeep.formats.detect import Format

sys.path.insert(0, str(Path(__file__).parents[1] / "scan_corpus"))
from archive_attacks import rezipped
from corpus import benign, malicious
from fuzz import LIMIT_BYTES, fuzz

CORPUS = Path(__file__).parents[1] / "scan_corpus"
PAGE = Path(__file__).parents[2] / "docs" / "scanning.md"
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.binary(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4) | st.tuples(inner, inner)
    ),
    max_leaves=12,
)
DTYPES = (
    hnp.boolean_dtypes() | hnp.integer_dtypes() | hnp.floating_dtypes() | hnp.unicode_string_dtypes() | hnp.datetime64_dtypes()
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_dims=3, max_side=4))


def test_no_attack_is_clean():
    assert len(malicious()) >= 60
    assert [name for name, data in malicious().items() if scan(data, "model.bin").clean] == []


def test_files_as_people_have_them_are_clean():
    assert len(benign()) >= 25
    alarms = {name: scan(data, "model.bin").findings for name, data in benign().items() if not scan(data, "model.bin").clean}
    assert alarms == {}


def test_the_attacks_on_archives_differ_from_a_clean_one_by_the_attack():
    assert scan(rezipped(), "model.pt").clean


def test_every_format_that_is_read_has_attacks_and_clean_files():
    assert {scan(data, "m").format for data in malicious().values()} >= set(SCANNED_FORMATS)
    assert {scan(data, "m").format for data in benign().values()} == set(SCANNED_FORMATS)


def test_a_clean_pickle_is_not_served_and_the_refusal_says_how_to_convert():
    for name, data in benign().items():
        verdict = scan(data, name)
        reason = refusal(verdict, name)
        assert (reason is None) == (verdict.format in SERVED_FORMATS)
        if reason is not None:
            known = next(each for each in Format if each.id == verdict.format)
            assert (reason.rule, reason.message) == ("format", f"{known.article} is not accepted: {known.convert}")


def test_every_rule_finds_an_attack():
    found = {finding.rule for data in malicious().values() for finding in scan(data, "m").findings}
    elsewhere = {"file-name", "unbounded", "ir-version", "interface", "sparse-tensor"}  # test_custody_scan.py
    assert set(RULES) - found == elsewhere


def test_every_rule_is_documented():
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (critical|high|medium) \|", PAGE.read_text(), re.MULTILINE)
    assert rows == [(rule, each.severity) for rule, each in RULES.items()]


def test_findings_are_of_known_rules_and_of_one_line():
    for data in malicious().values():
        for finding in scan(data, "m").findings:
            assert finding.rule in RULES
            assert (finding.where + finding.message).isprintable()


@settings(max_examples=60, deadline=None)
@given(PLAIN, st.integers(0, 5))
def test_plain_data_is_clean_in_every_protocol(value, protocol):
    raw = pickle.dumps(value, protocol)
    verdict = scan(raw, "m.pkl")
    assert verdict.clean or verdict.format != "pickle", verdict.findings


@settings(max_examples=40, deadline=None)
@given(ARRAYS, st.integers(2, 5))
def test_arrays_are_clean_however_they_are_written(array, protocol):
    npy, dumped = io.BytesIO(), io.BytesIO()
    np.save(npy, array)
    joblib.dump([array, array], dumped)
    for raw in (npy.getvalue(), dumped.getvalue(), pickle.dumps(array, protocol)):
        assert scan(raw, "m").findings == ()


@pytest.mark.parametrize("format_id", SCANNED_FORMATS)
def test_damage_neither_crashes_nor_hangs(format_id):
    seeds = {name: data for name, data in (malicious() | benign()).items() if scan(data, "m").format == format_id}
    found = fuzz(lambda data: scan(data, "m").clean, seeds, seconds=0.7, cases=3000)
    assert found.cases >= 50
    assert found.slow == []
    assert found.grown <= LIMIT_BYTES + (1 << 20)


def test_bombs_take_no_more_memory_than_is_said(tmp_path):
    """In a process of its own, because only the peak of a whole process can be asked for."""
    import subprocess

    bombs = {
        name: data for name, data in malicious().items() if any(word in name for word in ("bomb", "without end", "million"))
    }
    assert len(bombs) > 8
    for number, data in enumerate(bombs.values()):
        (tmp_path / str(number)).write_bytes(data)
    code = (
        "import sys, pathlib\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from fuzz import peak\n"
        "from modelkeep.custody.scan import scan\n"
        "files = [path.read_bytes() for path in pathlib.Path(sys.argv[1]).iterdir()]\n"
        "before = peak()\n"
        "assert not any(scan(data, 'm').clean for data in files)\n"
        "print(peak() - before, max(map(len, files)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path, CORPUS], check=True, capture_output=True, text=True)
    grown, largest = map(int, done.stdout.split())
    assert (16 << 20) < grown <= LIMIT_BYTES + largest  # bombs that are unpacked at all show that this measures


def test_every_operator_of_the_onnx_standard_is_known():
    from onnx import defs

    known = {(each.domain, each.name) for each in defs.get_all_schemas_with_history()}
    assert {pair for pair in known if pair[0] in ("", "ai.onnx.ml")} == STANDARD
