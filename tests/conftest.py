"""What every room may use: a model to protect, a finished keep to copy, and the command line."""

import json
from pathlib import Path

import pytest
from commandline import PASSPHRASE, Cli, Subject, copy_keep, tabular


@pytest.fixture(scope="session")
def subject() -> Subject:
    """The model to protect."""
    return tabular()


@pytest.fixture(scope="session")
def desk(tmp_path_factory, subject) -> Path:
    """A folder with what a user has: model.onnx, ref.npz, pass, and two passwords."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "model.onnx").write_bytes(subject.onnx)
    (folder / "ref.npz").write_bytes(subject.reference)
    (folder / "pass").write_text(PASSPHRASE + "\n")
    (folder / "wrong").write_text("not the passphrase at all\n")
    return folder


@pytest.fixture(scope="session")
def template(tmp_path_factory, desk) -> Path:
    """A keep with risk@1 published and promoted, the analyst alice and the engineer bob. Copy it; never change it."""
    keep = tmp_path_factory.mktemp("template") / "keep"
    cli = Cli(keep, desk / "pass")
    made = cli("--json", "init", str(keep), code=0).json
    (keep.parent / "init.json").write_text(json.dumps(made))
    cli("publish", str(desk / "model.onnx"), "--name", "risk", "--reference", str(desk / "ref.npz"), code=0)
    cli("promote", "risk@1", code=0)
    cli("user", "add", "alice", "--role", "analyst", code=0)
    cli("user", "add", "bob", "--role", "ml_engineer", code=0)
    return keep


@pytest.fixture
def cli(template, desk, tmp_path) -> Cli:
    """The command line on a keep of this test's own."""
    return Cli(copy_keep(template, tmp_path / "keep"), desk / "pass")


@pytest.fixture
def bare(desk, tmp_path) -> Cli:
    """The command line where there is no keep."""
    return Cli(tmp_path / "nothing", desk / "pass")
