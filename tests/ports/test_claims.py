"""Claims: held by one, freed by the end of the process however it ends."""

import subprocess
import sys

import pytest

from modelkeep.adapters.claims import FolderClaims
from modelkeep.errors import Conflict, Invalid, Unavailable

NAME = "ab" * 16


def test_one_holder_at_a_time(tmp_path):
    claims, other = FolderClaims(tmp_path / "claims"), FolderClaims(tmp_path / "claims")
    with claims.hold(NAME):
        with pytest.raises(Conflict), other.hold(NAME):
            pass
        with other.hold("cd" * 16):
            pass
    with other.hold(NAME):
        pass
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_killed_process_lets_go(tmp_path):
    held = """
import sys
from pathlib import Path
from modelkeep.adapters.claims import FolderClaims
with FolderClaims(Path(sys.argv[1])).hold(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""
    child = subprocess.Popen([sys.executable, "-c", held, tmp_path, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(Conflict), FolderClaims(tmp_path).hold(NAME):
            pass
        child.kill()
        child.wait()
        with FolderClaims(tmp_path).hold(NAME):
            pass


@pytest.mark.parametrize("name", ["", "../x", "AB" * 16, "ab" * 40, "ab"])
def test_odd_names(tmp_path, name):
    with pytest.raises(Invalid), FolderClaims(tmp_path).hold(name):
        pass


def test_no_folder_to_be_had(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable), FolderClaims(tmp_path / "file").hold(NAME):
        pass
