"""The stock clients and servers that ours is held against, in the environment that tools/setup.sh makes for them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = str(Path(sys.prefix) / "peers" / "bin" / "python")
HERE = Path(__file__).parent / "peers_scripts"


def run_peer(script: str, told: Any = None, seconds: float = 120.0) -> Any:
    """Run a script with the peers' Python; it reads ``told`` as JSON and what it prints last is its answer, as JSON."""
    done = subprocess.run(
        [PYTHON, str(HERE / script)],
        input=json.dumps(told).encode(),
        capture_output=True,
        check=False,
        timeout=seconds,
        env={**os.environ, "OMP_NUM_THREADS": "1", "GRPC_VERBOSITY": "ERROR"},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-4000:]
    return json.loads(done.stdout.splitlines()[-1])
