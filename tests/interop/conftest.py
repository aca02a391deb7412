import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ports"))

from golang import Go, build


@pytest.fixture(scope="session")
def go(tmp_path_factory, pytestconfig):
    """Go's implementation, to be asked."""
    program = Go(build(tmp_path_factory.mktemp("go"), pytestconfig.rootpath / ".pytest_cache" / "go"))
    yield program
    program.close()
