"""Which packages lock files name; and that what cannot be looked up is told, never dropped."""

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelkeep.custody.lockfiles import MAX_LOCK, Packages, installed, parse_locks
from modelkeep.errors import Invalid, TooLarge

PINS = (("numpy", "2.1.0"), ("torch", "2.1.0+cu118"))

REQUIREMENTS = b"""# made by a tool
--index-url https://packages.example/simple
numpy==2.1.0 ; python_version < "3.13" \\
    --hash=sha256:aaaa \\
    --hash=sha256:bbbb
Torch[extra] == 2.1.0+cu118  # gpu
"""
PIPFILE = {
    "_meta": {"hash": {"sha256": "ab"}, "pipfile-spec": 6, "sources": []},
    "default": {"numpy": {"hashes": [], "index": "pypi", "version": "==2.1.0"}},
    "develop": {"torch": {"version": "==2.1.0+cu118"}},
}
POETRY = b"""
[[package]]
name = "numpy"
version = "2.1.0"
files = [{file = "numpy.whl", hash = "sha256:ab"}]

[[package]]
name = "torch"
version = "2.1.0+cu118"
[package.source]
type = "legacy"
url = "https://packages.example/simple"
reference = "gpu"

[metadata]
lock-version = "2.1"
"""
UV = b"""
version = 1
revision = 3
[[package]]
name = "my-project"
version = "0.1.0"
source = { virtual = "." }
[[package]]
name = "numpy"
version = "2.1.0"
source = { registry = "https://packages.example/simple" }
sdist = { url = "https://packages.example/numpy.tar.gz", hash = "sha256:ab", size = 1 }
[[package]]
name = "torch"
version = "2.1.0+cu118"
source = { registry = "https://packages.example/simple" }
"""
PYLOCK = b"""
lock-version = "1.0"
created-by = "a tool"
[[packages]]
name = "numpy"
version = "2.1.0"
index = "https://packages.example/simple"
[[packages.wheels]]
name = "numpy.whl"
url = "https://packages.example/numpy.whl"
hashes = { sha256 = "ab" }
[[packages]]
name = "torch"
version = "2.1.0+cu118"
"""
INSPECT = {
    "version": "1",
    "installed": [
        {"metadata": {"name": "NumPy", "version": "2.1.0"}, "metadata_location": "/x"},
        {"metadata": {"name": "torch", "version": "2.1.0+cu118"}, "direct_url": None},
    ],
}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requirements.txt", REQUIREMENTS),
        ("constraints.txt", b"numpy==2.1.0\r\ntorch===2.1.0+cu118\r\n"),
        ("Pipfile.lock", json.dumps(PIPFILE).encode()),
        ("poetry.lock", POETRY),
        ("uv.lock", UV),
        ("pylock.train.toml", PYLOCK),
        ("installed.json", json.dumps(INSPECT).encode()),
        ("bom.txt", b"\xef\xbb\xbfnumpy==2.1.0\ntorch==2.1.0+cu118"),
    ],
)
def test_every_kind_of_lock_file(name, text):
    assert parse_locks({name: text}) == Packages(PINS)


def test_the_lock_is_the_digest_that_training_runs_have():
    said = parse_locks({"r.txt": REQUIREMENTS})
    assert said.lock == "sha256:" + hashlib.sha256(b"numpy==2.1.0\ntorch==2.1.0+cu118\n").hexdigest()
    assert installed({"torch": "2.1.0+cu118", "numpy": "2.1.0"}).lock == said.lock
    trained = installed({"torch": "2.1.0+cu118", "NumPy": "2.1"})  # spelt in another way, and told as it was spelt
    assert trained.lock == "sha256:" + hashlib.sha256(b"NumPy==2.1\ntorch==2.1.0+cu118\n").hexdigest()
    assert trained.pins == (("numpy", "2.1"), ("torch", "2.1.0+cu118"))


@pytest.mark.parametrize(
    ("name", "text", "about"),
    [
        ("r.txt", b"torch", "torch"),
        ("r.txt", b"torch>=2", "torch"),
        ("r.txt", b"torch==2.*", "torch"),
        ("r.txt", b"-e ./mine", "./mine"),
        ("r.txt", b"--editable=git+https://e.org/x#egg=x", "git+https"),
        ("r.txt", b"p @ https://e.org/p.whl", "p"),
        ("r.txt", b"git+ssh://e.org/x", "git+ssh"),
        ("r.txt", b"./wheels/p.whl", "p.whl"),
        ("r.txt", b"-r more/base.txt", "base.txt"),
        ("r.txt", b"-c limits.txt", "limits.txt"),
        ("r.txt", b"--requirement=b.txt", "b.txt"),
        ("Pipfile.lock", b'{"_meta": {}, "default": {"p": {"git": "https://e.org/p", "ref": "ab"}}}', "p"),
        ("Pipfile.lock", b'{"_meta": {}, "default": {"p": {"path": ".", "editable": true}}}', "p"),
        ("Pipfile.lock", b'{"_meta": {}, "default": {"p": {"version": "*"}}}', "p"),
        ("poetry.lock", b'[[package]]\nname="p"\nversion="1"\n[package.source]\ntype="git"\nurl="x"', "p"),
        ("poetry.lock", b'[[package]]\nname="p"\nversion="1"\n[package.source]\ntype="carrier-pigeon"\nurl="x"', "p"),
        ("uv.lock", b'[[package]]\nname="p"\nversion="1"\nsource={git="x"}', "p"),
        ("uv.lock", b'[[package]]\nname="p"\nversion="1"\nsource={editable="../p"}', "p"),
        ("uv.lock", b'[[package]]\nname="p"\nsource={registry="x"}', "p"),
        ("uv.lock", b'[[package]]\nname="p"\nversion="1"\nsource={pigeon="x"}', "p"),
        ("pylock.toml", b'lock-version="1.0"\n[[packages]]\nname="p"\nversion="1"\nvcs={type="git", url="x"}', "p"),
        ("pylock.toml", b'lock-version="1.0"\n[[packages]]\nname="p"\ndirectory={path="."}', "p"),
        ("pylock.toml", b'lock-version="1.0"\n[[packages]]\nname="p"', "p"),
        (
            "i.json",
            b'{"installed": [{"metadata": {"name": "p", "version": "1"}, "direct_url": {"dir_info": {"editable": true}}}]}',
            "p",
        ),
        (
            "i.json",
            b'{"installed": [{"metadata": {"name": "p", "version": "1"}, "direct_url": {"url": "x", "vcs_info": {}}}]}',
            "p",
        ),
        (
            "i.json",
            b'{"installed": [{"metadata": {"name": "p", "version": "1"}, "direct_url": {"url": "x", "archive_info": {}}}]}',
            "p",
        ),
        ("i.json", b'{"installed": [{"metadata": {"name": "p", "version": "not one"}}]}', "p"),
        ("i.json", b'{"installed": [{"metadata": {"name": null, "version": null}}]}', "without a name"),
        ("i.json", b'{"installed": [{"metadata": {"name": "p", "version": null}}]}', "no version"),
    ],
)
def test_what_cannot_be_looked_up_is_told(name, text, about):
    said = parse_locks({name: text})
    assert said.pins == () and len(said.beyond) == 1 and about in said.beyond[0] and ": " in said.beyond[0]


def test_a_file_that_another_names_may_be_given_with_it():
    said = parse_locks({"r.txt": b"-r base.txt\nnumpy==2.1.0", "base.txt": b"torch==2.1.0+cu118\n"})
    assert said == Packages(PINS)


def test_one_package_in_two_versions_is_two():
    text = b'numpy==1.26.4; python_version < "3.9"\nnumpy==2.1.0; python_version >= "3.9"\nnumpy==2.1.0\n'
    assert parse_locks({"r.txt": text}).pins == (("numpy", "1.26.4"), ("numpy", "2.1.0"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.txt", b""),
        ("r.txt", b"# nothing\n"),
        ("r.txt", b"\xff\xfe"),
        ("r.txt", b"two words"),
        ("r.txt", b"--install-evil"),
        ("r.txt", b"numpy==2.1.0 --unheard-of"),
        ("r.txt", b"na\x1b[2Jme==1"),
        ("r.txt", b"==1"),
        ("x.json", b"{"),
        ("x.json", b'{"some": "thing"}'),
        ("x.json", b'{"installed": 5}'),
        ("x.json", b'{"installed": [{}]}'),
        ("x.json", b'{"installed": [{"metadata": {"name": 5, "version": "1"}}]}'),
        ("x.json", b'{"installed": [5]}'),
        ("x.json", b'{"installed": [{"metadata": {"name": "p", "version": "1"}, "direct_url": 5}]}'),
        ("x.json", b'{"_meta": {}, "default": [1]}'),
        ("x.json", b'{"_meta": {}, "default": {"p": 5}}'),
        ("x.json", b'{"a":' * 90_000),
        ("x.json", b'{"_meta": {}, "default": {"p\\u001b[2J": {"version": "==1"}}}'),
        ("x.json", b'{"n": ' + b"9" * 9000 + b"}"),
        ("uv.lock", b"["),
        ("uv.lock", b"a = 1"),
        ("uv.lock", b"package = 5"),
        ("uv.lock", b'package = ["x"]'),
        ("uv.lock", b"[[package]]\nname = 5"),
        ("uv.lock", b"[[package]]\nname = 'p'\nsource = 'x'"),
        ("uv.lock", b"x = " + b"[" * 50_000),
        ("pylock.toml", b'lock-version="1"\npackages = {a = 1}'),
        ("pylock.toml", b'lock-version="1"\n[[packages]]\nversion="1"'),
    ],
)
def test_what_is_no_lock_file_is_refused_in_one_line(name, text):
    with pytest.raises(Invalid) as refused:
        parse_locks({name: text})
    assert str(refused.value).replace("\n", "").isprintable()


def test_bounds():
    with pytest.raises(TooLarge):
        parse_locks({"r.txt": b" " * (MAX_LOCK + 1)})
    with pytest.raises(TooLarge):
        parse_locks({"r.txt": b"".join(b"p%d==1\n" % number for number in range(20_001))})
    with pytest.raises(TooLarge):
        parse_locks({"r.txt": b"p==1;" + b"(" * 5000})


@settings(max_examples=120, deadline=None)
@given(st.sampled_from([REQUIREMENTS, POETRY, UV, PYLOCK, json.dumps(PIPFILE).encode()]), st.data())
def test_a_mutated_lock_file_is_read_or_refused(text, data):
    changed = bytearray(text)
    for _ in range(data.draw(st.integers(1, 5))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    try:
        parse_locks({data.draw(st.sampled_from(["r.txt", "x.lock"])): bytes(changed)})
    except Invalid as refused:
        assert str(refused)


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=60))
def test_any_line_is_a_pin_told_or_refused(line):
    try:
        said = parse_locks({"r.txt": line.encode("utf-8", "replace")})
    except Invalid:
        return
    assert said.pins or said.beyond
    assert all(name.isascii() and version.isascii() for name, version in said.pins)
    assert all(one.isprintable() for one in said.beyond)
