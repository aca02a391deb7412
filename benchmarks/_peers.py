"""The peers that are programs and packages of others: age, cryptotensors, tensorizer; picklescan, modelscan, modelaudit.

Packages live in virtual environments of their own below ``.venv-peers/``, which are made on first use.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_TORCH = "https://download.pytorch.org/whl/cpu"  # the other builds bring gigabytes of CUDA
PACKAGES = {
    "cryptotensors": ["cryptotensors==0.2.3", "numpy"],
    "picklescan": ["picklescan==1.0.5"],
    "modelscan": ["modelscan==0.8.8"],
    "modelaudit": ["modelaudit==0.2.54"],
    "tensorizer": ["tensorizer==2.12.1", "numpy", "torch", "--extra-index-url", CPU_TORCH],
}
INSTALL_SECONDS = 900


class Age:
    """The age command, with a key of its own in ``folder``. Raises NoPeer (it is not installed)."""

    def __init__(self, folder: Path) -> None:
        if not (shutil.which("age") and shutil.which("age-keygen")):
            raise NoPeer("age is not installed")
        self._identity = folder / "age.key"
        subprocess.run(["age-keygen", "-o", self._identity], check=True, capture_output=True)
        found = subprocess.run(["age-keygen", "-y", self._identity], check=True, capture_output=True, text=True)
        self._recipient = found.stdout.strip()

    def seal(self, source: Path, target: Path) -> None:
        subprocess.run(["age", "-r", self._recipient, "-o", target, source], check=True)

    def open(self, source: Path, target: Path) -> None:
        subprocess.run(["age", "-d", "-i", self._identity, "-o", target, source], check=True)


class NoPeer(Exception):
    """A peer that cannot be measured here, and why."""


def measure(peer: str, source: Path, folder: Path, tensor: str, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """(wall, cpu) seconds to load all of ``source`` and one ``tensor`` of it, as ``peer`` has encrypted it. Raises NoPeer."""
    child = Path(__file__).with_name("_peer_child.py")
    command = [python_of(peer), str(child), peer, str(source), str(folder), tensor, str(rounds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    (folder / peer).unlink(missing_ok=True)
    if done.returncode:
        raise NoPeer(f"{peer} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1][:120]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def python_of(peer: str) -> str:
    """The interpreter of the peer's environment, which is made when it is missing. Raises NoPeer."""
    place = ROOT / ".venv-peers" / peer
    python, done = place / "bin" / "python", place / "installed"
    if done.exists():
        return str(python)
    try:
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True, capture_output=True)
        install = [python, "-m", "pip", "install", "--quiet", "--retries", "1", *PACKAGES[peer]]
        subprocess.run(install, check=True, capture_output=True, timeout=INSTALL_SECONDS)
    except (subprocess.SubprocessError, OSError) as cause:
        raise NoPeer(f"{peer} did not install") from cause
    done.touch()
    return str(python)
