"""The command line, run the way a user runs it: one process a verb, ``--json`` read back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx

_MODELKEEP = Path(sys.executable).with_name("modelkeep")


class CommandFailed(Exception):
    """A verb did not exit with the code that the story needs; the message is what it said, ``code`` its exit code."""

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class Shell:
    """``modelkeep`` on one keep. ``environment`` reaches every process it starts."""

    def __init__(self, keep: Path, passphrase_file: Path, **environment: str) -> None:
        self.keep = keep
        self.environment = {
            **os.environ,
            "MODELKEEP_DIR": str(keep),
            "MODELKEEP_PASSPHRASE_FILE": str(passphrase_file),
            "OMP_NUM_THREADS": "1",  # two cores carry the gateway, control and every client
            **environment,
        }

    def run(self, *arguments: str, expect: int = 0, where: Path | None = None) -> Any:
        """Run one verb with ``--json``, in the folder ``where``, and return what it printed. Raises CommandFailed."""
        done = subprocess.run(
            [str(_MODELKEEP), "--json", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=where,
        )
        if done.returncode != expect:
            said = (done.stderr or done.stdout).strip()
            told = f"modelkeep {' '.join(arguments)} exited with {done.returncode}, not {expect}: {said}"
            raise CommandFailed(told, done.returncode)
        try:
            return json.loads(done.stdout)
        except json.JSONDecodeError as cause:
            raise CommandFailed(f"modelkeep {arguments[0]} printed no JSON: {done.stdout[:200]!r}") from cause

    def start(self, *arguments: str) -> "Service":
        """Start a verb that keeps running, its output in a file beside the keep."""
        with (self.keep.parent / f"{arguments[0]}.log").open("ab") as output:
            process = subprocess.Popen(
                [str(_MODELKEEP), *arguments],
                env=self.environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return Service(process, Path(output.name))


class Service:
    """A running ``modelkeep up``."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self.process, self.output = process, output

    def gateway(self) -> int:
        """The process id of its gateway child. Raises CommandFailed when there is none."""
        if self.process.poll() is not None:
            raise CommandFailed(f"modelkeep up ended with exit code {self.process.returncode}: {self.tail()}")
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for child in children:
            if b"serve" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                return int(child)
        raise CommandFailed(f"modelkeep up has no gateway among its children {children}: {self.tail()}")

    def kill_gateway(self) -> None:
        """SIGKILL: no handler runs, nothing is flushed."""
        os.kill(self.gateway(), signal.SIGKILL)

    def stop(self, seconds: float = 15.0) -> int:
        """Ask it to stop (SIGTERM) and return its exit code; its whole process group is killed when it does not."""
        self.process.terminate()
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            return self.process.wait()

    def tail(self) -> str:
        """The last lines it printed."""
        return self.output.read_text(errors="replace")[-800:]


def free_port() -> int:
    """A TCP port on the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_ready(url: str, ca: Path, service: Service, seconds: float = 20.0) -> None:
    """Return once the gateway says that it is ready. Raises CommandFailed when it does not, or when ``service`` ended."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        if service.process.poll() is not None:
            raise CommandFailed(f"modelkeep up exited with {service.process.returncode}: {service.tail()}")
        try:
            if ca.exists() and httpx.get(f"{url}/v2/health/ready", verify=_trust(ca), trust_env=False, timeout=2).is_success:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.1)
    raise CommandFailed(f"the gateway at {url} was not ready within {seconds:.0f} s: {service.tail()}")


def _trust(ca: Path) -> Any:
    import ssl

    return ssl.create_default_context(cafile=str(ca))
