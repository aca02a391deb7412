"""``Checkout``: what every reader of code says, with and without version control."""

import pytest
from repositories import Repository

from modelkeep.adapters.git import GitCheckout, NoCheckout, object_name


@pytest.fixture(params=["git", "git of sha256", "second working tree", "none"])
def place(request, tmp_path):
    """A checkout, the folder that it is of, and whether there is version control."""
    folder = tmp_path / "code"
    if request.param == "none":
        folder.mkdir()
        return NoCheckout(), folder, False
    algorithm = "sha256" if request.param.endswith("sha256") else "sha1"
    repository = Repository.new(folder, algorithm=algorithm)
    if request.param == "second working tree":
        repository("worktree", "add", "-q", str(tmp_path / "second"))
        folder = tmp_path / "second"
    return GitCheckout(folder), folder, True


def test_a_commit_comes_with_its_object(place):
    checkout, _, versioned = place
    found = checkout.state()
    assert bool(found.commit) == versioned
    algorithm = "sha256" if len(found.commit) == 64 else "sha1"
    assert (object_name("commit", found.raw, algorithm) == found.commit) == versioned


def test_asking_twice_says_the_same(place):
    checkout, folder, _ = place
    assert checkout.state() == checkout.state()
    (folder / "new.py").write_text("x")
    assert checkout.state() == checkout.state()


def test_changes_are_there_and_can_be_set_apart(place):
    checkout, folder, versioned = place
    before = checkout.state()
    (folder / "new.py").write_text("x")
    assert ("new.py" in checkout.state().changes) == versioned
    assert checkout.state([str(folder / "new.py")]) == before
    assert checkout.state([str(folder)]) == before


def test_looking_changes_nothing(place):
    checkout, folder, _ = place
    (folder / "new.py").write_text("x")
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    checkout.state()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
