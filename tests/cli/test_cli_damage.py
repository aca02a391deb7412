"""Bad input through the command line: damaged keeps, sealed files, logs and models. One clear line, nothing half-written.

Damage to containers at every byte: tests/container. Damage to logs at every entry: tests/ledger. What the scan refuses:
tests/custody/test_custody_scan.py. Here a user meets each kind once.
"""

import hashlib
import json
import os
import pickle
import shutil
import sqlite3

import numpy as np
import pytest
from commandline import Cli, copy_keep


def tree_of(folder):
    skip = ("-wal", "-shm", ".lock")
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.endswith(skip)
    }


@pytest.fixture(scope="module")
def foreign(tmp_path_factory, desk):
    """Another keep under the same passphrase."""
    keep = tmp_path_factory.mktemp("foreign") / "keep"
    Cli(keep, desk / "pass")("init", str(keep), code=0)
    return keep


def blob(keep):
    """The sealed model: the smallest body that is no smaller than it. The profile's may be larger."""
    sizes = {path: path.stat().st_size for path in (keep / "blobs").rglob("*") if path.is_file()}
    return min((path for path, size in sizes.items() if size >= len(the_model())), key=sizes.__getitem__)


def kek(keep):
    return keep / "keys" / "model-kek.keep"


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut(path, size):
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def future(path):
    data = bytearray(path.read_bytes())
    data[8:10] = (99).to_bytes(2, "big")
    path.write_bytes(data)


def statement(keep, sql):
    with sqlite3.connect(keep / "records.db") as connection:
        connection.execute(sql)
    connection.close()


def schema(keep, version):
    statement(keep, f"UPDATE meta SET value={version} WHERE name='schema_version'")


def folder(path):
    path.unlink()
    path.mkdir(mode=0o700)


def some_tile(keep):
    return sorted(
        (keep / "log" / "releases" / "tile" / "entries").rglob("*"), key=lambda p: int(p.name) if p.is_file() else -1
    )[-1]


def put(path, text):
    path.write_text(text)


def append(path, text):
    path.write_text(path.read_text() + text)


VERIFY, KEYS, LIST, EXPORT = ("verify", "risk@1"), ("keys", "list"), ("list",), ("export", "risk@1", "--out", "OUT")
LOG, USERS = ("log", "verify"), ("user", "list")
MODEL = ("publish", "MODEL", "--name", "risk", "--reference", "REF")

DAMAGE = [
    ("blob truncated", lambda k, f: cut(blob(k), -100), VERIFY, 1, "cut off"),
    ("blob emptied", lambda k, f: cut(blob(k), 0), VERIFY, 1, "cut off"),
    ("blob bit-flipped", lambda k, f: flip(blob(k), 5000), VERIFY, 1, "altered"),
    ("blob bit-flipped, export", lambda k, f: flip(blob(k), 5000), EXPORT, 1, ""),
    ("blob of a future version", lambda k, f: future(blob(k)), VERIFY, 1, "version"),
    ("blob is foreign", lambda k, f: blob(k).write_bytes(kek(f).read_bytes()), VERIFY, 1, ""),
    ("blob is plaintext", lambda k, f: blob(k).write_bytes(the_model()), VERIFY, 1, "plaintext"),
    ("blob is plaintext, export", lambda k, f: blob(k).write_bytes(the_model()), EXPORT, 1, "plaintext"),
    ("blob is a text", lambda k, f: put(blob(k), "hello"), VERIFY, 1, "magic"),
    ("blob is gone", lambda k, f: blob(k).unlink(), VERIFY, 1, "gone"),
    ("blob is gone, export", lambda k, f: blob(k).unlink(), EXPORT, 1, "no blob"),
    ("key truncated", lambda k, f: cut(kek(k), -30), KEYS, 1, "model-kek"),
    ("key emptied", lambda k, f: cut(kek(k), 0), KEYS, 1, "model-kek"),
    ("key bit-flipped", lambda k, f: flip(kek(k), 200), KEYS, 1, "model-kek"),
    ("key of a future version", lambda k, f: future(kek(k)), KEYS, 1, "version"),
    ("key is foreign", lambda k, f: shutil.copy2(kek(f), kek(k)), KEYS, 1, "trust root"),
    ("key of another family", lambda k, f: shutil.copy2(k / "keys" / "watermark.keep", kek(k)), KEYS, 1, "model-kek"),
    ("key is plaintext", lambda k, f: put(kek(k), '{"family":"model-kek"}'), KEYS, 1, "model-kek"),
    ("key is a folder", lambda k, f: folder(kek(k)), KEYS, 1, "model-kek"),
    ("key is gone", lambda k, f: kek(k).unlink(), EXPORT, 2, "model-kek"),
    ("key is a link", lambda k, f: (shutil.move(kek(k), k / "x"), kek(k).symlink_to(k / "x")), KEYS, 3, "model-kek"),
    ("keys are gone", lambda k, f: shutil.rmtree(k / "keys"), KEYS, 2, "key"),
    ("key file 0644", lambda k, f: kek(k).chmod(0o644), KEYS, 1, "open to others"),
    ("keep 0755", lambda k, f: k.chmod(0o755), LIST, 1, "open to others"),
    ("keys folder 0750", lambda k, f: (k / "keys").chmod(0o750), LIST, 1, "open to others"),
    ("records 0640", lambda k, f: (k / "records.db").chmod(0o640), LIST, 1, "open to others"),
    ("schema of the future", lambda k, f: schema(k, 99), LIST, 2, "newer"),
    ("upgrade from the future", lambda k, f: statement(k, "UPDATE meta SET value=99"), ("upgrade",), 2, "newer"),
    ("schema of the past", lambda k, f: schema(k, 0), LIST, 2, "upgrade"),
    ("records are no database", lambda k, f: put(k / "records.db", "x" * 5000), LIST, 1, "not a database"),
    ("records are another's", lambda k, f: statement(k, "PRAGMA application_id=7"), LIST, 1, "records"),
    ("records are empty", lambda k, f: cut(k / "records.db", 0), LIST, 1, "records"),
    ("records are cut", lambda k, f: cut(k / "records.db", 5000), LIST, 1, "records"),
    ("records are gone", lambda k, f: (k / "records.db").unlink(), LIST, 2, "no records"),
    ("record altered", lambda k, f: statement(k, "UPDATE record SET body='{}' WHERE kind='release'"), VERIFY, 1, "record"),
    ("account altered", lambda k, f: statement(k, "UPDATE record SET body='{' WHERE kind='account'"), USERS, 1, "account"),
    ("settings are no TOML", lambda k, f: put(k / "modelkeep.toml", "[keep\n"), LIST, 2, "not TOML"),
    ("settings are no text", lambda k, f: (k / "modelkeep.toml").write_bytes(b"\xff\xfe"), LIST, 2, "not"),
    ("settings: unknown field", lambda k, f: append(k / "modelkeep.toml", "[gateway]\nprot=1\n"), LIST, 2, "prot"),
    ("settings: wrong type", lambda k, f: append(k / "modelkeep.toml", "[gateway]\nport='x'\n"), LIST, 2, "port"),
    ("settings: section is a value", lambda k, f: put(k / "modelkeep.toml", "gateway = 7\n"), LIST, 2, "gateway"),
    ("settings are gone", lambda k, f: (k / "modelkeep.toml").unlink(), LIST, 2, "no keep"),
    ("settings are a folder", lambda k, f: folder(k / "modelkeep.toml"), LIST, 3, "read"),
    ("trust is gone", lambda k, f: (k / "trust.toml").unlink(), LIST, 2, "trust.toml"),
    ("trust is damaged", lambda k, f: put(k / "trust.toml", "version = "), LIST, 2, "trust.toml"),
    ("trust is foreign", lambda k, f: shutil.copy2(f / "trust.toml", k / "trust.toml"), KEYS, 1, "trust.toml"),
    ("trust is foreign, log", lambda k, f: shutil.copy2(f / "trust.toml", k / "trust.toml"), LOG, 1, ""),
    ("log tile missing", lambda k, f: some_tile(k).unlink(), LOG, 1, "tile"),
    ("log tile altered", lambda k, f: flip(some_tile(k), 300), LOG, 1, ""),
    ("log tile altered, publish", lambda k, f: flip(some_tile(k), 300), MODEL, 1, ""),
    ("checkpoint altered", lambda k, f: flip(k / "log" / "releases" / "checkpoint", 40), LOG, 1, "checkpoint"),
    ("checkpoint missing", lambda k, f: (k / "log" / "releases" / "checkpoint").unlink(), LOG, 1, "checkpoint"),
    ("log folder gone", lambda k, f: shutil.rmtree(k / "log" / "releases"), LIST, 2, "no log"),
    ("ca gone", lambda k, f: (k / "tls" / "ca.pem").unlink(), ("control",), 2, "ca.pem"),
    ("ca damaged", lambda k, f: put(k / "tls" / "ca.pem", "x"), ("control",), 1, "ca.pem"),
]  # fmt: skip

_MODEL = {}


def the_model():
    return _MODEL["onnx"]


@pytest.mark.parametrize(("name", "damage", "arguments", "code", "said"), DAMAGE, ids=lambda v: v if isinstance(v, str) else "")
def test_damage_is_one_clear_line_and_changes_nothing(
    template, foreign, desk, subject, tmp_path, name, damage, arguments, code, said
):
    _MODEL["onnx"] = subject.onnx
    keep = copy_keep(template, tmp_path / "keep")
    damage(keep, foreign)
    before = tree_of(keep)
    places = {"OUT": str(tmp_path / "out"), "MODEL": str(desk / "model.onnx"), "REF": str(desk / "ref.npz")}
    ran = Cli(keep, desk / "pass")(*(places.get(word, word) for word in arguments))
    assert ran.code == code, ran.out + ran.err
    assert said in ran.line() and not ran.out
    after = tree_of(keep)
    if arguments is not MODEL:  # publish counts its try
        assert after == before
    assert not (tmp_path / "out").exists() and not list((keep / "claims").glob("*") if (keep / "claims").is_dir() else [])


def models():
    """(what, file name, bytes or how to make them from the real model, exit code, words)."""
    from onnx import TensorProto, helper, load_from_string

    def changed(change):
        def make(subject):
            model = load_from_string(subject.onnx)
            change(model)
            return model.SerializeToString()

        return make

    def custom(model):
        model.graph.node.append(helper.make_node("RunShell", ["x"], ["y"], domain="com.evil"))
        model.opset_import.append(helper.make_opsetid("com.evil", 1))

    def external(model):
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="../../../etc/passwd")

    def function(model):
        made = helper.make_function("local", "f", ["a"], ["b"], [helper.make_node("Identity", ["a"], ["b"])], [])
        model.functions.append(made)

    keep = lambda subject: subject.onnx  # noqa: E731
    return [
        ("custom operator", "m.onnx", changed(custom), 1, "RunShell"),
        ("external data", "m.onnx", changed(external), 1, "external-data"),
        ("local function", "m.onnx", changed(function), 1, "local-function"),
        ("path in the file name", "a\nb.onnx", keep, 2, "plain file name"),
        ("backslashes in the file name", "..\\..\\m.onnx", keep, 2, "plain file name"),
        ("truncated", "m.onnx", lambda s: s.onnx[:-7], 1, ""),
        ("trailing bytes", "m.onnx", lambda s: s.onnx + b"\0" * 9, 1, ""),
        ("empty", "m.onnx", lambda s: b"", 1, ""),
        ("noise", "m.onnx", lambda s: np.random.default_rng(1).bytes(4096), 1, ""),
        ("pickle", "m.pkl", lambda s: pickle.dumps({"coef": [1.0]}), 1, "skl2onnx"),
        ("json", "m.json", lambda s: b'{"model": 1}', 1, "format"),
    ]


@pytest.mark.parametrize("what", range(11))
def test_models_that_are_refused_leave_nothing(cli, subject, desk, tmp_path, what):
    name, filename, make, code, said = models()[what]
    path = tmp_path / filename
    path.write_bytes(make(subject))
    before = tree_of(cli.keep)
    ran = cli("publish", str(path), "--name", "risk", "--reference", str(desk / "ref.npz"))
    assert ran.code == code and said in ran.line(), (name, ran.err)
    assert tree_of(cli.keep) == before
    assert [row["ref"] for row in cli("list", "--json").json] == ["risk@1"]


REFERENCES = {
    "NaN": (np.full((50, 30), np.nan), 2, "NaN"),
    "infinity": (np.full((50, 30), np.inf), 2, "infinite"),
    "too wide": (np.zeros((50, 31)), 2, "30"),
    "one dimension": (np.zeros(30), 2, "shape"),
    "no rows": (np.zeros((0, 30)), 2, "shape"),
    "one row": (np.zeros((1, 30)), 2, "rows"),
    "constant rows": (np.zeros((200, 30)), 2, ""),
    "beyond FP32": (np.full((200, 30), 1e39), 2, ""),
    "text": (np.array([["a"] * 30] * 50), 2, "numbers"),
    "objects": (np.array([[object()] * 30] * 5), 2, "objects"),
    "complex": (np.zeros((50, 30), complex), 2, "numbers"),
}


@pytest.mark.parametrize("what", REFERENCES)
def test_reference_data_that_is_refused(cli, desk, tmp_path, what):
    rows, code, said = REFERENCES[what]
    np.savez(tmp_path / "bad.npz", x=rows)
    before = tree_of(cli.keep)
    ran = cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(tmp_path / "bad.npz"))
    assert ran.code == code and said in ran.line(), ran.err
    assert tree_of(cli.keep) == before


@pytest.mark.parametrize("text", ["", "{", "[]", '{"https://h": 7}', '{"https://h": {"server": 1}}', "\xff"])
def test_damaged_sessions_are_one_clear_line(bare, tmp_path, text):
    place = tmp_path / "config" / "modelkeep"
    place.mkdir(parents=True)
    (place / "sessions.json").write_bytes(text.encode("latin-1"))
    cli = bare.with_environment(XDG_CONFIG_HOME=str(tmp_path / "config"))
    for verb in (("list",), ("logout",)):
        ran = cli("--server", "https://h", *verb, code=2)
        assert "log in again" in ran.line() and "sessions.json" in ran.line()


def test_init_touches_nothing_that_is_there(bare, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full").chmod(0o755)
    (tmp_path / "full" / "thesis.tex").write_text("mine")
    assert "nothing was touched" in bare("init", str(tmp_path / "full"), code=1).line()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.tex"] and (
        tmp_path / "full"
    ).stat().st_mode & 0o777 == 0o755


def test_a_keep_is_private_from_the_first_moment(bare, tmp_path):
    before = os.umask(0o022)
    try:
        bare("init", str(tmp_path / "fresh"), code=0)
    finally:
        os.umask(before)
    loose = [path for path in [tmp_path / "fresh", *(tmp_path / "fresh").rglob("*")] if path.stat().st_mode & 0o077]
    assert not loose, json.dumps([str(path) for path in loose])
