"""A running keep shows no secret: not in what it says, not to other processes of the same user, not in a core dump."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from canaries import Canaries, key_canaries
from commandline import PASSPHRASE, Cli, copy_keep
from e2e_house import INFER, House, files_of, question, wait_for

from modelkeep.app.keep import Keep

READS = "import sys; sys.stdout.buffer.write(open(f'/proc/{sys.argv[1]}/environ', 'rb').read())"
"""What only somebody who may trace a process can read (proc(5), ptrace(2): PTRACE_MODE_READ)."""
ORDINARY = """
import ctypes, os, sys
for capability in (19, 21, 38):  # CAP_SYS_PTRACE, CAP_SYS_ADMIN, CAP_PERFMON; without them root is like anybody else
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def ordinary(*arguments):
    """A command line of Python that runs without the rights of root to look into others."""
    return [sys.executable, "-c", ORDINARY, sys.executable, *arguments]


def readable(pid):
    """Whether a process of the same user and the same rights may look into ``pid``."""
    done = subprocess.run(ordinary("-c", READS, str(pid)), capture_output=True, timeout=60, check=False)
    assert done.returncode == 0 or b"PermissionError" in done.stderr, done.stderr
    return done.returncode == 0


def limits_of(pid):
    text = Path(f"/proc/{pid}/limits").read_text()
    return next(line.split()[4:6] for line in text.splitlines() if line.startswith("Max core file size"))


def may_dump():
    """In a child: core dumps as large as it may have, so that only what it does itself can forbid them."""
    import resource

    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))


@pytest.fixture(scope="module")
def running(template, desk, tmp_path_factory):
    """``modelkeep up`` on a keep of its own, by process: up, control, gateway."""
    folder = tmp_path_factory.mktemp("running")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    launcher = folder / "python"
    launcher.write_text(f"#!{sys.executable}\nimport sys\nsys.argv[:1] = ['-', {sys.executable!r}]\n{ORDINARY}")
    launcher.chmod(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(launcher))
        house = House(cli, folder).start()
    yield house, {"up": house.process.pid, "control": house.address("control")[1], "gateway": house.address("gateway")[1]}
    house.stop()


@pytest.mark.parametrize("role", ["up", "control", "gateway"])
def test_a_long_running_process_can_neither_be_looked_into_nor_dump_core(role, running):
    _, pids = running
    waits = "print(1, flush=True); import time; time.sleep(60)"
    with subprocess.Popen(ordinary("-c", waits), stdout=subprocess.PIPE) as other:
        assert other.stdout.readline()
        assert readable(other.pid), "the test could look into an ordinary process"
        other.kill()
    assert not readable(pids[role])
    assert limits_of(pids[role]) == ["0", "0"]


@pytest.mark.parametrize("verb", ["control", "serve", "up"])
@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT], ids=lambda number: number.name)
def test_a_server_that_crashes_leaves_no_core(verb, number, cli, tmp_path):
    environment = {
        **os.environ, "MODELKEEP_DIR": str(cli.keep), "MODELKEEP_PASSPHRASE_FILE": str(cli.passphrase_file),
        "MODELKEEP_GATEWAY_PORT": "0", "MODELKEEP_CONTROL_PORT": "0", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    where, role = tmp_path / "cwd", {"serve": "gateway"}.get(verb, "control")
    where.mkdir()
    with (tmp_path / "said").open("wb") as said:
        server = subprocess.Popen(
            [sys.executable, "-m", "modelkeep", verb], env=environment, cwd=where, stdin=subprocess.DEVNULL, stdout=said,
            stderr=said, preexec_fn=may_dump, start_new_session=True,  # noqa: PLW1509  # no other thread here
        )  # fmt: skip
    try:
        wait_for(
            lambda: (cli.keep / "run" / f"{role}.json").exists() or server.poll() is not None, 60, (tmp_path / "said").read_text
        )
        os.kill(server.pid, number)
        _, status = os.waitpid(server.pid, 0)
        server.returncode = -os.WTERMSIG(status)  # or it would wait again
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
    assert os.WTERMSIG(status) == number and not os.WCOREDUMP(status)
    assert list(where.iterdir()) == []
    canaries = Canaries()
    canaries.word("passphrase", PASSPHRASE)
    key_canaries(Keep.open(cli.keep, PASSPHRASE.encode()), canaries)
    assert not canaries.found((tmp_path / "said").read_bytes())


def test_what_servers_say_and_keep_under_good_and_bad_requests(running, subject, tmp_path):
    house, pids = running
    cli = house.cli.with_environment(XDG_CONFIG_HOME=str(tmp_path))
    canaries = Canaries()
    canaries.word("passphrase", PASSPHRASE)
    key_canaries(Keep.open(house.keep, PASSPHRASE.encode()), canaries)
    token = cli("--json", "key", "issue", "bob", code=0).json["token"]
    canaries.word("API key", token)
    said = []
    with house.client(token) as client:
        said += [client.post(INFER, json=question(subject.fresh[:2])).text for _ in range(30)]
        bodies = (b"", b"{", b"\xff" * 1000, b'{"inputs": 1}', b"[" * 5000, token.encode())
        said += [client.post(INFER, content=body).text for body in bodies]
        said += [client.get(path).text for path in ("/", "/metrics", "/v2", "/v2/models/risk", "/log/checkpoint", f"/{token}")]
        verbs = ("publish", "verify", "keys_list", "nothing")
        said += [client.post(f"{house.control}/admin/v1/{verb}", content=b"\x80").text for verb in verbs]
    for wrong in (token[:-1], token + "x", PASSPHRASE.replace(" ", "-")):
        said.append(house.ask(wrong, subject.fresh[:1]).text)
    for raw in (b"\x16\x03\x01" + bytes(200), b"GET / HTTP/1.1\r\n\r\n", b"\x00" * 5000):
        host, port = house.url.removeprefix("https://").split(":")
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5) as plain:
            plain.sendall(raw)
            said.append(plain.recv(4096).decode("latin-1"))
    house.kill("gateway")
    house.wait_ready(not_pid=pids["gateway"])
    said.append(house.ask(token, subject.fresh[:1]).text)
    assert said and not canaries.found("\n".join(said))
    assert not canaries.found(house.text())
    for path, data in files_of(house.keep):
        if path.parent.name != "blobs":
            assert not canaries.found(data), path
    for pid in (pids["up"], house.address("control")[1], house.address("gateway")[1]):
        assert not canaries.found(Path(f"/proc/{pid}/cmdline").read_bytes()), "in the arguments of a process"
        with contextlib.suppress(PermissionError):
            assert not canaries.found(Path(f"/proc/{pid}/environ").read_bytes()), "in the environment of a process"
