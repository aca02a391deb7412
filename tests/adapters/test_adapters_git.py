"""A working tree as it is, and hostile repositories that would like to be asked in another way."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest
from repositories import QUIET, Repository

from modelkeep.adapters.git import GitCheckout, NoCheckout
from modelkeep.core.ports import ChangedFile
from modelkeep.errors import Invalid, Missing, NotTrusted, Unavailable


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def changes(repository, *apart):
    return dict(GitCheckout(repository.folder).state([str(one) for one in apart]).changes)


@pytest.fixture
def repository(tmp_path):
    return Repository.new(tmp_path / "code")


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
def test_a_clean_tree(tmp_path, algorithm):
    repository = Repository.new(tmp_path / "code", algorithm=algorithm)
    (repository.folder / "link").symlink_to("train.py")
    repository.write("deep/er/run.sh", "#!/bin/sh\n").chmod(0o755)
    repository.write("names/ä ö\n", "odd\n")
    commit = repository.commit()
    repository("remote", "add", "origin", "https://ada:secret@git.acme.eu/m.git")
    found = GitCheckout(repository.folder / "deep" / "er").state()
    assert (found.commit, dict(found.changes), found.raw) == (commit, {}, repository.raw())
    assert found.repository == "https://ada:secret@git.acme.eu/m.git"


def test_every_kind_of_change(repository):
    for name in ("gone.py", "mode.py", "kind.py"):
        repository.write(name, name)
    repository.commit()
    repository.write("train.py", "print('other')\n")
    repository.write("new/file.py", "new\n")
    (repository.folder / "gone.py").unlink()
    (repository.folder / "mode.py").chmod(0o755)
    (repository.folder / "kind.py").unlink()
    (repository.folder / "kind.py").symlink_to("train.py")
    os.mkfifo(repository.folder / "pipe")  # is no file to git, and nobody may wait for it
    assert changes(repository) == {
        "train.py": ChangedFile("100644", sha256("print('other')\n"), True),
        "gone.py": ChangedFile("000000", "0" * 64, True),
        "mode.py": ChangedFile("100755", sha256("mode.py"), True),
        "kind.py": ChangedFile("120000", sha256("train.py"), True),
        "new/file.py": ChangedFile("100644", sha256("new\n"), False),
    }


def test_a_change_of_the_same_length_and_time_is_seen(repository):
    path = repository.folder / "train.py"
    before = path.stat()
    path.write_text("print('tr4in')\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(changes(repository)) == {"train.py"}


def test_the_index_is_not_asked(repository):
    """assume-unchanged and skip-worktree hide changes from git status."""
    repository("update-index", "--assume-unchanged", "train.py")
    repository.write("train.py", "evil\n")
    repository.write("staged.py", "staged\n")
    repository("add", "staged.py")
    assert set(changes(repository)) == {"train.py", "staged.py"}


def test_ignored_files_and_what_is_set_apart_are_no_code(repository):
    repository.write(".gitignore", "*.log\n")
    repository.commit()
    repository.write("run.log", "x")
    repository.write("model.onnx", "x")
    repository.write("data/a.csv", "x")
    repository.write("hidden", "x")
    (repository.folder / ".git" / "info" / "exclude").write_text("hidden\n")
    apart = (repository.folder / "model.onnx", repository.folder / "data")
    assert changes(repository, *apart) == {}
    assert set(changes(repository)) == {"model.onnx", "data/a.csv"}
    repository.write("train.py", "evil\n")
    assert set(changes(repository, repository.folder)) == {"train.py"}, "what the commit has is always code"


def test_submodules_and_repositories_inside(repository, tmp_path):
    other = Repository.new(tmp_path / "library", **{"lib.py": "lib\n"})
    repository("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.folder), "lib")
    repository.commit()
    assert changes(repository) == {}
    inner = Repository(repository.folder / "lib")
    inner.write("lib.py", "evil\n")
    assert changes(repository) == {"lib/lib.py": ChangedFile("100644", sha256("evil\n"), True)}
    moved = inner.commit()
    assert changes(repository) == {"lib": ChangedFile("160000", moved, True)}
    nested = Repository.new(repository.folder / "nested")
    assert changes(repository)["nested/"] == ChangedFile("160000", nested("rev-parse", "HEAD"), False)


def test_a_second_working_tree(repository, tmp_path):
    repository("worktree", "add", "-q", str(tmp_path / "second"), "-b", "side")
    second = Repository(tmp_path / "second")
    assert changes(second) == {}
    second.write("train.py", "other\n")
    assert set(changes(second)) == {"train.py"}
    assert changes(repository) == {}


def test_a_large_file_of_git_lfs_is_clean_when_it_is_the_one_pointed_to(repository):
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256('large')}\nsize 5\n"
    repository.write("weights.bin", pointer)
    repository.commit()
    repository.write("weights.bin", "large")
    assert changes(repository) == {}
    repository.write("weights.bin", "other")
    assert set(changes(repository)) == {"weights.bin"}


def test_what_is_no_checkout(tmp_path):
    with pytest.raises(Missing, match="--no-code"):
        GitCheckout(tmp_path)
    (tmp_path / "empty").mkdir()
    empty = Repository(tmp_path / "empty")
    empty("init", "-q")
    with pytest.raises(Invalid, match="no commit yet"):
        GitCheckout(empty.folder).state()
    (tmp_path / "broken" / ".git").mkdir(parents=True)
    with pytest.raises(Invalid, match="broken"):
        GitCheckout(tmp_path / "broken").state()
    assert NoCheckout().state().commit == ""


def test_no_git(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository.folder))
    with pytest.raises(Unavailable, match="not installed"):
        GitCheckout(repository.folder).state()


# -- hostile repositories --


@pytest.fixture
def trap(tmp_path):
    """A program that leaves a mark when anybody runs it, and the mark."""
    mark = tmp_path / "it-ran"
    program = tmp_path / "trap"
    program.write_text(f"#!/bin/sh\ntouch {mark}\ncat\n")
    program.chmod(0o755)
    return program, mark


HOSTILE = {
    "core.fsmonitor": "{trap}", "core.sshCommand": "{trap}", "core.pager": "{trap}", "core.editor": "{trap}",
    "core.askPass": "{trap}", "core.gitProxy": "{trap}", "core.alternateRefsCommand": "{trap}", "core.hooksPath": "{folder}",
    "diff.external": "{trap}", "diff.evil.command": "{trap}", "diff.evil.textconv": "{trap}", "filter.evil.clean": "{trap}",
    "filter.evil.smudge": "{trap}", "filter.evil.process": "{trap}", "filter.evil.required": "true", "gpg.program": "{trap}",
    "gpg.ssh.program": "{trap}", "gpg.ssh.defaultKeyCommand": "{trap}", "log.showSignature": "true", "pager.log": "{trap}",
    "remote.origin.url": "ext::{trap}", "remote.origin.promisor": "true", "remote.origin.uploadpack": "{trap}",
    "extensions.partialClone": "origin", "core.repositoryformatversion": "1", "protocol.ext.allow": "always",
    "protocol.allow": "always", "credential.helper": "{trap}", "alias.rev-parse": "!{trap}", "core.worktree": "/",
    "core.attributesFile": "{folder}/attributes", "core.excludesFile": "{folder}/everything", "status.showUntrackedFiles": "no",
    "core.ignoreStat": "true", "core.fileMode": "false", "core.trustctime": "false", "core.untrackedCache": "keep",
}  # fmt: skip


def setting(name, value):
    section, *middle, key = name.split(".")
    inner = f' "{middle[0]}"' if middle else ""
    return f"[{section}{inner}]\n\t{key} = {value}\n"


def test_nothing_that_a_repository_names_is_run(repository, tmp_path, trap):
    program, mark = trap
    repository.write(".gitattributes", "* filter=evil diff=evil ident text\n")
    repository.commit()
    repository.write("train.py", "evil\n")
    (tmp_path / "attributes").write_text("* filter=evil diff=evil\n")
    (tmp_path / "everything").write_text("*\n")
    for hook in ("post-index-change", "fsmonitor-watchman", "reference-transaction", "post-checkout"):
        for folder in (tmp_path, repository.folder / ".git" / "hooks"):
            folder.mkdir(exist_ok=True)
            (folder / hook).write_text(program.read_text())
            (folder / hook).chmod(0o755)
    config = "".join(setting(name, value.format(trap=program, folder=tmp_path)) for name, value in HOSTILE.items())
    (repository.folder / ".git" / "config").write_text(config)
    assert {"diff.evil.command", "core.fsmonitor"} <= set(
        subprocess.run(["git", "config", "-l", "--name-only", "-f", ".git/config"], cwd=repository.folder, capture_output=True,
                       text=True, env={**os.environ, **QUIET}, check=True).stdout.lower().split()
    )  # fmt: skip
    repository.write("new.py", "new\n")
    found = GitCheckout(repository.folder).state()
    assert set(found.changes) == {"train.py", "new.py"}
    assert not mark.exists()


def test_the_trap_works(repository, trap):
    """git status itself would have run it: otherwise the test above shows nothing."""
    program, mark = trap
    repository("config", "core.fsmonitor", str(program))
    subprocess.run(["git", "status"], cwd=repository.folder, env={**os.environ, **QUIET}, capture_output=True, check=False)
    assert mark.exists()


def test_a_submodule_runs_nothing_either(repository, tmp_path, trap):
    program, mark = trap
    other = Repository.new(tmp_path / "library", **{"lib.py": "lib\n"})
    repository("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other.folder), "lib")
    repository.commit()
    Repository(repository.folder / "lib")("config", "core.fsmonitor", str(program))
    repository.write("lib/lib.py", "evil\n")
    assert set(changes(repository)) == {"lib/lib.py"}
    assert not mark.exists()


def test_a_missing_object_is_not_fetched(repository, trap):
    program, mark = trap
    tree = repository("rev-parse", "HEAD^{tree}")
    (repository.folder / ".git" / "objects" / tree[:2] / tree[2:]).unlink()
    for name, value in {
        "core.repositoryformatversion": "1", "extensions.partialClone": "origin", "remote.origin.promisor": "true",
        "remote.origin.url": f"ext::{program}", "protocol.ext.allow": "always",
    }.items():  # fmt: skip
        repository("config", name, value)
    with pytest.raises(Unavailable, match="fetch it"):
        GitCheckout(repository.folder).state()
    assert not mark.exists()


def test_replaced_and_forged_objects_are_not_believed(repository):
    honest = repository("rev-parse", "HEAD")
    repository.write("train.py", "evil\n")
    evil = repository.commit()
    repository("reset", "-q", "--soft", honest)
    repository("replace", honest, evil)  # git itself now shows evil.py under the honest name
    assert set(changes(repository)) == {"train.py"}
    repository("replace", "-d", honest)
    objects = repository.folder / ".git" / "objects"
    tree, other = repository("rev-parse", f"{honest}^{{tree}}"), repository("rev-parse", f"{evil}^{{tree}}")
    forged = objects / tree[:2] / tree[2:]
    forged.chmod(0o644)
    forged.write_bytes((objects / other[:2] / other[2:]).read_bytes())
    with pytest.raises((NotTrusted, Unavailable)):
        GitCheckout(repository.folder).state()


def test_a_pack_with_a_wrong_index_is_not_believed(repository, tmp_path):
    """An index that leads from an honest tree's name to other bytes: git reads packs without hashing them again."""
    repository.write("train.py", "evil\n")
    evil = repository.commit()
    honest = repository("rev-parse", "HEAD~1")
    names = [repository("rev-parse", f"{commit}^{{tree}}") for commit in (honest, evil)]
    repository("reset", "-q", "--soft", honest)
    repository("reflog", "expire", "--expire=now", "--all")
    repository("tag", "keep", evil)
    repository("repack", "-q", "-a", "-d")
    (index,) = (repository.folder / ".git" / "objects" / "pack").glob("*.idx")
    swap_offsets(index, *names)
    with pytest.raises((NotTrusted, Unavailable)):
        GitCheckout(repository.folder).state()


def swap_offsets(index, one, other):
    """Exchange where a pack index (version 2, gitformat-pack) says that two objects are, and mend its checksum."""
    data = bytearray(index.read_bytes())
    count = int.from_bytes(data[8 + 255 * 4 : 8 + 256 * 4], "big")
    start = 8 + 256 * 4
    names = [bytes(data[start + 20 * i : start + 20 * i + 20]).hex() for i in range(count)]
    table = start + 24 * count
    first, second = (slice(table + 4 * names.index(name), table + 4 * names.index(name) + 4) for name in (one, other))
    data[first], data[second] = data[second], data[first]
    data[-20:] = hashlib.sha1(data[:-20]).digest()
    index.chmod(0o644)
    Path(index).write_bytes(data)
