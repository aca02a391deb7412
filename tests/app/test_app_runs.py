"""A training run as it is recorded: real commands in real working trees, and everything that makes it refuse."""

import os
import shutil
from pathlib import Path

import pytest
from repositories import Repository

from modelkeep.adapters.child import Ended
from modelkeep.app.runs import Named, Plan, record
from modelkeep.core.values import digest_of
from modelkeep.errors import Conflict, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

TRAIN = "cat data/a.csv > model.bin"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A committed project with data that git ignores, and the current folder."""
    repository = Repository.new(tmp_path / "project", **{".gitignore": "data\nother\n", "train.py": "train\n"})
    for name in ("a", "b"):
        repository.write(f"data/{name}.csv", name)
    repository.write("other/c.csv", "c")
    monkeypatch.chdir(repository.folder)
    return repository


def plan(script=TRAIN, *, data=("data",), inputs=(), **more):
    more.setdefault("outputs", (Path("model.bin"),))
    return Plan(
        command=("sh", "-c", script), data=tuple(map(Named.parse, data)), inputs=tuple(map(Named.parse, inputs)), **more
    )


def run(*arguments, **more):
    return record(plan(*arguments, **more), lambda code: None)


def inputs(report):
    return {one.name: one.digest for one in report.inputs}


def refused(kind, match, *arguments, **more):
    with pytest.raises(kind, match=match):
        run(*arguments, **more)


# -- what is recorded --


def test_what_went_in_and_what_came_out(project):
    report = run("cat data/a.csv other/c.csv > model.bin", inputs=("other/c.csv",), parameters={"lr": "0.1"})
    assert inputs(report) == {"data/a.csv": digest_of(b"a"), "c.csv": digest_of(b"c")}
    assert [(one.name, one.digest) for one in report.outputs] == [("model.bin", digest_of(b"ac"))]
    assert (report.code.commit, report.code.raw, report.code.changes) == (project("rev-parse", "HEAD"), project.raw(), "")
    assert 0 < report.started < report.ended
    assert (report.environment.python, report.environment.packages) == ("", {})
    report.check()


def test_data_has_the_names_that_it_is_given(project, tmp_path):
    shutil.copytree("data", tmp_path / "elsewhere")
    report = run(
        f"cat {tmp_path}/elsewhere/b.csv > model.bin", data=(f"loans@3={tmp_path}/elsewhere",), inputs=("extra=other",)
    )
    assert set(inputs(report)) == {"loans@3/b.csv", "extra/c.csv"}


def test_a_file_that_the_run_makes_and_reads_is_an_input(project):
    report = run("echo cached > data/cache; mkdir data/new; echo x > data/new/y; cat data/cache data/new/y > model.bin")
    assert set(inputs(report)) == {"data/cache", "data/new/y"}


def test_an_output_folder_gives_the_models_that_are_new(project):
    project.write("out/old.onnx", "old")
    project.write("out/same.onnx", "same")
    folders = (Path("out"), Path("later"))
    script = "echo 1 > out/old.onnx; echo 2 > out/new.ONNX; echo 3 > out/log.txt; mkdir -p later/x; echo 4 > later/x/m.pt"
    report = run(script, outputs=(), output_folders=folders)
    assert sorted(one.name for one in report.outputs) == ["later/x/m.pt", "out/new.ONNX", "out/old.onnx"]


def test_an_output_elsewhere_has_its_own_name(project, tmp_path):
    report = run(f"echo m > {tmp_path}/m.onnx", outputs=(tmp_path / "m.onnx",), data=())
    assert [one.name for one in report.outputs] == ["m.onnx"]


def test_the_keeps_check_comes_before_the_command(project):
    def no(code):
        assert code.commit
        raise NotTrusted("no")

    with pytest.raises(NotTrusted, match="no"):
        record(plan("touch it-ran"), no)
    assert not Path("it-ran").exists()


def test_a_command_that_fails_is_not_recorded(project):
    assert run("echo m > model.bin; exit 3") == Ended(3, "the command ended with 3")
    assert run("kill -KILL $$") == Ended(137, "SIGKILL ended the command")


# -- code --


def test_a_dirty_tree_is_refused_unless_told(project):
    project.write("train.py", "other\n")
    project.write("new.py", "new\n")
    refused(Conflict, "new.py, train.py; commit them", "touch it-ran")
    assert not Path("it-ran").exists()
    report = run(allow_dirty=True)
    assert len(report.code.changes) == 64
    project.write("new.py", "newer\n")
    assert run(allow_dirty=True).code.changes != report.code.changes


def test_outputs_and_inputs_in_the_tree_are_no_code(project):
    project.write("in/file", "x")
    project.write("model.bin", "of an earlier run")
    assert run(data=("data",), inputs=("in",)).code.changes == ""


def test_what_the_run_leaves_behind_is_no_change_of_code(project):
    assert run(TRAIN + "; echo log > train.log; mkdir logs; echo x > logs/y").code.changes == ""


@pytest.mark.parametrize(
    "edit", ["echo evil > train.py", "rm train.py", "git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m x"]
)
def test_code_that_changes_meanwhile_is_refused(project, edit):
    refused(Conflict, "the code changed while the command ran", f"{TRAIN}; {edit}")


def test_uncommitted_code_that_changes_meanwhile_is_refused(project):
    project.write("new.py", "new\n")
    refused(Conflict, "new.py", f"{TRAIN}; echo evil > new.py", allow_dirty=True)


def test_outside_version_control(project):
    shutil.rmtree(".git")
    refused(Missing, "--no-code", "touch it-ran")
    report = run(no_code=True)
    assert (report.code.commit, report.code.raw, report.code.changes) == ("", b"", "")


# -- inputs --


EDITS = {
    "more": "echo more >> data/a.csv",
    "other bytes": "echo b > data/a.csv",
    "another file in its place": "cp data/b.csv data/x; mv data/x data/a.csv",
    "another time": "touch data/a.csv",
    "gone": "rm data/a.csv",
    "under another name": "mv data/a.csv data/z.csv",
    "a file that nobody was seen to open": "chmod 600 data/b.csv",
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_data_that_changes_meanwhile_is_refused(project, edit):
    refused(Conflict, r"data/[ab]\.csv changed while the command ran", f"{TRAIN}; {edit}")


UNSEEN = {
    "under a second name": "ln data/b.csv x; cat x > model.bin; rm x",
    "moved out and back": "mv data/b.csv x; cat x > model.bin; mv x data/b.csv",
    "written and written back": "cp -p data/a.csv s; echo e > data/a.csv; cat data/a.csv > model.bin; cp -p s data/a.csv",
    "a link in its place": "mv data/a.csv x; ln -s ../train.py data/a.csv; cat data/a.csv > model.bin; mv x data/a.csv",
}


@pytest.mark.parametrize("trick", UNSEEN.values(), ids=UNSEEN.keys())
def test_data_cannot_be_opened_unseen(project, trick):
    """All is as it was afterwards, by name, content, length and time; only what the system counts itself has moved."""
    refused(Conflict, r"data/[ab]\.csv changed while the command ran", trick)


def test_data_that_came_and_went_is_refused(project):
    """Somebody slips other data in for the length of the run."""
    came = "data/evil.csv came and went"
    refused(Conflict, came, "echo evil > data/evil.csv; cat data/evil.csv > model.bin; rm data/evil.csv")
    refused(Conflict, came, "echo e > x; ln -s ../x data/evil.csv; cat data/evil.csv > model.bin; rm data/evil.csv x")


def test_new_links_in_a_data_folder_are_inputs(project):
    report = run("ln -s ../other data/more; ln -s ../other/c.csv data/c; cat data/more/c.csv > model.bin")
    assert set(inputs(report)) == {"data/more/c.csv", "data/c"}


def test_what_is_new_and_what_is_no_file_does_not_matter(project):
    os.mkfifo("data/pipe")
    report = run(f"{TRAIN}; mkdir data/empty; ln -s nowhere data/nothing; mkfifo data/pipe2; mv other/c.csv other/d.csv")
    assert set(inputs(report)) == {"data/a.csv"}


@pytest.mark.parametrize("edit", ["echo d > other/c.csv", "rm other/c.csv", "echo d > other/d.csv", "touch other/c.csv"])
def test_declared_inputs_that_change_are_refused(project, edit):
    refused(Conflict, "while the command ran", f"{TRAIN}; {edit}", inputs=("other",))


def test_names_that_cannot_be_recorded_are_refused_before(project):
    project.write("data/two\nlines", "x")
    refused(Invalid, "printable", "touch it-ran")
    Path("data/two\nlines").rename("other/two\nlines")
    refused(Invalid, "printable", "touch it-ran", inputs=("other",))
    assert not Path("it-ran").exists()


# -- outputs --


def test_an_output_that_is_not_written_is_refused(project):
    refused(Conflict, "did not write model.bin", "true")
    project.write("model.bin", "of an earlier run")
    refused(Conflict, "was there before", "true")
    refused(Invalid, "a folder", "rm model.bin; mkdir model.bin")
    refused(Invalid, "a pipe", "rm -r model.bin; mkfifo model.bin")
    Path("model.bin").unlink()
    refused(Conflict, "wrote no model", "mkdir out; echo x > out/log.txt", outputs=(), output_folders=(Path("out"),))


WRONG = {
    "no command": (Invalid, "no command", {"command": ()}),
    "no such program": (Missing, "no program", {"command": ("no-such-program",)}),
    "no output": (Invalid, "--output", {"outputs": ()}),
    "data that is a file": (Invalid, "declare a file with --input", {"data": (Named("a", Path("data/a.csv")),)}),
    "one name twice": (Invalid, "two inputs", {"inputs": (Named("data", Path("other")),)}),
    "an output among the data": (Invalid, "folders of their own", {"outputs": (Path("data/model.bin"),)}),
    "data among the outputs": (Invalid, "folders of their own", {"output_folders": (Path(),)}),
    "one output twice": (Invalid, "two outputs", {"outputs": (Path("model.bin"), Path("./model.bin"))}),
    "an interpreter that is not there": (Missing, "no interpreter", {"python": "no-such-python"}),
    "a long command": (Invalid, "at most", {"command": ("sh", "x" * 9000)}),
}


@pytest.mark.parametrize(("kind", "match", "change"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_is_refused_before_anything_runs(project, kind, match, change):
    base = plan("touch it-ran")
    with pytest.raises(kind, match=match):
        record(Plan(**{**vars(base), **change}), lambda code: None)
    assert not Path("it-ran").exists()


@pytest.mark.parametrize("text", ["", "nothing", "x=nothing", "a/b=data", "x=", " =data"])
def test_names_of_data_that_cannot_be(project, text):
    with pytest.raises(ModelkeepError):
        Named.parse(text)


def test_a_data_folder_that_cannot_be_read(project, monkeypatch):
    if os.geteuid() == 0:  # root reads everything: take a folder away between two looks instead
        base = plan()
        shutil.rmtree("data")
        with pytest.raises(Invalid, match="no folder"):
            record(base, lambda code: None)
    else:
        Path("data").chmod(0)
        refused(Unavailable, "data")
        Path("data").chmod(0o700)
