"""A command as a child: its exit code, its signals, its output; and what an interpreter and a machine say of themselves."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from modelkeep.adapters import child, machine, python_env
from modelkeep.errors import Invalid, Missing, Unavailable


def test_exit_codes():
    assert child.run(["true"], quiet=False).code == 0
    assert child.run(["sh", "-c", "exit 7"], quiet=False) == (7, "the command ended with 7")
    assert child.run(["sh", "-c", "kill -TERM $$"], quiet=False) == (143, "SIGTERM ended the command")


def test_no_such_program(tmp_path):
    with pytest.raises(Missing, match="no program"):
        child.run(["no-such-program-anywhere"], quiet=False)
    (tmp_path / "text").write_text("x")
    with pytest.raises(Missing, match="no program"):
        child.run([str(tmp_path / "text")], quiet=False)
    (tmp_path / "wrong").write_text("#!/no/such/interpreter\n")
    (tmp_path / "wrong").chmod(0o755)
    with pytest.raises(Unavailable, match="cannot run"):
        child.run([str(tmp_path / "wrong")], quiet=False)


RUNNER = """
import signal, sys
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)  # whoever runs the tests may ignore them, as nohup and a shell's & do
from modelkeep.adapters import child
sys.exit(child.run(sys.argv[1:], quiet=True).code)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(tmp_path, number):
    """The child says that it is ready, gets the signal that its parent was sent, and ends in its own way."""
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo got {name} >&2; exit 9' {name}; echo ready >&2; while :; do sleep 0.05; done"
    with subprocess.Popen(
        [sys.executable, "-c", RUNNER, "sh", "-c", script],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as runner:
        assert runner.stderr.readline() == "ready\n"
        runner.send_signal(number)
        assert runner.stderr.readline() == f"got {name}\n"
        assert runner.wait(30) == 9


def test_a_signal_before_the_child_is_there_is_kept():
    waiting = child.Signals()
    with waiting:
        os.kill(os.getpid(), signal.SIGTERM)
        with subprocess.Popen(["sleep", "60"]) as process:
            waiting.pass_on_to(process.send_signal)
            assert process.wait(30) == -signal.SIGTERM


def test_handlers_are_as_before():
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    child.run(["true"], quiet=False)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


def test_quiet_sends_output_to_standard_error():
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, "sh", "-c", "echo out; echo err >&2; cat"], input="in\n", capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("", "out\nerr\nin\n")


# -- python --


def test_this_interpreter_says_what_is_installed():
    found = python_env.installed(sys.executable)
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.packages["numpy"]
    assert found.packages["scikit-learn"], "names are normalised"
    assert "modelkeep" in found.packages


def test_the_folder_it_is_asked_in_is_not_imported_from(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("raise SystemExit('hijacked')")
    (tmp_path / "evil-1.0.dist-info").mkdir()
    (tmp_path / "evil-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    monkeypatch.chdir(tmp_path)
    assert "evil" not in python_env.installed(sys.executable).packages


def test_which_interpreter_a_command_runs_in(tmp_path):
    python = Path(sys.executable)
    assert python_env.interpreter([str(python), "train.py"], python) == python
    firsts = {f"#!{python}\n": python, f"#! {python} -I\n": python, f"#!/usr/bin/env {python}\n": python}
    others = dict.fromkeys(("#!/bin/sh\n", "\x7fELF", "#!\n", "#!/usr/bin/env -S sh -e\n", ""))
    for first, expected in {**firsts, **others}.items():
        script = tmp_path / "script"
        script.write_text(first)
        assert python_env.interpreter([str(script)], script) == expected, first
    assert python_env.interpreter(["sh"], tmp_path / "nothing") is None


def test_what_is_no_interpreter(tmp_path):
    with pytest.raises(Missing):
        python_env.installed(tmp_path / "python3")
    (tmp_path / "python3").write_text("#!/bin/sh\necho no >&2; exit 1\n")
    (tmp_path / "python3").chmod(0o755)
    with pytest.raises(Invalid, match="no Python that can say what is installed: no"):
        python_env.installed(tmp_path / "python3")


# -- machine --


def test_this_machine(tmp_path, monkeypatch):
    assert machine.system().startswith("Linux ")
    assert machine.processor()
    assert 0 < machine.cores() <= os.cpu_count()
    assert machine.memory() > 1 << 28
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nprintf 'H100 80GB\\nH100 80GB\\n'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.accelerators() == ("H100 80GB", "H100 80GB")
    tool.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed'; exit 9\n")
    assert machine.accelerators() == ()


def test_no_thread_is_left():
    assert not [thread for thread in threading.enumerate() if thread.name == "watch"]
