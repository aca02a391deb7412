"""An isolated training run, from its working tree to its record: what it sees, what comes out, and what does not."""

import sys
import venv
from pathlib import Path

import pytest
from isolating import where_possible
from repositories import Repository

from modelkeep.adapters.child import Ended
from modelkeep.adapters.limits import Limits
from modelkeep.app.isolation import Isolate, SealedFile
from modelkeep.app.runs import Named, Plan, record
from modelkeep.core.values import digest_of
from modelkeep.custody.provenance import DataReport
from modelkeep.errors import Conflict, Invalid, NotTrusted, Unavailable

PLAIN = Isolate()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A committed project with data that git ignores, a keep and a file of secrets in it, and the current folder."""
    files = {".gitignore": "data\nkeep\n.env\nout\n*.log\nmodel*\n", "train.py": "print('train')\n", "tracked.txt": "old"}
    repository = Repository.new(tmp_path / "project", **files)
    for name, text in {"data/a.csv": "a", "data/b.csv": "b", "keep/key": "key", ".env": "TOKEN=1", "old.log": "log"}.items():
        repository.write(name, text)
    monkeypatch.chdir(repository.folder)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "staging"))
    (tmp_path / "staging").mkdir()
    return repository


def run(script, *, program=("sh", "-c"), how=PLAIN, data=("data",), **more):
    """Run a script isolated."""
    more.setdefault("outputs", (Path("model.bin"),))
    plan = Plan((*program, script), data=tuple(map(Named.parse, data)), isolate=how, apart=(Path("keep").absolute(),), **more)
    return record(plan, lambda code: None)


def left_over(project):
    """What a run left in its staging, and what of the working tree a commit or .gitignore does not explain."""
    return [*(project.folder.parent / "staging").iterdir(), *project("status", "--short").splitlines()]


# -- what it sees --


@where_possible
def test_it_sees_its_code_and_its_data_and_only_its_output_comes_out(project):
    script = "find . -type f | sort > /tmp/seen; cat /tmp/seen data/a.csv > model.bin; echo x > train.py; echo x > new"
    report = run(script)
    seen = [".gitignore", "data/a.csv", "data/b.csv", "tracked.txt", "train.py"]
    assert (project.folder / "model.bin").read_text() == "".join(f"./{name}\n" for name in seen) + "a"
    assert {one.name: one.digest for one in report.inputs} == {"data/a.csv": digest_of(b"a")}
    assert (project.folder / "train.py").read_text() == "print('train')\n"
    assert not (project.folder / "new").exists()
    assert left_over(project) == []
    said = report.isolation
    assert (said.network, said.gpu, said.environment, said.processes) == ("none", False, (), 0)
    report.check()


@where_possible
def test_data_cannot_be_written_to_and_a_failed_run_records_nothing(project):
    ended = run("echo x > data/a.csv || exit 9")
    assert ended == Ended(9, "the command ended with 9")
    assert (project.folder / "data/a.csv").read_text() == "a"
    assert left_over(project) == []


@where_possible
def test_the_packages_of_its_python_are_asked_for_inside(project, tmp_path):
    """Whatever is installed may run when an interpreter starts; here it says where it was when it did."""
    home = tmp_path / "venv"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    said = f"home = {Path(sys.executable).resolve().parent}\ninclude-system-site-packages = false\n"
    (home / "pyvenv.cfg").write_text(said)
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    (packages / "linked-1.0.dist-info").mkdir(parents=True)
    (packages / "linked-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: linked\nVersion: 1.0\n")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "module.py").write_text("NAME = 'elsewhere'\n")
    (packages / "a.pth").write_text(f"{tmp_path / 'elsewhere'}\nimport os; open('{tmp_path}/ran', 'w')\n")
    script = "import module, os; open('model.bin', 'w').write(module.NAME + os.environ['HOME'])"
    report = run(script, program=(str(home / "bin" / "python"), "-c"))
    assert (project.folder / "model.bin").read_text() == "elsewhere/home"
    assert report.environment.packages == {"linked": "1.0"}
    assert not (tmp_path / "ran").exists()


@where_possible
def test_an_environment_that_names_the_working_tree_shows_nothing_that_git_ignores(project):
    """``pip install -e .`` leaves a line that names it."""
    project.write(".gitignore", "data\nkeep\n.env\nout\n*.log\nmodel*\nvenv\nbin\nlib*\ninclude\npyvenv.cfg\n")
    project.commit()
    venv.create(project.folder / "venv", symlinks=True)
    (site,) = (project.folder / "venv").glob("lib/python*/site-packages")
    (site / "editable.pth").write_text(f"{project.folder}\n")
    script = "import os; open('model.bin', 'w').write(str([os.path.exists(one) for one in ('train.py', '.env', '.git')]))"
    run(script, program=("venv/bin/python", "-c"))
    assert Path("model.bin").read_text() == "[True, False, False]"
    venv.create(project.folder, symlinks=True)
    with pytest.raises(Invalid, match="is the working tree and a Python environment"):
        run(script, program=("bin/python", "-c"))


@where_possible
def test_processors_that_are_not_held_by_a_group_are_told_as_whole_ones(project):
    said = run("echo x > model.bin", how=Isolate(Limits(cpus=0.5))).isolation
    assert said.cpus == {"watched": 1.0, "cgroup": 0.5}[said.limited_by]


@where_possible
def test_variables_and_files_are_passed_on_by_name(project, monkeypatch, tmp_path):
    monkeypatch.setenv("ONE", "1")
    monkeypatch.setenv("TWO", "2")
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "words").write_text("words")
    how = Isolate(environment=("ONE",), readable=(tmp_path / "more",))
    assert run(f"echo $ONE$TWO > model.bin; cat {tmp_path}/more/words >> model.bin", how=how).isolation.environment == ("ONE",)
    assert (project.folder / "model.bin").read_text() == "1\nwords"


@where_possible
def test_outside_version_control_it_sees_what_is_there_and_has_no_dot(project):
    run("ls -A . keep > model.bin 2>&1; ls -A data >> model.bin", no_code=True, data=())
    assert (project.folder / "model.bin").read_text().split() == [
        "ls:", "cannot", "access", "'keep':", "No", "such", "file", "or", "directory", ".:", "data", "model.bin", "old.log",
        "tracked.txt", "train.py", "a.csv", "b.csv",
    ]  # fmt: skip


@where_possible
def test_a_sealed_data_set_is_in_memory_and_in_the_record(project):
    sealed = SealedFile(DataReport("loans@3/rows.csv", digest_of(b"rows")), lambda: [b"ro", b"ws"])
    report = run("cat /data/loans@3/rows.csv > model.bin", sealed=(sealed,))
    assert (project.folder / "model.bin").read_text() == "rows"
    assert report.inputs == (sealed.report,)

    def altered():
        yield b"ro"
        raise NotTrusted("the chunk does not verify")

    with pytest.raises(NotTrusted, match="does not verify"):
        run("echo ran > model.bin", sealed=(sealed._replace(chunks=altered),))
    assert (project.folder / "model.bin").read_text() == "rows"


def test_a_sealed_data_set_is_for_isolated_runs_alone(project):
    with pytest.raises(Invalid, match="say --isolate"):
        run("true", how=None, sealed=(SealedFile(DataReport("loans@3/rows.csv", digest_of(b"rows")), list),))


# -- what comes out --


@where_possible
def test_outputs_come_out_wherever_they_are_declared(project, tmp_path):
    """In the tree under another name first, beside the tree, in folders; what was there before is not seen."""
    (project.folder / "out").mkdir()
    (project.folder / "out" / "before.onnx").write_text("before")
    outside = tmp_path / "else" / "m.bin"
    script = (
        f"echo 1 > t && mv t model.bin; mkdir -p out/a; ls out > out/a/m.onnx; echo 3 > {outside}; echo 4 > {tmp_path}/else/no"
    )
    report = run(script, outputs=(Path("model.bin"), outside), output_folders=(Path("out"),))
    assert sorted(one.name for one in report.outputs) == ["m.bin", "model.bin", "out/a/m.onnx"]
    assert [path.read_text() for path in (Path("model.bin"), Path("out/a/m.onnx"), outside)] == ["1\n", "a\n", "3\n"]
    assert (project.folder / "out" / "before.onnx").read_text() == "before"
    assert [path.name for path in outside.parent.iterdir()] == ["m.bin"]
    assert left_over(project) == []


@where_possible
@pytest.mark.parametrize(
    "script",
    [
        "ln -s /etc/passwd model.bin",
        "ln -s train.py model.bin",
        "mkfifo model.bin",
        "mkdir model.bin",
        "echo x > model.bin; chmod u+s model.bin",
        "echo x > model.bin; rm -rf out; ln -s / out",
        "echo x > model.bin; ln -s ../keep out/a.onnx",
        "echo x > model.bin; mkfifo out/a.onnx",
        "echo x > model.bin; mkdir -p out/.git/hooks",
        "echo x > model.bin; mkdir -p out/b/objects out/b/refs; echo ref: refs/heads/main > out/b/HEAD",
        "echo x > model.bin; mkdir -p out/$(printf 'd/%.0s' $(seq 150)); cd out; while cd d; do :; done; echo x > a",
        "echo x > model.bin; echo x > out/tracked.onnx",
    ],
)
def test_what_is_no_plain_file_does_not_come_out_nor_does_anything_else(project, script):
    project.write("out/tracked.onnx", "tracked")
    project("add", "-f", "out/tracked.onnx")
    project("commit", "-q", "-m", "more")
    with pytest.raises(Conflict, match="nothing was taken out"):
        run(script, output_folders=(Path("out"),))
    assert not (project.folder / "model.bin").exists()
    assert (project.folder / "out" / "tracked.onnx").read_text() == "tracked"
    assert left_over(project) == []


@where_possible
def test_a_link_of_ours_in_an_output_folder_is_no_way_out(project, tmp_path):
    (project.folder / "out").mkdir()
    (tmp_path / "ssh").mkdir()
    (project.folder / "out" / "latest").symlink_to(tmp_path / "ssh")
    with pytest.raises(Unavailable, match="cannot take out"):
        run("mkdir out/latest; echo x > out/latest/authorized_keys; echo x > model.bin", output_folders=(Path("out"),))
    assert list((tmp_path / "ssh").iterdir()) == []


@where_possible
def test_more_than_may_be_written_does_not_come_out(project):
    large = "head -c 700000 /dev/zero > model.bin; head -c 700000 /dev/zero > out/m.onnx; truncate -s 900000 out/hole"
    with pytest.raises(Conflict, match=r"more than 1,500,000 bytes of output"):
        run(large, how=Isolate(Limits(disk=1_500_000)), output_folders=(Path("out"),))
    assert not (project.folder / "model.bin").exists()


@where_possible
def test_a_file_with_holes_does_not_fill_the_disk_when_it_is_copied(project):
    with pytest.raises(Conflict, match="there is no room for them: nothing was taken out"):
        run("truncate -s 4T model.bin")
    assert not (project.folder / "model.bin").exists()
    assert left_over(project) == []


@where_possible
def test_nothing_is_left_of_folders_deeper_than_any_path(project):
    """Each name is long, so that the whole path is beyond what the system takes."""
    deep = "import os\nopen('model.bin', 'w').write('x')\nfor _ in range(1200):\n os.mkdir('d' * 99); os.chdir('d' * 99)"
    run(deep, program=("/usr/bin/python3", "-c"), data=())
    assert left_over(project) == []


@where_possible
@pytest.mark.parametrize("folder", [".", "..", "/usr/lib", "/etc"])
def test_an_output_folder_that_holds_something_else_is_refused(project, folder):
    with pytest.raises(Invalid, match=r"holds more than outputs|is the system's"):
        run("true", outputs=(), output_folders=(Path(folder),), data=())


@where_possible
def test_the_folder_that_a_run_begins_in_is_no_output_folder(project, monkeypatch):
    """Below the top: what it left there would lie beside the code."""
    project.write("sub/train.py", "train")
    project.commit()
    monkeypatch.chdir(project.folder / "sub")
    with pytest.raises(Invalid, match="holds more than outputs"):
        run("true", outputs=(), output_folders=(Path(),), data=())


def test_a_home_is_not_shown_as_code(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project.folder))
    with pytest.raises(Invalid, match="holds more than code"):
        run("true", no_code=True)


def test_nothing_is_run_where_nothing_can_be_isolated(project, monkeypatch, tmp_path):
    for name in ("git", "sh"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).symlink_to(next(p for p in map(Path, (f"/usr/bin/{name}", f"/bin/{name}")) if p.exists()))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(Unavailable, match="there is no 'bwrap' here: install bubblewrap"):
        run("echo x > model.bin")
    assert not (project.folder / "model.bin").exists()
    assert not any((tmp_path / "staging").iterdir())
