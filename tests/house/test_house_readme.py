"""The README's commands run as they stand, in an empty folder, on free ports."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from free_ports import free_port

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"<!-- start: (\w+) -->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The folder, and what each block printed by its name; one shell runs them in order, like a reader would."""
    folder = tmp_path_factory.mktemp("readme")
    gateway, control = free_port(), free_port()
    script = ["set -eu"]
    for name, block in BLOCKS:
        commands = block.replace(". .venv/bin/activate\n", "").replace(":8443/", f":{gateway}/")
        script.append(f"echo; echo '=== {name}'\n{commands}")
    script.append('kill %1; wait %1; echo; echo "=== end"; echo "up ended with $?"')
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELKEEP_")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ports = {"MODELKEEP_GATEWAY_PORT": str(gateway), "MODELKEEP_CONTROL_PORT": str(control)}
    with (folder / "out").open("w+") as out, (folder / "err").open("w+") as err:  # files: servers would hold a pipe open
        command = ["bash", "-c", "\n".join(script)]
        environment = {**kept, **ports, "PATH": path}
        with subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True) as shell:
            try:
                code = shell.wait(timeout=240)
            finally:
                with contextlib.suppress(ProcessLookupError):  # whatever the script left running, when it failed
                    os.killpg(shell.pid, signal.SIGKILL)
    said = (folder / "out").read_text("utf-8")
    assert code == 0, f"{said}\n{(folder / 'err').read_text('utf-8')}"
    parts = re.split(r"^=== (\w+)\n", said, flags=re.MULTILINE)
    return {"folder": folder, **dict(zip(parts[1::2], parts[2::2], strict=True))}


def test_the_readme_has_the_road():
    assert [name for name, _ in BLOCKS] == ["model", "keep", "ask", "look"]


def test_a_keep_is_made_and_a_model_published(told):
    assert "One-time password of admin" in told["keep"]
    assert "modelkeep-recovery-" in told["keep"]
    assert "credit-risk@1\n  model   sha256:" in told["keep"]
    assert "credit-risk@1 is promoted" in told["keep"]


def test_the_answer_comes_with_its_receipt(told):
    assert re.search(r"HTTP/1\.1 200 OK", told["ask"])
    assert re.search(r"modelkeep-record: \d+-gateway-[0-9a-f]+/\d+", told["ask"])
    assert '"model_name":"credit-risk","model_version":"1"' in told["ask"]


def test_what_the_verbs_say(told):
    assert "credit-risk@1: trusted, signed by" in told["look"]
    assert "proven" in told["look"]
    assert "/releases" in told["look"]
    assert "credit-risk@1 is quarantined" in told["look"]
    assert re.search(r"credit-risk@1\s+quarantined", told["look"])


def test_the_facade_is_as_the_readme_says(told):
    expression = re.search(r"`(modelkeep\.Keep\.open\([^`]+)`", README)
    assert expression
    code = f"import modelkeep; passphrase = open('passphrase', 'rb').read().strip(); print({expression[1]}.ref)"
    said = subprocess.run([sys.executable, "-c", code], cwd=told["folder"], capture_output=True, text=True, check=True)
    assert said.stdout == "credit-risk@1\n"


def test_stopping_is_graceful(told):
    assert "up ended with 0" in told["end"]
